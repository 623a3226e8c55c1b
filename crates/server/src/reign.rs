//! When the replica behind a port led: clients of a standalone cluster cannot be redirected, and what becomes of them depends on whether
//! they came to a leader.

use kvorum_cluster::{ReplicaId, View};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// When a replica led last, as far as those who looked at a view have noted. Every connection notes what its own view says before it goes by
/// it: a port that learned it from a task of its own would be late for a client that connects in the very moment.
#[derive(Debug, Default)]
pub(crate) struct Reign {
    /// The last term in which it was seen to lead; 0 for none.
    term: AtomicU64,
    ended: Mutex<Ended>,
}

#[derive(Debug, Default)]
struct Ended {
    /// The last term whose end was noted.
    term: u64,
    at: Option<Instant>,
}

/// What was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Noted {
    /// It leads.
    Leads,
    /// It leads no more, and nobody had noted that.
    Deposed,
    /// It does not lead.
    Follows,
}

impl Reign {
    /// Takes note of a view, which may be older than one that was noted before.
    pub(crate) fn note(&self, view: &View, replica: ReplicaId) -> Noted {
        let Some((shard, _)) = view.topology.replica(replica) else { return Noted::Follows };
        let term = view.leaders.term(shard.id);
        if view.leads(replica) {
            // Every turn of every connection comes here; seldom is it news.
            if self.term.load(Ordering::Relaxed) < term {
                self.term.fetch_max(term, Ordering::AcqRel);
            }
            return Noted::Leads;
        }
        let led = self.term.load(Ordering::Acquire);
        let mut ended = self.ended.lock();
        if led > ended.term && term >= led {
            *ended = Ended { term: led, at: Some(Instant::now()) };
            return Noted::Deposed;
        }
        Noted::Follows
    }

    /// When it ceased to lead; `None` when it never led.
    pub(crate) fn ended(&self) -> Option<Instant> {
        self.ended.lock().at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::Replica;
    use crate::testing::Scripted;
    use kvorum_cluster::Mode;

    #[test]
    fn the_end_of_each_reign_is_noted_once_and_by_whoever_looks_first() {
        let replica = Scripted::leading(Mode::Standalone);
        let (first, me) = (replica.view(), replica.id());
        let reign = Reign::default();
        replica.depose(0, 2);
        let vacant = replica.view();
        assert_eq!(reign.note(&vacant, me), Noted::Follows, "it never led");
        assert_eq!(reign.ended(), None);
        assert_eq!(reign.note(&first, me), Noted::Leads);
        assert_eq!(reign.note(&vacant, me), Noted::Deposed);
        let ended = reign.ended().unwrap();
        // Somebody is behind.
        assert_eq!(reign.note(&first, me), Noted::Leads);
        replica.elect(0, 2, 2);
        assert_eq!(reign.note(&replica.view(), me), Noted::Follows);
        assert_eq!(reign.ended(), Some(ended));

        replica.elect(0, 3, 1);
        assert_eq!(reign.note(&replica.view(), me), Noted::Leads);
        assert_eq!(
            reign.note(&vacant, me),
            Noted::Follows,
            "a view from before says nothing about this reign"
        );
        assert_eq!(reign.ended(), Some(ended));
        replica.elect(0, 4, 2);
        assert_eq!(reign.note(&replica.view(), me), Noted::Deposed);
        assert!(reign.ended().unwrap() >= ended);
    }
}
