//! Replies → bytes.

use super::double::format_double;
use crate::slowlog::SlowCommand;
use kvorum_keyspace::{Args, Command, Sink, Slot};
use kvorum_node::{ForwardedReplies, ReplySink};
use std::time::Duration;

/// Version of RESP that a client asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Protocol {
    /// What every connection begins with.
    #[default]
    Resp2,
    /// After `HELLO 3`.
    Resp3,
}

impl Protocol {
    /// 2 or 3.
    pub(crate) fn number(self) -> i64 {
        match self {
            Protocol::Resp2 => 2,
            Protocol::Resp3 => 3,
        }
    }
}

/// Encodes replies into one buffer, and keeps count of them.
///
/// A reply is counted when its last part is written. Errors are counted when they are replies of their own, not
/// when they stand inside an array.
#[derive(Debug, Default)]
pub(crate) struct RespSink {
    bytes: Vec<u8>,
    protocol: Protocol,
    /// Parts that the reply being written still lacks.
    missing: usize,
    replies: usize,
    /// Which replies are errors, and where they start.
    errors: Vec<(usize, usize)>,
    /// Replies that wait for the words of a redirection: where, and for which slot.
    unserved: Vec<(usize, Slot)>,
    /// Commands that run for at least this long are noted.
    slow_after: Option<Duration>,
    /// Bytes from which on no more replies are wanted; 0 for never.
    full_at: usize,
    /// Those that did.
    slow: Vec<SlowCommand>,
}

/// A buffer that grew beyond this is given back once it is empty.
const KEEP_BYTES: usize = 64 * 1024;
/// Stands for a redirection until its words are known.
const PLACEHOLDER: &[u8] = b"-\r\n";

impl RespSink {
    /// An empty sink.
    pub(crate) fn new(protocol: Protocol) -> RespSink {
        RespSink { protocol, ..RespSink::default() }
    }

    /// Changes the version for the replies to come.
    pub(crate) fn set_protocol(&mut self, protocol: Protocol) {
        self.protocol = protocol;
    }

    /// From here on commands that run for at least this long are noted; `None` for none.
    pub(crate) fn watch_for_slow(&mut self, slow_after: Option<Duration>) {
        self.slow_after = slow_after;
    }

    /// No more replies are wanted once there are so many bytes more; `None` for any number.
    pub(crate) fn take_at_most(&mut self, bytes: Option<usize>) {
        self.full_at = bytes.map_or(0, |bytes| self.bytes.len() + bytes);
    }

    /// What was noted.
    pub(crate) fn take_slow(&mut self) -> Vec<SlowCommand> {
        std::mem::take(&mut self.slow)
    }

    /// What is encoded so far.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Number of complete replies since the last [`reset_counts`](RespSink::reset_counts).
    pub(crate) fn replies(&self) -> usize {
        self.replies
    }

    /// Which of the replies counted so far are errors, with their texts, in order.
    pub(crate) fn errors(&self) -> impl Iterator<Item = (usize, &[u8])> {
        self.errors.iter().map(|&(reply, at)| (reply, line_at(&self.bytes, at.saturating_add(1))))
    }

    /// Starts counting replies anew.
    pub(crate) fn reset_counts(&mut self) {
        self.replies = 0;
        self.errors.clear();
    }

    /// Empties the sink for its next use.
    pub(crate) fn clear(&mut self) {
        if self.bytes.capacity() > KEEP_BYTES {
            self.bytes = Vec::new();
        }
        self.bytes.clear();
        self.missing = 0;
        self.unserved.clear();
        self.slow.clear();
        self.reset_counts();
    }

    /// Moves all bytes of `other` behind the own ones.
    pub(crate) fn append(&mut self, other: &mut RespSink) {
        if self.bytes.is_empty() {
            std::mem::swap(&mut self.bytes, &mut other.bytes);
        } else {
            self.bytes.extend_from_slice(&other.bytes);
        }
    }

    /// Adds bytes that are no replies.
    pub(crate) fn append_raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Bytes that the buffer can hold.
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Gives back everything since `mark`: the client wants no replies.
    pub(crate) fn mute_since(&mut self, mark: usize) {
        self.bytes.truncate(mark);
    }

