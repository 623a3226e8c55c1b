//! DEBUG: what test suites look at, and may do to a server.
//!
//! A container as others are, but opaque: COMMAND does not show its subcommands, and none has keys that redirect a
//! client; a replica answers for what it holds. The rows whose `run` is [`Run::Server`] are the server's, which also
//! decides who may use DEBUG at all.

use super::{Command, Flags, Run};
use crate::{
    Args, Error, Outcome, Reader, Record, Sink,
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

/// Redis's help, as far as the subcommands are there.
const HELP: &[&str] = &[
    "DEBUG <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "DIGEST",
    "    Output a hex signature representing the current DB content.",
    "DIGEST-VALUE <key> [<key> ...]",
    "    Output a hex signature of the values of all the specified keys.",
    "OBJECT <key>",
    "    Show low level info about `key` and associated value.",
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
