//! Snapshots of groups: what a replica was at one place of its log, in a file, so that the log before it can go and a replica
//! that is too far behind can be brought up.
//!
//! ```text
//! driver ─ openraft ─ Applier ─ Machine::snapshot ─ Image ─▶ store: build.tmp ─▶ snapshot-….kvs ─▶ the log is purged
//!                                     ┌─────────────────────────────────────────────┘
//! leader:   outgoing ─ offer, chunks, finish ─▶ Link ─▶ incoming: ….part ─▶ openraft ─ Applier ─ Machine::restore   :follower
//! ```
//!
//! Contract:
//! - a snapshot counts when it is durable under its final name, and the log is purged only after that;
//! - whatever is read is checked to the last byte before the machine's state is replaced; damage is an error that names file and
//!   offset, on the way between servers a reason to send again;
//! - memory is bounded by a block (in a simulation by the content); nothing is written or read under a lock that entries need;
//! - disk: one finished snapshot, one that is being built or received, and a log of at most half of the snapshot or
//!   [`SnapshotConfig::log_bytes`], whichever is more;
//! - a build that fails costs nothing but the attempt. A snapshot that cannot be installed or found at start stops the replica.
//!
//! What it leaves out: the meaning of the content (the machine's), compression, and sending from followers.

mod driver;
mod format;
mod incoming;
mod outgoing;
mod start;
mod store;

use std::{path::PathBuf, time::Duration};

use crate::clock::Environment;

pub(crate) use driver::{Managed, Snapshots};
pub use driver::{SnapshotError, SnapshotStats};
pub(crate) use format::Header;
pub(crate) use incoming::Receiver;
pub(crate) use outgoing::{SendError, send};
pub(crate) use start::{restore, start};
pub(crate) use store::{Attempt, SnapshotData, SnapshotFile, SnapshotStore};

/// When snapshots are taken, and what is kept of the log behind them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotConfig {
    /// Directory; every group has one in it. Default `snapshots`.
    pub dir: PathBuf,
    /// Bytes of a group's log since its last snapshot after which there is another, or half of that snapshot's size if this is
    /// more. Default 64 MiB.
    pub log_bytes: u64,
    /// Entries kept before a snapshot for followers that lag a little, at most. Default 16384.
    pub keep_entries: u64,
    /// Bytes of them, at most. Default 8 MiB.
    pub keep_bytes: u64,
    /// A group that holds more of the shared log than this, because its entries lie far apart, gets a snapshot too;
    /// or half of all snapshots if that is more. Default 512 MiB.
    pub pinned_bytes: u64,
    /// Content of a block. Default 64 KiB.
    pub block_bytes: usize,
    /// Bytes of a snapshot that are written in a second, so that others get at the disk; 0 for no limit. Default 64 MiB.
    pub bytes_per_second: u64,
    /// Time between two looks at the groups. Default 500 ms.
    pub interval: Duration,
}

impl Default for SnapshotConfig {
    fn default() -> SnapshotConfig {
        SnapshotConfig {
            dir: PathBuf::from("snapshots"),
            log_bytes: 64 << 20,
            keep_entries: 16 << 10,
            keep_bytes: 8 << 20,
            pinned_bytes: 512 << 20,
            block_bytes: 64 << 10,
            bytes_per_second: 64 << 20,
            interval: Duration::from_millis(500),
        }
    }
}

/// Largest piece of a snapshot in one message.
pub(crate) const CHUNK_BYTES: usize = 256 << 10;
/// Largest that is accepted.
const CHUNK_BYTES_MAX: usize = 512 << 10;
/// Bytes written before they are synced, so that the sync at the end is short.
const SYNC_BYTES: u64 = 4 << 20;

/// Runs work that blocks on the disk or takes long: on a thread of its own, in a simulation right here.
pub(crate) async fn blocking<T: Send + 'static>(
    environment: &Environment,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    if environment.is_simulated() {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
