//! What a changing command does to the keyspace.

use crate::{
    Keyspace,
    checksum::Mutation,
    database::{Database, Locator},
    table::Record,
    value::ValueRef,
};
use std::sync::atomic::Ordering;

/// The hand of one changing command on one database.
///
/// All its changes carry one change sequence, taken when the first is made: a command that changes nothing does
/// not advance it. A key whose deadline the clock has reached is absent, and removed when it is met.
#[derive(Debug)]
pub struct Writer<'a> {
    keyspace: &'a mut Keyspace,
    db: u16,
    now_ms: u64,
    seed: u64,
    sequence: Option<u64>,
}

/// A key of the command at hand, hashed once.
#[derive(Clone, Copy, Debug)]
pub struct Key<'a> {
    bytes: &'a [u8],
    at: Locator,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(keyspace: &'a mut Keyspace, db: u16, now_ms: u64, seed: u64) -> Writer<'a> {
        assert!(db < keyspace.databases(), "database {db} does not exist");
        Writer { keyspace, db, now_ms, seed, sequence: None }
    }

    /// The entry's clock, milliseconds since the epoch.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// The entry's random seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The number of the database.
    pub fn db(&self) -> u16 {
        self.db
    }

    /// Hashes a key for the other methods.
    pub fn key<'k>(&self, bytes: &'k [u8]) -> Key<'k> {
        Key { bytes, at: self.keyspace.locate(bytes) }
    }

    /// The record of a key.
    pub fn get(&mut self, key: Key<'_>) -> Option<Record<'_>> {
        self.expire(key);
        self.keyspace.tables(self.db).get(key.bytes, key.at)
    }

    /// The record of a key, counted as a hit or a miss: for commands that also answer with the value.
    pub fn read(&mut self, key: Key<'_>) -> Option<Record<'_>> {
        self.expire(key);
        let record = self.keyspace.tables(self.db).get(key.bytes, key.at);
        let reads = &self.keyspace.reads;
        if record.is_some() { &reads.hits } else { &reads.misses }.fetch_add(1, Ordering::Relaxed);
        record
    }

    /// Whether a key is there.
    pub fn contains(&mut self, key: Key<'_>) -> bool {
        self.get(key).is_some()
    }

    /// Stores a value under a key, new or not, with this deadline. A deadline that the clock has reached means
    /// that the key is removed.
    pub fn put(&mut self, key: Key<'_>, value: ValueRef<'_>, deadline_ms: Option<u64>) {
        if deadline_ms.is_some_and(|deadline| deadline <= self.now_ms) {
            self.remove(key);
            return;
        }
        let sequence = self.advance();
        let old_deadline = self.database().put(key.bytes, key.at, value, sequence, deadline_ms);
        self.note(Mutation::Put { key: key.bytes, value, deadline_ms });
        if old_deadline.is_some_and(|deadline| deadline <= self.now_ms) {
            self.keyspace.expired_keys += 1;
        }
    }

    /// Appends bytes to a string, or makes it when the key is absent. The deadline stays. The key holds no other
    /// type: the caller has seen to that.
    pub fn append(&mut self, key: Key<'_>, more: &[u8]) {
        self.expire(key);
        let sequence = self.advance();
        let len = self.database().append(key.bytes, key.at, more, sequence);
        self.note(Mutation::Append { key: key.bytes, more, len });
    }

    /// Sets or takes away the deadline of a key that is there; false when it is not. A deadline that the clock has
    /// reached means that the key is removed.
    pub fn set_deadline(&mut self, key: Key<'_>, deadline_ms: Option<u64>) -> bool {
        if !self.contains(key) {
            return false;
        }
        if deadline_ms.is_some_and(|deadline| deadline <= self.now_ms) {
            return self.remove(key);
        }
        let sequence = self.advance();
        self.note(Mutation::SetDeadline { key: key.bytes, deadline_ms });
        self.database().set_deadline(key.bytes, key.at, sequence, deadline_ms)
    }

    /// Removes a key; false when it was not there.
    pub fn remove(&mut self, key: Key<'_>) -> bool {
        let Some(record) = self.keyspace.tables(self.db).get(key.bytes, key.at) else { return false };
        let due = record.deadline_ms.is_some_and(|deadline| deadline <= self.now_ms);
        let sequence = self.advance();
        self.database().remove(key.bytes, key.at, sequence);
        self.keyspace.expired_keys += u64::from(due);
        self.note(Mutation::Remove { key: key.bytes });
        !due
    }

    /// Removes all keys of the database.
    pub fn flush(&mut self) {
        self.flush_database(self.db);
    }

    /// Removes all keys of all databases.
    pub fn flush_all(&mut self) {
        (0..self.keyspace.databases()).for_each(|db| self.flush_database(db));
    }

    fn flush_database(&mut self, db: u16) {
        if self.keyspace.len(db) == 0 {
            return;
        }
        let sequence = self.advance();
        let Keyspace { databases, garbage, .. } = &mut *self.keyspace;
        databases[usize::from(db)].flush(sequence, garbage);
        self.keyspace.checksum.note(db, sequence, Mutation::Flush);
    }

    fn expire(&mut self, key: Key<'_>) {
        let Some(record) = self.keyspace.tables(self.db).get(key.bytes, key.at) else { return };
        if record.deadline_ms.is_some_and(|deadline| deadline <= self.now_ms) {
            let sequence = self.advance();
            self.database().remove(key.bytes, key.at, sequence);
            self.keyspace.expired_keys += 1;
            self.note(Mutation::Expire { key: key.bytes });
        }
    }

    fn database(&mut self) -> &mut Database {
        &mut self.keyspace.databases[usize::from(self.db)]
    }

    /// Takes a change into the checksum, under the sequence of the command.
    fn note(&mut self, mutation: Mutation<'_>) {
        let sequence = self.advance();
        self.keyspace.checksum.note(self.db, sequence, mutation);
    }

    fn advance(&mut self) -> u64 {
        *self.sequence.get_or_insert_with(|| {
            self.keyspace.sequence += 1;
            self.keyspace.sequence
        })
    }
}
