//! What fuzzers call, and the properties they look for: bytes in, replies out, no sockets.
//!
//! Public only with the feature `fuzzing`, for the targets in `fuzz/`; the tests of this crate replay the corpus of each
//! through the same functions. They panic when a property does not hold.

use crate::port::{Place, Replica};
use crate::resp::{Limits, Protocol, RequestDecoder, RespSink};
use crate::sentinel::testing as sentinel;
use crate::session::{Action, Next, Session};
use crate::testing::{Scripted, port};
use kvorum_cluster::Mode;
use kvorum_keyspace::{Command, Keyspace, Run, Settings, Sink};
use kvorum_node::ReplySink as _;

/// The largest argument.
const MAX_BULK_BYTES: u64 = 512 << 20;
/// What a decoder may hold beside a multiple of what it was given.
const SPARE_BYTES: usize = 1024 * 1024;
/// The requests of one input that are run.
const MAX_REQUESTS: usize = 200;

/// How much of an input a Sentinel port hears.
const WATCHED_BYTES: usize = 4096;

/// What came out of some bytes: the requests, and the error that ended them.
#[derive(PartialEq, Eq, Debug)]
struct Decoded {
    requests: Vec<Vec<Vec<u8>>>,
    error: Option<Vec<u8>>,
}

/// Decodes the bytes in one piece, byte by byte, and in pieces that the first byte chooses.
///
/// # Panics
/// When the requests depend on how the bytes were cut, when an error is not worded like Redis's, or when the decoder keeps much more
/// than it was given.
pub fn decode(bytes: &[u8]) {
    let Some((&choice, bytes)) = bytes.split_first() else { return };
    let limits = Limits { bulk_bytes: MAX_BULK_BYTES, stranger: choice & 1 == 1 };
    let whole = decoded([bytes].into_iter(), limits);
    let piece = usize::from(choice >> 1) + 2;
    let sizes = [1, piece, piece * piece];
    for size in sizes.into_iter().filter(|size| bytes.len() / size <= 1024) {
        let cut = decoded(bytes.chunks(size), limits);
        assert_eq!(cut, whole, "in pieces of {size} bytes");
    }
}

fn decoded<'a>(pieces: impl Iterator<Item = &'a [u8]>, limits: Limits) -> Decoded {
    let mut decoder = RequestDecoder::default();
    let mut decoded = Decoded { requests: Vec::new(), error: None };
    let mut given = 0;
    for piece in pieces {
        decoder.buffer(piece.len()).extend_from_slice(piece);
        given += piece.len();
        loop {
            match decoder.next(limits) {
                Ok(Some(args)) => {
                    assert!(!args.is_empty(), "a request without a command");
                    decoded.requests.push(args.iter().map(|arg| arg.to_vec()).collect());
                }
                Ok(None) => break,
                Err(error) => {
                    check_error(error.text());
                    decoded.error = Some(error.text().to_vec());
                    return decoded;
                }
            }
        }
        let kept = decoder.buffer(0).capacity();
        assert!(kept <= 4 * given + SPARE_BYTES, "{kept} bytes are kept of {given}");
    }
    decoded
}

/// An error of the protocol is a line that begins as Redis's do.
fn check_error(text: &[u8]) {
    let shown = text.escape_ascii();
    assert!(text.starts_with(b"ERR Protocol error: "), "{shown}");
    assert!(!text.contains(&b'\r') && !text.contains(&b'\n'), "{shown} is more than a line");
}

