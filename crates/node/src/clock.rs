//! The clock that decides expiry. It belongs to the log: every entry carries a reading, and it never goes
//! back. Each replica keeps an estimate that runs with the monotonic clock from the last reading it applied,
//! so that a new leader goes on where the old one stopped, and is slewed towards wall time, so that a server
//! whose wall clock is wrong does not make it jump.

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
    /// The estimate, microseconds since the Unix epoch; 0 before the first reading.
    estimate_us: u64,
    /// Monotonic time of the estimate.
    at_us: u64,
}

impl LogClock {
    pub(crate) fn new(time: Arc<dyn TimeSource>) -> LogClock {
        let at_us = time.monotonic_us();
        LogClock { time, state: Mutex::new(State { estimate_us: 0, at_us }) }
    }

    /// The clock now, milliseconds since the Unix epoch. Never less than any earlier answer or observation.
    pub(crate) fn now_ms(&self) -> u64 {
        let mut state = self.state.lock();
        // Read inside the lock, so that readings are ordered as the estimates are.
        let (at_us, wall_us) = (self.time.monotonic_us(), self.time.wall_ms() * 1_000);
        #[cfg(feature = "bugs")]
        if kvorum_bugs::has(kvorum_bugs::Bug::LocalExpiry) {
            return wall_us / 1_000;
        }
        let elapsed = at_us.saturating_sub(state.at_us);
        state.at_us = at_us;
        state.estimate_us = match state.estimate_us {
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
        state.estimate_us / 1_000
    }

    /// An entry with this reading was applied.
    pub(crate) fn observe(&self, clock_ms: u64) {
        let mut state = self.state.lock();
        if clock_ms * 1_000 > state.estimate_us {
            state.estimate_us = clock_ms * 1_000;
            state.at_us = self.time.monotonic_us();
        }
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
        clock.observe(10_000_000);
        time.pass(60_000);
        let after_a_minute = clock.now_ms();
        assert_eq!(after_a_minute, 10_000_000 + 66_000, "slewed by a tenth, no more");
    }

    #[test]
    fn a_wall_clock_behind_slows_the_clock_but_never_turns_it_back() {
        let time = Arc::new(Turned::default());
        time.wall_ms.store(5_000_000, Ordering::Relaxed);
        let clock = LogClock::new(time.clone());
        clock.observe(10_000_000);
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
}
