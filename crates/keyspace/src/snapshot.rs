//! The data of a keyspace at one moment, written as a stream and read back.
//! `docs/data-on-disk.md`, "Snapshot content", has the bytes; they are persisted and frozen.
//!
//! Contract: writing needs little memory whatever the size of the data; equal states give equal bytes. Reading is
//! strict and total: any bytes give a keyspace that some history could have made, or an error. It never panics, and
//! never holds more memory than a small multiple of what it has read. It ends where the keyspace ends.
//! There is no checksum of the bytes here, for files and the transport have theirs.
//!
//! Left out: counters of reads, which are no state.

use crate::{
    Keyspace, SLOTS, Settings, Slot, argv,
    checksum::Checksum,
    database::{Loader, Tables},
    table::{NewRecord, Record},
    value::{Form, NewValue, ValueRef},
};
use std::{
    fmt,
    io::{self, BufRead, Write},
};

/// The data of a keyspace at one moment. Making one copies a few pointers for each database; while it lives, the
/// keyspace copies what it changes.
///
/// Dropping the last one frees everything that was changed since, up to all of the data, in the thread that drops it:
/// drop it where nobody waits.
#[derive(Clone, Debug)]
pub struct Snapshot {
    databases: Vec<Tables>,
    sequence: u64,
    expired_keys: u64,
    checksum: Checksum,
}

/// Why bytes did not become a keyspace.
#[derive(Debug)]
pub enum RestoreError {
    /// Reading failed.
    Io(io::Error),
    /// This is wrong with the bytes.
    Malformed(&'static str),
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RestoreError::Io(_) => f.write_str("cannot read the snapshot"),
            RestoreError::Malformed(what) => write!(f, "malformed snapshot: {what}"),
        }
    }
}

impl std::error::Error for RestoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            RestoreError::Io(error) => Some(error),
            RestoreError::Malformed(_) => None,
        }
    }
}

impl From<io::Error> for RestoreError {
    fn from(error: io::Error) -> RestoreError {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => RestoreError::Malformed("it ends early"),
            _ => RestoreError::Io(error),
        }
    }
}

/// Stands for "no further slot".
const END: u16 = SLOTS;

/// Types of values are numbers below this one; those of strings are the numbers of [`Form`].
const HAS_DEADLINE: u8 = 0x10;

/// Change sequences and counters stay below this; what a record has room for.
const COUNT_LIMIT: u64 = 1 << 48;
/// Deadlines are no later than this; what a client can say.
const MAX_DEADLINE: u64 = i64::MAX as u64;

/// So much is gathered before it is written.
const CHUNK_BYTES: usize = 64 * 1024;

impl Keyspace {
    /// The data as they are now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            databases: self.databases.iter().map(|database| database.tables().clone()).collect(),
            sequence: self.sequence,
            expired_keys: self.expired_keys,
            checksum: self.checksum,
        }
    }

    /// Reads what [`Snapshot::write`] wrote of a keyspace with these settings, and no byte more. All keys count as
    /// used at `now_ms`.
    pub fn restore<R: BufRead>(
        settings: Settings,
        now_ms: u64,
        from: &mut R,
    ) -> Result<Keyspace, RestoreError> {
        let mut keyspace = Keyspace::new(settings);
        keyspace.sequence = count(from)?;
        keyspace.expired_keys = count(from)?;
        let mut checksum = [0; 8];
        from.read_exact(&mut checksum)?;
        keyspace.checksum = Checksum::restored(u64::from_le_bytes(checksum));
        let databases = read_number(from)?;
        if databases != u64::from(keyspace.databases()) {
            return Err(RestoreError::Malformed("another number of databases"));
        }
        for db in 0..keyspace.databases.len() {
            keyspace.databases[db] = read_database(&keyspace, now_ms, from)?.finish();
        }
        Ok(keyspace)
    }
}

