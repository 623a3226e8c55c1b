//! A snapshot file as bytes; the layout stands in `docs/data-on-disk.md`, and every number here is frozen.
//!
//! [`BlockWriter`] takes content and writes blocks, [`BlockReader`] gives content back and checks everything on the way: its end
//! is only reached when the whole file is intact. Reading never panics and holds one block, whatever the bytes.

use std::{
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use kvorum_proto::raft as wire;
use openraft::alias::{LogIdOf, SnapshotMetaOf, StoredMembershipOf};
use prost::Message;

use crate::{
    disk::{DiskFile, read_exact_at},
    types::{Types, log_id, membership_from_wire, membership_to_wire},
};

const MAGIC: [u8; 3] = *b"KvF";
const VERSION: u8 = 1;
/// Everything of a header before the members.
const FIXED_BYTES: usize = 57;
const CRC_BYTES: usize = 4;
/// CRC and length of a block.
const PREFIX_BYTES: usize = 8;
pub(super) const FOOTER_BYTES: usize = 28;
const HEADER_BYTES_MAX: usize = 1 << 20;
/// Longest content of a block that is read.
const BLOCK_BYTES_MAX: usize = 1 << 20;

/// A place where a snapshot file is not what was written.
#[derive(Debug, thiserror::Error)]
#[error("{} is damaged at offset {offset}: {reason}", file.display())]
pub(crate) struct Damage {
    pub(crate) file: PathBuf,
    pub(crate) offset: u64,
    pub(crate) reason: String,
}

/// Why a snapshot file could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error(transparent)]
    Damage(#[from] Damage),
    #[error("{}: {source}", file.display())]
    Io { file: PathBuf, source: io::Error },
}

/// What a snapshot is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) group: u64,
    pub(crate) id: u64,
    /// The last entry in it.
    pub(crate) last: LogIdOf<Types>,
    /// The members as of that entry.
    pub(crate) membership: StoredMembershipOf<Types>,
}

impl Header {
    pub(crate) fn meta(&self) -> SnapshotMetaOf<Types> {
        SnapshotMetaOf::<Types> { last_log_id: Some(self.last), last_membership: self.membership.clone() }
    }

    pub(super) fn encode(&self) -> io::Result<Vec<u8>> {
        let members = membership_to_wire(self.membership.membership()).encode_to_vec();
        let bytes = FIXED_BYTES + members.len() + CRC_BYTES;
        if bytes > HEADER_BYTES_MAX {
            return Err(io::Error::other(format!("{bytes} bytes are too many for the header of a snapshot")));
        }
        let mut header = Vec::with_capacity(bytes);
        header.extend_from_slice(&MAGIC);
        header.push(VERSION);
        header.extend_from_slice(&u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes());
        header.extend_from_slice(&self.group.to_le_bytes());
        header.extend_from_slice(&self.id.to_le_bytes());
        header.extend_from_slice(&self.last.index.to_le_bytes());
        header.extend_from_slice(&self.last.leader_id.term.to_le_bytes());
        let at = self.membership.log_id();
        header.push(u8::from(at.is_some()));
        header.extend_from_slice(&at.map_or(0, |at| at.index).to_le_bytes());
        header.extend_from_slice(&at.map_or(0, |at| at.leader_id.term).to_le_bytes());
        header.extend_from_slice(&members);
        let crc = crc32c::crc32c(&header);
        header.extend_from_slice(&crc.to_le_bytes());
        Ok(header)
    }

