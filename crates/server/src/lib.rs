//! The server in front of the database: listeners, connections, sessions, RESP.
//!
//! [`serve()`] opens the client ports of a node: one for each shard that has a replica on this server. Bytes of a
//! client become requests (`resp`), requests become batches or are answered by the session (`session`),
//! batches go where the cluster's view says (`dispatch`), and replies go back in the order of the requests
//! (`connection`).
//!
//! Left out: the command line and the configuration file, which the binary adds; what commands do to data, which is
//! the keyspace's.

mod clients;
mod connection;
mod control;
mod crowd;
mod dispatch;
mod engine;
mod forward;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod gate;
mod histogram;
mod http;
mod latency;
mod limits;
mod listener;
mod metrics;
mod monitor;
mod password;
mod port;
mod process;
mod reign;
mod resp;
mod rewrite;
mod saves;
mod sentinel;
mod serve;
mod session;
mod settings;
mod slowlog;
mod stats;
#[cfg(any(test, feature = "fuzzing"))]
mod testing;

pub use control::Control;
pub use limits::{LimitConfig, Networks, OutputLimit, OutputLimits, Quota, Rules};
pub use password::Password;
pub use serve::{MeasureConfig, SentinelConfig, ServeConfig, ServeError, serve};
pub use settings::DebugCommand;
