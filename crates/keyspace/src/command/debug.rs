//! DEBUG: what test suites look at, and may do to a server.
//!
//! A container as others are, but opaque: COMMAND does not show its subcommands, and none has keys that redirect a
//! client, but for what DEBUG POPULATE makes in a cluster; a replica answers for what it holds. The rows whose `run` is [`Run::Server`] are the server's, which also
//! decides who may use DEBUG at all.

use super::{Command, FAMILIES_LEVEL, Flags, Keys, Run, number};
use crate::{
    Args, Error, Outcome, Reader, Record, Sink, Writer,
    error::until_zero,
    slot::hash_tag,
    value::{ValueRef, rdb},
};
use sha1::{Digest, Sha1};

pub(super) static COMMANDS: &[Command] = &[DEBUG];

const DEBUG: Command = Command {
    name: "debug",
    arity: -2,
    flags: FLAGS,
    run: Run::Server,
    group: "server",
    since: "1.0.0",
    summary: "A container for debugging commands",
    complexity: "Depends on subcommand.",
    syscmd: true,
    opaque: true,
    subcommands: &[
        Command { name: "debug|digest", arity: 2, run: Run::Read(digest), ..SUBCOMMAND },
        Command { name: "debug|digest-value", arity: -2, run: Run::Read(digest_value), ..SUBCOMMAND },
        Command { name: "debug|sleep", arity: 3, ..SUBCOMMAND },
        Command { name: "debug|object", arity: 3, run: Run::Read(object), ..SUBCOMMAND },
        Command { name: "debug|set-active-expire", arity: 3, ..SUBCOMMAND },
        POPULATE,
        Command { name: "debug|reload", arity: -2, ..SUBCOMMAND },
        Command { name: "debug|loadaof", arity: -2, ..SUBCOMMAND },
        Command { name: "debug|config-rewrite-force-all", arity: 2, ..SUBCOMMAND },
        Command { name: "debug|error", arity: 3, ..SUBCOMMAND },
        Command { name: "debug|log", arity: 3, ..SUBCOMMAND },
        Command { name: "debug|protocol", arity: 3, ..SUBCOMMAND },
        Command { name: "debug|help", arity: 2, run: Run::Read(help), ..SUBCOMMAND },
    ],
    ..Command::ROW
};

const FLAGS: Flags = Flags::ADMIN.and(Flags::NOSCRIPT).and(Flags::LOADING).and(Flags::STALE);

/// What the subcommands have in common.
const SUBCOMMAND: Command = Command { flags: FLAGS, group: "server", since: "1.0.0", ..Command::ROW };

/// Redis's help, as far as the subcommands are there and do what it says.
const HELP: &[&str] = &[
    "DEBUG <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "CONFIG-REWRITE-FORCE-ALL",
    "    Like CONFIG REWRITE but writes all configuration options, including",
    "    keywords not listed in original configuration file or default values.",
    "DIGEST",
    "    Output a hex signature representing the current DB content.",
    "DIGEST-VALUE <key> [<key> ...]",
    "    Output a hex signature of the values of all the specified keys.",
    "ERROR <string>",
    "    Return a Redis protocol error with <string> as message. Useful for clients",
    "    unit tests to simulate Redis errors.",
    "LOG <message>",
    "    Write <message> to the server log.",
    "LOADAOF",
    "    Write a snapshot; the log is never behind the data in memory.",
    "OBJECT <key>",
    "    Show low level info about `key` and associated value.",
    "POPULATE <count> [<prefix>] [<size>]",
    "    Create <count> string keys named key:<num>. If <prefix> is specified then",
    "    it is used instead of the 'key' prefix. In a cluster it has a hash tag.",
    "PROTOCOL <type>",
    "    Reply with a test value of the specified type. <type> can be: string,",
    "    integer, double, bignum, null, array, set, map, attrib, push, verbatim,",
    "    true, false.",
    "RELOAD [option ...]",
    "    Write a snapshot; the data in memory stay. Valid <option> values:",
    "    * MERGE, NOFLUSH: the same.",
    "    * NOSAVE: nothing, if there were no changes since the last snapshot.",
    "SET-ACTIVE-EXPIRE <0|1>",
    "    Setting it to 0 disables expiring keys in background when they are not",
    "    accessed (otherwise the Redis behavior). Setting it to 1 reenables back the",
    "    default.",
    "SLEEP <seconds>",
    "    Stop the server for <seconds>. Decimals allowed.",
    "HELP",
    "    Prints this help.",
];

