//! One database: a table for each slot, and the index of its deadlines.
//!
//! Slots come in pages of 256, made when one of them gets its first key. Pages and what hangs from them are behind
//! reference counts: [`Tables`] is cloned by cloning 64 pointers, and a write to one of two clones copies the page
//! and the segments it touches. The index of deadlines is no part of that; it can be rebuilt from the tables.

use crate::{
    SLOTS, Slot,
    table::{Hash, NewRecord, Record, Table, Timing},
    value::{Form, MAX_PACKED, NewValue, ValueRef},
};
use std::{collections::BTreeSet, mem};
use triomphe::Arc;

/// Where a key lies: its slot and its hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Locator {
    pub(crate) slot: Slot,
    pub(crate) hash: u64,
}

/// A database with the index of its deadlines.
#[derive(Debug)]
pub(crate) struct Database {
    tables: Tables,
    /// Holds (deadline, slot, hash) of each key that has a deadline, and nothing else. The order is that of expiry.
    deadlines: Deadlines,
}

type Deadlines = BTreeSet<(u64, Locator)>;

/// The keys of a database.
#[derive(Clone, Debug)]
pub(crate) struct Tables {
    pages: Vec<Option<Arc<Page>>>,
    hash: Hash,
    totals: Totals,
    /// Change sequence of the last change to the database as a whole, FLUSHDB or SWAPDB: every key, there or absent,
    /// changed then, if not later.
    flushed: u64,
}

/// Counts over a slot or a database.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Totals {
    keys: usize,
    expiring: usize,
    /// Keys whose value has another form than [`Form::Whole`].
    formed: usize,
    bytes: u64,
}

const PAGE_SLOTS: usize = 256;
const PAGES: usize = SLOTS as usize / PAGE_SLOTS;

#[derive(Clone, Debug)]
pub(crate) struct Page {
    slots: [SlotTable; PAGE_SLOTS],
    /// Number of keys in all of them.
    keys: usize,
}

#[derive(Clone, Default, Debug)]
struct SlotTable {
    table: Table,
    totals: Totals,
    /// Change sequence of the last deletion here: what an absent key has instead of its own.
    deleted: u64,
}

/// What FLUSHALL leaves behind, to be freed a piece at a time.
#[derive(Debug)]
pub(crate) enum Remains {
    /// Never read: it is here to be dropped.
    Page {
        _page: Arc<Page>,
    },
    Deadlines(Deadlines),
}

/// Fixed charge of a key in the accounting of memory, bytes.
const KEY_CHARGE: u64 = 24;
/// Charge of a deadline, bytes: eight in the record, the rest in the index.
const DEADLINE_CHARGE: u64 = 40;

impl Totals {
    fn of(key: &[u8], record: &Record<'_>) -> Totals {
        Totals::of_parts(key, record.value, record.form, record.deadline_ms)
    }

    fn of_parts(key: &[u8], value: ValueRef<'_>, form: Form, deadline_ms: Option<u64>) -> Totals {
        let expiring = deadline_ms.is_some();
        let deadline = if expiring { DEADLINE_CHARGE } else { 0 };
        let bytes = KEY_CHARGE + (key.len() + value.size_bytes()) as u64 + deadline;
        let formed = usize::from(form != Form::Whole);
        Totals { keys: 1, expiring: usize::from(expiring), formed, bytes }
    }

    fn change(&mut self, old: Totals, new: Totals) {
        self.keys = self.keys + new.keys - old.keys;
        self.expiring = self.expiring + new.expiring - old.expiring;
        self.formed = self.formed + new.formed - old.formed;
        self.bytes = self.bytes + new.bytes - old.bytes;
    }
}

impl Record<'_> {
    /// Bytes that the key with this record counts for in the accounting of memory.
    pub fn used_memory(&self, key: &[u8]) -> u64 {
        Totals::of(key, self).bytes
    }
}

