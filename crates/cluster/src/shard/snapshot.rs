//! The state of a replica at one moment, written as a stream and read back.
//! `docs/data-on-disk.md`, "Snapshot content", has the bytes; they are persisted and frozen.
//!
//! Contract: a replica made from a snapshot goes on exactly as the one it was taken of. Equal states give equal bytes.
//! Reading is strict and total, as that of [entries](crate::entry): any bytes give a replica or an error, and never more
//! memory than a small multiple of what was read (and of the number of databases). There is no checksum of the bytes
//! here, for files and the transport have theirs.

use super::{NOTES, Note, ShardMachine, assembly::Assembly};
use crate::{CHECK_LEVEL, CHUNK_LEVEL, CHUNKED_BYTES_MAX, Configure, FAMILIES_LEVEL, FEATURE_LEVEL};
use kvorum_keyspace::{Keyspace, Settings, Snapshot, argv};
use std::{
    collections::VecDeque,
    io::{self, BufRead, BufReader, Read, Write},
};

const MAGIC: &[u8; 3] = b"KvS";
const FORMAT: u8 = 1;
const BUFFER_BYTES: usize = 64 * 1024;
/// A large write is read back in chunks of this size.
const CHUNK_BYTES: u64 = 1 << 20;
/// Far beyond any configuration there can be.
const MAX_CONFIGURATION_BYTES: u64 = 1 << 20;

/// The state of a replica at one moment. Taking it copies a few pointers; while it lives, the replica copies what it
/// changes, some 256 keys at a time.
///
/// Dropping the last clone frees everything that was changed since, up to all of the data, in the thread that drops it.
/// Drop it where nobody waits, never under the replica's lock. The same holds for a replica that another one replaces.
#[derive(Clone, Debug)]
pub struct ShardSnapshot {
    applied: Option<u64>,
    term: u64,
    clock_ms: u64,
    notes: VecDeque<Note>,
    configuration: Option<Configure>,
    keyspace: Snapshot,
    assembly: Option<Assembly>,
    stopped: bool,
}

/// Why bytes did not become a state.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Reading failed.
    #[error("cannot read the snapshot")]
    Io(#[source] io::Error),
    /// This is wrong with the bytes.
    #[error("malformed snapshot: {0}")]
    Malformed(String),
    /// A later version wrote it.
    #[error("snapshot format {0} is not known to this version")]
    UnknownFormat(u32),
    /// A later version wrote it.
    #[error("the snapshot needs feature level {0}, this version has {FEATURE_LEVEL}")]
    NewerFeatureLevel(u16),
}

impl RestoreError {
    fn malformed(what: &str) -> RestoreError {
        RestoreError::Malformed(what.into())
    }
}

impl From<kvorum_keyspace::RestoreError> for RestoreError {
    fn from(error: kvorum_keyspace::RestoreError) -> RestoreError {
        match error {
            kvorum_keyspace::RestoreError::Io(error) => RestoreError::Io(error),
            kvorum_keyspace::RestoreError::Malformed(what) => RestoreError::malformed(what),
        }
    }
}

impl From<io::Error> for RestoreError {
    fn from(error: io::Error) -> RestoreError {
        kvorum_keyspace::RestoreError::from(error).into()
    }
}

impl ShardMachine {
    /// The state as it is now, between two entries.
    pub fn snapshot(&self) -> ShardSnapshot {
        ShardSnapshot {
            applied: self.applied,
            term: self.term,
            clock_ms: self.clock_ms,
            notes: self.notes.clone(),
            configuration: self.configuration.clone(),
            keyspace: self.keyspace.snapshot(),
            assembly: self.assembly.clone(),
            stopped: self.stopped,
        }
    }

    /// The replica whose snapshot this is, all of `content` and nothing else.
    pub fn restore(content: &mut dyn Read) -> Result<ShardMachine, RestoreError> {
        let mut from = BufReader::with_capacity(BUFFER_BYTES, content);
        let machine = read(&mut from)?;
        #[cfg(feature = "bugs")]
        let machine = ShardMachine { restored: true, ..machine };
        if from.read(&mut [0])? != 0 {
            return Err(RestoreError::malformed("it does not end where it should"));
        }
        Ok(machine)
    }
}

impl ShardSnapshot {
    /// Index of the last entry in it; `None` before the first.
    pub fn applied(&self) -> Option<u64> {
        self.applied
    }

