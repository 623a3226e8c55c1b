//! Changing who takes part in a group: [`Group::set_members`].
//!
//! Replicas come and go in three steps, each an entry of the group's log: new ones are added as learners; once they have the
//! log, one joint change makes them voters while others leave; the joint configuration is left. Each step begins only when
//! the one before is committed, and only on top of the membership that the caller looked at. Whoever leads next finds in its log how far the
//! change has come, so asking again with the same target goes on there.
//!
//! Contract: there is never a moment at which two majorities without a common replica could decide. A leader that is not
//! among the new members leads until the change is committed, then hands over and becomes a learner that nobody asks.
//! What it leaves out: who the members should be, and new addresses of members that stay.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use openraft::{
    ChangeMembers,
    async_runtime::WatchReceiver,
    errors::{ChangeMembershipError, ClientWriteError, RaftError},
    raft::Precondition,
};

use crate::{
    group::{Group, Role, leader_to_ask},
    types::{Member, Types},
};

/// How many entries a learner may lag behind and still become a voter. Under load it always lags by what is under way; the
/// majorities that commit the change do not need it.
const PROMOTION_LAG: u64 = 128;

/// Why the members are not (yet) as asked. Nothing is undone: asking again goes on from what was reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// This replica does not lead, or has not applied the first entry of its term yet.
    #[error("not the leader")]
    NotLeader {
        /// Replica id of the leader, when known.
        leader: Option<u64>,
    },
    /// A group has at least one member.
    #[error("a group without members")]
    NoMember,
    /// Another change is under way.
    #[error("another change of the members is under way")]
    InProgress,
    /// A new member does not have the log yet.
    #[error("replica {replica} is {behind} entries behind")]
    Lagging {
        /// The new member.
        replica: u64,
        /// Entries it has not confirmed.
        behind: u64,
    },
    /// A new member was not heard lately: as a voter it would only be in the way.
    #[error("replica {replica} does not answer")]
    Silent {
        /// The new member.
        replica: u64,
    },
    /// The step was not committed in time; it may be later.
    #[error("no majority confirmed the change in time")]
    TimedOut,
    /// Leadership was lost meanwhile; whether the step was committed will show.
    #[error("the outcome of the change is unknown")]
    Lost,
    /// The change makes no sense.
    #[error("the change was refused: {0}")]
    Refused(String),
    /// The replica has stopped.
    #[error("the replica has stopped")]
    Failed,
}

/// The membership that the log ends with.
struct Current {
    members: BTreeMap<u64, Member>,
    voters: BTreeSet<u64>,
    joint: bool,
    guard: Precondition<Types>,
}

impl Group {
    /// Makes these the members of the group, all of them voters; on the leader. Takes as many steps as are possible now, each
    /// for at most `patience`; an error says why it stopped, and calling again goes on. Does nothing when all is as asked.
    pub async fn set_members(
        &self,
        target: &BTreeMap<u64, Member>,
        patience: Duration,
    ) -> Result<(), MembershipError> {
        self.set_voters(target, &target.keys().copied().collect(), patience).await
    }

    /// The same, and only some of the members vote.
    pub async fn set_voters(
        &self,
        target: &BTreeMap<u64, Member>,
        wanted: &BTreeSet<u64>,
        patience: Duration,
    ) -> Result<(), MembershipError> {
        if wanted.is_empty() || !wanted.iter().all(|voter| target.contains_key(voter)) {
            return Err(MembershipError::NoMember);
        }
        let current = self.current_members()?;
        let mut missing = target.clone();
        missing.retain(|replica, _| !current.members.contains_key(replica));
        if !missing.is_empty() {
            self.change(ChangeMembers::AddNodes(missing), false, current.guard, patience).await?;
        }
        let current = self.current_members()?;
        if current.joint || current.voters != *wanted {
            wanted.difference(&current.voters).try_for_each(|replica| self.may_vote(*replica))?;
            // Voters that leave do not stay as learners, unless some shall.
            let retain =
                current.voters.iter().any(|voter| !wanted.contains(voter) && target.contains_key(voter));
            let change = ChangeMembers::ReplaceAllVoters(wanted.clone());
            self.change(change, retain, current.guard, patience).await?;
        }
        // Those that the group has given up.
        let current = self.current_members()?;
        let rest: BTreeSet<u64> =
            current.members.into_keys().filter(|replica| !target.contains_key(replica)).collect();
        if !rest.is_empty() {
            self.change(ChangeMembers::RemoveNodes(rest), false, current.guard, patience).await?;
        }
        Ok(())
    }

    fn current_members(&self) -> Result<Current, MembershipError> {
        {
            let status = self.status();
            let status = status.borrow();
            if status.failed.is_some() {
                return Err(MembershipError::Failed);
            }
            if status.role != Role::Leader || !status.ready {
                let leader = status.leader.filter(|leader| *leader != self.replica());
                return Err(MembershipError::NotLeader { leader });
            }
        }
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        let stored = &metrics.membership_config;
        let committed = metrics.local_committed.map(|id| id.index);
        if stored.log_id().as_ref().map(|id| id.index) > committed {
            return Err(MembershipError::InProgress);
        }
        Ok(Current {
            members: stored.nodes().map(|(id, member)| (*id, member.clone())).collect(),
            voters: stored.voter_ids().collect(),
            joint: stored.membership().get_joint_config().len() > 1,
            guard: Precondition::LastMembershipLogId { last_membership_log_id: *stored.log_id() },
        })
    }

    /// Whether a learner has the log and answers.
    fn may_vote(&self, replica: u64) -> Result<(), MembershipError> {
        let (last, confirmed) = {
            let metrics = self.raft().metrics();
            let metrics = metrics.borrow_watched();
            let confirmed = metrics.replication.as_ref().and_then(|all| all.get(&replica).copied().flatten());
            (metrics.last_log_index.unwrap_or(0), confirmed.map(|id| id.index))
        };
        let behind = last.saturating_sub(confirmed.unwrap_or(0));
        if confirmed.is_none() || behind > PROMOTION_LAG {
            return Err(MembershipError::Lagging { replica, behind });
        }
        let age = self.member_ages().get(&replica).copied();
        if age.is_none_or(|age| age > self.timing().lease()) {
            return Err(MembershipError::Silent { replica });
        }
        Ok(())
    }

    /// One step, or for voters the two that belong together.
    async fn change(
        &self,
        changes: ChangeMembers<u64, Member>,
        retain: bool,
        guard: Precondition<Types>,
        patience: Duration,
    ) -> Result<(), MembershipError> {
        let change = self.raft().change_membership_if(changes, retain, [guard]);
        match tokio::time::timeout(patience, change).await {
            Err(_) => Err(MembershipError::TimedOut),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::Fatal(_))) => Err(MembershipError::Failed),
            Ok(Err(RaftError::APIError(error))) => Err(match error {
                ClientWriteError::ForwardToLeader(forward) => {
                    MembershipError::NotLeader { leader: leader_to_ask(&forward) }
                }
                ClientWriteError::LogEntryDiscarded(_) => MembershipError::Lost,
                ClientWriteError::PreconditionFailed(_)
                | ClientWriteError::ChangeMembershipError(
                    ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_),
                ) => MembershipError::InProgress,
                ClientWriteError::ChangeMembershipError(other) => MembershipError::Refused(other.to_string()),
            }),
        }
    }
}
