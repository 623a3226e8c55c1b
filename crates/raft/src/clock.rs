//! Time and randomness of a server's Raft groups, injected as one [`Environment`].
//!
//! In production time is `CLOCK_BOOTTIME`: leases must run out while the machine is suspended, and `CLOCK_MONOTONIC`
//! stands still then. In tests time is tokio's (which can be paused) and randomness comes from a seed, so that a run can be
//! repeated. What it leaves out: wall time, which no decision of this crate depends on.

use std::{
    cell::Cell,
    fmt,
    future::Future,
    ops::{Add, AddAssign, Sub, SubAssign},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::future::Either;
use parking_lot::Mutex;
use tokio::task::{AbortHandle, JoinHandle, futures::TaskLocalFuture};

/// A clock that never goes back.
pub trait Clock: Send + Sync + fmt::Debug + 'static {
    /// Time since a fixed point of the clock's own choosing.
    fn now(&self) -> Duration;
}

/// `CLOCK_BOOTTIME`: time since the machine started, suspended time included.
#[derive(Clone, Copy, Debug, Default)]
pub struct BootClock;

impl Clock for BootClock {
    fn now(&self) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        // The kernel keeps both parts non-negative and nanoseconds below a second.
        Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
    }
}

/// tokio's clock, which stands still when paused and jumps when every task sleeps.
#[derive(Clone, Copy, Debug)]
pub struct TokioClock {
    start: tokio::time::Instant,
}

impl TokioClock {
    /// A clock that shows zero now. Needs a tokio runtime.
    pub fn new() -> TokioClock {
        TokioClock { start: tokio::time::Instant::now() }
    }
}

impl Default for TokioClock {
    fn default() -> TokioClock {
        TokioClock::new()
    }
}

impl Clock for TokioClock {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

/// Where a server's groups take time and randomness from. Clones are the same environment.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    simulated: Option<Arc<Simulated>>,
}

#[derive(Debug)]
struct Simulated {
    clock: Arc<dyn Clock>,
    seed: u64,
    /// State of [`Environment::draw`].
    drawn: AtomicU64,
    /// What was spawned and may still run; `None` once the process was killed.
    tasks: Mutex<Option<Vec<AbortHandle>>>,
}

impl Environment {
    /// [`BootClock`] and the operating system's entropy.
    pub fn real() -> Environment {
        Environment::default()
    }

    /// Time from `clock`, all randomness derived from `seed`.
    pub fn simulated(clock: Arc<dyn Clock>, seed: u64) -> Environment {
        let simulated = Simulated {
            clock,
            seed,
            drawn: AtomicU64::new(mix(seed, DRAW)),
            tasks: Mutex::new(Some(Vec::new())),
        };
        Environment { simulated: Some(Arc::new(simulated)) }
    }

    /// Whether time and randomness are injected: nothing may start a thread or look at the machine then.
    pub fn is_simulated(&self) -> bool {
        self.simulated.is_some()
    }

    /// A number for one use: an id, a seed, a jitter. Entropy, or the next of the seed's sequence.
    pub fn draw(&self) -> u64 {
        match &self.simulated {
            None => rand::random(),
            Some(simulated) => mix(simulated.drawn.fetch_add(ADVANCE, Ordering::Relaxed), DRAW),
        }
    }

    /// Starts a task that ends with the process: [`Environment::kill`] ends it in a simulation.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        match &self.simulated {
            None => tokio::spawn(future),
            Some(simulated) => simulated.spawn(future),
        }
    }

    /// The simulated process is gone, from one moment to the next: every task of it ends where it waits, and none starts any
    /// more. Does nothing to a real process.
    pub fn kill(&self) {
        if let Some(simulated) = &self.simulated {
            let tasks = simulated.tasks.lock().take();
            tasks.into_iter().flatten().for_each(|task| task.abort());
        }
    }

    /// What the clock shows.
    #[inline]
    pub fn now(&self) -> Duration {
        match &self.simulated {
            None => BootClock.now(),
            Some(simulated) => simulated.clock.now(),
        }
    }

    /// Runs `future`, and every task Raft spawns from it, in this environment. `salt` tells the sequences of several calls
    /// apart.
    pub(crate) fn run<F: Future>(&self, salt: u64, future: F) -> impl Future<Output = F::Output> + use<F> {
        match &self.simulated {
            None => Either::Right(future),
            Some(simulated) => {
                let seed = mix(simulated.seed, salt);
                let scope = Scope { simulated: simulated.clone(), seed: Cell::new(seed) };
                Either::Left(SCOPE.scope(scope, future))
            }
        }
    }
}

tokio::task_local! {
    static SCOPE: Scope;
}

/// The simulated environment of the running task.
pub(crate) struct Scope {
    simulated: Arc<Simulated>,
    seed: Cell<u64>,
}

