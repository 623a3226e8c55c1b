//! Random commands on two servers that must answer the same: Kvorum and a real Redis.
//!
//! Commands go out in pipelines, over one connection that speaks RESP2 and one that speaks RESP3, and every reply of one server is compared with
//! that of the other, type for type. What DUMP says on one side must be what RESTORE takes on the other. Now and
//! then all keys are compared. A run is made of episodes that begin with empty databases and new connections, so that a difference can be
//! replayed alone, made small, and printed as a golden script.
//!
//! Times that a command sets are far away or long past: two clocks then agree on what is there. Expiry itself has a phase of its own, in which both
//! servers have the time to see it.

mod commands;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

pub use commands::{Commands, KEYS};

use crate::plain::Plain;
use crate::random::Random;
use crate::reply::{Reply, error_text};
use crate::resp::encode;

/// Commands of an episode.
const EPISODE: u64 = 400;
/// The most that goes out at once.
const PIPELINE: u64 = 40;
/// Where keys are put that only the judge looks at.
const SCRATCH_DATABASE: &str = "9";
/// How far two servers' ideas of a time may be apart.
const TOLERANCE_MS: u64 = 10_000;
/// Deadlines of 150 ms are given within this time, or the machine is too busy to say anything of them.
const EXPIRY_LIMIT: Duration = Duration::from_millis(75);
/// By then they are over.
const EXPIRY_WAIT: Duration = Duration::from_millis(300);

/// A command on one of the connections.
type Sent = (usize, Vec<Vec<u8>>);

/// Both servers.
#[derive(Clone, Debug)]
pub struct Pair {
    /// `host:port` of the server under test.
    pub ours: String,
    /// `host:port` of Redis.
    pub redis: String,
}

/// What a run found.
#[derive(Debug, Default)]
pub struct Findings {
    /// Commands compared.
    pub commands: u64,
    /// Commands that one side does not have.
    pub missing: Vec<&'static str>,
    /// Small scripts, each with the difference it shows.
    pub differences: Vec<String>,
    /// Payloads of DUMP that each side took from the other.
    pub dumps: u64,
    /// Episodes that ended early because the server under test was no leader any more.
    pub interrupted: u64,
}

/// Two replies that are not the same.
#[derive(Clone, Debug)]
struct Difference {
    /// Of the command within the history.
    at: usize,
    ours: String,
    theirs: String,
}

/// Why an episode ended before its end.
enum Stop {
    Difference(Difference),
    /// The server under test leads no more.
    NoLeader,
}

/// Runs random commands until `wanted` are compared or `most` different differences are found.
///
/// `leader` says where the server under test is; it is asked again when that changes.
///
/// # Errors
/// When a server does not answer.
pub fn run(
    mut pair: Pair,
    seed: u64,
    wanted: u64,
    most: usize,
    mut leader: impl FnMut() -> Result<String>,
) -> Result<Findings> {
    let mut findings = Findings { missing: missing(&pair)?, ..Findings::default() };
    let mut random = Random::new(seed);
    let mut seen = BTreeSet::new();
    while findings.commands < wanted && findings.differences.len() < most {
        let mut commands = Commands::new(random.fork(), findings.missing.clone());
        let mut history = Vec::new();
        match episode(&pair, &mut commands, &mut random, &mut history, &mut findings)? {
            None => {}
            Some(Stop::NoLeader) => {
                findings.interrupted += 1;
                ensure!(findings.interrupted < 50, "the server under test is no leader, again and again");
                std::thread::sleep(Duration::from_millis(500));
                pair.ours = leader()?;
            }
            Some(Stop::Difference(difference)) => {
                let found = shrink(&pair, &history, difference)?;
                if seen.insert(found.kind) {
                    eprintln!("{}\n", found.text);
                    findings.differences.push(found.text);
                }
            }
        }
    }
    Ok(findings)
}

/// The commands that the server under test does not have.
fn missing(pair: &Pair) -> Result<Vec<&'static str>> {
    let mut ours = Plain::open(&pair.ours)?;
    let mut missing = Vec::new();
    for name in Commands::names() {
        match ours.call(&["COMMAND", "INFO", name])? {
            Reply::Array(items) if matches!(items.first(), Some(Reply::Null | Reply::NullArray)) => {
                missing.push(name)
            }
            Reply::Array(_) => {}
            other => bail!("COMMAND INFO {name} answers {}", other.render()),
        }
    }
    Ok(missing)
}

