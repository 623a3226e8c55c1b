//! The ordered index of deadlines: what is due next, and the order in which keys expire.
//!
//! Contract: it holds an element for each (database, slot, hash, deadline) of a key that has a deadline, and
//! nothing else, so it can be rebuilt from the tables. It is no part of a snapshot.

use crate::{Slot, database::Locator};
use std::collections::BTreeSet;

#[derive(Debug, Default)]
pub(crate) struct Deadlines(BTreeSet<Due>);

/// A key that expires, by its hash. The field order is the order of expiry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Due {
    pub(crate) deadline_ms: u64,
    pub(crate) db: u16,
    slot: Slot,
    hash: u64,
}

impl Due {
    pub(crate) fn at(self) -> Locator {
        Locator { slot: self.slot, hash: self.hash }
    }
}

impl Deadlines {
    pub(crate) fn first(&self) -> Option<Due> {
        self.0.first().copied()
    }

    pub(crate) fn insert(&mut self, db: u16, at: Locator, deadline_ms: u64) {
        self.0.insert(Due { deadline_ms, db, slot: at.slot, hash: at.hash });
    }

    pub(crate) fn remove(&mut self, db: u16, at: Locator, deadline_ms: u64) {
        self.0.remove(&Due { deadline_ms, db, slot: at.slot, hash: at.hash });
    }

    pub(crate) fn forget_database(&mut self, db: u16) {
        self.0.retain(|due| due.db != db);
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}
