//! A group's side of the log: its state in memory, changed by the callers, and the handle they call.
//!
//! Lock order: a group, then the queue. A change is made in memory and queued under one lock of its group, so the queue has
//! the order in which readers saw the changes. An entry's *slot* says where it is on disk; until the writer has put it there the slot
//! holds the stamp of the append that brought it, so that the writer never mistakes a replaced entry for the one it wrote.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io,
    ops::Range,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use super::{
    Done, GroupId, GroupState, Position, Record, SyncMode, WalConfig, WalStats,
    frame::{self, Content},
    queue::{Change, Freed, Queue, Request},
};
use crate::{
    clock::Environment,
    disk::{Disk, DiskFile, disk_full, read_exact_at},
    metrics::SyncTimes,
};

/// What a record in the tail takes beside its payload, about.
const TAIL_RECORD_BYTES: usize = 96;
/// Least share of a group in the tails, unless all of them together are less.
const TAIL_BYTES_LEAST: usize = 1 << 20;
/// How many shares a group's tail may have for a follower that is behind.
const SHARES_FOR_FOLLOWERS: usize = 8;
/// Longest read from a segment, unless one record is longer.
const READ_BYTES: usize = 1 << 20;
/// Largest append: far above any entry, far below what a frame's length field holds.
const APPEND_BYTES_MAX: usize = 1 << 30;

/// What all handles and the writer share.
pub(super) struct Shared {
    pub(super) environment: Environment,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
    pub(super) config: WalConfig,
    pub(super) queue: Queue,
    /// The log's segment files, for reads.
    pub(super) files: RwLock<BTreeMap<u64, Arc<dyn DiskFile>>>,
    pub(super) counters: Counters,
    pub(super) space: Space,
    groups: Mutex<HashMap<GroupId, Arc<Group>>>,
    failure: OnceLock<(io::ErrorKind, String)>,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) frames: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) entries: AtomicU64,
    pub(super) syncs: AtomicU64,
    pub(super) sync_us: AtomicU64,
    pub(super) sync_max_us: AtomicU64,
    pub(super) sync_times: SyncTimes,
    /// The longest since somebody looked.
    pub(super) sync_recent_us: AtomicU64,
    /// Frames written, and those of them that are on disk.
    pub(super) written: AtomicU64,
    pub(super) synced: AtomicU64,
    pub(super) write_us: AtomicU64,
    pub(super) dropped_segments: AtomicU64,
    pub(super) copied_entries: AtomicU64,
}

/// How much may still be appended.
#[derive(Default)]
pub(super) struct Space {
    /// An estimate that appends count down; refreshed by the writer, and before anything is refused.
    left_bytes: AtomicI64,
    /// Room in the active segment and in spares: there whatever the file system says.
    pub(super) held_bytes: AtomicU64,
}

impl Shared {
    pub(super) fn new(
        environment: Environment,
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        config: WalConfig,
        groups: HashMap<GroupId, Arc<Group>>,
    ) -> Shared {
        Shared {
            queue: Queue::new(environment.clone(), config.queue_bytes, config.lazy_sync_interval),
            environment,
            disk,
            dir,
            config,
            files: RwLock::default(),
            counters: Counters::default(),
            space: Space::default(),
            groups: Mutex::new(groups),
            failure: OnceLock::new(),
        }
    }

    fn group(&self, id: GroupId) -> Arc<Group> {
        self.groups.lock().entry(id).or_insert_with(|| Arc::new(Group::new(id, Inner::default()))).clone()
    }

    /// How many bytes of its last entries each group keeps in memory.
    pub(super) fn tail_share(&self) -> usize {
        let all = self.config.tail_bytes;
        (all / self.groups.lock().len().max(1)).max(all.min(TAIL_BYTES_LEAST))
    }

