//! The clock that decides expiry. It belongs to the log: every entry carries a reading, and it never goes
//! back. A leader's estimate starts, in each term, from the last reading it applied and the time since, so that
//! a new leader goes on where the log stopped, whatever it thought before. From there it runs with the monotonic
//! clock, slewed towards wall time, so that a server whose wall clock is wrong does not make it jump.

use parking_lot::Mutex;
use std::sync::Arc;

/// Where time comes from; injected so that tests can turn it.
pub trait TimeSource: Send + Sync {
    /// Microseconds of a clock that never goes back and counts time spent suspended.
    fn monotonic_us(&self) -> u64;
    /// Wall time, milliseconds since the Unix epoch.
    fn wall_ms(&self) -> u64;
}

/// The machine's clocks: CLOCK_BOOTTIME and CLOCK_REALTIME.
#[derive(Clone, Copy, Default, Debug)]
pub struct SystemTimeSource;

impl TimeSource for SystemTimeSource {
    fn monotonic_us(&self) -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000
    }

    fn wall_ms(&self) -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        now.tv_sec as u64 * 1_000 + now.tv_nsec as u64 / 1_000_000
    }
}

/// The estimate may run this much faster or slower than real time: one part in ten.
const SLEW_DIVISOR: u64 = 10;

/// One replica's estimate of its shard's log clock.
pub(crate) struct LogClock {
    time: Arc<dyn TimeSource>,
    state: Mutex<State>,
}

struct State {
    /// The term of the last entry.
    term: u64,
    /// The last entry's reading, and when it was applied.
    applied: Reading,
    /// Where the clock was when it was last asked, in this term.
    estimate: Reading,
}

#[derive(Clone, Copy)]
struct Reading {
    /// Microseconds since the Unix epoch; 0 before the first reading.
    clock_us: u64,
    /// Monotonic time of the reading.
    at_us: u64,
}

impl LogClock {
    pub(crate) fn new(time: Arc<dyn TimeSource>) -> LogClock {
        let none = Reading { clock_us: 0, at_us: time.monotonic_us() };
        LogClock { time, state: Mutex::new(State { term: 0, applied: none, estimate: none }) }
    }

    /// The clock now, milliseconds since the Unix epoch. Within a term never less than any earlier answer or entry.
    pub(crate) fn now_ms(&self) -> u64 {
        let mut state = self.state.lock();
        // Read inside the lock, so that readings are ordered as the estimates are.
        let (at_us, wall_us) = (self.time.monotonic_us(), self.time.wall_ms() * 1_000);
        #[cfg(feature = "bugs")]
        if kvorum_bugs::has(kvorum_bugs::Bug::LocalExpiry) {
            return wall_us / 1_000;
        }
        let elapsed = at_us.saturating_sub(state.estimate.at_us);
        state.estimate.at_us = at_us;
        state.estimate.clock_us = match state.estimate.clock_us {
            0 => wall_us,
            estimate => {
                let on_time = estimate + elapsed;
                let slew = elapsed / SLEW_DIVISOR;
                if wall_us > on_time {
                    on_time + slew.min(wall_us - on_time)
                } else {
                    on_time - slew.min(on_time - wall_us)
                }
            }
        };
        state.estimate.clock_us / 1_000
    }

    /// An entry of this term was applied. The first of a term starts the estimate anew: what this server has
    /// made of the clock while others led, or was cut off, is not the log's.
    pub(crate) fn entered(&self, term: u64) {
        self.enter(&mut self.state.lock(), term);
    }

    /// An entry of this term with this reading was applied.
    pub(crate) fn observe(&self, term: u64, clock_ms: u64) {
        let mut state = self.state.lock();
        self.enter(&mut state, term);
        state.applied = Reading { clock_us: clock_ms * 1_000, at_us: self.time.monotonic_us() };
        if state.applied.clock_us > state.estimate.clock_us {
            state.estimate = state.applied;
        }
    }

    fn enter(&self, state: &mut State, term: u64) {
        if term == state.term {
            return;
        }
        state.term = term;
        let at_us = self.time.monotonic_us();
        let clock_us = match state.applied.clock_us {
            0 => 0,
            clock_us => clock_us + at_us.saturating_sub(state.applied.at_us),
        };
        state.estimate = Reading { clock_us, at_us };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[derive(Default)]
    struct Turned {
        monotonic_us: AtomicU64,
        wall_ms: AtomicU64,
    }

    impl Turned {
        fn pass(&self, ms: u64) {
            self.monotonic_us.fetch_add(ms * 1_000, Ordering::Relaxed);
            self.wall_ms.fetch_add(ms, Ordering::Relaxed);
        }
    }

    impl TimeSource for Turned {
        fn monotonic_us(&self) -> u64 {
            self.monotonic_us.load(Ordering::Relaxed)
        }
        fn wall_ms(&self) -> u64 {
            self.wall_ms.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn a_wall_clock_an_hour_ahead_does_not_make_the_log_jump() {
        let time = Arc::new(Turned::default());
        time.wall_ms.store(10_000_000 + 3_600_000, Ordering::Relaxed);
        let clock = LogClock::new(time.clone());
        clock.observe(1, 10_000_000);
        time.pass(60_000);
        let after_a_minute = clock.now_ms();
        assert_eq!(after_a_minute, 10_000_000 + 66_000, "slewed by a tenth, no more");
    }

    #[test]
    fn a_wall_clock_behind_slows_the_clock_but_never_turns_it_back() {
        let time = Arc::new(Turned::default());
        time.wall_ms.store(5_000_000, Ordering::Relaxed);
        let clock = LogClock::new(time.clone());
        clock.observe(1, 10_000_000);
        let mut last = clock.now_ms();
        for _ in 0..100 {
            time.pass(7);
            let now = clock.now_ms();
            assert!(now >= last);
            last = now;
        }
        assert_eq!(last, 10_000_000 + 630);
    }

    #[test]
    fn the_first_reading_of_a_new_shard_is_wall_time() {
        let time = Arc::new(Turned::default());
        time.wall_ms.store(1_700_000_000_000, Ordering::Relaxed);
        assert_eq!(LogClock::new(time).now_ms(), 1_700_000_000_000);
    }

    #[test]
    fn a_term_goes_on_where_the_log_stopped_not_where_this_server_had_got_to() {
        let time = Arc::new(Turned::default());
        time.wall_ms.store(10_000_000, Ordering::Relaxed);
        let clock = LogClock::new(time.clone());
        clock.observe(1, 10_000_000);
        time.pass(5_000);
        assert_eq!(clock.now_ms(), 10_005_000);
        // Meanwhile another led, that was down before and so is four seconds behind.
        clock.observe(2, 10_001_000);
        time.pass(500);
        clock.entered(3);
        assert_eq!(clock.now_ms(), 10_001_500);
        time.pass(100);
        clock.entered(3);
        assert_eq!(clock.now_ms(), 10_001_610, "an entry of the same term changes nothing");
    }

    #[test]
    fn an_entry_that_took_its_time_does_not_turn_its_leader_back() {
        let time = Arc::new(Turned::default());
        time.wall_ms.store(10_000_000, Ordering::Relaxed);
        let clock = LogClock::new(time.clone());
        clock.entered(1);
        let proposed = clock.now_ms();
        time.pass(40);
        assert_eq!(clock.now_ms(), 10_000_040);
        clock.observe(1, proposed);
        assert_eq!(clock.now_ms(), 10_000_040);
    }
}
