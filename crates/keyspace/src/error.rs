//! Error replies: Redis's texts, letter for letter, each with its code in front (`ERR`, `WRONGTYPE`, …).

use std::borrow::Cow;

/// What a command returns: `Err` becomes the command's only reply, and then it has changed nothing.
pub type Outcome = Result<(), Error>;

/// An error reply without the leading `-` and the trailing CRLF.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Error(pub Cow<'static, str>);

impl Error {
    /// An error with a fixed text.
    pub const fn new(text: &'static str) -> Error {
        Error(Cow::Borrowed(text))
    }

    /// The whole text, code included.
    pub fn text(&self) -> &str {
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
        Error(Cow::Owned(format!("ERR invalid expire time in '{command}' command")))
    }

    /// A container command has no such subcommand; `container` is its name in lower case.
    pub fn unknown_subcommand(container: &str, subcommand: &[u8]) -> Error {
        let shown = String::from_utf8_lossy(quoted(subcommand, QUOTED_BYTES));
        Error::one_line(format!(
            "ERR unknown subcommand '{shown}'. Try {} HELP.",
            container.to_ascii_uppercase()
        ))
    }

    /// The same for a container that does not tell a wrong subcommand from a wrong number of arguments.
    pub fn unknown_subcommand_or_arity(container: &str, subcommand: &[u8]) -> Error {
        let shown = String::from_utf8_lossy(quoted(subcommand, QUOTED_BYTES));
        Error::one_line(format!(
            "ERR unknown subcommand or wrong number of arguments for '{shown}'. Try {} HELP.",
            container.to_ascii_uppercase()
        ))
    }

    /// A client's word as errors quote it: up to its first zero byte, as a text of C.
    pub fn quote(word: &[u8]) -> Cow<'_, str> {
        String::from_utf8_lossy(quoted(word, usize::MAX))
    }

    /// An error whose text quotes a client: line breaks would end the reply early and become blanks, those at the end
    /// nothing.
    pub fn one_line(text: String) -> Error {
        Error(Cow::Owned(text.trim_end_matches(['\r', '\n']).replace(['\r', '\n'], " ")))
    }

    /// `ERR wrong number of arguments for '<name>' command`, the name in lower case.
    pub fn wrong_arity(name: &str) -> Error {
        Error(Cow::Owned(format!(
            "ERR wrong number of arguments for '{}' command",
            name.to_ascii_lowercase()
        )))
    }
}

/// So much of a word of a client is quoted.
pub(crate) const QUOTED_BYTES: usize = 128;

/// What Redis shows of a client's word, which it takes for a text of C: at most that many bytes, and none from a zero on.
pub(crate) fn quoted(word: &[u8], most: usize) -> &[u8] {
    let end = word.iter().position(|&byte| byte == 0).unwrap_or(word.len());
    &word[..end.min(most)]
}
