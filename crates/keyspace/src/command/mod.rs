//! The command table. Each family's file holds the commands' functions with their table rows beside them;
//! this chapter has the row's type and the look-up.
//!
//! A row says about its command what Redis 7.0 says (COMMAND INFO and COMMAND DOCS answer from it), and who
//! runs it. Adding a command touches its family's file and its script, nothing else.

mod cluster;
mod compare;
mod connection;
mod debug;
mod dump;
mod expiry;
mod generic;
mod keys;
mod memory;
mod number;
mod object;
mod server;
mod string;
mod substring;
mod transfer;

use crate::{Args, Error, Outcome, Sink};
use std::{fmt, sync::LazyLock};
pub use transfer::refused_in_cluster;

/// The feature level of writes that every version runs.
const BASE_LEVEL: u16 = 1;
/// The feature level of writes that came with the complete families of strings and keys.
const FAMILIES_LEVEL: u16 = 4;

/// One row of the command table (a command, or a subcommand inside its container).
#[derive(Debug)]
pub struct Command {
    /// Name in lower case, as COMMAND shows it (`set`, `client|id` for a subcommand).
    pub name: &'static str,
    /// Number of arguments, the name included; negative means at least that many.
    pub arity: i8,
    /// What the command is allowed to do and when, as in Redis.
    pub flags: Flags,
    /// Where its keys are.
    pub keys: Keys,
    /// What it does with its keys, in the words of Redis's key specifications (`RO`, `access`, …).
    pub access: &'static [&'static str],
    /// The same for given arguments, where these decide (`variable_flags`).
    pub access_with: Option<fn(Args<'_>) -> &'static [&'static str]>,
    /// The same for commands whose keys have a specification each: one list for every key, in order.
    pub access_each: &'static [&'static [&'static str]],
    /// Note of the key specification, empty for none.
    pub key_notes: &'static str,
    /// Who runs it.
    pub run: Run,
    /// For a write: the least feature level of an entry that holds it.
    pub level: u16,
    /// The same for given arguments, where these decide.
    pub level_with: Option<fn(Args<'_>) -> u16>,
    /// Group of COMMAND DOCS (`string`, `generic`, `connection`, `server`, `cluster`).
    pub group: &'static str,
    /// First Redis version that had it.
    pub since: &'static str,
    /// COMMAND DOCS summary.
    pub summary: &'static str,
    /// COMMAND DOCS complexity.
    pub complexity: &'static str,
    /// ACL categories beyond those that follow from the flags.
    pub categories: &'static [&'static str],
    /// Hints to clients and proxies (`request_policy:all_shards`, …).
    pub tips: &'static [&'static str],
    /// COMMAND DOCS: since when it is deprecated and what replaces it.
    pub deprecated: Option<(&'static str, &'static str)>,
    /// COMMAND DOCS: whether it is a command for the system, not for users.
    pub syscmd: bool,
    /// COMMAND DOCS: version and change.
    pub history: &'static [(&'static str, &'static str)],
    /// COMMAND DOCS: the arguments after the name.
    pub arguments: &'static [Argument],
    /// Rows of the subcommands.
    pub subcommands: &'static [Command],
    /// Whether COMMAND keeps silent about the subcommands. Then one error answers to a wrong subcommand and to a
    /// wrong number of arguments: DEBUG.
    pub opaque: bool,
}

/// Positions of a command's keys in its arguments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keys {
    /// No keys: the command never redirects.
    None,
    /// `first`, `first + step`, … up to `last`; `last` counts from the end when negative (-1 is the last argument).
    Range {
        /// Index of the first key.
        first: u8,
        /// Index of the last key, from the end when negative.
        last: i8,
        /// Distance between keys.
        step: u8,
    },
}

/// Who runs a command.
#[derive(Clone, Copy)]
pub enum Run {
    /// Reads the keyspace; on a leader it needs no log entry.
    Read(fn(&crate::Reader<'_>, Args<'_>, &mut dyn Sink) -> Outcome),
    /// May change the keyspace; goes through the log.
    Write(fn(&mut crate::Writer<'_>, Args<'_>, &mut dyn Sink) -> Outcome),
    /// Needs a connection, a server or the cluster; the server crate runs it.
    Server,
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Run::Read(_) => "Read",
            Run::Write(_) => "Write",
            Run::Server => "Server",
        })
    }
}

/// The top-level command of that name, in any case; `None` when there is none.
pub fn lookup(name: &[u8]) -> Option<&'static Command> {
    static INDEX: LazyLock<Index> = LazyLock::new(Index::new);
    INDEX.get(name)
}

