//! COMMAND and its subcommands, answered from the command table in the shapes of Redis 7.0.

use crate::{
    Args, Command, Error, Keys, Outcome, Sink, command,
    error::{QUOTED_BYTES, first, until_zero},
    glob, lookup,
};
use command::{Argument, ArgumentKind};

/// Commands that one kind of port has: what COMMAND speaks of there.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// All of them, without subcommands.
    pub all: fn() -> Vec<&'static Command>,
    /// The one of that name, in any case.
    pub lookup: fn(&[u8]) -> Option<&'static Command>,
}

/// The commands of a data port.
const DATA: Table = Table { all: || command::all().collect(), lookup };

impl Table {
    fn count(self) -> usize {
        (self.all)().len()
    }

    fn rows(self) -> impl Iterator<Item = &'static Command> {
        (self.all)().into_iter()
    }

    /// A row by its full name: `set`, or `client|id`.
    fn find(self, name: &[u8]) -> Option<&'static Command> {
        match name.iter().position(|&b| b == b'|') {
            Some(bar) => (self.lookup)(&name[..bar]).filter(|row| !row.opaque)?.subcommand(&name[bar + 1..]),
            None => (self.lookup)(name),
        }
    }
}

/// Answers `COMMAND [COUNT|INFO|DOCS|GETKEYS|GETKEYSANDFLAGS|LIST|HELP …]` on a data port. The arity has been checked.
pub fn command(args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    command_of(DATA, args, out)
}

/// The same for other commands.
pub fn command_of(table: Table, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let Some((sub, rest)) = args[1..].split_first() else {
        out.array(table.count());
        table.rows().for_each(|row| info(row, out));
        return Ok(());
    };
    match sub.to_ascii_lowercase().as_slice() {
        b"count" => {
            out.count(table.count());
            Ok(())
        }
        b"info" => info_of(table, rest, out),
        b"docs" => docs_of(table, rest, out),
        b"getkeys" => get_keys(table, rest, false, out),
        b"getkeysandflags" => get_keys(table, rest, true, out),
        b"list" => list(table, rest, out),
        b"help" => {
            out.array(HELP.len());
            HELP.iter().for_each(|line| out.simple(line));
            Ok(())
        }
        _ => Err(Error::unknown_subcommand("command", sub)),
    }
}

/// Redis's error for a command that does not exist; it quotes the first arguments.
pub fn unknown_command(args: Args<'_>) -> Error {
    let mut shown = Vec::new();
    for arg in &args[1..] {
        if shown.len() >= QUOTED_BYTES {
            break;
        }
        let room = QUOTED_BYTES - shown.len();
        shown.push(b'\'');
        shown.extend_from_slice(first(until_zero(arg), room));
        shown.extend_from_slice(b"' ");
    }
    let name = first(until_zero(args[0]), QUOTED_BYTES);
    Error::one_line([b"ERR unknown command '", name, b"', with args beginning with: ", &shown].concat())
}

const HELP: &[&str] = &[
    "COMMAND <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "(no subcommand)",
    "    Return details about all Redis commands.",
    "COUNT",
    "    Return the total number of commands in this Redis server.",
    "LIST",
    "    Return a list of all commands in this Redis server.",
    "INFO [<command-name> ...]",
    "    Return details about multiple Redis commands.",
    "    If no command names are given, documentation details for all",
    "    commands are returned.",
    "DOCS [<command-name> ...]",
    "    Return documentation details about multiple Redis commands.",
    "    If no command names are given, documentation details for all",
    "    commands are returned.",
    "GETKEYS <full-command>",
    "    Return the keys from a full Redis command.",
    "GETKEYSANDFLAGS <full-command>",
    "    Return the keys and the access flags from a full Redis command.",
    "HELP",
    "    Prints this help.",
];

fn info_of(table: Table, names: Args<'_>, out: &mut dyn Sink) -> Outcome {
    if names.is_empty() {
        out.array(table.count());
        table.rows().for_each(|row| info(row, out));
        return Ok(());
    }
    out.array(names.len());
    for name in names {
        match table.find(name) {
            Some(row) => info(row, out),
            None => out.null(),
        }
    }
    Ok(())
}