/// Serves the requests in the bytes, with a keyspace of its own; the first byte chooses mode, password and protocol. Returns all
/// replies.
///
/// # Panics
/// When a request has another number of replies than one, or a reply is no RESP.
pub fn converse(bytes: &[u8]) -> Vec<u8> {
    let Some((&choice, bytes)) = bytes.split_first() else { return Vec::new() };
    let mode = if choice & 1 == 1 { Mode::Cluster } else { Mode::Standalone };
    let databases = if mode == Mode::Cluster { 1 } else { 16 };
    let replica = Scripted::leading(mode);
    let mut keyspace = Keyspace::new(Settings { databases, hash_seed: [7; 16] });
    let port = port();
    let loopback = |port| (std::net::Ipv4Addr::LOCALHOST, port).into();
    let mut session = Session::new(port.clients.enter(loopback(50_000), loopback(7_000), 0), &port);
    let place = Place { port: &port, replica: Some(&replica as &dyn Replica) };
    let (mut decoder, mut replies) = (RequestDecoder::default(), Vec::new());
    decoder.buffer(bytes.len()).extend_from_slice(bytes);
    for _ in 0..MAX_REQUESTS {
        let limits = Limits { bulk_bytes: MAX_BULK_BYTES, stranger: session.lacks_password(&port) };
        let args = match decoder.next(limits) {
            Ok(Some(args)) => args,
            Ok(None) => break,
            Err(error) => {
                check_error(error.text());
                break;
            }
        };
        let mut out = RespSink::new(session.protocol());
        session.begin();
        let next = match session.on_request(&args, &port) {
            Action::Run(command) => {
                run(command, &args, &mut keyspace, session.db, &mut out);
                Next::Continue
            }
            Action::Serve { command, .. } => session.serve(command, &args, place, &mut out),
            Action::Refuse { error, .. } => {
                out.error(error.text());
                Next::Continue
            }
            Action::Close => break,
        };
        // What takes time has its reply later.
        let later = !matches!(next, Next::Continue | Next::Close);
        if !session.is_muted() && !later {
            check_reply(out.bytes(), session.protocol(), &args);
            replies.extend_from_slice(out.bytes());
        }
        if next == Next::Close {
            break;
        }
    }
    replies
}

fn run(command: &Command, args: &[&[u8]], keyspace: &mut Keyspace, db: u16, out: &mut RespSink) {
    const NOW_MS: u64 = 1_700_000_000_000;
    // Half a gigabyte of zeros is a right of clients, but not of fuzzers.
    let is_long = |arg: &&[u8]| (7..20).contains(&arg.len()) && arg.iter().all(u8::is_ascii_digit);
    if command.name == "setrange" && args.get(2).is_some_and(is_long) {
        return out.ok();
    }
    let mark = out.mark();
    let outcome = match command.run {
        Run::Read(run) => run(&keyspace.reader(db, NOW_MS, NOW_MS), args, out),
        Run::Write(run) => run(&mut keyspace.writer(db, NOW_MS, 1), args, out),
        Run::Server => panic!("{} is no command of the keyspace", command.name),
    };
    if let Err(error) = outcome {
        out.rewind(mark);
        out.error(error.text());
    }
}

/// Speaks to the Sentinel port; the first byte chooses mode, password, and how the rest arrives. Returns all replies.
///
/// # Panics
/// When what is said is no RESP, or when it depends on how the bytes were cut: how many replies and events there are, and what others
/// are told.
pub fn watch(bytes: &[u8]) -> Vec<u8> {
    let Some((&choice, bytes)) = bytes.split_first() else { return Vec::new() };
    // A request of a few bytes may have a reply of a hundred kilobytes.
    let bytes = &bytes[..bytes.len().min(WATCHED_BYTES)];
    let mode = if choice & 1 == 1 { Mode::Cluster } else { Mode::Standalone };
    let say = |size| {
        let conversation = sentinel::converse(mode, choice & 2 == 2, bytes.chunks(size));
        let said = &conversation.said;
        let (mut at, mut replies) = (0, 0);
        while at < said.len() {
            let length = said_length(&said[at..]);
            at += length.unwrap_or_else(|| panic!("no RESP: {}", said[at..].escape_ascii()));
            replies += 1;
        }
        (replies, conversation)
    };
    let (replies, whole) = say(bytes.len().max(1));
    let (replies_in_pieces, in_pieces) = say(usize::from(choice >> 2) + 1);
    if !whole.flooded && !in_pieces.flooded {
        assert_eq!((replies_in_pieces, in_pieces.told), (replies, whole.told), "in pieces");
    }
    whole.said
}

/// The length of what comes next, in the protocol that it is in.
fn said_length(bytes: &[u8]) -> Option<usize> {
    length(bytes, Protocol::Resp2, 0).or_else(|| length(bytes, Protocol::Resp3, 0))
}

