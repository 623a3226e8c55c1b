//! What the log and the groups of a server count, and the names under which it is published.
//!
//! Counting costs relaxed additions where something slow happens anyway: a sync, an election. Names and help texts follow
//! Prometheus; who collects them implements [`Metrics`] and never sees where the figures come from.

use crate::group::{GroupStats, Role, Status};
use crate::snapshot::SnapshotStats;
use crate::wal::WalStats;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Collects metrics. The same name may come several times, with other labels.
pub trait Metrics {
    /// Something that only grows; its name ends in `_total`.
    fn counter(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        value: f64,
    );
    /// Something that goes up and down.
    fn gauge(&mut self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)], value: f64);
    /// A distribution.
    fn histogram(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        distribution: &Buckets<'_>,
    );
}

/// A distribution: how many values there were up to each bound.
#[derive(Clone, Debug)]
pub struct Buckets<'a> {
    /// Upper bounds, ascending, without the last one, which is infinite.
    pub bounds: &'a [f64],
    /// How many values were at most as large as each bound.
    pub counts: Vec<u64>,
    /// How many values there were.
    pub count: u64,
    /// All values together.
    pub sum: f64,
}

/// Upper bounds of the buckets of sync times, seconds.
const SYNC_BOUNDS_S: [f64; 14] =
    [0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0];

/// Distribution of the times that syncs took.
#[derive(Debug, Default)]
pub(crate) struct SyncTimes([AtomicU64; SYNC_BOUNDS_S.len() + 1]);

impl SyncTimes {
    pub(crate) fn record(&self, took: Duration) {
        let bucket = SYNC_BOUNDS_S.partition_point(|bound| took.as_secs_f64() > *bound);
        self.0[bucket].fetch_add(1, Ordering::Relaxed);
    }

    /// How many syncs took how long, from the shortest times to the longest.
    pub(crate) fn counts(&self) -> [u64; SYNC_BOUNDS_S.len() + 1] {
        std::array::from_fn(|bucket| self.0[bucket].load(Ordering::Relaxed))
    }
}

/// The figures of a log.
pub fn wal(stats: &WalStats, out: &mut dyn Metrics) {
    let seconds = |us: u64| us as f64 / 1e6;
    let mut cumulative = 0;
    let counts = stats.sync_times.iter().map(|count| {
        cumulative += count;
        cumulative
    });
    let mut counts: Vec<u64> = counts.collect();
    let count = counts.pop().unwrap_or(0);
    out.histogram(
        "kvorum_wal_sync_duration_seconds",
        "Time that syncs of the log to disk took.",
        &[],
        &Buckets { bounds: &SYNC_BOUNDS_S, counts, count, sum: seconds(stats.sync_us) },
    );
    let counters: [(&'static str, &'static str, f64); 5] = [
        ("kvorum_wal_written_bytes_total", "Bytes written to the log.", stats.bytes as f64),
        (
            "kvorum_wal_written_entries_total",
            "Entries written to the log, of all groups.",
            stats.entries as f64,
        ),
        (
            "kvorum_wal_write_seconds_total",
            "Time spent writing to the log, syncs apart.",
            seconds(stats.write_us),
        ),
        (
            "kvorum_wal_dropped_segments_total",
            "Segment files of the log that were dropped.",
            stats.dropped_segments as f64,
        ),
        (
            "kvorum_wal_copied_entries_total",
            "Entries written again so that an old segment could be dropped.",
            stats.copied_entries as f64,
        ),
    ];
    counters.into_iter().for_each(|(name, help, value)| out.counter(name, help, &[], value));
    out.gauge("kvorum_wal_segments", "Segment files of the log.", &[], stats.segments as f64);
    out.gauge(
        "kvorum_wal_queued_bytes",
        "Bytes of appends that wait for the log or are on their way.",
        &[],
        stats.queued_bytes as f64,
    );
}

