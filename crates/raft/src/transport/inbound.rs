//! The receiving side: who this server is, which replicas live here, and the streams of appends that reach them.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    pin::pin,
    sync::{Arc, OnceLock},
};

use bytes::{Bytes, BytesMut};
use futures::{FutureExt, Stream, StreamExt};
use kvorum_proto::{peer, raft as wire};
use openraft::{
    RaftTypeConfig,
    raft::{AppendEntriesRequest, AppendEntriesResponse},
};
use parking_lot::{Mutex, RwLock};
use prost::Message;
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    watch,
};

use crate::{
    campaign::Hearing,
    lease::VoteGate,
    machine::Applier,
    snapshot::Receiver,
    transport::APPEND_BYTES,
    types::{
        Types, append_from_wire, append_result_to_wire, refused, transfer_from_wire, vote_reply_to_wire,
        vote_request_from_wire,
    },
};

/// Requests of one stream that may wait for the group. More than a sender keeps in flight, so it is never full.
const STREAM_QUEUE: usize = 256;

/// Requests that may be in parts at one time on one connection.
const PARTIAL_REQUESTS: usize = 256;

/// Who this server is, for peers to check. Unknown until the server belongs to a cluster.
#[derive(Debug)]
pub struct Identity {
    known: watch::Sender<(u64, Arc<str>)>,
}

impl Default for Identity {
    fn default() -> Identity {
        Identity { known: watch::Sender::new((0, "".into())) }
    }
}

impl Identity {
    /// Server id (0 when unknown) and cluster id (empty when unknown).
    pub fn get(&self) -> (u64, Arc<str>) {
        self.known.borrow().clone()
    }

    /// Sets both.
    pub fn set(&self, server: u64, cluster: &str) {
        self.known.send_replace((server, cluster.into()));
    }

    /// Whether a request for `server` of `cluster` (unknown: 0, empty) may be meant for this server; if not, why.
    ///
    /// # Errors
    /// A text for the peer.
    pub fn check(&self, server: u64, cluster: &str) -> Result<(), String> {
        if self.accepts(server, cluster) {
            return Ok(());
        }
        let (me, here) = self.get();
        Err(format!("this is server {me} of cluster {here}, not server {server} of cluster {cluster}"))
    }

    /// Ends when what was meant for `server` of `cluster` is no longer meant for this server: it has become another one. Says so.
    pub(crate) async fn refuses(&self, server: u64, cluster: &str) -> String {
        let mut known = self.known.subscribe();
        // Fails only when the sender is gone, and `self` has it.
        let _ = known.wait_for(|_| !self.accepts(server, cluster)).await;
        self.check(server, cluster).err().unwrap_or_default()
    }

    fn accepts(&self, server: u64, cluster: &str) -> bool {
        let known = self.known.borrow();
        let same_server = server == 0 || known.0 == 0 || server == known.0;
        let same_cluster = cluster.is_empty() || known.1.is_empty() || *cluster == *known.1;
        same_server && same_cluster
    }
}

/// A replica that lives on this server.
pub(crate) struct Replica {
    pub(crate) raft: openraft::Raft<Types, Applier>,
    pub(crate) gate: Arc<VoteGate>,
    pub(crate) hearing: Arc<Hearing>,
    pub(crate) snapshots: Arc<Receiver>,
}

/// The replicas here, by group and replica id.
type Replicas = HashMap<(u64, u64), Arc<Replica>>;

/// Answers a note of another server, or says why not.
pub type NoteTaker = Arc<dyn Fn(Bytes) -> Result<Bytes, String> + Send + Sync>;

/// Takes requests of peers to the replicas of this server. Clones share everything.
#[derive(Clone, Default)]
pub struct Inbound {
    identity: Arc<Identity>,
    replicas: Arc<RwLock<Replicas>>,
    note_taker: Arc<OnceLock<NoteTaker>>,
    closed: watch::Sender<bool>,
}

impl Inbound {
    /// Who this server is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Who answers notes; the first one that is given.
    pub(crate) fn take_notes(&self, taker: NoteTaker) {
        let _ = self.note_taker.set(taker);
    }

    pub(crate) fn insert(&self, group: u64, replica: u64, entry: Replica) {
        self.replicas.write().insert((group, replica), Arc::new(entry));
    }

