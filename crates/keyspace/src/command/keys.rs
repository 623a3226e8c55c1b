//! Commands on the keyspace as a whole: counting, listing, emptying.

use super::{Argument, Command, Flags, Run, number};
use crate::{Args, Error, Outcome, Reader, Record, Sink, Writer, glob};

pub(super) static COMMANDS: &[Command] = &[DBSIZE, FLUSHALL, FLUSHDB, KEYS, RANDOMKEY, SCAN];

const DBSIZE: Command = Command {
    name: "dbsize",
    arity: 1,
    flags: Flags::READONLY.and(Flags::FAST),
    run: Run::Read(dbsize),
    group: "server",
    since: "1.0.0",
    summary: "Return the number of keys in the selected database",
    complexity: "O(1)",
    categories: &["@keyspace"],
    tips: &["request_policy:all_shards", "response_policy:agg_sum"],
    ..Command::ROW
};

fn dbsize(reader: &Reader<'_>, _: Args<'_>, out: &mut dyn Sink) -> Outcome {
    out.count(reader.len());
    Ok(())
}

const FLUSHALL: Command = Command {
    name: "flushall",
    arity: -1,
    flags: Flags::WRITE,
    run: Run::Write(flushall),
    group: "server",
    since: "1.0.0",
    summary: "Remove all keys from all databases",
    complexity: "O(N) where N is the total number of keys in all databases",
    categories: &["@keyspace", "@dangerous"],
    tips: &["request_policy:all_shards", "response_policy:all_succeeded"],
    history: &[
        ("4.0.0", "Added the `ASYNC` flushing mode modifier."),
        ("6.2.0", "Added the `SYNC` flushing mode modifier."),
    ],
    arguments: &[Argument::one_of(
        "async",
        &[
            Argument::pure_token("async", "ASYNC").since("4.0.0"),
            Argument::pure_token("sync", "SYNC").since("6.2.0"),
        ],
    )
    .optional()],
    ..Command::ROW
};

fn flushall(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    check_flush_mode(args)?;
    writer.flush_all();
    out.ok();
    Ok(())
}

const FLUSHDB: Command = Command {
    name: "flushdb",
    arity: -1,
    flags: Flags::WRITE,
    run: Run::Write(flushdb),
    group: "server",
    since: "1.0.0",
    summary: "Remove all keys from the current database",
    complexity: "O(N) where N is the number of keys in the selected database",
    categories: &["@keyspace", "@dangerous"],
    tips: &["request_policy:all_shards", "response_policy:all_succeeded"],
    history: &[
        ("4.0.0", "Added the `ASYNC` flushing mode modifier."),
        ("6.2.0", "Added the `SYNC` flushing mode modifier."),
    ],
    arguments: &[Argument::one_of(
        "async",
        &[
            Argument::pure_token("async", "ASYNC").since("4.0.0"),
            Argument::pure_token("sync", "SYNC").since("6.2.0"),
        ],
    )
    .optional()],
    ..Command::ROW
};

fn flushdb(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    check_flush_mode(args)?;
    writer.flush();
    out.ok();
    Ok(())
}

/// ASYNC and SYNC are accepted and do the same: letting go of the tables is cheap either way.
fn check_flush_mode(args: Args<'_>) -> Outcome {
    match args {
        [_] => Ok(()),
        [_, mode] if mode.eq_ignore_ascii_case(b"sync") || mode.eq_ignore_ascii_case(b"async") => Ok(()),
        _ => Err(Error::SYNTAX),
    }
}

const KEYS: Command = Command {
    name: "keys",
    arity: 2,
    flags: Flags::READONLY,
    run: Run::Read(keys),
    group: "generic",
    since: "1.0.0",
    summary: "Find all keys matching the given pattern",
    complexity: "O(N) with N being the number of keys in the database, under the assumption that the key names in the database and the given pattern have limited length.",
    categories: &["@keyspace", "@dangerous"],
    tips: &["request_policy:all_shards", "nondeterministic_output_order"],
    arguments: &[Argument::pattern("pattern")],
    ..Command::ROW
};

fn keys(reader: &Reader<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let pattern = args[1];
    let mut found = Found::default();
    let mut from = 0;
    while let Some(slot) = reader.next_slot(from) {
        reader.visit_slot(slot, 0, &mut |_, key, _| {
            if glob::matches(pattern, key, false) {
                found.push(key);
            }
            true
        });
        from = slot.number() + 1;
    }
    found.reply(out);
    Ok(())
}

/// Keys one after the other in one buffer, for the reply tells their number first.
#[derive(Default)]
struct Found {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Found {
    fn push(&mut self, key: &[u8]) {
        self.bytes.extend_from_slice(key);
        self.ends.push(self.bytes.len());
    }