    /// Reads the header of a file, and where it ends.
    pub(super) fn read(file: &dyn DiskFile, path: &Path) -> Result<(Header, u64), ReadError> {
        let damaged = |offset: usize, reason: &str| {
            ReadError::Damage(Damage {
                file: path.to_owned(),
                offset: offset as u64,
                reason: reason.to_owned(),
            })
        };
        let read = |bytes: usize| match read_exact_at(file, bytes, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(damaged(0, "the header is not whole"))
            }
            result => result.map_err(|source| ReadError::Io { file: path.to_owned(), source }),
        };
        let start = read(FIXED_BYTES + CRC_BYTES)?;
        if start[..3] != MAGIC {
            return Err(damaged(0, "it does not begin as a snapshot"));
        }
        if start[3] != VERSION {
            return Err(damaged(3, "written by a version that this one does not know"));
        }
        let bytes = u32_at(&start, 4) as usize;
        if !(FIXED_BYTES + CRC_BYTES..=HEADER_BYTES_MAX).contains(&bytes) {
            return Err(damaged(4, "no header is as long as this one says"));
        }
        let header = read(bytes)?;
        let (content, crc) = header.split_at(bytes - CRC_BYTES);
        if u32_at(crc, 0) != crc32c::crc32c(content) {
            return Err(damaged(0, "the header does not have its checksum"));
        }
        let last = log_id(u64_at(content, 32), u64_at(content, 24));
        let members = || {
            let members = wire::Membership::decode(&content[FIXED_BYTES..]).ok()?;
            membership_from_wire(members).ok()
        };
        let membership = match content[40] {
            0 => StoredMembershipOf::<Types>::default(),
            1 => {
                let members =
                    members().ok_or_else(|| damaged(FIXED_BYTES, "the members are not understood"))?;
                let at = log_id(u64_at(content, 49), u64_at(content, 41));
                StoredMembershipOf::<Types>::new(Some(at), members)
            }
            _ => return Err(damaged(40, "neither members nor none")),
        };
        if *membership.log_id() > Some(last) {
            return Err(damaged(41, "the members are newer than the state"));
        }
        let header = Header { group: u64_at(content, 8), id: u64_at(content, 16), last, membership };
        Ok((header, bytes as u64))
    }
}

/// CRC of a block, and of a chunk on the way: salted with where it belongs.
pub(super) fn salted_crc(id: u64, offset: u64, bytes: &[u8]) -> u32 {
    let mut salt = [0; 16];
    salt[..8].copy_from_slice(&id.to_le_bytes());
    salt[8..].copy_from_slice(&offset.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&salt), bytes)
}

/// Asked before each block with the bytes of the file so far; an error ends the file.
pub(super) type Gate<'a> = &'a mut (dyn FnMut(u64) -> io::Result<()> + Send);

/// Writes a snapshot file from its begin to its end. Nothing is synced.
pub(super) struct BlockWriter<'a> {
    file: &'a dyn DiskFile,
    id: u64,
    block_bytes: usize,
    /// Where the next block goes.
    offset: u64,
    /// The next block, its prefix included.
    block: Vec<u8>,
    content_bytes: u64,
    content_crc: u32,
    gate: Gate<'a>,
}

impl<'a> BlockWriter<'a> {
    pub(super) fn begin(
        file: &'a dyn DiskFile,
        header: &Header,
        block_bytes: usize,
        gate: Gate<'a>,
    ) -> io::Result<BlockWriter<'a>> {
        let bytes = header.encode()?;
        file.write_at(&bytes, 0)?;
        Ok(BlockWriter {
            file,
            id: header.id,
            block_bytes: block_bytes.clamp(1, BLOCK_BYTES_MAX),
            offset: bytes.len() as u64,
            block: vec![0; PREFIX_BYTES],
            content_bytes: 0,
            content_crc: 0,
            gate,
        })
    }

    fn write_block(&mut self) -> io::Result<()> {
        let content = &self.block[PREFIX_BYTES..];
        if content.is_empty() {
            return Ok(());
        }
        (self.gate)(self.offset)?;
        self.content_bytes += content.len() as u64;
        self.content_crc = crc32c::crc32c_append(self.content_crc, content);
        let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
        self.block[4..PREFIX_BYTES].copy_from_slice(&length.to_le_bytes());
        let crc = salted_crc(self.id, self.offset, &self.block[4..]);
        self.block[..4].copy_from_slice(&crc.to_le_bytes());
        self.file.write_at(&self.block, self.offset)?;
        self.offset += self.block.len() as u64;
        self.block.truncate(PREFIX_BYTES);
        Ok(())
    }

    /// Ends the file; returns its length.
    pub(super) fn finish(mut self) -> io::Result<u64> {
        self.write_block()?;
        let mut footer = [0; FOOTER_BYTES];
        let bytes = self.offset + FOOTER_BYTES as u64;
        footer[8..16].copy_from_slice(&bytes.to_le_bytes());
        footer[16..24].copy_from_slice(&self.content_bytes.to_le_bytes());
        footer[24..].copy_from_slice(&self.content_crc.to_le_bytes());
        let crc = salted_crc(self.id, self.offset, &footer[4..]);
        footer[..4].copy_from_slice(&crc.to_le_bytes());
        self.file.write_at(&footer, self.offset)?;
        Ok(bytes)
    }
}

