//! A segment: up to some 256 records, packed.
//!
//! A record is `head` (form of the value and flags, 1 byte), the change sequence (6), the length of the key (1) and of the value
//! (1), key, value, the deadline (8, only when set) and the number of the part outside (4, only when there is one).
//! A key or value of more than 255 bytes lies outside, behind a reference count, so that copying a segment never
//! copies a big value. Records lie in [chunks](super::chunks). Beside them each has one byte of its hash, its place (3) and the
//! time of its last use (3); a look-up scans the bytes and compares the keys that are left, one or two.
//!
//! Sketch of the cost: 9 + 7 bytes beside key and value, 192 for the segment, and room to grow, some 5 bytes a record
//! where there are 60; no allocation per key. The order of the records is of no meaning; who needs hash order sorts.

use super::{
    Hash,
    access::AccessClock,
    chunks::{Chunks, Place},
};
use crate::value::{Form, MAX_PACKED as MAX_INLINE, NewValue, Value, ValueRef};
use triomphe::Arc;

/// How many records a segment holds before it is split.
pub(super) const MAX_RECORDS: usize = 256;

const KEY_LEN_AT: usize = 7;
const VALUE_LEN_AT: usize = 8;
const KEY_AT: usize = 9;
const DEADLINE_BYTES: usize = 8;
const OUTSIDE_BYTES: usize = 4;

const FORM: u8 = 0x0f;
const HAS_DEADLINE: u8 = 0x10;
const KEY_OUTSIDE: u8 = 0x20;
const VALUE_OUTSIDE: u8 = 0x40;
const OUTSIDE: u8 = KEY_OUTSIDE | VALUE_OUTSIDE;

/// What a key has.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The value.
    pub value: ValueRef<'a>,
    /// What became of it.
    pub form: Form,
    /// Change sequence of the last change.
    pub sequence: u64,
    /// When the key expires, in milliseconds since the epoch; `None` when never.
    pub deadline_ms: Option<u64>,
    /// When the key was last used.
    pub(crate) used: &'a AccessClock,
}

/// What a key is to have.
#[derive(Debug)]
pub(crate) struct NewRecord<'a> {
    pub(crate) value: NewValue<'a>,
    pub(crate) form: Form,
    pub(crate) sequence: u64,
    pub(crate) deadline_ms: Option<u64>,
    /// The time at which it is used, milliseconds since the epoch.
    pub(crate) now_ms: u64,
}

impl Record<'_> {
    /// Redis's name of the way the value is kept.
    pub fn encoding(&self) -> &'static str {
        self.value.encoding(self.form)
    }

    /// Seconds since the key was last used on this replica.
    pub fn idle_seconds(&self, now_ms: u64) -> u32 {
        self.used.idle_seconds(now_ms)
    }

    /// The time of the key's last use as Redis shows it: seconds since the epoch, modulo 2^24.
    pub fn access_clock(&self) -> u32 {
        self.used.value()
    }

    /// What Redis counts as owners of the value: it shares small integers.
    pub fn refcount(&self) -> i64 {
        if self.form == Form::Whole && self.value.is_shared() { i64::from(i32::MAX) } else { 1 }
    }
}

#[derive(Clone, Default, Debug)]
pub(super) struct Segment {
    /// The low byte of each record's hash.
    tags: Vec<u8>,
    cells: Vec<Cell>,
    chunks: Chunks,
    outside: Vec<Option<Outside>>,
}

/// What is known of a record beside its bytes.
#[derive(Clone, Debug)]
struct Cell {
    place: Place,
    used: AccessClock,
}

/// The sequence and the deadline of a record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    pub(crate) sequence: u64,
    pub(crate) deadline_ms: Option<u64>,
}

/// The big parts of a record.
#[derive(Clone, Default, Debug)]
struct Outside {
    key: Option<Arc<Vec<u8>>>,
    value: Option<Value>,
}

