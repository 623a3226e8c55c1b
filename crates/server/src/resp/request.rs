//! Bytes of a client → requests.
//!
//! Contract: any bytes are taken without a panic; what is malformed gives Redis's text and ends the connection.
//! Partial input is looked at once: a scan remembers how far it came, so a large value that arrives in many
//! reads is not parsed anew each time, and nothing is reserved for sizes that a client merely announces.
//!
//! The scan walks the lengths, checks them as strictly as Redis does, and finds the end of the request. Only a
//! complete request, an array of bulk strings and nothing else, is then handed to `redis-protocol`: its decoder
//! reports every fault alike, starts anew on partial input, and follows nested arrays as deep as they go.
//!
//! Redis reads lines as C strings and looks at nothing but the CR at the end of a length. So does the scan: a line with a NUL in
//! it never ends, and what stands where a LF should be does not matter. What the decoder would not take for that is walked
//! through by hand.

use super::inline;
use kvorum_keyspace::ArgVec;
use redis_protocol::resp2::decode::decode_range;
use redis_protocol::resp2::types::RangeFrame;
use std::borrow::Cow;

/// Most arguments of one request: as Redis 7.0, whose limit is that of a C `int`. What a client announces costs nothing; what
/// it sends is bounded by `client-query-buffer-limit`.
const MAX_ARGUMENTS: i64 = i32::MAX as i64;
/// Longest inline request, and longest length line.
const MAX_LINE_BYTES: usize = 64 * 1024;
/// Most arguments of a request of a client that has not authenticated.
const MAX_STRANGER_ARGUMENTS: i64 = 10;
/// The largest argument of a client that has not authenticated.
const MAX_STRANGER_BULK_BYTES: u64 = 16 * 1024;
/// What an argument costs besides its bytes while a request is put together.
const ARGUMENT_BYTES: usize = 64;
/// A buffer that grew beyond this for a large request is given back once it is empty.
const KEEP_BYTES: usize = 256 * 1024;

/// A request that cannot be understood; the connection cannot go on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ProtocolError(Cow<'static, [u8]>);

impl ProtocolError {
    /// The whole error reply, its code included; not always UTF-8, for it may quote what was sent.
    pub(crate) fn text(&self) -> &[u8] {
        &self.0
    }
}

const INVALID_MULTIBULK_LENGTH: ProtocolError =
    ProtocolError(Cow::Borrowed(b"ERR Protocol error: invalid multibulk length"));
const INVALID_BULK_LENGTH: ProtocolError =
    ProtocolError(Cow::Borrowed(b"ERR Protocol error: invalid bulk length"));
const TOO_BIG_INLINE: ProtocolError =
    ProtocolError(Cow::Borrowed(b"ERR Protocol error: too big inline request"));
const TOO_BIG_COUNT: ProtocolError =
    ProtocolError(Cow::Borrowed(b"ERR Protocol error: too big mbulk count string"));
const TOO_BIG_LENGTH: ProtocolError =
    ProtocolError(Cow::Borrowed(b"ERR Protocol error: too big bulk count string"));
const STRANGER_COUNT: ProtocolError =
    ProtocolError(Cow::Borrowed(b"ERR Protocol error: unauthenticated multibulk length"));
const STRANGER_LENGTH: ProtocolError =
    ProtocolError(Cow::Borrowed(b"ERR Protocol error: unauthenticated bulk length"));
const UNBALANCED_QUOTES: ProtocolError =
    ProtocolError(Cow::Borrowed(b"ERR Protocol error: unbalanced quotes in request"));

/// How much a client may send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Limits {
    /// The largest argument.
    pub(crate) bulk_bytes: u64,
    /// Whether the client has yet to authenticate: then a request is small.
    pub(crate) stranger: bool,
}

/// Finds requests in the bytes of one connection.
#[derive(Debug, Default)]
pub(crate) struct RequestDecoder {
    buffer: Vec<u8>,
    /// Where the next request begins; what stands before it is done with.
    start: usize,
    scan: Scan,
    /// Some length of the request at `start` ends in a CR and something else than a LF.
    odd: bool,
    /// Words of the inline command that [`next`](RequestDecoder::next) returned last.
    words: Vec<Vec<u8>>,
}

