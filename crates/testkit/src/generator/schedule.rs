//! When requests are due that come at a fixed rate, whatever the server does.

/// Requests at a fixed rate, from a moment on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Schedule {
    per_second: u64,
    /// Requests whose time has come.
    begun: u64,
}

impl Schedule {
    /// So many requests a second. The first is due at time zero.
    pub fn new(per_second: u64) -> Schedule {
        Schedule { per_second, begun: 0 }
    }

    /// When the next request is due, if that is not after `now_ns`. The one after it comes next then. A request is never
    /// left out, however late it is asked for.
    pub fn next(&mut self, now_ns: u64) -> Option<u64> {
        let due = self.due_ns(self.begun);
        (due <= now_ns).then(|| {
            self.begun += 1;
            due
        })
    }

    /// Computed from the beginning for each, so that rounding does not add up.
    fn due_ns(&self, request: u64) -> u64 {
        (u128::from(request) * 1_000_000_000 / u128::from(self.per_second)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_until(schedule: &mut Schedule, now_ns: u64) -> Vec<u64> {
        std::iter::from_fn(|| schedule.next(now_ns)).collect()
    }

    #[test]
    fn requests_are_due_at_a_steady_pace() {
        let mut schedule = Schedule::new(5_000);
        assert_eq!(all_until(&mut schedule, 0), [0]);
        assert!(all_until(&mut schedule, 199_999).is_empty());
        assert_eq!(all_until(&mut schedule, 400_000), [200_000, 400_000]);
    }

    #[test]
    fn who_comes_late_finds_all_of_them_with_the_times_they_had() {
        let (mut late, mut punctual) = (Schedule::new(3_000), Schedule::new(3_000));
        let mut times = Vec::new();
        for now in (0..=1_000_000_000).step_by(100_000) {
            times.extend(all_until(&mut punctual, now));
        }
        assert_eq!(all_until(&mut late, 1_000_000_000), times);
        // The last one is due at the very end of the second: no drift, though a third of a millisecond is no whole number.
        assert_eq!((times.len(), times.last()), (3_001, Some(&1_000_000_000)));
    }
}
