//! A replica of one group: propose, read, watch, transfer.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use openraft::{
    RaftMetrics, ReadPolicy, ServerState,
    alias::LogIdOf,
    async_runtime::WatchReceiver,
    errors::{ClientWriteError, Fatal, ForwardReason, ForwardToLeader, LinearizableReadError, RaftError},
    impls::OneshotResponder,
    raft::ClientWriteResult,
};
use parking_lot::Mutex;
use tokio::{
    sync::{oneshot, watch},
    task::AbortHandle,
};

use crate::{
    clock::Environment,
    host::Timing,
    lease::{Lease, NotLeased, Standing},
    machine::Applier,
    snapshot::{Managed, SnapshotError, SnapshotStats, Snapshots},
    transport::{ENTRY_BYTES, Inbound},
    types::{Data, Member, Types},
    wal::{GroupId, GroupLog, Local, SyncMode},
};

pub(crate) type Raft = openraft::Raft<Types, Applier>;
type Metrics = RaftMetrics<Types>;

/// What a replica is to its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Takes proposals.
    Leader,
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Receives the log and does not vote; also a replica that is not initialised.
    #[default]
    Learner,
}

/// The state of a replica. Indexes are 0 before the first entry, too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Its role.
    pub role: Role,
    /// Its term.
    pub term: u64,
    /// Replica id of the leader of that term, when known.
    pub leader: Option<u64>,
    /// It leads and has applied the first entry of its term: proposals and reads are worth trying.
    pub ready: bool,
    /// It has applied at least what it had applied before it was started last.
    pub recovered: bool,
    /// Index of the last entry of its log.
    pub last: u64,
    /// Index of the last entry it knows to be committed.
    pub committed: u64,
    /// Index of the last entry applied.
    pub applied: u64,
    /// On the leader: the index up to which each replica's log is known to match and to be as durable as the group asks. Empty
    /// elsewhere.
    pub matched: BTreeMap<u64, u64>,
    /// All members by replica id.
    pub members: Arc<BTreeMap<u64, Member>>,
    /// Those of them that vote.
    pub voters: Arc<BTreeSet<u64>>,
    /// Why it stopped, if it did; it does not start again by itself.
    pub failed: Option<String>,
}

/// What a replica went through since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupStats {
    /// Times that it stood for election.
    pub elections: u64,
    /// Times that it became leader.
    pub won: u64,
    /// Times that it learned of another leader than the one before, itself included.
    pub leader_changes: u64,
}

/// A place in a group's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Term of the entry.
    pub term: u64,
    /// Index of the entry.
    pub index: u64,
}

/// Why a proposal was not applied, as far as is known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Definite: it was never appended. Hold the client rather than redirect it while `leader` is `None`.
    #[error("not the leader")]
    NotLeader {
        /// Replica id of the leader, when known.
        leader: Option<u64>,
    },
    /// Definite: it is larger than an entry may be.
    #[error("{bytes} bytes are more than an entry may have ({ENTRY_BYTES})")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Indefinite: it may have been applied, here or elsewhere, and may still be.
    #[error("the outcome of the proposal is unknown")]
    Lost,
}

/// An accepted proposal. Ends once it is applied on this replica, or its outcome is known or can no longer be known; that
/// may take as long as the group has no majority.
#[derive(Debug)]
#[must_use = "the outcome comes when this is awaited"]
pub struct Proposal(oneshot::Receiver<ClientWriteResult<Types>>);

impl Future for Proposal {
    type Output = Result<Position, ProposeError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|outcome| match outcome {
            Ok(Ok(applied)) => {
                Ok(Position { term: applied.log_id.leader_id.term, index: applied.log_id.index })
            }
            Ok(Err(ClientWriteError::ForwardToLeader(forward))) => {
                Err(ProposeError::NotLeader { leader: leader_to_ask(&forward) })
            }
            Ok(Err(_)) | Err(_) => Err(ProposeError::Lost),
        })
    }
}

/// The leader named in a refusal. The target of a transfer does not lead yet.
pub(crate) fn leader_to_ask(forward: &ForwardToLeader<Types>) -> Option<u64> {
    match forward.reason {
        ForwardReason::NotLeader => forward.leader_id,
        ForwardReason::LeadershipTransfer | ForwardReason::LeaseExpired => None,
    }
}

/// Why a read cannot be confirmed by the majority. Nothing was read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Another replica leads, or none.
    #[error("not the leader")]
    NotLeader {
        /// Replica id of the leader, when known.
        leader: Option<u64>,
    },
    /// The majority did not answer in time.
    #[error("no majority answered")]
    NoQuorum,
    /// The replica has stopped.
    #[error("the replica has stopped")]
    Failed,
}

