//! The leader's lease: until when this replica may answer reads on its own.
//!
//! A lease rests on promises of voters: who acknowledged the leader at time *t* votes for nobody else during one lease
//! (the longest election time-out) after that. openraft keeps the promises while a voter runs, but a lease is only safe
//! together with these rules:
//!
//! 1. **No vote within a lease after a start** ([`VoteGate`]): a voter that restarted has forgotten whom it
//!    acknowledged, so it neither answers votes and pre-votes nor campaigns until one lease has passed. An election that
//!    the leader itself asked for (a transfer) is answered. A sole voter that voted for itself last need not wait. So the promise need
//!    not be on a disk: heartbeats are acknowledged without waiting for what was to be written before them, once the leader's vote is
//!    there (`transport/inbound.rs`).
//! 2. **A transfer ends the lease** ([`Lease::give_up`]): it tells voters to break their promises, and nobody knows
//!    which of them heard of it. Before the first request of any transfer leaves, lease reads end for that term,
//!    whatever comes of it.
//! 3. **Margin** ([`LEASE_MARGIN_PERCENT`]): only four fifths of the lease are used, counted from the time the acknowledged request
//!    was *sent* ([`Lease::acknowledged`]), so clocks may run apart by a fifth. That time is noted with each request: openraft's own
//!    `last_quorum_acked` concludes it from positions, and takes the reply to an append for one to the empty request that
//!    told of a commit after it.
//! 4. **Time goes on while the machine sleeps**: see [`BootClock`](crate::BootClock).
//! 5. **Not before the term's own entry is applied** ([`Lease::renew`]): before that the replica may not have
//!    everything that earlier leaders acknowledged.
//! 6. **Own vote first** ([`Lease::vote_saved`]): the leader is a voter too. Before it stores a vote for another, or
//!    accepts another leader, its lease ends; by the time the other can use that vote, no read runs on this lease.
//! 7. **No restored leadership**: a restarted leader is a follower (`enable_leader_restore = false`).
//! 8. **A sole voter** leases to itself, and only while the membership that says so is the newest in its log
//!    ([`Lease::membership_appended`]).
//!
//! Where a fact is not known the answer is no. The answer costs one load and one look at the clock.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

use crate::clock::Environment;

/// Rule 3: how much of the lease, counted from the last acknowledged request, may be used.
pub const LEASE_MARGIN_PERCENT: u32 = 80;

/// Why a replica may not answer a read on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotLeased {
    /// It is not the leader.
    #[error("this replica is not the leader")]
    NotLeader,
    /// It leads, but has not applied the first entry of its term, or no majority has answered yet.
    #[error("the leader is not ready")]
    NotReady,
    /// A transfer of the leadership was attempted in this term.
    #[error("the lease was given up for this term")]
    GivenUp,
    /// No majority has answered for too long.
    #[error("the lease has run out")]
    Expired,
}

/// The lease of one replica.
#[derive(Debug)]
pub(crate) struct Lease {
    me: u64,
    usable: Duration,
    environment: Environment,
    /// Nanoseconds of the environment's clock; 0 when there is no lease. Written under the lock of `facts` only.
    until_ns: AtomicU64,
    facts: Mutex<Facts>,
}

#[derive(Debug, Default)]
struct Facts {
    /// The vote stored last.
    vote: Option<Ballot>,
    /// The highest term in which a transfer was attempted.
    given_up: Option<u64>,
    /// Index of the newest membership in the log.
    membership: u64,
    /// Whether a lease was ever granted for the vote above, to tell `NotReady` from `Expired`.
    granted: bool,
    /// The term of the acknowledgements below.
    term: u64,
    /// When the last request was sent that each other replica acknowledged.
    acknowledged: BTreeMap<u64, Duration>,
    /// What was reported last for the vote above.
    standing: Option<Standing>,
}

