//! OBJECT: how a value is kept, and when it was last used.

use super::{Argument, Command, Flags, Keys, Run};
use crate::{Args, Error, Outcome, Reader, Record, Sink};

pub(super) static COMMANDS: &[Command] = &[OBJECT];

const OBJECT: Command = Command {
    name: "object",
    arity: -2,
    run: Run::Server,
    group: "generic",
    since: "2.2.3",
    summary: "A container for object introspection commands",
    complexity: "Depends on subcommand.",
    subcommands: &[
        Command {
            name: "object|encoding",
            since: "2.2.3",
            summary: "Inspect the internal encoding of a Redis object",
            run: Run::Read(encoding),
            ..OF_KEY
        },
        Command {
            name: "object|freq",
            since: "4.0.0",
            summary: "Get the logarithmic access frequency counter of a Redis object",
            run: Run::Read(freq),
            ..OF_KEY
        },
        Command {
            name: "object|idletime",
            since: "2.2.3",
            summary: "Get the time since a Redis object was last accessed",
            run: Run::Read(idletime),
            ..OF_KEY
        },
        Command {
            name: "object|refcount",
            since: "2.2.3",
            summary: "Get the number of references to the value of the key",
            run: Run::Read(refcount),
            ..OF_KEY
        },
        Command {
            name: "object|help",
            arity: 2,
            flags: Flags::LOADING.and(Flags::STALE),
            run: Run::Read(help),
            group: "generic",
            since: "6.2.0",
            summary: "Show helpful text about the different subcommands",
            complexity: "O(1)",
            categories: &["@keyspace"],
            ..Command::ROW
        },
    ],
    ..Command::ROW
};

/// What the subcommands on a key have in common.
const OF_KEY: Command = Command {
    arity: 3,
    flags: Flags::READONLY,
    keys: Keys::Range { first: 2, last: 2, step: 1 },
    access: &["RO"],
    group: "generic",
    complexity: "O(1)",
    categories: &["@keyspace"],
    tips: &["nondeterministic_output"],
    arguments: &[Argument::key("key")],
    ..Command::ROW
};

const HELP: &[&str] = &[
    "OBJECT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "ENCODING <key>",
    "    Return the kind of internal representation used in order to store the value",
    "    associated with a <key>.",
    "FREQ <key>",
    "    Return the access frequency index of the <key>. The returned integer is",
    "    proportional to the logarithm of the recent access frequency of the key.",
    "IDLETIME <key>",
    "    Return the idle time of the <key>, that is the approximated number of",
    "    seconds elapsed since the last access to the key.",
    "REFCOUNT <key>",
    "    Return the number of references of the value associated with the specified",
    "    <key>.",
    "HELP",
    "    Prints this help.",
];

fn help(_: &Reader<'_>, _: Args<'_>, out: &mut dyn Sink) -> Outcome {
    out.help(HELP);
    Ok(())
}

fn encoding(reader: &Reader<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    of_key(reader, args, out, |record, out| {
        out.bulk(record.encoding().as_bytes());
        Ok(())
    })
}

fn idletime(reader: &Reader<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    of_key(reader, args, out, |record, out| {
        out.int(record.idle_seconds(reader.now_ms()).into());
        Ok(())
    })
}

/// Redis shares the objects of small integers for ever; everything else has one owner.
fn refcount(reader: &Reader<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    of_key(reader, args, out, |record, out| {
        out.int(record.refcount());
        Ok(())
    })
}

fn freq(reader: &Reader<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    of_key(reader, args, out, |_, _| {
        Err(Error::new(
            "ERR An LFU maxmemory policy is not selected, access frequency not tracked. Please note that when \
             switching between policies at runtime LRU and LFU data will take some time to adjust.",
        ))
    })
}

/// Replies about the record of a key; null when there is none.
fn of_key(
    reader: &Reader<'_>,
    args: Args<'_>,
    out: &mut dyn Sink,
    reply: impl FnOnce(Record<'_>, &mut dyn Sink) -> Outcome,
) -> Outcome {
    match reader.look(args[2]) {
        Some(record) => reply(record, out),
        None => {
            out.null();
            Ok(())
        }
    }
}
