//! The Sentinel port: to clients of Redis Sentinel every server is a Sentinel, and every shard a master that it monitors.
//!
//! Such a client asks any Sentinel who the master is, connects there, and subscribes to be told of another one. What it is
//! told here are Raft's facts: [`Scene`] is what a server knows at one moment, as Sentinel would say it, and
//! [`Session`](session::Session) answers commands from it, without IO. Events come from the node's failover timeline.
//!
//! The port is one of its own. A data port answers SENTINEL with an error, for clients take whoever answers it for a
//! Sentinel and nothing else.
//!
//! Left out: what makes a Sentinel of Redis a Sentinel. Masters are not added, removed or watched here, votes are not given, no
//! script is run: shards are there, and Raft elects.

mod connection;
mod listener;
mod replies;
mod scene;
mod session;
mod table;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub(crate) use connection::Shared;
pub(crate) use listener::{SentinelPort, open};
