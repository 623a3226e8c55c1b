//! The writer thread (in a simulation a task): the only one that changes the log's files.
//!
//! One turn: take what all groups have waiting, write it as one frame, sync when anything in it asks for that, tell the groups where
//! their entries are, run the callbacks in order, then housekeeping (drop segments nobody needs, copy the few live entries out of
//! the oldest one). Any error ends the thread and fails everything that waits.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;

use super::{
    GroupId, Position, Record, SyncMode,
    frame::{self, FrameBuilder, SMALL_RECORD_BYTES},
    group::{Group, Shared, Stored},
    lazy::{LazySync, Synced},
    queue::{Change, Next, Request},
    segments::Segments,
};
use crate::disk::DiskFile;

/// Sealed segments that are left alone, however little of them is live.
const SEALED_SEGMENTS_UNTOUCHED: usize = 4;
/// The oldest segment is emptied by copying when at most one part in this many is live.
const LIVE_PARTS_MAX: u64 = 8;
/// Bytes copied per turn, at least one entry.
const COPY_BYTES: usize = 256 << 10;
/// A sync that takes longer is told of: writes, votes and new leaders wait for it.
const SLOW_SYNC: Duration = Duration::from_secs(1);

pub(super) struct Writer {
    shared: Arc<Shared>,
    segments: Segments,
    /// The last frame written.
    sequence: u64,
    /// The last frame known to be on disk.
    synced: u64,
    /// The last frame that a later one declares to be on disk.
    declared: u64,
    last_write: Duration,
    /// The oldest segment of the log, as the log says.
    oldest: u64,
    /// What the log says about each group beside its entries, for the first frame of the next segment.
    hard: BTreeMap<GroupId, Hard>,
    /// Since when something waits for the sync that follows lazily.
    lazy_since: Option<Duration>,
    lazy: LazySync,
    /// Live entries of the oldest segment that are still to be copied.
    copies: VecDeque<(Arc<Group>, u64, Stored)>,
    /// Segments were opened since the oldest one was looked at.
    look_at_oldest: bool,
    buf: Vec<u8>,
}

/// A group's state as of what is written.
#[derive(Default)]
struct Hard {
    purged: Option<Position>,
    vote: Option<Bytes>,
    committed: Option<Bytes>,
}

/// Where the records of a request went.
struct Placed {
    first: u64,
    stamp: u64,
    stored: Vec<Stored>,
}

impl Writer {
    /// Takes over a recovered log, everything of which is on disk, or begins a new one.
    pub(super) fn new(shared: Arc<Shared>, segments: Segments, sequence: u64) -> io::Result<Writer> {
        let hard = shared.live_groups().into_iter().map(|group| (group.id, Hard::of(&group))).collect();
        let oldest = segments.files.keys().next().copied().unwrap_or(1);
        let lazy = LazySync::start(shared.clone())?;
        let last_write = shared.environment.now();
        let mut writer = Writer {
            shared,
            segments,
            sequence,
            synced: sequence,
            declared: 0,
            last_write,
            oldest,
            hard,
            lazy_since: None,
            lazy,
            copies: VecDeque::new(),
            look_at_oldest: true,
            buf: Vec::new(),
        };
        if writer.segments.active().is_none() {
            writer.segments.open_next(&writer.shared.clone(), 0)?;
        }
        if writer.segments.offset == 0 {
            writer.write_first_frame()?;
            writer.sync()?;
        }
        writer.publish_space();
        Ok(writer)
    }

    /// Runs until the queue is closed and empty, or until an error.
    pub(super) fn run(mut self) {
        let _fails_with_us = PanicGuard { shared: self.shared.clone() };
        let frame_bytes = self.shared.config.batch_bytes;
        let mut goes_on = true;
        while goes_on {
            let next = self.shared.queue.next(frame_bytes, self.deadline());
            goes_on = self.act(next);
        }
    }

    /// The same as a task of a simulation, where the disk says how long a write with its sync takes.
    pub(super) async fn run_simulated(mut self) {
        let frame_bytes = self.shared.config.batch_bytes;
        let mut goes_on = true;
        while goes_on {
            let next = self.shared.queue.next_simulated(frame_bytes, self.deadline()).await;
            let delay = self.shared.disk.delay();
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            goes_on = self.act(next);
        }
    }

    /// Whether there is more to come.
    fn act(&mut self, next: Next) -> bool {
        let outcome = match next {
            Next::Batch(batch) => self.turn(batch),
            Next::Idle => self.idle(),
            Next::Closed => {
                if let Err(error) = self.finish() {
                    self.fail(error, Vec::new());
                }
                return false;
            }
        };
        match outcome {
            Ok(()) => true,
            Err((error, batch)) => {
                self.fail(error, batch);
                false
            }
        }
    }

