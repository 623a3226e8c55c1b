//! The receiving end: takes a leader's snapshot in, piece by piece, checks it and has it installed.
//!
//! Requests may come twice, late, or from a leader that was deposed; each is checked against what is here and answered with what is
//! here. One snapshot at a time; another offer takes its place. What was received survives a restart and a change of
//! connection. Everything in a request is a stranger's claim until the file has proven it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use kvorum_proto::{
    peer::{self, snapshot_reply::Reply, snapshot_request::Request},
    raft as wire,
};
use openraft::{
    alias::{LogIdOf, SnapshotOf, VoteOf},
    async_runtime::WatchReceiver,
};
use tokio::sync::{Mutex, watch};

use super::{
    CHUNK_BYTES_MAX, SnapshotData, SnapshotFile, SnapshotStore, blocking,
    format::{is_wrong, salted_crc},
    store::Partial,
};
use crate::{
    clock::Environment,
    group::Raft,
    types::{Types, log_id_from_wire, vote_from_wire, vote_to_wire},
};

/// How long a request to finish waits for the end before it is answered that this is under way.
const FINISH_WAIT: Duration = Duration::from_millis(500);

/// The receiving end of one replica.
pub(crate) struct Receiver {
    store: Arc<SnapshotStore>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    partial: Option<Partial>,
    /// Vote of the leader that made the offer, for the partial of this run.
    vote: Option<VoteOf<Types>>,
    installing: Option<Installing>,
}

struct Installing {
    id: u64,
    outcome: watch::Receiver<Option<Outcome>>,
}

/// The vote of this replica, or why the snapshot was not installed.
type Outcome = Result<wire::Vote, Arc<str>>;

impl Receiver {
    pub(super) fn new(store: Arc<SnapshotStore>, partial: Option<Partial>) -> Receiver {
        Receiver { store, state: Mutex::new(State { partial, ..State::default() }) }
    }

    pub(crate) fn environment(&self) -> &Environment {
        self.store.environment()
    }

    /// Removes what was received of a snapshot that is no use any more: the replica has come as far by its log.
    pub(super) async fn tidy(&self) {
        let mut state = self.state.lock().await;
        let applied_next = self.store.applied_next();
        if let Some(partial) = state.partial.take_if(|partial| partial.last.index < applied_next) {
            let store = self.store.clone();
            blocking(self.store.environment(), move || store.remove_partial(&partial)).await;
        }
    }

    /// Answers a request of a leader. To be awaited to its end.
    pub(crate) async fn answer(&self, raft: &Raft, request: Request) -> peer::SnapshotReply {
        let reply = match request {
            Request::Offer(offer) => self.offer(raft, offer).await,
            Request::Chunk(chunk) => self.chunk(chunk).await,
            Request::Finish(finish) => self.finish(raft, finish.id).await,
        };
        peer::SnapshotReply { reply: Some(reply.unwrap_or_else(Reply::Refused)) }
    }

    async fn offer(&self, raft: &Raft, offer: peer::SnapshotOffer) -> Result<Reply, String> {
        let peer::SnapshotOffer { vote: Some(vote), last: Some(last), id, length } = offer else {
            return Err("malformed offer".to_owned());
        };
        let (vote, last) = (vote_from_wire(vote), log_id_from_wire(last));
        let mut state = self.state.lock().await;
        if let Some(reply) = judge(raft, &vote, last)? {
            return Ok(reply);
        }
        if !SnapshotStore::is_plausible(length) {
            return Err(format!("no snapshot has {length} bytes"));
        }
        if let Some(installing) = &state.installing {
            if installing.outcome.borrow().is_none() {
                return if installing.id == id {
                    Ok(Reply::Installing(true))
                } else {
                    Err("another snapshot is being installed".to_owned())
                };
            }
            state.installing = None;
        }
        let held = match &mut state.partial {
            Some(partial) if (partial.id, partial.last) == (id, last) && partial.held <= length => {
                partial.length = length;
                partial.held
            }
            _ => {
                let (store, old) = (self.store.clone(), state.partial.take());
                let begun =
                    blocking(self.store.environment(), move || store.begin_partial(old, last, id, length));
                state.partial = Some(begun.await.map_err(|error| error.to_string())?);
                0
            }
        };
        state.vote = Some(vote);
        Ok(Reply::Held(held))
    }

    async fn chunk(&self, chunk: peer::SnapshotChunk) -> Result<Reply, String> {
        let peer::SnapshotChunk { id, offset, content, crc } = chunk;
        if content.len() > CHUNK_BYTES_MAX {
            return Err(format!("{} bytes in one chunk", content.len()));
        }
        if is_wrong(salted_crc(id, offset, &content) != crc) {
            return Err("the chunk does not have its checksum".to_owned());
        }
        let mut state = self.state.lock().await;
        let offered = state.vote.is_some();
        let Some(partial) = state.partial.take_if(|partial| offered && partial.id == id) else {
            return Err("this snapshot was not offered".to_owned());
        };
        // One that comes again, or too early, changes nothing: the answer says where to go on.
        if offset != partial.held || partial.held + content.len() as u64 > partial.length {
            let held = partial.held;
            state.partial = Some(partial);
            return if offset == held {
                Err("more bytes than were offered".to_owned())
            } else {
                Ok(Reply::Held(held))
            };
        }
        let (partial, result) = append(&self.store, partial, content).await;
        let held = partial.held;
        state.partial = Some(partial);
        result.map_err(|error| error.to_string())?;
        self.store.counters.received_bytes.fetch_add(held - offset, std::sync::atomic::Ordering::Relaxed);
        Ok(Reply::Held(held))
    }

