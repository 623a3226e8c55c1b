//! Error replies: Redis's texts, letter for letter, each with its code in front (`ERR`, `WRONGTYPE`, …).
//!
//! A text is bytes, for some quote what a client sent, and that need be no UTF-8.

use std::borrow::Cow;

/// What a command returns: `Err` becomes the command's only reply, and then it has changed nothing.
pub type Outcome = Result<(), Error>;

/// An error reply without the leading `-` and the trailing CRLF.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Error(Cow<'static, [u8]>);

impl Error {
    /// An error with a fixed text.
    pub const fn new(text: &'static str) -> Error {
        Error(Cow::Borrowed(text.as_bytes()))
    }

    /// An error with a text of its own.
    pub fn owned(text: impl Into<Vec<u8>>) -> Error {
        Error(Cow::Owned(text.into()))
    }

    /// The whole text, code included.
    pub fn text(&self) -> &[u8] {
        &self.0
    }

    /// `SYNTAX`-like constants stand here so that a text is written once.
    pub const SYNTAX: Error = Error::new("ERR syntax error");
    /// A value or argument is no signed 64-bit integer.
    pub const NOT_AN_INTEGER: Error = Error::new("ERR value is not an integer or out of range");
    /// A value or argument is no float.
    pub const NOT_A_FLOAT: Error = Error::new("ERR value is not a valid float");
    /// The key holds another type.
    pub const WRONG_TYPE: Error =
        Error::new("WRONGTYPE Operation against a key holding the wrong kind of value");
    /// INCR and its kin would leave the signed 64-bit range.
    pub const OVERFLOW: Error = Error::new("ERR increment or decrement would overflow");

    /// The command needs a key that is there.
    pub const NO_SUCH_KEY: Error = Error::new("ERR no such key");
    /// The database does not exist.
    pub const DB_OUT_OF_RANGE: Error = Error::new("ERR DB index is out of range");

    /// The argument of EXPIRE and its kin, or of SET's options, is no time that can be.
    pub fn invalid_expire_time(command: &str) -> Error {
        Error::owned(format!("ERR invalid expire time in '{command}' command"))
    }

    /// A container command has no such subcommand; `container` is its name in lower case.
    pub fn unknown_subcommand(container: &str, subcommand: &[u8]) -> Error {
        let help = format!("'. Try {} HELP.", container.to_ascii_uppercase());
        Error::quoting("ERR unknown subcommand '", first(subcommand, QUOTED_BYTES), &help)
    }

    /// The same for a container that does not tell a wrong subcommand from a wrong number of arguments.
    pub fn unknown_subcommand_or_arity(container: &str, subcommand: &[u8]) -> Error {
        let help = format!("'. Try {} HELP.", container.to_ascii_uppercase());
        let what = "ERR unknown subcommand or wrong number of arguments for '";
        Error::quoting(what, first(subcommand, QUOTED_BYTES), &help)
    }

    /// An error that quotes a client's word as Redis does, which takes it for a text of C: up to its first zero byte,
    /// whatever the other bytes are.
    pub fn quoting(before: &str, word: &[u8], after: &str) -> Error {
        Error::one_line([before.as_bytes(), until_zero(word), after.as_bytes()].concat())
    }

    /// An error whose text came from elsewhere: line breaks would end the reply early and become blanks, those at the end
    /// nothing.
    pub fn one_line(text: impl Into<Vec<u8>>) -> Error {
        let is_break = |byte: &u8| matches!(byte, b'\r' | b'\n');
        let mut text = text.into();
        text.truncate(text.iter().rposition(|byte| !is_break(byte)).map_or(0, |last| last + 1));
        text.iter_mut().filter(|byte| is_break(byte)).for_each(|byte| *byte = b' ');
        Error::owned(text)
    }

    /// `ERR wrong number of arguments for '<name>' command`, the name in lower case.
    pub fn wrong_arity(name: &str) -> Error {
        Error::owned(format!("ERR wrong number of arguments for '{}' command", name.to_ascii_lowercase()))
    }
}

/// So much of a word of a client is quoted.
pub(crate) const QUOTED_BYTES: usize = 128;

/// The word up to its first zero byte.
pub(crate) fn until_zero(word: &[u8]) -> &[u8] {
    word.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// The word, or its first bytes.
pub(crate) fn first(word: &[u8], most: usize) -> &[u8] {
    &word[..word.len().min(most)]
}

#[cfg(test)]
mod tests {
    use super::Error;

    #[test]
    fn what_a_client_sent_is_quoted_byte_by_byte_up_to_a_zero() {
        let quoted = |word: &[u8]| Error::quoting("ERR <", word, ">").text().to_vec();
        assert_eq!(quoted(b"\xff\xc3\xa9\xe2\x82"), b"ERR <\xff\xc3\xa9\xe2\x82>");
        assert_eq!(quoted(b"a\xff\0b"), b"ERR <a\xff>");
        assert_eq!(quoted(b"a\r\nb\n"), b"ERR <a  b >");
    }

    #[test]
    fn line_breaks_at_the_end_are_left_out() {
        assert_eq!(Error::one_line("ERR a\r\nb\r\n\n").text(), b"ERR a  b");
        assert_eq!(Error::one_line("\r\n").text(), b"");
    }

    #[test]
    fn a_long_subcommand_is_cut_in_the_middle_of_a_character() {
        let word = ["x".repeat(127).as_bytes(), "éy".as_bytes()].concat();
        let expected = [b"ERR unknown subcommand '", &word[..128], b"'. Try CONFIG HELP."].concat();
        assert_eq!(Error::unknown_subcommand("config", &word).text(), expected);
    }
}