    /// Whether some reply waits for [`resolve_unserved`](RespSink::resolve_unserved).
    pub(crate) fn has_unserved(&self) -> bool {
        !self.unserved.is_empty()
    }

    /// Puts the words of a redirection where a slot was found to be gone.
    pub(crate) fn resolve_unserved(&mut self, words: impl Fn(Slot) -> String) {
        let unserved = std::mem::take(&mut self.unserved);
        // From the back, so that the places before stay where they are.
        for (at, slot) in unserved.into_iter().rev() {
            let line = format!("-{}\r\n", words(slot));
            for (_, start) in self.errors.iter_mut().filter(|(_, start)| *start > at) {
                *start += line.len() - PLACEHOLDER.len();
            }
            self.bytes.splice(at..at + PLACEHOLDER.len(), line.into_bytes());
        }
    }

    /// The version of RESP.
    pub(crate) fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Something of `len` parts that the client did not ask for begins: a push in RESP3, an array in RESP2.
    pub(crate) fn push(&mut self, len: usize) {
        self.aggregate(len);
        self.header(if self.protocol == Protocol::Resp3 { b'>' } else { b'*' }, len);
    }

    /// One reply, encoded already.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.part();
        self.bytes.extend_from_slice(bytes);
    }

    /// The complete replies counted so far, for another sink; they are taken out of this one.
    pub(crate) fn take_for_another(&mut self) -> ForwardedReplies {
        ForwardedReplies {
            encoded: std::mem::take(&mut self.bytes).into(),
            count: std::mem::take(&mut self.replies),
            errors: std::mem::take(&mut self.errors),
        }
    }

    /// Complete replies that another sink has encoded, and the places of the errors among them.
    pub(crate) fn replies_of_another(&mut self, other: &ForwardedReplies) {
        let (replies, start) = (self.replies, self.bytes.len());
        let places = other.errors.iter();
        self.errors
            .extend(places.map(|(reply, at)| (replies.saturating_add(*reply), start.saturating_add(*at))));
        self.replies += other.count;
        self.bytes.extend_from_slice(&other.encoded);
    }

    fn part(&mut self) {
        match self.missing {
            0 => self.replies += 1,
            1 => {
                self.missing = 0;
                self.replies += 1;
            }
            _ => self.missing -= 1,
        }
    }

    /// An aggregate of `parts` parts begins.
    fn aggregate(&mut self, parts: usize) {
        if self.missing > 0 {
            // It is a part itself.
            self.missing -= 1;
        }
        self.missing += parts;
        if self.missing == 0 {
            self.replies += 1;
        }
    }

    fn line(&mut self, kind: u8, text: &[u8]) {
        self.bytes.push(kind);
        if text.iter().any(|byte| matches!(byte, b'\r' | b'\n')) {
            let blank = |&byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { byte };
            self.bytes.extend(text.iter().map(blank));
        } else {
            self.bytes.extend_from_slice(text);
        }
        self.bytes.extend_from_slice(b"\r\n");
    }

    fn header(&mut self, kind: u8, number: usize) {
        self.bytes.push(kind);
        self.bytes.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
        self.bytes.extend_from_slice(b"\r\n");
    }

    fn write_bulk(&mut self, kind: u8, parts: [&[u8]; 2]) {
        let len = parts[0].len() + parts[1].len();
        self.bytes.reserve(len + 24);
        self.header(kind, len);
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
        self.bytes.extend_from_slice(b"\r\n");
    }

    fn null_of(&mut self, resp2: &[u8]) {
        self.part();
        let text = if self.protocol == Protocol::Resp3 { b"_\r\n" } else { resp2 };
        self.bytes.extend_from_slice(text);
    }
}

/// The line that starts at `at`, without its break.
fn line_at(bytes: &[u8], at: usize) -> &[u8] {
    let rest = bytes.get(at..).unwrap_or_default();
    let end = rest.iter().position(|&byte| byte == b'\r').unwrap_or(rest.len());
    &rest[..end]
}

impl Sink for RespSink {
    fn simple(&mut self, text: &str) {
        self.part();
        self.line(b'+', text.as_bytes());
    }

