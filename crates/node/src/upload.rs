//! Sends a write that is too large for one entry through the log in chunks, before the entry that runs it.
//!
//! Contract: an upload changes nothing that anybody sees. However it ends, the write did not run, so every error is
//! definite. One upload at a time for each shard: the chunks of another one would push its own out. Other entries go
//! between the chunks, so a large write does not hold up the shard.

use crate::batch::Batch;
use crate::checks::Checks;
use crate::proposer::{ReplySender, Submission, header};
use crate::replica::Replica;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use kvorum_cluster::{CHUNK_LEVEL, CHUNKED_BYTES_MAX, EntryBuilder};
use kvorum_raft::wal::Wal;
use kvorum_raft::{Environment, Group, Proposal, ProposeError};
use std::sync::Arc;
use std::time::Duration;

/// Chunks in flight: enough for one to be written while another travels.
const CHUNKS_IN_FLIGHT: usize = 2;

/// How often it is looked whether all servers are known to understand chunks.
const LEVEL_INTERVAL: Duration = Duration::from_millis(50);

/// Bytes of a chunk's entry beside the chunk, at most.
const OVERHEAD_BYTES: usize = 64;

/// What an upload works with.
#[derive(Clone)]
pub(crate) struct Uploader {
    pub(crate) group: Group,
    pub(crate) replica: Arc<Replica>,
    pub(crate) wal: Wal,
    pub(crate) environment: Environment,
    pub(crate) checks: Arc<Checks>,
    /// When the replica was opened.
    pub(crate) since: Duration,
    pub(crate) chunk_bytes: usize,
    /// How long a chunk may be without an outcome.
    pub(crate) patience: Duration,
}

/// Why a write was not uploaded. It did not run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum UploadError {
    /// This replica does not lead, or no majority answers.
    NotLeader,
    /// It is larger than anything may be.
    TooLarge,
    /// Not all servers understand chunks.
    NotSupported,
    /// The disk is nearly full.
    NoSpace,
    /// Nobody waits for it any more.
    Unwanted,
}

impl Uploader {
    /// Uploads the large write of a submission. When this is done all of it is committed.
    pub(crate) async fn run(self, submission: Submission) -> (Submission, Result<(), UploadError>) {
        let result = self.upload(&submission.batch, &submission.reply).await;
        if matches!(result, Err(UploadError::NoSpace | UploadError::Unwanted)) {
            // The replicas need not keep what has come.
            let _ = self.propose(|entry| _ = entry.chunk(0, 0, &[])).await;
        }
        (submission, result)
    }

    async fn upload(&self, batch: &Batch, reply: &ReplySender) -> Result<(), UploadError> {
        let Some(item) = batch.large(self.chunk_bytes) else { return Ok(()) };
        let total = item.packed.len() as u64;
        if total > CHUNKED_BYTES_MAX {
            return Err(UploadError::TooLarge);
        }
        let term = self.term().ok_or(UploadError::NotLeader)?;
        self.all_know_chunks().await?;
        let mut in_flight: FuturesUnordered<Proposal> = FuturesUnordered::new();
        let mut chunks = item.packed.chunks(self.chunk_bytes);
        let mut offset = 0;
        loop {
            if reply.is_closed() {
                return Err(UploadError::Unwanted);
            }
            while in_flight.len() < CHUNKS_IN_FLIGHT
                && let Some(chunk) = chunks.next()
            {
                if self.term() != Some(term) {
                    return Err(UploadError::NotLeader);
                }
                self.wal.admit(total - offset).map_err(|_| UploadError::NoSpace)?;
                in_flight.push(self.propose(|entry| _ = entry.chunk(offset, total, chunk)).await?);
                offset += chunk.len() as u64;
            }
            match tokio::time::timeout(self.patience, in_flight.next()).await {
                Ok(None) => return Ok(()),
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(_))) | Err(_) => return Err(UploadError::NotLeader),
            }
        }
    }

    /// The term that this replica leads.
    fn term(&self) -> Option<u64> {
        let status = self.group.status();
        let status = status.borrow();
        (status.ready && self.replica.is_configured()).then_some(status.term)
    }

    /// A leader that is new may not have heard of all servers yet.
    async fn all_know_chunks(&self) -> Result<(), UploadError> {
        loop {
            let up = self.environment.now().saturating_sub(self.since);
            let may = self.checks.may_propose(&self.group.status().borrow(), CHUNK_LEVEL, up);
            match may {
                Some(true) => return Ok(()),
                Some(false) => return Err(UploadError::NotSupported),
                None => tokio::time::sleep(LEVEL_INTERVAL).await,
            }
        }
    }

    async fn propose(&self, fill: impl FnOnce(&mut EntryBuilder)) -> Result<Proposal, UploadError> {
        let header = header(&self.replica, &self.environment);
        let mut entry = EntryBuilder::with_capacity(header, self.chunk_bytes + OVERHEAD_BYTES);
        fill(&mut entry);
        self.group.propose(entry.finish().into(), None).await.map_err(|error| match error {
            ProposeError::TooLarge { .. } => UploadError::TooLarge,
            ProposeError::NotLeader { .. } | ProposeError::Lost => UploadError::NotLeader,
        })
    }
}
