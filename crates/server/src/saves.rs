//! When the data behind a port were written to a snapshot, for SAVE and its kind, LASTSAVE and INFO persistence.

use crate::port::wall_time;
use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// The saves of a port.
#[derive(Debug)]
pub(crate) struct Saves(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Since when a client's save runs.
    running: Option<Instant>,
    last: Save,
    /// Snapshots built, as they were seen last.
    built: Option<u64>,
}

/// The last save, whoever asked for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Save {
    /// When it ended, seconds since the Unix epoch: the start of the port before the first one, as in Redis.
    pub(crate) at_s: u64,
    /// Number of changes by then.
    pub(crate) sequence: u64,
    /// Whether a save that a client asked for failed, and none ended well since.
    pub(crate) failed: bool,
    /// How long the last one took that a client asked for.
    pub(crate) took: Option<Duration>,
}

impl Default for Saves {
    fn default() -> Saves {
        let last = Save { at_s: wall_time().as_secs(), sequence: 0, failed: false, took: None };
        Saves(Mutex::new(State { running: None, last, built: None }))
    }
}

impl Saves {
    /// A client asks for a save; `false` when one runs.
    pub(crate) fn begin(&self) -> bool {
        let mut state = self.0.lock();
        if state.running.is_some() {
            return false;
        }
        state.running = Some(Instant::now());
        true
    }

    /// What a client asked for has ended.
    pub(crate) fn end(&self, saved: bool, sequence: u64) {
        let mut state = self.0.lock();
        state.last.took = state.running.take().map(|since| since.elapsed());
        state.last.failed = !saved;
        if saved {
            state.last = Save { at_s: wall_time().as_secs(), sequence, ..state.last };
        }
    }

    /// So many snapshots were built by now, most of them because the log had grown.
    pub(crate) fn observe(&self, built: u64, sequence: impl FnOnce() -> u64) {
        let mut state = self.0.lock();
        if state.built.replace(built).is_some_and(|before| built > before) {
            state.last =
                Save { at_s: wall_time().as_secs(), sequence: sequence(), failed: false, ..state.last };
        }
    }

    /// The last save.
    pub(crate) fn last(&self) -> Save {
        self.0.lock().last
    }

    /// For how long a client's save has been running.
    pub(crate) fn running(&self) -> Option<Duration> {
        self.0.lock().running.map(|since| since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_save_at_a_time_and_failures_are_remembered() {
        let saves = Saves::default();
        assert!(saves.begin() && !saves.begin());
        assert!(saves.running().is_some());
        saves.end(false, 7);
        assert!(saves.last().failed && saves.last().sequence == 0 && saves.last().took.is_some());
        assert!(saves.begin());
        saves.end(true, 9);
        assert_eq!((saves.last().failed, saves.last().sequence), (false, 9));
        saves.observe(3, || unreachable!("what was there before is nothing new"));
        saves.observe(4, || 12);
        assert_eq!(saves.last().sequence, 12);
    }
}
