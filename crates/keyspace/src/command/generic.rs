//! Commands on keys of any type: removing, looking, deadlines.

use super::{Argument, Command, Flags, Keys, Run, expiry::Expiry};
use crate::{Args, Error, Outcome, Reader, Record, Sink, Writer};

pub(super) static COMMANDS: &[Command] = &[
    DEL,
    UNLINK,
    EXISTS,
    TOUCH,
    EXPIRE,
    PEXPIRE,
    EXPIREAT,
    PEXPIREAT,
    TTL,
    PTTL,
    EXPIRETIME,
    PEXPIRETIME,
    PERSIST,
    TYPE,
];

const DEL: Command = Command {
    name: "del",
    arity: -2,
    flags: Flags::WRITE,
    keys: Keys::Range { first: 1, last: -1, step: 1 },
    access: &["RM", "delete"],
    run: Run::Write(del),
    group: "generic",
    since: "1.0.0",
    summary: "Delete a key",
    complexity: "O(N) where N is the number of keys that will be removed. When a key to remove holds a value other than a string, the individual complexity for this key is O(M) where M is the number of elements in the list, set, sorted set or hash. Removing a single key that holds a string value is O(1).",
    categories: &["@keyspace"],
    tips: &["request_policy:multi_shard", "response_policy:agg_sum"],
    arguments: &[Argument::key("key").multiple()],
    ..Command::ROW
};

fn del(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let mut removed = 0;
    for key in &args[1..] {
        let key = writer.key(key);
        removed += i64::from(writer.remove(key));
    }
    out.int(removed);
    Ok(())
}

const UNLINK: Command = Command {
    name: "unlink",
    arity: -2,
    flags: Flags::WRITE.and(Flags::FAST),
    keys: Keys::Range { first: 1, last: -1, step: 1 },
    access: &["RM", "delete"],
    run: Run::Write(unlink),
    group: "generic",
    since: "4.0.0",
    summary: "Delete a key asynchronously in another thread. Otherwise it is just as DEL, but non blocking.",
    complexity: "O(1) for each key removed regardless of its size. Then the command does O(N) work in a different thread in order to reclaim memory, where N is the number of allocations the deleted objects where composed of.",
    categories: &["@keyspace"],
    tips: &["request_policy:multi_shard", "response_policy:agg_sum"],
    arguments: &[Argument::key("key").multiple()],
    ..Command::ROW
};

fn unlink(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    del(writer, args, out)
}

const EXISTS: Command = Command {
    name: "exists",
    arity: -2,
    flags: Flags::READONLY.and(Flags::FAST),
    keys: Keys::Range { first: 1, last: -1, step: 1 },
    access: &["RO"],
    run: Run::Read(exists),
    group: "generic",
    since: "1.0.0",
    summary: "Determine if a key exists",
    complexity: "O(N) where N is the number of keys to check.",
    categories: &["@keyspace"],
    tips: &["request_policy:multi_shard", "response_policy:agg_sum"],
    history: &[("3.0.3", "Accepts multiple `key` arguments.")],
    arguments: &[Argument::key("key").multiple()],
    ..Command::ROW
};

fn exists(reader: &Reader<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let found = args[1..].iter().filter(|key| reader.look(key).is_some()).count();
    out.count(found);
    Ok(())
}

const TOUCH: Command = Command {
    name: "touch",
    arity: -2,
    flags: Flags::READONLY.and(Flags::FAST),
    keys: Keys::Range { first: 1, last: -1, step: 1 },
    access: &["RO"],
    run: Run::Read(touch),
    group: "generic",
    since: "3.2.1",
    summary: "Alters the last access time of a key(s). Returns the number of existing keys specified.",
    complexity: "O(N) where N is the number of keys that will be touched.",
    categories: &["@keyspace"],
    tips: &["request_policy:multi_shard", "response_policy:agg_sum"],
    arguments: &[Argument::key("key").multiple()],
    ..Command::ROW
};

fn touch(reader: &Reader<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let found = args[1..].iter().filter(|key| reader.touch(key).is_some()).count();
    out.count(found);
    Ok(())
}

const EXPIRE: Command = Command {
    name: "expire",
    arity: -3,
    flags: Flags::WRITE.and(Flags::FAST),
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["RW", "update"],
    run: Run::Write(expire),
    group: "generic",
    since: "1.0.0",
    summary: "Set a key's time to live in seconds",
    complexity: "O(1)",
    categories: &["@keyspace"],
    history: &[("7.0.0", "Added options: `NX`, `XX`, `GT` and `LT`.")],
    arguments: &[
        Argument::key("key"),
        Argument::integer("seconds"),
        Argument::one_of(
            "condition",
            &[
                Argument::pure_token("nx", "NX"),
                Argument::pure_token("xx", "XX"),
                Argument::pure_token("gt", "GT"),
                Argument::pure_token("lt", "LT"),
            ],
        )
        .since("7.0.0")
        .optional(),
    ],
    ..Command::ROW
};

