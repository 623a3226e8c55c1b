//! What happened, line by line, with virtual time. Two runs of one seed have equal traces, or the simulation has a leak.

use parking_lot::Mutex;
use std::fmt::Write as _;
use std::sync::Arc;
use tokio::time::Instant;

/// Collects lines. Clones are the same trace.
#[derive(Clone)]
pub(crate) struct Trace {
    origin: Instant,
    lines: Arc<Mutex<Lines>>,
}

#[derive(Default)]
struct Lines {
    text: String,
    keep: bool,
    hash: u64,
    count: u64,
}

impl Trace {
    /// `keep`: remember the text, not only its hash.
    pub(crate) fn new(origin: Instant, keep: bool) -> Trace {
        let lines = Lines { keep, hash: 0xcbf2_9ce4_8422_2325, ..Lines::default() };
        Trace { origin, lines: Arc::new(Mutex::new(lines)) }
    }

    /// When it began.
    pub(crate) fn origin(&self) -> Instant {
        self.origin
    }

    /// Microseconds of virtual time.
    pub(crate) fn now_us(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    pub(crate) fn say(&self, what: std::fmt::Arguments<'_>) {
        let now = self.now_us();
        let mut lines = self.lines.lock();
        let mut line = String::new();
        let _ = writeln!(line, "{:>10}.{:03} {what}", now / 1000, now % 1000);
        lines.count += 1;
        // FNV-1a.
        lines.hash = line
            .bytes()
            .fold(lines.hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        if lines.keep {
            lines.text.push_str(&line);
        }
    }

    /// Number of lines and their hash.
    pub(crate) fn digest(&self) -> (u64, u64) {
        let lines = self.lines.lock();
        (lines.count, lines.hash)
    }

    pub(crate) fn text(&self) -> String {
        self.lines.lock().text.clone()
    }
}

/// Adds a line to a trace.
macro_rules! say {
    ($trace:expr, $($what:tt)*) => { $trace.say(format_args!($($what)*)) };
}
pub(crate) use say;