impl Snapshot {
    /// Whether it has to say more of some value than the first version of its format could.
    pub fn has_forms(&self) -> bool {
        self.databases.iter().any(Tables::has_forms)
    }

    /// Writes the data: slot by slot, in pieces of some 64 KiB or a value.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut out = Chunks { out, bytes: Vec::with_capacity(2 * CHUNK_BYTES), error: None };
        out.number(self.sequence);
        out.number(self.expired_keys);
        out.bytes.extend_from_slice(&self.checksum.value().to_le_bytes());
        out.number(self.databases.len() as u64);
        for tables in &self.databases {
            out.number(tables.flushed());
            for slot in tables.slots() {
                write_slot(tables, slot, &mut out);
                out.pass_on(CHUNK_BYTES)?;
            }
            out.bytes.extend_from_slice(&END.to_le_bytes());
            out.number(tables.len() as u64);
            out.number(tables.expiring() as u64);
        }
        out.pass_on(0)
    }

    /// What [`write`](Self::write) writes, at once: for tests.
    pub fn dump(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out).expect("a vector takes everything");
        out
    }
}

/// Bytes on their way out. After an error nothing is written any more.
struct Chunks<'a> {
    out: &'a mut dyn Write,
    bytes: Vec<u8>,
    error: Option<io::Error>,
}

impl Chunks<'_> {
    fn number(&mut self, number: u64) {
        argv::put_varint(&mut self.bytes, number);
    }

    /// Adds a text of any length. A long one is not copied. False when nothing can be written any more.
    fn text(&mut self, text: &[u8]) -> bool {
        self.number(text.len() as u64);
        if text.len() < CHUNK_BYTES {
            self.bytes.extend_from_slice(text);
            return self.settle(CHUNK_BYTES);
        }
        if self.settle(0) {
            self.error = self.out.write_all(text).err();
        }
        self.error.is_none()
    }

    /// Writes what has gathered when it is that much.
    fn settle(&mut self, limit: usize) -> bool {
        if self.error.is_none() && self.bytes.len() >= limit {
            self.error = self.out.write_all(&self.bytes).err();
            self.bytes.clear();
        }
        self.error.is_none()
    }

    fn pass_on(&mut self, limit: usize) -> io::Result<()> {
        self.settle(limit);
        self.error.take().map_or(Ok(()), Err)
    }
}

fn write_slot(tables: &Tables, slot: Slot, out: &mut Chunks<'_>) {
    let deleted = tables.slot_deleted(slot);
    let count = tables.count_in_slot(slot);
    if deleted == 0 && count == 0 {
        return;
    }
    out.bytes.extend_from_slice(&slot.number().to_le_bytes());
    out.number(deleted);
    out.number(count as u64);
    tables.visit_slot(slot, 0, &mut |_, key, record: Record<'_>| {
        let ValueRef::String(value) = record.value;
        out.bytes.push(record.form as u8 | if record.deadline_ms.is_some() { HAS_DEADLINE } else { 0 });
        out.number(record.sequence);
        if let Some(deadline_ms) = record.deadline_ms {
            out.number(deadline_ms);
        }
        out.text(key) && out.text(value)
    });
}