impl Facts {
    /// When the last request was sent that a majority acknowledged: of each set of voters when there are two. This replica
    /// acknowledges itself at all times: [`Duration::MAX`] when that is a majority.
    fn quorum(&self, me: u64, voters: &[Vec<u64>]) -> Option<Duration> {
        let quorum_of = |voters: &Vec<u64>| {
            let mut sent: Vec<Duration> = voters
                .iter()
                .filter_map(|&voter| {
                    if voter == me { Some(Duration::MAX) } else { self.acknowledged.get(&voter).copied() }
                })
                .collect();
            sent.sort_unstable_by(|a, b| b.cmp(a));
            sent.get(voters.len() / 2).copied()
        };
        // An empty list orders before everything.
        voters.iter().map(quorum_of).min().flatten()
    }
}

/// A vote as far as the lease cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ballot {
    pub(crate) term: u64,
    pub(crate) replica: u64,
    pub(crate) committed: bool,
}

/// What a leader knows about its standing at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) term: u64,
    /// Term of the last applied entry.
    pub(crate) applied_term: Option<u64>,
    /// The voters; two sets while one takes the place of the other.
    pub(crate) voters: Arc<Vec<Vec<u64>>>,
    /// Index of the membership that says so.
    pub(crate) membership: u64,
}

impl Lease {
    pub(crate) fn new(me: u64, lease: Duration, environment: Environment) -> Lease {
        Lease {
            me,
            usable: lease * LEASE_MARGIN_PERCENT / 100,
            environment,
            until_ns: AtomicU64::new(0),
            facts: Mutex::default(),
        }
    }

    /// Whether a read may be answered now.
    #[inline]
    pub(crate) fn check(&self) -> Result<(), NotLeased> {
        // The load comes before the look at the clock and before the read: a lease that ends in between was
        // still good when the read began, and a read may be placed anywhere between its begin and its end.
        let until_ns = self.until_ns.load(Ordering::Acquire);
        #[cfg(feature = "bugs")]
        if until_ns != 0 && kvorum_bugs::has(kvorum_bugs::Bug::DeposedLeaderAnswers) {
            return Ok(());
        }
        if until_ns != 0 && nanos(self.environment.now()) < until_ns { Ok(()) } else { Err(self.why_not()) }
    }

    #[cold]
    fn why_not(&self) -> NotLeased {
        let facts = self.facts.lock();
        match facts.vote {
            Some(vote) if vote.committed && vote.replica == self.me => {
                if facts.given_up >= Some(vote.term) {
                    NotLeased::GivenUp
                } else if facts.granted {
                    NotLeased::Expired
                } else {
                    NotLeased::NotReady
                }
            }
            _ => NotLeased::NotLeader,
        }
    }

    /// Rule 6. Called before a vote is handed to the disk; answers to whoever asked for the vote come after that.
    pub(crate) fn vote_saved(&self, vote: Ballot) {
        #[cfg(feature = "bugs")]
        if kvorum_bugs::has(kvorum_bugs::Bug::DeposedLeaderAnswers)
            && self.until_ns.load(Ordering::Acquire) != 0
        {
            return;
        }
        let mut facts = self.facts.lock();
        if facts.vote != Some(vote) {
            facts.vote = Some(vote);
            facts.granted = false;
            facts.standing = None;
            self.until_ns.store(0, Ordering::Release);
        }
    }

    /// Rule 2. Called before the first request of a transfer is sent.
    pub(crate) fn give_up(&self, term: u64) {
        #[cfg(feature = "bugs")]
        if kvorum_bugs::has(kvorum_bugs::Bug::TransferKeepsLease) {
            return;
        }
        let mut facts = self.facts.lock();
        facts.given_up = facts.given_up.max(Some(term));
        if facts.vote.is_some_and(|vote| vote.term <= term) {
            self.until_ns.store(0, Ordering::Release);
        }
    }

    /// Rule 8. Called before a membership is appended to the log.
    pub(crate) fn membership_appended(&self, index: u64) {
        let mut facts = self.facts.lock();
        facts.membership = index;
        facts.granted = false;
        self.until_ns.store(0, Ordering::Release);
    }