impl Database {
    pub(crate) fn new(hash: Hash) -> Database {
        let tables = Tables { pages: vec![None; PAGES], hash, totals: Totals::default(), flushed: 0 };
        Database { tables, deadlines: Deadlines::new() }
    }

    pub(crate) fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The earliest deadline and the hash of its key.
    pub(crate) fn next_due(&self) -> Option<(u64, Locator)> {
        self.deadlines.first().copied()
    }

    /// Stores a key, new or not. Returns the deadline of what was there.
    pub(crate) fn put(&mut self, key: &[u8], at: Locator, record: NewRecord<'_>) -> Option<u64> {
        let deadline_ms = record.deadline_ms;
        let new = Totals::of_parts(key, record.value.as_ref(), record.form, deadline_ms);
        let hash = self.tables.hash;
        let slot = self.tables.slot_mut(at.slot);
        let (old, old_deadline) = slot.table.put(&hash, key, at.hash, record, |before| match before {
            Some(before) => (Totals::of(key, &before), before.deadline_ms),
            None => (Totals::default(), None),
        });
        self.account(at.slot, old, new);
        self.move_deadline(at, old_deadline, deadline_ms);
        old_deadline
    }

    /// Gives a key another deadline; false when it is not there.
    pub(crate) fn set_deadline(
        &mut self,
        key: &[u8],
        at: Locator,
        sequence: u64,
        deadline_ms: Option<u64>,
    ) -> bool {
        let Some(before) = self.tables.get(key, at) else { return false };
        let old_deadline = before.deadline_ms;
        let old = Totals::of(key, &before);
        let new = Totals::of(key, &Record { deadline_ms, ..before });
        let hash = self.tables.hash;
        let timing = Timing { sequence, deadline_ms };
        self.tables.slot_mut(at.slot).table.retime(&hash, key, at.hash, timing);
        self.account(at.slot, old, new);
        self.move_deadline(at, old_deadline, deadline_ms);
        true
    }

    /// Changes a string that is there, in place when it is a big one. The deadline stays. `edit` makes it longer by
    /// `growth` bytes. Returns the length it has then.
    pub(crate) fn edit(
        &mut self,
        key: &[u8],
        at: Locator,
        (sequence, now_ms): (u64, u64),
        growth: usize,
        edit: impl Fn(&mut Vec<u8>),
    ) -> usize {
        let hash = self.tables.hash;
        let before = self.tables.get(key, at).expect("the caller has seen the key");
        let old = Totals::of(key, &before);
        let ValueRef::String(value) = before.value;
        let (len, deadline_ms) = (value.len() + growth, before.deadline_ms);
        if value.len() > MAX_PACKED {
            let edited = self.tables.slot_mut(at.slot).table.edit_big(&hash, key, at.hash, sequence, edit);
            assert!(edited, "a value of this length lies outside");
            self.account(at.slot, old, Totals { bytes: old.bytes + growth as u64, formed: 1, ..old });
            return len;
        }
        let mut value = value.to_vec();
        edit(&mut value);
        let value = NewValue::taken(&mut value);
        self.put(key, at, NewRecord { value, form: Form::Edited, sequence, deadline_ms, now_ms });
        len
    }