fn expire(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    expire_by(writer, args, Expiry::SECONDS, "expire", out)
}

const PEXPIRE: Command = Command {
    name: "pexpire",
    arity: -3,
    flags: Flags::WRITE.and(Flags::FAST),
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["RW", "update"],
    run: Run::Write(pexpire),
    group: "generic",
    since: "2.6.0",
    summary: "Set a key's time to live in milliseconds",
    complexity: "O(1)",
    categories: &["@keyspace"],
    history: &[("7.0.0", "Added options: `NX`, `XX`, `GT` and `LT`.")],
    arguments: &[
        Argument::key("key"),
        Argument::integer("milliseconds"),
        Argument::one_of(
            "condition",
            &[
                Argument::pure_token("nx", "NX"),
                Argument::pure_token("xx", "XX"),
                Argument::pure_token("gt", "GT"),
                Argument::pure_token("lt", "LT"),
            ],
        )
        .since("7.0.0")
        .optional(),
    ],
    ..Command::ROW
};

fn pexpire(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    expire_by(writer, args, Expiry::MILLISECONDS, "pexpire", out)
}

const EXPIREAT: Command = Command {
    name: "expireat",
    arity: -3,
    flags: Flags::WRITE.and(Flags::FAST),
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["RW", "update"],
    run: Run::Write(expireat),
    group: "generic",
    since: "1.2.0",
    summary: "Set the expiration for a key as a UNIX timestamp",
    complexity: "O(1)",
    categories: &["@keyspace"],
    history: &[("7.0.0", "Added options: `NX`, `XX`, `GT` and `LT`.")],
    arguments: &[
        Argument::key("key"),
        Argument::unix_time("unix-time-seconds"),
        Argument::one_of(
            "condition",
            &[
                Argument::pure_token("nx", "NX"),
                Argument::pure_token("xx", "XX"),
                Argument::pure_token("gt", "GT"),
                Argument::pure_token("lt", "LT"),
            ],
        )
        .since("7.0.0")
        .optional(),
    ],
    ..Command::ROW
};

fn expireat(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    expire_by(writer, args, Expiry::AT_SECONDS, "expireat", out)
}

const PEXPIREAT: Command = Command {
    name: "pexpireat",
    arity: -3,
    flags: Flags::WRITE.and(Flags::FAST),
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["RW", "update"],
    run: Run::Write(pexpireat),
    group: "generic",
    since: "2.6.0",
    summary: "Set the expiration for a key as a UNIX timestamp specified in milliseconds",
    complexity: "O(1)",
    categories: &["@keyspace"],
    history: &[("7.0.0", "Added options: `NX`, `XX`, `GT` and `LT`.")],
    arguments: &[
        Argument::key("key"),
        Argument::unix_time("unix-time-milliseconds"),
        Argument::one_of(
            "condition",
            &[
                Argument::pure_token("nx", "NX"),
                Argument::pure_token("xx", "XX"),
                Argument::pure_token("gt", "GT"),
                Argument::pure_token("lt", "LT"),
            ],
        )
        .since("7.0.0")
        .optional(),
    ],
    ..Command::ROW
};

fn pexpireat(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    expire_by(writer, args, Expiry::AT_MILLISECONDS, "pexpireat", out)
}

fn expire_by(
    writer: &mut Writer<'_>,
    args: Args<'_>,
    expiry: Expiry,
    command: &str,
    out: &mut dyn Sink,
) -> Outcome {
    let conditions = ExpireConditions::parse(&args[3..])?;
    let deadline = expiry.deadline(args[2], writer.now_ms(), command)?;
    let key = writer.key(args[1]);
    let set = match writer.get(key) {
        Some(record) => conditions.allow(record.deadline_ms, deadline),
        None => false,
    };
    if set {
        // A time before the epoch has passed like any other.
        writer.set_deadline(key, Some(u64::try_from(deadline).unwrap_or(0)));
    }
    out.int(i64::from(set));
    Ok(())
}

/// Options of EXPIRE and its kin.
#[derive(Default)]
struct ExpireConditions {
    nx: bool,
    xx: bool,
    gt: bool,
    lt: bool,
}

impl ExpireConditions {
    fn parse(options: Args<'_>) -> Result<ExpireConditions, Error> {
        let mut conditions = ExpireConditions::default();
        for option in options {
            let field = match option.to_ascii_lowercase().as_slice() {
                b"nx" => &mut conditions.nx,
                b"xx" => &mut conditions.xx,
                b"gt" => &mut conditions.gt,
                b"lt" => &mut conditions.lt,
                _ => return Err(Error::quoting("ERR Unsupported option ", option, "")),
            };
            *field = true;
        }
        let ExpireConditions { nx, xx, gt, lt } = conditions;
        if nx && (xx || gt || lt) {
            return Err(Error::new("ERR NX and XX, GT or LT options at the same time are not compatible"));
        }
        if gt && lt {
            return Err(Error::new("ERR GT and LT options at the same time are not compatible"));
        }
        Ok(conditions)
    }

