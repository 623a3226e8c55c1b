//! The connections of one port, as CLIENT LIST shows them and CLIENT KILL ends them.

use crate::limits::OutputLimit;
use crate::monitor::Feed;
use crate::resp::Protocol;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
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
    /// Number of its file, for whoever compares with what the system shows.
    fd: i32,
    pub(crate) created: Instant,
    profile: Mutex<Profile>,
    /// What its connection measures, turn by turn.
    pub(crate) meters: Meters,
    /// What MONITOR has for it.
    pub(crate) feed: Feed,
    /// Since when more than the soft limit waits for it.
    unread_since: Mutex<Option<Instant>>,
    killed: AtomicBool,
    /// How a wait of its is to end: one of [`Unblock`], 0 for by itself.
    unblock: AtomicU8,
    told: Notify,
}

/// What a client told about itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Profile {
    pub(crate) name: Vec<u8>,
    pub(crate) lib_name: Vec<u8>,
    pub(crate) lib_ver: Vec<u8>,
    pub(crate) db: u16,
    pub(crate) readonly: bool,
    pub(crate) no_evict: bool,
    pub(crate) no_touch: bool,
    pub(crate) monitor: bool,
    /// Channels it subscribed to.
    pub(crate) channels: usize,
    /// Patterns it subscribed to.
    pub(crate) patterns: usize,
    pub(crate) protocol: Protocol,
    /// Name of the last command.
    pub(crate) command: &'static str,
}

impl Profile {
    /// Whether it waits for what others publish.
    pub(crate) fn is_subscriber(&self) -> bool {
        self.channels + self.patterns > 0
    }
}

/// What a connection measures about itself. One task writes, others read whenever they like.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    /// When it was last heard or took replies, in milliseconds since it came.
    active_ms: AtomicU64,
    /// Bytes read and not yet understood.
    pub(crate) input_bytes: AtomicUsize,
    /// Bytes that the buffer of requests has room for beyond those.
    pub(crate) input_free: AtomicUsize,
    /// Bytes of arguments of the requests being run or held.
    pub(crate) argument_bytes: AtomicUsize,
    /// Bytes of replies not yet written, wherever they wait.
    pub(crate) output_bytes: AtomicUsize,
    /// Bytes that the buffer of replies can hold.
    pub(crate) output_capacity: AtomicUsize,
    /// The most bytes of replies that waited at a time.
    pub(crate) output_peak: AtomicUsize,
    /// Bytes read so far.
    pub(crate) read_bytes: AtomicU64,
    /// Bytes written so far.
    pub(crate) written_bytes: AtomicU64,
    /// Commands so far.
    pub(crate) commands: AtomicU64,
    /// Whether it is held by the gate, or waits in a command that may take its time.
    pub(crate) blocked: AtomicBool,
    /// Whether it waits in a command that CLIENT UNBLOCK ends.
    pub(crate) waits: AtomicBool,
}

/// How CLIENT UNBLOCK ends a wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unblock {
    /// As if its time were over.
    Timeout = 1,
    /// With an error.
    Error = 2,
}

impl Meters {
    /// Bytes of buffers that the connection takes.
    fn buffer_bytes(&self) -> usize {
        let bytes = |meter: &AtomicUsize| meter.load(Ordering::Relaxed);
        bytes(&self.input_bytes)
            + bytes(&self.input_free)
            + bytes(&self.argument_bytes)
            + bytes(&self.output_bytes).max(bytes(&self.output_capacity))
    }
}

