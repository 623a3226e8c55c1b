//! What a port counts, for INFO.
//!
//! Connections count into a [`Tally`] of their own and add it to the port's [`PortStats`] once per turn: the
//! path of a command has no shared lock and no shared cache line. A lock is taken only to count errors.

use crate::histogram::{Distribution, Histogram};
use kvorum_keyspace::{Command, command};
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// More error codes than this are counted together: a script or a client must not fill memory with new ones.
const MAX_ERROR_CODES: usize = 128;

/// Rows of the command table in a fixed order, subcommands in place of their containers' calls.
static ROWS: LazyLock<Vec<&'static Command>> =
    LazyLock::new(|| command::all().flat_map(|row| std::iter::once(row).chain(row.subcommands)).collect());

/// Name of a command → its place in [`ROWS`].
static INDEX: LazyLock<HashMap<&'static str, usize>> =
    LazyLock::new(|| ROWS.iter().enumerate().map(|(index, row)| (row.name, index)).collect());

/// Counters of one port since its start or the last CONFIG RESETSTAT.
#[derive(Debug)]
pub(crate) struct PortStats {
    commands: Vec<CommandCounters>,
    errors: Mutex<BTreeMap<String, u64>>,
    /// Connections accepted.
    pub(crate) connections_received: AtomicU64,
    /// Connections that ended.
    pub(crate) connections_closed: AtomicU64,
    /// Connections turned away because of `maxclients`.
    pub(crate) connections_rejected: AtomicU64,
    /// Commands run.
    pub(crate) commands_processed: AtomicU64,
    /// Bytes read from clients.
    pub(crate) input_bytes: AtomicU64,
    /// Bytes written to clients.
    pub(crate) output_bytes: AtomicU64,
    /// Reads from sockets.
    pub(crate) reads: AtomicU64,
    /// Writes to sockets.
    pub(crate) writes: AtomicU64,
    /// Error replies.
    pub(crate) error_replies: AtomicU64,
    /// Commands answered `-UNKNOWN`.
    pub(crate) unknown_outcomes: AtomicU64,
    /// Clients disconnected because they sent more than a request may be.
    pub(crate) query_limit_disconnections: AtomicU64,
    /// Clients disconnected because too much waited for them.
    pub(crate) output_limit_disconnections: AtomicU64,
    /// Times a connection was held for want of a leader.
    pub(crate) holds: AtomicU64,
    rates: Mutex<Rates>,
    /// The most bytes of memory that were seen.
    peak_bytes: AtomicU64,
    /// What the keyspace had counted at the last reset: it goes on counting.
    baseline: Mutex<KeyspaceCounts>,
}

#[derive(Debug, Default)]
struct CommandCounters {
    calls: AtomicU64,
    nanos: AtomicU64,
    rejected: AtomicU64,
    failed: AtomicU64,
    latency: Histogram,
}

/// Counters that the keyspace keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct KeyspaceCounts {
    /// Reads that found their key.
    pub(crate) hits: u64,
    /// Reads that did not.
    pub(crate) misses: u64,
    /// Keys removed because their time had come.
    pub(crate) expired: u64,
}

/// Rates over the last few samples, as Redis's `instantaneous_…`.
#[derive(Debug)]
struct Rates {
    at: Instant,
    last: [u64; 3],
    samples: [[u64; 3]; SAMPLES],
    next: usize,
}

const SAMPLES: usize = 16;

/// How often [`PortStats::sample`] wants to be called.
pub(crate) const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);

/// Counters of one command, for INFO.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CommandStats {
    pub(crate) name: &'static str,
    pub(crate) calls: u64,
    pub(crate) micros: u64,
    pub(crate) rejected: u64,
    pub(crate) failed: u64,
}

impl PortStats {
    pub(crate) fn new() -> PortStats {
        PortStats {
            commands: ROWS.iter().map(|_| CommandCounters::default()).collect(),
            errors: Mutex::default(),
            connections_received: AtomicU64::new(0),
            connections_closed: AtomicU64::new(0),
            connections_rejected: AtomicU64::new(0),
            commands_processed: AtomicU64::new(0),
            input_bytes: AtomicU64::new(0),
            output_bytes: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            error_replies: AtomicU64::new(0),
            unknown_outcomes: AtomicU64::new(0),
            query_limit_disconnections: AtomicU64::new(0),
            output_limit_disconnections: AtomicU64::new(0),
            holds: AtomicU64::new(0),
            rates: Mutex::new(Rates {
                at: Instant::now(),
                last: [0; 3],
                samples: [[0; 3]; SAMPLES],
                next: 0,
            }),
            peak_bytes: AtomicU64::new(0),
            baseline: Mutex::default(),
        }
    }

