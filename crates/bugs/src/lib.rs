//! Known bugs that a test-only build puts back: do the tests that were not written for them find them?
//!
//! The crates that know a bug depend on this one only with their feature `bugs`, which no product build has. One bug is chosen
//! for the process, at run time; until then everything is right.

use std::sync::OnceLock;

/// A bug that systems like ours had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// A restarted replica votes at once, though it may have promised a lease before.
    LeaseWithoutRestartRule,
    /// Entries and votes are acknowledged before they are synced.
    AcknowledgeBeforeSync,
    /// A restarted replica does not know whom it voted for.
    VoteForgotten,
    /// The first entry after a restart from a snapshot is applied twice.
    AppliedTwice,
    /// Reads take a key for expired by the clock of the machine they run on.
    LocalExpiry,
    /// A new leader reads before it has applied an entry of its own term.
    NoReadBarrier,
    /// Whether the shard owns a slot is checked only when a command is routed.
    OwnershipAtRoutingOnly,
    /// Snapshots are received and installed without a look at their checksums.
    SnapshotUnchecked,
    /// Who reads of two sets of voters takes the newer one for the whole: members change without joint consensus.
    MembershipWithoutJoint,
    /// A server that comes back without its data directory is given its old place, and votes there.
    WipedServerVotes,
    /// A leader that hands over goes on answering reads by its lease.
    TransferKeepsLease,
    /// Who had a lease once has it for ever, also when another leads.
    DeposedLeaderAnswers,
}

/// All of them, with the names they are chosen by.
pub const BUGS: [(&str, Bug); 12] = [
    ("lease-without-restart-rule", Bug::LeaseWithoutRestartRule),
    ("acknowledge-before-sync", Bug::AcknowledgeBeforeSync),
    ("vote-forgotten", Bug::VoteForgotten),
    ("applied-twice", Bug::AppliedTwice),
    ("local-expiry", Bug::LocalExpiry),
    ("no-read-barrier", Bug::NoReadBarrier),
    ("ownership-at-routing-only", Bug::OwnershipAtRoutingOnly),
    ("snapshot-unchecked", Bug::SnapshotUnchecked),
    ("membership-without-joint", Bug::MembershipWithoutJoint),
    ("wiped-server-votes", Bug::WipedServerVotes),
    ("transfer-keeps-lease", Bug::TransferKeepsLease),
    ("deposed-leader-answers", Bug::DeposedLeaderAnswers),
];

static CHOSEN: OnceLock<Bug> = OnceLock::new();

/// Puts a bug back for the rest of the process; false when there is none of that name, or one was chosen already.
pub fn choose(name: &str) -> bool {
    let found = BUGS.iter().find(|(known, _)| *known == name);
    found.is_some_and(|(_, bug)| CHOSEN.set(*bug).is_ok())
}

/// Whether this bug was put back.
pub fn has(bug: Bug) -> bool {
    CHOSEN.get() == Some(&bug)
}