impl Clients {
    /// Registers a connection.
    pub(crate) fn enter(&self, peer: SocketAddr, local: SocketAddr, fd: i32) -> Arc<Client> {
        let client = Arc::new(Client {
            id: self.last_id.fetch_add(1, Ordering::Relaxed) + 1,
            peer,
            local,
            fd,
            created: Instant::now(),
            profile: Mutex::default(),
            meters: Meters::default(),
            feed: Feed::default(),
            unread_since: Mutex::default(),
            killed: AtomicBool::new(false),
            unblock: AtomicU8::new(0),
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

    /// Bytes of the buffers of all connections together.
    pub(crate) fn buffer_bytes(&self) -> u64 {
        let one = |client: &Arc<Client>| client.meters.buffer_bytes() as u64;
        self.live.lock().values().map(one).sum()
    }

    /// The largest buffer of requests and the largest of replies of any connection.
    pub(crate) fn largest_buffers(&self) -> (usize, usize) {
        let live = self.live.lock();
        let largest = |meter: fn(&Meters) -> &AtomicUsize| {
            live.values().map(|client| meter(&client.meters).load(Ordering::Relaxed)).max().unwrap_or(0)
        };
        (largest(|meters| &meters.input_bytes), largest(|meters| &meters.output_peak))
    }

    /// All connections, by id.
    pub(crate) fn all(&self) -> Vec<Arc<Client>> {
        self.live.lock().values().cloned().collect()
    }

    /// The connection of that number.
    pub(crate) fn get(&self, id: u64) -> Option<Arc<Client>> {
        self.live.lock().get(&id).cloned()
    }

    /// Number of connections that are held or wait.
    pub(crate) fn blocked(&self) -> usize {
        self.live.lock().values().filter(|client| client.is_blocked()).count()
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

    /// What it told about itself.
    pub(crate) fn profile(&self) -> Profile {
        self.profile.lock().clone()
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

    /// Ends its wait; `false` when it does not wait.
    pub(crate) fn unblock(&self, how: Unblock) -> bool {
        if !self.meters.waits.swap(false, Ordering::AcqRel) {
            return false;
        }
        self.unblock.store(how as u8, Ordering::Release);
        self.told.notify_one();
        true
    }

    /// How its wait is to end, if somebody ended it.
    pub(crate) fn take_unblock(&self) -> Option<Unblock> {
        // Most turns have nothing to take, and a load is cheaper than a swap.
        if self.unblock.load(Ordering::Acquire) == 0 {
            return None;
        }
        match self.unblock.swap(0, Ordering::AcqRel) {
            0 => None,
            how if how == Unblock::Error as u8 => Some(Unblock::Error),
            _ => Some(Unblock::Timeout),
        }
    }

    /// Makes the connection look at what it shares with others: there is news.
    pub(crate) fn tell(&self) {
        self.told.notify_one();
    }

    /// Waits until there is news.
    pub(crate) async fn told(&self) {
        self.told.notified().await;
    }

    /// It was heard, or took replies.
    pub(crate) fn note_active(&self, now: Instant) {
        let age = now.saturating_duration_since(self.created);
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        self.meters.active_ms.store(age, Ordering::Relaxed);
    }

    /// How long the client has been silent.
    pub(crate) fn idle(&self, now: Instant) -> Duration {
        let active = Duration::from_millis(self.meters.active_ms.load(Ordering::Relaxed));
        now.saturating_duration_since(self.created).saturating_sub(active)
    }

    /// Whether more than the soft limit has waited for it for as long as that may be. To be asked now and then.
    pub(crate) fn is_over_soft_limit(&self, limit: OutputLimit, now: Instant) -> bool {
        let mut since = self.unread_since.lock();
        let unread = self.meters.output_bytes.load(Ordering::Relaxed) as u64;
        if unread <= limit.soft_bytes {
            *since = None;
            return false;
        }
        let since = *since.get_or_insert(now);
        now.saturating_duration_since(since) >= Duration::from_secs(limit.soft_seconds)
    }

    /// Whether it is held, or waits in a command.
    pub(crate) fn is_blocked(&self) -> bool {
        self.meters.blocked.load(Ordering::Relaxed)
    }

    /// The line of CLIENT LIST and CLIENT INFO, without a line break: the fields of Redis 7.0 in their order, and then those that
    /// newer versions have.
    pub(crate) fn describe(&self, now: Instant) -> String {
        /// Redis's buffer of replies, before it makes a list of more.
        const STATIC_REPLY_BYTES: usize = 16 * 1024;
        /// What a connection costs besides its buffers, about.
        const CONNECTION_BYTES: usize = 4 * 1024;
        let profile = self.profile();
        let meters = &self.meters;
        let get = |meter: &AtomicUsize| meter.load(Ordering::Relaxed);
        let age = now.saturating_duration_since(self.created).as_secs();
        let idle = self.idle(now).as_secs();
        let mut flags = String::new();
        for (set, flag) in [
            (profile.monitor, 'O'),
            (profile.is_subscriber(), 'P'),
            (self.is_blocked(), 'b'),
            (profile.readonly, 'r'),
            (profile.no_evict, 'e'),
            (profile.no_touch, 'T'),
        ] {
            if set {
                flags.push(flag);
            }
        }
        if flags.is_empty() {
            flags.push('N');
        }
        let (input, input_free, arguments) =
            (get(&meters.input_bytes), get(&meters.input_free), get(&meters.argument_bytes));
        let (output, capacity) = (get(&meters.output_bytes), get(&meters.output_capacity));
        let listed = output.saturating_sub(STATIC_REPLY_BYTES);
        let total =
            CONNECTION_BYTES + input + input_free + arguments + output.max(capacity) + self.feed.len();
        format!(
            "id={} addr={} laddr={} fd={} name={} age={age} idle={idle} flags={flags} db={} sub={} psub={} ssub=0 \
             multi=-1 qbuf={input} qbuf-free={input_free} argv-mem={arguments} multi-mem=0 rbs={capacity} rbp={} \
             obl={} oll={} omem={listed} tot-mem={total} events={} cmd={} user=default redir=-1 resp={} lib-name={} \
             lib-ver={} tot-net-in={} tot-net-out={} tot-cmds={}",
            self.id,
            self.peer,
            self.local,
            self.fd,
            String::from_utf8_lossy(&profile.name),
            profile.db,
            profile.channels,
            profile.patterns,
            get(&meters.output_peak),
            output.min(STATIC_REPLY_BYTES),
            listed.div_ceil(STATIC_REPLY_BYTES),
            if output > 0 { "rw" } else { "r" },
            if profile.command.is_empty() { "NULL" } else { profile.command },
            profile.protocol.number(),
            String::from_utf8_lossy(&profile.lib_name),
            String::from_utf8_lossy(&profile.lib_ver),
            meters.read_bytes.load(Ordering::Relaxed),
            meters.written_bytes.load(Ordering::Relaxed),
            meters.commands.load(Ordering::Relaxed),
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
        let first = clients.enter(address, address, 3);
        clients.leave(&first);
        let second = clients.enter(address, address, 3);
        assert_eq!((first.id, second.id, clients.len()), (1, 2, 1));
        second.update(|profile| profile.name = b"worker".to_vec());
        let line = second.describe(Instant::now());
        assert!(line.starts_with("id=2 addr=127.0.0.1:9 laddr=127.0.0.1:9 fd=3 name=worker age=0"), "{line}");
    }

    #[test]
    fn what_a_connection_measures_is_shown() {
        let clients = Clients::default();
        let address: SocketAddr = "127.0.0.1:9".parse().unwrap();
        let client = clients.enter(address, address, 3);
        let meters = &client.meters;
        meters.input_bytes.store(26, Ordering::Relaxed);
        meters.input_free.store(100, Ordering::Relaxed);
        meters.argument_bytes.store(10, Ordering::Relaxed);
        meters.output_bytes.store(40_000, Ordering::Relaxed);
        meters.output_capacity.store(50_000, Ordering::Relaxed);
        meters.read_bytes.store(7, Ordering::Relaxed);
        meters.written_bytes.store(8, Ordering::Relaxed);
        meters.commands.store(9, Ordering::Relaxed);
        let line = client.describe(Instant::now());
        for field in [
            " flags=N ",
            " qbuf=26 qbuf-free=100 argv-mem=10 ",
            " rbs=50000 ",
            " obl=16384 oll=2 omem=23616 tot-mem=54232 events=rw cmd=NULL ",
            " tot-net-in=7 tot-net-out=8 tot-cmds=9",
        ] {
            assert!(line.contains(field), "{field:?} in {line}");
        }
    }

    #[test]
    fn only_who_waits_is_unblocked_and_once() {
        let clients = Clients::default();
        let address: SocketAddr = "127.0.0.1:9".parse().unwrap();
        let client = clients.enter(address, address, 3);
        assert!(!client.unblock(Unblock::Error));
        assert_eq!(client.take_unblock(), None);
        client.meters.waits.store(true, Ordering::Relaxed);
        assert!(client.unblock(Unblock::Error) && !client.unblock(Unblock::Timeout));
        assert_eq!((client.take_unblock(), client.take_unblock()), (Some(Unblock::Error), None));
    }

    #[test]
    fn silence_is_measured_from_the_last_word() {
        let clients = Clients::default();
        let address: SocketAddr = "127.0.0.1:9".parse().unwrap();
        let client = clients.enter(address, address, 3);
        std::thread::sleep(Duration::from_millis(20));
        let now = Instant::now();
        assert!(client.idle(now) >= Duration::from_millis(20));
        client.note_active(Instant::now());
        assert!(client.idle(Instant::now()) < Duration::from_millis(20));
    }
}