    pub(crate) fn remove(&self, group: u64, replica: u64) {
        self.replicas.write().remove(&(group, replica));
    }

    pub(crate) fn drain(&self) -> Vec<Arc<Replica>> {
        self.replicas.write().drain().map(|(_, replica)| replica).collect()
    }

    pub(crate) fn contains(&self, group: u64) -> bool {
        self.replicas.read().keys().any(|(here, _)| *here == group)
    }

    /// Ends all streams of peers, so that whoever serves them can stop.
    pub(crate) fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Ends when [`Inbound::close`] is called.
    pub(crate) async fn closed(&self) {
        // Fails only when the sender is gone, and `self` is one.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }

    fn find(&self, group: u64, replica: u64) -> Option<Arc<Replica>> {
        self.replicas.read().get(&(group, replica)).cloned()
    }

    /// Answers a control request.
    pub async fn control(&self, request: peer::ControlRequest) -> peer::ControlReply {
        let peer::ControlRequest { group, to, request } = request;
        use peer::{control_reply::Reply, control_request::Request};
        let reply = match (self.find(group, to), request) {
            (_, Some(Request::Note(note))) => match self.note_taker.get() {
                Some(taker) => taker(note).map(Reply::Note),
                None => Err("nobody takes notes here".to_owned()),
            },
            (Some(replica), Some(request)) => answer(&replica, request).await,
            (None, _) => Err(format!("replica {to} of group {group} is not here")),
            (_, None) => Err("malformed control request".to_owned()),
        };
        let reply = reply.unwrap_or_else(Reply::Silent);
        peer::ControlReply { reply: Some(reply) }
    }

    /// Answers a request about a snapshot.
    pub async fn snapshot(&self, request: peer::SnapshotRequest) -> peer::SnapshotReply {
        let peer::SnapshotRequest { group, to, request } = request;
        let refused =
            |reason| peer::SnapshotReply { reply: Some(peer::snapshot_reply::Reply::Refused(reason)) };
        match (self.find(group, to), request) {
            (Some(replica), Some(request)) => {
                // What has arrived is taken in, whether or not somebody still waits.
                let environment = replica.snapshots.environment().clone();
                let answering =
                    environment.spawn(async move { replica.snapshots.answer(&replica.raft, request).await });
                answering.await.unwrap_or_else(|_| refused("the receiver is gone".to_owned()))
            }
            (None, _) => refused(format!("replica {to} of group {group} is not here")),
            (_, None) => refused("malformed snapshot request".to_owned()),
        }
    }

    /// Opens the receiving end of a connection's appends. Replies go to `replies` in any order; when the other end of that
    /// is gone, nothing more is answered.
    pub(crate) fn session<R: Replies>(&self, replies: R) -> AppendSession<R> {
        AppendSession { inbound: self.clone(), replies, streams: HashMap::new(), partial: HashMap::new() }
    }
}

async fn answer(
    replica: &Replica,
    request: peer::control_request::Request,
) -> Result<peer::control_reply::Reply, String> {
    use peer::{control_reply::Reply, control_request::Request};
    let raft = &replica.raft;
    match request {
        Request::Heartbeat(request) => {
            let request = append_from_wire(request).map_err(|error| error.to_string())?;
            replica.hearing.sign(request.vote.leader_id.term);
            let previous = request.prev_log_id;
            let result = match accept_heartbeat(replica, request).await? {
                Some(reply) if reply.is_conflict() && previous.is_none() => {
                    return Err("conflict with nothing".to_owned());
                }
                Some(reply) => reply.into_stream_result(previous, previous),
                None => Ok(previous),
            };
            Ok(Reply::Heartbeat(append_result_to_wire(result)))
        }
        Request::Vote(request) => {
            let request = vote_request_from_wire(request).map_err(|error| error.to_string())?;
            // Rule 1 of the lease. What the leader itself asked for is no breach of a promise to it.
            if !request.leadership_transfer {
                check_gate(&replica.gate)?;
            }
            let reply = raft.vote(request).await.map_err(|error| error.to_string())?;
            Ok(Reply::Vote(vote_reply_to_wire(&reply)))
        }
        Request::PreVote(request) => {
            check_gate(&replica.gate)?;
            let request = vote_request_from_wire(request).map_err(|error| error.to_string())?;
            let reply = raft.pre_vote(request).await.map_err(|error| error.to_string())?;
            Ok(Reply::PreVote(vote_reply_to_wire(&reply)))
        }
        Request::Transfer(request) => {
            let request = transfer_from_wire(request).map_err(|error| error.to_string())?;
            let refused = match raft.handle_transfer_leader(request).await {
                Ok(Ok(())) => String::new(),
                Ok(Err(error)) => error.to_string(),
                Err(fatal) => return Err(fatal.to_string()),
            };
            Ok(Reply::Transfer(wire::TransferReply { refused }))
        }
        Request::Note(_) => Err("notes are not for a group".to_owned()),
    }
}

/// Takes a heartbeat in. `None` when it is accepted and everything before it is still on its way to the disk, for which openraft would wait
/// before it answers. A heartbeat asks for a promise that is kept in memory, and the [`VoteGate`] keeps it over a restart; were
/// it to wait, a disk that stalls would cost the leader its lease. The first of a term does wait: a replica without a vote on its disk would
/// find the gate open.
async fn accept_heartbeat(
    Replica { raft, hearing, .. }: &Replica,
    request: AppendEntriesRequest<Types>,
) -> Result<Option<AppendEntriesResponse<Types>>, String> {
    let vote = request.vote;
    let term = vote.leader_id.term;
    let mut answering = pin!(raft.append_entries(request));
    let answered = tokio::select! {
        // First the heartbeat goes into the queue, then the question behind it.
        biased;
        answer = &mut answering => Some(answer),
        follows = raft.with_raft_state(move |state| *state.vote_ref() == vote), if hearing.is_stored(term) => {
            match follows.map_err(|fatal| fatal.to_string())? {
                true => answering.now_or_never(),
                false => Some(answering.await),
            }
        }
    };
    let answered = answered.transpose().map_err(|error| error.to_string())?;
    if answered.as_ref().is_some_and(AppendEntriesResponse::is_success) {
        hearing.stored(term);
    }
    Ok(answered)
}

fn check_gate(gate: &VoteGate) -> Result<(), String> {
    let closed_for = gate.closed_for();
    if closed_for.is_zero() {
        Ok(())
    } else {
        Err(format!("restarted: no votes for another {} ms", closed_for.as_millis()))
    }
}

/// Where the answers of a connection go. Clones go to the same place.
pub(crate) trait Replies: Clone + Send + Sync + 'static {
    /// Waits for room. `false` when nobody gets it.
    fn send(&self, reply: peer::Reply) -> impl Future<Output = bool> + Send;

