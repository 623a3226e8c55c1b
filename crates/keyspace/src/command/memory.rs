//! MEMORY: what a key takes. The container stands here; what is about the process is the server's.

use super::{Argument, Command, Flags, Keys, Run, number};
use crate::{Args, Error, Outcome, Reader, Sink};

pub(super) static COMMANDS: &[Command] = &[MEMORY];

const MEMORY: Command = Command {
    name: "memory",
    arity: -2,
    run: Run::Server,
    group: "server",
    since: "4.0.0",
    summary: "A container for memory diagnostics commands",
    complexity: "Depends on subcommand.",
    subcommands: &[
        Command {
            name: "memory|usage",
            arity: -3,
            flags: Flags::READONLY,
            keys: Keys::Range { first: 2, last: 2, step: 1 },
            access: &["RO"],
            run: Run::Read(usage),
            group: "server",
            since: "4.0.0",
            summary: "Estimate the memory usage of a key",
            complexity: "O(N) where N is the number of samples.",
            arguments: &[Argument::key("key"), Argument::integer("count").token("SAMPLES").optional()],
            ..Command::ROW
        },
        Command {
            name: "memory|purge",
            arity: 2,
            group: "server",
            since: "4.0.0",
            summary: "Ask the allocator to release memory",
            complexity: "Depends on how much memory is allocated, could be slow",
            tips: &["request_policy:all_shards", "response_policy:all_succeeded"],
            ..Command::ROW
        },
        Command {
            name: "memory|doctor",
            arity: 2,
            group: "server",
            since: "4.0.0",
            summary: "Outputs memory problems report",
            complexity: "O(1)",
            tips: &["nondeterministic_output", "request_policy:all_shards", "response_policy:special"],
            ..Command::ROW
        },
        Command {
            name: "memory|malloc-stats",
            arity: 2,
            group: "server",
            since: "4.0.0",
            summary: "Show allocator internal stats",
            complexity: "Depends on how much memory is allocated, could be slow",
            tips: &["nondeterministic_output", "request_policy:all_shards", "response_policy:special"],
            ..Command::ROW
        },
        Command {
            name: "memory|stats",
            arity: 2,
            group: "server",
            since: "4.0.0",
            summary: "Show memory usage details",
            complexity: "O(1)",
            tips: &["nondeterministic_output", "request_policy:all_shards", "response_policy:special"],
            ..Command::ROW
        },
        Command {
            name: "memory|help",
            arity: 2,
            flags: Flags::LOADING.and(Flags::STALE),
            run: Run::Read(help),
            group: "server",
            since: "4.0.0",
            summary: "Show helpful text about the different subcommands",
            complexity: "O(1)",
            ..Command::ROW
        },
    ],
    ..Command::ROW
};

const HELP: &[&str] = &[
    "MEMORY <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "DOCTOR",
    "    Return memory problems reports.",
    "MALLOC-STATS",
    "    Return internal statistics report from the memory allocator.",
    "PURGE",
    "    Attempt to purge dirty pages for reclamation by the allocator.",
    "STATS",
    "    Return information about the memory usage of the server.",
    "USAGE <key> [SAMPLES <count>]",
    "    Return memory in bytes used by <key> and its value. Nested values are",
    "    sampled up to <count> times (default: 5, 0 means sample all).",
    "HELP",
    "    Prints this help.",
];

fn help(_: &Reader<'_>, _: Args<'_>, out: &mut dyn Sink) -> Outcome {
    out.help(HELP);
    Ok(())
}

/// The bytes that the key counts for in the accounting of memory, the same on every replica.
fn usage(reader: &Reader<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let mut options = &args[3..];
    while let [option, rest @ ..] = options {
        let [samples, rest @ ..] = rest else { return Err(Error::SYNTAX) };
        if !option.eq_ignore_ascii_case(b"samples") {
            return Err(Error::SYNTAX);
        }
        // Strings have nothing to sample: the number is only checked.
        if number::integer(samples)? < 0 {
            return Err(Error::SYNTAX);
        }
        options = rest;
    }
    match reader.peek(args[2]) {
        Some(record) => out.int(i64::try_from(record.used_memory(args[2])).unwrap_or(i64::MAX)),
        None => out.null(),
    }
    Ok(())
}
