//! Commands of clients whose server does not lead any more, run by the one that does.
//!
//! Who is connected to a leader knows no other place to go when it hands over: a client of a single Redis does not follow redirections. So its
//! server asks the new leader for it, batch by batch, until the client comes to rest and its connection is closed. Nothing is forwarded
//! twice: who gets a batch and does not lead refuses it, and the server that has the client looks for the leader anew.

use crate::batch::Batch;
use crate::contact::{Answer, Call};
use crate::node::Node;
use crate::shard::Shard;
use bytes::Bytes;
use futures::future::BoxFuture;
use kvorum_cluster::{ReplicaId, ShardId};
use kvorum_proto::admin::{self as rpc, forward_reply::Outcome};
use std::sync::Arc;
use std::time::Duration;

/// The most bytes of commands that are forwarded at once; a gRPC message takes 4 MiB.
const FORWARD_BYTES: usize = 2 << 20;

/// What is added to the time that a write may take: the way there and back.
const TRAVEL: Duration = Duration::from_secs(1);

/// Runs a batch that another server forwarded on a shard of this one, with replies in that version of RESP.
pub trait RunsForwarded: Send + Sync {
    /// Never tells that something did not run that may have.
    fn run(
        &self,
        shard: Shard,
        batch: Batch,
        protocol: u32,
    ) -> BoxFuture<'static, Result<ForwardedReplies, ForwardError>>;
}

/// All replies of a batch.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ForwardedReplies {
    /// In RESP.
    pub encoded: Bytes,
    /// How many there are.
    pub count: usize,
    /// Which of them are errors, and where in `encoded` those begin.
    pub errors: Vec<(usize, usize)>,
}

impl From<ForwardedReplies> for rpc::ForwardedReplies {
    fn from(replies: ForwardedReplies) -> rpc::ForwardedReplies {
        let (errors, error_starts) =
            replies.errors.into_iter().map(|(reply, start)| (reply as u32, start as u64)).unzip();
        let ForwardedReplies { encoded, count, .. } = replies;
        rpc::ForwardedReplies { encoded, count: count as u32, errors, error_starts }
    }
}

impl From<rpc::ForwardedReplies> for ForwardedReplies {
    fn from(replies: rpc::ForwardedReplies) -> ForwardedReplies {
        let starts =
            replies.error_starts.into_iter().map(|start| usize::try_from(start).unwrap_or(usize::MAX));
        let errors = replies.errors.into_iter().map(|reply| reply as usize).zip(starts).collect();
        ForwardedReplies { encoded: replies.encoded, count: replies.count as usize, errors }
    }
}

/// Why a forwarded batch has no replies.
#[derive(Debug)]
pub enum ForwardError {
    /// Definite: nothing of it ran, here it is again; look for the leader anew.
    NotLeader(Batch),
    /// Definite: it cannot be forwarded, for it is too large, or the other server is of a version that takes none.
    NotTaken(Batch),
    /// Definite: nothing of it ran, and this is the error of each of its commands.
    Refused(String),
    /// Indefinite.
    Unknown,
}

impl Node {
    /// From here on this server runs what others forward; the first one that is given.
    pub fn run_forwarded(&self, host: Arc<dyn RunsForwarded>) {
        let _ = self.0.host_of_guests.set(host);
    }

    /// Lets the leader of a shard run a batch for one database.
    ///
    /// # Errors
    /// See [`ForwardError`].
    pub async fn forward(
        &self,
        shard: ShardId,
        database: u16,
        protocol: u32,
        batch: Batch,
    ) -> Result<ForwardedReplies, ForwardError> {
        let Some(view) = self.view() else { return Err(ForwardError::NotLeader(batch)) };
        let leader = view.topology.shard(shard).and_then(|shard| view.leader(shard));
        let server = leader.and_then(|leader| view.topology.server(leader.server));
        let (Some(leader), Some(server)) = (leader, server) else {
            return Err(ForwardError::NotLeader(batch));
        };
        if Some(server.id) == self.server().server_id {
            return Err(ForwardError::NotLeader(batch));
        }
        if batch.size_bytes() > FORWARD_BYTES {
            return Err(ForwardError::NotTaken(batch));
        }
        let request = rpc::ForwardRequest {
            cluster_id: view.topology.cluster_id.clone(),
            shard: shard.0.into(),
            replica: leader.id.0,
            database: database.into(),
            protocol,
            untouching: !batch.touches(),
            commands: Bytes::copy_from_slice(batch.packed()),
        };
        let patience = self.config().write_timeout + TRAVEL;
        let answer =
            self.contact().call(server.id, &server.peer_addr(), Call::Forward(request), patience).await;
        match answer {
            Ok(Answer::Forward(reply)) => match reply.outcome {
                Some(Outcome::Replies(replies)) if replies.count as usize == batch.len() => {
                    Ok(replies.into())
                }
                Some(Outcome::NotLeader(_)) => Err(ForwardError::NotLeader(batch)),
                Some(Outcome::Refused(text)) => Err(ForwardError::Refused(text)),
                None => Err(ForwardError::NotTaken(batch)),
                Some(Outcome::Unknown(_) | Outcome::Replies(_)) => Err(ForwardError::Unknown),
            },
            // It may have arrived. Reads may run twice.
            _ if batch.writes() == 0 => Err(ForwardError::NotLeader(batch)),
            _ => Err(ForwardError::Unknown),
        }
    }

    /// Answers another server.
    pub(crate) async fn answer_forward(
        &self,
        request: rpc::ForwardRequest,
    ) -> Result<rpc::ForwardReply, String> {
        let not_leader = || rpc::ForwardReply { outcome: Some(Outcome::NotLeader(true)) };
        if self.server().cluster_id.as_deref() != Some(&*request.cluster_id) {
            return Ok(not_leader());
        }
        let shard = u16::try_from(request.shard).ok().and_then(|id| self.shard(ShardId(id)));
        let shard = shard.filter(|shard| shard.replica() == ReplicaId(request.replica));
        let (Some(shard), Some(host)) = (shard, self.0.host_of_guests.get()) else { return Ok(not_leader()) };
        let database = u16::try_from(request.database).map_err(|_| "no such database".to_owned())?;
        if self.view().is_none_or(|view| database >= view.topology.databases) {
            return Err("no such database".to_owned());
        }
        let mut batch = Batch::unpack(&request.commands, database).map_err(|error| error.to_string())?;
        batch.leave_untouched(request.untouching);
        let outcome = match host.run(shard, batch, request.protocol).await {
            Ok(replies) => Some(Outcome::Replies(replies.into())),
            Err(ForwardError::NotLeader(_)) => Some(Outcome::NotLeader(true)),
            Err(ForwardError::NotTaken(_)) => None,
            Err(ForwardError::Refused(text)) => Some(Outcome::Refused(text)),
            Err(ForwardError::Unknown) => Some(Outcome::Unknown(true)),
        };
        Ok(rpc::ForwardReply { outcome })
    }
}