fn read_database<R: BufRead>(keyspace: &Keyspace, now_ms: u64, from: &mut R) -> Result<Loader, RestoreError> {
    let mut database = Loader::new(keyspace.hash, sequence(keyspace, from)?);
    let mut keys = 0;
    let mut expiring = 0;
    let mut next = 0;
    let (mut key, mut last_key, mut value) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        let mut slot = [0; 2];
        from.read_exact(&mut slot)?;
        let slot = u16::from_le_bytes(slot);
        if slot == END {
            break;
        }
        let slot = Slot::new(slot).filter(|slot| slot.number() >= next);
        let slot = slot.ok_or(RestoreError::Malformed("a slot that is not in order"))?;
        next = slot.number() + 1;
        let deleted = sequence(keyspace, from)?;
        let count = read_number(from)?;
        if deleted == 0 && count == 0 {
            return Err(RestoreError::Malformed("a slot without anything"));
        }
        database.slot(slot, deleted);
        let mut last_hash = 0;
        for n in 0..count {
            let kind = byte(from)?;
            let form = Form::from_number(kind & !HAS_DEADLINE)
                .ok_or(RestoreError::Malformed("a value of an unknown type"))?;
            let sequence = sequence(keyspace, from)?;
            let deadline_ms = if kind & HAS_DEADLINE != 0 { Some(read_number(from)?) } else { None };
            if deadline_ms.is_some_and(|deadline| deadline > MAX_DEADLINE) {
                return Err(RestoreError::Malformed("a deadline that cannot be"));
            }
            text(from, &mut key)?;
            text(from, &mut value)?;
            let at = keyspace.locate(&key);
            if at.slot != slot {
                return Err(RestoreError::Malformed("a key in another slot than its own"));
            }
            if n > 0 && (last_hash, last_key.as_slice()) >= (at.hash, key.as_slice()) {
                return Err(RestoreError::Malformed("a key that is not in order"));
            }
            let value = NewValue::taken(&mut value);
            database.add(&key, at, NewRecord { value, form, sequence, deadline_ms, now_ms });
            expiring += u64::from(deadline_ms.is_some());
            last_hash = at.hash;
            std::mem::swap(&mut last_key, &mut key);
        }
        keys += count;
    }
    if (read_number(from)?, read_number(from)?) != (keys, expiring) {
        return Err(RestoreError::Malformed("other numbers of keys"));
    }
    Ok(database)
}

/// A change sequence that the keyspace has reached.
fn sequence<R: BufRead>(keyspace: &Keyspace, from: &mut R) -> Result<u64, RestoreError> {
    let sequence = read_number(from)?;
    if sequence > keyspace.sequence {
        return Err(RestoreError::Malformed("a change from the future"));
    }
    Ok(sequence)
}

fn count<R: BufRead>(from: &mut R) -> Result<u64, RestoreError> {
    let count = read_number(from)?;
    if count >= COUNT_LIMIT {
        return Err(RestoreError::Malformed("a count that cannot be"));
    }
    Ok(count)
}

/// The bytes that come next, at least one.
fn buffer<R: BufRead>(from: &mut R) -> io::Result<&[u8]> {
    while let Err(error) = from.fill_buf() {
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    let buffer = from.fill_buf()?;
    if buffer.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(buffer) }
}

fn byte<R: BufRead>(from: &mut R) -> Result<u8, RestoreError> {
    let byte = buffer(from)?[0];
    from.consume(1);
    Ok(byte)
}

/// Reads an unsigned LEB128 number in its one, shortest form.
pub fn read_number<R: BufRead>(from: &mut R) -> Result<u64, RestoreError> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = byte(from)?;
        let part = u64::from(byte & 0x7f);
        // One number has one form: no digit beyond 64 bits, no leading zero.
        if shift == 63 && part > 1 || shift > 0 && byte == 0 {
            break;
        }
        number |= part << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(RestoreError::Malformed("a number that is none"))
}

/// Reads a text of any length. Memory grows with what has been read, not with what was promised, and in the end it
/// is as long as the text.
fn text<R: BufRead>(from: &mut R, text: &mut Vec<u8>) -> Result<(), RestoreError> {
    let len =
        usize::try_from(read_number(from)?).map_err(|_| RestoreError::Malformed("a text without end"))?;
    text.clear();
    while text.len() < len {
        let missing = len - text.len();
        let buffer = buffer(from)?;
        let part = &buffer[..buffer.len().min(missing)];
        if text.capacity() - text.len() < part.len() {
            text.reserve_exact(missing.min(text.len().max(CHUNK_BYTES)).max(part.len()));
        }
        text.extend_from_slice(part);
        let read = part.len();
        from.consume(read);
    }
    Ok(())
}