/// The connections of an episode to one server: the first speaks RESP2, the second RESP3.
struct Side([Plain; 2]);

impl Side {
    /// New connections, empty databases, settings as they were.
    fn clean(addr: &str) -> Result<Side> {
        let mut first = Plain::open(addr).with_context(|| format!("connecting to {addr}"))?;
        for line in [
            "CONFIG SET slowlog-max-len 128",
            "CONFIG SET slowlog-log-slower-than 10000",
            "CONFIG SET latency-monitor-threshold 0",
            "CONFIG SET maxmemory 0",
        ] {
            first.call(&line.split(' ').collect::<Vec<_>>())?;
        }
        first.call(&["FLUSHALL"])?;
        let mut second = Plain::open(addr)?;
        second.call(&["HELLO", "3"])?;
        Ok(Side([first, second]))
    }
}

fn episode(
    pair: &Pair,
    commands: &mut Commands,
    random: &mut Random,
    history: &mut Vec<Sent>,
    findings: &mut Findings,
) -> Result<Option<Stop>> {
    let (mut ours, mut redis) = (Side::clean(&pair.ours)?, Side::clean(&pair.redis)?);
    let mut dumps = Vec::new();
    while (history.len() as u64) < EPISODE {
        let connection = random.below(2) as usize;
        let length = if random.chance(30) { 1 } else { 1 + random.below(PIPELINE) };
        let begin = history.len();
        for _ in 0..length {
            let command = commands.command();
            if is(&command, "DBSIZE") {
                history.push((connection, look_at_all()));
            }
            history.push((connection, command));
        }
        let bytes: Vec<u8> = history[begin..].iter().flat_map(|(_, argv)| encode(argv)).collect();
        ours.0[connection].send(&bytes)?;
        redis.0[connection].send(&bytes)?;
        // Everything is read before anything is judged: what is still on its way would run in the next episode.
        let mut replies = Vec::new();
        for (_, argv) in &history[begin..] {
            let theirs = redis.0[connection].receive().with_context(|| format!("Redis, {}", show(argv)))?;
            replies.push((ours.0[connection].receive(), theirs));
        }
        for (at, (ours, theirs)) in (begin..).zip(replies) {
            let argv = &history[at].1;
            let ours = match ours {
                Ok(reply) => reply,
                Err(e) => {
                    let (ours, theirs) = (format!("no reply: {e}"), shown(&theirs));
                    history.truncate(at + 1);
                    return Ok(Some(Stop::Difference(Difference { at, ours, theirs })));
                }
            };
            findings.commands += 1;
            if leads_no_more(&ours) {
                return Ok(Some(Stop::NoLeader));
            }
            if !agree(argv, &ours, &theirs) {
                let difference = Difference { at, ours: shown(&ours), theirs: shown(&theirs) };
                history.truncate(at + 1);
                return Ok(Some(Stop::Difference(difference)));
            }
            if is(argv, "DUMP")
                && let (Reply::Bulk(ours), Reply::Bulk(theirs)) = (ours, theirs)
            {
                dumps.push((at, ours, theirs));
            }
        }
        for (at, ours, theirs) in dumps.drain(..) {
            commands.remember(&ours);
            commands.remember(&theirs);
            if let Some(stop) = exchange_dumps(pair, at, &ours, &theirs)? {
                return Ok(Some(stop));
            }
            findings.dumps += 1;
        }
    }
    if let Some(stop) = compare_keys(pair, history.len() - 1)? {
        return Ok(Some(stop));
    }
    if random.chance(10) { expiry(pair, history) } else { Ok(None) }
}

/// Redis counts a key that was set with a past deadline until somebody looks; here it never was.
fn look_at_all() -> Vec<Vec<u8>> {
    std::iter::once(b"EXISTS".to_vec()).chain(KEYS.iter().map(|key| key.to_vec())).collect()
}