    fn reply(&self, out: &mut dyn Sink) {
        out.array(self.ends.len());
        let mut start = 0;
        for &end in &self.ends {
            out.bulk(&self.bytes[start..end]);
            start = end;
        }
    }
}

const RANDOMKEY: Command = Command {
    name: "randomkey",
    arity: 1,
    flags: Flags::READONLY,
    run: Run::Read(randomkey),
    group: "generic",
    since: "1.0.0",
    summary: "Return a random key from the keyspace",
    complexity: "O(1)",
    categories: &["@keyspace"],
    tips: &["request_policy:all_shards", "nondeterministic_output"],
    ..Command::ROW
};

fn randomkey(reader: &Reader<'_>, _: Args<'_>, out: &mut dyn Sink) -> Outcome {
    match reader.random_key() {
        Some(key) => out.bulk(&key),
        None => out.null(),
    }
    Ok(())
}

const SCAN: Command = Command {
    name: "scan",
    arity: -2,
    flags: Flags::READONLY,
    run: Run::Read(scan),
    group: "generic",
    since: "2.8.0",
    summary: "Incrementally iterate the keys space",
    complexity: "O(1) for every call. O(N) for a complete iteration, including enough command calls for the cursor to return back to 0. N is the number of elements inside the collection.",
    categories: &["@keyspace"],
    tips: &["nondeterministic_output", "request_policy:special"],
    history: &[("6.0.0", "Added the `TYPE` subcommand.")],
    arguments: &[
        Argument::integer("cursor"),
        Argument::pattern("pattern").token("MATCH").optional(),
        Argument::integer("count").token("COUNT").optional(),
        Argument::string("type").token("TYPE").since("6.0.0").optional(),
    ],
    ..Command::ROW
};

fn scan(reader: &Reader<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let cursor = Cursor::parse(args[1])?;
    let options = ScanOptions::parse(&args[2..])?;
    let mut found = Found::default();
    let mut examined = 0usize;
    let mut next = None;
    let mut from = cursor;
    while let Some(slot) = reader.next_slot(from.slot) {
        let first = if slot.number() == from.slot { from.first_hash() } else { 0 };
        // Keys of one prefix go together: the cursor cannot point between them.
        let mut last_prefix = None;
        reader.visit_slot(slot, first, &mut |hash, key, record| {
            let prefix = Cursor::prefix_of(hash);
            if examined >= options.count && last_prefix != Some(prefix) {
                next = Some(Cursor { slot: slot.number(), prefix });
                return false;
            }
            last_prefix = Some(prefix);
            examined += 1;
            if options.accepts(key, record) {
                found.push(key);
            }
            true
        });
        if next.is_some() {
            break;
        }
        from = Cursor { slot: slot.number() + 1, prefix: 0 };
        if examined >= options.count {
            next = reader.next_slot(from.slot).map(|slot| Cursor { slot: slot.number(), prefix: 0 });
            break;
        }
    }
    out.array(2);
    out.bulk(next.map_or(0, Cursor::number).to_string().as_bytes());
    found.reply(out);
    Ok(())
}

/// A position in (slot, hash) order: all keys before it have been returned, all others have not.
///
/// The order depends on nothing but the keys and the cluster's seed, so a cursor stays good while tables grow and
/// after a failover. Its number is the slot and the first 48 bits of the hash: below 2^62, so that clients that
/// read it as a signed number are served too. Zero is the start, and as a reply the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Cursor {
    slot: u16,
    prefix: u64,
}

impl Cursor {
    const PREFIX_BITS: u32 = 48;

    fn prefix_of(hash: u64) -> u64 {
        hash >> (u64::BITS - Cursor::PREFIX_BITS)
    }

    fn first_hash(self) -> u64 {
        self.prefix << (u64::BITS - Cursor::PREFIX_BITS)
    }

    fn number(self) -> u64 {
        u64::from(self.slot) << Cursor::PREFIX_BITS | self.prefix
    }

    /// Reads the number as C's `strtoul` does, which is what Redis accepts. A slot that does not exist is behind
    /// the last key.
    fn parse(text: &[u8]) -> Result<Cursor, Error> {
        const INVALID: Error = Error::new("ERR invalid cursor");
        // It stops at a zero byte and never sees what follows.
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        let (negative, digits) = match text {
            [b'-', digits @ ..] => (true, digits),
            [b'+', digits @ ..] => (false, digits),
            digits => (false, digits),
        };
        if !digits.iter().all(u8::is_ascii_digit) || digits.is_empty() && !text.is_empty() {
            return Err(INVALID);
        }
        let number = digits
            .iter()
            .try_fold(0u64, |number, digit| number.checked_mul(10)?.checked_add(u64::from(digit - b'0')))
            .ok_or(INVALID)?;
        let number = if negative { number.wrapping_neg() } else { number };
        let slot = u16::try_from(number >> Cursor::PREFIX_BITS).unwrap_or(u16::MAX);
        Ok(Cursor { slot, prefix: number & ((1 << Cursor::PREFIX_BITS) - 1) })
    }
}

struct ScanOptions<'a> {
    count: usize,
    pattern: Option<&'a [u8]>,
    kind: Option<&'a [u8]>,
}

impl<'a> ScanOptions<'a> {
    fn parse(options: Args<'a>) -> Result<ScanOptions<'a>, Error> {
        let mut parsed = ScanOptions { count: 10, pattern: None, kind: None };
        for option in options.chunks(2) {
            let [name, value] = option else { return Err(Error::SYNTAX) };
            let is = |option: &str| name.eq_ignore_ascii_case(option.as_bytes());
            if is("count") {
                let count = number::integer(value)?;
                parsed.count = usize::try_from(count).ok().filter(|count| *count > 0).ok_or(Error::SYNTAX)?;
            } else if is("match") {
                parsed.pattern = Some(value).filter(|pattern| **pattern != *b"*").copied();
            } else if is("type") {
                parsed.kind = Some(value);
            } else {
                return Err(Error::SYNTAX);
            }
        }
        Ok(parsed)
    }

    fn accepts(&self, key: &[u8], record: Record<'_>) -> bool {
        self.pattern.is_none_or(|pattern| glob::matches(pattern, key, false))
            && self.kind.is_none_or(|kind| record.value.type_name().as_bytes().eq_ignore_ascii_case(kind))
    }
}
