//! The latency monitor of a port: what took longer than `latency-monitor-threshold`, by kind of event, for LATENCY.

use crate::port::wall_time;
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::time::Duration;

/// Samples kept of an event, one a second at most.
const SAMPLES: usize = 160;
/// Columns of LATENCY GRAPH, and its rows above the labels.
const COLUMNS: usize = 80;
const ROWS: usize = 4;

/// A command that Redis does not call fast.
pub(crate) const COMMAND: &str = "command";
/// A command that should be fast.
pub(crate) const FAST_COMMAND: &str = "fast-command";
/// The log on its way to the disk.
pub(crate) const WAL_SYNC: &str = "wal-sync";

/// What was observed.
#[derive(Debug, Default)]
pub(crate) struct LatencyMonitor(Mutex<BTreeMap<&'static str, Series>>);

/// What was observed of one kind of event.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Series {
    /// Worst ever, milliseconds.
    pub(crate) worst_ms: u64,
    /// The oldest first.
    samples: VecDeque<Sample>,
}

/// The worst of one second.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Sample {
    /// Seconds since the Unix epoch.
    pub(crate) at_s: u64,
    /// Milliseconds.
    pub(crate) took_ms: u64,
}

impl LatencyMonitor {
    /// Notes that an event took so long, if that is at least the threshold; a threshold of zero is none.
    pub(crate) fn observe(&self, event: &'static str, took: Duration, threshold: Option<Duration>) {
        if threshold.is_some_and(|threshold| took >= threshold) {
            let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            self.0.lock().entry(event).or_default().add(Sample { at_s: wall_time().as_secs(), took_ms });
        }
    }

    /// All events.
    pub(crate) fn all(&self) -> Vec<(&'static str, Series)> {
        self.0.lock().iter().map(|(event, series)| (*event, series.clone())).collect()
    }

    /// What was observed of an event; nothing, or something.
    pub(crate) fn series(&self, event: &[u8]) -> Option<(&'static str, Series)> {
        self.all().into_iter().find(|(name, _)| name.as_bytes() == event)
    }

    /// Forgets these events, or all when none is named; returns how many there were.
    pub(crate) fn reset(&self, events: &[&[u8]]) -> usize {
        let mut all = self.0.lock();
        let before = all.len();
        let named = |name: &str| events.iter().any(|event| event.eq_ignore_ascii_case(name.as_bytes()));
        all.retain(|name, _| !events.is_empty() && !named(name));
        before - all.len()
    }
}

impl Series {
    fn add(&mut self, sample: Sample) {
        self.worst_ms = self.worst_ms.max(sample.took_ms);
        match self.samples.back_mut() {
            Some(last) if last.at_s == sample.at_s => last.took_ms = last.took_ms.max(sample.took_ms),
            _ => self.samples.push_back(sample),
        }
        if self.samples.len() > SAMPLES {
            self.samples.pop_front();
        }
    }

    /// The samples kept, the oldest first.
    pub(crate) fn samples(&self) -> impl ExactSizeIterator<Item = Sample> + '_ {
        self.samples.iter().copied()
    }

    /// The last sample.
    pub(crate) fn latest(&self) -> Option<Sample> {
        self.samples.back().copied()
    }

    fn range_ms(&self) -> (u64, u64) {
        let took = || self.samples().map(|sample| sample.took_ms);
        (took().min().unwrap_or(0), took().max().unwrap_or(0))
    }

    /// Average, mean deviation and seconds between samples: what a doctor wants to know.
    pub(crate) fn summary(&self, now_s: u64) -> Summary {
        let count = self.samples.len().max(1) as u64;
        let average_ms = self.samples().map(|sample| sample.took_ms).sum::<u64>() / count;
        let deviations = self.samples().map(|sample| sample.took_ms.abs_diff(average_ms));
        let since_s = self.samples.front().map_or(now_s, |first| first.at_s);
        Summary {
            count: self.samples.len(),
            average_ms,
            deviation_ms: deviations.sum::<u64>() / count,
            period_s: now_s.saturating_sub(since_s).max(1) as f64 / count as f64,
        }
    }

    /// LATENCY GRAPH: a column of characters for each sample, and below it how long ago that was.
    pub(crate) fn graph(&self, event: &str, now_s: u64) -> String {
        let (low, high) = self.range_ms();
        let mut text = format!(
            "{event} - high {high} ms, low {low} ms (all time high {} ms)\n{}\n",
            self.worst_ms,
            "-".repeat(COLUMNS)
        );
        let columns: Vec<(usize, String)> = self
            .samples()
            .map(|sample| (level(sample.took_ms, low, high), age(now_s, sample.at_s)))
            .collect();
        for (n, part) in columns.chunks(COLUMNS).enumerate() {
            if n > 0 {
                text.push('\n');
            }
            for row in 0..ROWS {
                let line: String = part.iter().map(|(level, _)| bar(*level, ROWS - 1 - row)).collect();
                writeln!(text, "{line}").expect("a String takes everything");
            }
            writeln!(text, "{}", " ".repeat(part.len())).expect("a String takes everything");
            for n in 0..part.iter().map(|(_, label)| label.len()).max().unwrap_or(0) {
                let line: String =
                    part.iter().map(|(_, label)| label.chars().nth(n).unwrap_or(' ')).collect();
                writeln!(text, "{line}").expect("a String takes everything");
            }
        }
        text
    }
}

