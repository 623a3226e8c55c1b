//! One group's directory of snapshots: writes them, keeps the newest, holds what a leader sends.

use std::{
    collections::BTreeMap,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use openraft::alias::LogIdOf;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    SYNC_BYTES, SnapshotConfig, blocking,
    format::{BlockReader, BlockWriter, FOOTER_BYTES, Header, ReadError},
};
use crate::{
    clock::Environment,
    disk::{Disk, DiskFile, disk_full, in_dir},
    machine::{Image, panic_text},
    types::Types,
};

/// Name of a snapshot that is being written.
const BUILD_NAME: &str = "build.tmp";

/// What a file of the directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum FileKind {
    Finished { index: u64, id: u64 },
    Incoming { index: u64, id: u64 },
    Build,
    Other,
}

fn file_kind(name: &str) -> FileKind {
    let numbers = |prefix: &str, suffix: &str| {
        let (index, id) = name.strip_prefix(prefix)?.strip_suffix(suffix)?.split_once('-')?;
        let hex = |digits: &str| {
            let plain =
                digits.len() == 16 && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
            u64::from_str_radix(digits, 16).ok().filter(|_| plain)
        };
        Some((hex(index)?, hex(id)?))
    };
    if let Some((index, id)) = numbers("snapshot-", ".kvs") {
        FileKind::Finished { index, id }
    } else if let Some((index, id)) = numbers("incoming-", ".part") {
        FileKind::Incoming { index, id }
    } else if name == BUILD_NAME {
        FileKind::Build
    } else {
        FileKind::Other
    }
}

fn finished_name(index: u64, id: u64) -> String {
    format!("snapshot-{index:016x}-{id:016x}.kvs")
}

fn incoming_name(index: u64, id: u64) -> String {
    format!("incoming-{index:016x}-{id:016x}.part")
}

/// A whole snapshot. Who holds it can read it, also after a newer one took its place.
pub(crate) struct SnapshotFile {
    pub(crate) header: Header,
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    file: Arc<dyn DiskFile>,
}

impl SnapshotFile {
    /// The content, checked on the way.
    pub(super) fn content(&self) -> Result<BlockReader, ReadError> {
        BlockReader::open(self.file.clone(), &self.path)
    }

    /// Checks every byte.
    pub(crate) fn verify(&self) -> Result<(), ReadError> {
        self.content()?.verify()
    }

    /// Bytes of the file as they are.
    pub(super) fn piece(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        crate::disk::read_exact_at(&*self.file, bytes, offset)
    }
}

/// What openraft is given for a snapshot: the file. None stands for an attempt that failed.
#[derive(Clone)]
pub(crate) struct SnapshotData(pub(crate) Option<Arc<SnapshotFile>>);

/// As much of a leader's snapshot as is here.
pub(super) struct Partial {
    pub(super) last: LogIdOf<Types>,
    pub(super) id: u64,
    pub(super) length: u64,
    pub(super) held: u64,
    synced: u64,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
}

impl Partial {
    /// Adds the bytes that follow.
    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_at(bytes, self.held)?;
        self.held += bytes.len() as u64;
        if self.held - self.synced >= SYNC_BYTES {
            self.file.sync_data()?;
            self.synced = self.held;
        }
        Ok(())
    }
}

/// Attempts to build a snapshot.
#[derive(Clone, Debug, Default)]
pub(super) struct Attempts {
    pub(super) begun: u64,
    pub(super) ended: u64,
    /// Why the last one failed.
    pub(super) failure: Option<Arc<str>>,
}

/// An attempt to build a snapshot; one at a time. Whatever becomes of it, it ends.
pub(crate) struct Attempt {
    store: Option<Arc<SnapshotStore>>,
    /// Bytes of entries applied when it began.
    applied_bytes: u64,
}

impl Attempt {
    /// Ends it, with the reason if it failed.
    pub(crate) fn end(mut self, failure: Option<String>) {
        self.finish(failure);
    }

    fn finish(&mut self, failure: Option<String>) {
        let Some(store) = self.store.take() else { return };
        store.attempts.send_modify(|attempts| {
            attempts.ended = attempts.begun;
            attempts.failure = failure.map(Arc::from);
        });
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.finish(Some("it was given up".to_owned()));
    }
}

