//! openraft's network: one client per member of a group, over the [`Transport`]'s links.

use std::{
    future::Future,
    pin::Pin,
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
        Member, Types, append_result_from_wire, append_to_wire, ballot, transfer_to_wire,
        vote_reply_from_wire, vote_request_to_wire,
    },
};

/// Requests of one stream in flight.
const PIPELINE: usize = 64;

/// Pause after a failed replication before it is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Longest wait for the reply to one append. A follower whose disk stalls is not given up before that; a dead
/// connection is noticed by the transport much earlier.
const APPEND_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the news that entries are committed waits for entries that it can travel with. Whoever needs it sooner asks the leader.
const COMMIT_HOLD: Duration = Duration::from_millis(5);

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
    fn path(&self, stream: u64) -> Path {
        let (link, lease) = (self.link.clone(), self.lease.clone());
        Path { group: self.group, me: self.me, to: self.target, stream, link, lease }
    }

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

/// Where the appends of one stream go.
struct Path {
    group: u64,
    me: u64,
    to: u64,
    stream: u64,
    link: Arc<dyn Link>,
    lease: Arc<Lease>,
}

/// Sends requests and brings their replies in order.
fn replicate<S>(
    requests: S,
    path: Path,
) -> impl Stream<Item = Result<StreamAppendResult<Types>, RPCError<Types>>> + Send
where
    S: Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin,
{
    let Path { group, me, to, stream, link, lease } = path;
    hold_commits(requests)
        // Queued one after the other, which keeps their order; answered many at a time.
        .then(move |request| {
            let sent = Sent::now(&lease, to, &request);
            let append = Append { group, to, stream, request: append_to_wire(request) };
            let link = link.clone();
            async move { (sent, link.append(append).await) }
        })
        .map(move |(sent, queued)| async move {
            let reply = match queued {
                Ok(reply) => tokio::time::timeout(APPEND_TIMEOUT, reply)
                    .await
                    .unwrap_or(Err(LinkError::TimedOut(APPEND_TIMEOUT))),
                Err(error) => Err(error),
            };
            let reply = reply.map_err(|error| rpc_error(RPCTypes::AppendEntries, me, to, error))?;
            let result = append_result_from_wire(reply).map_err(unreachable_peer)?;
            sent.answered(&result);
            Ok(result)
        })
        .buffered(PIPELINE)
}

/// When a request that may renew the lease was sent, and to whom.
struct Sent {
    lease: Arc<Lease>,
    at: Duration,
    term: u64,
    to: u64,
}

impl Sent {
    /// The request is about to be sent.
    fn now(lease: &Arc<Lease>, to: u64, request: &AppendEntriesRequest<Types>) -> Sent {
        Sent { at: lease.now(), term: ballot(&request.vote).term, to, lease: lease.clone() }
    }

    /// The reply to this very request is here.
    fn answered(self, result: &StreamAppendResult<Types>) {
        // A conflict acknowledges the leader, too, but a follower that has one is not worth a lease.
        if result.is_ok() {
            self.lease.acknowledged(self.term, self.to, self.at);
        }
    }
}

