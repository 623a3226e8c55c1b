//! SLOWLOG: the last commands of this port that ran for long.

use super::integer;
use crate::port::Place;
use crate::resp::RespSink;
use kvorum_keyspace::{Args, Command, Error, Outcome, Sink};

/// Entries that SLOWLOG GET shows when it is not told how many.
const SHOWN: usize = 10;

const HELP: &[&str] = &[
    "SLOWLOG <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "GET [<count>]",
    "    Return top <count> entries from the slowlog (default: 10, -1 mean all).",
    "    Entries are made of:",
    "    id, timestamp, time in microseconds, arguments array, client IP and port,",
    "    client name",
    "LEN",
    "    Return the length of the slowlog.",
    "RESET",
    "    Reset the slowlog.",
    "HELP",
    "    Prints this help.",
];

pub(super) fn slowlog(command: &Command, args: Args<'_>, place: Place<'_>, out: &mut RespSink) -> Outcome {
    let log = &place.port.slowlog;
    match command.subname() {
        "len" => out.count(log.len()),
        "reset" => {
            log.reset();
            out.ok();
        }
        "get" => {
            if args.len() > 3 {
                return Err(Error::unknown_subcommand_or_arity("slowlog", args[1]));
            }
            const RANGE: Error = Error::new("ERR count should be greater than or equal to -1");
            let count = match args.get(2).map(|count| integer(count)) {
                None => SHOWN,
                Some(Ok(-1)) => usize::MAX,
                Some(count) => usize::try_from(count.map_err(|_| RANGE)?).map_err(|_| RANGE)?,
            };
            let entries = log.newest(count);
            out.array(entries.len());
            for entry in entries {
                out.array(6);
                out.int(entry.id.cast_signed());
                out.int(entry.at_s.cast_signed());
                out.int(i64::try_from(entry.took.as_micros()).unwrap_or(i64::MAX));
                out.array(entry.args.len());
                entry.args.iter().for_each(|arg| out.bulk(arg));
                out.bulk(entry.peer.to_string().as_bytes());
                out.bulk(&entry.name);
            }
        }
        _ => out.help(HELP),
    }
    Ok(())
}