/// The parts of a record that lie in a chunk.
#[derive(Clone, Copy)]
struct Parts<'a> {
    /// `None` where it lies outside.
    key: Option<&'a [u8]>,
    /// The same.
    value: Option<&'a [u8]>,
    form: Form,
    timing: Timing,
    /// Number of the part outside.
    outside: Option<usize>,
}

impl Segment {
    pub(super) fn len(&self) -> usize {
        self.tags.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= MAX_RECORDS
    }

    /// The cell of a key.
    pub(super) fn find(&self, key: &[u8], hash: u64) -> Option<usize> {
        self.candidates(hash).find(|&cell| self.key(cell) == key)
    }

    /// The cells whose byte of the hash fits.
    pub(super) fn candidates(&self, hash: u64) -> impl Iterator<Item = usize> {
        memchr::memchr_iter(tag_of(hash), &self.tags)
    }

    pub(super) fn key(&self, cell: usize) -> &[u8] {
        let bytes = self.bytes(cell);
        if bytes[0] & KEY_OUTSIDE != 0 {
            return self
                .outside_of(cell)
                .and_then(|outside| outside.key.as_deref())
                .expect("flagged outside");
        }
        &bytes[KEY_AT..KEY_AT + usize::from(bytes[KEY_LEN_AT])]
    }