/// How far the request at `start` has been looked at.
#[derive(Clone, Copy, Debug, Default)]
struct Scan {
    /// Everything before this is understood; it lies at or after `start`.
    at: usize,
    /// What comes at `at`.
    expects: Expects,
    /// Arguments passed so far.
    arguments: usize,
}

#[derive(Clone, Copy, Debug, Default)]
enum Expects {
    /// A request.
    #[default]
    Request,
    /// The length of an argument, with this many arguments to come.
    Length { arguments: usize },
    /// This many bytes of an argument and a line break, with this many arguments to come after it.
    Bytes { bytes: usize, arguments: usize },
}

impl RequestDecoder {
    /// The buffer to append what was read to, with room for at least `room` bytes.
    pub(crate) fn buffer(&mut self, room: usize) -> &mut Vec<u8> {
        if self.start == self.buffer.len() {
            self.buffer.clear();
            if self.buffer.capacity() > KEEP_BYTES {
                self.buffer = Vec::new();
            }
            self.shift(self.start);
        } else if self.start > 0
            && self.buffer.capacity() > KEEP_BYTES
            && self.pending_bytes() < self.buffer.capacity() / 8
        {
            // What a large request took is given back, though another one has begun.
            self.buffer = self.buffer[self.start..].to_vec();
            self.shift(self.start);
        } else if self.buffer.capacity() - self.buffer.len() < room && self.start > 0 {
            // Moving is paid for by what was consumed: never more often than the buffer fills up.
            self.buffer.copy_within(self.start.., 0);
            self.buffer.truncate(self.buffer.len() - self.start);
            self.shift(self.start);
        }
        if self.buffer.capacity() - self.buffer.len() < room {
            self.grow(room);
        }
        &mut self.buffer
    }

    /// Makes the buffer larger: twice as large, but not beyond the end of a large argument that is on its way. So nothing is
    /// reserved for what was merely announced, and a large value does not cost twice its size.
    fn grow(&mut self, room: usize) {
        let least = self.buffer.len() + room;
        let doubled = least.max(2 * self.buffer.capacity());
        let enough = match self.scan.expects {
            Expects::Bytes { bytes, .. } => self.scan.at.saturating_add(bytes).saturating_add(room),
            _ => doubled,
        };
        self.buffer.reserve_exact(doubled.min(enough).max(least) - self.buffer.len());
    }

    fn shift(&mut self, by: usize) {
        self.start -= by;
        self.scan.at = self.scan.at.saturating_sub(by);
    }

    /// Bytes that wait to be decoded.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// What the requests that wait to be decoded cost, or will.
    pub(crate) fn cost(&self) -> usize {
        self.pending_bytes() + self.scan.arguments * ARGUMENT_BYTES
    }

