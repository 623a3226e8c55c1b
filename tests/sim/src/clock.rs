//! The clocks of one simulated machine: a monotonic one that runs a little fast or slow, and a wall clock that jumps.

use kvorum_node::TimeSource;
use kvorum_raft::Clock;
use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// Both clocks of one machine, driven by tokio's paused time. They go on while the machine's processes are suspended or dead.
#[derive(Debug)]
pub(crate) struct MachineClock {
    origin: Instant,
    /// Monotonic time at the origin.
    booted: Duration,
    /// Parts per million that the monotonic clock is fast (or slow).
    drift_ppm: i64,
    wall: Mutex<i64>,
}

/// Wall time at the start of every simulation, milliseconds since the epoch.
const EPOCH_MS: i64 = 1_790_000_000_000;

impl MachineClock {
    pub(crate) fn new(origin: Instant, booted: Duration, drift_ppm: i64) -> MachineClock {
        MachineClock { origin, booted, drift_ppm, wall: Mutex::new(EPOCH_MS) }
    }

    /// The wall clock jumps.
    pub(crate) fn jump_ms(&self, by: i64) {
        *self.wall.lock() += by;
    }

    fn elapsed(&self) -> Duration {
        let truly = i64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(i64::MAX);
        let felt = truly + truly / 1_000_000 * self.drift_ppm;
        Duration::from_nanos(felt.unsigned_abs())
    }
}

impl Clock for MachineClock {
    fn now(&self) -> Duration {
        self.booted + self.elapsed()
    }
}

impl TimeSource for MachineClock {
    fn monotonic_us(&self) -> u64 {
        u64::try_from(Clock::now(self).as_micros()).unwrap_or(u64::MAX)
    }

    fn wall_ms(&self) -> u64 {
        let elapsed = i64::try_from(self.elapsed().as_millis()).unwrap_or(i64::MAX);
        (*self.wall.lock() + elapsed).unsigned_abs()
    }
}
