//! When the next entry is proposed: at once, or when those who were just answered have asked again.
//!
//! An entry costs much the same whether it carries one batch or thirty: messages, wake-ups and a sync on each server. Clients that wait for
//! a reply before they ask again come back together, a moment after their entry is applied. To propose what the first of them
//! asks would split them into small entries from then on, so the proposer waits for as many as it expects.
//!
//! It does so only where that is little beside what a write takes anyway: entries that several share ([`FEW`]) and that take their time
//! ([`SLOW`]), which is so when the machine is busy, or the disk or the network slow. It never waits longer than
//! [`PATIENCE`]. Pure: no clock and no IO.

use std::time::Duration;

/// Batches in an entry for which it is not worth to wait.
const FEW: usize = 4;

/// Entries that take less than this do not wait for company.
const SLOW: Duration = Duration::from_millis(1);

/// The longest wait. Timers are no finer.
pub(crate) const PATIENCE: Duration = Duration::from_millis(1);

/// What is known of the entries of late.
#[derive(Debug, Default)]
pub(crate) struct Gathering {
    /// Batches in the newest entry, and when it was proposed.
    newest: usize,
    proposed: Duration,
    /// So many batches should be waiting soon; 0 when nothing is waited for.
    expected: usize,
}

impl Gathering {
    /// Whether what waits may be proposed, with so many entries in flight.
    pub(crate) fn is_over(&self, waiting: usize, in_flight: usize) -> bool {
        if in_flight == 0 {
            waiting >= self.expected
        } else {
            self.newest < FEW || waiting >= self.newest / 2
        }
    }

    /// Whether there is a wait, for [`PATIENCE`] at most.
    pub(crate) fn is_on(&self) -> bool {
        self.expected > 0
    }

    /// An entry of so many batches is on its way.
    pub(crate) fn proposed(&mut self, batches: usize, now: Duration) {
        *self = Gathering { newest: batches, proposed: now, expected: 0 };
    }

    /// The newest entry has an outcome, and none is in flight any more. Returns whether a wait begins.
    pub(crate) fn settled(&mut self, waiting: usize, now: Duration) -> bool {
        let took = now.saturating_sub(self.proposed);
        if self.newest >= FEW && took >= SLOW {
            // A few are always late.
            let all = self.newest + waiting;
            self.expected = all - all / 8;
        }
        self.is_on()
    }

    /// Whoever has not come by now does not come.
    pub(crate) fn give_up(&mut self) {
        self.expected = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn settled(batches: usize, took: Duration, waiting: usize) -> Gathering {
        let mut gathering = Gathering::default();
        gathering.proposed(batches, ms(100));
        gathering.settled(waiting, ms(100) + took);
        gathering
    }

    #[test]
    fn those_who_were_answered_are_waited_for_together_with_those_who_wait() {
        let mut gathering = settled(16, ms(2), 8);
        assert!(gathering.is_on());
        assert!(!gathering.is_over(20, 0));
        assert!(gathering.is_over(21, 0), "an eighth may be late");
        gathering.proposed(21, ms(103));
        assert!(!gathering.is_on());
        gathering.settled(0, ms(105));
        gathering.give_up();
        assert!(gathering.is_over(1, 0) && !gathering.is_on());
    }

    #[test]
    fn nobody_waits_where_it_would_be_much_of_what_a_write_takes() {
        for gathering in
            [settled(3, ms(20), 0), settled(40, ms(1) - Duration::from_nanos(1), 40), Gathering::default()]
        {
            assert!(!gathering.is_on());
            assert!(gathering.is_over(1, 0), "{gathering:?}");
        }
    }

    #[test]
    fn an_entry_joins_those_in_flight_when_it_is_worth_it() {
        let mut gathering = Gathering::default();
        gathering.proposed(1, ms(1));
        assert!(gathering.is_over(1, 1), "a lone client has not to wait for another");
        gathering.proposed(10, ms(1));
        assert!(!gathering.is_over(4, 1));
        assert!(gathering.is_over(5, 1));
    }
}