    /// No deadline counts as infinitely late.
    fn allow(&self, old: Option<u64>, new: i64) -> bool {
        let later = |old: u64| i128::from(new) > i128::from(old);
        let earlier = |old: u64| i128::from(new) < i128::from(old);
        !(self.nx && old.is_some()
            || self.xx && old.is_none()
            || self.gt && !old.is_some_and(later)
            || self.lt && !old.is_none_or(earlier))
    }
}

const TTL: Command = Command {
    name: "ttl",
    arity: 2,
    flags: Flags::READONLY.and(Flags::FAST),
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["RO", "access"],
    run: Run::Read(ttl),
    group: "generic",
    since: "1.0.0",
    summary: "Get the time to live for a key in seconds",
    complexity: "O(1)",
    categories: &["@keyspace"],
    tips: &["nondeterministic_output"],
    history: &[("2.8.0", "Added the -2 reply.")],
    arguments: &[Argument::key("key")],
    ..Command::ROW
};

fn ttl(reader: &Reader<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    out.int(time_of(reader, args[1], |deadline| (deadline.saturating_sub(reader.now_ms()) + 500) / 1000));
    Ok(())
}

const PTTL: Command = Command {
    name: "pttl",
    arity: 2,
    flags: Flags::READONLY.and(Flags::FAST),
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["RO", "access"],
    run: Run::Read(pttl),
    group: "generic",
    since: "2.6.0",
    summary: "Get the time to live for a key in milliseconds",
    complexity: "O(1)",
    categories: &["@keyspace"],
    tips: &["nondeterministic_output"],
    history: &[("2.8.0", "Added the -2 reply.")],
    arguments: &[Argument::key("key")],
    ..Command::ROW
};

fn pttl(reader: &Reader<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    out.int(time_of(reader, args[1], |deadline| deadline.saturating_sub(reader.now_ms())));
    Ok(())
}

const EXPIRETIME: Command = Command {
    name: "expiretime",
    arity: 2,
    flags: Flags::READONLY.and(Flags::FAST),
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["RO", "access"],
    run: Run::Read(expiretime),
    group: "generic",
    since: "7.0.0",
    summary: "Get the expiration Unix timestamp for a key",
    complexity: "O(1)",
    categories: &["@keyspace"],
    arguments: &[Argument::key("key")],
    ..Command::ROW
};

fn expiretime(reader: &Reader<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    out.int(time_of(reader, args[1], |deadline| (deadline + 500) / 1000));
    Ok(())
}

const PEXPIRETIME: Command = Command {
    name: "pexpiretime",
    arity: 2,
    flags: Flags::READONLY.and(Flags::FAST),
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["RO", "access"],
    run: Run::Read(pexpiretime),
    group: "generic",
    since: "7.0.0",
    summary: "Get the expiration Unix timestamp for a key in milliseconds",
    complexity: "O(1)",
    categories: &["@keyspace"],
    arguments: &[Argument::key("key")],
    ..Command::ROW
};

fn pexpiretime(reader: &Reader<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    out.int(time_of(reader, args[1], |deadline| deadline));
    Ok(())
}

/// What `shown` makes of a key's deadline; -1 for a key without one, -2 for no key.
fn time_of(reader: &Reader<'_>, key: &[u8], shown: impl Fn(u64) -> u64) -> i64 {
    match reader.look(key) {
        None => -2,
        Some(Record { deadline_ms: None, .. }) => -1,
        Some(Record { deadline_ms: Some(deadline), .. }) => {
            i64::try_from(shown(deadline)).unwrap_or(i64::MAX)
        }
    }
}

const PERSIST: Command = Command {
    name: "persist",
    arity: 2,
    flags: Flags::WRITE.and(Flags::FAST),
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["RW", "update"],
    run: Run::Write(persist),
    group: "generic",
    since: "2.2.0",
    summary: "Remove the expiration from a key",
    complexity: "O(1)",
    categories: &["@keyspace"],
    arguments: &[Argument::key("key")],
    ..Command::ROW
};

fn persist(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let key = writer.key(args[1]);
    let expiring = writer.get(key).is_some_and(|record| record.deadline_ms.is_some());
    if expiring {
        writer.set_deadline(key, None);
    }
    out.int(i64::from(expiring));
    Ok(())
}

const TYPE: Command = Command {
    name: "type",
    arity: 2,
    flags: Flags::READONLY.and(Flags::FAST),
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["RO"],
    run: Run::Read(type_of),
    group: "generic",
    since: "1.0.0",
    summary: "Determine the type stored at key",
    complexity: "O(1)",
    categories: &["@keyspace"],
    arguments: &[Argument::key("key")],
    ..Command::ROW
};

fn type_of(reader: &Reader<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    out.simple(reader.look(args[1]).map_or("none", |record| record.value.type_name()));
    Ok(())
}