    /// The groups that have any state, in order.
    pub(super) fn live_groups(&self) -> Vec<Arc<Group>> {
        let mut groups: Vec<_> = self.groups.lock().values().cloned().collect();
        groups.retain(|group| !group.inner.lock().is_blank());
        groups.sort_by_key(|group| group.id);
        groups
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.failure.get().map(|(_, text)| text.clone())
    }

    /// Ends the log; the first error stays.
    pub(super) fn fail(&self, kind: io::ErrorKind, text: String) {
        let _first_error_stays = self.failure.set((kind, text));
    }

    /// Fails these requests and all that wait; nothing comes after them.
    pub(super) fn refuse(&self, batch: Vec<Request>) {
        let waiting = self.queue.abandon();
        for done in batch.into_iter().chain(waiting).filter_map(|request| request.done) {
            done(Err(self.ended()));
        }
    }

    /// The error of calls that come after the end.
    pub(super) fn ended(&self) -> io::Error {
        match self.failure.get() {
            Some((kind, text)) => io::Error::new(*kind, format!("the WAL has failed: {text}")),
            None => io::Error::new(io::ErrorKind::BrokenPipe, "the WAL is closed"),
        }
    }

    pub(super) fn stats(&self) -> WalStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        WalStats {
            frames: read(&counters.frames),
            bytes: read(&counters.bytes),
            entries: read(&counters.entries),
            syncs: read(&counters.syncs),
            sync_us: read(&counters.sync_us),
            sync_max_us: read(&counters.sync_max_us),
            sync_times: counters.sync_times.counts(),
            written_frame: read(&counters.written),
            synced_frame: read(&counters.synced),
            write_us: read(&counters.write_us),
            queued_bytes: self.queue.bytes() as u64,
            segments: self.files.read().len() as u64,
            dropped_segments: read(&counters.dropped_segments),
            copied_entries: read(&counters.copied_entries),
        }
    }

    /// See [`Wal::admit`](super::Wal::admit): what appends may use, less two segments and what waits.
    pub(super) fn admit(&self, bytes: u64) -> io::Result<()> {
        if self.failure.get().is_some() {
            return Err(self.ended());
        }
        let spare = signed(2 * self.config.segment_bytes);
        let wanted = signed(bytes).saturating_add(spare);
        if self.config.reserve_bytes == 0 || self.space.left_bytes.load(Ordering::Relaxed) >= wanted {
            return Ok(());
        }
        let left = self.refresh_space()?;
        if left < wanted { Err(self.nearly_full(bytes, left - spare)) } else { Ok(()) }
    }

    /// Counts an append against the space that is left.
    fn take_space(&self, bytes: usize) -> io::Result<()> {
        if self.config.reserve_bytes == 0 {
            return Ok(());
        }
        let bytes = (bytes + frame::HEADER_BYTES) as u64;
        if self.space.left_bytes.fetch_sub(signed(bytes), Ordering::Relaxed) >= signed(bytes) {
            return Ok(());
        }
        let left = self.refresh_space()?;
        if left < signed(bytes) { Err(self.nearly_full(bytes, left)) } else { Ok(()) }
    }

    fn nearly_full(&self, bytes: u64, left: i64) -> io::Error {
        disk_full(format!(
            "no room for {bytes} bytes in {}: {} left above the reserve of {} bytes",
            self.dir.display(),
            left.max(0),
            self.config.reserve_bytes
        ))
    }

    /// Asks the file system how much may still be appended.
    pub(super) fn refresh_space(&self) -> io::Result<i64> {
        let WalConfig { reserve_bytes, segment_bytes, batch_bytes, .. } = self.config;
        let free = self.disk.available_bytes(&self.dir)?;
        // A frame that does not fit leaves the end of a segment unused.
        let unused = (batch_bytes as u64).min(segment_bytes / 4);
        let held = signed(self.space.held_bytes.load(Ordering::Relaxed)) - signed(unused);
        let room = match free.checked_sub(reserve_bytes) {
            Some(above) => held.saturating_add(signed(above / segment_bytes * (segment_bytes - unused))),
            // What is held was taken from the reserve.
            None => held - signed(reserve_bytes - free),
        };
        let left = room.saturating_sub(signed(self.queue.bytes() as u64));
        self.space.left_bytes.store(left, Ordering::Relaxed);
        Ok(left)
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// A group's state in memory.
pub(super) struct Group {
    pub(super) id: GroupId,
    inner: Mutex<Inner>,
    /// The first entry that a follower has not got.
    lacking: AtomicU64,
}

/// Where an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Slot {
    /// In the tail and in the queue, brought by the append with this stamp.
    Queued { stamp: u64 },
    /// In a segment.
    Stored(Stored),
}