    /// Forgets it where there is no room.
    fn try_send(&self, reply: peer::Reply);
}

impl Replies for mpsc::Sender<peer::Reply> {
    async fn send(&self, reply: peer::Reply) -> bool {
        mpsc::Sender::send(self, reply).await.is_ok()
    }

    fn try_send(&self, reply: peer::Reply) {
        let _ = mpsc::Sender::try_send(self, reply);
    }
}

/// What a peer may not do; the connection ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// Bytes that are no request.
    #[error("malformed frame: {0}")]
    Malformed(String),
    /// More at a time than any sender of ours has.
    #[error("too much in flight")]
    Overrun,
}

/// The receiving end of one connection's appends.
pub(crate) struct AppendSession<R> {
    inbound: Inbound,
    replies: R,
    /// By group and replica.
    streams: HashMap<(u64, u64), GroupStream>,
    /// By request number.
    partial: HashMap<u64, Partial>,
}

/// A request of which a part has arrived.
struct Partial {
    group: u64,
    to: u64,
    stream: u64,
    bytes: BytesMut,
}

/// A stream of appends into one group.
struct GroupStream {
    number: u64,
    hearing: Arc<Hearing>,
    requests: mpsc::Sender<AppendEntriesRequest<Types>>,
    unanswered: Arc<Mutex<Unanswered>>,
}

/// Request numbers in the order in which answers will come.
#[derive(Default)]
struct Unanswered {
    numbers: VecDeque<u64>,
    /// No more answers will come.
    ended: bool,
}

