//! Entries of a shard's log: what the leader proposes and every replica applies.
//! `docs/data-on-disk.md`, "Shard log entries", has the bytes; they are persisted and frozen.
//!
//! Contract: the decoder is strict and total. Any bytes give an entry or an error; none makes it panic or reserve
//! more memory than a small multiple of the bytes' length, and nothing unknown is skipped. There is no checksum here,
//! for the write-ahead log and the transport have theirs.

use crate::{Mode, Shard, ShardId, SlotSet, Topology, hex};
use kvorum_keyspace::{ArgVec, argv};
use serde::{Deserialize, Serialize};

/// What this version of Kvorum can apply. Raised whenever an entry may hold something, or have an effect, that
/// earlier versions do not know.
pub const FEATURE_LEVEL: u16 = 5;

/// What every version can apply: the level of an entry that holds nothing newer. A server that does not know an entry's
/// level stops, so the builder raises the level of those entries only that need it.
pub const BASE_LEVEL: u16 = 1;

/// Since this level there is [`Part::Check`].
pub const CHECK_LEVEL: u16 = 2;

/// Since this level there are [`Part::Chunk`] and [`Part::Assembled`].
pub const CHUNK_LEVEL: u16 = 3;

/// Since this level there are the complete families of commands on strings and keys, and snapshots say what became of a
/// string ([`Form`](kvorum_keyspace::value::Form)).
pub const FAMILIES_LEVEL: u16 = 4;

/// Since this level there are the commands of the meta group by which servers come and go. Entries of shards have nothing of it.
pub const SERVERS_LEVEL: u16 = 5;

/// The largest command that may come in chunks, packed: beyond what a client may send (1 GiB) by what packing adds.
pub const CHUNKED_BYTES_MAX: u64 = (1 << 30) + (64 << 20);

const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 20;
const LEVEL_AT: usize = 2;
const OUT_OF_MEMORY: u8 = 1;

const COMMAND: u8 = 1;
const CONFIGURE: u8 = 2;
const TICK: u8 = 3;
const CHECK: u8 = 4;
const CHUNK: u8 = 5;
const ASSEMBLED: u8 = 6;

/// What the leader decided for the whole entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Lowest [`FEATURE_LEVEL`] that can apply the entry, at least [`BASE_LEVEL`]. The builder raises it to what the
    /// parts need.
    pub feature_level: u16,
    /// The leader's clock, in milliseconds since the epoch. The shard's time is the largest so far.
    pub clock_ms: u64,
    /// Where the randomness of the entry's commands comes from.
    pub seed: u64,
    /// The leader's verdict that memory is full: commands that may grow it are refused.
    pub out_of_memory: bool,
}

/// One part of an entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Part<'a> {
    /// A write.
    Command {
        /// Number of the database.
        db: u16,
        /// Name and arguments.
        argv: ArgVec<'a>,
    },
    /// What the shard is from here on.
    Configure(Configure),
    /// Removes keys that are due.
    Tick {
        /// At most that many.
        limit: u64,
    },
    /// Every replica takes note of its checksum here, so that they can be compared.
    Check,
    /// The next bytes of a write too large for an entry. Chunks of one command may have other entries between them, but
    /// not chunks of another command: those begin anew. They belong to one term: a new leader does not go on with them.
    Chunk {
        /// How much of the command came before; 0 begins a command.
        offset: u64,
        /// Length of the whole command, as [`argv::pack`] packed it; at most [`CHUNKED_BYTES_MAX`].
        total: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// The write whose chunks have come before. If not all of them have, in this term, it is refused.
    Assembled {
        /// Number of the database.
        db: u16,
        /// Length of the whole command.
        total: u64,
    },
}

/// What a shard is, as its own log has it: the only authority on the slots it owns.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configure {
    /// Version of the topology this was taken from. A shard applies only versions higher than its own.
    pub version: u64,
    /// The shard; never changes.
    pub shard: ShardId,
    /// Its Raft group; never changes.
    pub group: u64,
    /// What the cluster looks like; in standalone mode the shard owns all slots. Never changes.
    pub mode: Mode,
    /// Number of databases, at least one; never changes.
    pub databases: u16,
    /// Secret key of the hash that orders keys; never changes.
    #[serde(with = "hex")]
    pub hash_seed: [u8; 16],
    /// The slots it owns.
    pub slots: SlotSet,
}

impl Configure {
    /// What a topology says about one of its shards.
    pub fn of(topology: &Topology, shard: &Shard) -> Configure {
        Configure {
            version: topology.version,
            shard: shard.id,
            group: shard.group,
            mode: topology.mode,
            databases: topology.databases,
            hash_seed: topology.hash_seed,
            slots: shard.slots.clone(),
        }
    }
}