/// The place of an entry's record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stored {
    pub(super) segment: u64,
    pub(super) offset: u32,
    pub(super) size: u32,
}

/// Entries from `first` on that share term and leader.
struct Run {
    first: u64,
    term: u64,
    leader: u64,
}

#[derive(Default)]
pub(super) struct Inner {
    purged: Option<Position>,
    vote: Option<Bytes>,
    committed: Option<Bytes>,
    /// Index of the first slot, when there is one.
    first: u64,
    /// One per entry, without holes.
    slots: VecDeque<Slot>,
    runs: VecDeque<Run>,
    /// The last entries.
    tail: VecDeque<Record>,
    tail_bytes: usize,
    stamp: u64,
    sync: SyncMode,
}

impl Group {
    pub(super) fn new(id: GroupId, inner: Inner) -> Group {
        Group { id, inner: Mutex::new(inner), lacking: AtomicU64::new(u64::MAX) }
    }

    pub(super) fn state(&self) -> GroupState {
        let inner = self.inner.lock();
        GroupState {
            purged: inner.purged,
            last: inner.last(),
            vote: inner.vote.clone(),
            committed: inner.committed.clone(),
        }
    }

    /// Tells the group where the writer put an append's records. Returns the bytes that are still needed there.
    pub(super) fn store(&self, first: u64, stamp: u64, stored: &[Stored], tail_limit: usize) -> u64 {
        let mut inner = self.inner.lock();
        let mut needed = 0;
        for (index, &stored) in (first..).zip(stored) {
            if let Some(slot) = inner.slot_mut(index).filter(|slot| **slot == Slot::Queued { stamp }) {
                *slot = Slot::Stored(stored);
                needed += u64::from(stored.size);
            }
        }
        inner.shrink_tail(tail_limit, self.lacking.load(Ordering::Relaxed));
        needed
    }

    /// Tells the group that an entry was written again; `false` when it is not needed any more.
    pub(super) fn relocate(&self, index: u64, from: Stored, to: Stored) -> bool {
        let mut inner = self.inner.lock();
        match inner.slot_mut(index).filter(|slot| **slot == Slot::Stored(from)) {
            Some(slot) => {
                *slot = Slot::Stored(to);
                true
            }
            None => false,
        }
    }

    /// The entries that stand in `segment`.
    pub(super) fn stored_in(&self, segment: u64) -> Vec<(u64, Stored)> {
        let inner = self.inner.lock();
        let slots = (inner.first..).zip(&inner.slots);
        let stored = slots.filter_map(|(index, slot)| match slot {
            Slot::Stored(stored) if stored.segment == segment => Some((index, *stored)),
            _ => None,
        });
        stored.collect()
    }

    /// The entry at `index`, when it still stands at `place`.
    pub(super) fn record_at(&self, shared: &Shared, index: u64, place: Stored) -> io::Result<Option<Record>> {
        let found = {
            let inner = self.inner.lock();
            let found = inner.slot(index) == Some(Slot::Stored(place));
            if !found {
                return Ok(None);
            }
            inner.tail_record(index).cloned()
        };
        match found {
            Some(record) => Ok(Some(record)),
            None => shared.read_stored(self.id, index, &[place]).map(|mut records| records.pop()),
        }
    }
}

