//! Changes under the condition that a value is this one, or is not: the options of SET, and DELEX, DIGEST and DELIFEQ.
//!
//! Redis 7.0 has none of them. SET's options IFEQ, IFNE, IFDEQ and IFDNE, DELEX and DIGEST are Redis 8.4's; DELIFEQ is
//! Valkey 9's, whose SET has only IFEQ. Where both have something they agree.

use super::{Argument, Command, FAMILIES_LEVEL, Flags, Keys, Run};
use crate::{Args, Error, Outcome, Reader, Record, Sink, Writer};
use twox_hash::XxHash3_64;

pub(super) static COMMANDS: &[Command] = &[DELEX, DELIFEQ, DIGEST];

/// A value, or the digest of one, that a key is compared with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Comparison<'a> {
    with: &'a [u8],
    digest: bool,
    /// The change is wanted when they differ.
    negated: bool,
}

impl<'a> Comparison<'a> {
    pub(super) fn is_option(name: &[u8]) -> bool {
        Comparison::of_option(name, b"").is_some()
    }

    /// The comparison that an option asks for.
    pub(super) fn of_option(name: &[u8], with: &'a [u8]) -> Option<Comparison<'a>> {
        let (digest, negated) = match name.to_ascii_lowercase().as_slice() {
            b"ifeq" => (false, false),
            b"ifne" => (false, true),
            b"ifdeq" => (true, false),
            b"ifdne" => (true, true),
            _ => return None,
        };
        Some(Comparison { with, digest, negated })
    }

    /// Whether the change is wanted. An absent key has no value: it equals nothing and differs from everything.
    pub(super) fn holds(&self, record: Option<&Record<'_>>) -> Result<bool, Error> {
        let Some(record) = record else { return Ok(self.negated) };
        let value = record.value.string()?;
        let equal = if self.digest {
            if self.with.len() != DIGEST_LEN {
                return Err(Error::new("ERR must be exactly 16 hexadecimal characters"));
            }
            digest_of(value).as_bytes().eq_ignore_ascii_case(self.with)
        } else {
            value == self.with
        };
        Ok(equal != self.negated)
    }
}

const DIGEST_LEN: usize = 16;

/// XXH3 with 64 bits, in hexadecimal digits.
fn digest_of(value: &[u8]) -> String {
    format!("{:016x}", XxHash3_64::oneshot(value))
}

const DIGEST: Command = Command {
    name: "digest",
    arity: 2,
    flags: Flags::READONLY.and(Flags::FAST),
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["RO", "access"],
    run: Run::Read(digest),
    group: "string",
    since: "8.4.0",
    summary: "Returns the XXH3 hash of a string value",
    complexity: "O(N) where N is the length of the string value.",
    categories: &["@string"],
    arguments: &[Argument::key("key")],
    ..Command::ROW
};

fn digest(reader: &Reader<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    match reader.get(args[1]) {
        Some(record) => out.bulk(digest_of(record.value.string()?).as_bytes()),
        None => out.null(),
    }
    Ok(())
}

const DELEX: Command = Command {
    name: "delex",
    arity: -2,
    flags: Flags::WRITE.and(Flags::FAST),
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["RW", "delete", "variable_flags"],
    access_with: Some(delex_access),
    run: Run::Write(delex),
    level: FAMILIES_LEVEL,
    group: "string",
    since: "8.4.0",
    summary: "Conditionally removes the specified key based on value or digest comparison.",
    complexity: "O(1) for IFEQ/IFNE, O(N) for IFDEQ/IFDNE where N is the length of the string value.",
    categories: &["@string"],
    arguments: &[
        Argument::key("key"),
        Argument::one_of(
            "condition",
            &[
                Argument::string("ifeq-value").token("IFEQ"),
                Argument::string("ifne-value").token("IFNE"),
                Argument::string("ifdeq-digest").token("IFDEQ"),
                Argument::string("ifdne-digest").token("IFDNE"),
            ],
        )
        .optional(),
    ],
    ..Command::ROW
};

fn delex_access(args: Args<'_>) -> &'static [&'static str] {
    if args.len() > 2 { &["RW", "access", "delete"] } else { &["RM", "delete"] }
}

fn delex(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let key = writer.key(args[1]);
    let removed = match *args {
        [_, _] => writer.remove(key),
        [_, _, option, with] => match writer.get(key) {
            None => false,
            Some(record) => {
                let comparison = Comparison::of_option(option, with)
                    .ok_or(Error::new("ERR Invalid condition. Use IFEQ, IFNE, IFDEQ, or IFDNE"))?;
                comparison.holds(Some(&record))? && writer.remove(key)
            }
        },
        _ => return Err(Error::wrong_arity("delex")),
    };
    out.int(i64::from(removed));
    Ok(())
}

const DELIFEQ: Command = Command {
    name: "delifeq",
    arity: 3,
    flags: Flags::WRITE.and(Flags::FAST),
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["RW", "access", "delete"],
    run: Run::Write(delifeq),
    level: FAMILIES_LEVEL,
    group: "string",
    since: "9.0.0",
    summary: "Delete key if value matches string.",
    complexity: "O(1)",
    categories: &["@string"],
    arguments: &[Argument::key("key"), Argument::string("value")],
    ..Command::ROW
};

fn delifeq(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let key = writer.key(args[1]);
    let equal = match writer.get(key) {
        Some(record) => record.value.string()? == args[2],
        None => false,
    };
    out.int(i64::from(equal && writer.remove(key)));
    Ok(())
}
