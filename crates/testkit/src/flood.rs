//! Writes as fast as a cluster takes them: pipelines of SET to every leader, over a fixed set of keys.
//!
//! Every key has one writer, which writes numbers that rise, so what a key must hold afterwards is known. Nothing is tried again: an error
//! or a redirection ends the flood, which is for clusters whose leaders stay.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;

use crate::map::Map;
use crate::resp::{Connection, Value};
use crate::slots::slot_of;

/// Commands that one writer sends at once.
const DEPTH: usize = 64;
const WRITERS_PER_SHARD: usize = 2;

/// The writers.
#[derive(Debug)]
pub struct Flood {
    value_bytes: usize,
    writers: Vec<Writer>,
}

#[derive(Debug)]
struct Writer {
    shard: u16,
    keys: Vec<Bytes>,
    /// Writes done. Write *n*, from 0, goes to key *n* modulo their number.
    done: u64,
}

impl Flood {
    /// Writers for `keys` keys with values of `value_bytes` bytes, spread over the shards as the servers `asked` have them.
    ///
    /// # Errors
    /// When a server does not answer.
    pub async fn new(map: &Map, asked: &[u16], keys: u64, value_bytes: usize) -> Result<Flood> {
        let mut writers: Vec<Writer> = (0..map.shards())
            .flat_map(|shard| {
                (0..WRITERS_PER_SHARD).map(move |_| Writer { shard, keys: Vec::new(), done: 0 })
            })
            .collect();
        let ranges = map.ranges(asked).await?;
        for n in 0..keys {
            let key = format!("flood:{n}");
            let slot = slot_of(key.as_bytes());
            let range =
                ranges.iter().find(|r| (r.first..=r.last).contains(&slot)).context("a slot without owner")?;
            let shard = usize::from(map.shard_of(&range.leader));
            let writer = shard * WRITERS_PER_SHARD + (n as usize) % WRITERS_PER_SHARD;
            writers[writer].keys.push(key.into());
        }
        ensure!(writers.iter().all(|writer| !writer.keys.is_empty()), "too few keys");
        Ok(Flood { value_bytes, writers })
    }

    /// Bytes of all keys with their values.
    pub fn live_bytes(&self) -> u64 {
        let keys = self.writers.iter().flat_map(|writer| &writer.keys);
        keys.map(|key| (key.len() + self.value_bytes) as u64).sum()
    }

    /// Does about `count` writes; returns how many and in which time.
    ///
    /// # Errors
    /// When one is not acknowledged.
    pub async fn write(&mut self, map: &Map, asked: &[u16], count: u64) -> Result<(u64, Duration)> {
        let share = count.div_ceil(self.writers.len() as u64);
        self.run(map, asked, share, &AtomicBool::new(false)).await
    }

    /// Writes until `stop` is set; returns how many and in which time.
    ///
    /// # Errors
    /// When one is not acknowledged.
    pub async fn write_until(
        &mut self,
        map: &Map,
        asked: &[u16],
        stop: &AtomicBool,
    ) -> Result<(u64, Duration)> {
        self.run(map, asked, u64::MAX, stop).await
    }

    async fn run(
        &mut self,
        map: &Map,
        asked: &[u16],
        share: u64,
        stop: &AtomicBool,
    ) -> Result<(u64, Duration)> {
        let mut leaders = Vec::new();
        for shard in 0..map.shards() {
            leaders.push(map.leader(asked, shard).await?);
        }
        let (before, value_bytes) = (self.done(), self.value_bytes);
        let began = Instant::now();
        let writers = self.writers.iter_mut().map(|writer| {
            let leader = &leaders[usize::from(writer.shard)];
            async move { writer.write(leader, share, value_bytes, stop).await }
        });
        futures_join(writers).await?;
        Ok((self.done() - before, began.elapsed()))
    }

    fn done(&self) -> u64 {
        self.writers.iter().map(|writer| writer.done).sum()
    }