impl Inner {
    /// The state that recovery found; `slots` begin at `first`.
    pub(super) fn recovered(
        purged: Option<Position>,
        vote: Option<Bytes>,
        committed: Option<Bytes>,
        entries: impl Iterator<Item = (Position, Stored)>,
    ) -> Inner {
        let mut inner = Inner { purged, vote, committed, ..Inner::default() };
        for (at, stored) in entries {
            inner.extend_runs(at);
            inner.slots.push_back(Slot::Stored(stored));
        }
        inner
    }

    fn is_blank(&self) -> bool {
        self.slots.is_empty() && self.purged.is_none() && self.vote.is_none() && self.committed.is_none()
    }

    /// The index behind the last entry; none when any index may come.
    fn next_index(&self) -> Option<u64> {
        match self.slots.len() {
            0 => self.purged.map(|purged| purged.index + 1),
            entries => Some(self.first + entries as u64),
        }
    }

    fn last(&self) -> Option<Position> {
        match (self.runs.back(), self.next_index()) {
            (Some(run), Some(next)) => Some(Position { index: next - 1, term: run.term, leader: run.leader }),
            _ => self.purged,
        }
    }

    fn offset_of(&self, index: u64) -> Option<usize> {
        let offset = usize::try_from(index.checked_sub(self.first)?).ok()?;
        (offset < self.slots.len()).then_some(offset)
    }

    fn slot(&self, index: u64) -> Option<Slot> {
        self.offset_of(index).map(|offset| self.slots[offset])
    }

    fn slot_mut(&mut self, index: u64) -> Option<&mut Slot> {
        let offset = self.offset_of(index)?;
        self.slots.get_mut(offset)
    }

    fn tail_record(&self, index: u64) -> Option<&Record> {
        let first = self.tail.front()?.index;
        self.tail.get(usize::try_from(index.checked_sub(first)?).ok()?)
    }

    fn extend_runs(&mut self, at: Position) {
        if self.slots.is_empty() {
            self.first = at.index;
        }
        if self.runs.back().is_none_or(|run| (run.term, run.leader) != (at.term, at.leader)) {
            self.runs.push_back(Run { first: at.index, term: at.term, leader: at.leader });
        }
    }

    fn push(&mut self, record: Record, stamp: u64) {
        self.extend_runs(record.position());
        self.slots.push_back(Slot::Queued { stamp });
        self.tail_bytes += record.payload.len() + TAIL_RECORD_BYTES;
        self.tail.push_back(record);
    }

    /// Drops the entries from `index` on.
    fn truncate_from(&mut self, index: u64, freed: &mut Vec<Freed>) {
        while self.next_index().is_some_and(|next| next > index) {
            let Some(slot) = self.slots.pop_back() else { break };
            note_freed(slot, freed);
            if let Some(record) = self.tail.pop_back() {
                self.tail_bytes -= record.payload.len() + TAIL_RECORD_BYTES;
            }
        }
        let kept = self.slots.len();
        while self.runs.back().is_some_and(|run| kept == 0 || run.first >= self.first + kept as u64) {
            self.runs.pop_back();
        }
    }

    /// Drops the entries up to `to`; `false` when that much was purged before.
    fn purge_to(&mut self, to: Position, freed: &mut Vec<Freed>) -> bool {
        if self.purged.is_some_and(|purged| purged.index >= to.index) {
            return false;
        }
        while !self.slots.is_empty() && self.first <= to.index {
            let slot = self.slots.pop_front().expect("just seen to be there");
            note_freed(slot, freed);
            if self.tail.front().is_some_and(|record| record.index == self.first) {
                self.drop_tail_front();
            }
            self.first += 1;
        }
        while self.runs.len() > 1 && self.runs[1].first <= self.first
            || self.slots.is_empty() && !self.runs.is_empty()
        {
            self.runs.pop_front();
        }
        self.purged = Some(to);
        true
    }

