//! openraft's type parameters, and conversions between its types, the wire's and the log's.
//!
//! The payload of an entry is the same on the wire and in the log: the content, then one byte of kind. The kind stands
//! at the end so that content which has a byte of room grows in place instead of being copied.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    sync::Arc,
};

use bytes::{BufMut, Bytes, BytesMut};
use kvorum_proto::raft as wire;
use openraft::{
    EntryPayload, RaftTypeConfig,
    alias::{EntryOf, LogIdOf, VoteOf},
    impls::{BoxedErrorSource, InlineBatch, OneshotResponder, leader_id_std::LeaderId},
    raft::{
        AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderRequest, VoteRequest,
        VoteResponse,
    },
};
use prost::Message;

use crate::{
    lease::Ballot,
    runtime::Runtime,
    wal::{Local, Position, Record},
};

/// A member of a group: which server it lives on, and how that is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Server id.
    pub server: u64,
    /// Peer address, `host:port`; looked up again at every connect.
    pub addr: String,
}

/// openraft's parameters. Standard leader ids: at most one leader per term, so that a term names a leader.
#[derive(Debug, Clone, Copy, Default, Eq, PartialEq, Ord, PartialOrd)]
pub(crate) struct Types;

impl RaftTypeConfig for Types {
    type D = Data;
    type R = ();
    type NodeId = u64;
    type Node = Member;
    type Term = u64;
    type LeaderId = LeaderId<u64, u64>;
    type Vote = openraft::Vote<Self::LeaderId>;
    type Payload = EntryPayload<Data, u64, Member>;
    type Entry = openraft::Entry<<Self::LeaderId as openraft::vote::RaftLeaderId>::Committed, Self::Payload>;
    type AsyncRuntime = Runtime;
    type Responder<T>
        = OneshotResponder<Self, T>
    where
        T: Send + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: Send + 'static;
    type ErrorSource = BoxedErrorSource;
}

/// A group's members as openraft keeps them.
pub(crate) type Membership = openraft::Membership<u64, Member>;

/// Content of an entry, in the log's encoding, with what the proposer wants back in this process.
#[derive(Clone)]
pub(crate) struct Data {
    payload: Bytes,
    pub(crate) local: Option<Local>,
}

impl Data {
    /// Takes content in; grows it in place when it has room and no other owner.
    pub(crate) fn new(content: Bytes, local: Option<Local>) -> Data {
        let mut payload = content.try_into_mut().unwrap_or_else(|shared| {
            let mut copy = BytesMut::with_capacity(shared.len() + 1);
            copy.put_slice(&shared);
            copy
        });
        payload.put_u8(KIND_DATA);
        Data { payload: payload.freeze(), local }
    }

    /// The content as it was proposed.
    pub(crate) fn content(&self) -> Bytes {
        self.payload.slice(..self.payload.len() - 1)
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.payload.len())
    }
}

impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Kinds of payload, the last byte of each. Written to disk: frozen.
const KIND_BLANK: u8 = 0;
const KIND_DATA: u8 = 1;
const KIND_MEMBERSHIP: u8 = 2;

/// Bytes of a peer or of the disk that cannot be what they claim.
#[derive(Debug, thiserror::Error)]
#[error("malformed {what}")]
pub(crate) struct Malformed {
    what: &'static str,
}

fn malformed(what: &'static str) -> Malformed {
    Malformed { what }
}

