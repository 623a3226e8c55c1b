//! Frames and records as bytes. The layout stands in `docs/data-on-disk.md`; every number here is frozen.
//!
//! Pure: encodes into and decodes from buffers, given the segment and offset they belong to. Decoding never panics, whatever
//! the bytes.

use bytes::Bytes;

use super::{GroupId, Position, Record};

/// Bytes of a frame header.
pub(super) const HEADER_BYTES: usize = 32;
/// Frames start at multiples of this.
pub(super) const FRAME_ALIGN: u64 = 8;
/// Writes end at multiples of this.
pub(super) const BLOCK_BYTES: u64 = 4096;

const MAGIC: [u8; 3] = *b"KvW";
const VERSION: u8 = 1;
/// CRC, length, kind and group of a record.
const PREFIX_BYTES: usize = 17;
/// Index, term and leader.
const POSITION_BYTES: usize = 24;

const KIND_ENTRY: u8 = 1;
const KIND_COPY: u8 = 2;
const KIND_VOTE: u8 = 3;
const KIND_COMMITTED: u8 = 4;
const KIND_TRUNCATE: u8 = 5;
const KIND_PURGE: u8 = 6;
const KIND_FORGET: u8 = 7;
const KIND_OLDEST: u8 = 8;

/// Size of an entry's record.
pub(super) fn entry_bytes(payload: &Bytes) -> usize {
    PREFIX_BYTES + POSITION_BYTES + payload.len()
}

/// Size of the other records, less their opaque content: an upper bound for all kinds.
pub(super) const SMALL_RECORD_BYTES: usize = PREFIX_BYTES + POSITION_BYTES;

/// Where a frame that takes `body` bytes ends, without the zeros behind it.
pub(super) fn frame_end(offset: u64, body_bytes: usize) -> u64 {
    (offset + (HEADER_BYTES + body_bytes) as u64).next_multiple_of(FRAME_ALIGN)
}

/// Where the write of a frame that ends at `end` ends: a header of zeros behind it, to the end of the block.
pub(super) fn write_end(end: u64) -> u64 {
    (end + HEADER_BYTES as u64).next_multiple_of(BLOCK_BYTES)
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) version: u8,
    pub(super) body_bytes: u32,
    pub(super) sequence: u64,
    pub(super) synced: u64,
    pub(super) records: u32,
}

impl Header {
    /// The header at the start of `bytes`, which stand at `offset` of `segment`; none when it is not intact. Later versions keep
    /// the header's layout, so that an old program refuses their frames instead of cutting them.
    pub(super) fn decode(segment: u64, offset: u64, bytes: &[u8]) -> Option<Header> {
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        if header[..3] != MAGIC || crc(segment, offset, &header[..28]) != u32_at(header, 28)? {
            return None;
        }
        Some(Header {
            version: header[3],
            body_bytes: u32_at(header, 4)?,
            sequence: u64_at(header, 8)?,
            synced: u64_at(header, 16)?,
            records: u32_at(header, 24)?,
        })
    }
}