/// Figures of a store since it was opened.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) built: AtomicU64,
    pub(super) installed: AtomicU64,
    pub(super) sent_bytes: AtomicU64,
    pub(super) received_bytes: AtomicU64,
}

/// A group's snapshots.
pub(crate) struct SnapshotStore {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    group: u64,
    environment: Environment,
    config: SnapshotConfig,
    /// Bytes of the file system that a snapshot leaves free.
    reserve_bytes: u64,
    closed: AtomicBool,
    current: Mutex<Option<Arc<SnapshotFile>>>,
    /// The newest one turned out to be damaged: there should be another soon.
    damaged: AtomicBool,
    /// Bytes of entries applied since the start, and what of it is in the newest snapshot.
    applied_bytes: AtomicU64,
    /// What the machine said last of what will not be there for long.
    passing_bytes: AtomicU64,
    covered_bytes: AtomicU64,
    /// Index behind the last entry applied.
    applied_next: AtomicU64,
    /// Transfers to other replicas: the index of the snapshot, and when it went on last.
    sending: Mutex<BTreeMap<u64, (u64, Duration)>>,
    pub(super) attempts: watch::Sender<Attempts>,
    pub(super) counters: Counters,
}

/// How long a transfer counts after it went on last.
const SENDING_LINGERS: Duration = Duration::from_secs(10);