    fn now(&self) -> Duration {
        self.shared.environment.now()
    }

    fn has_passed(&self, since: Duration, interval: Duration) -> bool {
        self.now().saturating_sub(since) >= interval
    }

    /// When there is something to do without requests.
    fn deadline(&self) -> Option<Duration> {
        // A sync that is under way nudges the queue when it ends.
        let since = self.lazy_since.filter(|_| !self.lazy.is_busy());
        let since = since.or(self.undeclared_since());
        let due = since.map(|since| since + self.shared.config.lazy_sync_interval);
        if self.copies.is_empty() { due } else { Some(self.now()) }
    }

    /// Since when the last frame is on disk without a later one that says so: damage to it would look like a torn write.
    fn undeclared_since(&self) -> Option<Duration> {
        (self.synced == self.sequence && self.declared < self.synced).then_some(self.last_write)
    }

    /// Writes a batch and acknowledges it.
    fn turn(&mut self, mut batch: Vec<Request>) -> Result<(), (io::Error, Vec<Request>)> {
        let placed = match self.commit(&batch) {
            Ok(placed) => placed,
            Err(error) => return Err((error, batch)),
        };
        let counted = batch.iter().filter(|request| request.counted).map(|request| request.bytes).sum();
        let tail_share = self.shared.tail_share();
        for (request, placed) in batch.iter().zip(placed) {
            if let Some(Placed { first, stamp, stored }) = placed {
                let live = request.group.store(first, stamp, &stored, tail_share);
                stored.first().into_iter().for_each(|stored| self.segments.add_live(stored.segment, live));
            }
            request.freed.iter().for_each(|freed| self.segments.sub_live(freed.segment, freed.bytes));
        }
        self.shared.queue.release(counted);
        for request in &mut batch {
            if let Some(done) = request.done.take() {
                done(Ok(()));
            }
        }
        self.idle()
    }

    /// One frame on disk, or in the hands of the kernel when nothing in it needs more.
    fn commit(&mut self, batch: &[Request]) -> io::Result<Vec<Option<Placed>>> {
        let body_bytes = batch.iter().map(|request| request.bytes).sum();
        self.make_room(body_bytes)?;
        let (segment, offset) = self.position();
        let mut builder = FrameBuilder::new(&mut self.buf, segment, offset);
        let mut placed = Vec::with_capacity(batch.len());
        let mut entries = 0;
        for request in batch {
            let group = request.group.id;
            let hard = self.hard.entry(group).or_default();
            placed.push(None);
            match &request.change {
                Change::Append { records, stamp } => {
                    let store = |record| stored(segment, builder.entry(group, record));
                    let stored: Vec<_> = records.iter().map(store).collect();
                    entries += records.len() as u64;
                    let first = records.first().map(|record| record.index);
                    *placed.last_mut().expect("just pushed") =
                        first.map(|first| Placed { first, stamp: *stamp, stored });
                }
                Change::Vote(vote) => {
                    builder.vote(group, vote);
                    hard.vote = Some(vote.clone());
                }
                Change::Committed(committed) => {
                    builder.committed(group, committed);
                    hard.committed = Some(committed.clone());
                }
                Change::Truncate { keep } => builder.truncate(group, *keep),
                Change::Purge(to) => {
                    builder.purge(group, *to);
                    hard.purged = Some(*to);
                }
                Change::Forget => {
                    builder.forget(group);
                    self.hard.remove(&group);
                }
            }
        }
        let end = builder.finish(self.sequence + 1, self.synced);
        self.write(end)?;
        self.shared.counters.entries.fetch_add(entries, Ordering::Relaxed);
        let sync = batch.iter().any(|request| request.sync == SyncMode::Before);
        #[cfg(feature = "bugs")]
        let sync = sync && !kvorum_bugs::has(kvorum_bugs::Bug::AcknowledgeBeforeSync);
        if sync {
            self.sync()?;
        } else if batch.iter().any(|request| request.sync == SyncMode::Lazy) {
            self.lazy_since = self.lazy_since.or(Some(self.now()));
        }
        Ok(placed)
    }

    /// Housekeeping between batches; bounded work.
    fn idle(&mut self) -> Result<(), (io::Error, Vec<Request>)> {
        self.housekeeping().map_err(|error| (error, Vec::new()))
    }

    fn housekeeping(&mut self) -> io::Result<()> {
        let interval = self.shared.config.lazy_sync_interval;
        if let Some(synced) = self.lazy.poll()? {
            self.note_synced(&synced);
        }
        if !self.lazy.is_busy() && self.lazy_since.is_some_and(|since| self.has_passed(since, interval)) {
            let (file, sequence) = (self.active_file()?, self.sequence);
            self.lazy.begin(&self.shared.environment, file, sequence)?;
            self.lazy_since = None;
        }
        if self.undeclared_since().is_some_and(|since| self.has_passed(since, interval)) {
            self.write_mark()?;
        }
        if !self.copies.is_empty() {
            self.copy_some()?;
        }
        self.drop_unneeded()?;
        if self.look_at_oldest && self.copies.is_empty() {
            self.look_at_oldest = false;
            self.plan_copies();
        }
        Ok(())
    }

