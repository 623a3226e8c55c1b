//! What happens at start: reading the segments, telling a torn tail from damage, and rebuilding the groups.
//!
//! The rules stand in `docs/data-on-disk.md`. Nothing on disk is changed before the whole log was read and found good.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    GroupId, Position, WalConfig, WalError,
    frame::{self, Content, FRAME_ALIGN, HEADER_BYTES, Header, PlacedRecord},
    group::{Group, Inner, Shared, Stored},
    segments::{FileKind, Segment, Segments, file_kind, file_name},
};
use crate::clock::Environment;
use crate::disk::{Disk, DiskFile, in_dir, read_exact_at};

/// What was found at start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Groups with any state.
    pub groups: usize,
    /// Their entries.
    pub entries: u64,
    /// Intact frames.
    pub frames: u64,
    /// Segment files of the log.
    pub segments: usize,
    /// The torn tail that was cut, if there was one.
    pub repaired: Option<Repair>,
}

/// A torn tail that was cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// Segment file.
    pub file: PathBuf,
    /// The log ends here now.
    pub offset: u64,
}

/// What opening the log starts from.
pub(super) struct Recovered {
    pub(super) shared: Arc<Shared>,
    pub(super) segments: Segments,
    /// The last frame of the log, on disk; 0 when there is none.
    pub(super) sequence: u64,
    pub(super) report: Recovery,
}

/// Reads the log and makes it fit to be continued.
pub(super) fn recover(
    environment: Environment,
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    config: WalConfig,
) -> Result<Recovered, WalError> {
    let scan = Scan { disk: &*disk, dir: &dir };
    disk.create_dir_all(&dir).map_err(|error| scan.io(&dir, error))?;
    let files = scan.files()?;
    let oldest = scan.oldest(&files)?;
    let mut replay = Replay::default();
    let end = match oldest {
        Some(oldest) => Some(scan.read_log(oldest, &files, &mut replay)?),
        None => None,
    };
    let (groups, entries) = replay.finish()?;
    let live: usize = groups.values().filter(|state| !state.is_blank()).count();

    // From here on the log is known to be good, and the disk may be changed.
    let sequence = end.as_ref().map_or(0, |end| end.sequence);
    let mut segments = Segments::default();
    let mut repaired = None;
    if let Some(end) = &end {
        segments = scan.mend(end, &files, &config)?;
        repaired = end.torn.then(|| Repair { file: scan.path(end.segment), offset: end.offset });
    }
    let leftovers = files.iter().filter(|(id, _)| oldest.is_some_and(|oldest| **id < oldest));
    for (&id, _) in leftovers {
        let path = scan.path(id);
        disk.remove(&path).map_err(|error| scan.io(&path, error))?;
    }
    segments.spares = scan.spares(&config)?;
    // Nothing that was removed may come back behind what is written next.
    disk.sync_dir(&dir).map_err(|error| scan.io(&dir, error))?;

    for state in groups.values() {
        state.entries.values().for_each(|entry| segments.add_live(entry.1.segment, entry.1.size.into()));
    }
    if let Some(Repair { file, offset }) = &repaired {
        tracing::warn!(file = %file.display(), offset, "cut a torn write off the end of the WAL");
    }
    let report = Recovery {
        groups: live,
        entries,
        frames: replay_frames(&end),
        segments: segments.files.len().max(1),
        repaired,
    };
    let groups =
        groups.into_iter().map(|(id, state)| (id, Arc::new(Group::new(id, state.into_inner())))).collect();
    let shared = Arc::new(Shared::new(environment, disk.clone(), dir.clone(), config, groups));
    *shared.files.write() = segments.files.iter().map(|(&id, segment)| (id, segment.file.clone())).collect();
    Ok(Recovered { shared, segments, sequence, report })
}

fn replay_frames(end: &Option<End>) -> u64 {
    end.as_ref().map_or(0, |end| end.frames)
}