    fn drop_tail_front(&mut self) {
        if let Some(record) = self.tail.pop_front() {
            self.tail_bytes -= record.payload.len() + TAIL_RECORD_BYTES;
        }
    }

    /// Lets go of old records that are on disk while the tail is larger than the group's share: up to the first that
    /// somebody waits for, which read from disk would come without what the proposer wants back, and, within limits, the first that a
    /// follower lacks.
    fn shrink_tail(&mut self, share_bytes: usize, lacking: u64) {
        while self.tail_bytes > share_bytes
            && let Some(record) = self.tail.front()
            && let Some(Slot::Stored(_)) = self.slot(record.index)
            && record.local.as_ref().is_none_or(|local| Arc::strong_count(local) == 1)
            && (record.index < lacking || self.tail_bytes > SHARES_FOR_FOLLOWERS * share_bytes)
        {
            self.drop_tail_front();
        }
    }
}

fn note_freed(slot: Slot, freed: &mut Vec<Freed>) {
    let Slot::Stored(Stored { segment, size, .. }) = slot else { return };
    match freed.last_mut().filter(|freed| freed.segment == segment) {
        Some(freed) => freed.bytes += u64::from(size),
        None => freed.push(Freed { segment, bytes: size.into() }),
    }
}

/// A group's handle to the log. Clones share the group.
#[derive(Clone)]
pub struct GroupLog {
    shared: Arc<Shared>,
    group: Arc<Group>,
}

impl GroupLog {
    pub(super) fn new(shared: Arc<Shared>, group: GroupId) -> GroupLog {
        let group = shared.group(group);
        GroupLog { shared, group }
    }

    /// The group.
    pub fn id(&self) -> GroupId {
        self.group.id
    }

    /// Numbers of the last frame written to the log, of whichever group, and of the last one known to be on disk.
    pub fn frames(&self) -> (u64, u64) {
        let counters = &self.shared.counters;
        (counters.written.load(Ordering::Acquire), counters.synced.load(Ordering::Relaxed))
    }

    /// Appends consecutive records. Entries from the first one's index on are dropped before; there may be no hole between the
    /// log and the first one, and it must lie behind the purge point (`InvalidInput` otherwise, and nothing happens).
    /// Readers see the records at once; `done` follows when they are as durable as [`GroupLog::set_sync`] asks.
    ///
    /// Waits while more than [`WalConfig::queue_bytes`] are on their way to the disk; [`GroupLog::when_room`] tells before.
    /// Fails with `StorageFull`, before anything happens, when the file system is nearly full.
    pub fn append(&self, records: Vec<Record>, done: Done) {
        let bytes = records.iter().map(|record| frame::entry_bytes(&record.payload)).sum();
        let admitted = match bytes {
            0..=APPEND_BYTES_MAX => self.shared.take_space(bytes),
            _ => Err(invalid(format!("{bytes} bytes in one append, at most {APPEND_BYTES_MAX} are allowed"))),
        };
        if let Err(error) = admitted {
            return done(Err(error));
        }
        self.shared.queue.wait_for_room();
        let mut inner = self.group.inner.lock();
        let mut freed = Vec::new();
        if let Some(first) = records.first().map(|record| record.index) {
            if let Err(error) = check_append(&inner, first, &records) {
                drop(inner);
                return done(Err(error));
            }
            inner.truncate_from(first, &mut freed);
        }
        inner.stamp += 1;
        let stamp = inner.stamp;
        let records: Vec<Record> = records
            .into_iter()
            .map(|record| {
                let written = Record { local: None, ..record.clone() };
                inner.push(record, stamp);
                written
            })
            .collect();
        let request = self.request(&inner, Change::Append { records, stamp }, bytes, freed, Some(done));
        self.push(inner, Request { counted: true, ..request });
    }