impl From<Malformed> for io::Error {
    fn from(error: Malformed) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

pub(crate) fn payload_to_bytes(payload: &EntryPayload<Data, u64, Member>) -> Bytes {
    match payload {
        EntryPayload::Blank => Bytes::from_static(&[KIND_BLANK]),
        EntryPayload::Normal(data) => data.payload.clone(),
        EntryPayload::Membership(membership) => {
            let message = membership_to_wire(membership);
            let mut bytes = BytesMut::with_capacity(message.encoded_len() + 1);
            bytes.put_slice(&message.encode_to_vec());
            bytes.put_u8(KIND_MEMBERSHIP);
            bytes.freeze()
        }
    }
}

fn payload_from_bytes(
    payload: Bytes,
    local: Option<Local>,
) -> Result<EntryPayload<Data, u64, Member>, Malformed> {
    match payload.last().copied() {
        Some(KIND_BLANK) if payload.len() == 1 => Ok(EntryPayload::Blank),
        Some(KIND_DATA) => Ok(EntryPayload::Normal(Data { payload, local })),
        Some(KIND_MEMBERSHIP) => {
            let message = wire::Membership::decode(payload.slice(..payload.len() - 1))
                .map_err(|_| malformed("membership"))?;
            Ok(EntryPayload::Membership(membership_from_wire(message)?))
        }
        _ => Err(malformed("entry")),
    }
}

pub(crate) fn membership_to_wire(membership: &Membership) -> wire::Membership {
    let voters = membership
        .get_joint_config()
        .iter()
        .map(|voters| wire::Voters { replica: voters.iter().copied().collect() })
        .collect();
    let members = membership
        .nodes()
        .map(|(replica, member)| wire::Member {
            replica: *replica,
            server: member.server,
            addr: member.addr.clone(),
        })
        .collect();
    wire::Membership { voters, members }
}

pub(crate) fn membership_from_wire(message: wire::Membership) -> Result<Membership, Malformed> {
    let voters: Vec<BTreeSet<u64>> =
        message.voters.into_iter().map(|voters| voters.replica.into_iter().collect()).collect();
    #[cfg(feature = "bugs")]
    let voters = match kvorum_bugs::has(kvorum_bugs::Bug::MembershipWithoutJoint) {
        true => voters.into_iter().last().into_iter().collect(),
        false => voters,
    };
    let members: BTreeMap<u64, Member> = message
        .members
        .into_iter()
        .map(|member| (member.replica, Member { server: member.server, addr: member.addr }))
        .collect();
    Membership::new(voters, members).map_err(|_| malformed("membership"))
}

pub(crate) fn entry_to_record(entry: EntryOf<Types>) -> Record {
    let payload = payload_to_bytes(&entry.payload);
    let local = match entry.payload {
        EntryPayload::Normal(data) => data.local,
        _ => None,
    };
    // A term has at most one leader, so the log need not name it.
    Record { index: entry.log_id.index, term: entry.log_id.leader_id.term, leader: 0, payload, local }
}

pub(crate) fn entry_from_record(record: Record) -> Result<EntryOf<Types>, Malformed> {
    let payload = payload_from_bytes(record.payload, record.local)?;
    Ok(openraft::Entry { log_id: log_id(record.term, record.index), payload })
}

pub(crate) fn log_id(term: u64, index: u64) -> LogIdOf<Types> {
    LogIdOf::<Types>::new_term_index(term, index)
}

pub(crate) fn position_to_log_id(position: Position) -> LogIdOf<Types> {
    log_id(position.term, position.index)
}

pub(crate) fn log_id_to_wire(id: &LogIdOf<Types>) -> wire::LogId {
    wire::LogId { term: id.leader_id.term, index: id.index }
}

pub(crate) fn log_id_from_wire(id: wire::LogId) -> LogIdOf<Types> {
    log_id(id.term, id.index)
}

pub(crate) fn vote_to_wire(vote: &VoteOf<Types>) -> wire::Vote {
    wire::Vote { term: vote.leader_id.term, replica: vote.leader_id.voted_for, committed: vote.committed }
}

pub(crate) fn vote_from_wire(vote: wire::Vote) -> VoteOf<Types> {
    let leader_id = LeaderId { term: vote.term, voted_for: vote.replica };
    openraft::Vote { leader_id, committed: vote.committed }
}

pub(crate) fn ballot(vote: &VoteOf<Types>) -> Ballot {
    Ballot { term: vote.leader_id.term, replica: vote.leader_id.voted_for, committed: vote.committed }
}

pub(crate) fn append_to_wire(request: AppendEntriesRequest<Types>) -> wire::AppendRequest {
    let entries = request
        .entries
        .iter()
        .map(|entry| wire::Entry {
            term: entry.log_id.leader_id.term,
            index: entry.log_id.index,
            payload: payload_to_bytes(&entry.payload),
        })
        .collect();
    wire::AppendRequest {
        vote: Some(vote_to_wire(&request.vote)),
        previous: request.prev_log_id.as_ref().map(log_id_to_wire),
        entries,
        committed: request.leader_commit.as_ref().map(log_id_to_wire),
    }
}

pub(crate) fn append_from_wire(
    request: wire::AppendRequest,
) -> Result<AppendEntriesRequest<Types>, Malformed> {
    let vote = vote_from_wire(request.vote.ok_or(malformed("append request"))?);
    let prev_log_id = request.previous.map(log_id_from_wire);
    let mut entries = Vec::with_capacity(request.entries.len());
    let mut next = request.previous.map_or(0, |previous| previous.index.saturating_add(1));
    for entry in request.entries {
        // Raft takes a hole in a request for its own bug and stops; a peer must not be able to cause that.
        if entry.index != next {
            return Err(malformed("append request"));
        }
        next = next.saturating_add(1);
        let payload = payload_from_bytes(entry.payload, None)?;
        entries.push(openraft::Entry { log_id: log_id(entry.term, entry.index), payload });
    }
    Ok(AppendEntriesRequest {
        vote,
        prev_log_id,
        entries,
        leader_commit: request.committed.map(log_id_from_wire),
    })
}

pub(crate) fn append_result_to_wire(result: StreamAppendResult<Types>) -> wire::AppendReply {
    use wire::append_reply::Outcome;
    let outcome = match result {
        Ok(matched) => Outcome::Matched(wire::Matched { log_id: matched.as_ref().map(log_id_to_wire) }),
        Err(StreamAppendError::Conflict(id)) => Outcome::Conflict(log_id_to_wire(&id)),
        Err(StreamAppendError::HigherVote(vote)) => Outcome::HigherVote(vote_to_wire(&vote)),
    };
    wire::AppendReply { outcome: Some(outcome) }
}

/// A reply that is no answer of the group.
pub(crate) fn refused(reason: impl fmt::Display) -> wire::AppendReply {
    wire::AppendReply { outcome: Some(wire::append_reply::Outcome::Refused(reason.to_string())) }
}

/// The group's answer, or why there is none.
pub(crate) fn append_result_from_wire(
    reply: wire::AppendReply,
) -> Result<StreamAppendResult<Types>, Arc<str>> {
    use wire::append_reply::Outcome;
    match reply.outcome {
        Some(Outcome::Matched(matched)) => Ok(Ok(matched.log_id.map(log_id_from_wire))),
        Some(Outcome::Conflict(id)) => Ok(Err(StreamAppendError::Conflict(log_id_from_wire(id)))),
        Some(Outcome::HigherVote(vote)) => Ok(Err(StreamAppendError::HigherVote(vote_from_wire(vote)))),
        Some(Outcome::Refused(reason)) => Err(reason.into()),
        None => Err("malformed append reply".into()),
    }
}

pub(crate) fn vote_request_to_wire(request: &VoteRequest<Types>) -> wire::VoteRequest {
    wire::VoteRequest {
        vote: Some(vote_to_wire(&request.vote)),
        last: request.last_log_id.as_ref().map(log_id_to_wire),
        transfer: request.leadership_transfer,
    }
}

pub(crate) fn vote_request_from_wire(request: wire::VoteRequest) -> Result<VoteRequest<Types>, Malformed> {
    let vote = vote_from_wire(request.vote.ok_or(malformed("vote request"))?);
    let mut out = VoteRequest::new(vote, request.last.map(log_id_from_wire));
    out.leadership_transfer = request.transfer;
    Ok(out)
}

pub(crate) fn vote_reply_to_wire(reply: &VoteResponse<Types>) -> wire::VoteReply {
    wire::VoteReply {
        vote: Some(vote_to_wire(&reply.vote)),
        last: reply.last_log_id.as_ref().map(log_id_to_wire),
        granted: reply.vote_granted,
    }
}

pub(crate) fn vote_reply_from_wire(reply: wire::VoteReply) -> Result<VoteResponse<Types>, Malformed> {
    let vote = vote_from_wire(reply.vote.ok_or(malformed("vote reply"))?);
    Ok(VoteResponse::new(vote, reply.last.map(log_id_from_wire), reply.granted))
}

pub(crate) fn transfer_to_wire(request: &TransferLeaderRequest<Types>) -> wire::TransferRequest {
    wire::TransferRequest {
        from: Some(vote_to_wire(request.from_leader())),
        to: *request.to_node_id(),
        last: request.last_log_id().map(log_id_to_wire),
    }
}

pub(crate) fn transfer_from_wire(
    request: wire::TransferRequest,
) -> Result<TransferLeaderRequest<Types>, Malformed> {
    let from = vote_from_wire(request.from.ok_or(malformed("transfer request"))?);
    Ok(TransferLeaderRequest::new(from, request.to, request.last.map(log_id_from_wire)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(payload: EntryPayload<Data, u64, Member>) -> EntryPayload<Data, u64, Member> {
        payload_from_bytes(payload_to_bytes(&payload), None).unwrap()
    }

    #[test]
    fn payloads_survive_the_log() {
        assert!(matches!(round_trip(EntryPayload::Blank), EntryPayload::Blank));
        let EntryPayload::Normal(data) =
            round_trip(EntryPayload::Normal(Data::new(Bytes::from_static(b"abc"), None)))
        else {
            panic!("not data")
        };
        assert_eq!(data.content(), "abc");
        let nodes: BTreeMap<u64, Member> =
            (1..=4).map(|id| (id, Member { server: id * 10, addr: format!("h{id}:1") })).collect();
        let joint = Membership::new(vec![BTreeSet::from([1, 2]), BTreeSet::from([2, 3])], nodes).unwrap();
        let EntryPayload::Membership(read) = round_trip(EntryPayload::Membership(joint.clone())) else {
            panic!("not a membership")
        };
        assert_eq!(read, joint);
    }

    #[test]
    fn content_with_room_is_not_copied() {
        let mut buffer = Vec::with_capacity(16);
        buffer.extend_from_slice(b"abc");
        let content = Bytes::from(buffer);
        let at = content.as_ptr();
        let data = Data::new(content, None);
        assert_eq!(data.content(), "abc");
        assert_eq!(data.content().as_ptr(), at);
    }

    #[test]
    fn garbage_is_an_error() {
        for bytes in [&b""[..], b"\x07", b"x\x00", b"\xff\xff\x02"] {
            assert!(payload_from_bytes(Bytes::copy_from_slice(bytes), None).is_err(), "{bytes:?}");
        }
        let hole = wire::AppendRequest {
            vote: Some(wire::Vote { term: 1, replica: 1, committed: true }),
            previous: Some(wire::LogId { term: 1, index: 4 }),
            entries: vec![wire::Entry { term: 1, index: 6, payload: Bytes::from_static(&[0]) }],
            committed: None,
        };
        assert!(append_from_wire(hole).is_err());
        assert!(append_from_wire(wire::AppendRequest::default()).is_err());
    }
}
