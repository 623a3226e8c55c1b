//! How long requests took, in buckets whose width grows with the time: cheap to count, exact to less than a hundredth.

use std::time::Duration;

/// Buckets of one width.
const STEPS: u64 = 128;
/// Longest time that is told from longer ones: about 18 minutes.
const MOST_NS: u64 = 1 << 40;

/// A distribution of times.
#[derive(Clone, PartialEq, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    longest_ns: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: vec![0; bucket_of(MOST_NS) + 1], total: 0, longest_ns: 0 }
    }
}

fn bucket_of(ns: u64) -> usize {
    // Below twice the steps every nanosecond has its own bucket; above, a bucket holds 2^shift of them.
    let shift = u64::from((64 - ns.leading_zeros()).saturating_sub(8));
    (shift * STEPS + (ns >> shift)) as usize
}

/// The longest time of a bucket.
fn highest_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let shift = (bucket / STEPS).saturating_sub(1);
    ((bucket - shift * STEPS + 1) << shift) - 1
}

impl Histogram {
    /// Counts `times` requests that took `ns` nanoseconds each.
    pub fn record(&mut self, ns: u64, times: u64) {
        self.counts[bucket_of(ns.min(MOST_NS))] += times;
        self.total += times;
        self.longest_ns = self.longest_ns.max(ns);
    }

    /// Counts what another one counted, too.
    pub fn absorb(&mut self, other: &Histogram) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total += other.total;
        self.longest_ns = self.longest_ns.max(other.longest_ns);
    }

    /// Number of requests.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The time that `percent` of a hundred requests did not exceed; zero when there were none.
    pub fn percentile(&self, percent: f64) -> Duration {
        // A hair less, or 99.9 % of 1000 would be the 1000th for lack of an exact 0.999.
        let rank = ((percent / 100.0 * self.total as f64 - 1e-6).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_nanos(highest_of(bucket).min(self.longest_ns));
            }
        }
        self.longest()
    }

    /// The longest time.
    pub fn longest(&self) -> Duration {
        Duration::from_nanos(self.longest_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_and_are_narrow() {
        let mut last = None;
        for bucket in 0..=bucket_of(MOST_NS) {
            let (low, high) = (last.map_or(0, |last| last + 1), highest_of(bucket));
            assert_eq!((bucket_of(low), bucket_of(high)), (bucket, bucket), "{low}..={high}");
            assert!((high - low) as f64 <= low as f64 / 127.0, "{low}..={high}");
            last = Some(high);
        }
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_times() {
        let mut random = crate::random::Random::new(1);
        let (mut histogram, mut times) = (Histogram::default(), Vec::new());
        for _ in 0..1000 {
            let magnitude = 1 + random.below(36);
            let ns = random.below(1 << magnitude);
            histogram.record(ns, 1);
            times.push(ns);
        }
        times.sort_unstable();
        for (percent, rank) in [(0.0, 1), (50.0, 500), (90.0, 900), (99.0, 990), (99.9, 999), (100.0, 1000)] {
            let (exact, ours) = (times[rank - 1], histogram.percentile(percent).as_nanos() as u64);
            assert!(ours >= exact && ours - exact <= exact / 127, "{percent}: {ours}, not {exact}");
        }
        assert_eq!(histogram.percentile(100.0), histogram.longest());
    }

    #[test]
    fn few_equal_and_no_times() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.percentile(50.0), Duration::ZERO);
        histogram.record(100, 3);
        histogram.record(u64::MAX, 1);
        assert_eq!(histogram.percentile(75.0), Duration::from_nanos(100));
        assert_eq!(histogram.percentile(99.0), Duration::from_nanos(highest_of(bucket_of(MOST_NS))));
        assert_eq!(histogram.longest(), Duration::from_nanos(u64::MAX));
        let mut sum = Histogram::default();
        sum.record(50, 4);
        sum.absorb(&histogram);
        assert_eq!((sum.total(), sum.percentile(50.0)), (8, Duration::from_nanos(50)));
    }
}
