//! Free ports for whole clusters, shared fairly between test processes that run at the same time.
//!
//! A block is a thousand ports below the range that the kernel hands out to outgoing connections, held by a locked
//! file for as long as the [`PortBlock`] lives, however the process ends.

use std::fs::{File, OpenOptions};
use std::net::TcpListener;

use anyhow::{Context, Result, bail};

const FIRST: u16 = 20_000;
const LAST: u16 = 31_000;
const SIZE: u16 = 1_000;

/// A thousand ports that are ours.
#[derive(Debug)]
pub struct PortBlock {
    base: u16,
    _lock: File,
}

impl PortBlock {
    /// Takes a free block.
    ///
    /// # Errors
    /// When all are taken, or the lock files cannot be made.
    pub fn take() -> Result<PortBlock> {
        let dir = std::env::temp_dir().join("kvorum-test-ports");
        std::fs::create_dir_all(&dir).with_context(|| format!("{}", dir.display()))?;
        for base in (FIRST..=LAST).step_by(SIZE.into()) {
            let path = dir.join(base.to_string());
            let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
            let lock = lock.with_context(|| format!("{}", path.display()))?;
            if lock.try_lock().is_ok() && looks_free(base) {
                return Ok(PortBlock { base, _lock: lock });
            }
        }
        bail!("no free block of {SIZE} ports between {FIRST} and {LAST}")
    }

    /// The first of eight ports on which servers answer clients of Redis Sentinel: no test has as many servers as would need them.
    pub fn sentinel(&self) -> u16 {
        self.base + SIZE - 10
    }

    /// The first port.
    pub fn base(&self) -> u16 {
        self.base
    }
}

/// Whether nothing listens where the servers of a cluster would: the first ports of each hundred and the last ten.
fn looks_free(base: u16) -> bool {
    (0..SIZE)
        .filter(|offset| matches!(offset % 100, 0..=9 | 90..=99))
        .all(|offset| TcpListener::bind(("127.0.0.1", base + offset)).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_blocks_do_not_overlap_and_a_dropped_one_is_free_again() {
        let (a, b) = (PortBlock::take().unwrap(), PortBlock::take().unwrap());
        assert!(a.base().abs_diff(b.base()) >= SIZE);
    }
}