fn info(row: &Command, out: &mut dyn Sink) {
    out.array(10);
    out.bulk(row.name.as_bytes());
    out.int(i64::from(row.arity));
    statuses(row.flags.names(), out);
    let (first, last, step) = match row.keys {
        Keys::None => (0, 0, 0),
        Keys::Range { first, last, step } => (i64::from(first), i64::from(last), i64::from(step)),
    };
    out.int(first);
    out.int(last);
    out.int(step);
    statuses(row.acl_categories(), out);
    out.set(row.tips.len());
    row.tips.iter().for_each(|tip| out.bulk(tip.as_bytes()));
    key_specs(row, out);
    out.set(row.shown_subcommands().len());
    row.shown_subcommands().iter().for_each(|row| info(row, out));
}

fn statuses<'a>(names: impl Iterator<Item = &'a str>, out: &mut dyn Sink) {
    let names: Vec<&str> = names.collect();
    out.set(names.len());
    names.iter().for_each(|name| out.simple(name));
}

fn key_specs(row: &Command, out: &mut dyn Sink) {
    let Keys::Range { first, last, step } = row.keys else {
        out.set(0);
        return;
    };
    if row.access_each.is_empty() {
        out.set(1);
        // Redis counts the last key from the first unless it counts from the end.
        let last = if last < 0 { i64::from(last) } else { i64::from(last) - i64::from(first) };
        key_spec(row.key_notes, row.access, i64::from(first), last, i64::from(step), out);
        return;
    }
    out.set(row.access_each.len());
    for (index, access) in (i64::from(first)..).zip(row.access_each) {
        key_spec("", access, index, 0, 1, out);
    }
}

fn key_spec(notes: &str, access: &[&str], first: i64, last: i64, step: i64, out: &mut dyn Sink) {
    out.map(if notes.is_empty() { 3 } else { 4 });
    if !notes.is_empty() {
        out.bulk(b"notes");
        out.bulk(notes.as_bytes());
    }
    out.bulk(b"flags");
    statuses(access.iter().copied(), out);
    out.bulk(b"begin_search");
    out.map(2);
    out.bulk(b"type");
    out.bulk(b"index");
    out.bulk(b"spec");
    out.map(1);
    out.bulk(b"index");
    out.int(first);
    out.bulk(b"find_keys");
    out.map(2);
    out.bulk(b"type");
    out.bulk(b"range");
    out.bulk(b"spec");
    out.map(3);
    out.bulk(b"lastkey");
    out.int(last);
    out.bulk(b"keystep");
    out.int(step);
    out.bulk(b"limit");
    out.int(0);
}

fn docs_of(table: Table, names: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let rows: Vec<&Command> = if names.is_empty() {
        table.rows().collect()
    } else {
        names.iter().filter_map(|name| table.find(name)).collect()
    };
    out.map(rows.len());
    for row in rows {
        out.bulk(row.name.as_bytes());
        docs(row, out);
    }
    Ok(())
}

fn docs(row: &Command, out: &mut dyn Sink) {
    let fields = 3
        + usize::from(!row.complexity.is_empty())
        + usize::from(row.syscmd || row.deprecated.is_some())
        + 2 * usize::from(row.deprecated.is_some())
        + usize::from(!row.history.is_empty())
        + usize::from(!row.arguments.is_empty())
        + usize::from(!row.shown_subcommands().is_empty());
    out.map(fields);
    field("summary", row.summary, out);
    field("since", row.since, out);
    field("group", row.group, out);
    if !row.complexity.is_empty() {
        field("complexity", row.complexity, out);
    }
    if row.syscmd || row.deprecated.is_some() {
        out.bulk(b"doc_flags");
        let flags = [(row.deprecated.is_some(), "deprecated"), (row.syscmd, "syscmd")];
        statuses(flags.into_iter().filter_map(|(set, name)| set.then_some(name)), out);
    }
    if let Some((since, replaced_by)) = row.deprecated {
        field("deprecated_since", since, out);
        field("replaced_by", replaced_by, out);
    }
    if !row.history.is_empty() {
        out.bulk(b"history");
        out.set(row.history.len());
        for (version, change) in row.history {
            out.array(2);
            out.bulk(version.as_bytes());
            out.bulk(change.as_bytes());
        }
    }
    if !row.arguments.is_empty() {
        out.bulk(b"arguments");
        arguments(row.arguments, out);
    }
    if !row.shown_subcommands().is_empty() {
        out.bulk(b"subcommands");
        out.map(row.shown_subcommands().len());
        for row in row.shown_subcommands() {
            out.bulk(row.name.as_bytes());
            docs(row, out);
        }
    }
}