    /// CONFIG RESETSTAT. `keyspace` is what the keyspace has counted so far.
    pub(crate) fn reset(&self, keyspace: KeyspaceCounts) {
        for counters in &self.commands {
            for counter in [&counters.calls, &counters.nanos, &counters.rejected, &counters.failed] {
                counter.store(0, Ordering::Relaxed);
            }
            counters.latency.reset();
        }
        self.errors.lock().clear();
        for counter in [
            &self.connections_received,
            &self.connections_closed,
            &self.connections_rejected,
            &self.commands_processed,
            &self.input_bytes,
            &self.output_bytes,
            &self.reads,
            &self.writes,
            &self.error_replies,
            &self.unknown_outcomes,
            &self.query_limit_disconnections,
            &self.output_limit_disconnections,
            &self.holds,
        ] {
            counter.store(0, Ordering::Relaxed);
        }
        *self.rates.lock() = Rates { at: Instant::now(), last: [0; 3], samples: [[0; 3]; SAMPLES], next: 0 };
        *self.baseline.lock() = keyspace;
    }

    /// The keyspace's counters since the last reset.
    pub(crate) fn since_reset(&self, keyspace: KeyspaceCounts) -> KeyspaceCounts {
        let baseline = *self.baseline.lock();
        KeyspaceCounts {
            hits: keyspace.hits.saturating_sub(baseline.hits),
            misses: keyspace.misses.saturating_sub(baseline.misses),
            expired: keyspace.expired.saturating_sub(baseline.expired),
        }
    }

    /// Commands that were called or rejected.
    pub(crate) fn commands(&self) -> impl Iterator<Item = CommandStats> {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        self.commands
            .iter()
            .zip(ROWS.iter())
            .map(move |(counters, row)| CommandStats {
                name: row.name,
                calls: get(&counters.calls),
                micros: get(&counters.nanos) / 1_000,
                rejected: get(&counters.rejected),
                failed: get(&counters.failed),
            })
            .filter(|stats| stats.calls + stats.rejected > 0)
    }

    /// How long the calls of each command took, of those that were called.
    pub(crate) fn latencies(&self) -> impl Iterator<Item = (&'static str, Distribution)> {
        let calls = |counters: &CommandCounters| counters.calls.load(Ordering::Relaxed);
        let called = self.commands.iter().zip(ROWS.iter()).filter(move |(counters, _)| calls(counters) > 0);
        called.map(|(counters, row)| (row.name, counters.latency.distribution()))
    }

    /// The most bytes of memory that were seen, these included.
    pub(crate) fn peak(&self, used_bytes: u64) -> u64 {
        self.peak_bytes.fetch_max(used_bytes, Ordering::Relaxed).max(used_bytes)
    }

    /// Error replies by their codes.
    pub(crate) fn errors(&self) -> Vec<(String, u64)> {
        self.errors.lock().iter().map(|(code, count)| (code.clone(), *count)).collect()
    }

    /// Commands, bytes in and bytes out per second of late.
    pub(crate) fn rates(&self) -> [u64; 3] {
        let rates = self.rates.lock();
        std::array::from_fn(|which| {
            rates.samples.iter().map(|sample| sample[which]).sum::<u64>() / SAMPLES as u64
        })
    }

    /// Takes a sample for [`rates`](PortStats::rates).
    pub(crate) fn sample(&self, now: Instant) {
        let totals = [&self.commands_processed, &self.input_bytes, &self.output_bytes]
            .map(|counter| counter.load(Ordering::Relaxed));
        let mut rates = self.rates.lock();
        let millis = u64::try_from(now.saturating_duration_since(rates.at).as_millis()).unwrap_or(u64::MAX);
        if millis == 0 {
            return;
        }
        let next = rates.next;
        for (which, &total) in totals.iter().enumerate() {
            rates.samples[next][which] = total.saturating_sub(rates.last[which]) * 1_000 / millis;
        }
        rates.last = totals;
        rates.at = now;
        rates.next = (next + 1) % SAMPLES;
    }

    fn count_error(&self, code: &str) {
        let mut errors = self.errors.lock();
        let code = if errors.len() >= MAX_ERROR_CODES && !errors.contains_key(code) { "OTHER" } else { code };
        match errors.get_mut(code) {
            Some(count) => *count += 1,
            None => drop(errors.insert(code.to_owned(), 1)),
        }
    }
}

/// What one connection counted and has not yet added to the port's counters.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    commands: SmallVec<[Count; 4]>,
}

#[derive(Debug)]
struct Count {
    command: &'static Command,
    calls: u64,
    nanos: u64,
    rejected: u64,
    failed: u64,
    /// How long calls took, and how many of them.
    times: SmallVec<[(Duration, u64); 1]>,
}