/// Why the leadership was not handed over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// This replica has no leadership to hand over.
    #[error("not the leader")]
    NotLeader {
        /// Replica id of the leader, when known.
        leader: Option<u64>,
    },
    /// The target is no voter of the group.
    #[error("replica {to} does not vote in this group")]
    NotVoter {
        /// The target.
        to: u64,
    },
    /// The target's log is too far behind: the group would stand still until it has caught up.
    #[error("replica {to} is {behind} entries behind")]
    Behind {
        /// The target.
        to: u64,
        /// Entries it has not confirmed.
        behind: u64,
    },
    /// The target did not take over in time; the group elects a leader.
    #[error("replica {to} did not take over in time")]
    TimedOut {
        /// The target.
        to: u64,
    },
    /// The replica has stopped.
    #[error("the replica has stopped")]
    Failed,
}

/// Why a group could not be initialised.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InitializeError {
    /// This replica is not among the members.
    #[error("this replica is not a member")]
    NotMember,
    /// The replica has stopped.
    #[error("the replica has stopped: {0}")]
    Failed(String),
}

/// How many entries a follower may lag behind and still be handed the leadership. Under load it always lags by what is
/// under way, which it receives before it takes over.
const TRANSFER_LAG: u64 = 128;

/// Between two looks whether the answers of a round are there; openraft has said that they are, so this is rare.
const ANSWER_PAUSE: Duration = Duration::from_millis(1);

/// A replica on this server. Clones are the same replica, which runs until [`Group::shutdown`] or [`Host::shutdown`](crate::Host::shutdown), whether or not there
/// are handles.
#[derive(Clone)]
pub struct Group {
    shared: Arc<Shared>,
}

struct Shared {
    id: GroupId,
    me: u64,
    raft: Raft,
    log: GroupLog,
    managed: Arc<Managed>,
    snapshots: Arc<Snapshots>,
    lease: Arc<Lease>,
    status: watch::Receiver<Arc<Status>>,
    stats: Arc<Mutex<GroupStats>>,
    timing: Timing,
    inbound: Inbound,
    tasks: Mutex<Vec<AbortHandle>>,
}

/// What a [`Group`] is made of.
pub(crate) struct Parts {
    pub(crate) id: GroupId,
    pub(crate) me: u64,
    pub(crate) raft: Raft,
    pub(crate) log: GroupLog,
    pub(crate) managed: Arc<Managed>,
    pub(crate) snapshots: Arc<Snapshots>,
    /// Index of the last entry when the replica was opened.
    pub(crate) last_at_start: Option<u64>,
    pub(crate) lease: Arc<Lease>,
    pub(crate) environment: Environment,
    pub(crate) timing: Timing,
    pub(crate) inbound: Inbound,
}

impl Group {
    /// Puts the parts together and starts to watch the replica. To be called in its environment.
    pub(crate) fn new(parts: Parts) -> Group {
        let Parts {
            id,
            me,
            raft,
            log,
            managed,
            snapshots,
            last_at_start,
            lease,
            environment,
            timing,
            inbound,
        } = parts;
        let mut watcher = Watcher::new(lease.clone(), log.clone(), &raft, last_at_start);
        watcher.look();
        let status = watcher.status.subscribe();
        let stats = Arc::clone(&watcher.stats);
        let watching = environment.spawn(watcher.run()).abort_handle();
        let tasks = Mutex::new(vec![watching]);
        let shared =
            Shared { id, me, raft, log, managed, snapshots, lease, status, stats, timing, inbound, tasks };
        Group { shared: Arc::new(shared) }
    }

    pub(crate) fn keep(&self, task: AbortHandle) {
        self.shared.tasks.lock().push(task);
    }

    pub(crate) fn raft(&self) -> &Raft {
        &self.shared.raft
    }

    pub(crate) fn timing(&self) -> &Timing {
        &self.shared.timing
    }

    /// Id of the group.
    pub fn id(&self) -> GroupId {
        self.shared.id
    }

    /// Replica id of this replica.
    pub fn replica(&self) -> u64 {
        self.shared.me
    }