/// All top-level commands, in the order of their families.
pub fn all() -> impl Iterator<Item = &'static Command> {
    [
        string::COMMANDS,
        substring::COMMANDS,
        compare::COMMANDS,
        generic::COMMANDS,
        transfer::COMMANDS,
        dump::COMMANDS,
        keys::COMMANDS,
        connection::COMMANDS,
        server::COMMANDS,
        cluster::COMMANDS,
        object::COMMANDS,
        memory::COMMANDS,
        debug::COMMANDS,
    ]
    .into_iter()
    .flatten()
}

impl Command {
    /// What a row leaves out: a server command without flags, keys, history or arguments.
    pub const ROW: Command = Command {
        name: "",
        arity: 0,
        flags: Flags::NONE,
        keys: Keys::None,
        access: &[],
        access_with: None,
        access_each: &[],
        key_notes: "",
        run: Run::Server,
        level: BASE_LEVEL,
        level_with: None,
        group: "",
        since: "",
        summary: "",
        complexity: "",
        categories: &[],
        tips: &[],
        deprecated: None,
        syscmd: false,
        history: &[],
        arguments: &[],
        subcommands: &[],
        opaque: false,
    };

    /// The row that answers these arguments: the subcommand's when this is a container and one is named, else
    /// its own. Fails with Redis's text when the container has no such subcommand.
    pub fn resolve(&'static self, args: Args<'_>) -> Result<&'static Command, Error> {
        match args.get(1) {
            Some(sub) if self.opaque => self
                .subcommand(sub)
                .filter(|row| row.check_arity(args).is_ok())
                .ok_or_else(|| Error::unknown_subcommand_or_arity(self.name, sub)),
            Some(sub) if !self.subcommands.is_empty() => {
                self.subcommand(sub).ok_or_else(|| Error::unknown_subcommand(self.name, sub))
            }
            _ => Ok(self),
        }
    }

    /// The subcommand of that name, in any case.
    pub fn subcommand(&self, name: &[u8]) -> Option<&'static Command> {
        self.subcommands.iter().find(|row| row.subname().as_bytes().eq_ignore_ascii_case(name))
    }

    /// The subcommands that COMMAND shows.
    pub fn shown_subcommands(&self) -> &'static [Command] {
        if self.opaque { &[] } else { self.subcommands }
    }

    /// The name without its container's: `id` of `client|id`.
    pub fn subname(&self) -> &'static str {
        self.name.rsplit('|').next().unwrap_or(self.name)
    }

    /// Whether the number of arguments fits; the error is Redis's.
    pub fn check_arity(&self, args: Args<'_>) -> Result<(), Error> {
        let least = usize::from(self.arity.unsigned_abs());
        let fits = if self.arity < 0 { args.len() >= least } else { args.len() == least };
        if fits { Ok(()) } else { Err(Error::wrong_arity(self.name)) }
    }

    /// Calls `f` with each key, in the order of the arguments. Arguments that are not there are no keys.
    pub fn for_each_key(&self, args: Args<'_>, f: &mut dyn FnMut(&[u8])) {
        for index in self.key_indexes(args.len()) {
            f(args[index]);
        }
    }

    /// Where the keys are in `argc` arguments; each index is below `argc`.
    pub(crate) fn key_indexes(&self, argc: usize) -> impl Iterator<Item = usize> + use<> {
        let (first, end, step) = match self.keys {
            Keys::None => (0, 0, 1),
            Keys::Range { first, last, step } => {
                let back = usize::from(last.unsigned_abs());
                let end = if last < 0 { (argc + 1).saturating_sub(back) } else { (back + 1).min(argc) };
                (usize::from(first), end, usize::from(step.max(1)))
            }
        };
        (first..end).step_by(step)
    }

    /// Whether it goes through the log.
    pub fn is_write(&self) -> bool {
        matches!(self.run, Run::Write(_))
    }

    /// Whether it reads the keyspace and changes nothing.
    pub fn is_read(&self) -> bool {
        matches!(self.run, Run::Read(_))
    }

    /// Whether it may take so long that whoever runs it should let others go on with what waits behind it.
    pub fn is_lengthy(&self) -> bool {
        match self.run {
            Run::Write(_) => self.flags.has(Flags::ADMIN),
            _ => !self.flags.has(Flags::FAST),
        }
    }

    /// All ACL categories in Redis's order, each with its `@`.
    pub fn acl_categories(&self) -> impl Iterator<Item = &'static str> + use<'_> {
        const ORDER: [&str; 21] = [
            "@keyspace",
            "@read",
            "@write",
            "@set",
            "@sortedset",
            "@list",
            "@hash",
            "@string",
            "@bitmap",
            "@hyperloglog",
            "@geo",
            "@stream",
            "@pubsub",
            "@admin",
            "@fast",
            "@slow",
            "@blocking",
            "@dangerous",
            "@connection",
            "@transaction",
            "@scripting",
        ];
        ORDER.into_iter().filter(|category| {
            let flagged = match *category {
                "@write" => self.flags.has(Flags::WRITE),
                "@read" => self.flags.has(Flags::READONLY) && !self.categories.contains(&"@scripting"),
                "@admin" | "@dangerous" => self.flags.has(Flags::ADMIN),
                "@pubsub" => self.flags.has(Flags::PUBSUB),
                "@fast" => self.flags.has(Flags::FAST),
                "@slow" => !self.flags.has(Flags::FAST),
                "@blocking" => self.flags.has(Flags::BLOCKING),
                _ => false,
            };
            flagged || self.categories.contains(category)
        })
    }
}

