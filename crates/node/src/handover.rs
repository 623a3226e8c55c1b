//! Planned handovers: the leadership of a shard goes to another replica because somebody asks for it, at any server.
//!
//! Raft's own transfer does it, so nothing acknowledged is lost and the outcome is safe whoever asks and how often. Only
//! the leader's server can begin one; other servers ask it.

use crate::contact::{Answer, Call};
use crate::node::Node;
use crate::shard::Shard;
use futures::FutureExt;
use futures::future::BoxFuture;
use kvorum_cluster::{ReplicaId, ServerId, ShardId};
use kvorum_proto::admin::{self as rpc, change_request::Change};
use kvorum_raft::{Role, Status, TransferError};
use std::time::Duration;
use tracing::{info, warn};

/// The leader's server has this long to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a shard was not handed over. Its texts travel between servers, so they stay.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HandoverError {
    /// There is no shard of that number.
    #[error("there is no such shard")]
    NoSuchShard,
    /// Nobody leads now: the replicas elect a leader.
    #[error("the shard has no leader now")]
    NoLeader,
    /// No other replica is heard and has enough of the log.
    #[error("no other replica can take over now")]
    NoHeir,
    /// The replica that was asked for is not heard, lags, or is no voter of the shard.
    #[error("that replica cannot take over now")]
    NotReady,
    /// One is on its way.
    #[error("the shard is being handed over already")]
    InProgress,
    /// It began, and the leadership did not go where it should.
    #[error("{0}")]
    Failed(String),
}

impl HandoverError {
    /// What another server means by its words.
    fn from_words(words: String) -> HandoverError {
        let known = [
            HandoverError::NoSuchShard,
            HandoverError::NoLeader,
            HandoverError::NoHeir,
            HandoverError::NotReady,
            HandoverError::InProgress,
        ];
        let meant = known.into_iter().find(|error| error.to_string() == words);
        meant.unwrap_or(HandoverError::Failed(words))
    }
}

impl Node {
    /// Hands the leadership of a shard to a replica; without one, to the follower that lags least of those that are heard.
    /// Can be asked of any server. Returns the replica, which leads then.
    ///
    /// # Errors
    /// See [`HandoverError`].
    pub async fn transfer(&self, shard: ShardId, to: Option<ReplicaId>) -> Result<ReplicaId, HandoverError> {
        let node = self.clone();
        // Not by the caller's task: who gives up waiting does not call it off.
        let transfer = self.0.handle.spawn(async move { node.transfer_by_leader(shard, to).await });
        transfer.await.unwrap_or_else(|error| Err(HandoverError::Failed(error.to_string())))
    }

    async fn transfer_by_leader(
        &self,
        id: ShardId,
        to: Option<ReplicaId>,
    ) -> Result<ReplicaId, HandoverError> {
        let view = self.view().ok_or(HandoverError::NoSuchShard)?;
        let spec = view.topology.shard(id).ok_or(HandoverError::NoSuchShard)?;
        if let Some(shard) = self.shard(id)
            && shard.status().role == Role::Leader
        {
            return self.transfer_here(&shard, to).await;
        }
        let leader = view.leader(spec).ok_or(HandoverError::NoLeader)?;
        let server = view.topology.server(leader.server).ok_or(HandoverError::NoLeader)?;
        if Some(server.id) == self.server().server_id {
            return Err(HandoverError::NoLeader);
        }
        let request = rpc::TransferRequest {
            shard: id.0.into(),
            to_replica: to.map_or(0, |to| to.0),
            cluster_id: view.topology.cluster_id.clone(),
        };
        let call = Call::Transfer(request);
        match self.contact().call(server.id, &server.peer_addr(), call, ASK_TIMEOUT).await {
            Ok(Answer::Transfer(reply)) => Ok(ReplicaId(reply.replica)),
            Ok(_) => Err(HandoverError::Failed("an answer to another question".to_owned())),
            Err(words) => Err(HandoverError::from_words(words)),
        }
    }

    /// Answers another server or an operator.
    pub(crate) async fn answer_transfer(
        &self,
        request: rpc::TransferRequest,
    ) -> Result<rpc::TransferReply, HandoverError> {
        let own = self.server().cluster_id;
        if !request.cluster_id.is_empty() && own.as_deref() != Some(&*request.cluster_id) {
            return Err(HandoverError::Failed("another cluster".to_owned()));
        }
        let id = u16::try_from(request.shard).map_err(|_| HandoverError::NoSuchShard)?;
        let shard = self.shard(ShardId(id)).ok_or(HandoverError::NoSuchShard)?;
        let to = (request.to_replica > 0).then_some(ReplicaId(request.to_replica));
        let replica = self.transfer_here(&shard, to).await?;
        Ok(rpc::TransferReply { replica: replica.0 })
    }

