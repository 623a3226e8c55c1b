//! What all WAL tests share: shorthand for records, and callbacks to wait for.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use kvorum_raft::{
    disk::{Disk, MemoryDisk},
    wal::{Done, GroupLog, Position, Record, Recovery, Wal, WalConfig, WalError},
};

/// The directory of the log on a disk in memory.
pub(crate) const DIR: &str = "/wal";

/// Small segments, no reserve, no waiting for the lazy sync within a test.
pub(crate) fn small() -> WalConfig {
    WalConfig {
        segment_bytes: 8 << 10,
        tail_bytes: 2 << 10,
        batch_bytes: 4 << 10,
        reserve_bytes: 0,
        lazy_sync_interval: Duration::from_secs(3600),
        ..WalConfig::default()
    }
}

/// Opens the log in [`DIR`].
pub(crate) fn open_with(disk: &MemoryDisk, config: WalConfig) -> Result<(Wal, Recovery), WalError> {
    Wal::open(Arc::new(disk.clone()), PathBuf::from(DIR), config)
}

/// Opens the log in [`DIR`], which must work.
pub(crate) fn open(disk: &MemoryDisk) -> Wal {
    open_with(disk, small()).unwrap().0
}

/// The log's segment files, oldest first.
pub(crate) fn segments(disk: &dyn Disk, dir: &Path) -> Vec<PathBuf> {
    let mut names = disk.list(dir).unwrap();
    names.retain(|name| name.starts_with("segment-"));
    names.sort();
    names.into_iter().map(|name| dir.join(name)).collect()
}

/// A record whose payload is told by its index and term.
pub(crate) fn record(index: u64, term: u64, bytes: usize) -> Record {
    let payload: Vec<u8> =
        (0..bytes as u64).map(|at| index.wrapping_mul(31).wrapping_add(term * 7 + at) as u8).collect();
    Record { index, term, leader: term % 3, payload: Bytes::from(payload), local: None }
}

/// The records of a range of indexes.
pub(crate) fn records(indexes: std::ops::Range<u64>, term: u64, bytes: usize) -> Vec<Record> {
    indexes.map(|index| record(index, term, bytes)).collect()
}

/// What of a record is on disk.
pub(crate) fn plain(record: &Record) -> (u64, u64, u64, Bytes) {
    (record.index, record.term, record.leader, record.payload.clone())
}

/// An acknowledgement that can be waited for.
pub(crate) struct Ack(mpsc::Receiver<io::Result<()>>);

impl Ack {
    /// A callback and what it answers to.
    pub(crate) fn new() -> (Done, Ack) {
        let (sender, receiver) = mpsc::channel();
        (Box::new(move |result| drop(sender.send(result))), Ack(receiver))
    }

    /// Waits for the callback.
    pub(crate) fn wait(self) -> io::Result<()> {
        self.0.recv_timeout(Duration::from_secs(30)).expect("the callback is called within 30 s")
    }
}

/// The calls of a group log, waiting for their acknowledgement.
pub(crate) trait Sync {
    /// [`GroupLog::append`].
    fn append_now(&self, records: Vec<Record>) -> io::Result<()>;
    /// [`GroupLog::save_vote`].
    fn vote_now(&self, vote: &'static [u8]) -> io::Result<()>;
    /// [`GroupLog::truncate_after`].
    fn truncate_now(&self, index: Option<u64>) -> io::Result<()>;
    /// [`GroupLog::purge_to`].
    fn purge_now(&self, to: Position) -> io::Result<()>;
    /// All entries.
    fn all(&self) -> Vec<Record>;
}

impl Sync for GroupLog {
    fn append_now(&self, records: Vec<Record>) -> io::Result<()> {
        let (done, ack) = Ack::new();
        self.append(records, done);
        ack.wait()
    }

    fn vote_now(&self, vote: &'static [u8]) -> io::Result<()> {
        let (done, ack) = Ack::new();
        self.save_vote(Bytes::from_static(vote), done);
        ack.wait()
    }

    fn truncate_now(&self, index: Option<u64>) -> io::Result<()> {
        let (done, ack) = Ack::new();
        self.truncate_after(index, done);
        ack.wait()
    }

    fn purge_now(&self, to: Position) -> io::Result<()> {
        let (done, ack) = Ack::new();
        self.purge_to(to, done);
        ack.wait()
    }

    fn all(&self) -> Vec<Record> {
        self.read(0..u64::MAX, usize::MAX).unwrap()
    }
}

/// Waits for something that happens on another thread.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A position.
pub(crate) fn at(index: u64, term: u64) -> Position {
    Position { index, term, leader: term % 3 }
}