/// What one side dumped the other takes, and both then have the same value.
fn exchange_dumps(pair: &Pair, at: usize, ours: &[u8], theirs: &[u8]) -> Result<Option<Stop>> {
    let mut values = Vec::new();
    for (addr, payload) in [(&pair.ours, theirs), (&pair.redis, ours)] {
        let mut connection = Plain::open(addr)?;
        connection.call(&["SELECT", SCRATCH_DATABASE])?;
        let restored = connection.call(&[&b"RESTORE"[..], b"x", b"0", payload, b"REPLACE"])?;
        if leads_no_more(&restored) {
            return Ok(Some(Stop::NoLeader));
        }
        let value = connection.call(&["GET", "x"])?;
        let digest = connection.call(&["DEBUG", "DIGEST-VALUE", "x"])?;
        connection.call(&["DEL", "x"])?;
        values.push([restored, value, digest]);
    }
    let ok = matches!(&values[0][0], Reply::Simple(text) if text == "OK");
    if ok && values[0] == values[1] {
        return Ok(None);
    }
    let said = |side: &[Reply; 3], payload: &[u8]| {
        let replies: Vec<String> = side.iter().map(shown).collect();
        format!("RESTORE of \"{}\", GET, DEBUG DIGEST-VALUE: {}", payload.escape_ascii(), replies.join(", "))
    };
    let (ours, theirs) = (said(&values[0], theirs), said(&values[1], ours));
    Ok(Some(Stop::Difference(Difference { at, ours, theirs })))
}

/// All keys of the databases that commands reach, with value, deadline, encoding and digest.
fn compare_keys(pair: &Pair, at: usize) -> Result<Option<Stop>> {
    let (mut ours, mut redis) = (Plain::open(&pair.ours)?, Plain::open(&pair.redis)?);
    for database in ["0", "1", "2", "3", "15"] {
        let mut both = |argv: &[&[u8]]| -> Result<[Reply; 2]> { Ok([ours.call(argv)?, redis.call(argv)?]) };
        both(&[b"SELECT", database.as_bytes()])?;
        let [a, b] = both(&[b"KEYS", b"*"])?.map(Reply::sorted);
        if leads_no_more(&a) {
            return Ok(Some(Stop::NoLeader));
        }
        let differ = |what: &str, a: &Reply, b: &Reply| {
            let said = |reply| format!("database {database}, {what}: {}", shown(reply));
            Ok(Some(Stop::Difference(Difference { at, ours: said(a), theirs: said(b) })))
        };
        if a != b {
            return differ("KEYS *", &a, &b);
        }
        let Reply::Array(keys) = a else { return differ("KEYS *", &a, &b) };
        for key in keys.iter().filter_map(Reply::bytes) {
            let looks: [&[&[u8]]; 5] = [
                &[b"GET", key],
                &[b"TYPE", key],
                &[b"OBJECT", b"ENCODING", key],
                &[b"PEXPIRETIME", key],
                &[b"DEBUG", b"DIGEST-VALUE", key],
            ];
            for look in looks {
                let [a, b] = both(look)?;
                let argv: Vec<Vec<u8>> = look.iter().map(|word| word.to_vec()).collect();
                if !agree(&argv, &a, &b) {
                    return differ(&show(&argv), &a, &b);
                }
            }
        }
    }
    Ok(None)
}

/// Keys that both servers see go, each in its own way.
fn expiry(pair: &Pair, history: &mut Vec<Sent>) -> Result<Option<Stop>> {
    let (mut ours, mut redis) = (Side::clean(&pair.ours)?, Side::clean(&pair.redis)?);
    let lines = [
        "SET a 1 PX 150",
        "SET b 1",
        "PEXPIRE b 150",
        "SET c 1 PX 150",
        "PERSIST c",
        "SET d 1 PX 150",
        "SET d 2 KEEPTTL",
        "SETEX e 1000 1",
        "GETEX e PX 150",
        "SET f 1 PX 150",
        "APPEND f x",
        "SET g 1 PX 150",
        "INCR g",
        "SET h 1 PX 150",
        "SET h 2",
        "SET i 1 PX 150",
        "RENAME i j",
        "SET k 1 PX 150",
        "COPY k l",
        "SET m 1 PX 150",
        "MOVE m 1",
    ];
    let looks = [
        "GET a",
        "EXISTS a b c d e f g h i j k l m",
        "TTL a",
        "PTTL b",
        "TYPE d",
        "STRLEN f",
        "KEYS *",
        "DBSIZE",
        "INCR g",
        "TTL g",
        "SETNX a new",
        "SET b x XX",
        "GETDEL d",
        "RENAME j q",
        "TOUCH k l",
        "OBJECT ENCODING e",
        "DUMP f",
        "SELECT 1",
        "DBSIZE",
        "KEYS *",
        "SELECT 0",
    ];
    history.clear();
    let began = Instant::now();
    for (wait, lines) in [(false, &lines[..]), (true, &looks[..])] {
        if wait {
            std::thread::sleep(EXPIRY_WAIT);
        }
        for line in lines.iter().filter(|line| !line.starts_with("DBSIZE")) {
            let argv: Vec<Vec<u8>> = line.split(' ').map(|word| word.as_bytes().to_vec()).collect();
            let (ours, theirs) = (ours.0[0].call(&argv)?, redis.0[0].call(&argv)?);
            history.push((0, argv));
            if leads_no_more(&ours) {
                return Ok(Some(Stop::NoLeader));
            }
            let (_, argv) = &history[history.len() - 1];
            // A stall lets deadlines pass on one side before the next command comes.
            if !wait && began.elapsed() >= EXPIRY_LIMIT {
                return Ok(None);
            }
            if !agree(argv, &ours, &theirs) {
                let at = history.len() - 1;
                return Ok(Some(Stop::Difference(Difference {
                    at,
                    ours: shown(&ours),
                    theirs: shown(&theirs),
                })));
            }
        }
    }
    Ok(None)
}