    async fn finish(&self, raft: &Raft, id: u64) -> Result<Reply, String> {
        let mut outcome = {
            let mut state = self.state.lock().await;
            match &state.installing {
                Some(installing) if installing.id == id => installing.outcome.clone(),
                Some(installing) if installing.outcome.borrow().is_none() => {
                    return Err("another snapshot is being installed".to_owned());
                }
                _ => self.begin_install(&mut state, raft, id)?,
            }
        };
        let ended = outcome.wait_for(Option::is_some);
        match tokio::time::timeout(FINISH_WAIT, ended).await {
            Ok(Ok(outcome)) => match &*outcome {
                Some(Ok(vote)) => Ok(Reply::Installed(*vote)),
                Some(Err(reason)) => Err(reason.to_string()),
                None => Ok(Reply::Installing(true)),
            },
            Ok(Err(_)) => Err("the installation was broken off".to_owned()),
            Err(_) => Ok(Reply::Installing(true)),
        }
    }

    /// Installs what was received, in the background.
    fn begin_install(
        &self,
        state: &mut State,
        raft: &Raft,
        id: u64,
    ) -> Result<watch::Receiver<Option<Outcome>>, String> {
        let vote = state.vote.ok_or("this snapshot was not offered")?;
        let whole = |partial: &mut Partial| partial.id == id && partial.held == partial.length;
        let Some(partial) = state.partial.take_if(whole) else {
            return Err("this snapshot is not whole".to_owned());
        };
        let (sender, outcome) = watch::channel(None);
        state.installing = Some(Installing { id, outcome: outcome.clone() });
        let (store, raft) = (self.store.clone(), raft.clone());
        let environment = store.environment().clone();
        environment.spawn(environment.run(id, async move {
            let result = install(store, raft, vote, partial).await;
            sender.send_replace(Some(result.map_err(Arc::from)));
        }));
        Ok(outcome)
    }
}

async fn append(
    store: &SnapshotStore,
    mut partial: Partial,
    content: Bytes,
) -> (Partial, std::io::Result<()>) {
    blocking(store.environment(), move || {
        let result = partial.append(&content);
        (partial, result)
    })
    .await
}

/// What can be said of a snapshot before any of it is here; none when it is welcome.
fn judge(raft: &Raft, vote: &VoteOf<Types>, last: LogIdOf<Types>) -> Result<Option<Reply>, String> {
    // openraft takes these for bugs of its own and stops the replica, which a peer must not be able to do.
    if !vote.committed {
        return Err("only a leader may send a snapshot".to_owned());
    }
    if last.leader_id.term > vote.leader_id.term {
        return Err("the snapshot is newer than its leader".to_owned());
    }
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let here = metrics.vote;
    if here == *vote && metrics.current_leader == Some(metrics.id) {
        return Err("this replica is the leader".to_owned());
    }
    if here.partial_cmp(vote).is_none_or(|order| order.is_gt()) {
        return Ok(Some(Reply::HigherVote(vote_to_wire(&here))));
    }
    let known = metrics.local_committed.max(metrics.last_applied);
    match known {
        // It is no use: what is in it is here.
        Some(known) if last <= known => Ok(Some(Reply::Installed(vote_to_wire(&here)))),
        Some(known) if last.index <= known.index => {
            Err("the snapshot contradicts what is committed".to_owned())
        }
        _ => Ok(None),
    }
}

async fn install(
    store: Arc<SnapshotStore>,
    raft: Raft,
    vote: VoteOf<Types>,
    partial: Partial,
) -> Result<wire::Vote, String> {
    let checking = store.clone();
    let checked = blocking(store.environment(), move || {
        // One that is damaged has to be sent again from the begin.
        checking.complete_partial(&partial).inspect_err(|_| checking.remove_partial(&partial))
    });
    let file: Arc<SnapshotFile> = checked.await.map_err(|error| error.to_string())?;
    // The replica has gone on while the snapshot came.
    if let Some(reply) = judge(&raft, &vote, file.header.last)? {
        store.remove_received(&file);
        return match reply {
            Reply::Installed(vote) => Ok(vote),
            _ => Err("the leader was deposed".to_owned()),
        };
    }
    let snapshot = SnapshotOf::<Types, SnapshotData> {
        meta: file.header.meta(),
        snapshot: SnapshotData(Some(file.clone())),
    };
    let response = raft.install_full_snapshot(vote, snapshot).await;
    // When openraft had no use for it, it still lies there.
    store.remove_received(&file);
    Ok(vote_to_wire(&response.map_err(|fatal| fatal.to_string())?.vote))
}
