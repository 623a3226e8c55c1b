//! Clients at work while something goes wrong, and what they were told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use kvorum_testkit::client::{Client, Outcome, Patience};
use kvorum_testkit::random::Random;
use kvorum_testkit::resp::Value;
use kvorum_testkit::slots::key_in;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::systems::Slots;

/// Clients of each shard.
const WORKERS: usize = 4;
/// Between two commands of one client: what counts is the gaps, not the rate.
const PAUSE: Duration = Duration::from_millis(2);
/// A reply that takes longer is given up: whoever hangs on a dead server has to notice by itself.
const REPLY: Duration = Duration::from_millis(150);
const PATIENCE: Patience = Patience { reply: REPLY, command: Duration::from_secs(30) };

/// The key that a client writes to at the moment, and the version of it that was acknowledged.
type Current = Arc<Mutex<(String, u64)>>;

/// Clients at work on all shards.
pub(super) struct Workers {
    stop: Arc<AtomicBool>,
    began: Instant,
    /// Writes of each client that were acknowledged.
    done: Vec<Arc<AtomicUsize>>,
    tasks: Vec<JoinHandle<Books>>,
}

/// What one client was told.
#[derive(Default)]
pub(super) struct Books {
    shard: usize,
    /// When each write was acknowledged.
    acknowledged: Vec<Instant>,
    /// Keys and the version of each that was acknowledged last.
    keys: Vec<(String, u64)>,
    counter: String,
    /// The last number that an INCR of it returned.
    count: u64,
    counters_back: usize,
    stale_reads: usize,
    errors: BTreeMap<String, usize>,
}

/// What all were told.
pub(super) struct Evidence {
    pub(super) began: Instant,
    pub(super) books: Vec<Books>,
}