/// Writes an entry part by part.
#[derive(Clone, Debug)]
pub struct EntryBuilder {
    bytes: Vec<u8>,
}

impl EntryBuilder {
    /// An entry without parts: it moves the clock and nothing else.
    pub fn new(header: Header) -> EntryBuilder {
        EntryBuilder::with_capacity(header, 256)
    }

    /// The same, with room for so many bytes.
    pub fn with_capacity(header: Header, bytes: usize) -> EntryBuilder {
        let mut bytes = Vec::with_capacity(bytes);
        bytes.push(FORMAT);
        bytes.push(if header.out_of_memory { OUT_OF_MEMORY } else { 0 });
        bytes.extend_from_slice(&header.feature_level.to_le_bytes());
        bytes.extend_from_slice(&header.clock_ms.to_le_bytes());
        bytes.extend_from_slice(&header.seed.to_le_bytes());
        EntryBuilder { bytes }
    }

    /// Adds one write, as [`argv::pack`] packed it. Its name, arity and database have been checked.
    pub fn command(&mut self, db: u16, packed: &[u8]) -> &mut EntryBuilder {
        debug_assert!(is_one_command(packed), "exactly one packed command");
        self.bytes.push(COMMAND);
        argv::put_varint(&mut self.bytes, u64::from(db));
        self.bytes.extend_from_slice(packed);
        self
    }

    /// The next commands need this level: what [`Command::level`](kvorum_keyspace::Command::level) says of them.
    pub fn needs(&mut self, level: u16) -> &mut EntryBuilder {
        self.raise_level(level);
        self
    }

    /// Adds what the shard is from here on.
    pub fn configure(&mut self, configure: &Configure) -> &mut EntryBuilder {
        let json = serde_json::to_vec(configure).expect("numbers and texts have a JSON form");
        self.bytes.push(CONFIGURE);
        argv::put_varint(&mut self.bytes, json.len() as u64);
        self.bytes.extend_from_slice(&json);
        self
    }

    /// Adds the removal of at most `limit` keys that are due.
    pub fn tick(&mut self, limit: u64) -> &mut EntryBuilder {
        self.bytes.push(TICK);
        argv::put_varint(&mut self.bytes, limit);
        self
    }

    /// Adds a comparison of the replicas. Only when every replica knows [`CHECK_LEVEL`].
    pub fn check(&mut self) -> &mut EntryBuilder {
        self.raise_level(CHECK_LEVEL);
        self.bytes.push(CHECK);
        self
    }

    /// Adds the next bytes of a large write. Only when every replica knows [`CHUNK_LEVEL`].
    pub fn chunk(&mut self, offset: u64, total: u64, bytes: &[u8]) -> &mut EntryBuilder {
        self.raise_level(CHUNK_LEVEL);
        self.bytes.push(CHUNK);
        for number in [offset, total, bytes.len() as u64] {
            argv::put_varint(&mut self.bytes, number);
        }
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Adds the write whose chunks are in the log.
    pub fn assembled(&mut self, db: u16, total: u64) -> &mut EntryBuilder {
        self.raise_level(CHUNK_LEVEL);
        self.bytes.push(ASSEMBLED);
        argv::put_varint(&mut self.bytes, u64::from(db));
        argv::put_varint(&mut self.bytes, total);
        self
    }

    fn raise_level(&mut self, level: u16) {
        let at = &mut self.bytes[LEVEL_AT..LEVEL_AT + 2];
        if u16::from_le_bytes([at[0], at[1]]) < level {
            at.copy_from_slice(&level.to_le_bytes());
        }
    }

    /// Length of the entry so far.
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The entry.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

fn is_one_command(mut packed: &[u8]) -> bool {
    argv::unpack(&mut packed).is_ok() && packed.is_empty()
}

/// An entry as it lies in the log.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// What holds for all its parts.
    pub header: Header,
    bytes: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Reads the header. The parts are read, and found wrong, one by one.
    pub fn decode(bytes: &'a [u8]) -> Result<Entry<'a>, EntryError> {
        // The format comes first: of a later one nothing else is known.
        let (&format, _) = bytes.split_first().ok_or(EntryError::Malformed { offset: 0 })?;
        if format != FORMAT {
            return Err(EntryError::UnknownFormat(format));
        }
        let (header, _) =
            bytes.split_first_chunk::<HEADER_BYTES>().ok_or(EntryError::Malformed { offset: bytes.len() })?;
        let &[_, flags, l0, l1, c0, c1, c2, c3, c4, c5, c6, c7, s0, s1, s2, s3, s4, s5, s6, s7] = header;
        let feature_level = u16::from_le_bytes([l0, l1]);
        if feature_level > FEATURE_LEVEL {
            return Err(EntryError::NewerFeatureLevel(feature_level));
        }
        if feature_level == 0 {
            return Err(EntryError::Malformed { offset: LEVEL_AT });
        }
        if flags & !OUT_OF_MEMORY != 0 {
            return Err(EntryError::Malformed { offset: 1 });
        }
        let header = Header {
            feature_level,
            clock_ms: u64::from_le_bytes([c0, c1, c2, c3, c4, c5, c6, c7]),
            seed: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            out_of_memory: flags & OUT_OF_MEMORY != 0,
        };
        Ok(Entry { header, bytes })
    }

    /// The parts in order; after an error there are none.
    pub fn parts(&self) -> impl Iterator<Item = Result<Part<'a>, EntryError>> + use<'a> {
        let bytes = self.bytes;
        let level = self.header.feature_level;
        let mut rest = &bytes[HEADER_BYTES..];
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let part =
                take_part(&mut rest, level).ok_or(EntryError::Malformed { offset: bytes.len() - rest.len() });
            if part.is_err() {
                rest = &[];
            }
            Some(part)
        })
    }
}

