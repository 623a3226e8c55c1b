//! openraft's network: one client per member of a group, over the [`Transport`]'s links.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, Stream, StreamExt};
use kvorum_proto::peer::{self, control_reply::Reply, control_request::Request};
use openraft::{
    OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2,
    alias::{SnapshotOf, VoteOf},
    base::{BoxFuture, BoxStream},
    errors::{RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable},
    network::{Backoff, RPCOption, stream_append_sequential},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
        TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};

use crate::{
    lease::Lease,
    snapshot::{SendError, SnapshotData, SnapshotStore, send},
    transport::{Append, Link, LinkError, Transport},
    types::{
        Member, Types, append_result_from_wire, append_to_wire, transfer_to_wire, vote_reply_from_wire,
        vote_request_to_wire,
    },
};

/// Requests of one stream in flight.
const PIPELINE: usize = 64;

/// Pause after a failed replication before it is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Longest wait for the reply to one append. A follower whose disk stalls is not given up before that; a dead
/// connection is noticed by the transport much earlier.
const APPEND_TIMEOUT: Duration = Duration::from_secs(5);

/// Makes clients for the members of one group.
pub(crate) struct Network {
    pub(crate) group: u64,
    pub(crate) me: u64,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) lease: Arc<Lease>,
    pub(crate) snapshots: Arc<SnapshotStore>,
    /// Numbers the streams of this group.
    pub(crate) streams: Arc<AtomicU64>,
}

impl Network {
    fn client(&self, target: u64, member: &Member, heartbeats: bool) -> Client {
        Client {
            group: self.group,
            me: self.me,
            target,
            link: self.transport.link(member.server, &member.addr),
            lease: self.lease.clone(),
            snapshots: self.snapshots.clone(),
            streams: self.streams.clone(),
            heartbeats,
        }
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, member: &Member) -> Client {
        self.client(target, member, false)
    }

    async fn new_heartbeat_client(&mut self, target: u64, member: &Member) -> Client {
        self.client(target, member, true)
    }
}

/// Talks to one member.
pub(crate) struct Client {
    group: u64,
    me: u64,
    target: u64,
    link: Arc<dyn Link>,
    lease: Arc<Lease>,
    snapshots: Arc<SnapshotStore>,
    streams: Arc<AtomicU64>,
    /// Appends are heartbeats and go the control way.
    heartbeats: bool,
}

impl Client {
    async fn control(
        &self,
        action: RPCTypes,
        request: Request,
        option: &RPCOption,
    ) -> Result<Reply, RPCError<Types>> {
        let request = peer::ControlRequest { group: self.group, to: self.target, request: Some(request) };
        let reply = self.link.control(request, option.hard_ttl()).await;
        let reply = reply.map_err(|error| rpc_error(action, self.me, self.target, error))?;
        match reply.reply {
            Some(Reply::Silent(reason)) => Err(unreachable_peer(reason)),
            Some(reply) => Ok(reply),
            None => Err(unreachable_peer("malformed control reply")),
        }
    }
}

fn rpc_error(action: RPCTypes, id: u64, target: u64, error: LinkError) -> RPCError<Types> {
    match error {
        LinkError::Unreachable(reason) => unreachable_peer(reason),
        LinkError::TimedOut(timeout) => RPCError::Timeout(Timeout { action, id, target, timeout }),
    }
}

fn unreachable_peer(reason: impl ToString) -> RPCError<Types> {
    RPCError::Unreachable(Unreachable::from_string(reason))
}

fn mismatched() -> RPCError<Types> {
    unreachable_peer("the reply is to another question")
}

impl RaftNetworkV2<Types> for Client {
    type SnapshotData = SnapshotData;

    /// Only for heartbeats; entries go through [`Client::stream_append`].
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let request = Request::Heartbeat(append_to_wire(request));
        let Reply::Heartbeat(reply) = self.control(RPCTypes::AppendEntries, request, &option).await? else {
            return Err(mismatched());
        };
        Ok(append_result_from_wire(reply).map_err(unreachable_peer)?.into())
    }

    fn stream_append<'s, S>(
        &'s mut self,
        requests: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>, RPCError<Types>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        if self.heartbeats {
            return stream_append_sequential(self, requests, option);
        }
        let (group, me, to) = (self.group, self.me, self.target);
        let stream = self.streams.fetch_add(1, Ordering::Relaxed);
        let link = self.link.clone();
        let replies = requests
            // Queued one after the other, which keeps their order; answered many at a time.
            .then(move |request| {
                let append = Append { group, to, stream, request: append_to_wire(request) };
                let link = link.clone();
                async move { link.append(append).await }
            })
            .map(move |queued| async move {
                let reply = match queued {
                    Ok(reply) => tokio::time::timeout(APPEND_TIMEOUT, reply)
                        .await
                        .unwrap_or(Err(LinkError::TimedOut(APPEND_TIMEOUT))),
                    Err(error) => Err(error),
                };
                let reply = reply.map_err(|error| rpc_error(RPCTypes::AppendEntries, me, to, error))?;
                append_result_from_wire(reply).map_err(unreachable_peer)
            })
            .buffered(PIPELINE);
        async move { Ok(replies.boxed()) }.boxed()
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let request = Request::Vote(vote_request_to_wire(&request));
        let Reply::Vote(reply) = self.control(RPCTypes::Vote, request, &option).await? else {
            return Err(mismatched());
        };
        vote_reply_from_wire(reply).map_err(unreachable_peer)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let request = Request::PreVote(vote_request_to_wire(&request));
        let Reply::PreVote(reply) = self.control(RPCTypes::Vote, request, &option).await? else {
            return Err(mismatched());
        };
        vote_reply_from_wire(reply).map_err(unreachable_peer)
    }

    /// Errors make openraft begin again, with the newest snapshot; the replica knows how much of it it has.
    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Types>,
        snapshot: SnapshotOf<Types, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let unreachable = |reason: String| StreamingError::Unreachable(Unreachable::from_string(reason));
        let SnapshotData(Some(file)) = snapshot.snapshot else {
            return Err(unreachable("there is no snapshot to send".to_owned()));
        };
        let sending = send(&self.snapshots, &*self.link, self.target, &vote, &file);
        let result = tokio::select! {
            biased;
            closed = cancel => return Err(StreamingError::Closed(closed)),
            result = sending => result,
        };
        match result {
            Ok(vote) => Ok(SnapshotResponse::new(vote)),
            Err(error) => {
                if let SendError::Refused(_) | SendError::Read(_) = error {
                    tracing::warn!(group = self.group, to = self.target, %error, "a snapshot was not installed");
                }
                Err(unreachable(error.to_string()))
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        // Rule 2 of the lease, at the one place that every transfer passes.
        self.lease.give_up(request.from_leader().leader_id.term);
        let message = Request::Transfer(transfer_to_wire(&request));
        let Reply::Transfer(reply) = self.control(RPCTypes::TransferLeader, message, &option).await? else {
            return Err(mismatched());
        };
        if reply.refused.is_empty() {
            return Ok(Ok(()));
        }
        // openraft only logs the outcome, so the reason matters and its type does not.
        tracing::info!(group = self.group, to = self.target, reason = reply.refused, "transfer refused");
        Ok(Err(TransferLeaderError::LogNotFlushed { expected: request.last_log_id().copied(), actual: None }))
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(RETRY_PAUSE)))
    }
}
