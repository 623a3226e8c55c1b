//! A segment: up to some 256 records packed into one buffer.
//!
//! A record is `head` (form of the value and flags, 1 byte), the change sequence (6), the length of the key (1) and of the value
//! (1), key, value, the deadline (8, only when set) and the number of the part outside (4, only when there is one).
//! A key or value of more than 255 bytes lies outside, behind a reference count, so that copying a segment never
//! copies a big value. Beside the buffer each record has one byte of its hash, its offset and the time of its last use
//! (3); a look-up scans the bytes and compares the keys that are left, one or two.
//!
//! Sketch of the cost: 9 + 8 bytes beside key and value, some 3 % of room to grow, no allocation per key.
//! The order of the records is of no meaning; who needs hash order sorts.

use super::{Hash, access::AccessClock};
use crate::value::{Form, MAX_PACKED as MAX_INLINE, NewValue, Value, ValueRef};
use triomphe::Arc;

/// How many records a segment holds before it is split.
pub(super) const MAX_RECORDS: usize = 256;

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
    /// Where each record starts in `bytes`.
    offsets: Vec<u32>,
    used: Vec<AccessClock>,
    bytes: Vec<u8>,
    /// Bytes of `bytes` that belong to no record any more.
    holes: usize,
    outside: Vec<Option<Outside>>,
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
        let at = self.offsets[cell] as usize;
        if self.bytes[at] & KEY_OUTSIDE != 0 {
            return self
                .outside_of(cell)
                .and_then(|outside| outside.key.as_deref())
                .expect("flagged outside");
        }
        let len = usize::from(self.bytes[at + 7]);
        &self.bytes[at + KEY_AT..at + KEY_AT + len]
    }

    pub(super) fn record(&self, cell: usize) -> Record<'_> {
        let at = self.offsets[cell] as usize;
        let head = self.bytes[at];
        let mut sequence = [0; 8];
        sequence[..6].copy_from_slice(&self.bytes[at + 1..at + 7]);
        let value_at = at + KEY_AT + usize::from(self.bytes[at + 7]);
        let value_end = value_at + usize::from(self.bytes[at + 8]);
        let value = if head & VALUE_OUTSIDE != 0 {
            let outside = self.outside_of(cell).and_then(|outside| outside.value.as_ref());
            outside.expect("flagged outside").as_ref()
        } else {
            ValueRef::String(&self.bytes[value_at..value_end])
        };
        let deadline_ms = (head & HAS_DEADLINE != 0)
            .then(|| u64::from_le_bytes(array(&self.bytes[value_end..value_end + DEADLINE_BYTES])));
        Record {
            value,
            form: Form::from_number(head & FORM).expect("written by this code"),
            sequence: u64::from_le_bytes(sequence),
            deadline_ms,
            used: &self.used[cell],
        }
    }

    /// Adds a key that is not there.
    pub(super) fn insert(&mut self, key: &[u8], hash: u64, record: NewRecord<'_>) {
        let (value, value_outside) = place(record.value);
        let inline = key.len() <= MAX_INLINE;
        let outside = Outside { key: (!inline).then(|| Arc::new(key.to_vec())), value: value_outside };
        let number = (outside.key.is_some() || outside.value.is_some()).then(|| self.add_outside(outside));
        self.add_cell(tag_of(hash), 0, AccessClock::at(record.now_ms));
        let timing = Timing { sequence: record.sequence, deadline_ms: record.deadline_ms };
        self.append_record(self.len() - 1, inline.then_some(key), value, record.form, timing, number);
    }

    fn add_cell(&mut self, tag: u8, offset: u32, used: AccessClock) {
        grow(&mut self.tags, 1);
        self.tags.push(tag);
        grow(&mut self.offsets, 1);
        self.offsets.push(offset);
        grow(&mut self.used, 1);
        self.used.push(used);
    }

    /// Gives a key that is there another value, sequence and deadline.
    pub(super) fn replace(&mut self, cell: usize, record: NewRecord<'_>) {
        let (value, value_outside) = place(record.value);
        let timing = Timing { sequence: record.sequence, deadline_ms: record.deadline_ms };
        self.used[cell].touch(record.now_ms);
        let at = self.offsets[cell] as usize;
        let old_number = self.outside_number(cell);
        let key_outside = self.bytes[at] & KEY_OUTSIDE != 0;
        let number = if key_outside || value_outside.is_some() {
            let number = old_number.unwrap_or_else(|| self.add_outside(Outside::default()));
            self.outside[number].get_or_insert_default().value = value_outside;
            Some(number)
        } else {
            if let Some(old) = old_number {
                self.outside[old] = None;
            }
            None
        };
        let key_len = usize::from(self.bytes[at + 7]);
        let new_size =
            size(key_len, value.map_or(0, <[u8]>::len), record.deadline_ms.is_some(), number.is_some());
        let old_size = self.size_at(at);
        if new_size == old_size {
            let key_end = at + KEY_AT + key_len;
            self.write_head(at, key_outside, value.map(<[u8]>::len), record.form, timing);
            let value = value.unwrap_or(&[]);
            self.bytes[key_end..key_end + value.len()].copy_from_slice(value);
            let mut tail = key_end + value.len();
            if let Some(deadline) = record.deadline_ms {
                self.bytes[tail..tail + DEADLINE_BYTES].copy_from_slice(&deadline.to_le_bytes());
                tail += DEADLINE_BYTES;
            }
            if let Some(number) = number {
                self.bytes[tail..tail + OUTSIDE_BYTES].copy_from_slice(&narrow(number).to_le_bytes());
            }
            return;
        }
        self.holes += old_size;
        let mut key = [0; MAX_INLINE];
        let key = &mut key[..key_len];
        key.copy_from_slice(&self.bytes[at + KEY_AT..at + KEY_AT + key_len]);
        let key_part = (!key_outside).then_some(&*key);
        self.append_record(cell, key_part, value, record.form, timing, number);
        self.compact_when_due();
    }

    /// Gives a key another sequence and deadline; its value stays where it is, and as it is but for the form.
    pub(super) fn retime(&mut self, cell: usize, form: Form, timing: Timing) {
        let deadline_ms = timing.deadline_ms;
        let at = self.offsets[cell] as usize;
        let head = self.bytes[at];
        let number = self.outside_number(cell);
        let key_len = usize::from(self.bytes[at + 7]);
        let value_len = usize::from(self.bytes[at + 8]);
        let body = at + KEY_AT..at + KEY_AT + key_len + value_len;
        let to = if deadline_ms.is_some() == (head & HAS_DEADLINE != 0) {
            at
        } else {
            // The record changes its size: it moves to the end.
            let old_size = self.size_at(at);
            let new_size = size(key_len, value_len, deadline_ms.is_some(), number.is_some());
            let to = self.bytes.len();
            grow(&mut self.bytes, new_size);
            self.bytes.extend_from_within(at..body.end);
            self.bytes.resize(to + new_size, 0);
            self.holes += old_size;
            self.offsets[cell] = narrow(to);
            to
        };
        let inline = (head & VALUE_OUTSIDE == 0).then_some(value_len);
        self.write_head(to, head & KEY_OUTSIDE != 0, inline, form, timing);
        let mut tail = to + KEY_AT + key_len + value_len;
        if let Some(deadline) = deadline_ms {
            self.bytes[tail..tail + DEADLINE_BYTES].copy_from_slice(&deadline.to_le_bytes());
            tail += DEADLINE_BYTES;
        }
        if let Some(number) = number {
            self.bytes[tail..tail + OUTSIDE_BYTES].copy_from_slice(&narrow(number).to_le_bytes());
        }
        self.compact_when_due();
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
        let at = self.offsets[cell] as usize;
        if let Some(number) = self.outside_number(cell) {
            self.outside[number] = None;
        }
        self.holes += self.size_at(at);
        self.tags.swap_remove(cell);
        self.offsets.swap_remove(cell);
        self.used.swap_remove(cell);
        self.compact_when_due();
    }

    /// Two segments by one bit of the hash, bit 0 being the most significant.
    pub(super) fn split(&self, hash: &Hash, bit: u32) -> (Segment, Segment) {
        let mut parts = (Segment::default(), Segment::default());
        for cell in 0..self.len() {
            let ones = hash.of(self.key(cell)) >> (u64::BITS - 1 - bit) & 1 == 1;
            let part = if ones { &mut parts.1 } else { &mut parts.0 };
            part.copy(self, cell);
        }
        parts
    }

    /// Takes over all records of another segment.
    pub(super) fn absorb(&mut self, other: &Segment) {
        (0..other.len()).for_each(|cell| self.copy(other, cell));
    }

    /// Adds the record of another segment.
    fn copy(&mut self, from: &Segment, cell: usize) {
        let at = from.offsets[cell] as usize;
        let size = from.size_at(at);
        let to = self.bytes.len();
        grow(&mut self.bytes, size);
        self.bytes.extend_from_slice(&from.bytes[at..at + size]);
        if let Some(outside) = from.outside_of(cell) {
            let number = self.add_outside(outside.clone());
            let end = to + size;
            self.bytes[end - OUTSIDE_BYTES..end].copy_from_slice(&narrow(number).to_le_bytes());
        }
        self.add_cell(from.tags[cell], narrow(to), from.used[cell].clone());
    }

    fn append_record(
        &mut self,
        cell: usize,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        form: Form,
        timing: Timing,
        outside: Option<usize>,
    ) {
        let deadline_ms = timing.deadline_ms;
        let (key_outside, value_len) = (key.is_none(), value.map(<[u8]>::len));
        let (key, value) = (key.unwrap_or(&[]), value.unwrap_or(&[]));
        let size = size(key.len(), value.len(), deadline_ms.is_some(), outside.is_some());
        let at = self.bytes.len();
        grow(&mut self.bytes, size);
        self.bytes.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, key.len() as u8, 0]);
        self.write_head(at, key_outside, value_len, form, timing);
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
        if let Some(deadline) = deadline_ms {
            self.bytes.extend_from_slice(&deadline.to_le_bytes());
        }
        if let Some(number) = outside {
            self.bytes.extend_from_slice(&narrow(number).to_le_bytes());
        }
        self.offsets[cell] = narrow(at);
    }

    fn write_head(
        &mut self,
        at: usize,
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
        self.bytes[at] = head;
        self.bytes[at + 1..at + 7].copy_from_slice(&sequence.to_le_bytes()[..6]);
        self.bytes[at + 8] = value_len.unwrap_or(0) as u8;
    }

    fn size_at(&self, at: usize) -> usize {
        let head = self.bytes[at];
        size(
            usize::from(self.bytes[at + 7]),
            usize::from(self.bytes[at + 8]),
            head & HAS_DEADLINE != 0,
            head & OUTSIDE != 0,
        )
    }

    fn outside_number(&self, cell: usize) -> Option<usize> {
        let at = self.offsets[cell] as usize;
        if self.bytes[at] & OUTSIDE == 0 {
            return None;
        }
        let end = at + self.size_at(at);
        Some(u32::from_le_bytes(array(&self.bytes[end - OUTSIDE_BYTES..end])) as usize)
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
                grow(&mut self.outside, 1);
                self.outside.push(Some(outside));
                self.outside.len() - 1
            }
        }
    }

    /// Gives holes back once they are a fifth of the buffer: each byte is moved a bounded number of times.
    fn compact_when_due(&mut self) {
        const WORTHWHILE: usize = 128;
        if self.holes < WORTHWHILE || self.holes * 5 < self.bytes.len() {
            return;
        }
        let mut fresh = Segment {
            tags: Vec::with_capacity(self.tags.len()),
            offsets: Vec::with_capacity(self.offsets.len()),
            used: Vec::with_capacity(self.used.len()),
            bytes: Vec::with_capacity(self.bytes.len() - self.holes),
            holes: 0,
            outside: Vec::new(),
        };
        fresh.absorb(self);
        *self = fresh;
    }
}