fn help(_: &Reader<'_>, _: Args<'_>, out: &mut dyn Sink) -> Outcome {
    out.help(HELP);
    Ok(())
}

/// One hash over all keys of all databases, whatever their order: Redis's.
fn digest(reader: &Reader<'_>, _: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let mut all = Signature::default();
    for db in 0..reader.keyspace().databases() {
        reader.with_db(db, |reader| all.database(db, reader));
    }
    out.simple(&all.hex());
    Ok(())
}

fn digest_value(reader: &Reader<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    out.array(args.len() - 2);
    for key in &args[2..] {
        let mut signature = Signature::default();
        if let Some(record) = reader.peek(key) {
            signature.record(&record);
        }
        out.simple(&signature.hex());
    }
    Ok(())
}

/// The address is made up of the key's hash: it means nothing, and tells keys apart.
fn object(reader: &Reader<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let record = reader.peek(args[2]).ok_or(Error::NO_SUCH_KEY)?;
    out.simple(&format!(
        "Value at:{:#x} refcount:{} encoding:{} serializedlength:{} lru:{} lru_seconds_idle:{}",
        reader.hash_of(args[2]) >> 16 | 1,
        record.refcount(),
        record.encoding(),
        rdb::dumped_len(record.value),
        record.access_clock(),
        record.idle_seconds(reader.now_ms()),
    ));
    Ok(())
}

const POPULATE: Command = Command {
    name: "debug|populate",
    arity: -3,
    flags: FLAGS.and(Flags::WRITE).and(Flags::DENYOOM),
    // The prefix stands for the keys: a cluster takes only what has a hash tag.
    keys: Keys::Range { first: 3, last: 3, step: 1 },
    run: Run::Write(populate),
    level: FAMILIES_LEVEL,
    ..SUBCOMMAND
};

/// The most keys of one DEBUG POPULATE. While it runs nothing else of the shard does, on any replica.
const POPULATE_KEYS: u64 = 1_000_000;
/// The most bytes of values of one.
const POPULATE_BYTES: u64 = 512 << 20;
/// Names are cut there, as Redis does.
const POPULATE_NAME_BYTES: usize = 127;

/// DEBUG POPULATE count [prefix [size]]: keys `prefix:0`, `prefix:1`, … with values `value:0`, … of that many bytes; those
/// that are there stay.
fn populate(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    if args.len() > 5 {
        return Err(Error::unknown_subcommand_or_arity("debug", args[1]));
    }
    let positive = |text: &[u8]| {
        let number = number::parse(text).and_then(|number| u64::try_from(number).ok());
        number.ok_or(Error::new("ERR value is out of range, must be positive"))
    };
    let count = positive(args[2])?;
    let prefix = args.get(3).map_or(&b"key"[..], |prefix| prefix);
    let size = args.get(4).map_or(Ok(0), |size| positive(size))?;
    if count > POPULATE_KEYS || count.saturating_mul(size) > POPULATE_BYTES {
        return Err(Error::owned(format!(
            "ERR DEBUG POPULATE makes at most {POPULATE_KEYS} keys and {} MiB of values at a time",
            POPULATE_BYTES >> 20
        )));
    }
    for number in 0..count {
        let name = populated(prefix, number);
        let key = writer.key(&name);
        if writer.contains(key) {
            continue;
        }
        let mut value = format!("value:{number}").into_bytes();
        if size > 0 {
            value.resize(size as usize, 0);
        }
        writer.put(key, ValueRef::String(&value), None);
    }
    out.ok();
    Ok(())
}

