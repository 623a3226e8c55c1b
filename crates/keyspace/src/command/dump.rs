//! DUMP and RESTORE: values as bytes that Redis understands, and its own.

use super::{Argument, Command, FAMILIES_LEVEL, Flags, Keys, Run, number};
use crate::{
    Args, Error, Outcome, Reader, Sink, Writer,
    value::rdb::{self, DumpError},
};

pub(super) static COMMANDS: &[Command] = &[DUMP, RESTORE, RESTORE_ASKING];

const DUMP: Command = Command {
    name: "dump",
    arity: 2,
    flags: Flags::READONLY,
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["RO", "access"],
    run: Run::Read(dump),
    group: "generic",
    since: "2.6.0",
    summary: "Return a serialized version of the value stored at the specified key.",
    complexity: "O(1) to access the key and additional O(N*M) to serialize it, where N is the number of Redis objects composing the value and M their average size. For small string values the time complexity is thus O(1)+O(1*M) where M is small, so simply O(1).",
    categories: &["@keyspace"],
    tips: &["nondeterministic_output"],
    arguments: &[Argument::key("key")],
    ..Command::ROW
};

fn dump(reader: &Reader<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    match reader.get(args[1]) {
        Some(record) => out.bulk(&rdb::dump(record.value)),
        None => out.null(),
    }
    Ok(())
}

const RESTORE: Command = Command {
    name: "restore",
    group: "generic",
    since: "2.6.0",
    summary: "Create a key using the provided serialized value, previously obtained using DUMP.",
    ..ANY_RESTORE
};

const RESTORE_ASKING: Command = Command {
    name: "restore-asking",
    flags: ANY_RESTORE.flags.and(Flags::ASKING),
    group: "server",
    since: "3.0.0",
    summary: "An internal command for migrating keys in a cluster",
    syscmd: true,
    ..ANY_RESTORE
};

const ANY_RESTORE: Command = Command {
    arity: -4,
    flags: Flags::WRITE.and(Flags::DENYOOM),
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["OW", "update"],
    run: Run::Write(restore),
    level: FAMILIES_LEVEL,
    complexity: "O(1) to create the new key and additional O(N*M) to reconstruct the serialized value, where N is the number of Redis objects composing the value and M their average size. For small string values the time complexity is thus O(1)+O(1*M) where M is small, so simply O(1). However for sorted set values the complexity is O(N*M*log(N)) because inserting values into sorted sets is O(log(N)).",
    categories: &["@keyspace", "@dangerous"],
    history: &[
        ("3.0.0", "Added the `REPLACE` modifier."),
        ("5.0.0", "Added the `ABSTTL` modifier."),
        ("5.0.0", "Added the `IDLETIME` and `FREQ` options."),
    ],
    arguments: &[
        Argument::key("key"),
        Argument::integer("ttl"),
        Argument::string("serialized-value"),
        Argument::pure_token("replace", "REPLACE").since("3.0.0").optional(),
        Argument::pure_token("absttl", "ABSTTL").since("5.0.0").optional(),
        Argument::integer("seconds").token("IDLETIME").since("5.0.0").optional(),
        Argument::integer("frequency").token("FREQ").since("5.0.0").optional(),
    ],
    ..Command::ROW
};

fn restore(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let options = RestoreOptions::parse(&args[4..])?;
    let key = writer.key(args[1]);
    if !options.replace && writer.contains(key) {
        return Err(Error::new("BUSYKEY Target key name already exists."));
    }
    let ttl = number::integer(args[2])?;
    if ttl < 0 {
        return Err(Error::new("ERR Invalid TTL value, must be >= 0"));
    }
    let value = rdb::restore(args[3]).map_err(|error| match error {
        DumpError::Footer => Error::new("ERR DUMP payload version or checksum are wrong"),
        DumpError::Value => Error::new("ERR Bad data format"),
    })?;
    let deadline = match ttl {
        0 => None,
        ttl if options.absolute => Some(ttl),
        // Beyond the end of time lies the past, as in Redis.
        ttl => Some(ttl.wrapping_add_unsigned(writer.now_ms())),
    };
    // A deadline that has passed removes what was there, and nothing takes its place.
    let deadline = deadline.map(|deadline| u64::try_from(deadline).unwrap_or(0));
    writer.put_taken(key, value, deadline);
    if let Some(seconds) = options.idle {
        writer.set_idle(key, seconds);
    }
    out.ok();
    Ok(())
}

#[derive(Default)]
struct RestoreOptions {
    replace: bool,
    absolute: bool,
    /// Seconds since the value was last used.
    idle: Option<u64>,
    /// It is checked; nothing here counts how often a key is used.
    frequency: Option<u8>,
}

impl RestoreOptions {
    fn parse(mut options: Args<'_>) -> Result<RestoreOptions, Error> {
        let mut parsed = RestoreOptions::default();
        while let [option, rest @ ..] = options {
            options = rest;
            match (option.to_ascii_lowercase().as_slice(), rest) {
                (b"replace", _) => parsed.replace = true,
                (b"absttl", _) => parsed.absolute = true,
                (b"idletime", [seconds, rest @ ..]) if parsed.frequency.is_none() => {
                    let seconds = u64::try_from(number::integer(seconds)?)
                        .map_err(|_| Error::new("ERR Invalid IDLETIME value, must be >= 0"))?;
                    parsed.idle = Some(seconds);
                    options = rest;
                }
                (b"freq", [frequency, rest @ ..]) if parsed.idle.is_none() => {
                    let frequency = u8::try_from(number::integer(frequency)?)
                        .map_err(|_| Error::new("ERR Invalid FREQ value, must be >= 0 and <= 255"))?;
                    parsed.frequency = Some(frequency);
                    options = rest;
                }
                _ => return Err(Error::SYNTAX),
            }
        }
        Ok(parsed)
    }
}
