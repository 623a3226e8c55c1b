//! The segment files: names, creation, recycling, and how much of each is still needed.
//!
//! Owned by the writer. Readers see the files through [`Shared::files`].

use std::{collections::BTreeMap, io, sync::Arc};

use super::group::Shared;
use crate::disk::{DiskFile, in_dir};

/// File name of a segment.
pub(super) fn file_name(segment: u64) -> String {
    format!("segment-{segment:016x}.wal")
}

fn spare_name(segment: u64) -> String {
    format!("spare-{segment:016x}.wal")
}

/// What a file in the log's directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileKind {
    Segment(u64),
    Spare(u64),
    Other,
}

/// Reads a file name.
pub(super) fn file_kind(name: &str) -> FileKind {
    let id = |prefix: &str| {
        let digits = name.strip_prefix(prefix)?.strip_suffix(".wal")?;
        let plain =
            digits.len() == 16 && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        u64::from_str_radix(digits, 16).ok().filter(|_| plain)
    };
    match (id("segment-"), id("spare-")) {
        (Some(id), _) => FileKind::Segment(id),
        (_, Some(id)) => FileKind::Spare(id),
        _ => FileKind::Other,
    }
}

/// A file of the log.
pub(super) struct Segment {
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) bytes: u64,
    /// Bytes of records of live entries, as of what is written.
    pub(super) live_bytes: u64,
}

/// The files of the log, oldest first, and the spares.
#[derive(Default)]
pub(super) struct Segments {
    pub(super) files: BTreeMap<u64, Segment>,
    pub(super) spares: Vec<u64>,
    /// Where the next frame goes in the newest segment.
    pub(super) offset: u64,
}

impl Segments {
    /// The newest segment, the only one written to.
    pub(super) fn active(&self) -> Option<(u64, &Segment)> {
        self.files.last_key_value().map(|(&id, segment)| (id, segment))
    }

    pub(super) fn add_live(&mut self, segment: u64, bytes: u64) {
        if let Some(segment) = self.files.get_mut(&segment) {
            segment.live_bytes += bytes;
        }
    }

    pub(super) fn sub_live(&mut self, segment: u64, bytes: u64) {
        if let Some(segment) = self.files.get_mut(&segment) {
            debug_assert!(segment.live_bytes >= bytes, "more freed than was live");
            segment.live_bytes = segment.live_bytes.saturating_sub(bytes);
        }
    }

    /// Makes the next segment, with room for at least `bytes`, the active one. Its name is durable when this returns.
    pub(super) fn open_next(&mut self, shared: &Shared, bytes: u64) -> io::Result<()> {
        let id = self.active().map_or(1, |(id, _)| id + 1);
        let path = in_dir(&shared.dir, &file_name(id));
        let bytes = bytes.max(shared.config.segment_bytes);
        let spare = if bytes == shared.config.segment_bytes { self.spares.pop() } else { None };
        let file = match spare {
            Some(spare) => {
                shared.disk.rename(&in_dir(&shared.dir, &spare_name(spare)), &path)?;
                shared.disk.open(&path)?
            }
            None => {
                let file = shared.disk.create(&path)?;
                file.preallocate(bytes)?;
                // The length must be there before a sync of data counts on it.
                file.sync_data()?;
                file
            }
        };
        shared.disk.sync_dir(&shared.dir)?;
        shared.files.write().insert(id, file.clone());
        self.files.insert(id, Segment { file, bytes, live_bytes: 0 });
        self.offset = 0;
        Ok(())
    }

    /// The oldest segment that has to stay: the first that is live or active.
    pub(super) fn first_needed(&self) -> Option<u64> {
        let (active, _) = self.active()?;
        self.files.iter().find(|(id, segment)| **id == active || segment.live_bytes > 0).map(|(&id, _)| id)
    }

    /// Drops the segments below `oldest`; the log must say durably that they are not part of it. Returns how many.
    pub(super) fn drop_below(&mut self, shared: &Shared, oldest: u64) -> io::Result<u64> {
        let kept = self.files.split_off(&oldest);
        let dropped = std::mem::replace(&mut self.files, kept);
        let count = dropped.len() as u64;
        for (id, Segment { file, bytes, .. }) in dropped {
            shared.files.write().remove(&id);
            let path = in_dir(&shared.dir, &file_name(id));
            // A reader that still holds the file must not find the bytes of a later segment in it.
            let unread = Arc::strong_count(&file) == 1;
            if unread
                && bytes == shared.config.segment_bytes
                && self.spares.len() < shared.config.spare_segments
            {
                shared.disk.rename(&path, &in_dir(&shared.dir, &spare_name(id)))?;
                self.spares.push(id);
            } else {
                shared.disk.remove(&path)?;
            }
        }
        if count > 0 {
            shared.disk.sync_dir(&shared.dir)?;
        }
        Ok(count)
    }

    /// Room that appends can count on: what is left of the active segment, and spares.
    pub(super) fn held_bytes(&self, segment_bytes: u64) -> u64 {
        let active = self.active().map_or(0, |(_, segment)| segment.bytes.saturating_sub(self.offset));
        active + self.spares.len() as u64 * segment_bytes
    }
}
