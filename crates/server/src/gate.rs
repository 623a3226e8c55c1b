//! A port's gate: what may run now, and what is held until later.
//!
//! The one mechanism behind CLIENT PAUSE and DEBUG SLEEP, and for whatever else has to hold a port:
//! - [`Gate::close`] holds a class of commands of all connections until a moment; who holds what is kept apart by
//!   [`Holder`], and the strictest counts.
//! - Connections ask [`Gate::holds`] before each command and keep what is held for later, without reading on: a held
//!   client costs what it has sent, and nothing is refused.
//! - A command that is to take its time itself closes the gate and returns [`Next::Sleep`](crate::session::Next::Sleep):
//!   its reply comes when the time is over, and behind it everything goes on in its order.
//!
//! While the gate is open, asking it is one load.

use kvorum_keyspace::{Command, Flags};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// What is held. A later one holds what those before it hold, and more.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Held {
    /// Commands that write.
    Writes = 1,
    /// All commands that would run; what is refused is refused at once.
    Commands = 2,
    /// Every request, whatever it is.
    Requests = 3,
}

/// Who closed the gate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Holder {
    /// CLIENT PAUSE.
    Pause,
    /// DEBUG SLEEP.
    Sleep,
}

#[derive(Clone, Copy, Debug)]
struct Closing {
    what: Held,
    until: Instant,
}

/// What may run on a port now.
#[derive(Debug)]
pub(crate) struct Gate {
    /// The strictest of `closings`, 0 for none; not looked at again when their time is over, so it may be too strict.
    strictest: AtomicU8,
    /// By holder.
    closings: Mutex<[Option<Closing>; 2]>,
    changes: watch::Sender<()>,
}

impl Default for Gate {
    fn default() -> Gate {
        Gate { strictest: AtomicU8::new(0), closings: Mutex::default(), changes: watch::Sender::new(()) }
    }
}

impl Gate {
    /// From now on `what` is held for `duration`. As CLIENT PAUSE has it, a holder that closes the gate again makes it neither
    /// less strict nor shorter.
    pub(crate) fn close(&self, holder: Holder, what: Held, duration: Duration) {
        // Who holds a port for longer than clocks go holds it for very long.
        const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
        let now = Instant::now();
        let until = now + duration.min(LONGEST);
        let mut closings = self.closings.lock();
        let place = &mut closings[holder as usize];
        let before = place.filter(|closing| closing.until > now);
        *place = Some(Closing {
            what: before.map_or(what, |before| before.what.max(what)),
            until: before.map_or(until, |before| before.until.max(until)),
        });
        self.settle(&mut closings, now);
    }

    /// The holder lets go.
    pub(crate) fn open(&self, holder: Holder) {
        let mut closings = self.closings.lock();
        closings[holder as usize] = None;
        self.settle(&mut closings, Instant::now());
        drop(closings);
        self.changes.send_replace(());
    }

    fn settle(&self, closings: &mut [Option<Closing>; 2], now: Instant) {
        let mut strictest = 0;
        for place in closings {
            *place = place.filter(|closing| closing.until > now);
            strictest = strictest.max(place.map_or(0, |closing| closing.what as u8));
        }
        self.strictest.store(strictest, Ordering::Release);
    }

    /// Until when a request is held at least; `None` when it is not. `command` is what it was found to be, if it was
    /// looked at yet.
    pub(crate) fn holds(&self, command: Option<&Command>) -> Option<Instant> {
        let least = match command {
            None => Held::Requests,
            Some(command) if writes(command) => Held::Writes,
            Some(_) => Held::Commands,
        };
        if self.strictest.load(Ordering::Acquire) < least as u8 {
            return None;
        }
        let now = Instant::now();
        let mut closings = self.closings.lock();
        let until = closings
            .iter()
            .flatten()
            .filter(|closing| closing.what >= least && closing.until > now)
            .map(|closing| closing.until)
            .max();
        if until.is_none() {
            self.settle(&mut closings, now);
        }
        until
    }

    /// Resolves when it is worth asking again: at `until`, or when somebody let go.
    pub(crate) fn changed(&self, until: Instant) -> impl Future<Output = ()> + Send + 'static {
        let mut changes = self.changes.subscribe();
        async move {
            let _ = tokio::time::timeout_at(until.into(), changes.changed()).await;
        }
    }
}

/// Whether a command changes data, or may.
fn writes(command: &Command) -> bool {
    command.flags.has(Flags::WRITE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvorum_keyspace::lookup;

    const LONG: Duration = Duration::from_secs(100);

    /// Whether a write, a read and a request that nobody looked at are held.
    fn held(gate: &Gate) -> [bool; 3] {
        let held = |command: Option<&str>| {
            gate.holds(command.map(|name| lookup(name.as_bytes()).unwrap())).is_some()
        };
        [held(Some("set")), held(Some("ping")), held(None)]
    }

    #[test]
    fn each_class_holds_those_below_it() {
        for (what, expected) in [
            (Held::Writes, [true, false, false]),
            (Held::Commands, [true, true, false]),
            (Held::Requests, [true, true, true]),
        ] {
            let gate = Gate::default();
            assert_eq!(held(&gate), [false; 3]);
            gate.close(Holder::Pause, what, LONG);
            assert_eq!(held(&gate), expected, "{what:?}");
            gate.open(Holder::Sleep);
            assert_eq!(held(&gate), expected, "the other holder has nothing to open");
            gate.open(Holder::Pause);
            assert_eq!(held(&gate), [false; 3]);
        }
    }

    #[test]
    fn closing_again_makes_it_neither_shorter_nor_less_strict() {
        let gate = Gate::default();
        gate.close(Holder::Pause, Held::Commands, LONG);
        let until = gate.holds(lookup(b"get"));
        gate.close(Holder::Pause, Held::Writes, Duration::from_secs(1));
        assert_eq!(gate.holds(lookup(b"get")), until);
        gate.close(Holder::Pause, Held::Writes, 2 * LONG);
        assert!(gate.holds(lookup(b"get")) > until);
        gate.close(Holder::Pause, Held::Requests, Duration::MAX);
        assert_eq!(held(&gate), [true; 3]);
    }

    #[tokio::test]
    async fn it_opens_by_itself_and_by_hand() {
        let gate = Gate::default();
        gate.close(Holder::Sleep, Held::Requests, Duration::from_millis(20));
        let until = gate.holds(None).unwrap();
        gate.changed(until).await;
        assert!(Instant::now() >= until);
        assert_eq!(held(&gate), [false; 3]);
        gate.close(Holder::Pause, Held::Commands, LONG);
        let opened = gate.changed(gate.holds(lookup(b"get")).unwrap());
        gate.open(Holder::Pause);
        tokio::time::timeout(LONG / 10, opened).await.unwrap();
        assert_eq!(held(&gate), [false; 3]);
    }
}