/// The figures of a replica.
pub fn replica(
    labels: &[(&'static str, &str)],
    status: &Status,
    groups: GroupStats,
    snapshots: SnapshotStats,
    out: &mut dyn Metrics,
) {
    const ROLES: [(Role, &str); 4] = [
        (Role::Leader, "leader"),
        (Role::Follower, "follower"),
        (Role::Candidate, "candidate"),
        (Role::Learner, "learner"),
    ];
    for (role, name) in ROLES {
        let labels = [labels, &[("role", name)]].concat();
        let is = f64::from(u8::from(status.role == role));
        out.gauge("kvorum_raft_role", "1 for the role that the replica has.", &labels, is);
    }
    let lag = |ahead: u64, behind: u64| ahead.saturating_sub(behind) as f64;
    let known = f64::from(u8::from(status.leader.is_some()));
    // A leader's slowest follower; replicas that do not answer count.
    let others = status.matched.iter().filter(|(replica, _)| Some(**replica) != status.leader);
    let behind = others.map(|(_, matched)| *matched).min().map_or(0.0, |matched| lag(status.last, matched));
    let gauges: [(&'static str, &'static str, f64); 11] = [
        ("kvorum_raft_term", "Raft's term.", status.term as f64),
        ("kvorum_raft_has_leader", "1 while the replica knows who leads.", known),
        (
            "kvorum_raft_failed",
            "1 when the replica has stopped for an error.",
            f64::from(u8::from(status.failed.is_some())),
        ),
        ("kvorum_raft_last_index", "Index of the last entry in the replica's log.", status.last as f64),
        (
            "kvorum_raft_committed_index",
            "Index of the last entry that a majority has.",
            status.committed as f64,
        ),
        ("kvorum_raft_applied_index", "Index of the last entry applied.", status.applied as f64),
        (
            "kvorum_raft_commit_lag_entries",
            "Entries in the log that no majority is known to have.",
            lag(status.last, status.committed),
        ),
        (
            "kvorum_raft_apply_lag_entries",
            "Entries that a majority has and that are not applied.",
            lag(status.committed, status.applied),
        ),
        ("kvorum_raft_follower_lag_entries", "On a leader: entries that its slowest follower lacks.", behind),
        (
            "kvorum_snapshot_index",
            "Index of the last entry in the newest snapshot.",
            snapshots.index.unwrap_or(0) as f64,
        ),
        ("kvorum_snapshot_bytes", "Size of the newest snapshot.", snapshots.bytes as f64),
    ];
    gauges.into_iter().for_each(|(name, help, value)| out.gauge(name, help, labels, value));
    out.gauge(
        "kvorum_snapshot_uncovered_bytes",
        "Bytes of log applied since the newest snapshot.",
        labels,
        snapshots.log_bytes as f64,
    );
    let counters: [(&'static str, &'static str, u64); 7] = [
        ("kvorum_raft_elections_total", "Times that the replica stood for election.", groups.elections),
        ("kvorum_raft_elections_won_total", "Times that the replica became leader.", groups.won),
        (
            "kvorum_raft_leader_changes_total",
            "Times that the replica learned of another leader.",
            groups.leader_changes,
        ),
        ("kvorum_snapshots_built_total", "Snapshots written.", snapshots.built),
        (
            "kvorum_snapshots_installed_total",
            "Snapshots read, at the start or from a leader.",
            snapshots.installed,
        ),
        (
            "kvorum_snapshot_sent_bytes_total",
            "Bytes of snapshots sent to other servers.",
            snapshots.sent_bytes,
        ),
        (
            "kvorum_snapshot_received_bytes_total",
            "Bytes of snapshots received from other servers.",
            snapshots.received_bytes,
        ),
    ];
    counters.into_iter().for_each(|(name, help, value)| out.counter(name, help, labels, value as f64));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sync_times_fall_into_their_buckets() {
        let times = SyncTimes::default();
        [0, 50, 51, 1_000, 5_000_000]
            .map(Duration::from_micros)
            .into_iter()
            .for_each(|took| times.record(took));
        let counts = times.counts();
        assert_eq!((counts[0], counts[1], counts[4], counts[14]), (2, 1, 1, 1));
        assert_eq!(counts.iter().sum::<u64>(), 5);
    }
}
