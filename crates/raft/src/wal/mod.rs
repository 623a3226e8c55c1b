//! The write-ahead log: one per server, shared by all its Raft groups.
//!
//! A [`Wal`] owns a directory of segment files and one writer thread; a [`GroupLog`] is a group's cheap handle to it. Calls
//! change the group's state in memory at once (reads see it), go into a queue, and are acknowledged through a callback once
//! they are as durable as [`SyncMode`] asks. The writer takes what all groups have waiting, by bytes in turn, writes it as one
//! frame, syncs once if anything in it needs that, then runs the callbacks in order. The format and the rules of recovery stand in
//! `docs/data-on-disk.md`.
//!
//! Contract:
//! - what was acknowledged is there after a crash, as far as its [`SyncMode`] promises; what is there after a crash is a
//!   prefix, per group, of what was called, in the order of the calls;
//! - any error of a write or a sync is final for the whole log: every callback and every later call fails
//!   ([`Wal::failure`]), for nothing is known about the disk any more;
//! - callbacks run on the writer thread: they must not block and must not call [`GroupLog::append`], which may wait for
//!   room in the queue that only the writer makes.
//!
//! What it leaves out: the meaning of payloads, votes and committed positions (opaque bytes); a lock on the directory (the
//! owner of the data directory holds one); snapshots (see [`GroupLog::pinned_bytes`] for when to take one).

mod frame;
mod group;
mod lazy;
mod queue;
mod recovery;
mod segments;
mod writer;

use std::{
    any::Any,
    fmt, io,
    path::PathBuf,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;

pub use group::GroupLog;
use group::Shared;
pub use recovery::{Recovery, Repair};
use writer::Writer;

use crate::{clock::Environment, disk::Disk};

/// A Raft group, unique for the life of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub u64);

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Something the proposer wants back when its record is applied in the same process, such as the parsed batch. As long as the
/// proposer has a clone of it, the record stays in memory.
pub type Local = Arc<dyn Any + Send + Sync>;

/// What is called when a request is as durable as asked, or failed. Runs on the writer thread (or on the caller's when the
/// request is refused at once); must not block.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// One log entry. Clones are reference counts.
#[derive(Clone)]
pub struct Record {
    /// Place in the group's log.
    pub index: u64,
    /// Term of the leader that proposed it.
    pub term: u64,
    /// Raft node id of that leader.
    pub leader: u64,
    /// Opaque content.
    pub payload: Bytes,
    /// Never on disk; there only while the record is fed from memory.
    pub local: Option<Local>,
}

impl Record {
    /// Where the record stands.
    pub fn position(&self) -> Position {
        Position { index: self.index, term: self.term, leader: self.leader }
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}.{} {} bytes", self.index, self.term, self.leader, self.payload.len())
    }
}

/// A place in a group's log with the term and leader of the entry there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Place in the group's log.
    pub index: u64,
    /// Term of the entry.
    pub term: u64,
    /// Raft node id of the leader of that term.
    pub leader: u64,
}

/// What a group's log holds, less the entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupState {
    /// Everything up to here was purged.
    pub purged: Option<Position>,
    /// The last entry, or the purge point when there is none behind it.
    pub last: Option<Position>,
    /// The vote saved last.
    pub vote: Option<Bytes>,
    /// The committed position saved last; after a restart it may be an older one.
    pub committed: Option<Bytes>,
}

/// When appends, truncations and purges of a group are acknowledged. Votes are always synced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SyncMode {
    /// After `fdatasync`: survives loss of power.
    #[default]
    Before,
    /// After `write`, with an `fdatasync` within [`WalConfig::lazy_sync_interval`]: survives the death of the process.
    Lazy,
    /// After `write`; synced when something else is.
    Never,
}