    /// Called when the log behind `index` is cut off. Only followers cut their log.
    pub(crate) fn log_truncated(&self, index: Option<u64>) {
        let mut facts = self.facts.lock();
        if index.is_none_or(|index| facts.membership > index) {
            facts.membership = 0;
        }
    }

    /// What the environment's clock shows: when a request is being sent.
    pub(crate) fn now(&self) -> Duration {
        self.environment.now()
    }

    /// Rule 3: `replica` acknowledged, as a follower in `term`, a request that was not sent before `sent`.
    pub(crate) fn acknowledged(&self, term: u64, replica: u64, sent: Duration) {
        let mut facts = self.facts.lock();
        if term > facts.term {
            facts.term = term;
            facts.acknowledged.clear();
        }
        if term < facts.term {
            return;
        }
        let last = facts.acknowledged.entry(replica).or_insert(sent);
        // Replies to heartbeats and to appends overtake each other.
        *last = sent.max(*last);
        self.extend(&mut facts);
    }

    /// Rule 5. `standing` may be out of date: it counts only for the vote that is stored now, and the lease reaches no further than
    /// acknowledgements do.
    pub(crate) fn renew(&self, standing: Standing) {
        let mut facts = self.facts.lock();
        if facts.vote == Some(self.own(standing.term)) {
            facts.standing = Some(standing);
            self.extend(&mut facts);
        }
    }

    /// This replica's vote as the leader of a term.
    fn own(&self, term: u64) -> Ballot {
        Ballot { term, replica: self.me, committed: true }
    }

    /// Extends the lease by what is known.
    fn extend(&self, facts: &mut Facts) {
        let Some(standing) = &facts.standing else { return };
        let given_up = facts.given_up >= Some(standing.term);
        let own_entry_applied = standing.applied_term == Some(standing.term);
        #[cfg(feature = "bugs")]
        let own_entry_applied = own_entry_applied || kvorum_bugs::has(kvorum_bugs::Bug::NoReadBarrier);
        let membership_current = standing.membership >= facts.membership;
        if given_up || !own_entry_applied || !membership_current {
            return;
        }
        let Some(sent) = self.quorum_sent(facts) else { return };
        facts.granted = true;
        let until_ns = nanos(sent.saturating_add(self.usable));
        // For one vote acknowledgements only advance, but a sole voter may have got company.
        let until_ns = match self.until_ns.load(Ordering::Relaxed) {
            u64::MAX => until_ns,
            current => current.max(until_ns),
        };
        self.until_ns.store(until_ns, Ordering::Release);
    }

    fn quorum_sent(&self, facts: &Facts) -> Option<Duration> {
        let standing = facts.standing.as_ref()?;
        // Acknowledgements of another term are none of this one's.
        if standing.term == facts.term {
            facts.quorum(self.me, &standing.voters)
        } else {
            Facts::default().quorum(self.me, &standing.voters)
        }
    }

    /// The term in which this replica leads, by the vote that is stored.
    pub(crate) fn leads(&self) -> Option<u64> {
        let facts = self.facts.lock();
        facts.vote.map(|vote| vote.term).filter(|term| facts.vote == Some(self.own(*term)))
    }

    /// Whether a majority acknowledged, in this term, what was sent at `since` or after it; `None` when this replica does not lead in
    /// that term any more. As with the lease, the time counts at which a request was sent, not what openraft concludes from positions.
    pub(crate) fn confirmed(&self, term: u64, since: Duration) -> Option<bool> {
        let facts = self.facts.lock();
        if facts.vote != Some(self.own(term)) {
            return None;
        }
        let of_term = facts
            .standing
            .as_ref()
            .is_some_and(|standing| standing.term == term && standing.membership >= facts.membership);
        Some(of_term && self.quorum_sent(&facts).is_some_and(|sent| sent >= since))
    }

