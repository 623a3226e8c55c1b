//! What a burst does to everybody else: clients that were silent, and those that have just come, take their first turn a few at a time.
//!
//! A thousand connections that speak up at once would all stand in the runtime's queue before whoever speaks next. So a
//! [`Newcomer`] waits at the port's [`Crowd`] until it is let through, in the order in which they came; a client that was
//! heard a moment ago passes by. Waiting costs a newcomer neither a read nor a buffer: its bytes stay with the kernel.
//!
//! Being let through is for one step of its task, not until there is an outcome: nobody waits here for a disk, a peer or a leader.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

/// Newcomers that take their turn at a time.
const THROUGH: usize = 4;

/// Who was silent for so long is a newcomer again.
const SILENCE: Duration = Duration::from_secs(1);

/// The newcomers of a port.
#[derive(Clone, Debug)]
pub(crate) struct Crowd(Arc<Semaphore>);

impl Default for Crowd {
    fn default() -> Crowd {
        Crowd(Arc::new(Semaphore::new(THROUGH)))
    }
}

/// One connection's place in the crowd.
pub(crate) struct Newcomer {
    crowd: PollSemaphore,
    /// When it was heard last.
    heard: Option<Instant>,
    through: Option<OwnedSemaphorePermit>,
}

impl Newcomer {
    /// A connection that has just come.
    pub(crate) fn new(crowd: &Crowd) -> Newcomer {
        Newcomer { crowd: PollSemaphore::new(Arc::clone(&crowd.0)), heard: None, through: None }
    }

    /// Whether it has to be [let through](Newcomer::poll_through) before it is read from.
    pub(crate) fn must_wait(&self, now: Instant) -> bool {
        self.through.is_none() && self.heard.is_none_or(|heard| now.duration_since(heard) >= SILENCE)
    }

    /// Ready when it is let through; from then on until [`Newcomer::take_place`] it keeps its place.
    pub(crate) fn poll_through(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.crowd.poll_acquire(cx).map(|permit| self.through = permit)
    }

    /// It was heard.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.heard = Some(now);
    }

    /// The next newcomer may pass when this is dropped.
    pub(crate) fn take_place(&mut self) -> Option<OwnedSemaphorePermit> {
        self.through.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::task::Waker;

    #[test]
    fn a_few_pass_at_a_time_in_their_order_and_those_heard_of_late_pass_by() {
        let crowd = Crowd::default();
        let now = Instant::now();
        let mut cx = Context::from_waker(Waker::noop());
        let mut newcomers: Vec<Newcomer> = (0..THROUGH + 2).map(|_| Newcomer::new(&crowd)).collect();
        let passed: Vec<bool> =
            newcomers.iter_mut().map(|newcomer| newcomer.poll_through(&mut cx).is_ready()).collect();
        assert_eq!(passed.iter().filter(|passed| **passed).count(), THROUGH);
        assert!(passed[..THROUGH].iter().all(|passed| *passed));
        drop(newcomers[3].take_place());
        assert!(newcomers[THROUGH + 1].poll_through(&mut cx).is_pending());
        assert!(newcomers[THROUGH].poll_through(&mut cx).is_ready());

        let known = &mut newcomers[3];
        assert!(known.must_wait(now));
        known.heard(now);
        assert!(!known.must_wait(now + SILENCE / 2));
        assert!(known.must_wait(now + SILENCE));
    }

    #[tokio::test]
    async fn who_goes_makes_way() {
        let crowd = Crowd::default();
        let mut newcomers: Vec<Newcomer> = (0..THROUGH + 1).map(|_| Newcomer::new(&crowd)).collect();
        for newcomer in &mut newcomers[..THROUGH] {
            poll_fn(|cx| newcomer.poll_through(cx)).await;
        }
        let mut last = newcomers.pop().unwrap();
        let waiting = tokio::spawn(async move { poll_fn(|cx| last.poll_through(cx)).await });
        drop(newcomers);
        tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
    }
}