    /// Saves the group's vote; `done` follows when it is on disk, whatever the [`SyncMode`].
    pub fn save_vote(&self, vote: Bytes, done: Done) {
        let mut inner = self.group.inner.lock();
        inner.vote = Some(vote.clone());
        let bytes = vote.len();
        let request = self.request(&inner, Change::Vote(vote), bytes, Vec::new(), Some(done));
        self.push(inner, Request { sync: SyncMode::Before, ..request });
    }

    /// Saves the committed position, some time: it is written behind the entries that are queued now, with a later frame.
    pub fn save_committed(&self, committed: Bytes) {
        let mut inner = self.group.inner.lock();
        inner.committed = Some(committed.clone());
        self.shared.queue.set_committed(&self.group, committed);
    }

    /// Drops the entries after `index`, all of them when there is none. The purge point stays.
    pub fn truncate_after(&self, index: Option<u64>, done: Done) {
        let mut inner = self.group.inner.lock();
        let mut freed = Vec::new();
        inner.truncate_from(index.map_or(0, |index| index.saturating_add(1)), &mut freed);
        let request = self.request(&inner, Change::Truncate { keep: index }, 0, freed, Some(done));
        self.push(inner, request);
    }

    /// Drops the entries up to and including `to`, which may lie beyond the last one: then the log is empty and goes on
    /// behind it. A purge point never goes back.
    pub fn purge_to(&self, to: Position, done: Done) {
        if to.index == u64::MAX {
            return done(Err(invalid("nothing could follow a purge of everything".to_owned())));
        }
        let mut inner = self.group.inner.lock();
        let mut freed = Vec::new();
        let change = match inner.purge_to(to, &mut freed) {
            true => Change::Purge(to),
            // Acknowledged behind the purge that went this far.
            false => Change::Append { records: Vec::new(), stamp: 0 },
        };
        let request = self.request(&inner, change, 0, freed, Some(done));
        self.push(inner, request);
    }

    /// Drops everything about the group. Not acknowledged; it is on disk when a later change of any group that is synced is.
    pub fn forget(&self) {
        let mut inner = self.group.inner.lock();
        let mut freed = Vec::new();
        inner.truncate_from(0, &mut freed);
        *inner = Inner { stamp: inner.stamp, sync: inner.sync, ..Inner::default() };
        self.shared.queue.forget_committed(self.group.id);
        let request = self.request(&inner, Change::Forget, 0, freed, None);
        self.push(inner, request);
    }

    /// The entries of `range` that are there, in order: from the tail in memory, or from the segments. Ends when
    /// `max_bytes` of payload are reached, but brings at least one when there is one. Blocks on the disk for older entries.
    pub fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Record>> {
        let mut records: Vec<Record> = Vec::new();
        let mut bytes = 0;
        let mut next = range.start;
        loop {
            if self.shared.failure.get().is_some() {
                return Err(self.shared.ended());
            }
            // Places on disk, until the tail begins.
            let mut stored = Vec::new();
            {
                let inner = self.group.inner.lock();
                if records.is_empty() && !inner.slots.is_empty() {
                    next = next.max(inner.first);
                }
                let mut stored_bytes = 0;
                while next < range.end
                    && let Some(slot) = inner.slot(next)
                {
                    let any = !records.is_empty() || !stored.is_empty();
                    if let Some(record) = inner.tail_record(next) {
                        // What is on disk comes first, then the tail in another round.
                        if !stored.is_empty() || any && bytes + record.payload.len() > max_bytes {
                            break;
                        }
                        bytes += record.payload.len();
                        records.push(record.clone());
                    } else if let Slot::Stored(place) = slot {
                        let size = stored_bytes + place.size as usize;
                        if any && bytes + size > max_bytes || !stored.is_empty() && size > READ_BYTES {
                            break;
                        }
                        stored_bytes = size;
                        stored.push(place);
                    }
                    next += 1;
                }
            }
            let Some(first) = next.checked_sub(stored.len() as u64).filter(|_| !stored.is_empty()) else {
                return Ok(records);
            };
            match self.shared.read_stored(self.group.id, first, &stored) {
                Ok(read) => {
                    bytes += read.iter().map(|record| record.payload.len()).sum::<usize>();
                    records.extend(read);
                    if bytes >= max_bytes || next >= range.end {
                        return Ok(records);
                    }
                }
                Err(error) => {
                    // The segment may have been dropped meanwhile: then the entries moved or are gone.
                    let inner = self.group.inner.lock();
                    if (first..)
                        .zip(&stored)
                        .all(|(index, &place)| inner.slot(index) == Some(Slot::Stored(place)))
                    {
                        return Err(error);
                    }
                    next = first;
                    if inner.slot(first).is_none() && !records.is_empty() {
                        return Ok(records);
                    }
                }
            }
        }
    }

