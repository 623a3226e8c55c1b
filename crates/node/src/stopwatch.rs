//! How long commands run, for those who look for slow ones: the log, the majority and the network apart.

use crate::batch::{Batch, ReplySink};
use kvorum_keyspace::Flags;
use std::time::{Duration, Instant};

/// Times the commands of a batch of reads.
///
/// Looking at the clock takes some of the time of a GET, so fast commands that stand together are timed together, as long as
/// nobody asks for times that short.
pub(crate) struct Stopwatch {
    since: Option<Instant>,
    exact: bool,
    /// Commands before the last that are not timed yet.
    waiting: usize,
}

/// Who wants to hear of commands faster than this has every command timed for itself.
const EXACT_BELOW: Duration = Duration::from_millis(1);

impl Stopwatch {
    pub(crate) fn start(slow_after: Option<Duration>) -> Stopwatch {
        let exact = slow_after.is_some_and(|after| after < EXACT_BELOW);
        Stopwatch { since: slow_after.is_some().then(Instant::now), exact, waiting: 0 }
    }

    /// Command `n` has run; `last` when no other follows at once.
    pub(crate) fn ran(&mut self, batch: &Batch, n: usize, last: bool, out: &mut dyn ReplySink) {
        let Some(since) = self.since else { return };
        let fast = |n| batch.item(n).command.flags.has(Flags::FAST);
        if !self.exact && !last && fast(n) && fast(n + 1) {
            self.waiting += 1;
            return;
        }
        let now = Instant::now();
        let together = std::mem::take(&mut self.waiting);
        let took = (now - since) / u32::try_from(together + 1).unwrap_or(u32::MAX);
        self.since = Some(now);
        (n - together..=n).for_each(|n| tell_if_slow(batch, n, took, out));
    }
}

/// Tells the sink of a command that ran for longer than it wants to hear of.
pub(crate) fn tell_if_slow(batch: &Batch, n: usize, took: Duration, out: &mut dyn ReplySink) {
    if out.slow_after().is_some_and(|after| took >= after) {
        let item = batch.item(n);
        let argv = item.argv().expect("a batch holds what it packed itself");
        out.slow(item.command, &argv, took);
    }
}