    fn error(&mut self, text: &[u8]) {
        if self.missing == 0 {
            self.errors.push((self.replies, self.bytes.len()));
        }
        self.part();
        self.line(b'-', text);
    }

    fn int(&mut self, value: i64) {
        self.part();
        self.bytes.push(b':');
        self.bytes.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
        self.bytes.extend_from_slice(b"\r\n");
    }

    fn bulk(&mut self, bytes: &[u8]) {
        self.part();
        self.write_bulk(b'$', [bytes, b""]);
    }

    fn null(&mut self) {
        self.null_of(b"$-1\r\n");
    }

    fn null_array(&mut self) {
        self.null_of(b"*-1\r\n");
    }

    fn array(&mut self, len: usize) {
        self.aggregate(len);
        self.header(b'*', len);
    }

    fn map(&mut self, len: usize) {
        self.aggregate(2 * len);
        match self.protocol {
            Protocol::Resp2 => self.header(b'*', 2 * len),
            Protocol::Resp3 => self.header(b'%', len),
        }
    }

    fn set(&mut self, len: usize) {
        self.aggregate(len);
        self.header(if self.protocol == Protocol::Resp3 { b'~' } else { b'*' }, len);
    }

    fn double(&mut self, value: f64) {
        self.part();
        let text = format_double(value);
        match self.protocol {
            Protocol::Resp2 => self.write_bulk(b'$', [text.as_bytes(), b""]),
            Protocol::Resp3 => self.line(b',', text.as_bytes()),
        }
    }

    fn boolean(&mut self, value: bool) {
        self.part();
        self.bytes.extend_from_slice(match (self.protocol, value) {
            (Protocol::Resp2, true) => b":1\r\n",
            (Protocol::Resp2, false) => b":0\r\n",
            (Protocol::Resp3, true) => b"#t\r\n",
            (Protocol::Resp3, false) => b"#f\r\n",
        });
    }

    fn verbatim(&mut self, format: &str, text: &[u8]) {
        self.part();
        match self.protocol {
            Protocol::Resp2 => self.write_bulk(b'$', [text, b""]),
            Protocol::Resp3 => {
                let prefix = [format.as_bytes(), b":"].concat();
                self.write_bulk(b'=', [&prefix, text]);
            }
        }
    }

    fn ok(&mut self) {
        self.part();
        self.bytes.extend_from_slice(b"+OK\r\n");
    }
}

impl ReplySink for RespSink {
    fn not_served(&mut self, slot: Slot) {
        self.errors.push((self.replies, self.bytes.len()));
        self.unserved.push((self.bytes.len(), slot));
        self.part();
        self.bytes.extend_from_slice(PLACEHOLDER);
    }

    fn mark(&self) -> usize {
        self.bytes.len()
    }

    /// Marks are taken between replies, and the replies after one are taken back from the last on.
    fn rewind(&mut self, mark: usize) {
        let errors_kept = self.errors.iter().take_while(|(_, at)| *at < mark).count();
        self.errors.truncate(errors_kept);
        self.unserved.retain(|(at, _)| *at < mark);
        self.replies = self.replies.saturating_sub(count_replies(&self.bytes[mark..]));
        self.missing = 0;
        self.bytes.truncate(mark);
        // They will run again.
        self.slow.clear();
    }

    fn is_full(&self) -> bool {
        self.full_at > 0 && self.bytes.len() >= self.full_at
    }

    fn slow_after(&self) -> Option<Duration> {
        self.slow_after
    }

    fn slow(&mut self, command: &'static Command, args: Args<'_>, took: Duration) {
        self.slow.push(SlowCommand::new(command, args, took));
    }
}

