//! The runtime openraft runs on: tokio, with time and randomness of the [`Environment`](crate::Environment).

use std::{
    future::{Future, Ready, ready},
    sync::LazyLock,
    time::Duration,
};

use futures::future::Either;
use openraft_rt::{AsyncRuntime, Instant as _};
use openraft_rt_tokio::{TokioMpsc, TokioMutex, TokioOneshot, TokioRuntime, TokioWatch};
use rand::{SeedableRng, rngs::SmallRng};

use crate::clock::{Moment, Scope};

/// Sleeps shorter than this end at once. tokio's timers have a resolution of a millisecond, and openraft asks for
/// single microseconds to batch notifications of finished writes: rounded up, every write would wait a millisecond longer.
const SHORTEST_SLEEP: Duration = Duration::from_micros(100);

/// Timers of a process that are at least [`SHORTEST_ROUNDED`] away end together, every so often. openraft looks at each group's
/// timers fifty times a second, each group at moments of its own; an idle server did little but wake up for that.
const GRID: Duration = Duration::from_millis(20);
const SHORTEST_ROUNDED: Duration = Duration::from_millis(15);

/// Where this process's grid begins: servers that campaign must not do so at the same moment.
static GRID_BEGIN: LazyLock<Duration> =
    LazyLock::new(|| Duration::from_nanos(rand::random_range(0..GRID.as_nanos() as u64)));

/// How long a timer sleeps `now` that is due at `deadline`, with a grid that begins at `begin`.
fn rounded(deadline: Duration, now: Duration, begin: Duration) -> Duration {
    let remaining = deadline.saturating_sub(now);
    if remaining < SHORTEST_ROUNDED {
        return remaining;
    }
    let past = (deadline + GRID).saturating_sub(begin).as_nanos() % GRID.as_nanos();
    let rest = (GRID.as_nanos() - past) % GRID.as_nanos();
    remaining + Duration::from_nanos(rest as u64)
}

/// tokio with an injected clock and injected randomness.
#[derive(Debug)]
pub(crate) struct Runtime(TokioRuntime);

impl AsyncRuntime for Runtime {
    type JoinError = tokio::task::JoinError;
    type JoinHandle<T: Send + 'static> = tokio::task::JoinHandle<T>;
    type Sleep = Either<Ready<()>, tokio::time::Sleep>;
    type Instant = Moment;
    type TimeoutError = tokio::time::error::Elapsed;
    type Timeout<R, T: Future<Output = R> + Send> = tokio::time::Timeout<T>;
    type ThreadLocalRng = SmallRng;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + Send + 'static,
        T::Output: Send + 'static,
    {
        Scope::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        // Simulated time moves only while everybody sleeps: who waits for a moment by not sleeping would wait for ever.
        if duration.is_zero() || (duration < SHORTEST_SLEEP && !Scope::is_simulated()) {
            Either::Left(ready(()))
        } else {
            Either::Right(tokio::time::sleep(duration))
        }
    }

    fn sleep_until(deadline: Moment) -> Self::Sleep {
        let now = Moment::now();
        if Scope::is_simulated() {
            return Self::sleep(deadline - now);
        }
        Self::sleep(rounded(deadline.0, now.0, *GRID_BEGIN))
    }

    fn timeout<R, F: Future<Output = R> + Send>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        tokio::time::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + Send>(deadline: Moment, future: F) -> Self::Timeout<R, F> {
        tokio::time::timeout(deadline - Moment::now(), future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        join_error.is_panic()
    }

    fn thread_rng() -> SmallRng {
        SmallRng::seed_from_u64(Scope::seed())
    }

    type Mpsc = TokioMpsc;
    type Watch = TokioWatch;
    type Oneshot = TokioOneshot;
    type Mutex<T: Send + 'static> = TokioMutex<T>;

    fn new(threads: usize) -> Self {
        Runtime(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_end_on_the_lines_of_the_grid_unless_they_are_short() {
        let ms = Duration::from_millis;
        for (deadline, begin, end) in [
            (100, 0, 100),
            (101, 0, 120),
            (119, 0, 120),
            (120, 0, 120),
            (100, 7, 107),
            (107, 7, 107),
            (108, 7, 127),
        ] {
            for now in [50, 60, 80] {
                assert_eq!(
                    ms(now) + rounded(ms(deadline), ms(now), ms(begin)),
                    ms(end),
                    "{deadline} {begin}"
                );
            }
            let soon = ms(deadline) - SHORTEST_ROUNDED + Duration::from_nanos(1);
            assert_eq!(
                soon + rounded(ms(deadline), soon, ms(begin)),
                ms(deadline),
                "too short to be rounded"
            );
        }
        let fine = Duration::from_nanos(40_000_001);
        assert_eq!(rounded(fine, ms(0), ms(0)), ms(60));
        assert_eq!(rounded(ms(1), ms(2), ms(0)), ms(0), "it is over");
    }
}