/// Passes requests on, but those that only tell of a commit [wait](COMMIT_HOLD) for entries to come, and are dropped when there are some:
/// every request tells of the newest commit. Under load followers get, and answer, half as many requests. openraft takes
/// a reply as one to everything up to its position, and so misses none.
fn hold_commits<S>(requests: S) -> impl Stream<Item = AppendEntriesRequest<Types>> + Send
where
    S: Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin,
{
    struct Holding<S> {
        requests: S,
        held: Option<AppendEntriesRequest<Types>>,
        /// Ends when what is held has to go. Made anew only when it has ended, for each one costs the runtime a wake-up.
        hold: Option<Pin<Box<tokio::time::Sleep>>>,
    }
    let holding = Holding { requests: requests.fuse(), held: None, hold: None };
    futures::stream::unfold(holding, |mut holding| async move {
        loop {
            let Holding { requests, held, hold } = &mut holding;
            tokio::select! {
                biased;
                request = requests.next() => match request {
                    Some(request) if request.entries.is_empty() => {
                        *held = Some(request);
                        hold.get_or_insert_with(|| Box::pin(tokio::time::sleep(COMMIT_HOLD)));
                    }
                    Some(request) => {
                        *held = None;
                        return Some((request, holding));
                    }
                    // The last one is a question that openraft wants answered before it sends more.
                    None => return held.take().map(|request| (request, holding)),
                },
                () = async { match hold { Some(hold) => hold.as_mut().await, None => std::future::pending().await } } => {
                    *hold = None;
                    if let Some(request) = held.take() {
                        return Some((request, holding));
                    }
                }
            }
        }
    })
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
        let sent = Sent::now(&self.lease, self.target, &request);
        let request = Request::Heartbeat(append_to_wire(request));
        let Reply::Heartbeat(reply) = self.control(RPCTypes::AppendEntries, request, &option).await? else {
            return Err(mismatched());
        };
        let result = append_result_from_wire(reply).map_err(unreachable_peer)?;
        sent.answered(&result);
        Ok(result.into())
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
        let stream = self.streams.fetch_add(1, Ordering::Relaxed);
        let replies = replicate(requests, self.path(stream));
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use kvorum_proto::raft as wire;
    use parking_lot::Mutex;
    use tokio::sync::{mpsc, oneshot};
    use tokio_stream::wrappers::UnboundedReceiverStream;

    use super::*;
    use crate::{
        clock::{Environment, TokioClock},
        lease::{Ballot, Standing},
        transport::PendingReply,
        types::{append_result_to_wire, log_id, vote_from_wire},
    };

    const LEADER: Ballot = Ballot { term: 5, replica: 1, committed: true };

    /// Entries up to `last` when there are any; with `committed`.
    fn request(entries: std::ops::RangeInclusive<u64>, committed: u64) -> AppendEntriesRequest<Types> {
        let blank =
            |index| openraft::Entry { log_id: log_id(5, index), payload: openraft::EntryPayload::Blank };
        AppendEntriesRequest {
            vote: vote_from_wire(wire::Vote { term: 5, replica: 1, committed: true }),
            prev_log_id: Some(log_id(5, entries.start() - 1)),
            entries: entries.map(blank).collect(),
            leader_commit: Some(log_id(5, committed)),
        }
    }

    /// Tells of a commit only.
    fn commit(last: u64, committed: u64) -> AppendEntriesRequest<Types> {
        request(last + 1..=last, committed)
    }

    fn committed(request: Option<AppendEntriesRequest<Types>>) -> Option<u64> {
        request.map(|request| request.leader_commit.unwrap().index)
    }

    #[tokio::test(start_paused = true)]
    async fn news_of_a_commit_travels_with_entries_when_some_come_soon_and_alone_otherwise() {
        let (send, requests) = mpsc::unbounded_channel();
        let mut passed = std::pin::pin!(hold_commits(UnboundedReceiverStream::new(requests)));
        let begin = tokio::time::Instant::now();
        send.send(request(1..=1, 0)).unwrap();
        assert_eq!(committed(passed.next().await), Some(0));
        // Two of them, then entries.
        send.send(commit(1, 1)).unwrap();
        send.send(commit(1, 2)).unwrap();
        send.send(request(2..=3, 3)).unwrap();
        assert_eq!(committed(passed.next().await), Some(3));
        assert_eq!(begin.elapsed(), Duration::ZERO);
        // The newest of those that were held goes alone.
        send.send(commit(3, 4)).unwrap();
        send.send(commit(3, 5)).unwrap();
        assert_eq!(committed(passed.next().await), Some(5));
        assert!(begin.elapsed() >= COMMIT_HOLD && begin.elapsed() < COMMIT_HOLD * 3);
        // Nothing was left behind.
        send.send(request(4..=4, 6)).unwrap();
        assert_eq!(committed(passed.next().await), Some(6));
        // The last one of a stream does not wait.
        let before = tokio::time::Instant::now();
        send.send(commit(4, 7)).unwrap();
        drop(send);
        assert_eq!(committed(passed.next().await), Some(7));
        assert_eq!(committed(passed.next().await), None);
        assert_eq!(before.elapsed(), Duration::ZERO);
    }

    /// A peer that answers when it is told to.
    #[derive(Default)]
    struct Peer(Mutex<VecDeque<(wire::AppendRequest, oneshot::Sender<wire::AppendReply>)>>);

    impl Peer {
        /// Answers the request that has waited longest: everything up to `last` is there.
        fn answer(&self, last: u64) {
            let (_, reply) = self.0.lock().pop_front().expect("a request");
            let _ = reply.send(append_result_to_wire(Ok(Some(log_id(5, last)))));
        }

        async fn has(&self, requests: usize) {
            while self.0.lock().len() < requests {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    impl Link for Peer {
        fn control(
            &self,
            _: peer::ControlRequest,
            _: Duration,
        ) -> futures::future::BoxFuture<'static, Result<peer::ControlReply, LinkError>> {
            std::future::pending().boxed()
        }

        fn append(&self, append: Append) -> futures::future::BoxFuture<'_, Result<PendingReply, LinkError>> {
            let (sender, receiver) = oneshot::channel();
            self.0.lock().push_back((append.request, sender));
            async { Ok(PendingReply::new(receiver, None)) }.boxed()
        }

        fn snapshot(
            &self,
            _: peer::SnapshotRequest,
            _: Duration,
        ) -> futures::future::BoxFuture<'static, Result<peer::SnapshotReply, LinkError>> {
            std::future::pending().boxed()
        }
    }

    /// The reply to an append says the same as one to the empty request behind it. It must not renew the lease from when that was sent:
    /// the follower had not heard of it.
    #[tokio::test(start_paused = true)]
    async fn a_reply_renews_the_lease_from_when_its_own_request_was_sent() {
        let environment = Environment::simulated(Arc::new(TokioClock::new()), 1);
        let lease = Arc::new(Lease::new(1, Duration::from_millis(600), environment));
        lease.vote_saved(LEADER);
        let voters = Arc::new(vec![vec![1, 2, 3]]);
        lease.renew(Standing { term: 5, applied_term: Some(5), voters, membership: 0 });
        let peer = Arc::new(Peer::default());
        let path = Path { group: 1, me: 1, to: 2, stream: 1, link: peer.clone(), lease: lease.clone() };
        let (send, requests) = mpsc::unbounded_channel();
        let mut replies = std::pin::pin!(replicate(UnboundedReceiverStream::new(requests), path));

        send.send(request(1..=1, 0)).unwrap();
        let next = tokio::time::timeout(Duration::from_millis(100), replies.next());
        assert!(next.await.is_err(), "nothing was answered");
        send.send(commit(1, 1)).unwrap();
        let next = tokio::time::timeout(Duration::from_millis(100), replies.next());
        assert!(next.await.is_err(), "nothing was answered");
        peer.has(2).await;
        peer.answer(1);
        replies.next().await.unwrap().unwrap().unwrap();
        assert!(lease.quorum_age().unwrap() >= Duration::from_millis(200), "{:?}", lease.quorum_age());
        peer.answer(1);
        replies.next().await.unwrap().unwrap().unwrap();
        assert!(lease.quorum_age().unwrap() < Duration::from_millis(110), "{:?}", lease.quorum_age());
    }
}
