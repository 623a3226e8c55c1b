//! Strings.

use super::{
    Argument, BASE_LEVEL, Command, FAMILIES_LEVEL, Flags, Keys, Run, compare::Comparison, expiry::Expiry,
    number,
};
use crate::{
    Args, Error, Outcome, Reader, Record, Sink, Writer,
    value::{LongDouble, MAX_STRING_BYTES, ValueRef},
};

pub(super) static COMMANDS: &[Command] = &[
    GET,
    SET,
    SETNX,
    SETEX,
    PSETEX,
    GETSET,
    GETDEL,
    GETEX,
    APPEND,
    STRLEN,
    INCR,
    INCRBY,
    DECR,
    DECRBY,
    INCRBYFLOAT,
    MGET,
    MSET,
    MSETNX,
];

const GET: Command = Command {
    name: "get",
    arity: 2,
    flags: Flags::READONLY.and(Flags::FAST),
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["RO", "access"],
    run: Run::Read(get),
    group: "string",
    since: "1.0.0",
    summary: "Get the value of a key",
    complexity: "O(1)",
    categories: &["@string"],
    arguments: &[Argument::key("key")],
    ..Command::ROW
};

fn get(reader: &Reader<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    match reader.get(args[1]) {
        Some(record) => out.bulk(record.value.string()?),
        None => out.null(),
    }
    Ok(())
}

const SET: Command = Command {
    name: "set",
    arity: -3,
    flags: Flags::WRITE.and(Flags::DENYOOM),
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["RW", "access", "update", "variable_flags"],
    access_with: Some(set_access),
    key_notes: "RW and ACCESS due to the optional `GET` argument",
    run: Run::Write(set),
    level_with: Some(set_level),
    group: "string",
    since: "1.0.0",
    summary: "Set the string value of a key",
    complexity: "O(1)",
    categories: &["@string"],
    history: &[
        ("2.6.12", "Added the `EX`, `PX`, `NX` and `XX` options."),
        ("6.0.0", "Added the `KEEPTTL` option."),
        ("6.2.0", "Added the `GET`, `EXAT` and `PXAT` option."),
        ("7.0.0", "Allowed the `NX` and `GET` options to be used together."),
    ],
    arguments: &[
        Argument::key("key"),
        Argument::string("value"),
        Argument::one_of("condition", &[Argument::pure_token("nx", "NX"), Argument::pure_token("xx", "XX")])
            .since("2.6.12")
            .optional(),
        Argument::pure_token("get", "GET").since("6.2.0").optional(),
        Argument::one_of(
            "expiration",
            &[
                Argument::integer("seconds").token("EX").since("2.6.12"),
                Argument::integer("milliseconds").token("PX").since("2.6.12"),
                Argument::unix_time("unix-time-seconds").token("EXAT").since("6.2.0"),
                Argument::unix_time("unix-time-milliseconds").token("PXAT").since("6.2.0"),
                Argument::pure_token("keepttl", "KEEPTTL").since("6.0.0"),
            ],
        )
        .optional(),
    ],
    ..Command::ROW
};

fn set(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let options = SetOptions::parse(&args[3..], Extended::Set)?;
    let deadline = options.deadline(writer.now_ms(), "set")?;
    let key = writer.key(args[1]);
    let (store, kept) = if options.get || options.condition.is_some() || options.keep_ttl {
        let record = if options.get { writer.read(key) } else { writer.get(key) };
        let store = match options.condition {
            None => true,
            Some(Condition::Absent) => record.is_none(),
            Some(Condition::Present) => record.is_some(),
            Some(Condition::Value(comparison)) => comparison.holds(record.as_ref())?,
        };
        if options.get {
            reply_string(record, out)?;
        }
        (store, record.and_then(|record| record.deadline_ms))
    } else {
        (true, None)
    };
    if store {
        writer.put(key, ValueRef::String(args[2]), if options.keep_ttl { kept } else { deadline });
    }
    match (options.get, store) {
        (true, _) => {}
        (false, true) => out.ok(),
        (false, false) => out.null(),
    }
    Ok(())
}

