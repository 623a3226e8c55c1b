//! A small seeded generator, so that a run's choices can be repeated from one printed number.
//!
//! A seed repeats what the test decides (keys, order, moments to kill), not how the processes under test are
//! scheduled; a race may need several runs of the same seed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// SplitMix64: tiny, and good enough to choose keys and moments.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator whose whole future follows from `seed`.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The seed in `KVORUM_SEED`, or a new one, printed so that a failure can be repeated.
    pub fn for_run(lane: &str) -> (Random, u64) {
        let seed = match std::env::var("KVORUM_SEED") {
            Ok(text) => text.parse().expect("KVORUM_SEED must be a decimal number"),
            Err(_) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                Random::new(now.as_nanos() as u64 ^ u64::from(std::process::id())).next() >> 32
            }
        };
        eprintln!("{lane}: KVORUM_SEED={seed}");
        (Random::new(seed), seed)
    }

    /// The next 64 bits.
    #[allow(clippy::should_implement_trait, reason = "an endless generator is no iterator worth adapting")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number in `0..bound`; `bound` must not be 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A duration between `from` and `to`, in whole microseconds.
    pub fn between(&mut self, from: Duration, to: Duration) -> Duration {
        let span = to.saturating_sub(from).as_micros() as u64;
        from + Duration::from_micros(self.below(span + 1))
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// A generator of its own for a part of the run, so that parts do not disturb each other's choices.
    pub fn fork(&mut self) -> Random {
        Random::new(self.next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers() {
        let (mut a, mut b) = (Random::new(7), Random::new(7));
        assert!((0..1000).all(|_| a.next() == b.next()));
        assert_ne!(Random::new(7).next(), Random::new(8).next());
    }

    #[test]
    fn numbers_spread_over_their_range() {
        let mut random = Random::new(1);
        let mut seen = [0; 10];
        for _ in 0..10_000 {
            seen[random.below(10) as usize] += 1;
        }
        assert!(seen.iter().all(|&n| (800..1200).contains(&n)), "{seen:?}");
    }
}