impl Workers {
    /// Starts clients on shards with these slots.
    pub(super) fn start(
        name: &str,
        shards: &[Slots],
        client: impl Fn() -> Client,
        random: &mut Random,
    ) -> Workers {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut tasks, mut all_done) = (Vec::new(), Vec::new());
        for (shard, slots) in shards.iter().enumerate() {
            let currents: Vec<Current> = (0..WORKERS).map(|_| Current::default()).collect();
            for number in 0..WORKERS {
                let wanted = |slot| slots.iter().any(|&(first, last)| (first..=last).contains(&slot));
                let name = format!("{name}:{shard}:{number}");
                let counter = key_in(&format!("{name}:counter"), 0, wanted);
                let done = Arc::new(AtomicUsize::new(0));
                all_done.push(Arc::clone(&done));
                let worker = Worker {
                    name,
                    slots: slots.clone(),
                    number,
                    client: client().with_patience(PATIENCE),
                    currents: currents.clone(),
                    made: 0,
                    random: random.fork(),
                    done,
                    books: Books { shard, counter, ..Books::default() },
                };
                tasks.push(tokio::spawn(worker.run(Arc::clone(&stop))));
            }
        }
        Workers { stop, began: Instant::now(), done: all_done, tasks }
    }

    /// Lets each finish what it is at, once it has got something done from here on.
    ///
    /// # Errors
    /// When one does not within `limit`.
    pub(super) async fn stop_after_progress(self, limit: Duration) -> Result<Evidence> {
        let ended: Vec<usize> = self.done.iter().map(|done| done.load(Ordering::Relaxed)).collect();
        let deadline = Instant::now() + limit;
        while self.done.iter().zip(&ended).any(|(done, before)| done.load(Ordering::Relaxed) == *before) {
            ensure!(Instant::now() < deadline, "a client got nothing done for {limit:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.stop.store(true, Ordering::Relaxed);
        let mut books = Vec::new();
        for task in self.tasks {
            books.push(task.await?);
        }
        Ok(Evidence { began: self.began, books })
    }
}

struct Worker {
    name: String,
    slots: Slots,
    number: usize,
    client: Client,
    currents: Vec<Current>,
    made: u64,
    random: Random,
    done: Arc<AtomicUsize>,
    books: Books,
}

impl Worker {
    async fn run(mut self, stop: Arc<AtomicBool>) -> Books {
        self.open();
        while !stop.load(Ordering::Relaxed) {
            match self.random.below(4) {
                0 | 1 => self.write().await,
                2 => self.count().await,
                _ => self.read().await,
            }
            tokio::time::sleep(PAUSE).await;
        }
        self.close();
        for (code, times) in self.client.refusals() {
            *self.books.errors.entry(code.clone()).or_default() += times;
        }
        self.books
    }

    /// Another key: after an unknown outcome nobody can tell what the old one holds.
    fn open(&mut self) {
        self.made += 1;
        let wanted = |slot| self.slots.iter().any(|&(first, last)| (first..=last).contains(&slot));
        *self.currents[self.number].lock() = (key_in(&self.name, self.made, wanted), 0);
    }

    fn acknowledge(&mut self) {
        self.books.acknowledged.push(Instant::now());
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    fn close(&mut self) {
        let current = self.currents[self.number].lock().clone();
        self.books.keys.push(current);
    }

    async fn write(&mut self) {
        let (key, version) = self.currents[self.number].lock().clone();
        let outcome = self.client.call(&["SET", &key, &(version + 1).to_string()]).await;
        match outcome {
            Outcome::Ok(value) if value == Value::ok() => {
                self.acknowledge();
                self.currents[self.number].lock().1 = version + 1;
            }
            other => {
                self.note(&other);
                self.close();
                self.open();
            }
        }
    }

    async fn count(&mut self) {
        match self.client.call(&["INCR", &self.books.counter]).await {
            Outcome::Ok(Value::Integer(value)) => {
                let value = u64::try_from(value).unwrap_or(0);
                self.acknowledge();
                self.books.counters_back += usize::from(value <= self.books.count);
                self.books.count = value;
            }
            other => self.note(&other),
        }
    }

    /// What another client's write was acknowledged with before this read began has to be in it.
    async fn read(&mut self) {
        let other = self.random.below(self.currents.len() as u64) as usize;
        let (key, version) = self.currents[other].lock().clone();
        match self.client.call(&["GET", &key]).await {
            Outcome::Ok(value) if value.error().is_none() => {
                let found = value.text().and_then(|text| text.parse().ok()).unwrap_or(0);
                self.books.stale_reads += usize::from(version > found);
            }
            other => self.note(&other),
        }
    }

    fn note(&mut self, outcome: &Outcome) {
        let kind = match outcome {
            Outcome::Ok(value) => format!("{value}").split(' ').next().unwrap_or_default().to_owned(),
            // The client counts what it was refused.
            Outcome::Refused(_) => return,
            Outcome::Unknown(why) if why.contains("UNKNOWN") => "-UNKNOWN".to_owned(),
            Outcome::Unknown(_) => "no reply".to_owned(),
        };
        *self.books.errors.entry(kind).or_default() += 1;
    }
}

impl Evidence {
    /// Writes of a shard that were acknowledged, in order of time.
    pub(super) fn acknowledged(&self, shard: usize) -> Vec<Instant> {
        let mut all: Vec<Instant> = self
            .books
            .iter()
            .filter(|books| books.shard == shard)
            .flat_map(|books| books.acknowledged.clone())
            .collect();
        all.sort_unstable();
        all
    }

    /// When the longest gap between two acknowledged writes of a shard ended, of those between two moments, and how long it was between them.
    pub(super) fn longest_gap(
        &self,
        shard: usize,
        from: Instant,
        until: Instant,
    ) -> Option<(Instant, Duration)> {
        let all = self.acknowledged(shard);
        let gaps = all.windows(2).filter(|two| two[1] > from && two[0] < until);
        gaps.map(|two| (two[1], two[1].min(until) - two[0].max(from))).max_by_key(|gap| gap.1)
    }

    pub(super) fn stale_reads(&self) -> usize {
        self.books.iter().map(|books| books.stale_reads).sum()
    }

    /// What went wrong for clients, by kind.
    pub(super) fn errors(&self) -> BTreeMap<String, usize> {
        let mut sum = BTreeMap::new();
        for (kind, times) in self.books.iter().flat_map(|books| &books.errors) {
            *sum.entry(kind.clone()).or_default() += times;
        }
        sum
    }

    /// Reads everything back: acknowledged writes that are gone, and counters that went back.
    pub(super) async fn losses(&self, client: &mut Client) -> Result<(u64, usize)> {
        let (mut lost, mut back) = (0, 0);
        for books in &self.books {
            for (key, version) in &books.keys {
                lost += version.saturating_sub(read(client, key).await?);
            }
            let count = read(client, &books.counter).await?;
            lost += books.count.saturating_sub(count);
            back += books.counters_back + usize::from(count < books.count);
        }
        Ok((lost, back))
    }
}

async fn read(client: &mut Client, key: &str) -> Result<u64> {
    match client.call(&["GET", key]).await {
        Outcome::Ok(Value::Null) => Ok(0),
        Outcome::Ok(value) => {
            ensure!(value.error().is_none(), "GET {key}: {value}");
            Ok(value.text().and_then(|text| text.parse().ok()).unwrap_or(0))
        }
        other => bail!("GET {key}: {other:?}"),
    }
}