/// SET reads its key only with the option GET, or to compare its value.
fn set_access(args: Args<'_>) -> &'static [&'static str] {
    let reads = |option: &&[u8]| option.eq_ignore_ascii_case(b"get") || Comparison::is_option(option);
    if args.iter().skip(3).any(reads) { &["RW", "access", "update"] } else { &["OW", "update"] }
}

/// Comparisons are newer than the rest of SET.
fn set_level(args: Args<'_>) -> u16 {
    if args.iter().skip(3).any(|option| Comparison::is_option(option)) { FAMILIES_LEVEL } else { BASE_LEVEL }
}

/// The two commands that share the options of an expiry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extended {
    Set,
    GetEx,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Condition<'a> {
    Absent,
    Present,
    Value(Comparison<'a>),
}

#[derive(Default)]
struct SetOptions<'a> {
    condition: Option<Condition<'a>>,
    get: bool,
    keep_ttl: bool,
    persist: bool,
    expiry: Option<(Expiry, &'a [u8])>,
}

impl<'a> SetOptions<'a> {
    /// Reads the options after the key (GETEX) or the value (SET). The time itself is checked later, as in Redis.
    fn parse(mut options: Args<'a>, of: Extended) -> Result<SetOptions<'a>, Error> {
        let mut parsed = SetOptions::default();
        while let [option, rest @ ..] = options {
            options = rest;
            let is = |name: &str| option.eq_ignore_ascii_case(name.as_bytes());
            let set = of == Extended::Set;
            if set && is("nx") && matches!(parsed.condition, None | Some(Condition::Absent)) {
                parsed.condition = Some(Condition::Absent);
            } else if set && is("xx") && matches!(parsed.condition, None | Some(Condition::Present)) {
                parsed.condition = Some(Condition::Present);
            } else if set && Comparison::is_option(option) && parsed.condition.is_none() {
                let [with, rest @ ..] = options else { return Err(Error::SYNTAX) };
                parsed.condition = Comparison::of_option(option, with).map(Condition::Value);
                options = rest;
            } else if set && is("get") {
                parsed.get = true;
            } else if set && is("keepttl") && parsed.expiry.is_none() {
                parsed.keep_ttl = true;
            } else if !set && is("persist") && parsed.expiry.is_none() {
                parsed.persist = true;
            } else {
                let expiry = Expiry::of_option(option).ok_or(Error::SYNTAX)?;
                let clash =
                    parsed.keep_ttl || parsed.persist || parsed.expiry.is_some_and(|(set, _)| set != expiry);
                let [time, rest @ ..] = options else { return Err(Error::SYNTAX) };
                if clash {
                    return Err(Error::SYNTAX);
                }
                parsed.expiry = Some((expiry, time));
                options = rest;
            }
        }
        Ok(parsed)
    }

    fn deadline(&self, now_ms: u64, command: &str) -> Result<Option<u64>, Error> {
        self.expiry.map(|(expiry, time)| expiry.positive_deadline(time, now_ms, command)).transpose()
    }
}

const SETNX: Command = Command {
    name: "setnx",
    arity: 3,
    flags: Flags::WRITE.and(Flags::DENYOOM).and(Flags::FAST),
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["OW", "insert"],
    run: Run::Write(setnx),
    group: "string",
    since: "1.0.0",
    summary: "Set the value of a key, only if the key does not exist",
    complexity: "O(1)",
    categories: &["@string"],
    arguments: &[Argument::key("key"), Argument::string("value")],
    ..Command::ROW
};

fn setnx(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let key = writer.key(args[1]);
    let store = !writer.contains(key);
    if store {
        writer.put(key, ValueRef::String(args[2]), None);
    }
    out.int(i64::from(store));
    Ok(())
}

const SETEX: Command = Command {
    name: "setex",
    arity: 4,
    flags: Flags::WRITE.and(Flags::DENYOOM),
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["OW", "update"],
    run: Run::Write(setex),
    group: "string",
    since: "2.0.0",
    summary: "Set the value and expiration of a key",
    complexity: "O(1)",
    categories: &["@string"],
    arguments: &[Argument::key("key"), Argument::integer("seconds"), Argument::string("value")],
    ..Command::ROW
};

fn setex(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    set_expiring(writer, args, Expiry::SECONDS, "setex", out)
}

const PSETEX: Command = Command {
    name: "psetex",
    arity: 4,
    flags: Flags::WRITE.and(Flags::DENYOOM),
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["OW", "update"],
    run: Run::Write(psetex),
    group: "string",
    since: "2.6.0",
    summary: "Set the value and expiration in milliseconds of a key",
    complexity: "O(1)",
    categories: &["@string"],
    arguments: &[Argument::key("key"), Argument::integer("milliseconds"), Argument::string("value")],
    ..Command::ROW
};

fn psetex(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    set_expiring(writer, args, Expiry::MILLISECONDS, "psetex", out)
}

fn set_expiring(
    writer: &mut Writer<'_>,
    args: Args<'_>,
    expiry: Expiry,
    command: &str,
    out: &mut dyn Sink,
) -> Outcome {
    let deadline = expiry.positive_deadline(args[2], writer.now_ms(), command)?;
    let key = writer.key(args[1]);
    writer.put(key, ValueRef::String(args[3]), Some(deadline));
    out.ok();
    Ok(())
}

const GETSET: Command = Command {
    name: "getset",
    arity: 3,
    flags: Flags::WRITE.and(Flags::DENYOOM).and(Flags::FAST),
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["RW", "access", "update"],
    run: Run::Write(getset),
    group: "string",
    since: "1.0.0",
    summary: "Set the string value of a key and return its old value",
    complexity: "O(1)",
    categories: &["@string"],
    deprecated: Some(("6.2.0", "`SET` with the `!GET` argument")),
    arguments: &[Argument::key("key"), Argument::string("value")],
    ..Command::ROW
};

fn getset(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let key = writer.key(args[1]);
    reply_string(writer.read(key), out)?;
    writer.put(key, ValueRef::String(args[2]), None);
    Ok(())
}

const GETDEL: Command = Command {
    name: "getdel",
    arity: 2,
    flags: Flags::WRITE.and(Flags::FAST),
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["RW", "access", "delete"],
    run: Run::Write(getdel),
    group: "string",
    since: "6.2.0",
    summary: "Get the value of a key and delete the key",
    complexity: "O(1)",
    categories: &["@string"],
    arguments: &[Argument::key("key")],
    ..Command::ROW
};

fn getdel(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let key = writer.key(args[1]);
    reply_string(writer.read(key), out)?;
    writer.remove(key);
    Ok(())
}

fn reply_string(record: Option<Record<'_>>, out: &mut dyn Sink) -> Outcome {
    match record {
        Some(record) => out.bulk(record.value.string()?),
        None => out.null(),
    }
    Ok(())
}

const GETEX: Command = Command {
    name: "getex",
    arity: -2,
    flags: Flags::WRITE.and(Flags::FAST),
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["RW", "access", "update"],
    key_notes: "RW and UPDATE because it changes the TTL",
    run: Run::Write(getex),
    group: "string",
    since: "6.2.0",
    summary: "Get the value of a key and optionally set its expiration",
    complexity: "O(1)",
    categories: &["@string"],
    arguments: &[
        Argument::key("key"),
        Argument::one_of(
            "expiration",
            &[
                Argument::integer("seconds").token("EX"),
                Argument::integer("milliseconds").token("PX"),
                Argument::unix_time("unix-time-seconds").token("EXAT"),
                Argument::unix_time("unix-time-milliseconds").token("PXAT"),
                Argument::pure_token("persist", "PERSIST"),
            ],
        )
        .optional(),
    ],
    ..Command::ROW
};

fn getex(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let options = SetOptions::parse(&args[2..], Extended::GetEx)?;
    let now_ms = writer.now_ms();
    let key = writer.key(args[1]);
    let Some(record) = writer.read(key) else {
        out.null();
        return Ok(());
    };
    let value = record.value.string()?;
    let deadline = options.deadline(now_ms, "getex")?;
    out.bulk(value);
    if deadline.is_some() || options.persist && record.deadline_ms.is_some() {
        writer.set_deadline(key, deadline);
    }
    Ok(())
}

const APPEND: Command = Command {
    name: "append",
    arity: 3,
    flags: Flags::WRITE.and(Flags::DENYOOM).and(Flags::FAST),
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["RW", "insert"],
    run: Run::Write(append),
    group: "string",
    since: "2.0.0",
    summary: "Append a value to a key",
    complexity: "O(1). The amortized time complexity is O(1) assuming the appended value is small and the already present value is of any size, since the dynamic string library used by Redis will double the free space available on every reallocation.",
    categories: &["@string"],
    arguments: &[Argument::key("key"), Argument::string("value")],
    ..Command::ROW
};

fn append(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let key = writer.key(args[1]);
    let (len, exists) = match writer.get(key) {
        Some(record) => (record.value.string()?.len(), true),
        None => (0, false),
    };
    let len = len + args[2].len();
    if exists && len > MAX_STRING_BYTES {
        return Err(STRING_TOO_LONG);
    }
    writer.append(key, args[2]);
    out.count(len);
    Ok(())
}

pub(super) const STRING_TOO_LONG: Error =
    Error::new("ERR string exceeds maximum allowed size (proto-max-bulk-len)");

const STRLEN: Command = Command {
    name: "strlen",
    arity: 2,
    flags: Flags::READONLY.and(Flags::FAST),
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["RO"],
    run: Run::Read(strlen),
    group: "string",
    since: "2.2.0",
    summary: "Get the length of the value stored in a key",
    complexity: "O(1)",
    categories: &["@string"],
    arguments: &[Argument::key("key")],
    ..Command::ROW
};

fn strlen(reader: &Reader<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let len = match reader.get(args[1]) {
        Some(record) => record.value.string()?.len(),
        None => 0,
    };
    out.count(len);
    Ok(())
}

const INCR: Command = Command {
    name: "incr",
    arity: 2,
    flags: Flags::WRITE.and(Flags::DENYOOM).and(Flags::FAST),
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["RW", "access", "update"],
    run: Run::Write(incr),
    group: "string",
    since: "1.0.0",
    summary: "Increment the integer value of a key by one",
    complexity: "O(1)",
    categories: &["@string"],
    arguments: &[Argument::key("key")],
    ..Command::ROW
};

fn incr(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    add(writer, args[1], 1, out)
}

const INCRBY: Command = Command {
    name: "incrby",
    arity: 3,
    flags: Flags::WRITE.and(Flags::DENYOOM).and(Flags::FAST),
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["RW", "access", "update"],
    run: Run::Write(incrby),
    group: "string",
    since: "1.0.0",
    summary: "Increment the integer value of a key by the given amount",
    complexity: "O(1)",
    categories: &["@string"],
    arguments: &[Argument::key("key"), Argument::integer("increment")],
    ..Command::ROW
};

fn incrby(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let by = number::integer(args[2])?;
    add(writer, args[1], by, out)
}

const DECR: Command = Command {
    name: "decr",
    arity: 2,
    flags: Flags::WRITE.and(Flags::DENYOOM).and(Flags::FAST),
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["RW", "access", "update"],
    run: Run::Write(decr),
    group: "string",
    since: "1.0.0",
    summary: "Decrement the integer value of a key by one",
    complexity: "O(1)",
    categories: &["@string"],
    arguments: &[Argument::key("key")],
    ..Command::ROW
};

fn decr(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    add(writer, args[1], -1, out)
}

const DECRBY: Command = Command {
    name: "decrby",
    arity: 3,
    flags: Flags::WRITE.and(Flags::DENYOOM).and(Flags::FAST),
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["RW", "access", "update"],
    run: Run::Write(decrby),
    group: "string",
    since: "1.0.0",
    summary: "Decrement the integer value of a key by the given number",
    complexity: "O(1)",
    categories: &["@string"],
    arguments: &[Argument::key("key"), Argument::integer("decrement")],
    ..Command::ROW
};

fn decrby(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let by = number::integer(args[2])?.checked_neg().ok_or(Error::new("ERR decrement would overflow"))?;
    add(writer, args[1], by, out)
}

fn add(writer: &mut Writer<'_>, key: &[u8], by: i64, out: &mut dyn Sink) -> Outcome {
    let key = writer.key(key);
    let (old, deadline) = match writer.get(key) {
        Some(record) => (number::integer(record.value.string()?)?, record.deadline_ms),
        None => (0, None),
    };
    let new = old.checked_add(by).ok_or(Error::OVERFLOW)?;
    number::with_decimal(new, |text| writer.put(key, ValueRef::String(text), deadline));
    out.int(new);
    Ok(())
}

const INCRBYFLOAT: Command = Command {
    name: "incrbyfloat",
    arity: 3,
    flags: Flags::WRITE.and(Flags::DENYOOM).and(Flags::FAST),
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["RW", "access", "update"],
    run: Run::Write(incrbyfloat),
    level: FAMILIES_LEVEL,
    group: "string",
    since: "2.6.0",
    summary: "Increment the float value of a key by the given amount",
    complexity: "O(1)",
    categories: &["@string"],
    arguments: &[Argument::key("key"), Argument::double("increment")],
    ..Command::ROW
};

fn incrbyfloat(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let float = |text: &[u8]| LongDouble::parse(text).ok_or(Error::NOT_A_FLOAT);
    let key = writer.key(args[1]);
    let (old, deadline) = match writer.get(key) {
        Some(record) => (float(record.value.string()?)?, record.deadline_ms),
        None => (LongDouble::ZERO, None),
    };
    let new = old.add(float(args[2])?);
    let text = new.decimal().ok_or(Error::new("ERR increment would produce NaN or Infinity"))?;
    writer.put_text(key, text.as_bytes(), deadline);
    out.bulk(text.as_bytes());
    Ok(())
}

const MGET: Command = Command {
    name: "mget",
    arity: -2,
    flags: Flags::READONLY.and(Flags::FAST),
    keys: Keys::Range { first: 1, last: -1, step: 1 },
    access: &["RO", "access"],
    run: Run::Read(mget),
    group: "string",
    since: "1.0.0",
    summary: "Get the values of all the given keys",
    complexity: "O(N) where N is the number of keys to retrieve.",
    categories: &["@string"],
    tips: &["request_policy:multi_shard"],
    arguments: &[Argument::key("key").multiple()],
    ..Command::ROW
};

fn mget(reader: &Reader<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    out.array(args.len() - 1);
    for key in &args[1..] {
        match reader.get(key).map(|record| record.value.string()) {
            Some(Ok(value)) => out.bulk(value),
            Some(Err(_)) | None => out.null(),
        }
    }
    Ok(())
}

const MSET: Command = Command {
    name: "mset",
    arity: -3,
    flags: Flags::WRITE.and(Flags::DENYOOM),
    keys: Keys::Range { first: 1, last: -1, step: 2 },
    access: &["OW", "update"],
    run: Run::Write(mset),
    group: "string",
    since: "1.0.1",
    summary: "Set multiple keys to multiple values",
    complexity: "O(N) where N is the number of keys to set.",
    categories: &["@string"],
    tips: &["request_policy:multi_shard", "response_policy:all_succeeded"],
    arguments: &[Argument::block("key_value", &[Argument::key("key"), Argument::string("value")]).multiple()],
    ..Command::ROW
};

fn mset(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    if args.len().is_multiple_of(2) {
        return Err(Error::wrong_arity("mset"));
    }
    for pair in args[1..].chunks_exact(2) {
        let key = writer.key(pair[0]);
        writer.put(key, ValueRef::String(pair[1]), None);
    }
    out.ok();
    Ok(())
}

const MSETNX: Command = Command {
    name: "msetnx",
    arity: -3,
    flags: Flags::WRITE.and(Flags::DENYOOM),
    keys: Keys::Range { first: 1, last: -1, step: 2 },
    access: &["OW", "insert"],
    run: Run::Write(msetnx),
    level: FAMILIES_LEVEL,
    group: "string",
    since: "1.0.1",
    summary: "Set multiple keys to multiple values, only if none of the keys exist",
    complexity: "O(N) where N is the number of keys to set.",
    categories: &["@string"],
    tips: &["request_policy:multi_shard", "response_policy:agg_min"],
    arguments: &[Argument::block("key_value", &[Argument::key("key"), Argument::string("value")]).multiple()],
    ..Command::ROW
};

fn msetnx(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    if args.len().is_multiple_of(2) {
        return Err(Error::wrong_arity("msetnx"));
    }
    let mut found = false;
    for pair in args[1..].chunks_exact(2) {
        let key = writer.key(pair[0]);
        found |= writer.contains(key);
    }
    if !found {
        for pair in args[1..].chunks_exact(2) {
            let key = writer.key(pair[0]);
            writer.put(key, ValueRef::String(pair[1]), None);
        }
    }
    out.int(i64::from(!found));
    Ok(())
}