/// Number of replies that begin in these bytes, which start with a reply.
fn count_replies(bytes: &[u8]) -> usize {
    let (mut at, mut count, mut missing) = (0, 0, 0usize);
    while let Some(&kind) = bytes.get(at) {
        if missing == 0 {
            count += 1;
        } else {
            missing -= 1;
        }
        let line = line_at(bytes, at + 1);
        at += line.len() + 3;
        let number = || std::str::from_utf8(line).ok().and_then(|text| text.parse::<usize>().ok());
        match kind {
            b'$' | b'=' => at += number().map_or(0, |len| len + 2),
            b'*' | b'~' | b'>' => missing += number().unwrap_or(0),
            b'%' => missing += 2 * number().unwrap_or(0),
            _ => {}
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everything(protocol: Protocol) -> String {
        let mut sink = RespSink::new(protocol);
        sink.ok();
        sink.simple("a\r\nb");
        sink.error(b"ERR x\ny");
        sink.int(i64::MIN);
        sink.bulk(b"a\r\n");
        sink.null();
        sink.null_array();
        sink.map(1);
        sink.bulk(b"k");
        sink.set(1);
        sink.int(-7);
        sink.double(0.5);
        sink.double(f64::NEG_INFINITY);
        sink.boolean(true);
        sink.boolean(false);
        sink.verbatim("txt", b"hi");
        sink.array(0);
        assert_eq!(sink.replies(), 14);
        assert_eq!(sink.errors().collect::<Vec<_>>(), [(2, &b"ERR x y"[..])]);
        String::from_utf8(sink.bytes().to_vec()).unwrap()
    }

    #[test]
    fn resp2() {
        assert_eq!(
            everything(Protocol::Resp2),
            "+OK\r\n+a  b\r\n-ERR x y\r\n:-9223372036854775808\r\n$3\r\na\r\n\r\n$-1\r\n*-1\r\n\
             *2\r\n$1\r\nk\r\n*1\r\n:-7\r\n$3\r\n0.5\r\n$4\r\n-inf\r\n:1\r\n:0\r\n$2\r\nhi\r\n*0\r\n"
        );
    }

    #[test]
    fn resp3() {
        assert_eq!(
            everything(Protocol::Resp3),
            "+OK\r\n+a  b\r\n-ERR x y\r\n:-9223372036854775808\r\n$3\r\na\r\n\r\n_\r\n_\r\n\
             %1\r\n$1\r\nk\r\n~1\r\n:-7\r\n,0.5\r\n,-inf\r\n#t\r\n#f\r\n=6\r\ntxt:hi\r\n*0\r\n"
        );
    }

    #[test]
    fn errors_are_bytes() {
        let mut sink = RespSink::default();
        sink.error(b"ERR \xff\r\xc3\n\0");
        assert_eq!(sink.bytes(), b"-ERR \xff \xc3 \0\r\n");
        assert_eq!(sink.errors().collect::<Vec<_>>(), [(0, &b"ERR \xff \xc3 \0"[..])]);
    }

    #[test]
    fn what_is_taken_back_was_never_there() {
        let mut sink = RespSink::new(Protocol::Resp3);
        sink.int(1);
        let mark = sink.mark();
        sink.map(1);
        sink.bulk(b"k");
        sink.array(2);
        sink.int(1);
        sink.bulk(b"\r\n*9\r\n");
        sink.error(b"ERR x");
        sink.not_served(Slot::new(1).unwrap());
        sink.rewind(mark);
        sink.error(b"ERR y");
        assert_eq!(sink.replies(), 2);
        assert_eq!(sink.errors().collect::<Vec<_>>(), [(1, &b"ERR y"[..])]);
        assert_eq!(sink.bytes(), b":1\r\n-ERR y\r\n");
        assert!(!sink.has_unserved());
    }

    #[test]
    fn redirections_are_put_where_the_slots_were_gone() {
        let mut sink = RespSink::default();
        sink.int(1);
        sink.not_served(Slot::new(7).unwrap());
        sink.error(b"ERR z");
        sink.not_served(Slot::new(8).unwrap());
        sink.resolve_unserved(|slot| format!("MOVED {slot} h:1"));
        assert_eq!(sink.bytes(), b":1\r\n-MOVED 7 h:1\r\n-ERR z\r\n-MOVED 8 h:1\r\n");
        let errors: Vec<_> = sink.errors().map(|(n, text)| (n, String::from_utf8_lossy(text))).collect();
        assert_eq!(errors, [(1, "MOVED 7 h:1".into()), (2, "ERR z".into()), (3, "MOVED 8 h:1".into())]);
    }
}
