//! The runtime openraft runs on: tokio, with time and randomness of the [`Environment`](crate::Environment).

use std::{
    future::{Future, Ready, ready},
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
        Self::sleep(deadline - Moment::now())
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