    /// How long ago the last request was sent that a majority acknowledged. `None` when this replica does not lead, when
    /// nothing was acknowledged yet, or for a sole voter.
    pub(crate) fn quorum_age(&self) -> Option<Duration> {
        let sent = self.quorum_sent(&self.facts.lock()).filter(|sent| *sent != Duration::MAX)?;
        Some(self.environment.now().saturating_sub(sent))
    }

    /// On the leader: how long ago the last request was sent that each other replica acknowledged.
    pub(crate) fn ages(&self) -> BTreeMap<u64, Duration> {
        let facts = self.facts.lock();
        if facts.vote != Some(self.own(facts.term)) {
            return BTreeMap::new();
        }
        let now = self.environment.now();
        facts.acknowledged.iter().map(|(replica, sent)| (*replica, now.saturating_sub(*sent))).collect()
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Rule 1: until when a replica neither answers nor asks for votes.
#[derive(Debug)]
pub(crate) struct VoteGate {
    environment: Environment,
    opens: Duration,
}

impl VoteGate {
    /// `promised`: the replica may have acknowledged a leader in an earlier life. A replica with an empty log and no vote
    /// has not.
    pub(crate) fn new(environment: Environment, lease: Duration, promised: bool) -> VoteGate {
        let now = environment.now();
        #[cfg(feature = "bugs")]
        let promised = promised && !kvorum_bugs::has(kvorum_bugs::Bug::LeaseWithoutRestartRule);
        VoteGate { environment, opens: if promised { now + lease } else { now } }
    }

    /// How long votes are still to be ignored; zero when they may be answered.
    pub(crate) fn closed_for(&self) -> Duration {
        self.opens.saturating_sub(self.environment.now())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::Clock;

    const LEASE: Duration = Duration::from_millis(600);

    /// A clock set by hand, milliseconds.
    #[derive(Debug, Default)]
    struct Hand(AtomicU64);

    impl Clock for Hand {
        fn now(&self) -> Duration {
            Duration::from_millis(self.0.load(Ordering::Relaxed))
        }
    }

    fn leader() -> (Arc<Hand>, Lease) {
        let clock = Arc::new(Hand(AtomicU64::new(1000)));
        let lease = Lease::new(1, LEASE, Environment::simulated(clock.clone(), 0));
        lease.vote_saved(Ballot { term: 5, replica: 1, committed: true });
        (clock, lease)
    }

    fn standing() -> Standing {
        Standing { term: 5, applied_term: Some(5), voters: Arc::new(vec![vec![1, 2, 3]]), membership: 0 }
    }

    /// A majority has acknowledged what was sent at that moment.
    fn acknowledged(lease: &Lease, ms: u64) {
        lease.acknowledged(5, 2, Duration::from_millis(ms));
    }

    #[test]
    fn lease_is_used_up_to_its_margin_from_the_time_of_sending() {
        let (clock, lease) = leader();
        lease.renew(standing());
        assert_eq!(lease.check(), Err(NotLeased::NotReady));
        acknowledged(&lease, 1000);
        clock.0.store(1479, Ordering::Relaxed);
        assert_eq!(lease.check(), Ok(()));
        assert_eq!(lease.quorum_age(), Some(Duration::from_millis(479)));
        clock.0.store(1480, Ordering::Relaxed);
        assert_eq!(lease.check(), Err(NotLeased::Expired));
        acknowledged(&lease, 900);
        assert_eq!(lease.check(), Err(NotLeased::Expired), "an old acknowledgement extended the lease");
        acknowledged(&lease, 1200);
        assert_eq!(lease.check(), Ok(()));
        assert_eq!(lease.ages(), BTreeMap::from([(2, Duration::from_millis(280))]));
    }

    #[test]
    fn a_round_is_confirmed_by_what_was_sent_in_it_alone() {
        let ms = Duration::from_millis;
        let (_, lease) = leader();
        assert_eq!(lease.leads(), Some(5));
        acknowledged(&lease, 1500);
        assert_eq!(lease.confirmed(5, ms(1500)), Some(false), "nothing is known of the voters");
        lease.renew(standing());
        assert_eq!(
            lease.confirmed(5, ms(1501)),
            Some(false),
            "the reply to a request from before the round counted"
        );
        assert_eq!(lease.confirmed(5, ms(1500)), Some(true));
        lease.membership_appended(9);
        assert_eq!(lease.confirmed(5, ms(1500)), Some(false), "the old membership counted");
        lease.renew(Standing { membership: 9, ..standing() });
        assert_eq!(lease.confirmed(5, ms(1500)), Some(true));
        // Given up is the lease, not the leadership.
        lease.give_up(5);
        assert_eq!(lease.confirmed(5, ms(1500)), Some(true));
        lease.vote_saved(Ballot { term: 6, replica: 2, committed: false });
        assert_eq!((lease.confirmed(5, ms(1500)), lease.leads()), (None, None));
        lease.vote_saved(Ballot { term: 7, replica: 1, committed: true });
        assert_eq!((lease.confirmed(5, ms(1500)), lease.leads()), (None, Some(7)), "another term of its own");
    }

    #[test]
    fn a_majority_of_each_set_of_voters_has_to_acknowledge() {
        let facts = |acknowledged: &[(u64, u64)]| Facts {
            acknowledged: acknowledged.iter().map(|&(id, ms)| (id, Duration::from_millis(ms))).collect(),
            ..Facts::default()
        };
        let quorum = |acknowledged: &[(u64, u64)], voters: &[&[u64]]| {
            let voters: Vec<Vec<u64>> = voters.iter().map(|voters| voters.to_vec()).collect();
            facts(acknowledged).quorum(1, &voters).map(|sent| sent.as_millis())
        };
        let (me, always) = ([1].as_slice(), Some(Duration::MAX.as_millis()));
        assert_eq!(quorum(&[], &[]), None, "nobody votes");
        assert_eq!(quorum(&[], &[me]), always);
        assert_eq!(quorum(&[], &[&[1, 2]]), None);
        assert_eq!(quorum(&[(2, 7)], &[&[1, 2]]), Some(7));
        assert_eq!(quorum(&[(2, 7)], &[&[1, 2, 3]]), Some(7));
        assert_eq!(quorum(&[(2, 7), (3, 5)], &[&[1, 2, 3]]), Some(7), "the later of the two is enough");
        assert_eq!(quorum(&[(2, 7)], &[&[1, 2, 3, 4]]), None, "two of four");
        assert_eq!(quorum(&[(2, 7), (3, 5), (4, 3)], &[&[1, 2, 3, 4, 5]]), Some(5));
        assert_eq!(quorum(&[(2, 7), (9, 8)], &[&[1, 2, 3]]), Some(7), "a learner does not count");
        // This replica is on its way out: it is none of the new voters.
        assert_eq!(quorum(&[(2, 7), (3, 5)], &[&[2, 3]]), Some(5));
        // Two sets: of each.
        assert_eq!(quorum(&[(2, 7), (4, 3)], &[&[1, 2, 3], &[1, 4, 5]]), Some(3));
        assert_eq!(quorum(&[(2, 7), (3, 7)], &[&[1, 2, 3], &[1, 4, 5]]), None);
        assert_eq!(quorum(&[(2, 7)], &[me, &[1, 2, 3]]), Some(7));
    }

    #[test]
    fn acknowledgements_of_another_term_do_not_count() {
        let (_, lease) = leader();
        lease.renew(standing());
        lease.acknowledged(4, 2, Duration::from_millis(1000));
        assert_eq!(lease.check(), Err(NotLeased::NotReady));
        lease.acknowledged(5, 2, Duration::from_millis(1000));
        assert_eq!(lease.check(), Ok(()));
        lease.vote_saved(Ballot { term: 6, replica: 1, committed: true });
        lease.renew(Standing { term: 6, applied_term: Some(6), ..standing() });
        assert_eq!(lease.check(), Err(NotLeased::NotReady));
        lease.acknowledged(5, 3, Duration::from_millis(1000));
        assert_eq!(lease.check(), Err(NotLeased::NotReady));
        lease.acknowledged(6, 3, Duration::from_millis(1000));
        assert_eq!(lease.check(), Ok(()));
    }

    #[test]
    fn no_lease_before_an_entry_of_the_own_term_is_applied() {
        let (_, lease) = leader();
        acknowledged(&lease, 1000);
        assert_eq!(lease.check(), Err(NotLeased::NotReady), "nothing is known of where it stands");
        lease.renew(Standing { applied_term: Some(4), ..standing() });
        assert_eq!(lease.check(), Err(NotLeased::NotReady));
        lease.renew(Standing { applied_term: None, ..standing() });
        assert_eq!(lease.check(), Err(NotLeased::NotReady));
        lease.renew(standing());
        assert_eq!(lease.check(), Ok(()));
    }

    #[test]
    fn a_vote_for_another_ends_the_lease_whatever_is_still_reported() {
        for other in [
            Ballot { term: 6, replica: 2, committed: false },
            Ballot { term: 6, replica: 2, committed: true },
            Ballot { term: 6, replica: 1, committed: false },
        ] {
            let (_, lease) = leader();
            lease.renew(standing());
            acknowledged(&lease, 1000);
            assert_eq!(lease.check(), Ok(()));
            lease.vote_saved(other);
            assert_eq!(lease.check(), Err(NotLeased::NotLeader));
            lease.renew(standing());
            acknowledged(&lease, 1001);
            assert_eq!(lease.check(), Err(NotLeased::NotLeader), "a late report brought the lease back");
            assert_eq!((lease.quorum_age(), lease.ages()), (None, BTreeMap::new()));
        }
    }

    #[test]
    fn a_transfer_ends_the_lease_for_the_term_but_not_for_the_next() {
        let (_, lease) = leader();
        lease.renew(standing());
        acknowledged(&lease, 1000);
        lease.give_up(5);
        assert_eq!(lease.check(), Err(NotLeased::GivenUp));
        lease.renew(standing());
        acknowledged(&lease, 1001);
        assert_eq!(lease.check(), Err(NotLeased::GivenUp));
        lease.vote_saved(Ballot { term: 7, replica: 1, committed: true });
        lease.renew(Standing { term: 7, applied_term: Some(7), ..standing() });
        lease.acknowledged(7, 2, Duration::from_millis(1002));
        assert_eq!(lease.check(), Ok(()));
    }

    #[test]
    fn a_sole_voter_leases_to_itself_until_another_member_is_in_the_log() {
        let (clock, lease) = leader();
        let alone = || Standing { voters: Arc::new(vec![vec![1]]), ..standing() };
        lease.renew(alone());
        clock.0.store(1_000_000, Ordering::Relaxed);
        assert_eq!(lease.check(), Ok(()));
        assert_eq!(lease.quorum_age(), None);
        lease.membership_appended(9);
        assert!(lease.check().is_err());
        lease.renew(alone());
        acknowledged(&lease, 1_000_000);
        assert!(lease.check().is_err(), "the old membership counted");
        lease.renew(Standing { membership: 9, ..standing() });
        assert_eq!(lease.check(), Ok(()));
    }

    #[test]
    fn a_restarted_voter_waits_one_lease_and_a_new_one_does_not() {
        let clock = Arc::new(Hand(AtomicU64::new(50)));
        let environment = Environment::simulated(clock.clone(), 0);
        let restarted = VoteGate::new(environment.clone(), LEASE, true);
        let new = VoteGate::new(environment, LEASE, false);
        assert_eq!(restarted.closed_for(), LEASE);
        assert_eq!(new.closed_for(), Duration::ZERO);
        clock.0.store(649, Ordering::Relaxed);
        assert_eq!(restarted.closed_for(), Duration::from_millis(1));
        clock.0.store(650, Ordering::Relaxed);
        assert_eq!(restarted.closed_for(), Duration::ZERO);
    }
}