/// Where the log ends.
struct End {
    segment: u64,
    offset: u64,
    /// The last intact frame.
    sequence: u64,
    frames: u64,
    /// Something was there behind it.
    torn: bool,
    /// From here on in `segment`, no frame was declared synced by a later one.
    unproven: u64,
    oldest: u64,
}

struct Scan<'a> {
    disk: &'a dyn Disk,
    dir: &'a Path,
}

impl Scan<'_> {
    fn path(&self, segment: u64) -> PathBuf {
        in_dir(self.dir, &file_name(segment))
    }

    fn io(&self, path: &Path, source: std::io::Error) -> WalError {
        WalError::Io { path: path.to_owned(), source }
    }

    fn files(&self) -> Result<BTreeMap<u64, Arc<dyn DiskFile>>, WalError> {
        let mut files = BTreeMap::new();
        for name in self.disk.list(self.dir).map_err(|error| self.io(self.dir, error))? {
            if let FileKind::Segment(id) = file_kind(&name) {
                let path = self.path(id);
                files.insert(id, self.disk.open(&path).map_err(|error| self.io(&path, error))?);
            }
        }
        Ok(files)
    }

    /// Spares of the right size; others are removed.
    fn spares(&self, config: &WalConfig) -> Result<Vec<u64>, WalError> {
        let mut spares = Vec::new();
        for name in self.disk.list(self.dir).map_err(|error| self.io(self.dir, error))? {
            let FileKind::Spare(id) = file_kind(&name) else { continue };
            let path = in_dir(self.dir, &name);
            let bytes =
                self.disk.open(&path).and_then(|file| file.len()).map_err(|error| self.io(&path, error))?;
            if bytes == config.segment_bytes && spares.len() < config.spare_segments {
                spares.push(id);
            } else {
                self.disk.remove(&path).map_err(|error| self.io(&path, error))?;
            }
        }
        Ok(spares)
    }

    fn read(&self, id: u64, file: &dyn DiskFile) -> Result<Vec<u8>, WalError> {
        let path = self.path(id);
        let bytes = file.len().map_err(|error| self.io(&path, error))?;
        let bytes = usize::try_from(bytes).map_err(|error| self.io(&path, std::io::Error::other(error)))?;
        read_exact_at(file, bytes, 0).map_err(|error| self.io(&path, error))
    }

    /// The oldest segment of the log, as the newest segment that begins well says; what came before it may be gone.
    fn oldest(&self, files: &BTreeMap<u64, Arc<dyn DiskFile>>) -> Result<Option<u64>, WalError> {
        for (&id, file) in files.iter().rev() {
            let bytes = self.read(id, &**file)?;
            let mut offset = 0;
            let mut oldest = None;
            while let Some(Ok((header, records))) = frame_at(id, offset, &bytes) {
                let mut ids = records.iter().filter_map(|record| match record.view.content {
                    Content::Oldest(id) => Some(id),
                    _ => None,
                });
                oldest = ids.next_back().or(oldest);
                offset = frame::frame_end(offset, header.body_bytes as usize);
            }
            if oldest.is_some() {
                return Ok(oldest);
            }
        }
        // No segment begins well: a first start that was interrupted, or damage, which reading will tell.
        Ok(files.keys().next().copied())
    }

    /// Replays the frames from the oldest segment on and finds the end of the log, or why it must not be used.
    fn read_log(
        &self,
        oldest: u64,
        files: &BTreeMap<u64, Arc<dyn DiskFile>>,
        replay: &mut Replay,
    ) -> Result<End, WalError> {
        let newest = files.keys().next_back().copied().unwrap_or(oldest);
        if let Some(missing) = (oldest..=newest).find(|id| !files.contains_key(id)) {
            return Err(WalError::Missing { file: self.path(missing) });
        }
        let mut expected = None;
        let mut frames = 0;
        let mut synced = 0;
        // Frames of the current segment with their offsets, to find the first that is not proven.
        let mut starts: Vec<(u64, u64)>;
        let mut segment = oldest;
        let mut bytes = self.read(segment, &*files[&segment])?;
        loop {
            let mut offset = 0;
            starts = Vec::new();
            while let Some(decoded) = frame_at(segment, offset, &bytes) {
                let (header, records) = decoded.map_err(|at| WalError::Corrupt {
                    file: self.path(segment),
                    offset: at,
                    reason: "written by a version that this one does not know".to_owned(),
                })?;
                if header.sequence != expected.unwrap_or(header.sequence) {
                    break;
                }
                for record in &records {
                    replay.apply(segment, record);
                }
                starts.push((header.sequence, offset));
                expected = Some(header.sequence + 1);
                synced = synced.max(header.synced);
                frames += 1;
                offset = frame::frame_end(offset, header.body_bytes as usize);
            }
            let next = segment + 1;
            if next <= newest {
                let next_bytes = self.read(next, &*files[&next])?;
                let begins =
                    frame_at(next, 0, &next_bytes).and_then(Result::ok).map(|(header, _)| header.sequence);
                if begins.is_some() && begins == expected {
                    (segment, bytes) = (next, next_bytes);
                    continue;
                }
            }
            // The first frame of a log has sequence 1; the first of an older log's oldest segment was synced in any case.
            let lost = expected.unwrap_or(if oldest == 1 { 1 } else { 0 });
            let behind = bytes.iter().skip(usize_of(offset)).take(HEADER_BYTES);
            let ends_cleanly = behind.copied().all(|byte| byte == 0);
            let mut torn = !ends_cleanly;
            for id in segment..=newest {
                let bytes =
                    if id == segment { std::mem::take(&mut bytes) } else { self.read(id, &*files[&id])? };
                let from = if id == segment { offset } else { 0 };
                for header in headers(id, from, &bytes) {
                    torn = true;
                    if header.synced >= lost {
                        // A segment that ends cleanly, in zeros, was sealed: the frame stood at the begin of the next one.
                        let (file, offset) = if ends_cleanly && id > segment {
                            (self.path(next), 0)
                        } else {
                            (self.path(segment), offset)
                        };
                        let claim = format!("frame {} in {}", header.sequence, file_name(id));
                        let reason = format!("frame {lost} is not intact, but {claim} says it was on disk");
                        return Err(WalError::Corrupt { file, offset, reason });
                    }
                }
            }
            if expected.is_none() && oldest > 1 {
                let reason = "the oldest segment does not begin with a frame".to_owned();
                return Err(WalError::Corrupt { file: self.path(segment), offset, reason });
            }
            let unproven =
                starts.iter().find(|(sequence, _)| *sequence > synced).map_or(offset, |(_, start)| *start);
            let sequence = lost - 1;
            return Ok(End { segment, offset, sequence, frames, torn, unproven, oldest });
        }
    }

    /// Cuts what is behind the end, and makes sure that what is before it is on disk.
    fn mend(
        &self,
        end: &End,
        files: &BTreeMap<u64, Arc<dyn DiskFile>>,
        config: &WalConfig,
    ) -> Result<Segments, WalError> {
        for &id in files.range(end.segment + 1..).rev().map(|(id, _)| id) {
            let path = self.path(id);
            self.disk.remove(&path).map_err(|error| self.io(&path, error))?;
        }
        let path = self.path(end.segment);
        let file = &files[&end.segment];
        let mend = || {
            let unproven = usize_of(end.offset - end.unproven);
            // The padding behind the last record may be missing.
            let mut again = vec![0; unproven];
            file.read_at(&mut again, end.unproven)?;
            file.set_len(end.offset)?;
            file.preallocate(config.segment_bytes.max(frame::write_end(end.offset)))?;
            file.write_at(&again, end.unproven)?;
            file.sync_data()?;
            file.len()
        };
        let active_bytes = mend().map_err(|error| self.io(&path, error))?;
        let mut segments = Segments { offset: end.offset, ..Segments::default() };
        for (&id, file) in files.range(end.oldest..=end.segment) {
            let path = self.path(id);
            let bytes = if id == end.segment { Ok(active_bytes) } else { file.len() };
            let bytes = bytes.map_err(|error| self.io(&path, error))?;
            segments.files.insert(id, Segment { file: file.clone(), bytes, live_bytes: 0 });
        }
        Ok(segments)
    }
}