    /// Bytes that the buffer can hold.
    pub(crate) fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    /// The next complete request, never without arguments; `None` when more bytes are needed. After an error
    /// there is nothing more to get.
    pub(crate) fn next(&mut self, limits: Limits) -> Result<Option<ArgVec<'_>>, ProtocolError> {
        loop {
            match self.scan.expects {
                Expects::Request => match self.buffer.get(self.scan.at) {
                    None => return Ok(None),
                    Some(b'*') => match self.scan_count(limits)? {
                        None => return Ok(None),
                        // As Redis: `*0` and `*-1` ask for nothing.
                        Some(0) => self.finish(self.scan.at),
                        Some(arguments) => self.scan.expects = Expects::Length { arguments },
                    },
                    Some(_) => {
                        let Some(line) = self.scan_line()? else { return Ok(None) };
                        self.words = inline::split(&self.buffer[line]).map_err(|_| UNBALANCED_QUOTES)?;
                        if !self.words.is_empty() {
                            return Ok(Some(self.words.iter().map(Vec::as_slice).collect()));
                        }
                    }
                },
                Expects::Length { arguments: 0 } => return self.decode().map(Some),
                Expects::Length { arguments } => match self.scan_length(limits)? {
                    None => return Ok(None),
                    Some(bytes) => self.scan.expects = Expects::Bytes { bytes, arguments: arguments - 1 },
                },
                Expects::Bytes { bytes, arguments } => {
                    let end = self.scan.at.saturating_add(bytes).saturating_add(2);
                    if self.buffer.len() < end {
                        return Ok(None);
                    }
                    self.scan.at = end;
                    self.scan.expects = Expects::Length { arguments };
                    self.scan.arguments += 1;
                }
            }
        }
    }

    /// The request at the front ends before `end`.
    fn finish(&mut self, end: usize) {
        self.start = end;
        self.scan = Scan { at: end, expects: Expects::Request, arguments: 0 };
        self.odd = false;
    }

    /// The arguments of the complete request at the front.
    fn decode(&mut self) -> Result<ArgVec<'_>, ProtocolError> {
        let (start, end, odd) = (self.start, self.scan.at, self.odd);
        self.finish(end);
        let request = &self.buffer[start..end];
        if odd {
            return Ok(walk(request));
        }
        // The scan found nothing to object to, so neither does the decoder. Were it otherwise, the client would
        // see an error, not we a panic.
        let Ok(Some((RangeFrame::Array(frames), _))) = decode_range(request) else {
            return Err(INVALID_MULTIBULK_LENGTH);
        };
        let mut arguments = ArgVec::with_capacity(frames.len());
        for frame in frames {
            let RangeFrame::BulkString((from, to)) = frame else { return Err(INVALID_BULK_LENGTH) };
            arguments.push(&request[from..to]);
        }
        Ok(arguments)
    }

    /// Passes over `*<count>` and its line break.
    fn scan_count(&mut self, limits: Limits) -> Result<Option<usize>, ProtocolError> {
        let Some(digits) = self.header(TOO_BIG_COUNT)? else { return Ok(None) };
        match parse_integer(&self.buffer[digits.clone()]) {
            Some(count)
                if limits.stranger && (MAX_STRANGER_ARGUMENTS + 1..=MAX_ARGUMENTS).contains(&count) =>
            {
                Err(STRANGER_COUNT)
            }
            Some(count) if count <= MAX_ARGUMENTS => {
                self.pass_line(digits.end);
                Ok(Some(usize::try_from(count).unwrap_or(0)))
            }
            _ => Err(INVALID_MULTIBULK_LENGTH),
        }
    }

    /// Passes over `$<length>` and its line break.
    fn scan_length(&mut self, limits: Limits) -> Result<Option<usize>, ProtocolError> {
        let Some(digits) = self.header(TOO_BIG_LENGTH)? else { return Ok(None) };
        let kind = self.buffer[self.scan.at];
        if kind != b'$' {
            // Line breaks would end the reply early.
            let got = if kind == b'\r' || kind == b'\n' { b' ' } else { kind };
            let text = [&b"ERR Protocol error: expected '$', got '"[..], &[got], b"'"].concat();
            return Err(ProtocolError(Cow::Owned(text)));
        }
        let length =
            parse_integer(&self.buffer[digits.clone()]).and_then(|length| u64::try_from(length).ok());
        match length.filter(|length| *length <= limits.bulk_bytes) {
            Some(length) if limits.stranger && length > MAX_STRANGER_BULK_BYTES => Err(STRANGER_LENGTH),
            Some(length) => {
                self.pass_line(digits.end);
                Ok(Some(usize::try_from(length).unwrap_or(usize::MAX / 2)))
            }
            None => Err(INVALID_BULK_LENGTH),
        }
    }

    /// The line whose CR stands at `cr` is understood.
    fn pass_line(&mut self, cr: usize) {
        self.odd |= self.buffer[cr + 1] != b'\n';
        self.scan.at = cr + 2;
    }

    /// Where the number behind the byte at `at` stands, once its line is there.
    fn header(&self, too_long: ProtocolError) -> Result<Option<std::ops::Range<usize>>, ProtocolError> {
        let rest = &self.buffer[self.scan.at..];
        match find(rest, b'\r') {
            // An empty line has no byte in front of its number.
            Some(0) if rest.len() > 1 => Ok(Some(self.scan.at..self.scan.at)),
            Some(cr) if rest.len() > cr + 1 => Ok(Some(self.scan.at + 1..self.scan.at + cr)),
            None if rest.len() > MAX_LINE_BYTES => Err(too_long),
            _ => Ok(None),
        }
    }

    /// Passes over a line and its break: an inline command.
    fn scan_line(&mut self) -> Result<Option<std::ops::Range<usize>>, ProtocolError> {
        let rest = &self.buffer[self.start..];
        let Some(lf) = find(rest, b'\n') else {
            return if rest.len() > MAX_LINE_BYTES { Err(TOO_BIG_INLINE) } else { Ok(None) };
        };
        let line = rest[..lf].strip_suffix(b"\r").unwrap_or(&rest[..lf]);
        let found = self.start..self.start + line.len();
        self.finish(self.start + lf + 1);
        Ok(Some(found))
    }
}

