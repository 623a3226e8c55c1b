//! Values that change their key or their database: RENAME, RENAMENX, COPY, MOVE, SWAPDB.
//!
//! A long value is never copied for it: the keys share it until one of them changes.

use super::{Argument, Command, FAMILIES_LEVEL, Flags, Keys, Run, debug, number};
use crate::{Args, Error, Outcome, Sink, Writer};

pub(super) static COMMANDS: &[Command] = &[RENAME, RENAMENX, COPY, MOVE, SWAPDB];

const SAME_KEY: Error = Error::new("ERR source and destination objects are the same");

const RENAME: Command = Command {
    name: "rename",
    arity: 3,
    flags: Flags::WRITE,
    keys: Keys::Range { first: 1, last: 2, step: 1 },
    access_each: &[&["RW", "access", "delete"], &["OW", "update"]],
    run: Run::Write(rename),
    level: FAMILIES_LEVEL,
    group: "generic",
    since: "1.0.0",
    summary: "Rename a key",
    complexity: "O(1)",
    categories: &["@keyspace"],
    arguments: &[Argument::key("key"), Argument::key("newkey").key_spec(1)],
    ..Command::ROW
};

fn rename(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let (from, to) = (writer.key(args[1]), writer.key(args[2]));
    if !writer.contains(from) {
        return Err(Error::NO_SUCH_KEY);
    }
    if args[1] != args[2] {
        writer.rename(from, writer.db(), to);
    }
    out.ok();
    Ok(())
}

const RENAMENX: Command = Command {
    name: "renamenx",
    arity: 3,
    flags: Flags::WRITE.and(Flags::FAST),
    keys: Keys::Range { first: 1, last: 2, step: 1 },
    access_each: &[&["RW", "access", "delete"], &["OW", "insert"]],
    run: Run::Write(renamenx),
    level: FAMILIES_LEVEL,
    group: "generic",
    since: "1.0.0",
    summary: "Rename a key, only if the new key does not exist",
    complexity: "O(1)",
    categories: &["@keyspace"],
    history: &[(
        "3.2.0",
        "The command no longer returns an error when source and destination names are the same.",
    )],
    arguments: &[Argument::key("key"), Argument::key("newkey").key_spec(1)],
    ..Command::ROW
};

fn renamenx(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let (from, to) = (writer.key(args[1]), writer.key(args[2]));
    if !writer.contains(from) {
        return Err(Error::NO_SUCH_KEY);
    }
    let free = !writer.contains(to);
    if free {
        writer.rename(from, writer.db(), to);
    }
    out.int(i64::from(free));
    Ok(())
}

const COPY: Command = Command {
    name: "copy",
    arity: -3,
    flags: Flags::WRITE.and(Flags::DENYOOM),
    keys: Keys::Range { first: 1, last: 2, step: 1 },
    access_each: &[&["RO", "access"], &["OW", "update"]],
    run: Run::Write(copy),
    level: FAMILIES_LEVEL,
    group: "generic",
    since: "6.2.0",
    summary: "Copy a key",
    complexity: "O(N) worst case for collections, where N is the number of nested items. O(1) for string values.",
    categories: &["@keyspace"],
    arguments: &[
        Argument::key("source"),
        Argument::key("destination").key_spec(1),
        Argument::integer("destination-db").token("DB").optional(),
        Argument::pure_token("replace", "REPLACE").optional(),
    ],
    ..Command::ROW
};

fn copy(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let options = CopyOptions::parse(&args[3..], writer.databases())?;
    let to_db = options.db.unwrap_or(writer.db());
    if to_db == writer.db() && args[1] == args[2] {
        return Err(SAME_KEY);
    }
    let (from, to) = (writer.key(args[1]), writer.key(args[2]));
    let copied = writer.read(from).is_some()
        && (!writer.with_db(to_db, |writer| writer.contains(to)) || options.replace);
    if copied {
        writer.copy(from, to_db, to);
    }
    out.int(i64::from(copied));
    Ok(())
}

#[derive(Default)]
struct CopyOptions {
    db: Option<u16>,
    replace: bool,
}

impl CopyOptions {
    fn parse(mut options: Args<'_>, databases: u16) -> Result<CopyOptions, Error> {
        let mut parsed = CopyOptions::default();
        while let [option, rest @ ..] = options {
            options = rest;
            match (option.to_ascii_lowercase().as_slice(), rest) {
                (b"replace", _) => parsed.replace = true,
                (b"db", [db, rest @ ..]) => {
                    parsed.db = Some(database(number::int(db)?, databases)?);
                    options = rest;
                }
                _ => return Err(Error::SYNTAX),
            }
        }
        Ok(parsed)
    }
}

