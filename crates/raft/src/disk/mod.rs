//! The file system as the WAL sees it: an injected [`Disk`].
//!
//! [`StdDisk`] is the real one; [`MemoryDisk`] is its twin for tests, which can lose what was not synced, tear a write,
//! fail a sync and fill up. Everything is synchronous and positional, there is no cursor and no append mode, so that a twin
//! can model exactly which bytes are on disk. What it leaves out on purpose: directories in directories, permissions,
//! locks.
//!
//! Contract of both: data is durable after [`DiskFile::sync_data`] returned `Ok`; a create, rename or remove is durable
//! after [`Disk::sync_dir`] returned `Ok`. After a failed sync nothing is known about the data it covered.

mod memory;
mod real;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub use memory::{Fault, MemoryDisk};
pub use real::StdDisk;

/// A file system, seen from one server.
pub trait Disk: Send + Sync + 'static {
    /// Creates a file for reading and writing. Fails with `AlreadyExists` when there is one.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens a file that exists for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Renames a file, replacing `to` when it exists.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. Open handles of it stay usable.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// The files of a directory, in no particular order. Names that are not UTF-8 are left out.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Creates a directory and its parents; fine when they exist.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// Makes the creates, renames and removes in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Bytes that a file in `dir` may still take up.
    fn available_bytes(&self, dir: &Path) -> io::Result<u64>;

    /// In a simulation: the time that the next write with its sync takes. A real disk takes its own.
    fn delay(&self) -> Duration {
        Duration::ZERO
    }
}

/// An open file of a [`Disk`].
pub trait DiskFile: Send + Sync {
    /// Reads at `offset` until `buf` is full or the file ends; returns the bytes read.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `buf` at `offset`, growing the file when needed.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Makes the content durable, and the length when it changed (`fdatasync`).
    fn sync_data(&self) -> io::Result<()>;

    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Cuts the file or extends it with zeros.
    fn set_len(&self, bytes: u64) -> io::Result<()>;

    /// Reserves blocks so that the first `bytes` of the file can be written without running out of space, and makes the
    /// file at least that long; new bytes read as zeros.
    fn preallocate(&self, bytes: u64) -> io::Result<()>;
}

/// The error of the calls that a full disk refuses.
pub(crate) fn disk_full(detail: String) -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, detail)
}

/// Reads exactly `bytes` at `offset`.
pub(crate) fn read_exact_at(file: &dyn DiskFile, bytes: usize, offset: u64) -> io::Result<Vec<u8>> {
    let mut buf = vec![0; bytes];
    let read = file.read_at(&mut buf, offset)?;
    if read < bytes {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("{read} of {bytes} bytes at {offset}"),
        ));
    }
    Ok(buf)
}

/// Joins a directory and a file name.
pub(crate) fn in_dir(dir: &Path, name: &str) -> PathBuf {
    dir.join(name)
}