impl Write for BlockWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.block_bytes + PREFIX_BYTES - self.block.len();
        let taken = bytes.len().min(room);
        self.block.extend_from_slice(&bytes[..taken]);
        if taken == room {
            self.write_block()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads the content of a snapshot file. An error that is [`Damage`] says so; the end comes only when everything was intact.
pub(super) struct BlockReader {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    header: Header,
    /// Where the next block begins.
    offset: u64,
    /// Content of the block, and how much of it was read.
    block: Vec<u8>,
    at: usize,
    content_bytes: u64,
    content_crc: u32,
    ended: bool,
}

impl BlockReader {
    pub(super) fn open(file: Arc<dyn DiskFile>, path: &Path) -> Result<BlockReader, ReadError> {
        let (header, offset) = Header::read(&*file, path)?;
        Ok(BlockReader {
            file,
            path: path.to_owned(),
            header,
            offset,
            block: Vec::new(),
            at: 0,
            content_bytes: 0,
            content_crc: 0,
            ended: false,
        })
    }

    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    /// Up to where the file is intact, as far as it was read.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Checks the rest of the file.
    pub(super) fn verify(&mut self) -> Result<(), ReadError> {
        while self.next_block()? {}
        Ok(())
    }

    fn damage(&self, offset: u64, reason: &str) -> ReadError {
        ReadError::Damage(Damage { file: self.path.clone(), offset, reason: reason.to_owned() })
    }

    fn read_at(&self, bytes: usize, offset: u64) -> Result<Vec<u8>, ReadError> {
        match read_exact_at(&*self.file, bytes, offset) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(self.damage(self.offset, "the file ends in the middle"))
            }
            result => result.map_err(|source| ReadError::Io { file: self.path.clone(), source }),
        }
    }

    /// Reads the next block; `false` at the end.
    fn next_block(&mut self) -> Result<bool, ReadError> {
        if self.ended {
            return Ok(false);
        }
        let prefix = self.read_at(PREFIX_BYTES, self.offset)?;
        let length = u32_at(&prefix, 4) as usize;
        if length > BLOCK_BYTES_MAX {
            return Err(self.damage(self.offset, "no block is as long as this one says"));
        }
        if length == 0 {
            self.read_footer()?;
            self.ended = true;
            return Ok(false);
        }
        let block = self.read_at(PREFIX_BYTES - 4 + length, self.offset + 4)?;
        if is_wrong(u32_at(&prefix, 0) != salted_crc(self.header.id, self.offset, &block)) {
            return Err(self.damage(self.offset, "the block does not have its checksum"));
        }
        self.block = block;
        self.at = PREFIX_BYTES - 4;
        let content = &self.block[self.at..];
        self.content_bytes += content.len() as u64;
        self.content_crc = crc32c::crc32c_append(self.content_crc, content);
        self.offset += (PREFIX_BYTES + length) as u64;
        Ok(true)
    }

    fn read_footer(&mut self) -> Result<(), ReadError> {
        let footer = self.read_at(FOOTER_BYTES, self.offset)?;
        let end = self.offset + FOOTER_BYTES as u64;
        let io = |source| ReadError::Io { file: self.path.clone(), source };
        let length = self.file.len().map_err(io)?;
        if u32_at(&footer, 0) != salted_crc(self.header.id, self.offset, &footer[4..]) {
            return Err(self.damage(self.offset, "the footer does not have its checksum"));
        }
        if u64_at(&footer, 8) != end || length != end {
            return Err(self.damage(end, "the file is longer or shorter than it says"));
        }
        if is_wrong((u64_at(&footer, 16), u32_at(&footer, 24)) != (self.content_bytes, self.content_crc)) {
            return Err(self.damage(self.offset, "the content is not what was written"));
        }
        self.offset = end;
        Ok(())
    }
}

/// Whether a checksum that differs is taken for damage: always, in a product.
pub(super) fn is_wrong(differs: bool) -> bool {
    #[cfg(feature = "bugs")]
    let differs = differs && !kvorum_bugs::has(kvorum_bugs::Bug::SnapshotUnchecked);
    differs
}

impl Read for BlockReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at == self.block.len() && !self.next_block()? {
            return Ok(0);
        }
        let taken = buf.len().min(self.block.len() - self.at);
        buf[..taken].copy_from_slice(&self.block[self.at..self.at + taken]);
        self.at += taken;
        Ok(taken)
    }
}

impl From<ReadError> for io::Error {
    fn from(error: ReadError) -> io::Error {
        match error {
            ReadError::Damage(damage) => io::Error::new(io::ErrorKind::InvalidData, damage),
            ReadError::Io { file, source } => {
                io::Error::new(source.kind(), format!("{}: {source}", file.display()))
            }
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk);
    u32::from_le_bytes(*bytes.expect("the length was checked"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk);
    u64::from_le_bytes(*bytes.expect("the length was checked"))
}