/// Exactly one reply, of types that the protocol has.
fn check_reply(bytes: &[u8], protocol: Protocol, args: &[&[u8]]) {
    let length = length(bytes, protocol, 0);
    let shown = || {
        let args: Vec<String> = args.iter().map(|arg| arg.escape_ascii().to_string()).collect();
        format!("{} got {}", args.join(" "), bytes.escape_ascii())
    };
    assert_eq!(length, Some(bytes.len()), "{}", shown());
}

/// The length of the reply at the front, if it is whole and well-formed. Not left to the library that decodes requests, which
/// refuses sets of arrays.
fn length(bytes: &[u8], protocol: Protocol, depth: usize) -> Option<usize> {
    let end = bytes.windows(2).position(|two| two == b"\r\n")?;
    let (&kind, line) = bytes[..end].split_first()?;
    let kinds: &[u8] = if protocol == Protocol::Resp3 { b"+-:$*%~,#=(>_" } else { b"+-:$*" };
    if !kinds.contains(&kind) || line.contains(&b'\n') || depth > 16 {
        return None;
    }
    let number = || std::str::from_utf8(line).ok()?.parse::<i64>().ok();
    let head = end + 2;
    match kind {
        b'$' | b'*' if line == b"-1" => (protocol == Protocol::Resp2).then_some(head),
        b'$' | b'=' => {
            let whole = head + usize::try_from(number()?).ok()? + 2;
            bytes.get(..whole)?.ends_with(b"\r\n").then_some(whole)
        }
        b'*' | b'%' | b'~' | b'>' => {
            let count = usize::try_from(number()?).ok()? * if kind == b'%' { 2 } else { 1 };
            (0..count).try_fold(head, |at, _| Some(at + length(bytes.get(at..)?, protocol, depth + 1)?))
        }
        b':' => number().map(|_| head),
        _ => Some(head),
    }
}

#[cfg(test)]
mod tests {
    use super::{converse, decode, watch};
    use std::path::Path;

    /// Inputs that fuzzers found, and those they began with.
    fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
        let mut inputs = Vec::new();
        for entry in std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.unwrap().path();
            inputs.push((
                path.file_name().unwrap().to_string_lossy().into_owned(),
                std::fs::read(path).unwrap(),
            ));
        }
        inputs.sort();
        assert!(inputs.len() >= 10, "the corpus is where it should be");
        inputs
    }

    /// Small changes of an input: the same in every run.
    fn mutated(input: &[u8], seed: &mut u64) -> Vec<u8> {
        let mut random = |bound: usize| {
            *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(*seed >> 33).unwrap() % bound.max(1)
        };
        let mut bytes = input.to_vec();
        for _ in 0..=random(3) {
            let at = random(bytes.len());
            match random(5) {
                0 if !bytes.is_empty() => bytes[at] ^= 1 << random(8),
                1 if !bytes.is_empty() => drop(bytes.remove(at)),
                2 => bytes.insert(at, b"\r\n*$-0159 \"'\x00\xff"[random(13)]),
                3 => bytes.truncate(at),
                _ => {
                    let end = at + random(bytes.len() - at);
                    let part = bytes[at..end].to_vec();
                    bytes.splice(at..at, part);
                }
            }
        }
        bytes
    }

    #[test]
    fn the_corpus_of_the_decoder_holds_and_so_do_its_neighbours() {
        let mut seed = 1;
        for (_, input) in corpus("decoder") {
            decode(&input);
            (0..20).for_each(|_| decode(&mutated(&input, &mut seed)));
        }
    }

    #[test]
    fn the_corpus_of_the_sentinel_port_holds_and_so_do_its_neighbours() {
        let (mut seed, mut answered) = (1, 0);
        for (_, input) in corpus("sentinel") {
            answered += usize::from(!watch(&input).is_empty());
            (0..20).for_each(|_| drop(watch(&mutated(&input, &mut seed))));
        }
        assert!(answered > 5, "conversations have replies");
    }

    #[test]
    fn the_corpus_of_the_session_holds_and_so_do_its_neighbours() {
        let (mut seed, mut answered) = (1, 0);
        for (_, input) in corpus("session") {
            answered += usize::from(!converse(&input).is_empty());
            (0..20).for_each(|_| drop(converse(&mutated(&input, &mut seed))));
        }
        assert!(answered > 5, "conversations have replies");
    }
}