/// Settings of a [`Wal`].
#[derive(Clone, Debug)]
pub struct WalConfig {
    /// Size of a segment file in bytes. A frame larger than this gets a segment of its own. Default 64 MiB, least 4 KiB, most 2 GiB;
    /// rounded up to a multiple of 4 KiB.
    pub segment_bytes: u64,
    /// Bytes of the last entries kept in memory, so that followers are fed without reads, all groups together: each has an equal
    /// share, though not less than 1 MiB unless this is less. Beyond it there is what is waited for (see [`Local`]) and, up to eight
    /// shares, what a follower lacks. Default 8 MiB.
    pub tail_bytes: usize,
    /// Bytes of appends that may wait or be on their way to the disk, all groups together; then [`GroupLog::append`] waits.
    /// One append is always let in. Default 64 MiB.
    pub queue_bytes: usize,
    /// Bytes after which a frame is closed. Default 4 MiB.
    pub batch_bytes: usize,
    /// Bytes of the file system that appends must leave free. Default 256 MiB; 0 lets them fill it up.
    pub reserve_bytes: u64,
    /// Longest time between a `write` in [`SyncMode::Lazy`] (or a committed position) and its `fdatasync` (its write).
    /// Default 1 s.
    pub lazy_sync_interval: Duration,
    /// Dropped segments kept to be recycled. Default 2.
    pub spare_segments: usize,
}

impl Default for WalConfig {
    fn default() -> WalConfig {
        WalConfig {
            segment_bytes: 64 << 20,
            tail_bytes: 8 << 20,
            queue_bytes: 64 << 20,
            batch_bytes: 4 << 20,
            reserve_bytes: 256 << 20,
            lazy_sync_interval: Duration::from_secs(1),
            spare_segments: 2,
        }
    }
}

/// Why a log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The file system failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// File or directory.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// Something that was on disk is damaged. Nothing was changed.
    #[error("{} is damaged at offset {offset}: {reason}; refusing to start with a log that lost acknowledged data", file.display())]
    Corrupt {
        /// Segment file.
        file: PathBuf,
        /// Byte offset of the damaged frame or record.
        offset: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A segment of the log is not there.
    #[error("{} is missing: the log needs it; refusing to start", file.display())]
    Missing {
        /// Segment file.
        file: PathBuf,
    },
    /// A group's entries have a hole.
    #[error("group {group}: the entry at index {index} is missing from the log; refusing to start")]
    Hole {
        /// The group.
        group: GroupId,
        /// First missing index.
        index: u64,
    },
    /// The settings make no sense.
    #[error("WAL settings: {0}")]
    Config(String),
}

/// Figures since the log was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalStats {
    /// Frames written.
    pub frames: u64,
    /// Bytes of these frames, with headers, without padding.
    pub bytes: u64,
    /// Entries written.
    pub entries: u64,
    /// `fdatasync` calls.
    pub syncs: u64,
    /// Time spent in them, microseconds.
    pub sync_us: u64,
    /// The longest one, microseconds.
    pub sync_max_us: u64,
    /// How many took how long; see [`crate::metrics::wal`].
    pub sync_times: [u64; 15],
    /// Number of the last frame written.
    pub written_frame: u64,
    /// Number of the last frame known to be on disk.
    pub synced_frame: u64,
    /// Time spent in writes, microseconds.
    pub write_us: u64,
    /// Bytes of appends waiting or on their way.
    pub queued_bytes: u64,
    /// Segment files of the log.
    pub segments: u64,
    /// Segments dropped.
    pub dropped_segments: u64,
    /// Entries written again so that a segment could be dropped.
    pub copied_entries: u64,
}

/// The log of a server. Clones share it; when the last one goes, what is queued is written and synced and the log is closed.
#[derive(Clone)]
pub struct Wal {
    shared: Arc<Shared>,
    closer: Arc<Closer>,
}