/// What a doctor wants to know of a series.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Summary {
    pub(crate) count: usize,
    pub(crate) average_ms: u64,
    pub(crate) deviation_ms: u64,
    pub(crate) period_s: f64,
}

/// Characters that fill a row by a third, two thirds and in full.
const FILLS: [char; 3] = ['_', 'o', '#'];

/// Height of a column, in thirds of a row.
fn level(took: u64, low: u64, high: u64) -> usize {
    let steps = ROWS * FILLS.len();
    let range = (high - low).max(1) as f64;
    (((took - low) as usize * steps) as f64 / range).min((steps - 1) as f64) as usize
}

/// What a column shows in a row, counted from below.
fn bar(level: usize, row: usize) -> char {
    match level.checked_sub(row * FILLS.len()) {
        None => ' ',
        Some(rest) => FILLS.get(rest).copied().unwrap_or('|'),
    }
}

fn age(now_s: u64, at_s: u64) -> String {
    match now_s.saturating_sub(at_s) {
        s @ 0..60 => format!("{s}s"),
        s @ 60..3_600 => format!("{}m", s / 60),
        s @ 3_600..86_400 => format!("{}h", s / 3_600),
        s => format!("{}d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_decides_and_a_second_has_one_sample() {
        let monitor = LatencyMonitor::default();
        let ms = Duration::from_millis;
        monitor.observe(COMMAND, ms(50), None);
        monitor.observe(COMMAND, ms(50), Some(ms(100)));
        assert_eq!(monitor.all(), []);
        monitor.observe(COMMAND, ms(150), Some(ms(100)));
        monitor.observe(WAL_SYNC, ms(100), Some(ms(100)));
        assert_eq!(monitor.series(b"command").unwrap().1.worst_ms, 150);
        assert_eq!(monitor.reset(&[b"COMMAND", b"nothing"]), 1);
        assert_eq!(monitor.all().len(), 1);
        assert_eq!(monitor.reset(&[]), 1);
        let mut series = Series::default();
        for (at_s, took_ms) in [(1, 7), (1, 9), (1, 8), (2, 1)] {
            series.add(Sample { at_s, took_ms });
        }
        assert_eq!(series.samples().map(|sample| sample.took_ms).collect::<Vec<_>>(), [9, 1]);
        (3..1_000).for_each(|at_s| series.add(Sample { at_s, took_ms: 2 }));
        assert_eq!((series.samples().len(), series.worst_ms), (SAMPLES, 9));
    }

    #[test]
    fn graph_is_that_of_redis() {
        let mut series = Series::default();
        for (at_s, took_ms) in [(100, 110), (3_000, 500), (3_700, 200), (3_760, 305)] {
            series.add(Sample { at_s, took_ms });
        }
        let dashes = "-".repeat(80);
        assert_eq!(
            series.graph("command", 3_769),
            format!(
                "command - high 500 ms, low 110 ms (all time high 500 ms)\n{dashes}\n #  \n | _\n | |\n_|#|\n    \n1119\n\
                 h2ms\n m  \n"
            )
        );
    }
}
