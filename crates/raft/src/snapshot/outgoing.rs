//! The sending end: a leader brings its snapshot to one replica.
//!
//! One chunk at a time, the next when the last was answered: the replica's disk sets the pace. After any error openraft begins
//! again, and the replica says how much it has.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use kvorum_proto::peer::{self, snapshot_reply::Reply, snapshot_request::Request};
use openraft::alias::VoteOf;

use super::{CHUNK_BYTES, SnapshotFile, SnapshotStore, blocking, format::salted_crc};
use crate::{
    runtime::Runtime,
    transport::{Link, LinkError},
    types::{Types, log_id_to_wire, vote_from_wire, vote_to_wire},
};
use openraft_rt::AsyncRuntime;

/// Longest wait for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// Pause before it is asked again whether the snapshot is installed.
const FINISH_PAUSE: Duration = Duration::from_millis(50);

/// Why a snapshot did not arrive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("refused: {0}")]
    Refused(String),
    #[error("cannot read the snapshot: {0}")]
    Read(std::io::Error),
}

/// Sends a snapshot to a replica of its group and waits until it is installed; returns the replica's vote.
pub(crate) async fn send(
    store: &Arc<SnapshotStore>,
    link: &dyn Link,
    to: u64,
    vote: &VoteOf<Types>,
    file: &Arc<SnapshotFile>,
) -> Result<VoteOf<Types>, SendError> {
    let transfer = Transfer { store, link, to, file };
    let result = transfer.run(vote).await;
    match &result {
        Ok(_) => store.note_sending(to, None),
        Err(SendError::Refused(_)) => transfer.check_own().await,
        Err(_) => {}
    }
    result
}

struct Transfer<'a> {
    store: &'a Arc<SnapshotStore>,
    link: &'a dyn Link,
    to: u64,
    file: &'a Arc<SnapshotFile>,
}

impl Transfer<'_> {
    async fn run(&self, vote: &VoteOf<Types>) -> Result<VoteOf<Types>, SendError> {
        let header = &self.file.header;
        let offer = peer::SnapshotOffer {
            vote: Some(vote_to_wire(vote)),
            last: Some(log_id_to_wire(&header.last)),
            id: header.id,
            length: self.file.bytes,
        };
        let mut reply = self.ask(Request::Offer(offer)).await?;
        // The replica may have less than it said before only after it was restarted; then the transfer begins anew.
        let mut least = 0;
        loop {
            reply = match reply {
                Reply::Installed(vote) | Reply::HigherVote(vote) => return Ok(vote_from_wire(vote)),
                Reply::Refused(reason) => return Err(SendError::Refused(reason)),
                Reply::Held(held) if held > self.file.bytes || held < least => {
                    return Err(SendError::Refused(format!("it has {held} bytes all of a sudden")));
                }
                Reply::Held(held) if held < self.file.bytes => {
                    least = held + 1;
                    let chunk = self.read(held).await?;
                    let bytes = chunk.content.len() as u64;
                    let reply = self.ask(Request::Chunk(chunk)).await?;
                    self.store.counters.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
                    reply
                }
                Reply::Held(_) => {
                    least = self.file.bytes + 1;
                    self.ask(Request::Finish(peer::SnapshotFinish { id: header.id })).await?
                }
                Reply::Installing(_) => {
                    Runtime::sleep(FINISH_PAUSE).await;
                    self.ask(Request::Finish(peer::SnapshotFinish { id: header.id })).await?
                }
            };
        }
    }

    async fn ask(&self, request: Request) -> Result<Reply, SendError> {
        self.store.note_sending(self.to, Some(self.file.header.last.index));
        let request =
            peer::SnapshotRequest { group: self.store.group(), to: self.to, request: Some(request) };
        let reply = self.link.snapshot(request, ANSWER_TIMEOUT).await?;
        reply.reply.ok_or_else(|| SendError::Refused("malformed reply".to_owned()))
    }

    async fn read(&self, offset: u64) -> Result<peer::SnapshotChunk, SendError> {
        let id = self.file.header.id;
        let left = self.file.bytes - offset;
        let bytes = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        let file = self.file.clone();
        let content = blocking(self.store.environment(), move || file.piece(offset, bytes)).await;
        let content = Bytes::from(content.map_err(SendError::Read)?);
        let crc = salted_crc(id, offset, &content);
        Ok(peer::SnapshotChunk { id, offset, content, crc })
    }

    /// The replica did not want it: perhaps it is damaged here, and there must be another.
    async fn check_own(&self) {
        let file = self.file.clone();
        let checked = blocking(self.store.environment(), move || file.verify()).await;
        if let Err(error) = checked {
            tracing::error!(group = self.store.group(), %error, "a snapshot that was to be sent is not intact; there will be another");
            self.store.note_damage();
        }
    }
}
