//! What a replica starts from: its newest snapshot that is intact, and the log behind it.
//!
//! The rules stand in `docs/data-on-disk.md`. Nothing that was acknowledged may be missing afterwards; where that cannot be
//! shown, the replica does not start.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::Arc,
};

use tokio::sync::oneshot;

use super::{
    Receiver, SnapshotFile, SnapshotStore, blocking,
    format::{Header, ReadError},
    store::Partial,
};
use crate::{
    machine::Machine,
    wal::{Done, GroupLog, GroupState, Position},
};

/// Why a replica cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(
        "{0}; what is in it may have been acknowledged, and the log does not reach back or as far: this replica has to be replaced"
    )]
    Damaged(ReadError),
    #[error(
        "the log begins behind entry {purged}, and the snapshot of what came before is missing in {}",
        dir.display()
    )]
    Missing { purged: u64, dir: PathBuf },
    #[error("the log begins behind entry {purged}, but {} ends at entry {last}", file.display())]
    Gap { purged: u64, last: u64, file: PathBuf },
    #[error("there is {}, but nothing in the log: the log was lost, and with it the votes", file.display())]
    LogLost { file: PathBuf },
    #[error("{}: {reason}", file.display())]
    Refused { file: PathBuf, reason: String },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl StartError {
    /// Whether trying again makes no difference: what is missing is gone.
    pub(crate) fn is_final(&self) -> bool {
        matches!(
            self,
            StartError::Damaged(_)
                | StartError::Missing { .. }
                | StartError::Gap { .. }
                | StartError::LogLost { .. }
        )
    }
}

/// Puts the machine into the state of the newest snapshot, which becomes the store's current one, and makes the log fit it; returns
/// the receiving end for snapshots of leaders.
pub(crate) async fn start(
    store: &Arc<SnapshotStore>,
    machine: &Arc<dyn Machine>,
    log: &GroupLog,
) -> Result<Receiver, StartError> {
    let state = log.state();
    let (current, partial) = {
        let (store, machine, state) = (store.clone(), machine.clone(), state.clone());
        let environment = store.environment().clone();
        blocking(&environment, move || read(&store, &*machine, &state)).await?
    };
    if let Some(file) = &current {
        reconcile(&file.header, log, &state)
            .await
            .map_err(|source| StartError::Io { path: file.path.clone(), source })?;
    }
    Ok(Receiver::new(store.clone(), partial))
}

type Found = (Option<Arc<SnapshotFile>>, Option<Partial>);

fn read(store: &SnapshotStore, machine: &dyn Machine, log: &GroupState) -> Result<Found, StartError> {
    let io = |source| StartError::Io { path: store.dir().to_owned(), source };
    let purged = log.purged.map(|purged| purged.index);
    let mut damaged: Option<(u64, ReadError)> = None;
    let mut current = None;
    for (index, path) in store.finished().map_err(io)? {
        if log.vote.is_none() && log.last.is_none() {
            return Err(StartError::LogLost { file: path });
        }
        if purged > Some(index) {
            // Nor do older ones reach that far.
            let purged = purged.unwrap_or(0);
            return Err(match damaged {
                Some((_, damage)) => StartError::Damaged(damage),
                None => StartError::Gap { purged, last: index, file: path },
            });
        }
        match store.load(&path).and_then(|file| file.verify().map(|()| file)) {
            Ok(file) => {
                current = Some(file);
                break;
            }
            Err(ReadError::Io { file, source }) => return Err(StartError::Io { path: file, source }),
            Err(damage) => {
                damaged.get_or_insert((index, damage));
            }
        }
    }
    if current.is_none()
        && damaged.is_none()
        && let Some(purged) = purged
    {
        return Err(StartError::Missing { purged, dir: store.dir().to_owned() });
    }
    if let Some((index, damage)) = damaged {
        // The log has no holes and begins where the older snapshot ends, or earlier.
        let begins = current.as_ref().map(|file: &Arc<SnapshotFile>| file.header.last.index);
        let reaches = log.last.map(|last| last.index).max(begins);
        if begins < purged || reaches < Some(index) {
            return Err(StartError::Damaged(damage));
        }
        tracing::warn!(%damage, group = store.group(), "a damaged snapshot is passed over: the log has what is in it");
    }
    if let Some(file) = &current {
        restore(file, machine).map_err(|reason| StartError::Refused { file: file.path.clone(), reason })?;
    }
    let partial = store.settle(current.clone()).map_err(io)?;
    Ok((current, partial))
}

/// Puts a machine into the state that a snapshot holds. The snapshot has been verified; it is checked once more on the way.
pub(crate) fn restore(file: &SnapshotFile, machine: &dyn Machine) -> Result<(), String> {
    let mut content = file.content().map_err(|error| error.to_string())?;
    match catch_unwind(AssertUnwindSafe(|| machine.restore(&mut content))) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(fatal)) => Err(fatal.to_string()),
        Err(panic) => Err(format!("panicked: {}", crate::machine::panic_text(&*panic))),
    }
}

/// Drops what of the log contradicts the snapshot: it was not on disk when power was lost. What the snapshot holds is committed, so
/// nothing of that was.
async fn reconcile(snapshot: &Header, log: &GroupLog, state: &GroupState) -> io::Result<()> {
    let last = snapshot.last;
    let at = Position { index: last.index, term: last.leader_id.term, leader: 0 };
    let purged = state.purged.map(|purged| purged.index);
    if purged >= Some(last.index) {
        return Ok(());
    }
    let stored = log.read(last.index..last.index + 1, 1)?;
    match stored.first().filter(|record| record.index == last.index) {
        Some(record) if record.term == at.term => return Ok(()),
        Some(_) => {
            let keep = last.index.checked_sub(1);
            finish(|done| log.truncate_after(keep, done)).await?;
        }
        None => {}
    }
    finish(|done| log.purge_to(at, done)).await
}

async fn finish(begin: impl FnOnce(Done)) -> io::Result<()> {
    let (sender, receiver) = oneshot::channel();
    begin(Box::new(move |result| drop(sender.send(result))));
    receiver.await.unwrap_or_else(|_| Err(io::Error::other("the log was closed")))
}