    /// Gives up the segments at the old end that nobody needs.
    fn drop_unneeded(&mut self) -> io::Result<()> {
        let Some(needed) = self.segments.first_needed().filter(|&needed| needed > self.oldest) else {
            return Ok(());
        };
        self.make_room(SMALL_RECORD_BYTES)?;
        let (segment, offset) = self.position();
        let mut builder = FrameBuilder::new(&mut self.buf, segment, offset);
        builder.oldest(needed);
        let end = builder.finish(self.sequence + 1, self.synced);
        self.write(end)?;
        // With this frame, everything that made the segments dispensable is on disk.
        self.sync()?;
        self.oldest = needed;
        let dropped = self.segments.drop_below(&self.shared, needed)?;
        self.shared.counters.dropped_segments.fetch_add(dropped, Ordering::Relaxed);
        self.look_at_oldest = true;
        self.publish_space();
        Ok(())
    }

    /// Decides whether the oldest segment is worth emptying.
    fn plan_copies(&mut self) {
        let sealed = self.segments.files.len().saturating_sub(1);
        let Some((&oldest, segment)) = self.segments.files.first_key_value() else { return };
        if sealed <= SEALED_SEGMENTS_UNTOUCHED || segment.live_bytes > segment.bytes / LIVE_PARTS_MAX {
            return;
        }
        for group in self.shared.live_groups() {
            let stored = group.stored_in(oldest);
            self.copies.extend(stored.into_iter().map(|(index, stored)| (group.clone(), index, stored)));
        }
    }

