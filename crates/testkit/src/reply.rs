//! Replies as they are on the wire, every type of RESP2 and RESP3 told apart.
//!
//! [`crate::resp::Value`] is for tests that only want to know what was said. Here it matters how: `$-1` and `*-1`,
//! a map and a flat array, `,1.0` and `$3 1.0` are different replies. The decoder is written down here a second time
//! on purpose; the server's encoder is somebody else's.

use std::fmt;

/// A reply.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Reply {
    /// `+`
    Simple(String),
    /// `-`; may quote any bytes of a client.
    Error(Vec<u8>),
    /// `:`
    Int(i64),
    /// `$`
    Bulk(Vec<u8>),
    /// `$-1` of RESP2, `_` of RESP3.
    Null,
    /// `*-1` of RESP2.
    NullArray,
    /// `*`
    Array(Vec<Reply>),
    /// `%`
    Map(Vec<(Reply, Reply)>),
    /// `~`
    Set(Vec<Reply>),
    /// `,`, as it was written.
    Double(String),
    /// `#`
    Boolean(bool),
    /// `=`, with its format.
    Verbatim(String, Vec<u8>),
    /// `(`
    BigNumber(String),
    /// `>`
    Push(Vec<Reply>),
}

/// What was read is no RESP.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Malformed(String);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this is no RESP: {}", self.0)
    }
}

impl std::error::Error for Malformed {}

impl Reply {
    /// The first reply of `bytes` and its length, or `None` when more bytes have to come.
    ///
    /// # Errors
    /// When no bytes that follow could make it a reply.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Reply, usize)>, Malformed> {
        let mut parser = Parser { bytes, at: 0 };
        Ok(parser.reply(0)?.map(|reply| (reply, parser.at)))
    }

    /// The same as a client of RESP2 is told it.
    pub fn flat(self) -> Reply {
        let flat = |items: Vec<Reply>| Reply::Array(items.into_iter().map(Reply::flat).collect());
        match self {
            Reply::Array(items) | Reply::Set(items) | Reply::Push(items) => flat(items),
            Reply::Map(pairs) => flat(pairs.into_iter().flat_map(|(key, value)| [key, value]).collect()),
            Reply::Double(text) | Reply::BigNumber(text) => Reply::Bulk(text.into_bytes()),
            Reply::Boolean(value) => Reply::Int(value.into()),
            Reply::Verbatim(_, text) => Reply::Bulk(text),
            other => other,
        }
    }

    /// In the notation of redis-cli; the types that only RESP3 has are written as RESP2 has them.
    pub fn render(&self) -> String {
        let mut out = String::new();
        self.clone().flat().render_at(&mut out, 0);
        out
    }

    fn render_at(&self, out: &mut String, indent: usize) {
        match self {
            Reply::Simple(text) => out.push_str(text),
            Reply::Error(text) => out.push_str(&format!("(error) {}", error_text(text))),
            Reply::Int(value) => out.push_str(&format!("(integer) {value}")),
            Reply::Bulk(bytes) => out.push_str(&format!("\"{}\"", bytes.escape_ascii())),
            Reply::Array(items) if items.is_empty() => out.push_str("(empty array)"),
            Reply::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push('\n');
                        out.push_str(&" ".repeat(indent));
                    }
                    let label = format!("{}) ", index + 1);
                    out.push_str(&label);
                    item.render_at(out, indent + label.len());
                }
            }
            // The rest is not there any more in what is flat.
            _ => out.push_str("(nil)"),
        }
    }

    /// The same with the members of every aggregate in one order: for replies whose order means nothing.
    pub fn sorted(self) -> Reply {
        let sort = |items: Vec<Reply>| {
            let mut items: Vec<Reply> = items.into_iter().map(Reply::sorted).collect();
            items.sort();
            items
        };
        match self {
            Reply::Array(items) => Reply::Array(sort(items)),
            Reply::Set(items) => Reply::Set(sort(items)),
            Reply::Map(pairs) => {
                let mut pairs: Vec<(Reply, Reply)> =
                    pairs.into_iter().map(|(key, value)| (key.sorted(), value.sorted())).collect();
                pairs.sort();
                Reply::Map(pairs)
            }
            other => other,
        }
    }

    /// The bytes of a string of any kind.
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Reply::Simple(text) | Reply::Double(text) | Reply::BigNumber(text) => Some(text.as_bytes()),
            Reply::Error(bytes) | Reply::Bulk(bytes) | Reply::Verbatim(_, bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The text of a string of any kind, lossy where it is not UTF-8.
    pub fn text(&self) -> Option<String> {
        self.bytes().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }
}

/// An error as a script has it: what is no UTF-8, or would look like nothing, as `\xHH`.
pub(crate) fn error_text(text: &[u8]) -> String {
    let mut out = String::new();
    for chunk in text.utf8_chunks() {
        for char in chunk.valid().chars() {
            if char.is_control() { out.extend(char.escape_debug()) } else { out.push(char) }
        }
        chunk.invalid().iter().for_each(|byte| out.push_str(&format!("\\x{byte:02x}")));
    }
    out
}

/// Deeper than any reply of Redis.
const DEPTH: usize = 32;