fn usize_of(offset: u64) -> usize {
    usize::try_from(offset).expect("segments are at most 4 GiB and were read into memory")
}

fn frame_at(segment: u64, offset: u64, bytes: &[u8]) -> Option<Result<(Header, Vec<PlacedRecord<'_>>), u64>> {
    frame::decode_frame(segment, offset, bytes.get(usize_of(offset)..)?)
}

/// All intact headers from `from` on, whatever is between them.
fn headers(segment: u64, from: u64, bytes: &[u8]) -> impl Iterator<Item = Header> {
    let places = (from..bytes.len() as u64).step_by(FRAME_ALIGN as usize);
    places.filter_map(move |offset| Header::decode(segment, offset, bytes.get(usize_of(offset)..)?))
}

/// The groups as the frames so far leave them.
#[derive(Default)]
struct Replay {
    groups: HashMap<GroupId, State>,
}

#[derive(Default)]
struct State {
    purged: Option<Position>,
    vote: Option<Bytes>,
    committed: Option<Bytes>,
    entries: BTreeMap<u64, (Position, Stored)>,
}

impl Replay {
    fn apply(&mut self, segment: u64, record: &PlacedRecord<'_>) {
        let PlacedRecord { offset, size, view } = *record;
        let state = self.groups.entry(view.group).or_default();
        let stored = || Stored {
            segment,
            offset: u32::try_from(offset).unwrap_or(u32::MAX),
            size: u32::try_from(size).unwrap_or(u32::MAX),
        };
        match view.content {
            Content::Entry { at, .. } => {
                state.drop_from(at.index);
                state.entries.insert(at.index, (at, stored()));
            }
            Content::Copy { at, .. } => {
                state.entries.insert(at.index, (at, stored()));
            }
            Content::Vote(vote) => state.vote = Some(Bytes::copy_from_slice(vote)),
            Content::Committed(committed) => state.committed = Some(Bytes::copy_from_slice(committed)),
            Content::Truncate { keep } => match keep.map(|keep| keep.checked_add(1)) {
                Some(Some(from)) => state.drop_from(from),
                Some(None) => {}
                None => state.entries.clear(),
            },
            Content::Purge(to) => {
                state.purged = Some(to);
                while let Some(entry) = state.entries.first_entry().filter(|entry| *entry.key() <= to.index) {
                    entry.remove();
                }
            }
            Content::Forget => *state = State::default(),
            Content::Oldest(_) => {}
        }
    }

    /// The groups and the number of their entries; fails when entries are missing.
    fn finish(self) -> Result<(BTreeMap<GroupId, State>, u64), WalError> {
        let mut entries = 0;
        for (&group, state) in &self.groups {
            let first = state.purged.map(|purged| purged.index + 1).or(state.entries.keys().next().copied());
            if let Some((index, _)) = (first.unwrap_or(0)..).zip(state.entries.keys()).find(|(a, b)| a != *b)
            {
                return Err(WalError::Hole { group, index });
            }
            entries += state.entries.len() as u64;
        }
        Ok((self.groups.into_iter().collect(), entries))
    }
}

impl State {
    fn drop_from(&mut self, index: u64) {
        while let Some(entry) = self.entries.last_entry().filter(|entry| *entry.key() >= index) {
            entry.remove();
        }
    }

    fn is_blank(&self) -> bool {
        self.purged.is_none() && self.vote.is_none() && self.committed.is_none() && self.entries.is_empty()
    }

    fn into_inner(self) -> Inner {
        Inner::recovered(self.purged, self.vote, self.committed, self.entries.into_values())
    }
}
