//! The data model of Kvorum: databases, keys, values, expiry, and the table of commands that act on them.
//!
//! Pure: the same state and the same command with the same clock and seed give the same bytes and the same
//! reply on every replica, for ever. There is no clock, no entropy, no task and no IO in this crate;
//! time and seed arrive with the caller ([`Writer`], [`Reader`]), replies leave through a [`Sink`].

pub mod argv;
pub mod command;
mod error;
mod sink;
mod slot;

pub use argv::{ArgVec, Args};
pub use command::Command;
pub use error::{Error, Outcome};
pub use sink::{NullSink, Sink};
pub use slot::{SLOTS, Slot, slot_of};
