//! When a follower asks for votes: as soon as its leader's lease is over, if silence as long as that is unusual for this leader.
//!
//! openraft's own timer waits a random time after the lease, so that two followers seldom stand together. That costs a failover a quarter
//! of a second in the median. Here followers stand in an order that both know ([`Campaign::turn`]), and how long they wait is measured:
//! [`Hearing`] keeps the longest pause between two signs of life of the leader, and a follower stands after twice that, but not before the
//! lease is over. On a quiet machine that is the lease; on one where heartbeats are late, it is longer, up to where openraft's own timer,
//! which goes on, stands anyhow. A pause that is longer than any patience is no habit of the leader's: something was broken, or this server
//! stood still itself.
//!
//! Nothing here is a matter of safety: a pre-vote is asked for first, which changes nothing, and which no voter grants while the lease that it
//! granted lasts. (After Ongaro's dissertation, 9.6, and the suspicion of accrual failure detectors, Hayashibara et al. 2004, with the
//! maximum in place of a distribution.)

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use openraft_rt::{AsyncRuntime, Instant as _};
use parking_lot::Mutex;
use rand::RngExt;
use tokio::sync::watch;
use tracing::info;

use crate::{
    clock::{Environment, Moment},
    group::{Raft, Role, Status},
    host::Timing,
    lease::VoteGate,
    runtime::Runtime,
};

/// How long a pause is remembered at least; at most twice that.
const MEMORY: Duration = Duration::from_secs(60);

/// A wake-up that is later than this tells of a busy machine here, which may have kept the leader's signs from being read.
const LATE: Duration = Duration::from_millis(25);

/// So long before the time to stand timers are exact; until then this task wakes up when others do. It is also how long signs of life
/// have to be read after this thread was busy.
const EXACT: Duration = Duration::from_millis(100);
/// What is farther away than this leaves time to wake up with others.
const FAR: Duration = Duration::from_millis(200);

/// What a follower hears of its leader.
#[derive(Debug)]
pub(crate) struct Hearing {
    environment: Environment,
    /// Longer pauses are not remembered.
    patience: Duration,
    heard: Mutex<Heard>,
    /// The highest term whose leader's vote is known to be on this replica's disk.
    stored: AtomicU64,
}

#[derive(Debug, Default)]
struct Heard {
    /// The term of the leader.
    term: u64,
    /// When it gave the last sign of life; `None` before the first.
    last: Option<Duration>,
    /// The longest pause since `since`, and in the time before that.
    longest: [Duration; 2],
    since: Duration,
}

impl Hearing {
    pub(crate) fn new(environment: Environment, timing: &Timing) -> Hearing {
        let patience = longest_patience(timing);
        Hearing { environment, patience, heard: Mutex::default(), stored: AtomicU64::new(0) }
    }

    /// The leader of a term has sent something. What it sends does not wait for the disk before this is called.
    pub(crate) fn sign(&self, term: u64) {
        let now = self.environment.now();
        let mut heard = self.heard.lock();
        if term < heard.term {
            return;
        }
        // Between two leaders nobody was late.
        let pause =
            heard.last.filter(|_| term == heard.term).map_or(Duration::ZERO, |last| now.saturating_sub(last));
        if now.saturating_sub(heard.since) >= MEMORY {
            heard.longest = [Duration::ZERO, heard.longest[0]];
            heard.since = now;
        }
        if pause <= self.patience {
            heard.longest[0] = heard.longest[0].max(pause);
        }
        heard.term = term;
        heard.last = Some(now);
    }

    /// The vote of that term's leader is on the disk.
    pub(crate) fn stored(&self, term: u64) {
        self.stored.fetch_max(term, Ordering::Relaxed);
    }

    /// Whether the vote of that term's leader is on the disk.
    pub(crate) fn is_stored(&self, term: u64) -> bool {
        self.stored.load(Ordering::Relaxed) == term
    }

    /// When the leader of `term` gave its last sign, and the longest pause that is remembered.
    fn of(&self, term: u64) -> Option<(Duration, Duration)> {
        let heard = self.heard.lock();
        let last = heard.last.filter(|_| heard.term == term)?;
        Some((last, heard.longest[0].max(heard.longest[1])))
    }
}

/// Makes one replica stand in time.
pub(crate) struct Campaign {
    pub(crate) group: u64,
    pub(crate) me: u64,
    pub(crate) raft: Raft,
    pub(crate) status: watch::Receiver<Arc<Status>>,
    pub(crate) hearing: Arc<Hearing>,
    pub(crate) gate: Arc<VoteGate>,
    pub(crate) timing: Timing,
}

impl Campaign {
    /// Runs until the replica has stopped.
    pub(crate) async fn run(self) {
        // How much later it was than it should have been when this task was last woken in time to stand.
        let mut late = Duration::ZERO;
        loop {
            let now = Moment::now();
            match self.time_to_stand() {
                Some(at) if at > now => {
                    if at - now > FAR {
                        Runtime::sleep_until(now + (at - now - EXACT)).await;
                    } else {
                        Runtime::sleep(at - now).await;
                    }
                    late = Moment::now() - at;
                }
                // This thread was busy, or the machine asleep: what the leader has sent meanwhile is still to be read.
                Some(_) if late > LATE => {
                    Runtime::sleep(EXACT).await;
                    late = Duration::ZERO;
                }
                Some(_) => {
                    self.tell();
                    if self.raft.trigger().elect(true).await.is_err() {
                        return;
                    }
                    self.rest().await;
                }
                None => self.rest().await,
            }
        }
    }

