//! A write too large for one entry, while its chunks come in.
//!
//! Contract: a command is complete exactly when all of its chunks have come in order, in one term, and no chunk of another
//! one between them. Anything else is no fault of the log: a leader was deposed, or gave up.

use std::sync::Arc;

/// The chunks that have come so far.
#[derive(Clone, Debug)]
pub(super) struct Assembly {
    total: u64,
    /// Shared with snapshots, which are taken without copying.
    bytes: Arc<Vec<u8>>,
}

/// Room made at once for a command that begins: more only as more comes.
const FIRST_BYTES: u64 = 16 << 20;

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
            let room = usize::try_from(total.min(FIRST_BYTES)).unwrap_or(0);
            (total > 0).then(|| Assembly { total, bytes: Arc::new(Vec::with_capacity(room)) })?
        } else {
            so_far.filter(|assembly| assembly.total == total && assembly.len() == offset)?
        };
        Arc::make_mut(&mut assembly.bytes).extend_from_slice(bytes);
        Some(assembly)
    }

    /// Reads back what a snapshot has.
    pub(super) fn restored(total: u64, bytes: Vec<u8>) -> Assembly {
        Assembly { total, bytes: Arc::new(bytes) }
    }

    /// Length of the whole command.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// What has come so far.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The whole packed command of that length, if this is it.
    pub(super) fn complete(&self, total: u64) -> Option<&[u8]> {
        (self.total == total && self.len() == total).then_some(self.bytes())
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
}
