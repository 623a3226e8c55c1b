//! SAVE and its kind. The log has every write on disk already, as durably as the cluster's durability says; what these
//! commands write is a snapshot of the shard behind the port, after which the log before it can go.

use super::Next;
use crate::port::Place;
use crate::resp::RespSink;
use kvorum_keyspace::{Args, Error, Sink};

const IN_PROGRESS: Error = Error::new("ERR Background save already in progress");
const REWRITE_IN_PROGRESS: Error =
    Error::new("ERR Background append only file rewriting already in progress");

/// When the last snapshot was finished.
pub(super) fn last_save(place: Place<'_>, out: &mut RespSink) {
    out.int(place.port.saves.last().at_s.cast_signed());
}

/// SAVE: with the reply when the snapshot is there.
pub(super) fn save(place: Place<'_>) -> Result<Next, Error> {
    if place.port.saves.begin() { Ok(Next::Save { in_background: false }) } else { Err(IN_PROGRESS) }
}

/// DEBUG RELOAD [MERGE | NOFLUSH | NOSAVE …] and DEBUG LOADAOF. Redis shows so that its data survive a restart. Here every
/// acknowledged write is in the log: a snapshot is written, and what is in memory stays. Going back to an older snapshot
/// would take back what was acknowledged.
pub(super) fn reload(options: Args<'_>, place: Place<'_>, out: &mut RespSink) -> Result<Next, Error> {
    const OPTIONS: Error =
        Error::new("ERR DEBUG RELOAD only supports the MERGE, NOFLUSH and NOSAVE options.");
    let mut saves = true;
    for option in options {
        match option.to_ascii_lowercase().as_slice() {
            b"merge" | b"noflush" => {}
            b"nosave" => saves = false,
            _ => return Err(OPTIONS),
        }
    }
    if saves {
        return save(place);
    }
    let sequence = place.replica.map_or(0, |replica| replica.keyspace().sequence);
    if sequence > place.port.saves.last().sequence {
        return Err(Error::new(
            "ERR DEBUG RELOAD NOSAVE is not supported after changes: what was acknowledged is not taken back",
        ));
    }
    out.ok();
    Ok(Next::Continue)
}

/// BGSAVE [SCHEDULE]
pub(super) fn save_in_background(
    args: Args<'_>,
    place: Place<'_>,
    out: &mut RespSink,
) -> Result<Next, Error> {
    let scheduled = match &args[1..] {
        [] => false,
        [option] if option.eq_ignore_ascii_case(b"schedule") => true,
        _ => return Err(Error::SYNTAX),
    };
    if !place.port.saves.begin() {
        if scheduled {
            // What is being written will hold what there is, or the next one will.
            out.simple("Background saving scheduled");
            return Ok(Next::Continue);
        }
        return Err(IN_PROGRESS);
    }
    out.simple("Background saving started");
    Ok(Next::Save { in_background: true })
}

/// BGREWRITEAOF: the log before the snapshot goes, which is what a rewritten file is for.
pub(super) fn rewrite_log(place: Place<'_>, out: &mut RespSink) -> Result<Next, Error> {
    if !place.port.saves.begin() {
        return Err(REWRITE_IN_PROGRESS);
    }
    out.simple("Background append only file rewriting started");
    Ok(Next::Save { in_background: true })
}
