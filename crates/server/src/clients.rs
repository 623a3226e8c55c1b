//! The connections of one port, as CLIENT LIST shows them and CLIENT KILL ends them.

use crate::resp::Protocol;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// All connections of a port.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    last_id: AtomicU64,
    live: Mutex<BTreeMap<u64, Arc<Client>>>,
}

/// One connection, as others see it.
#[derive(Debug)]
pub(crate) struct Client {
    /// Number of the connection on this port, from 1, never used twice.
    pub(crate) id: u64,
    /// The client's address.
    pub(crate) peer: SocketAddr,
    /// The address it connected to.
    pub(crate) local: SocketAddr,
    created: Instant,
    profile: Mutex<Profile>,
    killed: AtomicBool,
    told: Notify,
}

/// What a client told about itself and does.
#[derive(Clone, Debug, Default)]
pub(crate) struct Profile {
    pub(crate) name: Vec<u8>,
    pub(crate) lib_name: Vec<u8>,
    pub(crate) lib_ver: Vec<u8>,
    pub(crate) db: u16,
    pub(crate) readonly: bool,
    pub(crate) no_evict: bool,
    pub(crate) no_touch: bool,
    pub(crate) protocol: Protocol,
    /// Name of the last command.
    pub(crate) command: &'static str,
    /// When it was last heard; `None` before it said anything.
    pub(crate) active: Option<Instant>,
    /// Bytes read and not yet understood.
    pub(crate) input_bytes: usize,
    /// Bytes of replies not yet written.
    pub(crate) output_bytes: usize,
}

impl Clients {
    /// Registers a connection.
    pub(crate) fn enter(&self, peer: SocketAddr, local: SocketAddr) -> Arc<Client> {
        let client = Arc::new(Client {
            id: self.last_id.fetch_add(1, Ordering::Relaxed) + 1,
            peer,
            local,
            created: Instant::now(),
            profile: Mutex::default(),
            killed: AtomicBool::new(false),
            told: Notify::new(),
        });
        self.live.lock().insert(client.id, Arc::clone(&client));
        client
    }

    /// The connection has ended.
    pub(crate) fn leave(&self, client: &Client) {
        self.live.lock().remove(&client.id);
    }

    /// Number of connections.
    pub(crate) fn len(&self) -> usize {
        self.live.lock().len()
    }

    /// All connections, by id.
    pub(crate) fn all(&self) -> Vec<Arc<Client>> {
        self.live.lock().values().cloned().collect()
    }
}

impl Client {
    /// Changes what others see.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Profile)) {
        change(&mut self.profile.lock());
    }

    /// The name that the client gave itself.
    pub(crate) fn name(&self) -> Vec<u8> {
        self.profile.lock().name.clone()
    }

    /// Ends the connection at once.
    pub(crate) fn kill(&self) {
        self.killed.store(true, Ordering::Release);
        self.told.notify_one();
    }

    /// Whether the connection is to end at once.
    pub(crate) fn is_killed(&self) -> bool {
        self.killed.load(Ordering::Acquire)
    }

    /// Makes the connection look at what it shares with others: there is news.
    pub(crate) fn tell(&self) {
        self.told.notify_one();
    }

    /// Waits until there is news.
    pub(crate) async fn told(&self) {
        self.told.notified().await;
    }

    /// How long the client has been silent.
    pub(crate) fn idle(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.profile.lock().active.unwrap_or(self.created))
    }

    /// The line of CLIENT LIST and CLIENT INFO, without a line break.
    pub(crate) fn describe(&self, now: Instant) -> String {
        let profile = self.profile.lock().clone();
        let age = now.saturating_duration_since(self.created).as_secs();
        let idle = now.saturating_duration_since(profile.active.unwrap_or(self.created)).as_secs();
        let mut flags = String::new();
        for (set, flag) in [(profile.readonly, 'r'), (profile.no_evict, 'e'), (profile.no_touch, 'T')] {
            if set {
                flags.push(flag);
            }
        }
        if flags.is_empty() {
            flags.push('N');
        }
        format!(
            "id={} addr={} laddr={} fd=-1 name={} age={age} idle={idle} flags={flags} db={} sub=0 psub=0 ssub=0 \
             multi=-1 qbuf={} qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl={} oll=0 omem={} tot-mem={} \
             events=r cmd={} user=default redir=-1 resp={} lib-name={} lib-ver={}",
            self.id,
            self.peer,
            self.local,
            String::from_utf8_lossy(&profile.name),
            profile.db,
            profile.input_bytes,
            profile.output_bytes,
            profile.output_bytes,
            profile.input_bytes + profile.output_bytes,
            if profile.command.is_empty() { "NULL" } else { profile.command },
            profile.protocol.number(),
            String::from_utf8_lossy(&profile.lib_name),
            String::from_utf8_lossy(&profile.lib_ver),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_come_and_go_and_ids_stay_unique() {
        let clients = Clients::default();
        let address: SocketAddr = "127.0.0.1:9".parse().unwrap();
        let first = clients.enter(address, address);
        clients.leave(&first);
        let second = clients.enter(address, address);
        assert_eq!((first.id, second.id, clients.len()), (1, 2, 1));
        second.update(|profile| profile.name = b"worker".to_vec());
        let line = second.describe(Instant::now());
        assert!(
            line.starts_with("id=2 addr=127.0.0.1:9 laddr=127.0.0.1:9 fd=-1 name=worker age=0"),
            "{line}"
        );
    }
}
