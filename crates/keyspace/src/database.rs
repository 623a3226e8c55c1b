//! One database: a table for each slot.

use crate::{Slot, value::ValueRef};
use std::collections::BTreeMap;

/// Where a key lies: its slot and its hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Locator {
    pub(crate) slot: Slot,
    pub(crate) hash: u64,
}

/// What a database holds for a key.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The value.
    pub value: ValueRef<'a>,
    /// Change sequence of the last change.
    pub sequence: u64,
    /// When the key expires, in milliseconds since the epoch; `None` when never.
    pub deadline_ms: Option<u64>,
}

/// Fixed charge of a key in the accounting of memory, bytes.
const KEY_CHARGE: u64 = 24;

#[derive(Debug, Default)]
pub(crate) struct Database {
    map: BTreeMap<(Locator, Vec<u8>), (Vec<u8>, u64, Option<u64>)>,
    deleted: BTreeMap<Slot, u64>,
    expiring: usize,
    used: u64,
    flushed: u64,
}

impl Database {
    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    pub(crate) fn expiring(&self) -> usize {
        self.expiring
    }

    pub(crate) fn used_memory(&self) -> u64 {
        self.used
    }

    pub(crate) fn flushed(&self) -> u64 {
        self.flushed
    }

    pub(crate) fn slot_deleted(&self, slot: Slot) -> u64 {
        self.deleted.get(&slot).copied().unwrap_or(0)
    }

    pub(crate) fn count_in_slot(&self, slot: Slot) -> usize {
        self.map
            .range((Locator { slot, hash: 0 }, Vec::new())..)
            .take_while(|((at, _), _)| at.slot == slot)
            .count()
    }

    pub(crate) fn visit_slot(
        &self,
        slot: Slot,
        from: u64,
        visit: &mut dyn FnMut(u64, &[u8], Record<'_>) -> bool,
    ) {
        for ((at, key), (value, sequence, deadline)) in self
            .map
            .range((Locator { slot, hash: from }, Vec::new())..)
            .take_while(|((at, _), _)| at.slot == slot)
        {
            let record =
                Record { value: ValueRef::String(value), sequence: *sequence, deadline_ms: *deadline };
            if !visit(at.hash, key, record) {
                return;
            }
        }
    }

    pub(crate) fn next_slot(&self, from: u16) -> Option<Slot> {
        let slot = Slot::new(from)?;
        self.map.range((Locator { slot, hash: 0 }, Vec::new())..).next().map(|((at, _), _)| at.slot)
    }

    pub(crate) fn get(&self, key: &[u8], at: Locator) -> Option<Record<'_>> {
        let (value, sequence, deadline) = self.map.get(&(at, key.to_vec()))?;
        Some(Record { value: ValueRef::String(value), sequence: *sequence, deadline_ms: *deadline })
    }

    pub(crate) fn key_due(&self, at: Locator, deadline_ms: u64) -> Option<Vec<u8>> {
        self.map
            .range((at, Vec::new())..)
            .take_while(|((found, _), _)| *found == at)
            .find(|(_, (_, _, deadline))| *deadline == Some(deadline_ms))
            .map(|((_, key), _)| key.clone())
    }

    /// Stores a key, new or not. Returns the deadline it had.
    pub(crate) fn put(
        &mut self,
        key: &[u8],
        at: Locator,
        value: ValueRef<'_>,
        sequence: u64,
        deadline: Option<u64>,
    ) -> Option<u64> {
        let ValueRef::String(value) = value;
        self.used += KEY_CHARGE + (key.len() + value.len()) as u64;
        self.expiring += usize::from(deadline.is_some());
        let (old, _, old_deadline) =
            self.map.insert((at, key.to_vec()), (value.to_vec(), sequence, deadline))?;
        self.used -= KEY_CHARGE + (key.len() + old.len()) as u64;
        self.expiring -= usize::from(old_deadline.is_some());
        old_deadline
    }

    pub(crate) fn remove(&mut self, key: &[u8], at: Locator, sequence: u64) -> Option<Option<u64>> {
        let (old, _, deadline) = self.map.remove(&(at, key.to_vec()))?;
        self.used -= KEY_CHARGE + (key.len() + old.len()) as u64;
        self.expiring -= usize::from(deadline.is_some());
        self.deleted.insert(at.slot, sequence);
        Some(deadline)
    }

    pub(crate) fn flush(&mut self, sequence: u64) {
        *self = Database { flushed: sequence, ..Database::default() };
    }
}