fn is(argv: &[Vec<u8>], name: &str) -> bool {
    argv.first().is_some_and(|word| word.eq_ignore_ascii_case(name.as_bytes()))
}

fn leads_no_more(reply: &Reply) -> bool {
    matches!(reply, Reply::Error(text) if ["READONLY You", "UNKNOWN ", "CLUSTERDOWN", "MASTERDOWN"].iter().any(|code| text.starts_with(code.as_bytes())))
}

/// Whether the replies to a command are as equal as the two servers can be.
fn agree(argv: &[Vec<u8>], ours: &Reply, theirs: &Reply) -> bool {
    if ours == theirs {
        return true;
    }
    let word = |at: usize| {
        argv.get(at).map(|word| String::from_utf8_lossy(word).to_ascii_uppercase()).unwrap_or_default()
    };
    let close = |tolerance: u64| match (ours, theirs) {
        (Reply::Int(ours @ 0..), Reply::Int(theirs @ 0..)) => ours.abs_diff(*theirs) <= tolerance,
        _ => false,
    };
    let same_type =
        std::mem::discriminant(ours) == std::mem::discriminant(theirs) && !matches!(ours, Reply::Error(_));
    match word(0).as_str() {
        "PTTL" | "PEXPIRETIME" => close(TOLERANCE_MS),
        "TTL" | "EXPIRETIME" => close(TOLERANCE_MS / 1000),
        "KEYS" => ours.clone().sorted() == theirs.clone().sorted(),
        "SCAN" => scans_agree(&word(1), ours, theirs),
        // Any key will do; which, nobody knows.
        "RANDOMKEY" | "TIME" | "LOLWUT" | "INFO" => same_type,
        // Its bytes are judged by RESTORE.
        "DUMP" => same_type,
        "HELLO" => without_identity(ours) == without_identity(theirs),
        // Redis shares small integers, and with them when they were used last: `refcount` in docs/differences.md.
        "OBJECT" if matches!(word(1).as_str(), "IDLETIME" | "REFCOUNT") => same_type,
        "CLIENT" => matches!(word(1).as_str(), "ID" | "INFO" | "LIST" | "HELP") && same_type,
        "CONFIG" if word(1) == "GET" => ours.clone().sorted() == theirs.clone().sorted(),
        // What was slow is slow on one side alone; `memory` in docs/differences.md.
        "SLOWLOG" => matches!(word(1).as_str(), "GET" | "LEN") && same_type,
        // All there are: Redis has more of them, in an order of its own.
        "COMMAND" => argv.len() <= 2 && same_type,
        "LATENCY" => matches!(word(1).as_str(), "LATEST" | "RESET") && same_type,
        "MEMORY" => matches!(word(1).as_str(), "USAGE" | "DOCTOR" | "STATS") && same_type,
        _ => false,
    }
}

/// A scan from the start that may visit everything finds the same keys; one from elsewhere finds what it finds.
fn scans_agree(cursor: &str, ours: &Reply, theirs: &Reply) -> bool {
    let parts = |reply: &Reply| match reply {
        Reply::Array(items) if items.len() == 2 => Some((items[0].clone(), items[1].clone().sorted())),
        _ => None,
    };
    match (parts(ours), parts(theirs)) {
        (Some(ours), Some(theirs)) => cursor != "0" || ours.0 != theirs.0 || ours == theirs,
        _ => false,
    }
}