    pub(super) fn record(&self, cell: usize) -> Record<'_> {
        let bytes = self.bytes(cell);
        let head = bytes[0];
        let mut sequence = [0; 8];
        sequence[..6].copy_from_slice(&bytes[1..KEY_LEN_AT]);
        let value_at = KEY_AT + usize::from(bytes[KEY_LEN_AT]);
        let value_end = value_at + usize::from(bytes[VALUE_LEN_AT]);
        let value = if head & VALUE_OUTSIDE != 0 {
            let outside = self.outside_of(cell).and_then(|outside| outside.value.as_ref());
            outside.expect("flagged outside").as_ref()
        } else {
            ValueRef::String(&bytes[value_at..value_end])
        };
        let deadline_ms = (head & HAS_DEADLINE != 0)
            .then(|| u64::from_le_bytes(array(&bytes[value_end..value_end + DEADLINE_BYTES])));
        Record {
            value,
            form: Form::from_number(head & FORM).expect("written by this code"),
            sequence: u64::from_le_bytes(sequence),
            deadline_ms,
            used: &self.cells[cell].used,
        }
    }

    /// Adds a key that is not there.
    pub(super) fn insert(&mut self, key: &[u8], hash: u64, record: NewRecord<'_>) {
        let (value, value_outside) = place(record.value);
        let inline = key.len() <= MAX_INLINE;
        let outside = Outside { key: (!inline).then(|| Arc::new(key.to_vec())), value: value_outside };
        let outside = (outside.key.is_some() || outside.value.is_some()).then(|| self.add_outside(outside));
        let timing = Timing { sequence: record.sequence, deadline_ms: record.deadline_ms };
        let parts = Parts { key: inline.then_some(key), value, form: record.form, timing, outside };
        let place = self.add_record(&parts);
        self.add_cell(tag_of(hash), Cell { place, used: AccessClock::at(record.now_ms) });
    }

    fn add_cell(&mut self, tag: u8, cell: Cell) {
        grow(&mut self.tags);
        self.tags.push(tag);
        grow(&mut self.cells);
        self.cells.push(cell);
    }

    /// Gives a key that is there another value, sequence and deadline.
    pub(super) fn replace(&mut self, cell: usize, record: NewRecord<'_>) {
        let (value, value_outside) = place(record.value);
        let timing = Timing { sequence: record.sequence, deadline_ms: record.deadline_ms };
        let Cell { place, ref used } = self.cells[cell];
        used.touch(record.now_ms);
        let bytes = self.chunks.at(place);
        let key_outside = bytes[0] & KEY_OUTSIDE != 0;
        let key_len = usize::from(bytes[KEY_LEN_AT]);
        let old_size = size_of_record(bytes);
        let old_number = number_in(bytes);
        let outside = if key_outside || value_outside.is_some() {
            let number = old_number.unwrap_or_else(|| self.add_outside(Outside::default()));
            self.outside[number].get_or_insert_default().value = value_outside;
            Some(number)
        } else {
            if let Some(old) = old_number {
                self.outside[old] = None;
            }
            None
        };
        let new_size =
            size(key_len, value.map_or(0, <[u8]>::len), record.deadline_ms.is_some(), outside.is_some());
        let bytes = self.chunks.at_mut(place);
        if new_size == old_size {
            write_head(bytes, key_outside, value.map(<[u8]>::len), record.form, timing);
            let value = value.unwrap_or(&[]);
            let (value_to, tail) = bytes[KEY_AT + key_len..].split_at_mut(value.len());
            value_to.copy_from_slice(value);
            write_tail(tail, timing.deadline_ms, outside);
            return;
        }
        let mut key = [0; MAX_INLINE];
        let key = &mut key[..key_len];
        key.copy_from_slice(&bytes[KEY_AT..KEY_AT + key_len]);
        self.chunks.release(place, old_size);
        let key = (!key_outside).then_some(&*key);
        let parts = Parts { key, value, form: record.form, timing, outside };
        self.cells[cell].place = self.add_record(&parts);
        self.compact_when_due();
    }

    /// Gives a key another sequence and deadline; its value stays where it is, and as it is but for the form.
    pub(super) fn retime(&mut self, cell: usize, form: Form, timing: Timing) {
        let place = self.cells[cell].place;
        let outside = self.outside_number(cell);
        let bytes = self.chunks.at_mut(place);
        let head = bytes[0];
        let key_len = usize::from(bytes[KEY_LEN_AT]);
        let value_len = usize::from(bytes[VALUE_LEN_AT]);
        let (key_outside, value_outside) = (head & KEY_OUTSIDE != 0, head & VALUE_OUTSIDE != 0);
        let value_at = KEY_AT + key_len;
        if timing.deadline_ms.is_some() == (head & HAS_DEADLINE != 0) {
            write_head(bytes, key_outside, (!value_outside).then_some(value_len), form, timing);
            write_tail(&mut bytes[value_at + value_len..], timing.deadline_ms, outside);
            return;
        }
        // The record changes its size: it moves.
        let old_size = size_of_record(bytes);
        let mut copy = [0; 2 * MAX_INLINE];
        let copy = &mut copy[..key_len + value_len];
        copy.copy_from_slice(&bytes[KEY_AT..KEY_AT + key_len + value_len]);
        let (key, value) = copy.split_at(key_len);
        self.chunks.release(place, old_size);
        let parts = Parts {
            key: (!key_outside).then_some(key),
            value: (!value_outside).then_some(value),
            form,
            timing,
            outside,
        };
        self.cells[cell].place = self.add_record(&parts);
        self.compact_when_due();
    }

    /// Says that all records will be read now.
    pub(super) fn fetch(&self) {
        self.chunks.fetch();
    }

    /// The value of a key when it lies outside.
    pub(super) fn big_value(&self, cell: usize) -> Option<&Value> {
        self.outside_of(cell)?.value.as_ref()
    }

    /// The value of a key when it lies outside, to be changed where it is.
    pub(super) fn big_value_mut(&mut self, cell: usize) -> Option<&mut Value> {
        let number = self.outside_number(cell)?;
        self.outside[number].as_mut()?.value.as_mut()
    }

    pub(super) fn remove(&mut self, cell: usize) {
        if let Some(number) = self.outside_number(cell) {
            self.outside[number] = None;
        }
        let size = size_of_record(self.bytes(cell));
        self.tags.swap_remove(cell);
        let Cell { place, .. } = self.cells.swap_remove(cell);
        self.chunks.release(place, size);
        self.compact_when_due();
    }

    /// Two segments by one bit of the hash, bit 0 being the most significant.
    pub(super) fn split(&self, hash: &Hash, bit: u32) -> (Segment, Segment) {
        let (ones, zeros): (Vec<usize>, Vec<usize>) =
            (0..self.len()).partition(|&cell| hash.of(self.key(cell)) >> (u64::BITS - 1 - bit) & 1 == 1);
        let part = |cells: &[usize]| {
            let mut part = Segment::default();
            part.copy(self, cells);
            part
        };
        (part(&zeros), part(&ones))
    }

    /// Takes over all records of another segment.
    pub(super) fn absorb(&mut self, other: &Segment) {
        self.copy(other, &(0..other.len()).collect::<Vec<_>>());
    }

    /// Adds records of another segment.
    fn copy(&mut self, from: &Segment, cells: &[usize]) {
        self.tags.reserve_exact(cells.len());
        self.cells.reserve_exact(cells.len());
        let mut coming: usize = cells.iter().map(|&cell| size_of_record(from.bytes(cell))).sum();
        for &cell in cells {
            let bytes = from.bytes(cell);
            let size = size_of_record(bytes);
            let place = self.chunks.allocate(size, coming);
            coming -= size;
            let outside = from.outside_of(cell).map(|outside| self.add_outside(outside.clone()));
            let to = self.chunks.at_mut(place);
            to[..size].copy_from_slice(&bytes[..size]);
            write_outside(&mut to[..size], outside);
            self.add_cell(from.tags[cell], Cell { place, used: from.cells[cell].used.clone() });
        }
    }

    fn add_record(&mut self, parts: &Parts<'_>) -> Place {
        let deadline_ms = parts.timing.deadline_ms;
        let (key, value) = (parts.key.unwrap_or(&[]), parts.value.unwrap_or(&[]));
        let size = size(key.len(), value.len(), deadline_ms.is_some(), parts.outside.is_some());
        let place = self.chunks.allocate(size, size);
        let bytes = self.chunks.at_mut(place);
        bytes[KEY_LEN_AT] = key.len() as u8;
        write_head(bytes, parts.key.is_none(), parts.value.map(<[u8]>::len), parts.form, parts.timing);
        let (key_to, rest) = bytes[KEY_AT..].split_at_mut(key.len());
        key_to.copy_from_slice(key);
        let (value_to, rest) = rest.split_at_mut(value.len());
        value_to.copy_from_slice(value);
        write_tail(rest, deadline_ms, parts.outside);
        place
    }

    fn bytes(&self, cell: usize) -> &[u8] {
        self.chunks.at(self.cells[cell].place)
    }

    fn outside_number(&self, cell: usize) -> Option<usize> {
        number_in(self.bytes(cell))
    }

    fn outside_of(&self, cell: usize) -> Option<&Outside> {
        self.outside[self.outside_number(cell)?].as_ref()
    }

    fn add_outside(&mut self, outside: Outside) -> usize {
        match self.outside.iter().position(Option::is_none) {
            Some(free) => {
                self.outside[free] = Some(outside);
                free
            }
            None => {
                grow(&mut self.outside);
                self.outside.push(Some(outside));
                self.outside.len() - 1
            }
        }
    }

    fn compact_when_due(&mut self) {
        if self.chunks.is_wasteful() {
            let mut fresh = Segment::default();
            fresh.absorb(self);
            *self = fresh;
        }
    }
}