    /// Writes the state, in pieces of some 64 KiB or a value. A replica that stopped in the middle of an entry has none.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        if self.stopped {
            return Err(io::Error::other("the replica has stopped in the middle of an entry"));
        }
        let mut head = Vec::new();
        head.extend_from_slice(MAGIC);
        head.push(FORMAT);
        // The lowest that knows all that is in it.
        let level = self.level();
        head.extend_from_slice(&level.to_le_bytes());
        head.push(u8::from(self.applied.is_some()));
        head.extend_from_slice(&self.applied.unwrap_or(0).to_le_bytes());
        head.extend_from_slice(&self.term.to_le_bytes());
        head.extend_from_slice(&self.clock_ms.to_le_bytes());
        argv::put_varint(&mut head, self.notes.len() as u64);
        for note in &self.notes {
            head.extend_from_slice(&note.index.to_le_bytes());
            head.extend_from_slice(&note.checksum.to_le_bytes());
        }
        let Some(configuration) = &self.configuration else {
            argv::put_varint(&mut head, 0);
            out.write_all(&head)?;
            return self.write_assembly(out);
        };
        let json = serde_json::to_vec(configuration).expect("numbers and texts have a JSON form");
        argv::put_varint(&mut head, json.len() as u64);
        head.extend_from_slice(&json);
        out.write_all(&head)?;
        self.keyspace.write(out)?;
        self.write_assembly(out)
    }

    fn level(&self) -> u16 {
        match &self.assembly {
            _ if self.keyspace.has_forms() => FAMILIES_LEVEL,
            Some(_) => CHUNK_LEVEL,
            None => CHECK_LEVEL,
        }
    }

    fn write_assembly(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut head = Vec::new();
        let Some(assembly) = &self.assembly else {
            if self.level() > CHUNK_LEVEL {
                argv::put_varint(&mut head, 0);
            }
            return out.write_all(&head);
        };
        argv::put_varint(&mut head, assembly.total());
        argv::put_varint(&mut head, assembly.len());
        out.write_all(&head)?;
        assembly
            .chunks()
            .flat_map(|chunk| chunk.chunks(BUFFER_BYTES))
            .try_for_each(|piece| out.write_all(piece))
    }

    /// What [`write`](Self::write) writes, at once: two replicas are equal exactly when their dumps are. For tests.
    pub fn dump(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out).expect("a vector takes everything, and only whole states are dumped");
        out
    }
}

fn read<R: BufRead>(from: &mut R) -> Result<ShardMachine, RestoreError> {
    let [m0, m1, m2, format] = array(from)?;
    if [m0, m1, m2] != *MAGIC {
        return Err(RestoreError::malformed("it is none"));
    }
    if format != FORMAT {
        return Err(RestoreError::UnknownFormat(u32::from(format)));
    }
    let level = u16::from_le_bytes(array(from)?);
    if level > FEATURE_LEVEL {
        return Err(RestoreError::NewerFeatureLevel(level));
    }
    let has_applied = match array(from)? {
        [0] => false,
        [1] => true,
        _ => return Err(RestoreError::malformed("neither applied nor not")),
    };
    let index = u64::from_le_bytes(array(from)?);
    let mut machine = ShardMachine {
        applied: has_applied.then_some(index),
        term: u64::from_le_bytes(array(from)?),
        clock_ms: u64::from_le_bytes(array(from)?),
        notes: read_notes(from, index)?,
        ..ShardMachine::new()
    };
    if let Some(configuration) = read_configuration(from)? {
        let settings = Settings { databases: configuration.databases, hash_seed: configuration.hash_seed };
        machine.configuration = Some(configuration);
        machine.keyspace = Keyspace::restore(settings, machine.clock_ms, from)?;
    }
    if level >= CHUNK_LEVEL {
        machine.assembly = read_assembly(from, level)?;
    }
    let blank = (machine.term, machine.clock_ms, index) == (0, 0, 0) && machine.notes.is_empty();
    if !has_applied && (!blank || machine.configuration.is_some() || machine.assembly.is_some()) {
        return Err(RestoreError::malformed("a state before the first entry"));
    }
    Ok(machine)
}

fn read_notes<R: BufRead>(from: &mut R, applied: u64) -> Result<VecDeque<Note>, RestoreError> {
    let count = number(from)?;
    if count > NOTES as u64 {
        return Err(RestoreError::malformed("too many notes"));
    }
    let mut notes = VecDeque::new();
    for _ in 0..count {
        let note =
            Note { index: u64::from_le_bytes(array(from)?), checksum: u64::from_le_bytes(array(from)?) };
        let ascending = notes.back().is_none_or(|last: &Note| last.index < note.index);
        if !ascending || note.index > applied {
            return Err(RestoreError::malformed("a note that is not in order"));
        }
        notes.push_back(note);
    }
    Ok(notes)
}

/// What has come of a large write.
/// At the level of chunks there is one; later levels say so with 0 when there is none.
fn read_assembly<R: BufRead>(from: &mut R, level: u16) -> Result<Option<Assembly>, RestoreError> {
    let total = number(from)?;
    if total == 0 && level > CHUNK_LEVEL {
        return Ok(None);
    }
    let len = number(from)?;
    if total == 0 || total > CHUNKED_BYTES_MAX || len > total {
        return Err(RestoreError::malformed("a command longer than it is"));
    }
    let mut assembly = Assembly::new(total);
    let mut missing = len;
    let mut chunk = Vec::new();
    while missing > 0 {
        let wanted = missing.min(CHUNK_BYTES);
        chunk.clear();
        if from.by_ref().take(wanted).read_to_end(&mut chunk)? as u64 != wanted {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        assembly.push(&chunk);
        missing -= wanted;
    }
    Ok(Some(assembly))
}

fn read_configuration<R: BufRead>(from: &mut R) -> Result<Option<Configure>, RestoreError> {
    let len = number(from)?;
    if len == 0 {
        return Ok(None);
    }
    if len > MAX_CONFIGURATION_BYTES {
        return Err(RestoreError::malformed("a configuration without end"));
    }
    let mut json = Vec::new();
    if from.take(len).read_to_end(&mut json)? as u64 != len {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    let configuration: Configure =
        serde_json::from_slice(&json).map_err(|error| RestoreError::Malformed(error.to_string()))?;
    if configuration.databases == 0 {
        return Err(RestoreError::malformed("no database"));
    }
    Ok(Some(configuration))
}

fn number<R: BufRead>(from: &mut R) -> Result<u64, RestoreError> {
    Ok(kvorum_keyspace::read_number(from)?)
}

fn array<R: BufRead, const N: usize>(from: &mut R) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}