    /// Starts a new group: to be called on an empty log, on any one of the members or on all of them with the same
    /// members. Does nothing when the group is initialised. Ends before there is a leader, and may end before the first entry is durable: to
    /// be repeated after a restart, while [`Group::is_initialized`] says no.
    pub async fn initialize(&self, members: BTreeMap<u64, Member>) -> Result<(), InitializeError> {
        match self.shared.raft.initialize(members).await {
            Ok(()) => Ok(()),
            Err(RaftError::APIError(openraft::errors::InitializeError::NotAllowed(_))) => Ok(()),
            Err(RaftError::APIError(openraft::errors::InitializeError::NotInMembers(_))) => {
                Err(InitializeError::NotMember)
            }
            Err(RaftError::Fatal(fatal)) => Err(InitializeError::Failed(fatal.to_string())),
        }
    }

    /// Whether the group was initialised, as far as this replica knows. A stopped replica says no.
    pub async fn is_initialized(&self) -> bool {
        self.shared.raft.is_initialized().await.unwrap_or(false)
    }

    /// When appended entries count as durable on this replica; votes are always synced. Holds from the next entry on.
    pub fn set_durability(&self, mode: SyncMode) {
        self.shared.log.set_sync(mode);
    }

    /// Hands an entry to the group; waits only for room in its queue, which orders proposals. `local` is handed to
    /// [`Machine::apply`](crate::Machine::apply) in this process. Content with a spare byte of capacity and no other
    /// owner is not copied.
    pub async fn propose(&self, data: Bytes, local: Option<Local>) -> Result<Proposal, ProposeError> {
        if data.len() >= ENTRY_BYTES {
            return Err(ProposeError::TooLarge { bytes: data.len() });
        }
        let (responder, outcome) = OneshotResponder::new_pair();
        match self.shared.raft.client_write_ff(Data::new(data, local), Some(responder)).await {
            Ok(()) => Ok(Proposal(outcome)),
            // The queue is closed: the entry never came into it.
            Err(_) => Err(ProposeError::NotLeader { leader: None }),
        }
    }

    /// Whether a read of the machine's state is linearizable right now: this replica leads, has applied the first
    /// entry of its term, and holds a lease. Cheap, does not wait. Ask first, then read: state read after an `Ok` shows everything acknowledged
    /// before the question.
    #[inline]
    pub fn lease(&self) -> Result<(), NotLeased> {
        self.shared.lease.check()
    }

    /// Confirms with a majority that this replica leads, and waits until everything that was committed by then is
    /// applied; a read after that is linearizable without any lease.
    ///
    /// openraft asks the followers, says up to which entry they may have acknowledged something, and waits until that is applied. That they
    /// answered in this round is for the lease to say: openraft may take the late reply to an older append for an answer.
    pub async fn read_index(&self) -> Result<(), ReadError> {
        let lease = &self.shared.lease;
        let (asked, Some(term)) = (lease.now(), lease.leads()) else {
            return Err(ReadError::NotLeader { leader: self.shared.status.borrow().leader });
        };
        match self.shared.raft.ensure_linearizable(ReadPolicy::ReadIndex).await {
            Ok(_) => loop {
                match lease.confirmed(term, asked) {
                    Some(true) => return Ok(()),
                    Some(false) if lease.now() > asked + self.shared.timing.lease() => {
                        return Err(ReadError::NoQuorum);
                    }
                    // The answers to what openraft sent are on their way.
                    Some(false) => tokio::time::sleep(ANSWER_PAUSE).await,
                    None => return Err(ReadError::NotLeader { leader: None }),
                }
            },
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(ReadError::NotLeader { leader: leader_to_ask(&forward) })
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => Err(ReadError::NoQuorum),
            Err(RaftError::Fatal(_)) => Err(ReadError::Failed),
        }
    }

    /// Hands the leadership to a voter whose log is nearly complete, and waits until it leads. Proposals are refused
    /// meanwhile. Whatever comes of it, this replica's lease has ended for its term; when the target does not take over, the group elects.
    pub async fn transfer_leader(&self, to: u64) -> Result<(), TransferError> {
        let mut status = self.shared.status.clone();
        let term = {
            let status = status.borrow();
            if status.failed.is_some() {
                return Err(TransferError::Failed);
            }
            if status.role != Role::Leader {
                return Err(TransferError::NotLeader { leader: status.leader });
            }
            if to == self.shared.me {
                return Ok(());
            }
            if !status.voters.contains(&to) {
                return Err(TransferError::NotVoter { to });
            }
            let matched = status.matched.get(&to).copied().unwrap_or(0);
            let behind = status.last.saturating_sub(matched);
            if behind > TRANSFER_LAG {
                return Err(TransferError::Behind { to, behind });
            }
            status.term
        };
        // Rule 2 of the lease; the network does it again for transfers that openraft starts.
        self.shared.lease.give_up(term);
        self.shared.raft.trigger().transfer_leader(to).await.map_err(|_| TransferError::Failed)?;
        let taken_over = status
            .wait_for(|status| status.failed.is_some() || (status.term > term && status.leader.is_some()));
        let deadline = self.shared.timing.lease() + self.shared.timing.election_max();
        match tokio::time::timeout(deadline, taken_over).await {
            Ok(Ok(status)) if status.failed.is_some() => Err(TransferError::Failed),
            Ok(Ok(status)) if status.leader == Some(to) => Ok(()),
            Ok(Ok(_)) | Err(_) => Err(TransferError::TimedOut { to }),
            Ok(Err(_)) => Err(TransferError::Failed),
        }
    }