impl<R: Replies> AppendSession<R> {
    /// Takes a frame in. Never waits: a group that is slow holds up its own stream only.
    pub(crate) fn feed(&mut self, frame: peer::Frame) -> Result<(), SessionError> {
        use peer::frame::Content;
        let peer::Frame { group, to, stream, request: number, content } = frame;
        let append = match content {
            Some(Content::Append(append)) => append,
            Some(Content::Part(part)) => {
                self.collect((group, to, stream), number, &part)?;
                return Ok(());
            }
            Some(Content::LastPart(part)) => {
                self.collect((group, to, stream), number, &part)?;
                let whole = self.partial.remove(&number).map(|partial| partial.bytes.freeze());
                wire::AppendRequest::decode(whole.unwrap_or_default())
                    .map_err(|error| SessionError::Malformed(error.to_string()))?
            }
            None => return Err(SessionError::Malformed("no content".to_owned())),
        };
        let append = append_from_wire(append).map_err(|error| SessionError::Malformed(error.to_string()))?;
        if self.streams.get(&(group, to)).is_none_or(|current| current.number != stream) {
            // Who gave up on a group that does not answer, for its disk is stuck, is not to fill it with one attempt after the other.
            if self.streams.get(&(group, to)).is_some_and(GroupStream::is_unanswered) {
                self.reply(number, refused("the stream before is still to be answered"));
                return Ok(());
            }
            let Some(replica) = self.inbound.find(group, to) else {
                self.reply(number, refused(format_args!("replica {to} of group {group} is not here")));
                return Ok(());
            };
            self.streams.insert((group, to), GroupStream::open(stream, &replica, self.replies.clone()));
        }
        let Some(current) = self.streams.get(&(group, to)) else { return Ok(()) };
        current.hearing.sign(append.vote.leader_id.term);
        let mut unanswered = current.unanswered.lock();
        if unanswered.ended {
            drop(unanswered);
            self.reply(number, refused("the stream has ended"));
            return Ok(());
        }
        match current.requests.try_send(append) {
            Ok(()) => unanswered.numbers.push_back(number),
            Err(TrySendError::Full(_)) => return Err(SessionError::Overrun),
            // It is ending: after a conflict, or because the replica goes.
            Err(TrySendError::Closed(_)) => {
                drop(unanswered);
                self.reply(number, refused("the stream has ended"));
            }
        }
        Ok(())
    }

    fn collect(
        &mut self,
        (group, to, stream): (u64, u64, u64),
        number: u64,
        part: &Bytes,
    ) -> Result<(), SessionError> {
        if !self.partial.contains_key(&number) {
            // What the stream before began is not continued.
            self.partial.retain(|_, other| (other.group, other.to) != (group, to) || other.stream == stream);
            if self.partial.len() >= PARTIAL_REQUESTS {
                return Err(SessionError::Overrun);
            }
        }
        let begun = || Partial { group, to, stream, bytes: BytesMut::new() };
        let whole = &mut self.partial.entry(number).or_insert_with(begun).bytes;
        if whole.len() + part.len() > APPEND_BYTES {
            return Err(SessionError::Overrun);
        }
        whole.extend_from_slice(part);
        Ok(())
    }

    /// Refusals are advice: the sender gives up at its own deadline when there is no room for one.
    fn reply(&self, request: u64, append: wire::AppendReply) {
        self.replies.try_send(peer::Reply { request, append: Some(append) });
    }
}

impl GroupStream {
    fn open(number: u64, replica: &Replica, replies: impl Replies) -> GroupStream {
        let (requests, queue) = mpsc::channel(STREAM_QUEUE);
        let unanswered = Arc::new(Mutex::new(Unanswered::default()));
        let answers = replica.raft.stream_append(tokio_stream::wrappers::ReceiverStream::new(queue));
        tokio::spawn(relay(answers, unanswered.clone(), replies));
        GroupStream { number, hearing: replica.hearing.clone(), requests, unanswered }
    }

    /// Whether answers are still to come.
    fn is_unanswered(&self) -> bool {
        let unanswered = self.unanswered.lock();
        !unanswered.ended && !unanswered.numbers.is_empty()
    }
}