/// Ends the writer thread with the last [`Wal`].
struct Closer {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Wal {
    /// Opens the log in `dir`, creating it when there is none. Reads all segments, cuts a torn tail, refuses damage anywhere else.
    pub fn open(disk: Arc<dyn Disk>, dir: PathBuf, config: WalConfig) -> Result<(Wal, Recovery), WalError> {
        Wal::open_in(&Environment::real(), disk, dir, config)
    }

    /// The same in an environment; in a simulated one the writer is a task of it instead of a thread.
    pub fn open_in(
        environment: &Environment,
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        config: WalConfig,
    ) -> Result<(Wal, Recovery), WalError> {
        if !(4 << 10..=2 << 30).contains(&config.segment_bytes) {
            return Err(WalError::Config(format!(
                "segment_bytes is {}, allowed are 4 KiB to 2 GiB",
                config.segment_bytes
            )));
        }
        let segment_bytes = config.segment_bytes.next_multiple_of(frame::BLOCK_BYTES);
        let recovered =
            recovery::recover(environment.clone(), disk, dir, WalConfig { segment_bytes, ..config })?;
        let shared = recovered.shared;
        let writer = Writer::new(shared.clone(), recovered.segments, recovered.sequence);
        let writer = writer.map_err(|source| WalError::Io { path: shared.dir.clone(), source })?;
        let thread = if environment.is_simulated() {
            environment.spawn(writer.run_simulated());
            None
        } else {
            let thread = thread::Builder::new().name("kvorum-wal".to_owned()).spawn(move || writer.run());
            Some(thread.map_err(|source| WalError::Io { path: shared.dir.clone(), source })?)
        };
        let closer = Arc::new(Closer { shared: shared.clone(), thread: Mutex::new(thread) });
        Ok((Wal { shared, closer }, recovered.report))
    }

    /// The handle of a group; one that was never seen is empty.
    pub fn group(&self, group: GroupId) -> GroupLog {
        GroupLog::new(self.shared.clone(), group)
    }

    pub(crate) fn disk(&self) -> Arc<dyn Disk> {
        self.shared.disk.clone()
    }

    pub(crate) fn config(&self) -> &WalConfig {
        &self.shared.config
    }

    /// The groups that have any state.
    pub fn groups(&self) -> Vec<GroupId> {
        self.shared.live_groups().into_iter().map(|group| group.id).collect()
    }

    /// The error that ended the log, if one did.
    pub fn failure(&self) -> Option<String> {
        self.shared.failure()
    }

    /// Whether an error ended the log: every call fails from now on, and the server should stop.
    pub fn failed(&self) -> bool {
        self.failure().is_some()
    }

    /// Whether `bytes` more of entries would be accepted, with some room to spare: ask before proposing, so that clients get a
    /// definite refusal while replicas can still append what was proposed. `Err` of kind `StorageFull` says how much is left.
    pub fn admit(&self, bytes: u64) -> io::Result<()> {
        self.shared.admit(bytes)
    }

    /// The longest time that a sync took since this was asked last: for one who asks often.
    pub fn longest_sync(&self) -> Duration {
        Duration::from_micros(
            self.shared.counters.sync_recent_us.swap(0, std::sync::atomic::Ordering::Relaxed),
        )
    }

    /// Figures since the log was opened.
    pub fn stats(&self) -> WalStats {
        self.shared.stats()
    }

    /// Writes and syncs what is queued and ends the writer; later calls fail. Called by the drop of the last [`Wal`] too.
    pub fn close(&self) {
        self.closer.close();
    }
}

impl fmt::Debug for Wal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wal").field("dir", &self.shared.dir).field("stats", &self.stats()).finish()
    }
}

impl Closer {
    fn close(&self) {
        self.shared.queue.close();
        let thread = self.thread.lock().take();
        // A callback may hold the last handle; the writer cannot wait for itself, and ends by itself.
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != thread::current().id())
            && thread.join().is_err()
        {
            tracing::error!("the WAL writer thread panicked");
        }
    }
}

impl Drop for Closer {
    fn drop(&mut self) {
        self.close();
    }
}