    /// The replicas that may take over from one that leads: voters on other servers, which are heard.
    fn heirs<'a>(&'a self, status: &'a Status, me: ReplicaId) -> impl Iterator<Item = u64> + 'a {
        status.voters.iter().copied().filter(move |replica| {
            let server = status.members.get(replica).map(|member| ServerId(member.server));
            *replica != me.0 && server.is_some_and(|server| self.heard_within(server, self.silence()))
        })
    }

    /// The one of them that has most of the log.
    pub(crate) fn heir(&self, status: &Status, me: ReplicaId) -> Option<u64> {
        self.heirs(status, me).max_by_key(|replica| status.matched.get(replica))
    }

    /// The same on the leader's server.
    async fn transfer_here(&self, shard: &Shard, to: Option<ReplicaId>) -> Result<ReplicaId, HandoverError> {
        let Some(_place) = self.0.handovers.begin(shard.id()) else { return Err(HandoverError::InProgress) };
        let status = shard.status();
        let me = shard.replica();
        if status.role != Role::Leader {
            return Err(HandoverError::NoLeader);
        }
        let target = match to {
            Some(to) if to == me => return Ok(me),
            Some(to) => {
                let fit = self.heirs(&status, me).any(|heir| heir == to.0);
                fit.then_some(to.0).ok_or(HandoverError::NotReady)?
            }
            None => self.heir(&status, me).ok_or(HandoverError::NoHeir)?,
        };
        match shard.group().transfer_leader(target).await {
            Ok(()) => {
                info!(shard = shard.id().0, target, "leadership handed over");
                self.environment().spawn(self.clone().prefer(shard.id(), ReplicaId(target)));
                Ok(ReplicaId(target))
            }
            Err(TransferError::Behind { .. } | TransferError::NotVoter { .. }) => {
                Err(if to.is_some() { HandoverError::NotReady } else { HandoverError::NoHeir })
            }
            Err(TransferError::NotLeader { .. }) => Err(HandoverError::NoLeader),
            Err(error) => Err(HandoverError::Failed(error.to_string())),
        }
    }

    /// Who was asked for by hand shall lead from now on, too, and not only until all has been well for a while.
    fn prefer(self, shard: ShardId, replica: ReplicaId) -> BoxFuture<'static, ()> {
        let prefer = rpc::Prefer { shard: shard.0.into(), replica: replica.0 };
        async move {
            if let Err(reason) = self.change(Change::Prefer(prefer)).await {
                warn!(
                    shard = shard.0,
                    replica = replica.0,
                    reason,
                    "leads now, and is not the preferred leader"
                );
            }
        }
        .boxed()
    }

    /// Whether a handover of the shard is on its way from this server.
    pub fn is_handing_over(&self, shard: ShardId) -> bool {
        self.0.handovers.0.lock().contains(&shard)
    }
}

/// Shards that are being handed over.
#[derive(Default)]
pub(crate) struct Handovers(parking_lot::Mutex<std::collections::BTreeSet<ShardId>>);

struct Begun<'a>(&'a Handovers, ShardId);

impl Handovers {
    fn begin(&self, shard: ShardId) -> Option<Begun<'_>> {
        // Made only when it is the first: its end takes the lock and forgets the shard.
        let is_first = self.0.lock().insert(shard);
        is_first.then(|| Begun(self, shard))
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.0.0.lock().remove(&self.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_another_server_mean_what_they_say() {
        for error in [
            HandoverError::NoSuchShard,
            HandoverError::NoLeader,
            HandoverError::NoHeir,
            HandoverError::NotReady,
            HandoverError::InProgress,
            HandoverError::Failed("the disk is on fire".to_owned()),
        ] {
            assert_eq!(HandoverError::from_words(error.to_string()), error);
        }
    }

    #[test]
    fn one_handover_of_a_shard_at_a_time() {
        let handovers = Handovers::default();
        let begun = handovers.begin(ShardId(1));
        assert!(begun.is_some() && handovers.begin(ShardId(1)).is_none());
        assert!(handovers.begin(ShardId(1)).is_none(), "one that was refused ends nothing");
        assert!(handovers.begin(ShardId(2)).is_some());
        drop(begun);
        assert!(handovers.begin(ShardId(1)).is_some());
    }
}
