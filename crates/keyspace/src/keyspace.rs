//! The whole state of a shard's data: databases, their slots, the change sequence, the deadlines.
//!
//! Contract: every method that changes something is deterministic in the state and its arguments.
//! The hash that places keys is keyed by one secret seed per cluster, so that SCAN cursors hold on every
//! replica and nobody outside can aim keys at one bucket.
//! Left out: who owns a slot, what the clock says, when to expire; the caller knows.

use crate::{
    Reader, Slot, Writer,
    checksum::{Checksum, Mutation},
    database::{Database, Locator, Remains, Tables},
    slot_of,
    table::Hash,
};
use std::sync::atomic::{AtomicU64, Ordering};

/// What a keyspace must know before its first command; the same on every replica of the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Number of databases, at least one.
    pub databases: u16,
    /// Secret key of the hash that orders keys.
    pub hash_seed: [u8; 16],
}

/// Databases of keys and values, with their deadlines and change sequences.
#[derive(Debug)]
pub struct Keyspace {
    pub(crate) databases: Vec<Database>,
    pub(crate) sequence: u64,
    pub(crate) expired_keys: u64,
    pub(crate) checksum: Checksum,
    pub(crate) reads: ReadCounters,
    pub(crate) garbage: Vec<Remains>,
    pub(crate) hash: Hash,
}

/// Counters since the keyspace began.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Keys removed because their deadline passed; the same on every replica.
    pub expired_keys: u64,
    /// Reads here that found their key; not replicated.
    pub keyspace_hits: u64,
    /// Reads here that did not find their key; not replicated.
    pub keyspace_misses: u64,
}

/// Counts of reads. They are no state: nothing that a command does depends on them.
#[derive(Debug, Default)]
pub(crate) struct ReadCounters {
    pub(crate) hits: AtomicU64,
    pub(crate) misses: AtomicU64,
    /// Random numbers drawn for reads.
    draws: AtomicU64,
}

impl Keyspace {
    /// An empty keyspace.
    pub fn new(settings: Settings) -> Keyspace {
        assert!(settings.databases > 0, "a keyspace has at least one database");
        let hash = Hash::new(&settings.hash_seed);
        Keyspace {
            databases: (0..settings.databases).map(|_| Database::new(hash)).collect(),
            sequence: 0,
            expired_keys: 0,
            checksum: Checksum::default(),
            reads: ReadCounters::default(),
            garbage: Vec::new(),
            hash,
        }
    }