/// The arguments of a request that the scan has understood.
fn walk(mut request: &[u8]) -> ArgVec<'_> {
    let mut arguments = ArgVec::new();
    let mut count = take_length(&mut request);
    while let Some(more) = count.checked_sub(1) {
        count = more;
        let length = take_length(&mut request).min(request.len());
        let (argument, rest) = request.split_at(length);
        arguments.push(argument);
        request = rest.get(2..).unwrap_or_default();
    }
    arguments
}

/// Takes a line with a kind and a length off the front.
fn take_length(request: &mut &[u8]) -> usize {
    let cr = find(request, b'\r').unwrap_or(request.len());
    let number = parse_integer(request.get(1..cr).unwrap_or_default()).unwrap_or(0);
    *request = request.get(cr + 2..).unwrap_or_default();
    usize::try_from(number).unwrap_or(0)
}

/// Where a line ends: at this byte, unless a NUL comes before it or it is too far away.
fn find(line: &[u8], end: u8) -> Option<usize> {
    let at = line.iter().take(MAX_LINE_BYTES + 1).position(|&byte| byte == end || byte == 0)?;
    (line[at] == end).then_some(at)
}

/// A signed integer in its one spelling: no plus sign, no leading zeros, no blanks.
fn parse_integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    match digits {
        [b'0'] if !negative => return Some(0),
        [b'1'..=b'9', ..] if digits.len() <= 19 => {}
        _ => return None,
    }
    // Below zero there is one number more.
    let mut value = 0i64;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        value = value.checked_mul(10)?.checked_sub(i64::from(digit - b'0'))?;
    }
    if negative { Some(value) } else { value.checked_neg() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { bulk_bytes: 512 << 20, stranger: false };

    /// All requests in `bytes`, fed in pieces of `step`, and the error that ended them.
    fn decode(bytes: &[u8], step: usize) -> (Vec<Vec<Vec<u8>>>, Option<String>) {
        let mut decoder = RequestDecoder::default();
        let mut requests = Vec::new();
        for piece in bytes.chunks(step.max(1)) {
            decoder.buffer(piece.len()).extend_from_slice(piece);
            loop {
                match decoder.next(LIMITS) {
                    Ok(Some(arguments)) => {
                        requests.push(arguments.iter().map(|argument| argument.to_vec()).collect());
                    }
                    Ok(None) => break,
                    Err(error) => {
                        return (requests, Some(String::from_utf8_lossy(error.text()).into_owned()));
                    }
                }
            }
        }
        (requests, None)
    }

    fn encode(requests: &[Vec<Vec<u8>>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for request in requests {
            bytes.extend_from_slice(format!("*{}\r\n", request.len()).as_bytes());
            for argument in request {
                bytes.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
                bytes.extend_from_slice(argument);
                bytes.extend_from_slice(b"\r\n");
            }
        }
        bytes
    }

    /// The one request that `bytes` are.
    fn one(bytes: &[u8]) -> Vec<String> {
        let (mut requests, error) = decode(bytes, bytes.len());
        assert_eq!((requests.len(), error), (1, None), "{:?}", String::from_utf8_lossy(bytes));
        requests.remove(0).into_iter().map(|word| String::from_utf8(word).unwrap()).collect()
    }

    #[test]
    fn arrays_inline_commands_and_empty_requests() {
        assert_eq!(one(b"*2\r\n$4\r\nECHO\r\n$0\r\n\r\n"), ["ECHO", ""]);
        assert_eq!(one(b"PING\r\n"), ["PING"]);
        assert_eq!(one(b"\r\n\nPING\n"), ["PING"]);
        assert_eq!(one(b"*0\r\n*-1\r\nSET \"a b\" c\r\n"), ["SET", "a b", "c"]);
        // Redis does not look at what stands where the line break of an argument should be.
        assert_eq!(one(b"*1\r\n$4\r\nPINGxx"), ["PING"]);
    }

    #[test]
    fn malformed_requests_get_the_texts_of_redis() {
        let long = |start: &str| [start.as_bytes(), &[b'1'; MAX_LINE_BYTES + 1]].concat();
        for (bytes, text) in [
            (b"*a\r\n".to_vec(), "invalid multibulk length"),
            (b"*\r\n".to_vec(), "invalid multibulk length"),
            (b"*01\r\n".to_vec(), "invalid multibulk length"),
            (b"*+1\r\n".to_vec(), "invalid multibulk length"),
            (b"*-0\r\n".to_vec(), "invalid multibulk length"),
            (b"*1\r\n$ 4\r\n".to_vec(), "invalid bulk length"),
            (b"*1\n$4\nPING\n\r\n".to_vec(), "invalid multibulk length"),
            (b"*2147483648\r\n".to_vec(), "invalid multibulk length"),
            (b"*9223372036854775808\r\n".to_vec(), "invalid multibulk length"),
            (b"*1\r\n$-1\r\n".to_vec(), "invalid bulk length"),
            (b"*1\r\n$04\r\n".to_vec(), "invalid bulk length"),
            (b"*1\r\n$x\r\n".to_vec(), "invalid bulk length"),
            (b"*1\r\n$536870913\r\n".to_vec(), "invalid bulk length"),
            (b"*1\r\n:1\r\n".to_vec(), "expected '$', got ':'"),
            (b"*1\r\nPING\r\n".to_vec(), "expected '$', got 'P'"),
            (b"*1\r\n*1\r\n*1\r\n".to_vec(), "expected '$', got '*'"),
            (b"*1\r\n\r\nx".to_vec(), "expected '$', got ' '"),
            (b"PING \"a\r\n".to_vec(), "unbalanced quotes in request"),
            (long("x"), "too big inline request"),
            (long("*"), "too big mbulk count string"),
            (long("*1\r\n$"), "too big bulk count string"),
        ] {
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
            let (requests, error) = decode(&bytes, bytes.len());
            assert!(requests.is_empty(), "{shown}");
            assert_eq!(error, Some(format!("ERR Protocol error: {text}")), "{shown}");
        }
    }

    #[test]
    fn who_has_not_authenticated_sends_small_requests() {
        let of = |bytes: &[u8]| {
            let mut decoder = RequestDecoder::default();
            decoder.buffer(bytes.len()).extend_from_slice(bytes);
            let stranger =
                decoder.next(Limits { stranger: true, ..LIMITS }).map(|args| args.map(|args| args.len()));
            stranger.map_err(|error| String::from_utf8_lossy(error.text()).into_owned())
        };
        assert_eq!(of(b"*10\r\n$1\r\n"), Ok(None));
        assert_eq!(of(b"*1\r\n$16384\r\n"), Ok(None));
        assert_eq!(of(b"*1\r\n$1\r\nx\r\n*11\r\n"), Ok(Some(1)));
        let refused = |text: &str| Err(format!("ERR Protocol error: {text}"));
        assert_eq!(of(b"*11\r\n"), refused("unauthenticated multibulk length"));
        assert_eq!(of(b"*2147483648\r\n"), refused("invalid multibulk length"));
        assert_eq!(of(b"*1\r\n$16385\r\n"), refused("unauthenticated bulk length"));
        assert_eq!(of(b"*1\r\n$536870913\r\n"), refused("invalid bulk length"));
    }

    /// As Redis 7.0.15 answers them.
    #[test]
    fn odd_ends_of_lines_are_read_as_redis_reads_them() {
        assert_eq!(one(b"*1\rx$4\r\nPING\r\n"), ["PING"]);
        assert_eq!(one(b"*2\r\n$4\rxECHO\r\n$3\r\na\rbzz"), ["ECHO", "a\rb"]);
        assert_eq!(one(b"*-9223372036854775808\rx*1\r\n$4\r\nPING\r\n"), ["PING"]);
        assert_eq!(one(b"PING\r\rPING\r\n"), ["PING", "PING"]);
        for endless in
            [&b"*1\0\r\n$4\r\nPING\r\n"[..], b"*1\r\n$4\0\r\nPING\r\n", b"PI\0NG\r\n", b"\0PING\r\n"]
        {
            assert_eq!(decode(endless, 1), (Vec::new(), None), "{endless:?}");
        }
        let (_, error) = decode(&[b'\0'; MAX_LINE_BYTES + 1], 1000);
        assert_eq!(error.as_deref(), Some("ERR Protocol error: too big inline request"));
        let mut decoder = RequestDecoder::default();
        decoder.buffer(9).extend_from_slice(b"*1\r\n\xff4\r\n");
        let error = decoder.next(LIMITS).unwrap_err();
        assert_eq!(error.text(), b"ERR Protocol error: expected '$', got '\xff'");
    }

    #[test]
    fn requests_before_a_malformed_one_are_still_there() {
        let (requests, error) = decode(b"PING\r\n*1\r\n$4\r\nPING\r\n*x\r\nPING\r\n", 1000);
        assert_eq!(requests.len(), 2);
        assert!(error.is_some());
    }

    #[test]
    fn a_large_value_in_small_pieces_is_looked_at_once() {
        // Quadratic work on 16 MiB in pieces of 1 KiB would be 128 GiB of scanning: minutes, not milliseconds.
        let value = vec![b'\r'; 16 << 20];
        let bytes = encode(&[vec![b"SET".to_vec(), b"k".to_vec(), value.clone()]]);
        let (requests, error) = decode(&bytes, 1024);
        assert_eq!(error, None);
        assert_eq!(requests[0][2], value);
    }

    #[test]
    fn announced_sizes_reserve_nothing() {
        let mut decoder = RequestDecoder::default();
        decoder.buffer(64).extend_from_slice(b"*1048576\r\n$536870912\r\nx");
        assert_eq!(decoder.next(LIMITS), Ok(None));
        assert!(decoder.buffer(64).capacity() < 1 << 20);
    }

    #[test]
    fn a_large_value_does_not_cost_twice_its_size() {
        let value = vec![b'x'; (32 << 20) + 1000];
        let bytes = [encode(&[vec![b"SET".to_vec(), b"k".to_vec(), value]]), b"PING\r\nPI".to_vec()].concat();
        let mut decoder = RequestDecoder::default();
        let mut most = 0;
        for piece in bytes.chunks(16 * 1024) {
            decoder.buffer(16 * 1024).extend_from_slice(piece);
            most = most.max(decoder.capacity());
            while decoder.next(LIMITS).unwrap().is_some() {}
        }
        assert!(most < (33 << 20), "{most}");
        // It is given back, though the next request has begun already.
        decoder.buffer(1024);
        assert!(decoder.capacity() <= KEEP_BYTES, "{}", decoder.capacity());
        assert_eq!(decoder.pending_bytes(), 2);
    }

    #[test]
    fn many_small_arguments_cost_more_than_their_bytes() {
        let mut decoder = RequestDecoder::default();
        let bytes = [&b"*1000000\r\n"[..], &b"$0\r\n\r\n".repeat(1000)].concat();
        decoder.buffer(bytes.len()).extend_from_slice(&bytes);
        assert_eq!(decoder.next(LIMITS), Ok(None));
        assert_eq!(decoder.cost(), bytes.len() + 1000 * ARGUMENT_BYTES);
    }

    fn requests() -> impl Strategy<Value = Vec<Vec<Vec<u8>>>> {
        let argument = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..20),
            proptest::collection::vec(proptest::sample::select(b"\r\n$*:0\0".to_vec()), 0..20),
        ];
        proptest::collection::vec(proptest::collection::vec(argument, 1..6), 0..8)
    }

    proptest! {
        #[test]
        fn what_was_encoded_comes_back_however_it_is_cut(requests in requests(), step in 1usize..40) {
            let (decoded, error) = decode(&encode(&requests), step);
            prop_assert_eq!(error, None);
            prop_assert_eq!(decoded, requests);
        }

        #[test]
        fn any_bytes_are_taken_and_cutting_them_changes_nothing(
            bytes in proptest::collection::vec(
                prop_oneof![
                    proptest::sample::select(b"*$\r\n-0123456789\"'\\x:P ".to_vec()),
                    any::<u8>(),
                ],
                0..200,
            ),
            step in 1usize..50,
        ) {
            prop_assert_eq!(decode(&bytes, step), decode(&bytes, bytes.len().max(1)));
        }

        #[test]
        fn integers_have_one_spelling(value in any::<i64>()) {
            let text = value.to_string();
            prop_assert_eq!(parse_integer(text.as_bytes()), Some(value));
            let padded = format!(" {text}");
            prop_assert_eq!(parse_integer(padded.as_bytes()), None);
        }
    }
}