fn tag_of(hash: u64) -> u8 {
    hash as u8
}

/// Where a value goes: into a chunk, or outside.
fn place(value: NewValue<'_>) -> (Option<&[u8]>, Option<Value>) {
    match value {
        NewValue::Bytes(bytes) if bytes.len() <= MAX_INLINE => (Some(bytes), None),
        NewValue::Bytes(bytes) => (None, Some(Value::String(Arc::new(bytes.to_vec())))),
        NewValue::Big(value) => (None, Some(value)),
    }
}

/// Writes what precedes the key, but for the key's length.
fn write_head(
    bytes: &mut [u8],
    key_outside: bool,
    value_len: Option<usize>,
    form: Form,
    Timing { sequence, deadline_ms }: Timing,
) {
    assert!(sequence < 1 << 48, "48 bits of sequence last for years of any load");
    let mut head = form as u8;
    if deadline_ms.is_some() {
        head |= HAS_DEADLINE;
    }
    if key_outside {
        head |= KEY_OUTSIDE;
    }
    if value_len.is_none() {
        head |= VALUE_OUTSIDE;
    }
    bytes[0] = head;
    bytes[1..KEY_LEN_AT].copy_from_slice(&sequence.to_le_bytes()[..6]);
    bytes[VALUE_LEN_AT] = value_len.unwrap_or(0) as u8;
}