    /// A view for the reads of one command. `log_clock_ms` is the clock of the last applied entry, `now_ms` the
    /// reader's own (on a follower the log's); keys whose deadline lies between are in doubt, see
    /// [`Reader::waits_for`].
    pub fn reader(&self, db: u16, log_clock_ms: u64, now_ms: u64) -> Reader<'_> {
        Reader::new(self, db, log_clock_ms, now_ms)
    }

    /// A writer for one command of an entry whose clock is `now_ms` and whose random seed is `seed`.
    pub fn writer(&mut self, db: u16, now_ms: u64, seed: u64) -> Writer<'_> {
        self.sweep();
        Writer::new(self, db, now_ms, seed)
    }

    /// Removes keys whose deadline is `now_ms` or earlier, earliest first, at most `limit` of them. Returns how
    /// many it removed. All of one call carry one change sequence.
    pub fn expire_due(&mut self, now_ms: u64, limit: usize) -> usize {
        let mut removed = 0;
        let sequence = self.sequence + 1;
        while removed < limit {
            let Some((deadline_ms, db, at)) = self.next_due().filter(|due| due.0 <= now_ms) else { break };
            let database = &mut self.databases[usize::from(db)];
            let key = database.tables().key_due(at, deadline_ms).map(<[u8]>::to_vec);
            let key = key.expect("the index of deadlines holds no key that is gone");
            database.remove(&key, at, sequence);
            self.checksum.note(db, sequence, Mutation::Expire { key: &key });
            removed += 1;
        }
        if removed > 0 {
            self.sequence = sequence;
            self.expired_keys += removed as u64;
        }
        self.sweep();
        removed
    }

    /// The earliest deadline of any key, in milliseconds since the epoch.
    pub fn next_deadline(&self) -> Option<u64> {
        self.next_due().map(|(deadline_ms, ..)| deadline_ms)
    }

    fn next_due(&self) -> Option<(u64, u16, Locator)> {
        (0..self.databases())
            .filter_map(|db| self.database(db).next_due().map(|(deadline_ms, at)| (deadline_ms, db, at)))
            .min()
    }

    fn database(&self, db: u16) -> &Database {
        &self.databases[usize::from(db)]
    }

    pub(crate) fn tables(&self, db: u16) -> &Tables {
        self.database(db).tables()
    }

    /// Frees a piece of what FLUSHALL left, so that no single command pays for all of it.
    fn sweep(&mut self) {
        if let Some(garbage) = self.garbage.pop() {
            self.garbage.extend(garbage.sweep());
        }
    }

    /// Number of databases.
    pub fn databases(&self) -> u16 {
        u16::try_from(self.databases.len()).expect("made from a u16")
    }

    /// Number of keys in a database; keys that are due but not removed yet count.
    pub fn len(&self, db: u16) -> usize {
        self.tables(db).len()
    }

    /// Whether no database holds a key.
    pub fn is_empty(&self) -> bool {
        self.databases.iter().all(|database| database.tables().len() == 0)
    }

    /// Number of keys with a deadline in a database.
    pub fn expiring(&self, db: u16) -> usize {
        self.tables(db).expiring()
    }

    /// Number of keys in one slot of a database.
    pub fn count_in_slot(&self, db: u16, slot: Slot) -> usize {
        self.tables(db).count_in_slot(slot)
    }

    /// At most `limit` keys of one slot, in hash order.
    pub fn keys_in_slot(&self, db: u16, slot: Slot, limit: usize) -> Vec<Vec<u8>> {
        let mut keys = Vec::new();
        self.tables(db).visit_slot(slot, 0, &mut |_, key, _| {
            if keys.len() < limit {
                keys.push(key.to_vec());
            }
            keys.len() < limit
        });
        keys
    }

    /// The shard's change sequence: the number of commands so far that changed something.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Bytes that the data count for: keys, values and a fixed charge per key. Logical, so equal on all replicas.
    pub fn used_memory(&self) -> u64 {
        self.databases.iter().map(|database| database.tables().used_memory()).sum()
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        Stats {
            expired_keys: self.expired_keys,
            keyspace_hits: self.reads.hits.load(Ordering::Relaxed),
            keyspace_misses: self.reads.misses.load(Ordering::Relaxed),
        }
    }

    /// The whole state in canonical bytes: two keyspaces are equal exactly when their dumps are. The content of
    /// [`snapshot`](Self::snapshot), for tests.
    pub fn dump(&self) -> Vec<u8> {
        self.snapshot().dump()
    }

    /// Hash over all changes since the keyspace began, and over the counts of what is there: replicas that applied the
    /// same log have the same. Persisted and frozen: `docs/data-on-disk.md`, "Checksum".
    pub fn checksum(&self) -> u64 {
        let mut counts = vec![self.sequence, self.expired_keys];
        for database in &self.databases {
            let tables = database.tables();
            counts.extend([tables.len() as u64, tables.expiring() as u64, tables.flushed()]);
        }
        self.checksum.with(&counts)
    }

    /// Takes what FLUSHALL and FLUSHDB left, if anything, to be dropped elsewhere. Who does not ask pays in pieces:
    /// each writer frees a bounded one.
    pub fn take_garbage(&mut self) -> Option<Garbage> {
        (!self.garbage.is_empty()).then(|| Garbage { _remains: std::mem::take(&mut self.garbage) })
    }

    /// A random number for a read: how many were drawn before, under the secret hash. There is no entropy in here, and
    /// what a read answers by chance needs none; nobody outside can tell the next one.
    pub(crate) fn draw(&self) -> u64 {
        let draws = self.reads.draws.fetch_add(1, Ordering::Relaxed);
        self.hash.of(&draws.to_le_bytes())
    }

    /// Where a key lies.
    pub(crate) fn locate(&self, key: &[u8]) -> Locator {
        Locator { slot: slot_of(key), hash: self.hash.of(key) }
    }
}

/// What FLUSHALL and FLUSHDB left behind. Dropping it takes time with the number of keys: drop it where nobody waits.
#[derive(Debug)]
pub struct Garbage {
    _remains: Vec<Remains>,
}