    /// A copy of the value under a key that is there. Big ones are shared, not copied.
    pub(crate) fn copy_value<T>(&self, key: &[u8], at: Locator, f: impl FnOnce(NewValue<'_>) -> T) -> T {
        let record = self.tables.get(key, at).expect("the caller has seen the key");
        let ValueRef::String(value) = record.value;
        match self.tables.slot(at.slot).and_then(|slot| slot.table.big(key, at.hash)) {
            Some(big) => f(NewValue::Big(big)),
            None => f(NewValue::Bytes(value)),
        }
    }

    /// The database takes another's place: to its clients each of its keys has changed.
    pub(crate) fn swapped(&mut self, sequence: u64) {
        self.tables.flushed = sequence;
    }

    /// Removes a key; false when it is not there.
    pub(crate) fn remove(&mut self, key: &[u8], at: Locator, sequence: u64) -> bool {
        let Some(before) = self.tables.get(key, at) else { return false };
        let old_deadline = before.deadline_ms;
        let old = Totals::of(key, &before);
        let hash = self.tables.hash;
        let slot = self.tables.slot_mut(at.slot);
        slot.table.remove(&hash, key, at.hash);
        slot.deleted = sequence;
        self.account(at.slot, old, Totals::default());
        self.move_deadline(at, old_deadline, None);
        true
    }

    /// Removes all keys; what they leave goes to `garbage`.
    pub(crate) fn flush(&mut self, sequence: u64, garbage: &mut Vec<Remains>) {
        let pages = mem::replace(&mut self.tables.pages, vec![None; PAGES]);
        garbage.extend(pages.into_iter().flatten().map(|page| Remains::Page { _page: page }));
        garbage.push(Remains::Deadlines(mem::take(&mut self.deadlines)));
        self.tables.totals = Totals::default();
        self.tables.flushed = sequence;
    }

    fn account(&mut self, slot: Slot, old: Totals, new: Totals) {
        self.tables.account(slot, old, new);
    }

    fn move_deadline(&mut self, at: Locator, from: Option<u64>, to: Option<u64>) {
        if from == to {
            return;
        }
        // Two keys of one slot may share hash and deadline; the element stays while one of them needs it.
        if let Some(from) = from
            && self.tables.key_due(at, from).is_none()
        {
            self.deadlines.remove(&(from, at));
        }
        if let Some(to) = to {
            self.deadlines.insert((to, at));
        }
    }
}

/// Puts a database together from its keys: slots in ascending order, the keys of each in hash order, none twice.
#[derive(Debug)]
pub(crate) struct Loader {
    database: Database,
    deadlines: Vec<(u64, Locator)>,
}

impl Loader {
    pub(crate) fn new(hash: Hash, flushed: u64) -> Loader {
        let mut database = Database::new(hash);
        database.tables.flushed = flushed;
        Loader { database, deadlines: Vec::new() }
    }

    /// Begins a slot.
    pub(crate) fn slot(&mut self, slot: Slot, deleted: u64) {
        self.database.tables.slot_mut(slot).deleted = deleted;
    }

    /// Adds a key.
    pub(crate) fn add(&mut self, key: &[u8], at: Locator, record: NewRecord<'_>) {
        let deadline_ms = record.deadline_ms;
        let totals = Totals::of_parts(key, record.value.as_ref(), record.form, deadline_ms);
        let hash = self.database.tables.hash;
        let slot = self.database.tables.slot_mut(at.slot);
        slot.table.put(&hash, key, at.hash, record, |_| ());
        self.database.tables.account(at.slot, Totals::default(), totals);
        if let Some(deadline_ms) = deadline_ms {
            self.deadlines.push((deadline_ms, at));
        }
    }

    /// The database. Its index of deadlines is made here, at once, which is cheaper than key by key.
    pub(crate) fn finish(mut self) -> Database {
        self.database.deadlines = self.deadlines.into_iter().collect();
        self.database
    }
}

impl Tables {
    pub(crate) fn len(&self) -> usize {
        self.totals.keys
    }

    pub(crate) fn expiring(&self) -> usize {
        self.totals.expiring
    }

    pub(crate) fn used_memory(&self) -> u64 {
        self.totals.bytes
    }

    pub(crate) fn flushed(&self) -> u64 {
        self.flushed
    }

    /// Whether some value has another form than [`Form::Whole`].
    pub(crate) fn has_forms(&self) -> bool {
        self.totals.formed > 0
    }

    /// Change sequence of the slot's last deletion.
    pub(crate) fn slot_deleted(&self, slot: Slot) -> u64 {
        self.slot(slot).map_or(0, |slot| slot.deleted)
    }

    pub(crate) fn count_in_slot(&self, slot: Slot) -> usize {
        self.slot(slot).map_or(0, |slot| slot.totals.keys)
    }

