//! When snapshots are taken, and what is purged afterwards: one task per server that looks at all its groups in turn.
//!
//! One snapshot is built at a time. Decisions are functions of figures ([`Figures`]); the task asks, then acts.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use openraft::async_runtime::WatchReceiver;
use openraft_rt::AsyncRuntime;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::{Receiver, SnapshotConfig, SnapshotStore};
use crate::{
    group::Raft,
    runtime::Runtime,
    wal::{GroupId, GroupLog},
};

/// Why there is no new snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Nothing was applied yet.
    #[error("nothing has been applied yet")]
    Empty,
    /// The replica has stopped.
    #[error("the replica has stopped")]
    Failed,
    /// It could not be written. The replica goes on, and tries again when the next is due.
    #[error("the snapshot could not be written: {0}")]
    Write(String),
}

/// Snapshots of one replica: the newest, and figures since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotStats {
    /// Index of the last entry in the newest snapshot; none before the first.
    pub index: Option<u64>,
    /// Its size.
    pub bytes: u64,
    /// Bytes of log that were applied since.
    pub log_bytes: u64,
    /// Everything up to here was purged from the log.
    pub purged: Option<u64>,
    /// Snapshots built.
    pub built: u64,
    /// Snapshots read: at the start, or because a leader sent one.
    pub installed: u64,
    /// Bytes of snapshots sent to others.
    pub sent_bytes: u64,
    /// Bytes of snapshots received.
    pub received_bytes: u64,
}

/// A replica as far as its snapshots go.
pub(crate) struct Managed {
    pub(crate) group: GroupId,
    pub(crate) raft: Raft,
    pub(crate) log: GroupLog,
    pub(crate) store: Arc<SnapshotStore>,
    pub(crate) receiver: Arc<Receiver>,
    pub(crate) config: SnapshotConfig,
}

/// Snapshots of all groups of a server.
pub(crate) struct Snapshots {
    config: SnapshotConfig,
    groups: Mutex<BTreeMap<GroupId, Weak<Managed>>>,
    /// Held while a snapshot is built.
    building: Semaphore,
}

/// Shortest pause after an attempt that failed.
const FAILURE_PAUSE: Duration = Duration::from_secs(5);

/// openraft forgets a request to build while it has not noticed the end of the build before.
const TRIGGER_AGAIN: Duration = Duration::from_millis(500);

impl Snapshots {
    pub(crate) fn new(config: SnapshotConfig) -> Arc<Snapshots> {
        Arc::new(Snapshots { config, groups: Mutex::default(), building: Semaphore::new(1) })
    }

    pub(crate) fn insert(&self, managed: &Arc<Managed>) {
        self.groups.lock().insert(managed.group, Arc::downgrade(managed));
    }

    pub(crate) fn remove(&self, group: GroupId) {
        self.groups.lock().remove(&group);
    }

    /// Builds a snapshot of everything applied and purges the log, unless there is one of all that already.
    pub(crate) async fn take(&self, managed: &Managed) -> Result<u64, SnapshotError> {
        let _one_at_a_time = self.building.acquire().await.map_err(|_| SnapshotError::Failed)?;
        managed.build().await
    }

    /// No more snapshots; ends when none is being built.
    pub(crate) async fn close(&self) {
        let live = self.live();
        live.iter().for_each(|managed| managed.store.close());
        for managed in live {
            managed.close().await;
        }
    }

    fn live(&self) -> Vec<Arc<Managed>> {
        let mut groups = self.groups.lock();
        groups.retain(|_, managed| managed.strong_count() > 0);
        groups.values().filter_map(Weak::upgrade).collect()
    }

    /// Looks after the groups until nobody has `snapshots` any more.
    pub(crate) async fn run(snapshots: Weak<Snapshots>) {
        let Some(interval) = snapshots.upgrade().map(|snapshots| snapshots.config.interval) else { return };
        loop {
            Runtime::sleep(interval).await;
            let Some(snapshots) = snapshots.upgrade() else { return };
            if let Err(error) = snapshots.turn().await {
                tracing::warn!(%error, "a snapshot could not be taken");
                Runtime::sleep(FAILURE_PAUSE).await;
            }
        }
    }

    async fn turn(&self) -> Result<(), SnapshotError> {
        let groups = self.live();
        for managed in &groups {
            managed.receiver.tidy().await;
        }
        let figures: Vec<Figures> = groups.iter().map(|managed| managed.figures()).collect();
        let Some((which, due)) = most_urgent(&self.config, &figures) else { return Ok(()) };
        let managed = &groups[which];
        match due {
            Due::Snapshot => match self.take(managed).await {
                // A replica that has stopped says so elsewhere.
                Err(SnapshotError::Failed | SnapshotError::Empty) => {}
                result => {
                    result?;
                    managed.purge(false).await;
                }
            },
            Due::Release => {
                // What is in a snapshot may wait for a replica that is being fed; another snapshot would not help.
                if !managed.is_purgeable() {
                    match self.take(managed).await {
                        Err(SnapshotError::Failed | SnapshotError::Empty) => return Ok(()),
                        result => drop(result?),
                    }
                }
                managed.purge(true).await;
            }
        }
        Ok(())
    }
}