/// Takes one part off the front. On `None` `rest` is where the fault was found.
fn take_part<'a>(rest: &mut &'a [u8], level: u16) -> Option<Part<'a>> {
    let (&kind, after) = rest.split_first()?;
    match kind {
        COMMAND => {
            *rest = after;
            let db = u16::try_from(argv::take_varint(rest).ok()?).ok()?;
            Some(Part::Command { db, argv: argv::unpack(rest).ok()? })
        }
        CONFIGURE => {
            *rest = after;
            let len = usize::try_from(argv::take_varint(rest).ok()?).ok()?;
            let (json, after) = rest.split_at_checked(len)?;
            let configure: Configure = serde_json::from_slice(json).ok()?;
            if configure.databases == 0 {
                return None;
            }
            *rest = after;
            Some(Part::Configure(configure))
        }
        TICK => {
            *rest = after;
            Some(Part::Tick { limit: argv::take_varint(rest).ok()? })
        }
        CHECK if level >= CHECK_LEVEL => {
            *rest = after;
            Some(Part::Check)
        }
        CHUNK if level >= CHUNK_LEVEL => {
            *rest = after;
            let offset = argv::take_varint(rest).ok()?;
            let total = argv::take_varint(rest).ok()?;
            let len = argv::take_varint(rest).ok()?;
            if total > CHUNKED_BYTES_MAX || offset.checked_add(len)? > total {
                return None;
            }
            let (bytes, after) = rest.split_at_checked(usize::try_from(len).ok()?)?;
            *rest = after;
            Some(Part::Chunk { offset, total, bytes })
        }
        ASSEMBLED if level >= CHUNK_LEVEL => {
            *rest = after;
            let db = u16::try_from(argv::take_varint(rest).ok()?).ok()?;
            Some(Part::Assembled { db, total: argv::take_varint(rest).ok()? })
        }
        _ => None,
    }
}

/// Why a replica must stop instead of applying an entry. Another replica might do something else with it, and a
/// wrong replica is worse than a stopped one.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message says it")]
pub enum EntryError {
    #[error("malformed entry, at byte {offset}")]
    Malformed { offset: usize },
    #[error("entry format {0} is not known to this version")]
    UnknownFormat(u8),
    #[error("the entry needs feature level {0}, this version has {FEATURE_LEVEL}")]
    NewerFeatureLevel(u16),
    #[error("entry {got} came when {expected} was due")]
    IndexGap { expected: u64, got: u64 },
    #[error("term {got} came after term {term}")]
    TermWentBack { term: u64, got: u64 },
    #[error("the chunks of a command are no command")]
    NoCommand,
    #[error("command '{0}' is not known to this version")]
    UnknownCommand(String),
    #[error("command '{0}' is no write and does not belong in a log")]
    NotAWrite(String),
    #[error("command '{0}' has a wrong number of arguments")]
    WrongArity(String),
    #[error("database {0} does not exist")]
    UnknownDatabase(u16),
    #[error("version {version} of the configuration changes what never changes")]
    Reconfigured { version: u64 },
    #[error("the replica has stopped at an earlier entry")]
    Stopped,
}