    /// The replica's state, and news of it.
    pub fn status(&self) -> watch::Receiver<Arc<Status>> {
        self.shared.status.clone()
    }

    /// How long ago the last request was sent that a majority acknowledged. `None` when this replica does not lead, when
    /// nothing was acknowledged yet, or for a sole voter.
    pub fn quorum_age(&self) -> Option<Duration> {
        self.shared.lease.quorum_age()
    }

    /// On the leader: how long ago the last request was sent that each other replica acknowledged; replicas that were not
    /// heard of in this term are left out. Empty elsewhere.
    pub fn member_ages(&self) -> BTreeMap<u64, Duration> {
        self.shared.lease.ages()
    }

    /// Takes a snapshot of everything applied here, unless there is one, and purges the log before it but for the tail that the settings
    /// keep; returns the index of the last entry in it. Waits for its turn: a server builds one snapshot at a time.
    pub async fn snapshot(&self) -> Result<u64, SnapshotError> {
        let index = self.shared.snapshots.take(&self.shared.managed).await?;
        self.shared.managed.purge(false).await;
        Ok(index)
    }

    /// Figures of the snapshots here.
    pub fn snapshot_stats(&self) -> SnapshotStats {
        self.shared.managed.stats()
    }

    /// Numbers of the last frame written to this server's log, and of the last one known to be on its disk.
    pub fn frames(&self) -> (u64, u64) {
        self.shared.log.frames()
    }

    /// What the replica went through.
    pub fn stats(&self) -> GroupStats {
        *self.shared.stats.lock()
    }

    /// Stops the replica. Its log stays. Proposals in flight end as [`ProposeError::Lost`].
    pub async fn shutdown(&self) {
        self.shared.inbound.remove(self.shared.id.0, self.shared.me);
        self.shared.snapshots.remove(self.shared.id);
        // The result only says whether the task panicked, which is logged there.
        let _ = self.shared.raft.shutdown().await;
        self.shared.managed.close().await;
        // The last state, with the reason it stopped, has been published; nothing follows it.
        for task in self.shared.tasks.lock().drain(..) {
            task.abort();
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for task in self.tasks.lock().drain(..) {
            task.abort();
        }
    }
}

/// Follows a replica's metrics, tells its lease and its log of them and publishes its status.
struct Watcher {
    lease: Arc<Lease>,
    log: GroupLog,
    metrics: openraft::alias::WatchReceiverOf<Types, Metrics>,
    status: watch::Sender<Arc<Status>>,
    /// Made anew only when the membership changes.
    membership: Membership,
    /// What is to be applied before the replica has recovered, once a leader has said.
    recovery: Recovery,
    stats: Arc<Mutex<GroupStats>>,
    /// The last leader that was known.
    last_leader: Option<u64>,
}

/// Members of the group as of an entry.
#[derive(Clone, Default)]
struct Membership {
    id: Option<LogIdOf<Types>>,
    members: Arc<BTreeMap<u64, Member>>,
    voters: Arc<BTreeSet<u64>>,
    /// The voters; two sets while one takes the place of the other.
    joint: Arc<Vec<Vec<u64>>>,
}

/// How far a restarted replica is.
#[derive(Clone, Copy)]
enum Recovery {
    /// No leader has been heard to have committed as far as the log reaches. Before its start the replica cannot have applied more than
    /// its log reached then.
    Unknown {
        last_at_start: u64,
    },
    /// Everything up to this index is committed and has to be applied.
    Applying(u64),
    Done,
}

impl Watcher {
    fn new(lease: Arc<Lease>, log: GroupLog, raft: &Raft, last_at_start: Option<u64>) -> Watcher {
        let metrics = raft.metrics();
        let recovery = match last_at_start {
            Some(last_at_start) => Recovery::Unknown { last_at_start },
            None => Recovery::Done,
        };
        Watcher {
            lease,
            log,
            metrics,
            status: watch::Sender::new(Arc::default()),
            membership: Membership::default(),
            recovery,
            stats: Arc::default(),
            last_leader: None,
        }
    }