/// HELLO without what differs between any two servers: version and number of the connection.
fn without_identity(reply: &Reply) -> Reply {
    let private = |key: &Reply| matches!(key.bytes(), Some(b"version" | b"id"));
    match reply {
        Reply::Map(pairs) => Reply::Map(pairs.iter().filter(|(key, _)| !private(key)).cloned().collect()),
        Reply::Array(items) => {
            Reply::Array(items.chunks(2).filter(|pair| !private(&pair[0])).flatten().cloned().collect())
        }
        other => other.clone(),
    }
}

/// A history made small.
struct Found {
    /// What makes two of them the same.
    kind: String,
    text: String,
}

/// Leaves out of a history what is not needed to see a difference at its end.
fn shrink(pair: &Pair, history: &[Sent], difference: Difference) -> Result<Found> {
    let mut history = history[..=difference.at.min(history.len() - 1)].to_vec();
    let mut difference = difference;
    let Some(again) = replay(pair, &history)? else {
        let text = format!(
            "# seen once and not again when replayed alone: {}\n# ours:  {}\n# Redis: {}",
            show(&history[history.len() - 1].1),
            difference.ours,
            difference.theirs
        );
        return Ok(Found { kind: text.clone(), text });
    };
    history.truncate(again.at + 1);
    difference.ours.clone_from(&again.ours);
    difference.theirs.clone_from(&again.theirs);
    // Whole commands, many at first.
    let mut step = history.len() / 2;
    while step > 0 {
        let mut from = 0;
        while from < history.len() {
            let mut without = history.clone();
            without.drain(from..(from + step).min(history.len()));
            match replay(pair, &without)? {
                Some(smaller) if !without.is_empty() => {
                    without.truncate(smaller.at + 1);
                    history = without;
                    difference = smaller;
                }
                _ => from += step,
            }
        }
        step /= 2;
    }
    // Then words of what is left.
    for command in (0..history.len()).rev() {
        for word in (1..history.get(command).map_or(0, |(_, argv)| argv.len())).rev() {
            let mut without = history.clone();
            without[command].1.remove(word);
            if let Some(smaller) = replay(pair, &without)?
                && smaller.at + 1 == without.len()
                && kind(&smaller, &without) == kind(&difference, &history)
            {
                history = without;
                difference = smaller;
            }
        }
    }
    let mut text = String::new();
    for (connection, argv) in &history {
        let resp3 = if *connection == 0 { "" } else { "b" };
        let _ = writeln!(text, "{resp3}> {}", show(argv));
    }
    let _ = write!(text, "# ours:  {}\n# Redis: {}", difference.ours, difference.theirs);
    if history.iter().any(|(connection, _)| *connection == 1) {
        text.push_str("\n# b speaks RESP3");
    }
    Ok(Found { kind: kind(&difference, &history), text })
}

/// The command that shows a difference, and how both replies begin.
fn kind(difference: &Difference, history: &[Sent]) -> String {
    let argv = history.get(difference.at).map(|(_, argv)| argv.as_slice()).unwrap_or_default();
    let name =
        argv.first().map(|word| String::from_utf8_lossy(word).to_ascii_uppercase()).unwrap_or_default();
    let begin = |text: &str| {
        let letters: String = text.chars().filter(|c| !c.is_ascii_digit()).take(30).collect();
        letters
    };
    format!("{name} {} {}", begin(&difference.ours), begin(&difference.theirs))
}

/// Runs a history one command at a time from empty databases; the first difference, or what is different at the end.
fn replay(pair: &Pair, history: &[Sent]) -> Result<Option<Difference>> {
    if history.is_empty() {
        return Ok(None);
    }
    let (mut ours, mut redis) = (Side::clean(&pair.ours)?, Side::clean(&pair.redis)?);
    for (at, (connection, argv)) in history.iter().enumerate() {
        let theirs = redis.0[*connection].call(argv)?;
        let ours = match ours.0[*connection].call(argv) {
            Ok(reply) => reply,
            Err(e) => {
                return Ok(Some(Difference { at, ours: format!("no reply: {e}"), theirs: shown(&theirs) }));
            }
        };
        if leads_no_more(&ours) {
            return Ok(None);
        }
        if !agree(argv, &ours, &theirs) {
            return Ok(Some(Difference { at, ours: shown(&ours), theirs: shown(&theirs) }));
        }
        if is(argv, "DUMP")
            && let (Reply::Bulk(ours), Reply::Bulk(theirs)) = (ours, theirs)
            && let Some(Stop::Difference(difference)) = exchange_dumps(pair, at, &ours, &theirs)?
        {
            return Ok(Some(difference));
        }
    }
    match compare_keys(pair, history.len() - 1)? {
        Some(Stop::Difference(difference)) => Ok(Some(difference)),
        _ => Ok(None),
    }
}

