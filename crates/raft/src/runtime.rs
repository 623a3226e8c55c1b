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
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::clock::{Moment, Scope};

/// Sleeps shorter than this end at once. tokio's timers have a resolution of a millisecond, and openraft asks for
/// single microseconds to batch notifications of finished writes: rounded up, every write would wait a millisecond longer.
const SHORTEST_SLEEP: Duration = Duration::from_micros(100);

/// Timers of a process that are at least [`SHORTEST_ROUNDED`] away end together, every so often. openraft looks at each group's
/// timers fifty times a second, each group at moments of its own; an idle server did little but wake up for that. The grid is half of
/// the shortest time that is set by default, a heartbeat's, so none is late by more than that.
const GRID: Duration = Duration::from_millis(50);
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

/// Does work that is long, or waits for the disk, without keeping the tasks waiting that this thread would run next: heartbeats and
/// votes are among them, and there may be no other thread for them.
pub fn give_way<R>(work: impl FnOnce() -> R) -> R {
    let flavor = Handle::try_current().map(|runtime| runtime.runtime_flavor());
    if flavor.is_ok_and(|flavor| flavor == RuntimeFlavor::MultiThread) {
        tokio::task::block_in_place(work)
    } else {
        work()
    }
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
    fn others_go_on_while_work_gives_way_to_them() {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (ended, beats) = runtime.block_on(async {
            let (beat, mut beats) = tokio::sync::mpsc::unbounded_channel();
            tokio::spawn(async move {
                for _ in 0..3 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    let _ = beat.send(());
                }
            });
            // Ends only when the other task has beaten, on the one thread that there is.
            let work = move || {
                let all = (0..3).all(|_| beats.blocking_recv().is_some());
                (all, beats.is_empty())
            };
            tokio::spawn(async move { give_way(work) }).await.unwrap()
        });
        assert!(ended && beats);
    }

    #[test]
    fn timers_end_on_the_lines_of_the_grid_unless_they_are_short() {
        let ms = Duration::from_millis;
        for (deadline, begin, end) in [
            (100, 0, 100),
            (101, 0, 150),
            (149, 0, 150),
            (150, 0, 150),
            (100, 7, 107),
            (107, 7, 107),
            (108, 7, 157),
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
        assert_eq!(rounded(fine, ms(0), ms(0)), ms(50));
        assert_eq!(rounded(ms(1), ms(2), ms(0)), ms(0), "it is over");
    }
}