impl Tally {
    fn of(&mut self, command: &'static Command) -> &mut Count {
        let index = match self.commands.iter().position(|count| std::ptr::eq(count.command, command)) {
            Some(index) => index,
            None => {
                self.commands.push(Count {
                    command,
                    calls: 0,
                    nanos: 0,
                    rejected: 0,
                    failed: 0,
                    times: SmallVec::new(),
                });
                self.commands.len() - 1
            }
        };
        &mut self.commands[index]
    }

    /// `calls` calls that took `time` together, from when they were sent on their way until their replies were there:
    /// for a write that is the time of its majority, too.
    pub(crate) fn call(&mut self, command: &'static Command, calls: u64, time: Duration) {
        let count = self.of(command);
        count.calls += calls;
        count.nanos += u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    }

    /// Of the calls, counted already, `calls` took this long each: what LATENCY HISTOGRAM shows.
    pub(crate) fn latency(&mut self, command: &'static Command, calls: u64, time: Duration) {
        self.of(command).times.push((time, calls));
    }

    /// A call, counted already, failed.
    pub(crate) fn fail(&mut self, command: &'static Command) {
        self.of(command).failed += 1;
    }

    /// A call was refused before it ran.
    pub(crate) fn reject(&mut self, command: &'static Command) {
        self.of(command).rejected += 1;
    }

    /// Adds everything to the port's counters and begins anew. Returns how many commands were called.
    pub(crate) fn flush(&mut self, stats: &PortStats) -> u64 {
        let mut processed = 0;
        for count in self.commands.drain(..) {
            processed += count.calls;
            let Some(counters) = INDEX.get(count.command.name).map(|&index| &stats.commands[index]) else {
                continue;
            };
            for (counter, add) in [
                (&counters.calls, count.calls),
                (&counters.nanos, count.nanos),
                (&counters.rejected, count.rejected),
                (&counters.failed, count.failed),
            ] {
                if add > 0 {
                    counter.fetch_add(add, Ordering::Relaxed);
                }
            }
            for (time, calls) in count.times {
                counters.latency.record(time, calls);
            }
        }
        if processed > 0 {
            stats.commands_processed.fetch_add(processed, Ordering::Relaxed);
        }
        processed
    }
}

/// Counts an error reply by its code: `ERR`, `MOVED`, …
pub(crate) fn count_error(stats: &PortStats, text: &[u8]) {
    stats.error_replies.fetch_add(1, Ordering::Relaxed);
    let code = text.split(|&byte| byte == b' ').next().unwrap_or(text);
    stats.count_error(&String::from_utf8_lossy(&code[..code.len().min(32)]));
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvorum_keyspace::lookup;

    #[test]
    fn tallies_add_up() {
        let stats = PortStats::new();
        let (get, set) = (lookup(b"get").unwrap(), lookup(b"set").unwrap());
        let mut tally = Tally::default();
        tally.call(get, 3, Duration::from_micros(6));
        tally.call(set, 1, Duration::from_micros(2));
        tally.fail(set);
        tally.reject(get);
        tally.flush(&stats);
        tally.call(get, 1, Duration::from_micros(1));
        tally.flush(&stats);
        let mut counted: Vec<_> = stats.commands().collect();
        counted.sort_by_key(|stats| stats.name);
        assert_eq!(
            counted,
            [
                CommandStats { name: "get", calls: 4, micros: 7, rejected: 1, failed: 0 },
                CommandStats { name: "set", calls: 1, micros: 2, rejected: 0, failed: 1 },
            ]
        );
        assert_eq!(stats.commands_processed.load(Ordering::Relaxed), 5);
        stats.reset(KeyspaceCounts::default());
        assert_eq!(stats.commands().count(), 0);
    }

    #[test]
    fn error_codes_are_counted_and_bounded() {
        let stats = PortStats::new();
        count_error(&stats, b"ERR a b");
        count_error(&stats, b"ERR c");
        for n in 0..1_000 {
            count_error(&stats, format!("CODE{n} x").as_bytes());
        }
        let errors = stats.errors();
        assert!(errors.contains(&("ERR".to_owned(), 2)));
        assert!(errors.len() <= MAX_ERROR_CODES + 1);
        assert_eq!(errors.iter().map(|(_, count)| count).sum::<u64>(), 1_002);
    }

    #[test]
    fn rates_are_per_second() {
        let stats = PortStats::new();
        let start = Instant::now();
        stats.sample(start + Duration::from_millis(1));
        for n in 1..=16 {
            stats.commands_processed.fetch_add(100, Ordering::Relaxed);
            stats.sample(start + Duration::from_millis(1) + SAMPLE_INTERVAL * n);
        }
        assert_eq!(stats.rates(), [1_000, 0, 0]);
    }
}