/// One record, borrowed from a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordView<'a> {
    pub(super) group: GroupId,
    pub(super) content: Content<'a>,
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content<'a> {
    Entry { at: Position, payload: &'a [u8] },
    Copy { at: Position, payload: &'a [u8] },
    Vote(&'a [u8]),
    Committed(&'a [u8]),
    Truncate { keep: Option<u64> },
    Purge(Position),
    Forget,
    Oldest(u64),
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordError {
    /// Not what was written here.
    Damaged,
    /// Intact, but of a kind or shape that this version does not write.
    Unknown,
}

/// The record at the start of `bytes`, which stand at `offset` of `segment`, and its size.
pub(super) fn decode_record(
    segment: u64,
    offset: u64,
    bytes: &[u8],
) -> Result<(RecordView<'_>, usize), RecordError> {
    let length = u32_at(bytes, 4).ok_or(RecordError::Damaged)? as usize;
    let size = length.checked_add(8).filter(|&size| size >= PREFIX_BYTES && size <= bytes.len());
    let size = size.ok_or(RecordError::Damaged)?;
    let (record, rest) = (&bytes[..size], &bytes[PREFIX_BYTES..size]);
    if u32_at(record, 0) != Some(crc(segment, offset, &record[4..])) {
        return Err(RecordError::Damaged);
    }
    let group = GroupId(u64_at(record, 9).ok_or(RecordError::Damaged)?);
    let content = decode_content(record[8], rest).ok_or(RecordError::Unknown)?;
    Ok((RecordView { group, content }, size))
}

fn decode_content(kind: u8, rest: &[u8]) -> Option<Content<'_>> {
    let position =
        || Some(Position { index: u64_at(rest, 0)?, term: u64_at(rest, 8)?, leader: u64_at(rest, 16)? });
    let ends_at = |bytes: usize| (rest.len() == bytes).then_some(());
    Some(match kind {
        KIND_ENTRY => Content::Entry { at: position()?, payload: &rest[POSITION_BYTES..] },
        KIND_COPY => Content::Copy { at: position()?, payload: &rest[POSITION_BYTES..] },
        KIND_VOTE => Content::Vote(rest),
        KIND_COMMITTED => Content::Committed(rest),
        KIND_TRUNCATE => {
            ends_at(9)?;
            let index = u64_at(rest, 1)?;
            match rest[0] {
                0 => Content::Truncate { keep: None },
                1 => Content::Truncate { keep: Some(index) },
                _ => return None,
            }
        }
        KIND_PURGE => {
            ends_at(POSITION_BYTES)?;
            Content::Purge(position()?)
        }
        KIND_FORGET => {
            ends_at(0)?;
            Content::Forget
        }
        KIND_OLDEST => {
            ends_at(8)?;
            Content::Oldest(u64_at(rest, 0)?)
        }
        _ => return None,
    })
}

/// The records of an intact frame with their offsets in the segment; `bytes` are the segment from the frame's start on. None
/// when the frame is torn or damaged; the error says at which offset something intact was not understood.
pub(super) fn decode_frame(
    segment: u64,
    offset: u64,
    bytes: &[u8],
) -> Option<Result<(Header, Vec<PlacedRecord<'_>>), u64>> {
    let header = Header::decode(segment, offset, bytes)?;
    if header.version != VERSION {
        return Some(Err(offset));
    }
    let end = HEADER_BYTES.checked_add(header.body_bytes as usize)?;
    let mut at = HEADER_BYTES;
    let frame = bytes.get(..end)?;
    let mut records = Vec::new();
    let mut unknown = None;
    while at < end {
        let place = offset + at as u64;
        match decode_record(segment, place, &frame[at..]) {
            Ok((view, size)) => {
                records.push(PlacedRecord { offset: place, size, view });
                at += size;
            }
            Err(RecordError::Damaged) => return None,
            Err(RecordError::Unknown) => {
                unknown.get_or_insert(place);
                at += 8 + u32_at(frame, at + 4)? as usize;
            }
        }
    }
    if let Some(place) = unknown {
        return Some(Err(place));
    }
    (records.len() == header.records as usize).then_some(Ok((header, records)))
}

/// A record and where it stands in its segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlacedRecord<'a> {
    pub(super) offset: u64,
    pub(super) size: usize,
    pub(super) view: RecordView<'a>,
}

/// Builds one frame in a buffer that is used again and again.
pub(super) struct FrameBuilder<'a> {
    buf: &'a mut Vec<u8>,
    segment: u64,
    offset: u64,
    records: u32,
}

impl<'a> FrameBuilder<'a> {
    /// Starts a frame that will stand at `offset` of `segment`.
    pub(super) fn new(buf: &'a mut Vec<u8>, segment: u64, offset: u64) -> FrameBuilder<'a> {
        buf.clear();
        buf.resize(HEADER_BYTES, 0);
        FrameBuilder { buf, segment, offset, records: 0 }
    }

    /// Adds an entry; returns its offset in the segment and its size.
    pub(super) fn entry(&mut self, group: GroupId, record: &Record) -> (u64, usize) {
        self.position_record(KIND_ENTRY, group, record.position(), &record.payload)
    }

    /// Adds an entry that is still alive elsewhere; returns its offset in the segment and its size.
    pub(super) fn copy(&mut self, group: GroupId, record: &Record) -> (u64, usize) {
        self.position_record(KIND_COPY, group, record.position(), &record.payload)
    }

    pub(super) fn vote(&mut self, group: GroupId, vote: &[u8]) {
        self.record(KIND_VOTE, group, &[vote]);
    }

    pub(super) fn committed(&mut self, group: GroupId, committed: &[u8]) {
        self.record(KIND_COMMITTED, group, &[committed]);
    }

    pub(super) fn truncate(&mut self, group: GroupId, keep: Option<u64>) {
        self.record(KIND_TRUNCATE, group, &[&[u8::from(keep.is_some())], &keep.unwrap_or(0).to_le_bytes()]);
    }

    pub(super) fn purge(&mut self, group: GroupId, to: Position) {
        self.position_record(KIND_PURGE, group, to, &[]);
    }

    pub(super) fn forget(&mut self, group: GroupId) {
        self.record(KIND_FORGET, group, &[]);
    }

    pub(super) fn oldest(&mut self, segment: u64) {
        self.record(KIND_OLDEST, GroupId(0), &[&segment.to_le_bytes()]);
    }

    /// Bytes of the records so far.
    pub(super) fn body_bytes(&self) -> usize {
        self.buf.len() - HEADER_BYTES
    }

    /// Fills in the header and the zeros behind the frame; returns where the frame ends. The buffer is ready to be written at
    /// the frame's offset.
    pub(super) fn finish(self, sequence: u64, synced: u64) -> u64 {
        let body_bytes = self.body_bytes();
        let header = &mut self.buf[..HEADER_BYTES];
        header[..3].copy_from_slice(&MAGIC);
        header[3] = VERSION;
        header[4..8].copy_from_slice(&length_field(body_bytes).to_le_bytes());
        header[8..16].copy_from_slice(&sequence.to_le_bytes());
        header[16..24].copy_from_slice(&synced.to_le_bytes());
        header[24..28].copy_from_slice(&self.records.to_le_bytes());
        let crc = crc(self.segment, self.offset, &header[..28]);
        header[28..].copy_from_slice(&crc.to_le_bytes());
        let end = frame_end(self.offset, body_bytes);
        let written = write_end(end) - self.offset;
        self.buf.resize(usize::try_from(written).expect("a frame fits in memory"), 0);
        end
    }

    fn position_record(&mut self, kind: u8, group: GroupId, at: Position, payload: &[u8]) -> (u64, usize) {
        let parts = [&at.index.to_le_bytes(), &at.term.to_le_bytes(), &at.leader.to_le_bytes(), payload];
        self.record(kind, group, &parts)
    }

    fn record(&mut self, kind: u8, group: GroupId, parts: &[&[u8]]) -> (u64, usize) {
        let start = self.buf.len();
        let place = self.offset + start as u64;
        self.buf.extend_from_slice(&[0; 8]);
        self.buf.push(kind);
        self.buf.extend_from_slice(&group.0.to_le_bytes());
        parts.iter().for_each(|part| self.buf.extend_from_slice(part));
        let size = self.buf.len() - start;
        let record = &mut self.buf[start..];
        record[4..8].copy_from_slice(&length_field(size - 8).to_le_bytes());
        let crc = crc(self.segment, place, &record[4..]);
        record[..4].copy_from_slice(&crc.to_le_bytes());
        self.records += 1;
        (place, size)
    }
}

fn length_field(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("requests are checked against the largest frame when they are accepted")
}

fn crc(segment: u64, offset: u64, bytes: &[u8]) -> u32 {
    let mut salt = [0; 16];
    salt[..8].copy_from_slice(&segment.to_le_bytes());
    salt[8..].copy_from_slice(&offset.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&salt), bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
