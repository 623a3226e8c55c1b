//! What the tests of this crate share: replies as trees and as text, and a bare keyspace that runs command lines.

#![allow(dead_code, unreachable_pub, reason = "each test binary takes a part of it")]

pub mod redis;

use kvorum_keyspace::{
    Command, Error, Keyspace, Outcome, Run, Settings, Sink, introspect, lookup, unknown_command,
};

/// A reply as a tree.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Reply {
    Simple(String),
    Error(String),
    Int(i64),
    Bulk(Vec<u8>),
    Null,
    NullArray,
    Array(Vec<Reply>),
}

impl Reply {
    /// In the notation of redis-cli.
    pub fn render(&self) -> String {
        let mut out = String::new();
        self.render_at(&mut out, 0);
        out
    }

    fn render_at(&self, out: &mut String, indent: usize) {
        match self {
            Reply::Simple(text) => out.push_str(text),
            Reply::Error(text) => out.push_str(&format!("(error) {text}")),
            Reply::Int(value) => out.push_str(&format!("(integer) {value}")),
            Reply::Bulk(bytes) => out.push_str(&format!("\"{}\"", bytes.escape_ascii())),
            Reply::Null | Reply::NullArray => out.push_str("(nil)"),
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
        }
    }

    /// The same with the members of every array in one order: for replies whose order means nothing.
    pub fn sorted(self) -> Reply {
        match self {
            Reply::Array(items) => {
                let mut items: Vec<Reply> = items.into_iter().map(Reply::sorted).collect();
                items.sort();
                Reply::Array(items)
            }
            other => other,
        }
    }
}

/// Builds the tree.
#[derive(Default)]
pub struct TreeSink {
    open: Vec<(usize, Vec<Reply>)>,
    done: Vec<Reply>,
}

impl TreeSink {
    /// The one reply that came.
    pub fn into_reply(mut self) -> Reply {
        assert!(self.open.is_empty(), "an aggregate announced more than it got: {:?}", self.open);
        assert_eq!(self.done.len(), 1, "exactly one reply: {:?}", self.done);
        self.done.pop().unwrap()
    }

    fn push(&mut self, mut reply: Reply) {
        loop {
            let Some((len, items)) = self.open.last_mut() else {
                self.done.push(reply);
                return;
            };
            items.push(reply);
            if items.len() < *len {
                return;
            }
            reply = Reply::Array(self.open.pop().unwrap().1);
        }
    }
}

impl Sink for TreeSink {
    fn simple(&mut self, text: &str) {
        self.push(Reply::Simple(text.into()));
    }
    fn error(&mut self, text: &str) {
        self.push(Reply::Error(text.into()));
    }
    fn int(&mut self, value: i64) {
        self.push(Reply::Int(value));
    }
    fn bulk(&mut self, bytes: &[u8]) {
        self.push(Reply::Bulk(bytes.into()));
    }
    fn null(&mut self) {
        self.push(Reply::Null);
    }
    fn null_array(&mut self) {
        self.push(Reply::NullArray);
    }
    fn array(&mut self, len: usize) {
        if len == 0 {
            self.push(Reply::Array(Vec::new()));
        } else {
            self.open.push((len, Vec::new()));
        }
    }
    fn map(&mut self, len: usize) {
        self.array(2 * len);
    }
    fn set(&mut self, len: usize) {
        self.array(len);
    }
    fn double(&mut self, value: f64) {
        self.push(Reply::Bulk(value.to_string().into_bytes()));
    }
    fn boolean(&mut self, value: bool) {
        self.push(Reply::Int(i64::from(value)));
    }
    fn verbatim(&mut self, _: &str, text: &[u8]) {
        self.push(Reply::Bulk(text.into()));
    }
}

/// A keyspace without a server around it: what a shard does with each command, on one machine.
pub struct Bare {
    pub keyspace: Keyspace,
    pub now_ms: u64,
    pub db: u16,
}

impl Bare {
    pub fn new() -> Bare {
        let settings = Settings { databases: 16, hash_seed: *b"sixteen bytes ok" };
        Bare { keyspace: Keyspace::new(settings), now_ms: 1_700_000_000_000, db: 0 }
    }

    pub fn run(&mut self, args: &[&[u8]]) -> Reply {
        let mut out = TreeSink::default();
        if let Err(error) = self.dispatch(args, &mut out) {
            // A command that fails has written nothing.
            out = TreeSink::default();
            out.error(error.text());
        }
        out.into_reply()
    }

    fn dispatch(&mut self, args: &[&[u8]], out: &mut TreeSink) -> Outcome {
        let top = lookup(args[0]).ok_or_else(|| unknown_command(args))?;
        let row: &Command = top.resolve(args)?;
        row.check_arity(args)?;
        match row.run {
            Run::Read(f) => f(&self.keyspace.reader(self.db, self.now_ms, self.now_ms), args, out),
            Run::Write(f) => f(&mut self.keyspace.writer(self.db, self.now_ms, 0), args, out),
            Run::Server if top.name == "command" => introspect::command(args, out),
            Run::Server => Err(Error::new("ERR the server runs this")),
        }
    }

    /// Runs a command line of plain words.
    pub fn line(&mut self, line: &str) -> String {
        let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        self.run(&args).render()
    }
}