impl Simulated {
    /// Tasks that ended are forgotten whenever the list has doubled.
    fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        let task = tokio::spawn(future);
        match &mut *self.tasks.lock() {
            Some(tasks) => {
                if tasks.len() == tasks.capacity() {
                    tasks.retain(|task| !task.is_finished());
                }
                tasks.push(task.abort_handle());
            }
            None => task.abort(),
        }
        task
    }
}

impl Scope {
    /// What the running task's clock shows.
    pub(crate) fn now() -> Duration {
        SCOPE.try_with(|scope| scope.simulated.clock.now()).unwrap_or_else(|_| BootClock.now())
    }

    /// Whether the running task is in a simulation.
    pub(crate) fn is_simulated() -> bool {
        SCOPE.try_with(|_| ()).is_ok()
    }

    /// A seed for one use: the next of the running task's sequence, or entropy outside a simulation.
    pub(crate) fn seed() -> u64 {
        SCOPE
            .try_with(|scope| scope.seed.replace(mix(scope.seed.get(), ADVANCE)))
            .unwrap_or_else(|_| rand::random())
    }

    /// `future` in a scope of its own that derives from the running task's; as it is outside a simulation.
    pub(crate) fn inherit<F: Future>(future: F) -> Either<TaskLocalFuture<Scope, F>, F> {
        let child = SCOPE.try_with(|scope| {
            let seed = scope.seed.replace(mix(scope.seed.get(), ADVANCE));
            Scope { simulated: scope.simulated.clone(), seed: Cell::new(mix(seed, FORK)) }
        });
        match child {
            Ok(child) => Either::Left(SCOPE.scope(child, future)),
            Err(_) => Either::Right(future),
        }
    }

    /// Starts a task of the running task's process, in a scope that derives from its own.
    pub(crate) fn spawn<F>(future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        let simulated = SCOPE.try_with(|scope| scope.simulated.clone()).ok();
        let future = Scope::inherit(future);
        match simulated {
            None => tokio::spawn(future),
            Some(simulated) => simulated.spawn(future),
        }
    }
}

/// Two different constants, so that a child's sequence leaves its parent's at every fork.
const ADVANCE: u64 = 0x6a09_e667_f3bc_c908;
const FORK: u64 = 0x9e37_79b9_7f4a_7c15;
const DRAW: u64 = 0xbb67_ae85_84ca_a73b;

/// SplitMix64's mixer.
fn mix(seed: u64, gamma: u64) -> u64 {
    let z = seed.wrapping_add(gamma);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A moment of the running task's clock. Arithmetic stops at the ends instead of overflowing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(pub(crate) Duration);

impl openraft_rt::Instant for Moment {
    fn now() -> Moment {
        Moment(Scope::now())
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;
    fn add(self, by: Duration) -> Moment {
        Moment(self.0.saturating_add(by))
    }
}

impl AddAssign<Duration> for Moment {
    fn add_assign(&mut self, by: Duration) {
        *self = *self + by;
    }
}

impl Sub<Duration> for Moment {
    type Output = Moment;
    fn sub(self, by: Duration) -> Moment {
        Moment(self.0.saturating_sub(by))
    }
}

impl Sub<Moment> for Moment {
    type Output = Duration;
    fn sub(self, earlier: Moment) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl SubAssign<Duration> for Moment {
    fn sub_assign(&mut self, by: Duration) {
        *self = *self - by;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_clock_advances_and_counts_from_the_start_of_the_machine() {
        let first = BootClock.now();
        std::thread::sleep(Duration::from_millis(2));
        let second = BootClock.now();
        assert!(second > first);
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        assert!((uptime - second.as_secs_f64()).abs() < 5.0, "{uptime} {second:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn same_seed_same_sequence_and_children_differ() {
        async fn draw(seed: u64) -> Vec<u64> {
            let environment = Environment::simulated(Arc::new(TokioClock::new()), seed);
            let drawing = async {
                let child = tokio::spawn(Scope::inherit(async { Scope::seed() }));
                let own = [Scope::seed(), Scope::seed()];
                vec![own[0], own[1], child.await.unwrap()]
            };
            environment.run(1, drawing).await
        }
        let first = draw(7).await;
        assert_eq!(first, draw(7).await);
        assert_ne!(first, draw(8).await);
        assert!(first[0] != first[1] && first[0] != first[2] && first[1] != first[2]);
    }

    #[tokio::test(start_paused = true)]
    async fn simulated_time_is_tokio_time() {
        let environment = Environment::simulated(Arc::new(TokioClock::new()), 1);
        let slept = async {
            let before = Scope::now();
            tokio::time::sleep(Duration::from_secs(3600)).await;
            Scope::now() - before
        };
        assert_eq!(environment.run(0, slept).await, Duration::from_secs(3600));
        assert_eq!(environment.now(), Duration::from_secs(3600));
    }
}