fn database(number: i32, databases: u16) -> Result<u16, Error> {
    u16::try_from(number).ok().filter(|db| *db < databases).ok_or(Error::DB_OUT_OF_RANGE)
}

const MOVE: Command = Command {
    name: "move",
    arity: 3,
    flags: Flags::WRITE.and(Flags::FAST),
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["RW", "access", "update"],
    run: Run::Write(move_to),
    level: FAMILIES_LEVEL,
    group: "generic",
    since: "1.0.0",
    summary: "Move a key to another database",
    complexity: "O(1)",
    categories: &["@keyspace"],
    arguments: &[Argument::key("key"), Argument::integer("db")],
    ..Command::ROW
};

fn move_to(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let to_db = database(number::int(args[2])?, writer.databases())?;
    if to_db == writer.db() {
        return Err(SAME_KEY);
    }
    let key = writer.key(args[1]);
    let moved = writer.contains(key) && !writer.with_db(to_db, |writer| writer.contains(key));
    if moved {
        writer.rename(key, to_db, key);
    }
    out.int(i64::from(moved));
    Ok(())
}

const SWAPDB: Command = Command {
    name: "swapdb",
    arity: 3,
    flags: Flags::WRITE.and(Flags::FAST),
    run: Run::Write(swapdb),
    level: FAMILIES_LEVEL,
    group: "server",
    since: "4.0.0",
    summary: "Swaps two Redis databases",
    complexity: "O(N) where N is the count of clients watching or blocking on keys from both databases.",
    categories: &["@keyspace", "@dangerous"],
    arguments: &[Argument::integer("index1"), Argument::integer("index2")],
    ..Command::ROW
};

fn swapdb(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let first = number::int(args[1]).map_err(|_| Error::new("ERR invalid first DB index"))?;
    let second = number::int(args[2]).map_err(|_| Error::new("ERR invalid second DB index"))?;
    let databases = writer.databases();
    writer.swap(database(first, databases)?, database(second, databases)?);
    out.ok();
    Ok(())
}

/// What a cluster does not let a client do, whose keys are all here: leave its database, or make keys of slots that are not here. A cluster that was configured to
/// have several lets keys move between them (as Valkey 9 does), but no cluster swaps them.
pub fn refused_in_cluster(command: &Command, args: Args<'_>, databases: u16) -> Option<Error> {
    match command.name {
        "swapdb" => Some(Error::new("ERR SWAPDB is not allowed in cluster mode")),
        "move" if databases == 1 => Some(Error::new("ERR MOVE is not allowed in cluster mode")),
        // Redis Cluster counts to sixteen here, though it has only one.
        "copy" if databases == 1 => match CopyOptions::parse(args.get(3..)?, 16) {
            Ok(CopyOptions { db: Some(1..), .. }) => {
                Some(Error::new("ERR Copying to another database is not allowed in cluster mode"))
            }
            Ok(_) => None,
            Err(error) => Some(error),
        },
        "debug|populate" if !args.get(3).is_some_and(|prefix| debug::keeps_its_slot(prefix)) => {
            Some(Error::new(
                "ERR DEBUG POPULATE in a cluster needs a prefix with a hash tag, for a shard holds only keys of its own slots",
            ))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lookup;

    #[test]
    fn a_cluster_with_one_database_keeps_its_keys_there() {
        let refused = |line: &str, databases: u16| {
            let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            let command = lookup(args[0]).unwrap();
            refused_in_cluster(command, &args, databases)
                .map(|error| String::from_utf8(error.text().to_vec()).unwrap())
        };
        let copy = "ERR Copying to another database is not allowed in cluster mode";
        for (line, expected) in [
            ("SWAPDB x y", Some("ERR SWAPDB is not allowed in cluster mode")),
            ("MOVE k x", Some("ERR MOVE is not allowed in cluster mode")),
            ("COPY a b DB 1", Some(copy)),
            ("COPY a b REPLACE db 15", Some(copy)),
            ("COPY a b DB 0", None),
            ("COPY a b", None),
            ("COPY a b DB 16", Some("ERR DB index is out of range")),
            ("COPY a b DB 1 nonsense", Some("ERR syntax error")),
            ("RENAME a b", None),
        ] {
            assert_eq!(refused(line, 1).as_deref(), expected, "{line}");
        }
        assert_eq!(refused("MOVE k 1", 16), None);
        assert_eq!(refused("COPY a b DB 1", 16), None);
        assert!(refused("SWAPDB 0 1", 16).is_some());
    }
}