    /// Tells why this replica stands.
    fn tell(&self) {
        let status = self.status.borrow().clone();
        let Some((last, longest)) = self.hearing.of(status.term) else { return };
        let silent_ms = Moment::now().0.saturating_sub(last).as_millis();
        let longest_pause_ms = longest.as_millis();
        info!(
            group = self.group,
            term = status.term,
            leader = status.leader,
            silent_ms,
            longest_pause_ms,
            "the leader is silent: asking for votes"
        );
    }

    /// As long as openraft rests between two attempts at least, so that answers have time to arrive, and not always equally long.
    async fn rest(&self) {
        let shortest = self.timing.election_min_ms;
        let jitter = Runtime::thread_rng().random_range(0..shortest.max(1));
        Runtime::sleep(Duration::from_millis(shortest + jitter)).await;
    }

    /// When this replica should ask for votes, as far as it knows now; `None` when it should not, or when that is openraft's matter: it leads,
    /// does not vote, or a vote is under way.
    fn time_to_stand(&self) -> Option<Moment> {
        let status = self.status.borrow().clone();
        let leader = status.leader.filter(|leader| *leader != self.me)?;
        if status.role != Role::Follower || !self.gate.closed_for().is_zero() {
            return None;
        }
        let turn = turn(self.group, self.me, leader, status.voters.iter().copied())?;
        let (last, longest) = self.hearing.of(status.term)?;
        Some(Moment(last) + patience(&self.timing, longest) + self.timing.turn() * turn)
    }
}

/// How much silence of a leader is suspicious whose longest pause so far was `longest`.
fn patience(timing: &Timing, longest: Duration) -> Duration {
    (longest * 2).clamp(timing.lease(), longest_patience(timing))
}

/// When openraft's own timer stands at the latest.
fn longest_patience(timing: &Timing) -> Duration {
    timing.lease() + timing.election_max()
}

/// How many others stand before `me` when `leader` is gone. Another one is first in the next group, or all shards of a lost server would
/// go to one of the others. `None` when `me` does not vote.
fn turn(group: u64, me: u64, leader: u64, voters: impl Iterator<Item = u64>) -> Option<u32> {
    let others: Vec<u64> = voters.filter(|voter| *voter != leader).collect();
    let place = others.iter().position(|voter| *voter == me)?;
    let first = usize::try_from(group % others.len() as u64).unwrap_or(0);
    u32::try_from((place + others.len() - first) % others.len()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[derive(Debug, Default)]
    struct Hand(AtomicU64);

    impl Clock for Hand {
        fn now(&self) -> Duration {
            Duration::from_millis(self.0.load(Ordering::Relaxed))
        }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn patience_is_the_lease_where_signs_come_in_time_and_grows_with_their_pauses() {
        let timing = Timing { election_max_ms: 500, ..Timing::default() };
        for (longest, silence) in
            [(0, 500), (110, 500), (250, 500), (300, 600), (450, 900), (800, 1000), (60_000, 1000)]
        {
            assert_eq!(patience(&timing, ms(longest)), ms(silence), "{longest}");
        }
    }

    #[test]
    fn pauses_are_those_of_one_leader_and_are_forgotten_after_a_while() {
        let clock = Arc::new(Hand::default());
        let timing = Timing { election_max_ms: 500, ..Timing::default() };
        let hearing = Hearing::new(Environment::simulated(clock.clone(), 0), &timing);
        let sign = |at: u64, term: u64| {
            clock.0.store(at, Ordering::Relaxed);
            hearing.sign(term);
        };
        assert_eq!(hearing.of(0), None);
        sign(1000, 3);
        sign(1100, 3);
        sign(1450, 3);
        sign(1500, 3);
        assert_eq!(hearing.of(3), Some((ms(1500), ms(350))));
        assert_eq!(hearing.of(4), None, "nothing was heard of that one");
        sign(1600, 2);
        assert_eq!(hearing.of(3), Some((ms(1500), ms(350))), "a deposed leader is none");
        sign(9000, 4);
        assert_eq!(hearing.of(4), Some((ms(9000), ms(350))), "the pause between two leaders is no leader's");
        sign(10_001, 4);
        assert_eq!(
            hearing.of(4),
            Some((ms(10_001), ms(350))),
            "one that nobody would have waited for is no pause"
        );
        for second in 11..=60 {
            sign(second * 1000, 4);
        }
        assert_eq!(hearing.of(4), Some((ms(60_000), ms(1000))));
        for tenth in 601..=2000 {
            sign(tenth * 100, 4);
        }
        assert_eq!(hearing.of(4), Some((ms(200_000), ms(100))));
    }

    #[test]
    fn followers_stand_one_after_the_other_and_another_one_first_in_each_group() {
        for (group, turns) in
            [(0, [Some(0), Some(1), None]), (1, [Some(1), Some(0), None]), (2, [Some(0), Some(1), None])]
        {
            assert_eq!([4, 6, 7].map(|me| turn(group, me, 5, [4, 5, 6].into_iter())), turns, "group {group}");
        }
        let five = |me| turn(3, me, 1, 1..=5);
        assert_eq!([2, 3, 4, 5].map(five), [1, 2, 3, 0].map(Some));
        assert_eq!(turn(0, 1, 2, [2].into_iter()), None);
    }
}
