//! Distribution of the times that a command takes, counted without a lock.
//!
//! Like Redis's: values from a nanosecond to a second, exact to about one in two hundred. Buckets double in width every
//! [`STEPS`] values, so a bucket is found by shifting, and all of them together take 12 KiB, made when the first time comes.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Buckets of one width.
const STEPS: usize = 128;
/// Longest time that is told from longer ones.
const MOST_NS: u64 = 1_000_000_000;
/// Below this every nanosecond has its bucket.
const EXACT_NS: u64 = 2 * STEPS as u64;
/// Number of buckets: enough for the bucket of [`MOST_NS`].
const BUCKETS: usize = index_of(MOST_NS) + 1;

/// A distribution of times.
#[derive(Debug, Default)]
pub(crate) struct Histogram(OnceLock<Box<[AtomicU32]>>);

/// A distribution as it was at some moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Distribution {
    /// Buckets that are not empty, ascending: the longest time in it, in nanoseconds, and how many.
    buckets: Vec<(u64, u64)>,
    /// All of them together.
    total: u64,
}

const fn index_of(ns: u64) -> usize {
    if ns < EXACT_NS {
        return ns as usize;
    }
    // Bits beyond those that a bucket tells apart.
    let shift = (64 - ns.leading_zeros() - EXACT_NS.trailing_zeros()) as usize;
    shift * STEPS + (ns >> shift) as usize
}

/// The longest time of a bucket.
const fn highest_of(index: usize) -> u64 {
    if index < 2 * STEPS {
        return index as u64;
    }
    let shift = index / STEPS - 1;
    let step = (index - shift * STEPS) as u64;
    ((step + 1) << shift) - 1
}

impl Histogram {
    /// Counts `times` calls that took `took` each.
    pub(crate) fn record(&self, took: Duration, times: u64) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).min(MOST_NS);
        let buckets = self.0.get_or_init(|| (0..BUCKETS).map(|_| AtomicU32::new(0)).collect());
        buckets[index_of(ns)].fetch_add(u32::try_from(times).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// Forgets everything.
    pub(crate) fn reset(&self) {
        for bucket in self.0.get().into_iter().flatten() {
            bucket.store(0, Ordering::Relaxed);
        }
    }

    /// What was counted so far.
    pub(crate) fn distribution(&self) -> Distribution {
        let all = self.0.get().into_iter().flatten();
        let counts = all.map(|bucket| u64::from(bucket.load(Ordering::Relaxed))).enumerate();
        let buckets: Vec<_> =
            counts.filter(|(_, count)| *count > 0).map(|(n, count)| (highest_of(n), count)).collect();
        Distribution { total: buckets.iter().map(|(_, count)| count).sum(), buckets }
    }
}

impl Distribution {
    /// Number of calls.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The time that this share of the calls, in percent, did not exceed, in nanoseconds.
    pub(crate) fn percentile_ns(&self, percent: f64) -> u64 {
        let wanted = (percent / 100.0 * self.total as f64 + 0.5).max(1.0) as u64;
        let mut seen = 0;
        for &(highest, count) in &self.buckets {
            seen += count;
            if seen >= wanted {
                return highest;
            }
        }
        self.buckets.last().map_or(0, |&(highest, _)| highest)
    }

    /// All times together, nearly, in nanoseconds.
    pub(crate) fn sum_ns(&self) -> u64 {
        self.buckets.iter().map(|(highest, count)| highest * count).sum()
    }

    /// How many calls took no longer than each of these times, ascending, in nanoseconds.
    pub(crate) fn cumulative(&self, bounds_ns: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let mut buckets = self.buckets.iter().peekable();
        let mut seen = 0;
        let counts = bounds_ns.into_iter().map(|bound| {
            while let Some((_, count)) = buckets.next_if(|(highest, _)| *highest <= bound) {
                seen += count;
            }
            seen
        });
        counts.collect()
    }

    /// LATENCY HISTOGRAM: microseconds, each about twice the one before, and how many calls took no longer; only those where something
    /// is added.
    pub(crate) fn doubling_us(&self) -> Vec<(u64, u64)> {
        let bounds: Vec<u64> =
            (10..30).map(|power| highest_of(index_of(1 << power))).chain([(1 << 30) - 1]).collect();
        let counts = self.cumulative(bounds.iter().copied());
        let mut before = 0;
        let added = |&(_, count): &(u64, u64)| count > std::mem::replace(&mut before, count);
        bounds.into_iter().map(|ns| ns / 1000).zip(counts).filter(added).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_in_its_bucket_and_buckets_are_narrow() {
        let mut ns = 0_u64;
        while ns <= MOST_NS {
            let index = index_of(ns);
            let (low, high) = (if index == 0 { 0 } else { highest_of(index - 1) + 1 }, highest_of(index));
            assert!((low..=high).contains(&ns), "{ns} is not in {low}..={high}");
            assert!((high - low) as f64 <= ns as f64 / STEPS as f64, "{low}..={high} is too wide");
            ns += 1 + ns / 97;
        }
        assert_eq!(index_of(MOST_NS), BUCKETS - 1);
    }

    #[test]
    fn percentiles_and_doubling_buckets() {
        let histogram = Histogram::default();
        assert_eq!(histogram.distribution().total(), 0);
        assert_eq!(histogram.distribution().percentile_ns(99.0), 0);
        for us in 1..=1000 {
            histogram.record(Duration::from_micros(us), 1);
        }
        histogram.record(Duration::from_secs(100), 1);
        let distribution = histogram.distribution();
        assert_eq!(distribution.total(), 1001);
        let close = |ns: u64, us: u64| ns.abs_diff(us * 1000) <= us * 1000 / 100;
        assert!(close(distribution.percentile_ns(50.0), 500), "{}", distribution.percentile_ns(50.0));
        assert!(close(distribution.percentile_ns(99.0), 991), "{}", distribution.percentile_ns(99.0));
        assert!(distribution.percentile_ns(100.0) >= 1_000_000_000);
        assert_eq!(distribution.cumulative([500_000, 2_000_000, 1_100_000_000]), [499, 1000, 1001]);
        let shown: Vec<u64> = distribution.doubling_us().into_iter().map(|(us, _)| us).collect();
        assert_eq!(shown, [1, 2, 4, 8, 16, 33, 66, 132, 264, 528, 1056, 1073741]);
        histogram.reset();
        assert_eq!(histogram.distribution().total(), 0);
    }
}