/// What a command is allowed to do and when: Redis's command flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flags(u32);

impl Flags {
    /// No flag.
    pub const NONE: Flags = Flags(0);
    /// May change data.
    pub const WRITE: Flags = Flags(1);
    /// Reads data and changes none.
    pub const READONLY: Flags = Flags(1 << 1);
    /// May grow memory; refused when it is full.
    pub const DENYOOM: Flags = Flags(1 << 2);
    /// Administration.
    pub const ADMIN: Flags = Flags(1 << 3);
    /// Publish and subscribe.
    pub const PUBSUB: Flags = Flags(1 << 4);
    /// Not from a script.
    pub const NOSCRIPT: Flags = Flags(1 << 5);
    /// May block its client.
    pub const BLOCKING: Flags = Flags(1 << 6);
    /// Allowed while data are being loaded.
    pub const LOADING: Flags = Flags(1 << 7);
    /// Allowed on a replica that has lost its master.
    pub const STALE: Flags = Flags(1 << 8);
    /// Not shown to MONITOR.
    pub const SKIP_MONITOR: Flags = Flags(1 << 9);
    /// Not in the slow log.
    pub const SKIP_SLOWLOG: Flags = Flags(1 << 10);
    /// Implies ASKING.
    pub const ASKING: Flags = Flags(1 << 11);
    /// Constant or logarithmic time.
    pub const FAST: Flags = Flags(1 << 12);
    /// Allowed before authentication.
    pub const NO_AUTH: Flags = Flags(1 << 13);
    /// May run with no key where a key specification has one.
    pub const NO_MANDATORY_KEYS: Flags = Flags(1 << 14);
    /// Not while a replica loads asynchronously.
    pub const NO_ASYNC_LOADING: Flags = Flags(1 << 15);
    /// Not inside MULTI.
    pub const NO_MULTI: Flags = Flags(1 << 16);
    /// Keys are not at fixed positions.
    pub const MOVABLEKEYS: Flags = Flags(1 << 17);
    /// Allowed while a script holds the server.
    pub const ALLOW_BUSY: Flags = Flags(1 << 18);

    /// Both sets of flags together.
    pub const fn and(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }

    /// Whether all of `other` are set.
    pub const fn has(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Names as COMMAND shows them, in Redis's order.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        const NAMES: [(Flags, &str); 19] = [
            (Flags::WRITE, "write"),
            (Flags::READONLY, "readonly"),
            (Flags::DENYOOM, "denyoom"),
            (Flags::ADMIN, "admin"),
            (Flags::PUBSUB, "pubsub"),
            (Flags::NOSCRIPT, "noscript"),
            (Flags::BLOCKING, "blocking"),
            (Flags::LOADING, "loading"),
            (Flags::STALE, "stale"),
            (Flags::SKIP_MONITOR, "skip_monitor"),
            (Flags::SKIP_SLOWLOG, "skip_slowlog"),
            (Flags::ASKING, "asking"),
            (Flags::FAST, "fast"),
            (Flags::NO_AUTH, "no_auth"),
            (Flags::NO_MANDATORY_KEYS, "no_mandatory_keys"),
            (Flags::NO_ASYNC_LOADING, "no_async_loading"),
            (Flags::NO_MULTI, "no_multi"),
            (Flags::MOVABLEKEYS, "movablekeys"),
            (Flags::ALLOW_BUSY, "allow_busy"),
        ];
        NAMES.into_iter().filter(move |(flag, _)| self.has(*flag)).map(|(_, name)| name)
    }
}