/// What is known of a group when it is decided whether it needs a snapshot.
#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    /// Bytes applied since the newest snapshot.
    log_bytes: u64,
    /// Size of the newest snapshot.
    snapshot_bytes: u64,
    /// Bytes of the shared log from the group's first entry on.
    pinned_bytes: u64,
    /// Bytes of the log and of the state that a later snapshot need not have.
    passing_bytes: u64,
    /// The newest snapshot is not intact.
    damaged: bool,
    /// The newest snapshot is on its way to another replica.
    sending: bool,
    /// The replica has stopped.
    failed: bool,
}

/// What should be done about a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// A snapshot, and the log before it goes, but for a tail.
    Snapshot,
    /// A snapshot if anything is not in one, and all of the log before it goes.
    Release,
}

/// The group whose log is longest compared with what it may be; none when nothing is due.
fn most_urgent(config: &SnapshotConfig, groups: &[Figures]) -> Option<(usize, Due)> {
    let all_bytes: u64 = groups.iter().map(|figures| figures.snapshot_bytes).sum();
    let passing_bytes: u64 = groups.iter().map(|figures| figures.passing_bytes).sum();
    let pinned_max = config.pinned_bytes.max(all_bytes / 2) + passing_bytes;
    let mut most: Option<(usize, Due, f64)> = None;
    for (at, figures) in groups.iter().enumerate().filter(|(_, figures)| !figures.failed) {
        let log_max = config.log_bytes.max(figures.snapshot_bytes / 2) + figures.passing_bytes;
        // A transfer would have to begin again for a newer snapshot that replaces the one that is sent.
        let patience = if figures.sending { 2.0 } else { 1.0 };
        let log = figures.log_bytes as f64 / log_max.max(1) as f64 / patience;
        let pinned = figures.pinned_bytes as f64 / pinned_max.max(1) as f64 / patience;
        let (due, urgency) = match () {
            () if figures.damaged => (Due::Snapshot, f64::INFINITY),
            () if log >= 1.0 && log >= pinned => (Due::Snapshot, log),
            () if pinned > 1.0 => (Due::Release, pinned),
            () if log >= 1.0 => (Due::Snapshot, log),
            () => continue,
        };
        if most.is_none_or(|(_, _, most)| urgency > most) {
            most = Some((at, due, urgency));
        }
    }
    most.map(|(at, due, _)| (at, due))
}

impl Managed {
    /// No more snapshots; ends when none is being built.
    pub(crate) async fn close(&self) {
        self.store.close();
        self.store.quiet().await;
    }

    fn figures(&self) -> Figures {
        Figures {
            log_bytes: self.store.uncovered_bytes(),
            snapshot_bytes: self.store.current().map_or(0, |file| file.bytes),
            pinned_bytes: self.log.pinned_bytes(),
            passing_bytes: self.store.passing_bytes(),
            damaged: self.store.is_damaged(),
            sending: self.store.sending().is_some(),
            failed: self.raft.metrics().borrow_watched().running_state.is_err(),
        }
    }

    pub(crate) fn stats(&self) -> SnapshotStats {
        let current = self.store.current();
        let counters = &self.store.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SnapshotStats {
            index: current.as_ref().map(|file| file.header.last.index),
            bytes: current.as_ref().map_or(0, |file| file.bytes),
            log_bytes: self.store.uncovered_bytes(),
            purged: self.log.state().purged.map(|purged| purged.index),
            built: read(&counters.built),
            installed: read(&counters.installed),
            sent_bytes: read(&counters.sent_bytes),
            received_bytes: read(&counters.received_bytes),
        }
    }

    /// Builds a snapshot of everything applied; returns the index of its last entry once openraft knows it.
    async fn build(&self) -> Result<u64, SnapshotError> {
        let failed = |_| SnapshotError::Failed;
        let Some(applied) = self.store.applied_next().checked_sub(1) else {
            return Err(SnapshotError::Empty);
        };
        let current = self.store.current().map(|file| file.header.last.index);
        if current >= Some(applied) && !self.store.is_damaged() {
            return Ok(applied);
        }
        let mut metrics = self.raft.metrics();
        let mut attempts = self.store.attempts.subscribe();
        let before = attempts.borrow_and_update().begun;
        loop {
            self.raft.trigger().snapshot().await.map_err(failed)?;
            let begun = attempts.wait_for(|attempts| attempts.begun > before);
            if let Ok(begun) = tokio::time::timeout(TRIGGER_AGAIN, begun).await {
                begun.map_err(|_| SnapshotError::Failed)?;
                break;
            }
        }
        let failure = {
            let ended = attempts.wait_for(|attempts| attempts.ended > before);
            ended.await.map_err(|_| SnapshotError::Failed)?.failure.clone()
        };
        if let Some(reason) = failure {
            return Err(SnapshotError::Write(reason.to_string()));
        }
        let Some(index) = self.store.current().map(|file| file.header.last.index) else {
            return Err(SnapshotError::Failed);
        };
        loop {
            {
                let metrics = metrics.borrow_and_update();
                if metrics.running_state.is_err() {
                    return Err(SnapshotError::Failed);
                }
                if metrics.snapshot.map(|id| id.index) >= Some(index) {
                    return Ok(index);
                }
            }
            metrics.changed().await.map_err(|_| SnapshotError::Failed)?;
        }
    }

