//! Where replies go. Commands stream their reply into a [`Sink`]; the server's sink encodes RESP2 or RESP3,
//! followers use [`NullSink`], tests render text. No reply tree is built on the way.

/// Receives exactly one reply per command. Aggregates announce their length first and are followed by
/// that many replies (twice as many for a map).
pub trait Sink {
    /// `+OK`-like status without line breaks.
    fn simple(&mut self, text: &str);
    /// An error, code first, without line breaks; it need be no UTF-8.
    fn error(&mut self, text: &[u8]);
    /// A signed integer.
    fn int(&mut self, value: i64);
    /// A bulk string, any bytes.
    fn bulk(&mut self, bytes: &[u8]);
    /// The absent bulk string (`$-1` in RESP2, `_` in RESP3).
    fn null(&mut self);
    /// The absent array (`*-1` in RESP2, `_` in RESP3).
    fn null_array(&mut self);
    /// An array of `len` replies follows.
    fn array(&mut self, len: usize);
    /// A map of `len` pairs follows: a flat array of `2 * len` in RESP2.
    fn map(&mut self, len: usize);
    /// A set of `len` members follows: an array in RESP2.
    fn set(&mut self, len: usize);
    /// A float: a bulk string in RESP2.
    fn double(&mut self, value: f64);
    /// A boolean: `:1` or `:0` in RESP2.
    fn boolean(&mut self, value: bool);
    /// Text with a three-letter format (`txt`, `mkd`): a bulk string in RESP2.
    fn verbatim(&mut self, format: &str, text: &[u8]);
    /// A number of things as an integer.
    fn count(&mut self, count: usize) {
        self.int(i64::try_from(count).unwrap_or(i64::MAX));
    }
    /// `+OK`.
    fn ok(&mut self) {
        self.simple("OK");
    }
    /// The lines of a HELP subcommand.
    fn help(&mut self, lines: &[&str]) {
        self.array(lines.len());
        lines.iter().for_each(|line| self.simple(line));
    }
}

/// Swallows replies: what followers apply with.
#[derive(Clone, Copy, Default, Debug)]
pub struct NullSink;

impl Sink for NullSink {
    fn simple(&mut self, _: &str) {}
    fn error(&mut self, _: &[u8]) {}
    fn int(&mut self, _: i64) {}
    fn bulk(&mut self, _: &[u8]) {}
    fn null(&mut self) {}
    fn null_array(&mut self) {}
    fn array(&mut self, _: usize) {}
    fn map(&mut self, _: usize) {}
    fn set(&mut self, _: usize) {}
    fn double(&mut self, _: f64) {}
    fn boolean(&mut self, _: bool) {}
    fn verbatim(&mut self, _: &str, _: &[u8]) {}
}
