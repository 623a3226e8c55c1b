//! What the tests of this crate share: a bare keyspace that runs command lines, and a real Redis that does.

#![allow(dead_code, unreachable_pub, reason = "each test binary takes a part of it")]

pub mod redis;

pub use kvorum_testkit::reply::Reply;

use kvorum_keyspace::{
    Command, Error, Keyspace, Outcome, Run, Settings, Sink, introspect, lookup, unknown_command,
};

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
    fn error(&mut self, text: &[u8]) {
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
            Run::Server if top.name == "select" => {
                self.db = std::str::from_utf8(args[1]).unwrap().parse().unwrap();
                out.ok();
                Ok(())
            }
            Run::Server => Err(Error::new("ERR the server runs this")),
        }
    }

    /// Runs a command line of plain words.
    pub fn line(&mut self, line: &str) -> String {
        let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        self.run(&args).render()
    }
}
