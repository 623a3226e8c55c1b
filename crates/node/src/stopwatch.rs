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

#[cfg(test)]
mod tests {
    use super::*;
    use kvorum_keyspace::{Args, Command, Sink, Slot, lookup};
    use std::thread::sleep;

    /// Notes which commands were slow; replies are nothing to it.
    struct Slow {
        after: Option<Duration>,
        noted: Vec<(String, Duration)>,
    }

    impl Sink for Slow {
        fn simple(&mut self, _: &str) {}
        fn error(&mut self, _: &[u8]) {}
        fn int(&mut self, _: i64) {}
        fn bulk(&mut self, _: &[u8]) {}
        fn null(&mut self) {}
        fn null_array(&mut self) {}
        fn array(&mut self, _: usize) {}
        fn map(&mut self, _: usize) {}
        fn set(&mut self, _: usize) {}
        fn double(&mut self, _: f64) {}
        fn boolean(&mut self, _: bool) {}
        fn verbatim(&mut self, _: &str, _: &[u8]) {}
    }

    impl ReplySink for Slow {
        fn not_served(&mut self, _: Slot) {}
        fn mark(&self) -> usize {
            0
        }
        fn rewind(&mut self, _: usize) {}
        fn slow_after(&self) -> Option<Duration> {
            self.after
        }
        fn slow(&mut self, _: &'static Command, args: Args<'_>, took: Duration) {
            self.noted.push((String::from_utf8(args.join(&b' ')).unwrap(), took));
        }
    }

    /// Runs three fast commands and one that is not; the second and the last take their time.
    fn noted(after: Option<Duration>) -> Vec<(String, Duration)> {
        const TIME: Duration = Duration::from_millis(30);
        let mut batch = Batch::new();
        for (name, key) in [("get", "a"), ("get", "b"), ("get", "c"), ("keys", "*")] {
            batch.push(lookup(name.as_bytes()).unwrap(), 0, [name.as_bytes(), key.as_bytes()].into_iter());
        }
        let mut out = Slow { after, noted: Vec::new() };
        let mut watch = Stopwatch::start(after);
        for n in 0..4 {
            if n == 1 || n == 3 {
                sleep(TIME);
            }
            watch.ran(&batch, n, n == 3, &mut out);
        }
        out.noted
    }

    #[test]
    fn fast_commands_share_their_time_unless_short_times_are_asked_for() {
        assert_eq!(noted(None), []);
        assert_eq!(noted(Some(Duration::from_secs(10))), []);
        let names =
            |noted: &[(String, Duration)]| noted.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        // A third of 30 ms each.
        let shared = noted(Some(Duration::from_millis(8)));
        assert_eq!(names(&shared), ["get a", "get b", "get c", "keys *"]);
        assert_eq!(shared[0].1, shared[2].1);
        assert!(shared[3].1 >= Duration::from_millis(30));
        let exact = noted(Some(Duration::ZERO));
        assert_eq!(names(&exact), ["get a", "get b", "get c", "keys *"]);
        assert!(exact[1].1 >= Duration::from_millis(30) && exact[1].1 > exact[0].1);
    }
}