impl SnapshotStore {
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        config: &SnapshotConfig,
        group: u64,
        environment: Environment,
        reserve_bytes: u64,
    ) -> io::Result<SnapshotStore> {
        let dir = in_dir(&config.dir, &format!("group-{group:016x}"));
        disk.create_dir_all(&dir)?;
        Ok(SnapshotStore {
            disk,
            dir,
            group,
            environment,
            config: config.clone(),
            reserve_bytes,
            closed: AtomicBool::new(false),
            current: Mutex::new(None),
            damaged: AtomicBool::new(false),
            applied_bytes: AtomicU64::new(0),
            passing_bytes: AtomicU64::new(0),
            covered_bytes: AtomicU64::new(0),
            applied_next: AtomicU64::new(0),
            sending: Mutex::default(),
            attempts: watch::Sender::default(),
            counters: Counters::default(),
        })
    }

    pub(crate) fn group(&self) -> u64 {
        self.group
    }

    pub(crate) fn environment(&self) -> &Environment {
        &self.environment
    }

    /// An id for a snapshot.
    pub(crate) fn draw_id(&self) -> u64 {
        self.environment.draw()
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    fn names(&self) -> io::Result<Vec<(FileKind, PathBuf)>> {
        let mut names: Vec<_> = self
            .disk
            .list(&self.dir)?
            .into_iter()
            .map(|name| (file_kind(&name), in_dir(&self.dir, &name)))
            .collect();
        names.sort();
        Ok(names)
    }

    /// Finished snapshots with the index that their names say, newest first.
    pub(super) fn finished(&self) -> io::Result<Vec<(u64, PathBuf)>> {
        let names = self.names()?;
        let finished = names.into_iter().rev().filter_map(|(kind, path)| match kind {
            FileKind::Finished { index, .. } => Some((index, path)),
            _ => None,
        });
        Ok(finished.collect())
    }

    /// Opens a finished snapshot and reads its header.
    pub(super) fn load(&self, path: &Path) -> Result<Arc<SnapshotFile>, ReadError> {
        let io = |source| ReadError::Io { file: path.to_owned(), source };
        let file = self.disk.open(path).map_err(io)?;
        let (header, _) = Header::read(&*file, path)?;
        let bytes = file.len().map_err(io)?;
        if header.group != self.group {
            return Err(io(io::Error::other(format!("it is of group {}", header.group))));
        }
        Ok(Arc::new(SnapshotFile { header, path: path.to_owned(), bytes, file }))
    }

    /// Makes `current` the snapshot of this start and removes what else there is; returns what a leader had begun to send.
    pub(super) fn settle(&self, current: Option<Arc<SnapshotFile>>) -> io::Result<Option<Partial>> {
        let reaches = current.as_ref().map(|file| file.header.last.index);
        let mut partial = None;
        for (kind, path) in self.names()?.into_iter().rev() {
            let keep = match kind {
                FileKind::Finished { .. } => current.as_ref().is_some_and(|file| file.path == path),
                FileKind::Incoming { index, .. } if partial.is_none() && reaches < Some(index) => {
                    partial = self.take_up(&path)?;
                    partial.is_some()
                }
                FileKind::Incoming { .. } | FileKind::Build => false,
                FileKind::Other => true,
            };
            if !keep {
                self.disk.remove(&path)?;
            }
        }
        self.applied_next.store(reaches.map_or(0, |index| index + 1), Ordering::Relaxed);
        *self.current.lock() = current;
        Ok(partial)
    }

    /// Removes every snapshot of the group, finished or not, durably.
    pub(crate) fn clear(&self) -> io::Result<()> {
        for (kind, path) in self.names()? {
            if !matches!(kind, FileKind::Other) {
                self.disk.remove(&path)?;
            }
        }
        self.disk.sync_dir(&self.dir)
    }

    /// The intact begin of what a leader sent before the restart; none when there is nothing intact.
    fn take_up(&self, path: &Path) -> io::Result<Option<Partial>> {
        let file = self.disk.open(path)?;
        let Ok(mut reader) = BlockReader::open(file.clone(), path) else { return Ok(None) };
        // The error says where it stops being intact, which the reader knows too.
        let _ = reader.verify();
        let held = reader.offset();
        let &Header { group, id, last, .. } = reader.header();
        if group != self.group {
            return Ok(None);
        }
        if file.len()? > held {
            file.set_len(held)?;
        }
        // How long it is to be, the next offer says.
        let path = path.to_owned();
        Ok(Some(Partial { last, id, length: 0, held, synced: 0, path, file }))
    }

    /// Begins to hold a leader's snapshot; `old` makes room.
    pub(super) fn begin_partial(
        &self,
        old: Option<Partial>,
        last: LogIdOf<Types>,
        id: u64,
        length: u64,
    ) -> io::Result<Partial> {
        if let Some(old) = old {
            self.remove_partial(&old);
        }
        self.check_space(length)?;
        let path = in_dir(&self.dir, &incoming_name(last.index, id));
        let file = match self.disk.create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.disk.remove(&path)?;
                self.disk.create(&path)?
            }
            result => result?,
        };
        Ok(Partial { last, id, length, held: 0, synced: 0, path, file })
    }

    pub(super) fn remove_partial(&self, partial: &Partial) {
        self.remove_quietly(&partial.path);
    }

    fn remove_quietly(&self, path: &Path) {
        match self.disk.remove(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, file = %path.display(), "cannot remove a snapshot that is not needed");
            }
            _ => {}
        }
    }

    /// Removes a received snapshot that was not installed.
    pub(super) fn remove_received(&self, file: &SnapshotFile) {
        self.remove_quietly(&file.path);
    }

    /// Checks that what was received is whole and what was offered, and makes it durable, still under its provisional name.
    pub(super) fn complete_partial(&self, partial: &Partial) -> Result<Arc<SnapshotFile>, ReadError> {
        let io = |source| ReadError::Io { file: partial.path.clone(), source };
        let mut reader = BlockReader::open(partial.file.clone(), &partial.path)?;
        reader.verify()?;
        let header = reader.header().clone();
        if (header.group, header.id, header.last) != (self.group, partial.id, partial.last) {
            return Err(io(io::Error::other("it is not the snapshot that was offered")));
        }
        partial.file.sync_data().map_err(io)?;
        let (path, bytes, file) = (partial.path.clone(), partial.held, partial.file.clone());
        Ok(Arc::new(SnapshotFile { header, path, bytes, file }))
    }

    /// Gives a snapshot that the machine has read its final name.
    pub(crate) fn adopt(&self, received: &Arc<SnapshotFile>) -> io::Result<()> {
        let Header { last, id, .. } = received.header;
        self.check_open()?;
        let path = in_dir(&self.dir, &finished_name(last.index, id));
        if received.path != path {
            self.disk.rename(&received.path, &path)?;
            self.disk.sync_dir(&self.dir)?;
        }
        let (header, bytes, file) = (received.header.clone(), received.bytes, received.file.clone());
        self.replace(Arc::new(SnapshotFile { header, path, bytes, file }));
        self.covered_bytes.store(self.applied_bytes.load(Ordering::Relaxed), Ordering::Relaxed);
        self.applied_next.store(last.index + 1, Ordering::Relaxed);
        self.counters.installed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// A durable snapshot takes the place of the one before.
    fn replace(&self, new: Arc<SnapshotFile>) {
        let old = self.current.lock().replace(new.clone());
        self.damaged.store(false, Ordering::Relaxed);
        if let Some(old) = old.filter(|old| old.path != new.path)
            && let Err(error) = self.disk.remove(&old.path)
        {
            tracing::warn!(%error, file = %old.path.display(), "cannot remove an old snapshot");
        }
    }

    /// Builds a snapshot from a state. It is durable and current when this returns; after an error nothing has changed.
    pub(crate) async fn build(
        self: &Arc<Self>,
        attempt: Attempt,
        header: Header,
        image: Box<dyn Image>,
    ) -> io::Result<Arc<SnapshotFile>> {
        let begun = self.environment.now();
        let (index, id) = (header.last.index, header.id);
        let written = if self.environment.is_simulated() {
            self.write_simulated(&header, image).await
        } else {
            let (store, header) = (self.clone(), header.clone());
            blocking(&self.environment, move || {
                let written = catch_unwind(AssertUnwindSafe(|| store.write(&header, image)));
                written.unwrap_or_else(|panic| {
                    Err(io::Error::other(format!("panicked: {}", panic_text(&*panic))))
                })
            })
            .await
        };
        let result = written.and_then(|(file, bytes)| self.publish(header, file, bytes));
        match &result {
            Ok(file) => {
                self.covered_bytes.store(attempt.applied_bytes, Ordering::Relaxed);
                self.counters.built.fetch_add(1, Ordering::Relaxed);
                let ms = self.environment.now().saturating_sub(begun).as_millis();
                tracing::info!(group = self.group, index, id, bytes = file.bytes, ms, "snapshot written");
                attempt.end(None);
            }
            Err(error) => {
                // What is left of it; the next attempt begins anew in any case.
                self.remove_quietly(&in_dir(&self.dir, BUILD_NAME));
                attempt.end(Some(error.to_string()));
            }
        }
        result
    }

    fn create_build(&self) -> io::Result<Arc<dyn DiskFile>> {
        let path = in_dir(&self.dir, BUILD_NAME);
        match self.disk.create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.disk.remove(&path)?;
                self.disk.create(&path)
            }
            result => result,
        }
    }

    /// Writes all content at once, on a thread that may block; slowly enough for others.
    fn write(&self, header: &Header, image: Box<dyn Image>) -> io::Result<(Arc<dyn DiskFile>, u64)> {
        let file = self.create_build()?;
        let begun = self.environment.now();
        let mut synced = 0;
        let mut gate = |offset: u64| {
            self.check_open()?;
            if offset - synced >= SYNC_BYTES {
                file.sync_data()?;
                synced = offset;
                self.check_space(0)?;
            }
            if self.config.bytes_per_second > 0 {
                let due = Duration::from_secs_f64(offset as f64 / self.config.bytes_per_second as f64);
                let ahead = due.saturating_sub(self.environment.now().saturating_sub(begun));
                std::thread::sleep(ahead);
            }
            Ok(())
        };
        let mut writer = BlockWriter::begin(&*file, header, self.config.block_bytes, &mut gate)?;
        image.write(&mut writer)?;
        let bytes = writer.finish()?;
        Ok((file, bytes))
    }

    /// The same as a part of a simulation's task, which lets others run between blocks.
    async fn write_simulated(
        &self,
        header: &Header,
        image: Box<dyn Image>,
    ) -> io::Result<(Arc<dyn DiskFile>, u64)> {
        let mut content = Vec::new();
        image.write(&mut content)?;
        let file = self.create_build()?;
        let mut gate = |_: u64| self.check_open();
        let mut writer = BlockWriter::begin(&*file, header, self.config.block_bytes, &mut gate)?;
        for block in content.chunks(self.config.block_bytes) {
            let delay = self.disk.delay();
            if delay.is_zero() {
                tokio::task::yield_now().await;
            } else {
                tokio::time::sleep(delay).await;
            }
            io::Write::write_all(&mut writer, block)?;
        }
        let bytes = writer.finish()?;
        Ok((file, bytes))
    }

    fn publish(&self, header: Header, file: Arc<dyn DiskFile>, bytes: u64) -> io::Result<Arc<SnapshotFile>> {
        file.sync_data()?;
        self.check_open()?;
        // A newer one of the leader's may have come meanwhile.
        if self.current().is_some_and(|current| current.header.last > header.last) {
            return Err(io::Error::other("a newer snapshot was installed meanwhile"));
        }
        let path = in_dir(&self.dir, &finished_name(header.last.index, header.id));
        self.disk.rename(&in_dir(&self.dir, BUILD_NAME), &path)?;
        self.disk.sync_dir(&self.dir)?;
        let new = Arc::new(SnapshotFile { header, path, bytes, file });
        self.replace(new.clone());
        Ok(new)
    }

    /// What is written after the replica was stopped might hit upon its successor.
    fn check_open(&self) -> io::Result<()> {
        if self.closed.load(Ordering::Relaxed) {
            Err(io::Error::other("the replica has stopped"))
        } else {
            Ok(())
        }
    }

    /// A snapshot frees space in the end, so it may use a part of what the log leaves free.
    fn check_space(&self, bytes: u64) -> io::Result<()> {
        let free = self.disk.available_bytes(&self.dir)?;
        if free < bytes.saturating_add(self.reserve_bytes / 2) {
            return Err(disk_full(format!(
                "no room for a snapshot in {}: {free} bytes left",
                self.dir.display()
            )));
        }
        Ok(())
    }

    /// No more builds.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// The newest snapshot.
    pub(crate) fn current(&self) -> Option<Arc<SnapshotFile>> {
        self.current.lock().clone()
    }

    /// An attempt to build a snapshot of everything applied begins.
    pub(crate) fn begin_build(self: &Arc<Self>) -> Attempt {
        self.attempts.send_modify(|attempts| attempts.begun += 1);
        let applied_bytes = self.applied_bytes.load(Ordering::Relaxed);
        Attempt { store: Some(self.clone()), applied_bytes }
    }

    /// Ends when no attempt is under way. In a closed store they end soon.
    pub(super) async fn quiet(&self) {
        // The sender lives as long as `self`.
        let _ = self.attempts.subscribe().wait_for(|attempts| attempts.begun == attempts.ended).await;
    }

    /// An entry of this size was applied, and so much of the state will not be there for long.
    pub(crate) fn note_applied(&self, bytes: usize, passing_bytes: u64) {
        self.passing_bytes.store(passing_bytes, Ordering::Relaxed);
        // About what the entry takes in the log.
        const RECORD_BYTES: u64 = 48;
        self.applied_bytes.fetch_add(bytes as u64 + RECORD_BYTES, Ordering::Relaxed);
    }

    /// This entry is being applied. Said before anybody hears of it: who was told that it is applied may ask for a snapshot
    /// right away, and that has it.
    pub(crate) fn note_applying(&self, index: u64) {
        self.applied_next.store(index + 1, Ordering::Relaxed);
    }

    /// Index behind the last entry that was applied or is being applied.
    pub(super) fn applied_next(&self) -> u64 {
        self.applied_next.load(Ordering::Relaxed)
    }

    /// Bytes of the state that will not be there for long.
    pub(super) fn passing_bytes(&self) -> u64 {
        self.passing_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of entries applied that are in no snapshot.
    pub(super) fn uncovered_bytes(&self) -> u64 {
        let covered = self.covered_bytes.load(Ordering::Relaxed);
        self.applied_bytes.load(Ordering::Relaxed).saturating_sub(covered)
    }

    /// The newest snapshot was read and is not intact.
    pub(super) fn note_damage(&self) {
        self.damaged.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    /// A transfer to a replica goes on, or has ended.
    pub(super) fn note_sending(&self, to: u64, index: Option<u64>) {
        let now = self.environment.now();
        let mut sending = self.sending.lock();
        match index {
            Some(index) => drop(sending.insert(to, (index, now))),
            None => drop(sending.remove(&to)),
        }
    }

    /// The oldest snapshot that is on its way to a replica.
    pub(super) fn sending(&self) -> Option<u64> {
        let now = self.environment.now();
        let mut sending = self.sending.lock();
        sending.retain(|_, (_, at)| now.saturating_sub(*at) < SENDING_LINGERS);
        sending.values().map(|(index, _)| *index).min()
    }

    /// Whether a file of this length could be a snapshot.
    pub(super) fn is_plausible(length: u64) -> bool {
        length > FOOTER_BYTES as u64
    }
}