/// A command as a line of a script.
fn show(argv: &[Vec<u8>]) -> String {
    let word = |word: &Vec<u8>| match word.as_slice() {
        plain if !plain.is_empty() && plain.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'"') => {
            String::from_utf8_lossy(plain).into_owned()
        }
        other => format!("\"{}\"", escaped(other)),
    };
    argv.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// As the words of a script are written.
fn escaped(bytes: &[u8]) -> String {
    let one = |byte: &u8| match byte {
        b'"' | b'\\' => format!("\\{}", char::from(*byte)),
        b' '..=b'~' => char::from(*byte).to_string(),
        other => format!("\\x{other:02x}"),
    };
    bytes.iter().map(one).collect()
}

/// A reply with its type, not too long.
fn shown(reply: &Reply) -> String {
    let text = typed(reply);
    match text.char_indices().nth(600) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// A reply with its type, on one line.
fn typed(reply: &Reply) -> String {
    let all = |items: &[Reply]| items.iter().map(typed).collect::<Vec<_>>().join(", ");
    match reply {
        Reply::Simple(text) => format!("+{text}"),
        Reply::Error(text) => format!("-{}", error_text(text)),
        Reply::Int(value) => format!(":{value}"),
        Reply::Bulk(bytes) => format!("\"{}\"", bytes.escape_ascii()),
        Reply::Null => "null".to_owned(),
        Reply::NullArray => "null array".to_owned(),
        Reply::Array(items) => format!("[{}]", all(items)),
        Reply::Set(items) => format!("set [{}]", all(items)),
        Reply::Push(items) => format!("push [{}]", all(items)),
        Reply::Map(pairs) => {
            let pairs: Vec<String> =
                pairs.iter().map(|(key, value)| format!("{}: {}", typed(key), typed(value))).collect();
            format!("{{{}}}", pairs.join(", "))
        }
        Reply::Double(text) => format!(",{text}"),
        Reply::BigNumber(text) => format!("({text}"),
        Reply::Boolean(value) => format!("#{value}"),
        Reply::Verbatim(format, text) => format!("={format}:\"{}\"", text.escape_ascii()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::words;

    fn argv(line: &str) -> Vec<Vec<u8>> {
        words(line).unwrap()
    }

    #[test]
    fn the_same_seed_makes_the_same_commands_and_all_names_come() {
        let make = || {
            let mut commands = Commands::new(Random::new(7), Vec::new());
            (0..5000).map(|_| commands.command()).collect::<Vec<_>>()
        };
        let commands = make();
        assert_eq!(commands, make());
        for name in Commands::names() {
            assert!(commands.iter().any(|argv| is(argv, name)), "{name}");
        }
    }

    #[test]
    fn commands_are_shown_as_scripts_write_them() {
        let command = vec![b"SET".to_vec(), b"a b\x00\"\\".to_vec(), Vec::new()];
        assert_eq!(argv(&show(&command)), command);
    }

    #[test]
    fn replies_agree_only_as_far_as_they_must() {
        let (int, bulk) = (Reply::Int, |text: &str| Reply::Bulk(text.as_bytes().to_vec()));
        assert!(agree(&argv("TTL k"), &int(100), &int(99)));
        assert!(!agree(&argv("TTL k"), &int(-1), &int(-2)) && !agree(&argv("TTL k"), &int(100), &int(200)));
        assert!(
            !agree(&argv("GET k"), &bulk("a"), &bulk("b"))
                && !agree(&argv("GET k"), &Reply::Null, &Reply::NullArray)
        );
        let (ab, ba) = (Reply::Array(vec![bulk("a"), bulk("b")]), Reply::Array(vec![bulk("b"), bulk("a")]));
        assert!(agree(&argv("KEYS *"), &ab, &ba) && !agree(&argv("MGET a b"), &ab, &ba));
        let error = |text: &str| Reply::Error(text.into());
        assert!(!agree(&argv("INFO x"), &error("ERR a"), &error("ERR b")));
    }
}
