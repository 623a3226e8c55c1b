//! What a changing command does to the keyspace.

use crate::{
    Keyspace,
    checksum::Mutation,
    database::{Database, Locator},
    table::{NewRecord, Record},
    value::{Form, NewValue, ValueRef},
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

    /// Number of databases.
    pub fn databases(&self) -> u16 {
        self.keyspace.databases()
    }

    /// Calls `f` with the hand on another database, which exists.
    pub fn with_db<T>(&mut self, db: u16, f: impl FnOnce(&mut Writer<'a>) -> T) -> T {
        assert!(db < self.keyspace.databases(), "database {db} does not exist");
        let before = std::mem::replace(&mut self.db, db);
        let result = f(self);
        self.db = before;
        result
    }

    /// Hashes a key for the other methods.
    pub fn key<'k>(&self, bytes: &'k [u8]) -> Key<'k> {
        Key { bytes, at: self.keyspace.locate(bytes) }
    }

    /// The record of a key. The key is used.
    pub fn get(&mut self, key: Key<'_>) -> Option<Record<'_>> {
        self.expire(key);
        let record = self.keyspace.tables(self.db).get(key.bytes, key.at)?;
        record.used.touch(self.now_ms);
        Some(record)
    }

    /// The record of a key, counted as a hit or a miss: for commands that also answer with the value.
    pub fn read(&mut self, key: Key<'_>) -> Option<Record<'_>> {
        let found = self.contains(key);
        let reads = &self.keyspace.reads;
        if found { &reads.hits } else { &reads.misses }.fetch_add(1, Ordering::Relaxed);
        self.keyspace.tables(self.db).get(key.bytes, key.at)
    }

    /// Whether a key is there.
    pub fn contains(&mut self, key: Key<'_>) -> bool {
        self.get(key).is_some()
    }

    /// Stores a value under a key, new or not, with this deadline. A deadline that the clock has reached means
    /// that the key is removed.
    pub fn put(&mut self, key: Key<'_>, value: ValueRef<'_>, deadline_ms: Option<u64>) {
        let ValueRef::String(bytes) = value;
        self.store(key, NewValue::Bytes(bytes), Form::Whole, deadline_ms);
    }

    /// Stores a string that is the result of float arithmetic.
    pub fn put_text(&mut self, key: Key<'_>, text: &[u8], deadline_ms: Option<u64>) {
        self.store(key, NewValue::Bytes(text), Form::Text, deadline_ms);
    }

    /// Stores a string and takes it over, so that a long one is not copied.
    pub fn put_taken(&mut self, key: Key<'_>, mut bytes: Vec<u8>, deadline_ms: Option<u64>) {
        self.store(key, NewValue::taken(&mut bytes), Form::Whole, deadline_ms);
    }

    fn store(&mut self, key: Key<'_>, value: NewValue<'_>, form: Form, deadline_ms: Option<u64>) {
        if deadline_ms.is_some_and(|deadline| deadline <= self.now_ms) {
            self.remove(key);
            return;
        }
        self.note(Mutation::Put { key: key.bytes, value: value.as_ref(), deadline_ms });
        self.store_noted(key, value, form, deadline_ms);
    }

    fn store_noted(&mut self, key: Key<'_>, value: NewValue<'_>, form: Form, deadline_ms: Option<u64>) {
        let record = NewRecord { value, form, sequence: self.advance(), deadline_ms, now_ms: self.now_ms };
        let old_deadline = self.database().put(key.bytes, key.at, record);
        if old_deadline.is_some_and(|deadline| deadline <= self.now_ms) {
            self.keyspace.expired_keys += 1;
        }
    }

    /// Appends bytes to a string, or makes it when the key is absent. The deadline stays. The key holds no other
    /// type: the caller has seen to that.
    pub fn append(&mut self, key: Key<'_>, more: &[u8]) {
        let len = if self.contains(key) {
            let at = (self.advance(), self.now_ms);
            self.database().edit(key.bytes, key.at, at, more.len(), |value| value.extend_from_slice(more))
        } else {
            self.store_noted(key, NewValue::Bytes(more), Form::Whole, None);
            more.len()
        };
        self.note(Mutation::Append { key: key.bytes, more, len });
    }

    /// Writes bytes into a string from an offset on, or makes it when the key is absent. Zeros fill what was not
    /// there. The deadline stays. The key holds no other type: the caller has seen to that.
    pub fn overwrite(&mut self, key: Key<'_>, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        let write = |value: &mut Vec<u8>| {
            if value.len() < end {
                value.resize(end, 0);
            }
            value[offset..end].copy_from_slice(bytes);
        };
        let old_len = self.get(key).map(|record| {
            let ValueRef::String(value) = record.value;
            value.len()
        });
        let len = match old_len {
            Some(old_len) => {
                let at = (self.advance(), self.now_ms);
                self.database().edit(key.bytes, key.at, at, end.saturating_sub(old_len), write)
            }
            None => {
                let mut value = Vec::new();
                write(&mut value);
                self.store_noted(key, NewValue::taken(&mut value), Form::Edited, None);
                end
            }
        };
        self.note(Mutation::Overwrite { key: key.bytes, offset, bytes, len });
    }

    /// Gives another key, of this database or another, what a key has that is there: value and deadline.
    pub fn copy(&mut self, key: Key<'_>, to_db: u16, to: Key<'_>) {
        self.note(Mutation::Copy { key: key.bytes, to_db, to: to.bytes });
        self.copy_noted(key, to_db, to, Form::copied);
    }

    /// The same, and the key is gone: it is another one than `to`.
    pub fn rename(&mut self, key: Key<'_>, to_db: u16, to: Key<'_>) {
        self.note(Mutation::Move { key: key.bytes, to_db, to: to.bytes });
        self.copy_noted(key, to_db, to, |form, _| form);
        let sequence = self.advance();
        self.database().remove(key.bytes, key.at, sequence);
    }

    fn copy_noted(&mut self, key: Key<'_>, to_db: u16, to: Key<'_>, form: fn(Form, ValueRef<'_>) -> Form) {
        let record = self.get(key).expect("the caller has seen the key");
        let (form, deadline_ms) = (form(record.form, record.value), record.deadline_ms);
        let mut packed = Vec::new();
        let value = self.database().copy_value(key.bytes, key.at, |value| match value {
            NewValue::Bytes(bytes) => {
                packed.extend_from_slice(bytes);
                None
            }
            NewValue::Big(big) => Some(big),
        });
        let value = value.map_or_else(|| NewValue::Bytes(&packed), NewValue::Big);
        self.with_db(to_db, |writer| writer.store_noted(to, value, form, deadline_ms));
    }

    /// Two databases, which exist, change places.
    pub fn swap(&mut self, db: u16, with: u16) {
        if db == with {
            return;
        }
        let sequence = self.advance();
        let databases = &mut self.keyspace.databases;
        databases.swap(usize::from(db), usize::from(with));
        databases[usize::from(db)].swapped(sequence);
        databases[usize::from(with)].swapped(sequence);
        self.keyspace.checksum.note(db, sequence, Mutation::Swap { with });
    }

    /// Makes a key that is there look as if it had last been used so many seconds ago. That is no state: it is not
    /// the same on every replica, and no change of the key.
    pub fn set_idle(&mut self, key: Key<'_>, seconds: u64) {
        let used_ms = self.now_ms.saturating_sub(seconds.saturating_mul(1000));
        if let Some(record) = self.get(key) {
            record.used.touch(used_ms);
        }
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