    /// Reads every key from the replicas of one server, stale reads included, and compares it with what was written.
    ///
    /// # Errors
    /// With the first difference.
    pub async fn check(&self, map: &Map, server: u16) -> Result<u64> {
        let mut checked = 0;
        for writer in &self.writers {
            let mut connection = map.connect(server, writer.shard).await?;
            connection.call(&["READONLY"]).await?;
            for (at, keys) in writer.keys.chunks(1000).enumerate() {
                let requests: Vec<Vec<Bytes>> =
                    keys.iter().map(|key| vec![Bytes::from_static(b"GET"), key.clone()]).collect();
                let replies = connection.pipeline(&requests).await?;
                for (within, (key, reply)) in keys.iter().zip(replies).enumerate() {
                    let wanted = writer.last_of(at * 1000 + within).map(|n| value(n, self.value_bytes));
                    let found = match &reply {
                        Value::Bulk(bytes) => Some(bytes.clone()),
                        _ => None,
                    };
                    ensure!(found == wanted, "server {server}: {key:?} holds {reply}, not {wanted:?}");
                    checked += 1;
                }
            }
        }
        Ok(checked)
    }
}

impl Writer {
    async fn write(&mut self, leader: &str, share: u64, value_bytes: usize, stop: &AtomicBool) -> Result<()> {
        let mut connection = Connection::open(leader).await?;
        let end = self.done.saturating_add(share);
        while self.done < end && !stop.load(Ordering::Relaxed) {
            let count = (end - self.done).min(DEPTH as u64);
            let requests: Vec<Vec<Bytes>> = (self.done..self.done + count)
                .map(|n| {
                    let key = &self.keys[(n % self.keys.len() as u64) as usize];
                    vec![Bytes::from_static(b"SET"), key.clone(), value(n, value_bytes)]
                })
                .collect();
            for reply in connection.pipeline(&requests).await? {
                ensure!(reply == Value::ok(), "{leader} answers {reply}");
            }
            self.done += count;
        }
        Ok(())
    }

    /// The last write to the key at this place.
    fn last_of(&self, at: usize) -> Option<u64> {
        let (at, keys) = (at as u64, self.keys.len() as u64);
        let last = self.done.checked_sub(at + 1)? / keys * keys + at;
        Some(last)
    }
}

fn value(n: u64, bytes: usize) -> Bytes {
    format!("{n:0bytes$}").into()
}

/// Runs all of them at once; the first error ends it.
async fn futures_join<'a, F>(tasks: impl Iterator<Item = F>) -> Result<()>
where
    F: Future<Output = Result<()>> + 'a,
{
    let mut tasks: Vec<_> = tasks.map(Box::pin).collect();
    std::future::poll_fn(move |cx| {
        let mut failure = None;
        tasks.retain_mut(|task| match task.as_mut().poll(cx) {
            std::task::Poll::Ready(Ok(())) => false,
            std::task::Poll::Ready(Err(error)) => {
                failure = Some(error);
                false
            }
            std::task::Poll::Pending => true,
        });
        match failure {
            Some(error) => std::task::Poll::Ready(Err(error)),
            None if tasks.is_empty() => std::task::Poll::Ready(Ok(())),
            None => std::task::Poll::Pending,
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_write_of_each_key() {
        let keys = (0..3).map(|n| Bytes::from(format!("{n}"))).collect();
        let mut writer = Writer { shard: 0, keys, done: 0 };
        assert_eq!(writer.last_of(0), None);
        for done in 1..20u64 {
            writer.done = done;
            for at in 0..3usize {
                let expected = (0..done).rfind(|n| n % 3 == at as u64);
                assert_eq!(writer.last_of(at), expected, "{done} writes, key {at}");
            }
        }
    }

    #[test]
    fn values_have_their_length() {
        assert_eq!(value(17, 6), Bytes::from_static(b"000017"));
    }
}