    /// Purge point, last entry, vote and committed position as they were saved last, on disk or not yet.
    pub fn state(&self) -> GroupState {
        self.group.state()
    }

    /// Tells the first entry that a follower has not got; `None` when none lacks anything, or this replica has no followers. From
    /// there on entries stay in memory, up to eight times the group's share of [`WalConfig::tail_bytes`](super::WalConfig::tail_bytes).
    pub fn set_lacking(&self, index: Option<u64>) {
        self.group.lacking.store(index.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// When later appends, truncations and purges are acknowledged. Not on disk: say it after each start.
    pub fn set_sync(&self, sync: SyncMode) {
        self.group.inner.lock().sync = sync;
    }

    /// Whether [`GroupLog::append`] would not wait; when it would, `wake` is called once it would not any more (from any
    /// thread; it must not block). Also `true` when the log has ended.
    pub fn when_room(&self, wake: Box<dyn FnOnce() + Send>) -> bool {
        self.shared.queue.when_room(wake)
    }

    /// Ends the whole log, as a failed write does: for an owner that cannot outlive an append that was refused. What
    /// waits is refused, too.
    pub fn end(&self, error: &io::Error) {
        tracing::error!(%error, dir = %self.shared.dir.display(), "the WAL ends: it cannot take what must be appended");
        self.shared.fail(error.kind(), error.to_string());
        self.shared.refuse(Vec::new());
    }

    /// Bytes of the log from this group's oldest segment to the end: what a snapshot of the group could free. 0 without entries on disk.
    pub fn pinned_bytes(&self) -> u64 {
        let oldest = {
            let inner = self.group.inner.lock();
            let stored = inner.slots.iter().find_map(|slot| match slot {
                Slot::Stored(stored) => Some(stored.segment),
                Slot::Queued { .. } => None,
            });
            match stored {
                Some(segment) => segment,
                None => return 0,
            }
        };
        let segments = self.shared.files.read().range(oldest..).count() as u64;
        segments * self.shared.config.segment_bytes
    }

    /// Where the last entries begin that are at most so many and have at most so many bytes.
    pub fn tail_begin(&self, entries: u64, bytes: u64) -> u64 {
        let inner = self.group.inner.lock();
        let next = inner.next_index().unwrap_or(0);
        let mut left = bytes;
        let fits = |index: &u64| {
            let size = match inner.slot(*index) {
                Some(Slot::Stored(stored)) => stored.size.into(),
                Some(Slot::Queued { .. }) => {
                    inner.tail_record(*index).map_or(0, |record| frame::entry_bytes(&record.payload) as u64)
                }
                None => return false,
            };
            let fits = size <= left;
            left = left.saturating_sub(size);
            fits
        };
        let first = next.saturating_sub(entries);
        (first..next).rev().take_while(fits).last().unwrap_or(next)
    }

    fn request(
        &self,
        inner: &Inner,
        change: Change,
        opaque_bytes: usize,
        freed: Vec<Freed>,
        done: Option<Done>,
    ) -> Request {
        let bytes = opaque_bytes + frame::SMALL_RECORD_BYTES;
        Request { group: self.group.clone(), change, bytes, counted: false, sync: inner.sync, freed, done }
    }

    /// Queues under the group's lock, which keeps the order; refuses outside of it, for callbacks may call us.
    fn push(&self, inner: parking_lot::MutexGuard<'_, Inner>, request: Request) {
        let refused = self.shared.queue.push(request);
        drop(inner);
        if let Err(Request { done: Some(done), .. }) = refused {
            done(Err(self.shared.ended()));
        }
    }
}

impl std::fmt::Debug for GroupLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupLog").field("group", &self.group.id).field("state", &self.state()).finish()
    }
}