/// Writes what follows the value.
fn write_tail(bytes: &mut [u8], deadline_ms: Option<u64>, outside: Option<usize>) {
    let mut at = 0;
    if let Some(deadline) = deadline_ms {
        bytes[..DEADLINE_BYTES].copy_from_slice(&deadline.to_le_bytes());
        at = DEADLINE_BYTES;
    }
    if outside.is_some() {
        write_outside(&mut bytes[..at + OUTSIDE_BYTES], outside);
    }
}

/// Writes the number of the part outside, if there is one, at the end.
fn write_outside(bytes: &mut [u8], outside: Option<usize>) {
    if let Some(number) = outside {
        let number = u32::try_from(number).expect("a segment has few records");
        let at = bytes.len() - OUTSIDE_BYTES;
        bytes[at..].copy_from_slice(&number.to_le_bytes());
    }
}

/// Number of the part outside of the record that begins here.
fn number_in(bytes: &[u8]) -> Option<usize> {
    if bytes[0] & OUTSIDE == 0 {
        return None;
    }
    let end = size_of_record(bytes);
    Some(u32::from_le_bytes(array(&bytes[end - OUTSIDE_BYTES..end])) as usize)
}

/// Size of the record that begins here.
fn size_of_record(bytes: &[u8]) -> usize {
    let head = bytes[0];
    size(
        usize::from(bytes[KEY_LEN_AT]),
        usize::from(bytes[VALUE_LEN_AT]),
        head & HAS_DEADLINE != 0,
        head & OUTSIDE != 0,
    )
}

const fn size(key: usize, value: usize, deadline: bool, outside: bool) -> usize {
    KEY_AT + key + value + if deadline { DEADLINE_BYTES } else { 0 } + if outside { OUTSIDE_BYTES } else { 0 }
}