    pub(crate) fn get(&self, key: &[u8], at: Locator) -> Option<Record<'_>> {
        self.slot(at.slot)?.table.get(key, at.hash)
    }

    /// A key of this slot and hash with this deadline.
    pub(crate) fn key_due(&self, at: Locator, deadline_ms: u64) -> Option<&[u8]> {
        self.slot(at.slot)?.table.key_due(&self.hash, at.hash, deadline_ms)
    }

    /// Calls `visit` with hash, key and record of the keys of a slot, from a hash on, in hash order, until it
    /// returns false.
    pub(crate) fn visit_slot(
        &self,
        slot: Slot,
        from: u64,
        visit: &mut dyn FnMut(u64, &[u8], Record<'_>) -> bool,
    ) {
        if let Some(slot) = self.slot(slot) {
            slot.table.visit(&self.hash, from, visit);
        }
    }

    /// The slots that have, or had, a key, and some others.
    pub(crate) fn slots(&self) -> impl Iterator<Item = Slot> {
        let pages = self.pages.iter().enumerate().filter(|(_, page)| page.is_some());
        pages
            .flat_map(|(page, _)| page * PAGE_SLOTS..(page + 1) * PAGE_SLOTS)
            .filter_map(|number| Slot::new(u16::try_from(number).ok()?))
    }

    /// The first slot from number `from` on that has a key.
    pub(crate) fn next_slot(&self, from: u16) -> Option<Slot> {
        let mut number = from;
        while let Some(slot) = Slot::new(number) {
            match &self.pages[slot.index() / PAGE_SLOTS] {
                None => number = (number / PAGE_SLOTS as u16 + 1) * PAGE_SLOTS as u16,
                Some(page) if page.slots[slot.index() % PAGE_SLOTS].totals.keys == 0 => number += 1,
                Some(_) => return Some(slot),
            }
        }
        None
    }

    /// Some key, chosen by two random numbers, and its record: the slot by its number of keys, so that nearly each key
    /// of the database has the same chance. `None` where the numbers find nothing, as in an empty database.
    pub(crate) fn random(&self, first: u64, second: u64) -> Option<(&[u8], Record<'_>)> {
        let mut left = usize::try_from(first.checked_rem(self.totals.keys as u64)?).ok()?;
        for page in self.pages.iter().flatten() {
            if left >= page.keys {
                left -= page.keys;
                continue;
            }
            for slot in &page.slots {
                if left < slot.totals.keys {
                    return slot.table.random(second);
                }
                left -= slot.totals.keys;
            }
        }
        None
    }

    fn slot(&self, slot: Slot) -> Option<&SlotTable> {
        Some(&self.pages[slot.index() / PAGE_SLOTS].as_deref()?.slots[slot.index() % PAGE_SLOTS])
    }

    fn account(&mut self, slot: Slot, old: Totals, new: Totals) {
        let page = self.page_mut(slot);
        page.keys += new.keys;
        page.keys -= old.keys;
        page.slots[slot.index() % PAGE_SLOTS].totals.change(old, new);
        self.totals.change(old, new);
    }

    fn slot_mut(&mut self, slot: Slot) -> &mut SlotTable {
        &mut self.page_mut(slot).slots[slot.index() % PAGE_SLOTS]
    }

    fn page_mut(&mut self, slot: Slot) -> &mut Page {
        let page = self.pages[slot.index() / PAGE_SLOTS].get_or_insert_with(|| {
            Arc::new(Page { slots: std::array::from_fn(|_| SlotTable::default()), keys: 0 })
        });
        Arc::make_mut(page)
    }
}

impl Remains {
    /// Frees a bounded piece; what is left, if anything.
    pub(crate) fn sweep(mut self) -> Option<Remains> {
        const AT_ONCE: usize = 64;
        match &mut self {
            Remains::Page { .. } => None,
            Remains::Deadlines(deadlines) => {
                for _ in 0..AT_ONCE {
                    deadlines.pop_first()?;
                }
                Some(self)
            }
        }
    }
}
