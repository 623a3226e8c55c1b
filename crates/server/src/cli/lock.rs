//! Makes sure that a directory belongs to one running process: a lock file held with `flock`, and a `pid` file.
//!
//! The kernel lets go of the lock when the process ends, however it ends, so a `pid` file that a crash left
//! behind is never in the way; it only names the holder in the message for the one who comes second.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// The directory is ours until this is dropped.
#[derive(Debug)]
pub(crate) struct DirLock {
    _file: File,
    pid_file: PathBuf,
}

/// Why a directory could not be taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    /// A running process has it.
    #[error("{} is in use by a running {what}{}", dir.display(), pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    Held {
        /// The directory.
        dir: PathBuf,
        /// What kind of process uses such directories.
        what: &'static str,
        /// The process, if its `pid` file says.
        pid: Option<u32>,
    },
    /// The directory or the files in it cannot be written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl DirLock {
    /// Creates `dir` if need be and takes it for this process, which is a `what` (for messages).
    pub(crate) fn take(dir: &Path, what: &'static str) -> Result<DirLock, LockError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| LockError::Io { path, source }
        };
        std::fs::create_dir_all(dir).map_err(at(dir))?;
        let lock_file = dir.join("lock");
        let pid_file = dir.join("pid");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_file)
            .map_err(at(&lock_file))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let pid = std::fs::read_to_string(&pid_file).ok().and_then(|pid| pid.trim().parse().ok());
                return Err(LockError::Held { dir: dir.to_owned(), what, pid });
            }
            Err(TryLockError::Error(e)) => return Err(at(&lock_file)(e)),
        }
        std::fs::write(&pid_file, format!("{}\n", std::process::id())).map_err(at(&pid_file))?;
        Ok(DirLock { _file: file, pid_file })
    }
}

impl Drop for DirLock {
    fn drop(&mut self) {
        // The lock file stays: removing it would let a second process lock a new one while a third waits here.
        let _ = std::fs::remove_file(&self.pid_file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_and_told_who_is_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = DirLock::take(dir.path(), "server").unwrap();
        let error = DirLock::take(dir.path(), "server").unwrap_err().to_string();
        assert_eq!(
            error,
            format!("{} is in use by a running server (pid {})", dir.path().display(), std::process::id())
        );
        drop(first);
        assert!(!dir.path().join("pid").exists());
        DirLock::take(dir.path(), "server").unwrap();
    }

    #[test]
    fn a_pid_file_left_by_a_crash_is_not_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("pid"), "1\n").unwrap();
        std::fs::write(dir.path().join("lock"), "").unwrap();
        let _lock = DirLock::take(dir.path(), "server").unwrap();
        let pid = std::fs::read_to_string(dir.path().join("pid")).unwrap();
        assert_eq!(pid.trim().parse(), Ok(std::process::id()));
    }
}
