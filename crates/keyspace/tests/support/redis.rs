//! A real redis-server as the oracle, and one connection to it.

use super::Reply;
use kvorum_testkit::{oracle, plain::Plain};

/// A redis-server of our own; it goes when this is dropped.
pub struct Redis {
    connection: Plain,
    _server: oracle::Redis,
}

impl Redis {
    /// Starts it. Panics with the way to install it when it is missing: these tests are not skipped in silence.
    pub fn start() -> Redis {
        let server = oracle::Redis::start(&[]).unwrap();
        Redis { connection: server.connect().unwrap(), _server: server }
    }

    pub fn run(&mut self, args: &[&[u8]]) -> Reply {
        self.connection.call(args).unwrap()
    }
}