impl Request {
    pub(super) fn committed(group: Arc<Group>, committed: Bytes) -> Request {
        let bytes = committed.len() + frame::SMALL_RECORD_BYTES;
        Request {
            group,
            change: Change::Committed(committed),
            bytes,
            counted: false,
            sync: SyncMode::Never,
            freed: Vec::new(),
            done: None,
        }
    }
}

impl Shared {
    /// Reads records of consecutive indexes from the segments.
    fn read_stored(&self, group: GroupId, first: u64, places: &[Stored]) -> io::Result<Vec<Record>> {
        let mut records = Vec::with_capacity(places.len());
        let mut index = first;
        // Records that lie near each other in one segment are one read.
        let near = |a: &Stored, b: &Stored| {
            a.segment == b.segment && b.offset >= a.offset + a.size && b.offset - (a.offset + a.size) <= 4096
        };
        for places in places.chunk_by(near) {
            let (Some(from), Some(to)) = (places.first(), places.last()) else { continue };
            let file = self.files.read().get(&from.segment).cloned();
            let file =
                file.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the segment was dropped"))?;
            let span = (to.offset - from.offset + to.size) as usize;
            let read = || read_exact_at(&*file, span, from.offset.into());
            let buf = Bytes::from(crate::give_way(read)?);
            for place in places {
                let start = (place.offset - from.offset) as usize;
                let bytes = buf.slice(start..start + place.size as usize);
                let damaged = || self.damaged(*place);
                let (view, size) = frame::decode_record(place.segment, place.offset.into(), &bytes)
                    .map_err(|_| damaged())?;
                let (Content::Entry { at, payload } | Content::Copy { at, payload }) = view.content else {
                    return Err(damaged());
                };
                if view.group != group || at.index != index || size != bytes.len() {
                    return Err(damaged());
                }
                let payload = bytes.slice_ref(payload);
                records.push(Record { index, term: at.term, leader: at.leader, payload, local: None });
                index += 1;
            }
        }
        Ok(records)
    }

    fn damaged(&self, place: Stored) -> io::Error {
        let file = self.dir.join(super::segments::file_name(place.segment));
        let text = format!("{} is damaged at offset {}", file.display(), place.offset);
        io::Error::new(io::ErrorKind::InvalidData, text)
    }
}

fn check_append(inner: &Inner, first: u64, records: &[Record]) -> io::Result<()> {
    if first.checked_add(records.len() as u64).is_none() {
        return Err(invalid(format!("an append at {first} goes beyond the last index")));
    }
    if let Some((index, _)) = (first..).zip(records).find(|(index, record)| record.index != *index) {
        return Err(invalid(format!("an append from {first} on has no record {index} at its place")));
    }
    if inner.next_index().is_some_and(|next| first > next) {
        return Err(invalid(format!("an append at {first} leaves a hole behind {:?}", inner.last())));
    }
    if !inner.slots.is_empty() && first < inner.first && inner.purged.is_none() {
        return Err(invalid(format!("an append at {first} lies before the first entry, {}", inner.first)));
    }
    match inner.purged {
        Some(purged) if first <= purged.index => {
            Err(invalid(format!("an append at {first} lies before the purge point {}", purged.index)))
        }
        _ => Ok(()),
    }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}
