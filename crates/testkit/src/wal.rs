//! The frames of a write-ahead log, for tests that damage one on purpose.
//!
//! Written from `docs/data-on-disk.md`, not from the code that writes the log. It finds frames by their headers and checks
//! no checksum: what a damaged frame is, the server must say.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

const HEADER: usize = 32;

/// Where a frame stands in its segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Offset of the header, in bytes.
    pub offset: u64,
    /// Length of the body, in bytes, without padding.
    pub body: u64,
    /// Number of the frame in the log.
    pub sequence: u64,
    /// The highest sequence known to be on disk when the frame was written.
    pub synced: u64,
}

impl Frame {
    /// Offset of the first byte of the body.
    pub fn body_at(&self) -> u64 {
        self.offset + HEADER as u64
    }
}

/// The segments below a server's data directory, oldest first.
///
/// # Errors
/// What the system says, or when there is none.
pub fn segments(data: &Path) -> Result<Vec<PathBuf>> {
    let dir = data.join("wal");
    let mut segments = Vec::new();
    for entry in std::fs::read_dir(&dir).with_context(|| format!("{}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("segment-") && name.ends_with(".wal") {
            segments.push(path);
        }
    }
    segments.sort();
    ensure!(!segments.is_empty(), "{} has no segment", dir.display());
    Ok(segments)
}

/// The frames of a segment, up to the first place where there is none.
///
/// # Errors
/// What the system says.
pub fn frames(segment: &Path) -> Result<Vec<Frame>> {
    let bytes = std::fs::read(segment).with_context(|| format!("{}", segment.display()))?;
    let mut frames: Vec<Frame> = Vec::new();
    let mut at = 0;
    while let Some(header) = bytes.get(at..at + HEADER) {
        if &header[..3] != b"KvW" {
            break;
        }
        let number = |from: usize, length: usize| -> u64 {
            header[from..from + length].iter().rev().fold(0, |n, &byte| (n << 8) | u64::from(byte))
        };
        let frame =
            Frame { offset: at as u64, body: number(4, 4), sequence: number(8, 8), synced: number(16, 8) };
        if frames.last().is_some_and(|last| frame.sequence != last.sequence + 1) {
            break;
        }
        frames.push(frame);
        at += HEADER + (frame.body as usize).next_multiple_of(8);
    }
    Ok(frames)
}

/// Writes what a crash in the middle of a write leaves behind `last`, the last frame of a segment: the next frame, whose
/// header is whole and of whose body only the first `arrived` of `length` bytes are there. Returns its offset.
///
/// # Errors
/// What the system says.
pub fn tear(segment: &Path, last: &Frame, length: u32, arrived: u32) -> Result<u64> {
    let name = segment.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let id =
        name.strip_prefix("segment-").and_then(|id| u64::from_str_radix(id, 16).ok()).context("a segment")?;
    let offset = last.body_at() + last.body.next_multiple_of(8);
    let mut bytes = b"KvW\x01".to_vec();
    bytes.extend(length.to_le_bytes());
    bytes.extend((last.sequence + 1).to_le_bytes());
    bytes.extend(last.sequence.to_le_bytes());
    bytes.extend(1u32.to_le_bytes());
    let salted = [&id.to_le_bytes()[..], &offset.to_le_bytes(), &bytes].concat();
    bytes.extend(crc32c::crc32c(&salted).to_le_bytes());
    bytes.extend((0..arrived.min(length)).map(|n| n as u8));
    let file = OpenOptions::new().write(true).open(segment)?;
    file.write_all_at(&bytes, offset)?;
    file.sync_all()?;
    Ok(offset)
}

/// Inverts the bits of one byte.
///
/// # Errors
/// What the system says.
pub fn flip(segment: &Path, offset: u64) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(segment)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)?;
    file.write_all_at(&[!byte[0]], offset)?;
    Ok(file.sync_all()?)
}

/// Cuts the file off at `offset`.
///
/// # Errors
/// What the system says.
pub fn cut(segment: &Path, offset: u64) -> Result<()> {
    let file = OpenOptions::new().write(true).open(segment)?;
    file.set_len(offset)?;
    Ok(file.sync_all()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(sequence: u64, body: &[u8]) -> Vec<u8> {
        let mut bytes = b"KvW\x01".to_vec();
        bytes.extend((body.len() as u32).to_le_bytes());
        bytes.extend(sequence.to_le_bytes());
        bytes.extend((sequence - 1).to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn frames_are_found_up_to_the_end_of_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("segment");
        let stale = frame(2, b"of a recycled segment");
        let bytes = [frame(7, b"12345"), frame(8, b""), frame(9, &[1; 100]), stale, vec![0; 4096]].concat();
        std::fs::write(&path, bytes).unwrap();
        let found = frames(&path).unwrap();
        let places: Vec<_> = found.iter().map(|f| (f.offset, f.body, f.sequence, f.synced)).collect();
        assert_eq!(places, [(0, 5, 7, 6), (40, 0, 8, 7), (72, 100, 9, 8)]);
        flip(&path, found[0].body_at()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap()[32], !b'1');
        cut(&path, 50).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 50);
    }
}