/// The name of a key that DEBUG POPULATE makes.
fn populated(prefix: &[u8], number: u64) -> Vec<u8> {
    let mut name = until_zero(prefix).to_vec();
    name.extend_from_slice(format!(":{number}").as_bytes());
    name.truncate(POPULATE_NAME_BYTES);
    name
}

/// Whether all that DEBUG POPULATE makes with this prefix is in the slot of the prefix: it has a hash tag that stays.
pub(super) fn keeps_its_slot(prefix: &[u8]) -> bool {
    let tag = hash_tag(prefix);
    tag.len() < prefix.len() && hash_tag(&populated(prefix, POPULATE_KEYS)) == tag
}

/// Redis's signature of data: hashes put together so that order counts ([`mix`](Signature::mix)) or does not
/// ([`add`](Signature::add)).
#[derive(Default)]
struct Signature([u8; 20]);

impl Signature {
    fn add(&mut self, bytes: &[u8]) {
        let hash: [u8; 20] = Sha1::digest(bytes).into();
        self.0.iter_mut().zip(hash).for_each(|(byte, other)| *byte ^= other);
    }

    fn mix(&mut self, bytes: &[u8]) {
        self.add(bytes);
        self.0 = Sha1::digest(self.0).into();
    }

    fn database(&mut self, db: u16, reader: &Reader<'_>) {
        let mut from = 0;
        while let Some(slot) = reader.next_slot(from) {
            if from == 0 {
                self.mix(&u32::from(db).to_be_bytes());
            }
            reader.visit_slot(slot, 0, &mut |_, key, record| {
                let mut one = Signature::default();
                one.mix(key);
                one.record(&record);
                self.add(&one.0);
                true
            });
            from = slot.number() + 1;
        }
    }

    fn record(&mut self, record: &Record<'_>) {
        const STRING: u32 = 0;
        let ValueRef::String(bytes) = record.value;
        self.mix(&STRING.to_be_bytes());
        self.mix(bytes);
        if record.deadline_ms.is_some() {
            self.add(b"!!expire!!");
        }
    }

    fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Keyspace, NullSink, Settings, slot_of};

    #[test]
    fn one_entry_makes_only_so_many_keys() {
        let mut keyspace = Keyspace::new(Settings { databases: 1, hash_seed: [7; 16] });
        let mut run = |words: &[&[u8]]| {
            let args = [&[&b"DEBUG"[..], b"POPULATE"], words].concat();
            populate(&mut keyspace.writer(0, 1, 1), &args, &mut NullSink)
        };
        let refused =
            Err(Error::new("ERR DEBUG POPULATE makes at most 1000000 keys and 512 MiB of values at a time"));
        assert_eq!(run(&[b"1000001"]), refused);
        assert_eq!(run(&[b"2", b"k", b"268435457"]), refused);
        assert_eq!(run(&[b"1000000", b"k", b"9223372036854775807"]), refused);
        assert_eq!(run(&[b"1", b"k", b"1000000"]), Ok(()));
        assert_eq!(keyspace.reader(0, 1, 1).len(), 1);
    }

    #[test]
    fn what_is_made_in_a_cluster_stays_in_one_slot() {
        let long = |tag: &str| ["x".repeat(124), tag.to_owned()].concat().into_bytes();
        for prefix in [&b"{t}"[..], b"{t}key", b"a{t}b", b"{t}a\0b", &long("{t}"), b"{{}"] {
            assert!(keeps_its_slot(prefix), "{}", prefix.escape_ascii());
            let slots = (0..2000).map(|number| slot_of(&populated(prefix, number)));
            assert!(slots.into_iter().all(|slot| slot == slot_of(prefix)), "{}", prefix.escape_ascii());
        }
        for prefix in [&b"key"[..], b"", b"{}", b"{}x", b"a{", b"a\0{t}", b"{a\0}", &long("x{t}")] {
            assert!(!keeps_its_slot(prefix), "{}", prefix.escape_ascii());
        }
    }
}