    /// Whether the log holds anything that is in the newest snapshot.
    fn is_purgeable(&self) -> bool {
        let purged = self.log.state().purged.map(|purged| purged.index);
        self.store.current().map(|file| file.header.last.index) > purged
    }

    /// Purges the log before the newest snapshot; all of it, or all but a tail for followers that lag a little.
    pub(crate) async fn purge(&self, all: bool) {
        let Some(snapshot) = self.store.current().map(|file| file.header.last.index) else { return };
        let mut upto = Some(snapshot);
        if !all {
            let kept = self.log.tail_begin(self.config.keep_entries, self.config.keep_bytes);
            upto = upto.min(kept.checked_sub(1));
            // Who gets an older snapshot goes on from there.
            let patient = self.store.uncovered_bytes() < 2 * self.config.log_bytes;
            upto = upto.min(self.store.sending().filter(|_| patient).or(upto));
        }
        let purged = self.log.state().purged.map(|purged| purged.index);
        if let Some(upto) = upto.filter(|upto| purged < Some(*upto)) {
            // An error means that the replica has stopped.
            let _ = self.raft.trigger().purge_log(upto).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: fn() -> SnapshotConfig =
        || SnapshotConfig { log_bytes: 100, pinned_bytes: 1000, ..SnapshotConfig::default() };

    #[test]
    fn the_longest_log_comes_first_and_short_ones_not_at_all() {
        let quiet = Figures { log_bytes: 99, ..Figures::default() };
        let busy = Figures { log_bytes: 150, ..Figures::default() };
        let busier = Figures { log_bytes: 200, ..Figures::default() };
        assert_eq!(most_urgent(&CONFIG(), &[]), None);
        assert_eq!(most_urgent(&CONFIG(), &[quiet, quiet]), None);
        assert_eq!(most_urgent(&CONFIG(), &[busy, quiet, busier]), Some((2, Due::Snapshot)));
        let failed = Figures { failed: true, ..busier };
        assert_eq!(most_urgent(&CONFIG(), &[busy, failed]), Some((0, Due::Snapshot)));
    }

    #[test]
    fn large_states_are_written_less_often() {
        let large = Figures { log_bytes: 499, snapshot_bytes: 1000, ..Figures::default() };
        assert_eq!(most_urgent(&CONFIG(), &[large]), None);
        let large = Figures { log_bytes: 500, ..large };
        assert_eq!(most_urgent(&CONFIG(), &[large]), Some((0, Due::Snapshot)));
    }

    #[test]
    fn what_is_there_for_a_while_is_not_held_against_the_log() {
        let passing =
            Figures { log_bytes: 599, passing_bytes: 500, pinned_bytes: 1500, ..Figures::default() };
        assert_eq!(most_urgent(&CONFIG(), &[passing]), None);
        let longer = Figures { log_bytes: 600, ..passing };
        assert_eq!(most_urgent(&CONFIG(), &[longer]), Some((0, Due::Snapshot)));
        let over = Figures { passing_bytes: 0, ..passing };
        assert_eq!(most_urgent(&CONFIG(), &[over]), Some((0, Due::Snapshot)));
    }

    #[test]
    fn an_idle_group_does_not_hold_the_log() {
        let idle = Figures { log_bytes: 1, pinned_bytes: 1001, ..Figures::default() };
        assert_eq!(most_urgent(&CONFIG(), &[idle]), Some((0, Due::Release)));
        let others = Figures { snapshot_bytes: 4000, ..Figures::default() };
        assert_eq!(most_urgent(&CONFIG(), &[idle, others]), None);
    }

    #[test]
    fn a_transfer_is_given_time_and_damage_none() {
        let sending = Figures { log_bytes: 150, sending: true, ..Figures::default() };
        assert_eq!(most_urgent(&CONFIG(), &[sending]), None);
        let long = Figures { log_bytes: 200, ..sending };
        assert_eq!(most_urgent(&CONFIG(), &[long]), Some((0, Due::Snapshot)));
        let damaged = Figures { damaged: true, ..Figures::default() };
        assert_eq!(most_urgent(&CONFIG(), &[long, damaged]), Some((1, Due::Snapshot)));
    }
}
