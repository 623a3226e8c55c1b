//! What a reading command sees of the keyspace.

use crate::{Keyspace, Slot, table::Record};
use std::{cell::Cell, sync::atomic::Ordering};

/// A view of one database for the reads of one command. It changes nothing.
///
/// A key whose deadline the log's clock has reached is gone. A key whose deadline lies after the log's clock but
/// not after the reader's own would be gone to a client that looks at a clock, and still there to one that asks a
/// replica: the reply is in doubt, and [`waits_for`](Reader::waits_for) says until when.
#[derive(Debug)]
pub struct Reader<'a> {
    keyspace: &'a Keyspace,
    db: u16,
    log_clock_ms: u64,
    now_ms: u64,
    touches: bool,
    waits_for: Cell<Option<u64>>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(keyspace: &'a Keyspace, db: u16, log_clock_ms: u64, now_ms: u64) -> Reader<'a> {
        assert!(db < keyspace.databases(), "database {db} does not exist");
        let now_ms = now_ms.max(log_clock_ms);
        Reader { keyspace, db, log_clock_ms, now_ms, touches: true, waits_for: Cell::new(None) }
    }

    /// A view for a client whose reads are no uses of the keys: CLIENT NO-TOUCH.
    #[must_use]
    pub fn untouching(self) -> Reader<'a> {
        Reader { touches: false, ..self }
    }

    /// Set when a key in doubt was met: throw the reply away, wait until the log's clock has reached this time,
    /// and read again.
    pub fn waits_for(&self) -> Option<u64> {
        self.waits_for.get()
    }

    /// The time by which this reader decides what is gone, milliseconds since the epoch.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// The number of the database.
    pub fn db(&self) -> u16 {
        self.db
    }

    /// The keyspace as a whole.
    pub fn keyspace(&self) -> &'a Keyspace {
        self.keyspace
    }

    /// The record of a key, counted as a hit or a miss. The key is used.
    pub fn get(&self, key: &[u8]) -> Option<Record<'a>> {
        let record = self.look(key)?;
        if self.touches {
            record.used.touch(self.now_ms);
        }
        Some(record)
    }

    /// The record of a key, counted as a hit or a miss. The key is used, whatever the client asked for otherwise.
    pub(crate) fn touch(&self, key: &[u8]) -> Option<Record<'a>> {
        let record = self.look(key)?;
        record.used.touch(self.now_ms);
        Some(record)
    }

    /// The record of a key, counted as a hit or a miss, but not as a use of the key: what OBJECT IDLETIME answers
    /// stays.
    pub fn look(&self, key: &[u8]) -> Option<Record<'a>> {
        let record = self.peek(key);
        let reads = &self.keyspace.reads;
        if record.is_some() { &reads.hits } else { &reads.misses }.fetch_add(1, Ordering::Relaxed);
        record
    }

    /// Calls `f` with the same view of another database.
    pub(crate) fn with_db<T>(&self, db: u16, f: impl FnOnce(&Reader<'a>) -> T) -> T {
        let other = Reader::new(self.keyspace, db, self.log_clock_ms, self.now_ms);
        let result = f(&other);
        self.waits_for.set(self.waits_for.get().max(other.waits_for.get()));
        result
    }

    /// The record of a key, not counted.
    pub fn peek(&self, key: &[u8]) -> Option<Record<'a>> {
        let at = self.keyspace.locate(key);
        let record = self.keyspace.tables(self.db).get(key, at)?;
        self.is_there(&record).then_some(record)
    }

    /// The change sequence of a key: of its last change, or of its slot's last deletion when it is absent.
    pub fn sequence_of(&self, key: &[u8]) -> u64 {
        let at = self.keyspace.locate(key);
        let tables = self.keyspace.tables(self.db);
        match tables.get(key, at).filter(|record| self.is_there(record)) {
            Some(record) => record.sequence.max(tables.flushed()),
            None => tables.slot_deleted(at.slot).max(tables.flushed()),
        }
    }

    /// The hash of a key, which is secret but for its order.
    pub(crate) fn hash_of(&self, key: &[u8]) -> u64 {
        self.keyspace.locate(key).hash
    }

    /// Number of keys, those due but not removed yet included.
    pub fn len(&self) -> usize {
        self.keyspace.len(self.db)
    }

    /// Whether the database holds no key at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls `visit` with the hash, key and record of each key of a slot that is there, in hash order from hash
    /// `from` on, until it returns false.
    pub(crate) fn visit_slot(
        &self,
        slot: Slot,
        from: u64,
        visit: &mut dyn FnMut(u64, &[u8], Record<'_>) -> bool,
    ) {
        self.keyspace.tables(self.db).visit_slot(slot, from, &mut |hash, key, record| {
            !self.is_there(&record) || visit(hash, key, record)
        });
    }

    /// Some key that is there, nearly each with the same chance; `None` when none is there.
    pub(crate) fn random_key(&self) -> Option<Vec<u8>> {
        // When so many draws find nothing but keys that are gone and not removed yet, a walk finds out what is left.
        const DRAWS: usize = 100;
        let tables = self.keyspace.tables(self.db);
        for _ in 0..DRAWS {
            let found = tables.random(self.keyspace.draw(), self.keyspace.draw());
            if let Some((key, _)) = found.filter(|(_, record)| self.is_there(record)) {
                return Some(key.to_vec());
            }
        }
        let mut first = None;
        let mut from = 0;
        while let (None, Some(slot)) = (&first, self.next_slot(from)) {
            self.visit_slot(slot, 0, &mut |_, key, _| {
                first = Some(key.to_vec());
                false
            });
            from = slot.number() + 1;
        }
        first
    }

    /// The first slot from number `from` on that holds a key.
    pub(crate) fn next_slot(&self, from: u16) -> Option<Slot> {
        self.keyspace.tables(self.db).next_slot(from)
    }

    fn is_there(&self, record: &Record<'_>) -> bool {
        match record.deadline_ms {
            Some(deadline) if deadline <= self.log_clock_ms => false,
            Some(deadline) if deadline <= self.now_ms => {
                self.waits_for.set(self.waits_for.get().max(Some(deadline)));
                false
            }
            _ => true,
        }
    }
}