struct Parser<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Parser<'_> {
    fn reply(&mut self, depth: usize) -> Result<Option<Reply>, Malformed> {
        let bad = |why: &str| Malformed(why.to_owned());
        let Some(&kind) = self.bytes.get(self.at) else { return Ok(None) };
        if !b"+-:$*%~,#=(>_".contains(&kind) {
            return Err(Malformed(format!("a reply cannot begin with {:?}", char::from(kind))));
        }
        if depth > DEPTH {
            return Err(bad("too deep"));
        }
        let rest = &self.bytes[self.at + 1..];
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
        let line = rest[..end].strip_suffix(b"\r").ok_or_else(|| bad("a line ends with \\n alone"))?;
        self.at += 1 + end + 1;
        if kind == b'-' {
            return Ok(Some(Reply::Error(line.to_vec())));
        }
        let text = std::str::from_utf8(line).map_err(|_| Malformed(line.escape_ascii().to_string()))?;
        let text = text.to_owned();
        let number = || text.parse::<i64>().map_err(|_| Malformed(format!("{text:?} is no number")));
        let reply = match kind {
            b'+' => Reply::Simple(text),
            b':' => Reply::Int(number()?),
            b',' => Reply::Double(text),
            b'(' => Reply::BigNumber(text),
            b'_' if text.is_empty() => Reply::Null,
            b'#' if text == "t" || text == "f" => Reply::Boolean(text == "t"),
            b'_' | b'#' => return Err(Malformed(format!("{}{text}", char::from(kind)))),
            b'$' | b'=' => match number()? {
                -1 if kind == b'$' => Reply::Null,
                length => {
                    let length = usize::try_from(length).map_err(|_| bad("a negative length"))?;
                    let Some(body) = self.bytes.get(self.at..self.at + length + 2) else { return Ok(None) };
                    let body = body.strip_suffix(b"\r\n").ok_or_else(|| bad("a string without an end"))?;
                    self.at += length + 2;
                    if kind == b'$' {
                        Reply::Bulk(body.to_vec())
                    } else {
                        let (format, text) = body.split_at_checked(4).ok_or_else(|| bad("no format"))?;
                        let format = format.strip_suffix(b":").ok_or_else(|| bad("no format"))?;
                        let format = std::str::from_utf8(format).map_err(|_| bad("no format"))?;
                        Reply::Verbatim(format.to_owned(), text.to_vec())
                    }
                }
            },
            _ => {
                let count = match number()? {
                    -1 if kind == b'*' => return Ok(Some(Reply::NullArray)),
                    count => usize::try_from(count).map_err(|_| bad("a negative length"))?,
                };
                let mut items = Vec::new();
                for _ in 0..if kind == b'%' { 2 * count } else { count } {
                    let Some(item) = self.reply(depth + 1)? else { return Ok(None) };
                    items.push(item);
                }
                match kind {
                    b'*' => Reply::Array(items),
                    b'~' => Reply::Set(items),
                    b'>' => Reply::Push(items),
                    _ => {
                        let mut items = items.into_iter();
                        let mut pairs = Vec::with_capacity(count);
                        while let (Some(key), Some(value)) = (items.next(), items.next()) {
                            pairs.push((key, value));
                        }
                        Reply::Map(pairs)
                    }
                }
            }
        };
        Ok(Some(reply))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_read_and_every_prefix_waits_for_more() {
        let bytes = b"*9\r\n+OK\r\n-ERR no\r\n:-7\r\n$3\r\na\nb\r\n$-1\r\n*-1\r\n%1\r\n+k\r\n,1.50\r\n~1\r\n#t\r\n=7\r\ntxt:abc\r\n";
        let expected = Reply::Array(vec![
            Reply::Simple("OK".to_owned()),
            Reply::Error(b"ERR no".to_vec()),
            Reply::Int(-7),
            Reply::Bulk(b"a\nb".to_vec()),
            Reply::Null,
            Reply::NullArray,
            Reply::Map(vec![(Reply::Simple("k".to_owned()), Reply::Double("1.50".to_owned()))]),
            Reply::Set(vec![Reply::Boolean(true)]),
            Reply::Verbatim("txt".to_owned(), b"abc".to_vec()),
        ]);
        assert_eq!(Reply::parse(bytes), Ok(Some((expected, bytes.len()))));
        for end in 0..bytes.len() {
            assert_eq!(Reply::parse(&bytes[..end]), Ok(None), "{end}");
        }
    }

    #[test]
    fn what_is_no_resp_is_refused() {
        for bytes in
            [&b"HTTP/1.1\r\n"[..], b":x\r\n", b"$-2\r\n", b"$1\r\nabc", b"+a\n", b"#x\r\n", b"=3\r\nabc\r\n"]
        {
            assert!(Reply::parse(bytes).is_err(), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn errors_that_differ_in_one_byte_differ() {
        let error = |bytes: &[u8]| Reply::parse(bytes).unwrap().unwrap().0;
        let (one, other) = (error(b"-ERR '\xff'\r\n"), error(b"-ERR '\xfe'\r\n"));
        assert_ne!(one, other);
        assert_ne!(one, error("-ERR '\u{fffd}'\r\n".as_bytes()));
        assert_eq!(one.render(), r"(error) ERR '\xff'");
        assert_eq!(error("-ERR é\0\r\n".as_bytes()).render(), r"(error) ERR é\0");
        assert!(Reply::parse(b"+\xff\r\n").is_err(), "only errors quote clients");
    }

    #[test]
    fn what_is_flat_is_what_resp2_says() {
        let map = Reply::Map(vec![(Reply::Bulk(b"k".to_vec()), Reply::Set(vec![Reply::Boolean(false)]))]);
        let flat = Reply::Array(vec![Reply::Bulk(b"k".to_vec()), Reply::Array(vec![Reply::Int(0)])]);
        assert_eq!(map.clone().flat(), flat);
        assert_eq!(map.render(), "1) \"k\"\n2) 1) (integer) 0");
    }
}