    /// Writes some live entries of the oldest segment again.
    fn copy_some(&mut self) -> io::Result<()> {
        let mut copies: Vec<(Arc<Group>, Stored, Record)> = Vec::new();
        let mut body_bytes = 0;
        while body_bytes < COPY_BYTES
            && let Some((group, index, place)) = self.copies.pop_front()
        {
            // Whatever was taken from the queue before is written, so an entry that is alive now is alive at this
            // place of the log; what ends it later is written behind the copy.
            if let Some(record) = group.record_at(&self.shared, index, place)? {
                body_bytes += frame::entry_bytes(&record.payload);
                copies.push((group, place, record));
            }
        }
        if copies.is_empty() {
            return Ok(());
        }
        self.make_room(body_bytes)?;
        let (segment, offset) = self.position();
        let mut builder = FrameBuilder::new(&mut self.buf, segment, offset);
        let places: Vec<_> =
            copies.iter().map(|(group, _, record)| stored(segment, builder.copy(group.id, record))).collect();
        let end = builder.finish(self.sequence + 1, self.synced);
        self.write(end)?;
        for ((group, from, record), to) in copies.iter().zip(places) {
            if group.relocate(record.index, *from, to) {
                self.segments.add_live(to.segment, to.size.into());
                self.segments.sub_live(from.segment, from.size.into());
            }
        }
        self.shared.counters.copied_entries.fetch_add(copies.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Opens the next segment when a frame with a body of `body_bytes` does not fit in the active one.
    fn make_room(&mut self, body_bytes: usize) -> io::Result<()> {
        let capacity = self.segments.active().map_or(0, |(_, segment)| segment.bytes);
        if frame::write_end(frame::frame_end(self.segments.offset, body_bytes)) <= capacity {
            return Ok(());
        }
        // Only the newest segment may have frames that are not on disk.
        if self.synced < self.sequence {
            self.sync()?;
        }
        let first_frame = frame::frame_end(0, self.first_frame_bytes());
        let needed = frame::write_end(frame::frame_end(first_frame, body_bytes));
        self.segments.open_next(&self.shared, needed)?;
        self.write_first_frame()?;
        self.look_at_oldest = true;
        self.publish_space();
        Ok(())
    }

    /// What the log must say again, so that older segments are needed for entries only.
    fn write_first_frame(&mut self) -> io::Result<()> {
        let (segment, offset) = self.position();
        let mut builder = FrameBuilder::new(&mut self.buf, segment, offset);
        builder.oldest(self.oldest);
        for (&group, Hard { purged, vote, committed }) in &self.hard {
            purged.iter().for_each(|to| builder.purge(group, *to));
            vote.iter().for_each(|vote| builder.vote(group, vote));
            committed.iter().for_each(|committed| builder.committed(group, committed));
        }
        let end = builder.finish(self.sequence + 1, self.synced);
        self.write(end)
    }

    fn first_frame_bytes(&self) -> usize {
        let opaque = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let group = |hard: &Hard| 3 * SMALL_RECORD_BYTES + opaque(&hard.vote) + opaque(&hard.committed);
        SMALL_RECORD_BYTES + self.hard.values().map(group).sum::<usize>()
    }

    /// Where the next frame goes.
    fn position(&self) -> (u64, u64) {
        (self.segments.active().map_or(0, |(id, _)| id), self.segments.offset)
    }

    /// Writes the frame in the buffer, which ends at `end`.
    fn write(&mut self, end: u64) -> io::Result<()> {
        let begun = self.now();
        self.active_file()?.write_at(&self.buf, self.segments.offset)?;
        let counters = &self.shared.counters;
        counters.frames.fetch_add(1, Ordering::Relaxed);
        counters.bytes.fetch_add(end - self.segments.offset, Ordering::Relaxed);
        counters.write_us.fetch_add(micros(self.now().saturating_sub(begun)), Ordering::Relaxed);
        self.sequence += 1;
        counters.written.store(self.sequence, Ordering::Release);
        self.declared = self.synced;
        self.last_write = begun;
        self.segments.offset = end;
        let held = self.segments.held_bytes(self.shared.config.segment_bytes);
        self.shared.space.held_bytes.store(held, Ordering::Relaxed);
        Ok(())
    }

    /// Everything written so far is on disk when this returns.
    fn sync(&mut self) -> io::Result<()> {
        if let Some(synced) = self.lazy.wait()? {
            self.note_synced(&synced);
        }
        let begun = self.now();
        self.active_file()?.sync_data()?;
        let took = self.now().saturating_sub(begun);
        self.note_synced(&Synced { sequence: self.sequence, took });
        self.lazy_since = None;
        Ok(())
    }

    fn note_synced(&mut self, &Synced { sequence, took }: &Synced) {
        let us = micros(took);
        let counters = &self.shared.counters;
        counters.syncs.fetch_add(1, Ordering::Relaxed);
        counters.sync_us.fetch_add(us, Ordering::Relaxed);
        counters.sync_max_us.fetch_max(us, Ordering::Relaxed);
        counters.sync_recent_us.fetch_max(us, Ordering::Relaxed);
        counters.sync_times.record(took);
        if took >= SLOW_SYNC {
            tracing::warn!(took_ms = took.as_millis(), "the disk took long to sync the log");
        }
        self.synced = self.synced.max(sequence);
        counters.synced.store(self.synced, Ordering::Relaxed);
    }

    fn active_file(&self) -> io::Result<Arc<dyn DiskFile>> {
        let (_, segment) = self.segments.active().ok_or_else(|| io::Error::other("no segment is open"))?;
        Ok(segment.file.clone())
    }

    fn publish_space(&self) {
        let held = self.segments.held_bytes(self.shared.config.segment_bytes);
        self.shared.space.held_bytes.store(held, Ordering::Relaxed);
        if let Err(error) = self.shared.refresh_space() {
            tracing::warn!(%error, "cannot tell how much space is left for the WAL");
        }
    }

    /// A clean end: everything is on disk, and an empty frame behind it says so.
    fn finish(&mut self) -> io::Result<()> {
        if self.synced < self.sequence {
            self.sync()?;
        }
        self.write_mark()?;
        self.sync()
    }

    /// An empty frame that declares everything before it to be on disk.
    fn write_mark(&mut self) -> io::Result<()> {
        self.make_room(0)?;
        let (segment, offset) = self.position();
        let end = FrameBuilder::new(&mut self.buf, segment, offset).finish(self.sequence + 1, self.synced);
        self.write(end)
    }

    /// The end of the log: everything that waits fails, and everything that comes.
    fn fail(&self, error: io::Error, batch: Vec<Request>) {
        tracing::error!(%error, dir = %self.shared.dir.display(), "the WAL has failed");
        self.shared.fail(error.kind(), error.to_string());
        self.shared.refuse(batch);
    }
}

/// Should the thread panic, or a callback on it, everybody who waits is told instead of waiting for ever.
struct PanicGuard {
    shared: Arc<Shared>,
}

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.fail(io::ErrorKind::Other, "the writer thread panicked".to_owned());
            self.shared.refuse(Vec::new());
        }
    }
}

impl Hard {
    fn of(group: &Group) -> Hard {
        let state = group.state();
        Hard { purged: state.purged, vote: state.vote, committed: state.committed }
    }
}

fn stored(segment: u64, (offset, size): (u64, usize)) -> Stored {
    let small = "segments are at most 4 GiB";
    Stored { segment, offset: u32::try_from(offset).expect(small), size: u32::try_from(size).expect(small) }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