    async fn run(mut self) {
        loop {
            self.look();
            if self.metrics.changed().await.is_err() {
                return;
            }
        }
    }

    /// Takes in one state of the replica.
    fn look(&mut self) {
        let (standing, status) = {
            let metrics = self.metrics.borrow_and_update();
            self.membership.update(&metrics);
            self.recovery = self.recovery.next(&metrics);
            let leads = metrics.state == ServerState::Leader;
            let applied_term = metrics.last_applied.map(|id| id.leader_id.term);
            let standing = leads.then(|| Standing {
                term: metrics.current_term,
                applied_term,
                voters: self.membership.joint.clone(),
                membership: self.membership.id.map_or(0, |id| id.index),
            });
            let ready = leads && applied_term == Some(metrics.current_term);
            #[cfg(feature = "bugs")]
            let ready = ready || leads && kvorum_bugs::has(kvorum_bugs::Bug::NoReadBarrier);
            let matched = match &metrics.replication {
                Some(replication) if leads => replication
                    .iter()
                    .map(|(replica, matched)| (*replica, matched.map_or(0, |id| id.index)))
                    .collect(),
                _ => BTreeMap::new(),
            };
            let failed = match &metrics.running_state {
                Ok(()) => None,
                Err(Fatal::Stopped) => Some("stopped".to_owned()),
                Err(fatal) => Some(fatal.to_string()),
            };
            let status = Status {
                role: role(metrics.state),
                term: metrics.current_term,
                leader: metrics.current_leader,
                ready: ready && failed.is_none(),
                recovered: matches!(self.recovery, Recovery::Done) || ready,
                last: metrics.last_log_index.unwrap_or(0),
                committed: metrics.local_committed.map_or(0, |id| id.index),
                applied: metrics.last_applied.map_or(0, |id| id.index),
                matched,
                members: self.membership.members.clone(),
                voters: self.membership.voters.clone(),
                failed,
            };
            (standing, status)
        };
        if let Some(standing) = standing {
            self.lease.renew(standing);
        }
        self.log.set_lacking(status.matched.values().min().map(|matched| matched + 1));
        self.count(&status);
        self.status.send_if_modified(|current| {
            let changed = **current != status;
            if changed {
                *current = Arc::new(status);
            }
            changed
        });
    }

    /// Counts what the change to this status means.
    fn count(&mut self, status: &Status) {
        let before = self.status.borrow();
        let mut stats = self.stats.lock();
        let new_term = status.term > before.term;
        if status.role == Role::Candidate && (before.role != Role::Candidate || new_term) {
            stats.elections += 1;
        }
        if status.role == Role::Leader && (before.role != Role::Leader || new_term) {
            stats.won += 1;
        }
        if status.leader.is_some() && status.leader != self.last_leader {
            stats.leader_changes += u64::from(self.last_leader.is_some());
            self.last_leader = status.leader;
        }
    }
}

fn role(state: ServerState) -> Role {
    match state {
        ServerState::Leader => Role::Leader,
        ServerState::Follower | ServerState::Shutdown => Role::Follower,
        ServerState::Candidate => Role::Candidate,
        ServerState::Learner => Role::Learner,
    }
}

impl Membership {
    fn update(&mut self, metrics: &Metrics) {
        let stored = &metrics.membership_config;
        let id = *stored.log_id();
        if id == self.id {
            return;
        }
        self.id = id;
        self.members = Arc::new(stored.nodes().map(|(id, member)| (*id, member.clone())).collect());
        self.voters = Arc::new(stored.voter_ids().collect());
        let joint = stored.membership().get_joint_config();
        self.joint = Arc::new(joint.iter().map(|voters| voters.iter().copied().collect()).collect());
    }
}

impl Recovery {
    fn next(self, metrics: &Metrics) -> Recovery {
        let applied = metrics.last_applied.map(|id| id.index);
        let committed = metrics.cluster_committed.map(|id| id.index);
        match self {
            Recovery::Unknown { last_at_start } if applied >= Some(last_at_start) => Recovery::Done,
            // The end of the log may have been cut off and never be reached again. The first position that a leader names may
            // be an old one, so it counts only when it covers the log.
            Recovery::Unknown { .. } if committed.is_some() && committed >= metrics.last_log_index => {
                Recovery::Applying(committed.unwrap_or(0)).next(metrics)
            }
            Recovery::Applying(index) if applied >= Some(index) => Recovery::Done,
            unchanged => unchanged,
        }
    }
}