/// Sends a group's answers back under their request numbers, then refuses what will not be answered.
async fn relay<A, E>(answers: A, unanswered: Arc<Mutex<Unanswered>>, replies: impl Replies)
where
    A: Stream<Item = Result<openraft::raft::StreamAppendResult<Types>, E>>,
    E: std::fmt::Display,
    Types: RaftTypeConfig,
{
    let mut answers = pin!(answers);
    while let Some(answer) = answers.next().await {
        let Some(request) = unanswered.lock().numbers.pop_front() else { break };
        let append = match answer {
            Ok(result) => append_result_to_wire(result),
            Err(fatal) => refused(fatal),
        };
        if !replies.send(peer::Reply { request, append: Some(append) }).await {
            break;
        }
    }
    let left = {
        let mut unanswered = unanswered.lock();
        unanswered.ended = true;
        std::mem::take(&mut unanswered.numbers)
    };
    for request in left {
        let append = Some(refused("the stream has ended"));
        if !replies.send(peer::Reply { request, append }).await {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use peer::frame::Content;

    use super::*;
    use crate::clock::Environment;
    use crate::host::Timing;

    fn frame(stream: u64, request: u64, content: Content) -> peer::Frame {
        peer::Frame { group: 1, to: 2, stream, request, content: Some(content) }
    }

    fn append() -> Content {
        let vote = Some(wire::Vote { term: 1, replica: 1, committed: true });
        Content::Append(wire::AppendRequest { vote, ..Default::default() })
    }

    fn session() -> (AppendSession<mpsc::Sender<peer::Reply>>, mpsc::Receiver<peer::Reply>) {
        let (replies, replied) = mpsc::channel(16);
        (Inbound::default().session(replies), replied)
    }

    /// A stream into group 1 whose requests go where the receiver is.
    fn stream(number: u64, waiting: &[u64]) -> (GroupStream, mpsc::Receiver<AppendEntriesRequest<Types>>) {
        let (requests, queue) = mpsc::channel(STREAM_QUEUE);
        let unanswered = Unanswered { numbers: waiting.iter().copied().collect(), ended: false };
        let hearing = Arc::new(Hearing::new(Environment::real(), &Timing::default()));
        (GroupStream { number, hearing, requests, unanswered: Arc::new(Mutex::new(unanswered)) }, queue)
    }

    fn refusal(replied: &mut mpsc::Receiver<peer::Reply>, number: u64) -> String {
        let reply = replied.try_recv().unwrap();
        assert_eq!(reply.request, number);
        format!("{:?}", reply.append)
    }

    #[test]
    fn parts_of_a_stream_that_was_given_up_are_let_go() {
        let (mut session, _replied) = session();
        let part = |bytes: usize| Content::Part(vec![0; bytes].into());
        for request in 0..10 {
            session.feed(frame(1, request, part(1000))).unwrap();
        }
        session.feed(peer::Frame { group: 9, ..frame(1, 10, part(1000)) }).unwrap();
        assert_eq!(session.partial.len(), 11);
        session.feed(frame(2, 11, part(10))).unwrap();
        session.feed(frame(2, 11, part(10))).unwrap();
        assert_eq!(session.partial.len(), 2, "another group's, and what has begun");
        assert_eq!(session.partial[&11].bytes.len(), 20);
    }

    #[test]
    fn no_stream_is_opened_while_the_one_before_is_to_be_answered() {
        let (mut session, mut replied) = session();
        let (stuck, mut queue) = stream(1, &[5]);
        session.streams.insert((1, 2), stuck);
        session.feed(frame(2, 6, append())).unwrap();
        assert!(refusal(&mut replied, 6).contains("still to be answered"));
        assert!(queue.try_recv().is_err());
        session.streams[&(1, 2)].unanswered.lock().numbers.clear();
        session.feed(frame(2, 7, append())).unwrap();
        assert!(refusal(&mut replied, 7).contains("is not here"), "another one is looked for");
    }

    #[test]
    fn the_end_of_one_stream_is_not_that_of_the_connection() {
        let (mut session, mut replied) = session();
        let (ending, queue) = stream(1, &[5]);
        drop(queue);
        session.streams.insert((1, 2), ending);
        session.feed(frame(1, 6, append())).unwrap();
        assert!(refusal(&mut replied, 6).contains("has ended"));
        assert_eq!(session.streams[&(1, 2)].unanswered.lock().numbers, [5], "it is refused once");
    }
}