/// Makes room for one more, in steps of a fixed number: doubling would waste a quarter of the memory on average.
fn grow<T>(vec: &mut Vec<T>) {
    const STEP: usize = 16;
    if vec.len() == vec.capacity() {
        vec.reserve_exact(vec.len().clamp(4, STEP));
    }
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("cut to this length")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};
    use std::collections::BTreeMap;

    #[derive(Clone, Debug)]
    enum Step {
        Put {
            key: u8,
            len: usize,
            deadline_ms: Option<u64>,
        },
        Retime {
            key: u8,
            deadline_ms: Option<u64>,
        },
        Remove {
            key: u8,
        },
        /// What a snapshot holds must not change.
        Freeze,
        SplitAndJoin {
            bit: u32,
        },
    }

    fn step() -> impl Strategy<Value = Step> {
        let len = prop_oneof![6 => 0..60usize, 2 => 100..257usize, 1 => 255..700usize];
        let deadline_ms = prop::option::of(any::<u64>());
        prop_oneof![
            12 => (any::<u8>(), len, deadline_ms.clone()).prop_map(|(key, len, deadline_ms)| Step::Put { key, len, deadline_ms }),
            3 => (any::<u8>(), deadline_ms).prop_map(|(key, deadline_ms)| Step::Retime { key, deadline_ms }),
            4 => any::<u8>().prop_map(|key| Step::Remove { key }),
            1 => Just(Step::Freeze),
            1 => (0..8u32).prop_map(|bit| Step::SplitAndJoin { bit }),
        ]
    }

    /// Key, then value, sequence and deadline.
    type Model = BTreeMap<Vec<u8>, (Vec<u8>, u64, Option<u64>)>;

    /// Some are too long to be packed.
    fn name(key: u8) -> Vec<u8> {
        let len = [3, 16, 16, 16, 100, 254, 255, 256, 300][usize::from(key) % 9];
        let mut name = vec![b'k'; len];
        name[..3].copy_from_slice(format!("{key:03}").as_bytes());
        name
    }

    fn content(segment: &Segment) -> Model {
        let record = |cell| {
            let Record { value: ValueRef::String(value), sequence, deadline_ms, .. } = segment.record(cell);
            (segment.key(cell).to_vec(), (value.to_vec(), sequence, deadline_ms))
        };
        (0..segment.len()).map(record).collect()
    }

    /// No byte belongs to two records, and none is lost.
    fn invariant_every_byte_is_used_once(segment: &Segment) {
        let sizes =
            segment.cells.iter().map(|cell| (cell.place, size_of_record(segment.chunks.at(cell.place))));
        segment.chunks.invariant_every_byte_is_used_once(sizes);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn a_segment_equals_an_ordered_map(steps in vec(step(), 1..600)) {
            let hash = Hash::new(&[5; 16]);
            let mut segment = Segment::default();
            let mut model = Model::new();
            let mut frozen = Vec::new();
            for (sequence, step) in (1..).zip(&steps) {
                match *step {
                    Step::Put { key, len, deadline_ms } => {
                        let name = name(key);
                        let value = vec![sequence as u8; len];
                        let record = NewRecord {
                            value: NewValue::Bytes(&value),
                            form: Form::Whole,
                            sequence,
                            deadline_ms,
                            now_ms: 0,
                        };
                        match segment.find(&name, hash.of(&name)) {
                            Some(cell) => segment.replace(cell, record),
                            None => segment.insert(&name, hash.of(&name), record),
                        }
                        model.insert(name, (value, sequence, deadline_ms));
                    }
                    Step::Retime { key, deadline_ms } => {
                        let name = name(key);
                        let cell = segment.find(&name, hash.of(&name));
                        prop_assert_eq!(cell.is_some(), model.contains_key(&name));
                        if let Some(cell) = cell {
                            segment.retime(cell, Form::Whole, Timing { sequence, deadline_ms });
                            let record = model.get_mut(&name).unwrap();
                            (record.1, record.2) = (sequence, deadline_ms);
                        }
                    }
                    Step::Remove { key } => {
                        let name = name(key);
                        let cell = segment.find(&name, hash.of(&name));
                        prop_assert_eq!(cell.is_some(), model.remove(&name).is_some());
                        if let Some(cell) = cell {
                            segment.remove(cell);
                        }
                    }
                    Step::Freeze => frozen.push((segment.clone(), model.clone())),
                    Step::SplitAndJoin { bit } => {
                        let (mut zeros, ones) = segment.split(&hash, bit);
                        let bit_of = |key: &[u8]| hash.of(key) >> (63 - bit) & 1;
                        prop_assert!(content(&zeros).keys().all(|key| bit_of(key) == 0));
                        prop_assert!(content(&ones).keys().all(|key| bit_of(key) == 1));
                        zeros.absorb(&ones);
                        segment = zeros;
                    }
                }
                invariant_every_byte_is_used_once(&segment);
            }
            prop_assert_eq!(content(&segment), model);
            for (segment, model) in frozen {
                prop_assert_eq!(content(&segment), model);
            }
        }
    }

    #[test]
    fn a_segment_takes_the_allocators_block() {
        // With the count of its owners 192 bytes: the allocator's next sizes are 160 and 224.
        assert!(size_of::<Segment>() + size_of::<usize>() <= 192, "{}", size_of::<Segment>());
        assert_eq!(size_of::<Cell>(), 6);
    }
}
