//! The command table. Each family's file holds the commands' functions with their table rows beside them;
//! this chapter has the row's type and the look-up.

use crate::{Args, Outcome, Sink};

/// One row of the command table (a command, or a subcommand inside its container).
#[derive(Debug)]
pub struct Command {
    /// Name in lower case, as COMMAND shows it (`set`, `client|id` for a subcommand).
    pub name: &'static str,
    /// Number of arguments, the name included; negative means at least that many.
    pub arity: i8,
    /// What the command is allowed to do and when, as in Redis.
    pub flags: Flags,
    /// Where its keys are.
    pub keys: Keys,
    /// Who runs it.
    pub run: Run,
    /// Group of COMMAND DOCS (`string`, `generic`, `connection`, `server`, `cluster`).
    pub group: &'static str,
    /// First Redis version that had it.
    pub since: &'static str,
    /// COMMAND DOCS summary.
    pub summary: &'static str,
    /// COMMAND DOCS complexity.
    pub complexity: &'static str,
    /// ACL categories beyond those that follow from flags and group.
    pub categories: &'static [&'static str],
    /// Rows of the subcommands.
    pub subcommands: &'static [Command],
}

/// Positions of a command's keys in its arguments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keys {
    /// No keys: the command never redirects.
    None,
    /// `first`, `first + step`, … up to `last`; `last` counts from the end when negative (-1 is the last argument).
    Range {
        /// Index of the first key.
        first: u8,
        /// Index of the last key, from the end when negative.
        last: i8,
        /// Distance between keys.
        step: u8,
    },
}

/// Who runs a command.
#[derive(Clone, Copy)]
pub enum Run {
    /// Reads the keyspace; on a leader it needs no log entry.
    Read(fn(&crate::Reader<'_>, Args<'_>, &mut dyn Sink) -> Outcome),
    /// May change the keyspace; goes through the log.
    Write(fn(&mut crate::Writer<'_>, Args<'_>, &mut dyn Sink) -> Outcome),
    /// Needs a connection, a server or the cluster; the server crate runs it.
    Server,
}