fn field(name: &str, value: &str, out: &mut dyn Sink) {
    out.bulk(name.as_bytes());
    out.bulk(value.as_bytes());
}

fn arguments(list: &[Argument], out: &mut dyn Sink) {
    out.array(list.len());
    for argument in list {
        let (kind, parts) = match &argument.kind {
            ArgumentKind::String => ("string", None),
            ArgumentKind::Integer => ("integer", None),
            ArgumentKind::Double => ("double", None),
            ArgumentKind::Key => ("key", None),
            ArgumentKind::Pattern => ("pattern", None),
            ArgumentKind::UnixTime => ("unix-time", None),
            ArgumentKind::PureToken => ("pure-token", None),
            ArgumentKind::OneOf(parts) => ("oneof", Some(*parts)),
            ArgumentKind::Block(parts) => ("block", Some(*parts)),
        };
        let flags: Vec<&str> = [
            (argument.optional, "optional"),
            (argument.multiple, "multiple"),
            (argument.multiple_token, "multiple_token"),
        ]
        .into_iter()
        .filter_map(|(set, name)| set.then_some(name))
        .collect();
        let fields = 2
            + usize::from(kind == "key")
            + usize::from(!argument.token.is_empty())
            + usize::from(!argument.since.is_empty())
            + usize::from(!argument.deprecated_since.is_empty())
            + usize::from(!flags.is_empty())
            + usize::from(parts.is_some());
        out.map(fields);
        field("name", argument.name, out);
        field("type", kind, out);
        if kind == "key" {
            out.bulk(b"key_spec_index");
            out.int(i64::from(argument.key_spec));
        }
        for (name, value) in [
            ("token", argument.token),
            ("since", argument.since),
            ("deprecated_since", argument.deprecated_since),
        ] {
            if !value.is_empty() {
                field(name, value, out);
            }
        }
        if !flags.is_empty() {
            out.bulk(b"flags");
            statuses(flags.into_iter(), out);
        }
        if let Some(parts) = parts {
            out.bulk(b"arguments");
            arguments(parts, out);
        }
    }
}

fn get_keys(table: Table, args: Args<'_>, with_flags: bool, out: &mut dyn Sink) -> Outcome {
    let row = (table.lookup)(args[0])
        .and_then(|row| if row.opaque { Some(row) } else { row.resolve(args).ok() })
        .ok_or(Error::new("ERR Invalid command specified"))?;
    if row.keys == Keys::None {
        return Err(Error::new("ERR The command has no key arguments"));
    }
    row.check_arity(args).map_err(|_| Error::new("ERR Invalid number of arguments specified for command"))?;
    let mut keys = Vec::new();
    row.for_each_key(args, &mut |key| keys.push(key.to_vec()));
    out.array(keys.len());
    for (n, key) in keys.into_iter().enumerate() {
        if with_flags {
            out.array(2);
            out.bulk(&key);
            let access = row.access_with.map_or(row.access, |access| access(args));
            let access = row.access_each.get(n).copied().unwrap_or(access);
            statuses(access.iter().copied(), out);
        } else {
            out.bulk(&key);
        }
    }
    Ok(())
}

fn list(table: Table, filter: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let rows = || table.rows().flat_map(|row| std::iter::once(row).chain(row.shown_subcommands()));
    let names: Vec<&str> = match filter {
        [] => rows().map(|row| row.name).collect(),
        [by, kind, value] if by.eq_ignore_ascii_case(b"filterby") => {
            let is = |name: &str| kind.eq_ignore_ascii_case(name.as_bytes());
            if is("module") {
                Vec::new()
            } else if is("aclcat") {
                rows()
                    .filter(|row| {
                        row.acl_categories()
                            .any(|category| category.as_bytes()[1..].eq_ignore_ascii_case(value))
                    })
                    .map(|row| row.name)
                    .collect()
            } else if is("pattern") {
                rows()
                    .filter(|row| glob::matches(value, row.name.as_bytes(), true))
                    .map(|row| row.name)
                    .collect()
            } else {
                return Err(Error::SYNTAX);
            }
        }
        _ => return Err(Error::SYNTAX),
    };
    out.array(names.len());
    names.iter().for_each(|name| out.bulk(name.as_bytes()));
    Ok(())
}
