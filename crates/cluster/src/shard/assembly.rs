//! A write too large for one entry, while its chunks come in.
//!
//! Contract: a command is complete exactly when all of its chunks have come in order, in one term, and no chunk of another
//! one between them. Anything else is no fault of the log: a leader was deposed, or gave up.

use std::sync::Arc;

/// The chunks that have come so far.
#[derive(Clone, Debug)]
pub(super) struct Assembly {
    total: u64,
    len: u64,
    /// Apart, so that nothing is moved when more come; shared with snapshots, which are taken without copying.
    chunks: Vec<Arc<[u8]>>,
}

impl Assembly {
    /// What becomes of the chunks so far when this one follows. A chunk that does not go on where they end leaves nothing.
    pub(super) fn follow(
        so_far: Option<Assembly>,
        offset: u64,
        total: u64,
        bytes: &[u8],
    ) -> Option<Assembly> {
        let mut assembly = if offset == 0 {
            // A command without bytes gives up the one before.
            (total > 0).then(|| Assembly::new(total))?
        } else {
            so_far.filter(|assembly| assembly.total == total && assembly.len == offset)?
        };
        assembly.push(bytes);
        Some(assembly)
    }

    /// A command of this length that has not come yet.
    pub(super) fn new(total: u64) -> Assembly {
        Assembly { total, len: 0, chunks: Vec::new() }
    }

    /// Takes the next bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.len += bytes.len() as u64;
        self.chunks.push(bytes.into());
    }

    /// Length of the whole command.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Length of what has come so far.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// What has come so far.
    pub(super) fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        self.chunks.iter().map(|chunk| &**chunk)
    }

    /// The whole packed command, if it has that length and all of it has come.
    pub(super) fn complete(&self, total: u64) -> Option<Vec<u8>> {
        (self.total == total && self.len == total).then(|| self.chunks.concat())
    }
}
