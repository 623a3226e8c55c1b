//! The data model of Kvorum: databases, keys, values, expiry, and the table of commands that act on them.
//!
//! Pure: the same state and the same command with the same clock and seed give the same bytes and the same
//! reply on every replica, for ever. There is no clock, no entropy, no task and no IO in this crate;
//! time and seed arrive with the caller ([`Writer`], [`Reader`]), replies leave through a [`Sink`].

pub mod argv;
mod checksum;
pub mod command;
mod database;
mod error;
pub mod glob;
pub mod introspect;
mod keyspace;
mod reader;
mod sink;
mod slot;
mod snapshot;
mod table;
pub mod value;
mod writer;

pub use argv::{ArgVec, Args};
pub use command::{Command, Flags, Keys, Run, lookup};
pub use error::{Error, Outcome};
pub use introspect::unknown_command;
pub use keyspace::{Garbage, Keyspace, Settings, Stats};
pub use reader::Reader;
pub use sink::{NullSink, Sink};
pub use slot::{SLOTS, Slot, slot_of};
pub use snapshot::{RestoreError, Snapshot, read_number};
pub use table::{AccessClock, Record};
pub use writer::{Key, Writer};