/// One argument of COMMAND DOCS.
#[derive(Debug)]
pub struct Argument {
    /// Name.
    pub name: &'static str,
    /// What it is.
    pub kind: ArgumentKind,
    /// The word in front of it, empty for none.
    pub token: &'static str,
    /// First version that had it, empty when as old as the command.
    pub since: &'static str,
    /// Version that deprecated it, empty for none.
    pub deprecated_since: &'static str,
    /// For a key: which of the command's key specifications it belongs to.
    pub key_spec: u8,
    /// Whether it may be left out.
    pub optional: bool,
    /// Whether it may come several times.
    pub multiple: bool,
    /// Whether its token is repeated then, too.
    pub multiple_token: bool,
}

/// What an argument is.
#[derive(Debug)]
pub enum ArgumentKind {
    /// Any bytes.
    String,
    /// A signed 64-bit integer.
    Integer,
    /// A float.
    Double,
    /// A key.
    Key,
    /// A glob pattern.
    Pattern,
    /// Seconds or milliseconds since the epoch.
    UnixTime,
    /// The token alone.
    PureToken,
    /// One of these.
    OneOf(&'static [Argument]),
    /// All of these, in order.
    Block(&'static [Argument]),
}

impl Argument {
    const fn string(name: &'static str) -> Argument {
        Argument::new(name, ArgumentKind::String)
    }

    const fn integer(name: &'static str) -> Argument {
        Argument::new(name, ArgumentKind::Integer)
    }

    const fn key(name: &'static str) -> Argument {
        Argument::new(name, ArgumentKind::Key)
    }

    const fn pattern(name: &'static str) -> Argument {
        Argument::new(name, ArgumentKind::Pattern)
    }

    const fn unix_time(name: &'static str) -> Argument {
        Argument::new(name, ArgumentKind::UnixTime)
    }

    const fn pure_token(name: &'static str, token: &'static str) -> Argument {
        Argument::new(name, ArgumentKind::PureToken).token(token)
    }

    const fn one_of(name: &'static str, parts: &'static [Argument]) -> Argument {
        Argument::new(name, ArgumentKind::OneOf(parts))
    }

    const fn block(name: &'static str, parts: &'static [Argument]) -> Argument {
        Argument::new(name, ArgumentKind::Block(parts))
    }

    const fn double(name: &'static str) -> Argument {
        Argument::new(name, ArgumentKind::Double)
    }

    const fn new(name: &'static str, kind: ArgumentKind) -> Argument {
        Argument {
            name,
            kind,
            token: "",
            since: "",
            deprecated_since: "",
            key_spec: 0,
            optional: false,
            multiple: false,
            multiple_token: false,
        }
    }

    const fn key_spec(mut self, index: u8) -> Argument {
        self.key_spec = index;
        self
    }

    const fn token(mut self, token: &'static str) -> Argument {
        self.token = token;
        self
    }

    const fn since(mut self, version: &'static str) -> Argument {
        self.since = version;
        self
    }

    const fn deprecated_since(mut self, version: &'static str) -> Argument {
        self.deprecated_since = version;
        self
    }

    const fn optional(mut self) -> Argument {
        self.optional = true;
        self
    }

    const fn multiple(mut self) -> Argument {
        self.multiple = true;
        self
    }

    /// Several times, each with its token.
    const fn multiple_token(mut self) -> Argument {
        self.multiple = true;
        self.multiple_token = true;
        self
    }
}

/// Open-addressed index over the names: a look-up runs for every command, a hash and one comparison.
struct Index {
    cells: Box<[Option<&'static Command>]>,
}

impl Index {
    fn new() -> Index {
        let size = (all().count() * 4).next_power_of_two();
        let mut cells = vec![None; size].into_boxed_slice();
        for command in all() {
            let mut at = Index::start(command.name.as_bytes(), size);
            while cells[at].is_some() {
                at = (at + 1) % size;
            }
            cells[at] = Some(command);
        }
        Index { cells }
    }

    fn start(name: &[u8], size: usize) -> usize {
        // FNV-1a over the lower-case name.
        let hash = name.iter().fold(0x811c_9dc5_u32, |hash, b| {
            (hash ^ u32::from(b.to_ascii_lowercase())).wrapping_mul(0x0100_0193)
        });
        hash as usize & (size - 1)
    }

    fn get(&self, name: &[u8]) -> Option<&'static Command> {
        const LONGEST: usize = 32;
        if name.len() > LONGEST {
            return None;
        }
        let mut at = Index::start(name, self.cells.len());
        while let Some(command) = self.cells[at] {
            if command.name.as_bytes().eq_ignore_ascii_case(name) {
                return Some(command);
            }
            at = (at + 1) % self.cells.len();
        }
        None
    }
}