fn tag_of(hash: u64) -> u8 {
    hash as u8
}

/// Where a value goes: into the buffer, or outside.
fn place(value: NewValue<'_>) -> (Option<&[u8]>, Option<Value>) {
    match value {
        NewValue::Bytes(bytes) if bytes.len() <= MAX_INLINE => (Some(bytes), None),
        NewValue::Bytes(bytes) => (None, Some(Value::String(Arc::new(bytes.to_vec())))),
        NewValue::Big(value) => (None, Some(value)),
    }
}

const fn size(key: usize, value: usize, deadline: bool, outside: bool) -> usize {
    KEY_AT + key + value + if deadline { DEADLINE_BYTES } else { 0 } + if outside { OUTSIDE_BYTES } else { 0 }
}

/// Makes room in steps of a sixteenth: doubling would waste a quarter of the memory on average, and a step inside
/// the allocator's own block copies nothing.
fn grow<T>(vec: &mut Vec<T>, extra: usize) {
    if vec.capacity() - vec.len() < extra {
        vec.reserve_exact(extra.max(vec.len() / 16).max(4));
    }
}

/// Offsets and numbers inside a segment.
fn narrow(number: usize) -> u32 {
    u32::try_from(number).expect("a segment's buffer is far below 4 GiB")
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("cut to this length")
}
