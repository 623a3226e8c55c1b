//! The whole state of a shard's data: databases, their slots, the change sequence, the deadlines.
//!
//! Contract: every method that changes something is deterministic in the state and its arguments.
//! The hash that places keys is keyed by one secret seed per cluster, so that SCAN cursors hold on every
//! replica and nobody outside can aim keys at one bucket.
//! Left out: who owns a slot, what the clock says, when to expire; the caller knows.

use crate::{
    Reader, SLOTS, Slot, Writer, argv,
    database::{Database, Locator, Record},
    deadlines::Deadlines,
    slot_of,
    value::ValueRef,
};
use siphasher::sip::SipHasher13;
use std::{
    hash::Hasher,
    sync::atomic::{AtomicU64, Ordering},
};

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
    pub(crate) deadlines: Deadlines,
    pub(crate) sequence: u64,
    pub(crate) expired_keys: u64,
    pub(crate) reads: ReadCounters,
    hash: SipHasher13,
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
}

impl Keyspace {
    /// An empty keyspace.
    pub fn new(settings: Settings) -> Keyspace {
        assert!(settings.databases > 0, "a keyspace has at least one database");
        Keyspace {
            databases: (0..settings.databases).map(|_| Database::default()).collect(),
            deadlines: Deadlines::default(),
            sequence: 0,
            expired_keys: 0,
            reads: ReadCounters::default(),
            hash: SipHasher13::new_with_key(&settings.hash_seed),
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
        Writer::new(self, db, now_ms, seed)
    }

    /// Removes keys whose deadline is `now_ms` or earlier, earliest first, at most `limit` of them. Returns how
    /// many it removed. All of one call carry one change sequence.
    pub fn expire_due(&mut self, now_ms: u64, limit: usize) -> usize {
        let mut removed = 0;
        let sequence = self.sequence + 1;
        while removed < limit {
            let Some(due) = self.deadlines.first().filter(|due| due.deadline_ms <= now_ms) else { break };
            let key = self.databases[usize::from(due.db)]
                .key_due(due.at(), due.deadline_ms)
                .expect("the index of deadlines holds no key that is gone");
            self.remove(due.db, &key, due.at(), sequence);
            removed += 1;
        }
        if removed > 0 {
            self.sequence = sequence;
            self.expired_keys += removed as u64;
        }
        removed
    }

    /// The earliest deadline of any key, in milliseconds since the epoch.
    pub fn next_deadline(&self) -> Option<u64> {
        self.deadlines.first().map(|due| due.deadline_ms)
    }

    /// Number of databases.
    pub fn databases(&self) -> u16 {
        u16::try_from(self.databases.len()).expect("made from a u16")
    }

    /// Number of keys in a database; keys that are due but not removed yet count.
    pub fn len(&self, db: u16) -> usize {
        self.databases[usize::from(db)].len()
    }

    /// Whether no database holds a key.
    pub fn is_empty(&self) -> bool {
        self.databases.iter().all(|database| database.len() == 0)
    }

    /// Number of keys with a deadline in a database.
    pub fn expiring(&self, db: u16) -> usize {
        self.databases[usize::from(db)].expiring()
    }

    /// Number of keys in one slot of a database.
    pub fn count_in_slot(&self, db: u16, slot: Slot) -> usize {
        self.databases[usize::from(db)].count_in_slot(slot)
    }

    /// At most `limit` keys of one slot, in hash order.
    pub fn keys_in_slot(&self, db: u16, slot: Slot, limit: usize) -> Vec<Vec<u8>> {
        let mut keys = Vec::new();
        self.databases[usize::from(db)].visit_slot(slot, 0, &mut |_, key, _| {
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
        self.databases.iter().map(Database::used_memory).sum()
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        Stats {
            expired_keys: self.expired_keys,
            keyspace_hits: self.reads.hits.load(Ordering::Relaxed),
            keyspace_misses: self.reads.misses.load(Ordering::Relaxed),
        }
    }

    /// The whole state in canonical bytes: two keyspaces are equal exactly when their dumps are. For tests and
    /// for comparing replicas; it is no storage format.
    pub fn dump(&self) -> Vec<u8> {
        let mut out = Vec::new();
        argv::put_varint(&mut out, self.sequence);
        argv::put_varint(&mut out, self.expired_keys);
        argv::put_varint(&mut out, self.databases.len() as u64);
        for database in &self.databases {
            argv::put_varint(&mut out, database.flushed());
            argv::put_varint(&mut out, database.used_memory());
            argv::put_varint(&mut out, database.expiring() as u64);
            for slot in (0..SLOTS).filter_map(Slot::new) {
                dump_slot(database, slot, &mut out);
            }
        }
        out
    }

    /// Where a key lies.
    pub(crate) fn locate(&self, key: &[u8]) -> Locator {
        let mut hasher = self.hash;
        hasher.write(key);
        Locator { slot: slot_of(key), hash: hasher.finish() }
    }

    /// Removes a key. Returns whether it was there.
    pub(crate) fn remove(&mut self, db: u16, key: &[u8], at: Locator, sequence: u64) -> bool {
        let database = &mut self.databases[usize::from(db)];
        let Some(deadline) = database.remove(key, at, sequence) else { return false };
        if let Some(deadline) = deadline {
            self.drop_deadline(db, at, deadline);
        }
        true
    }

    /// Takes a deadline out of the index, unless another key of the same slot, hash and deadline still needs it.
    pub(crate) fn drop_deadline(&mut self, db: u16, at: Locator, deadline_ms: u64) {
        if self.databases[usize::from(db)].key_due(at, deadline_ms).is_none() {
            self.deadlines.remove(db, at, deadline_ms);
        }
    }
}

fn dump_slot(database: &Database, slot: Slot, out: &mut Vec<u8>) {
    let deleted = database.slot_deleted(slot);
    let count = database.count_in_slot(slot);
    if deleted == 0 && count == 0 {
        return;
    }
    argv::put_varint(out, u64::from(slot.number()));
    argv::put_varint(out, deleted);
    argv::put_varint(out, count as u64);
    database.visit_slot(slot, 0, &mut |_, key, record: Record<'_>| {
        argv::put_varint(out, key.len() as u64);
        out.extend_from_slice(key);
        argv::put_varint(out, record.sequence);
        argv::put_varint(out, record.deadline_ms.map_or(0, |deadline| deadline + 1));
        match record.value {
            ValueRef::String(bytes) => {
                out.push(0);
                argv::put_varint(out, bytes.len() as u64);
                out.extend_from_slice(bytes);
            }
        }
        true
    });
}
