//! What a changing command does to the keyspace.

use crate::{
    Keyspace,
    database::{Locator, Record},
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
        self.keyspace.databases[usize::from(self.db)].get(key.bytes, key.at)
    }

    /// The record of a key, counted as a hit or a miss: for commands that also answer with the value.
    pub fn read(&mut self, key: Key<'_>) -> Option<Record<'_>> {
        self.expire(key);
        let record = self.keyspace.databases[usize::from(self.db)].get(key.bytes, key.at);
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
        let database = &mut self.keyspace.databases[usize::from(self.db)];
        let old = database.put(key.bytes, key.at, value, sequence, deadline_ms);
        self.move_deadline(key, old, deadline_ms);
    }

    /// Appends bytes to a string, or makes it when the key is absent. The deadline stays.
    pub fn append(&mut self, key: Key<'_>, more: &[u8]) {
        let (mut value, deadline) = match self.get(key) {
            Some(Record { value: ValueRef::String(value), deadline_ms, .. }) => (value.to_vec(), deadline_ms),
            None => (Vec::new(), None),
        };
        value.extend_from_slice(more);
        self.put(key, ValueRef::String(&value), deadline);
    }

    /// Sets or takes away the deadline of a key that is there; false when it is not. A deadline that the clock has
    /// reached means that the key is removed.
    pub fn set_deadline(&mut self, key: Key<'_>, deadline_ms: Option<u64>) -> bool {
        let Some(record) = self.get(key) else { return false };
        let ValueRef::String(value) = record.value;
        let value = value.to_vec();
        self.put(key, ValueRef::String(&value), deadline_ms);
        true
    }

    /// Removes a key; false when it was not there.
    pub fn remove(&mut self, key: Key<'_>) -> bool {
        if !self.contains(key) {
            return false;
        }
        let sequence = self.advance();
        self.keyspace.remove(self.db, key.bytes, key.at, sequence)
    }

    /// Removes all keys of the database.
    pub fn flush(&mut self) {
        let sequence = self.advance();
        self.keyspace.databases[usize::from(self.db)].flush(sequence);
        self.keyspace.deadlines.forget_database(self.db);
    }

    /// Removes all keys of all databases.
    pub fn flush_all(&mut self) {
        let sequence = self.advance();
        for database in &mut self.keyspace.databases {
            database.flush(sequence);
        }
        self.keyspace.deadlines.clear();
    }

    fn expire(&mut self, key: Key<'_>) {
        let database = &self.keyspace.databases[usize::from(self.db)];
        let Some(record) = database.get(key.bytes, key.at) else { return };
        if record.deadline_ms.is_some_and(|deadline| deadline <= self.now_ms) {
            let sequence = self.advance();
            self.keyspace.remove(self.db, key.bytes, key.at, sequence);
            self.keyspace.expired_keys += 1;
        }
    }

    fn move_deadline(&mut self, key: Key<'_>, from: Option<u64>, to: Option<u64>) {
        if from == to {
            return;
        }
        if let Some(from) = from {
            self.keyspace.drop_deadline(self.db, key.at, from);
        }
        if let Some(to) = to {
            self.keyspace.deadlines.insert(self.db, key.at, to);
        }
    }

    fn advance(&mut self) -> u64 {
        *self.sequence.get_or_insert_with(|| {
            self.keyspace.sequence += 1;
            self.keyspace.sequence
        })
    }
}
