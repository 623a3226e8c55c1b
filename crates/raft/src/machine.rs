//! What committed entries are applied to: a [`Machine`] of the caller's, in order, on the group's own worker.
//!
//! A machine lives in memory and is built anew at every start by replaying the log; each start applies every
//! committed entry exactly once. An error, or a panic, ends the group on this server: a replica that cannot apply what the majority
//! committed must not go on. Snapshots are not there yet, so the log is never purged.

use std::{
    any::Any,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::{
    EntryPayload, RaftSnapshotBuilder, StoredMembership,
    alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf},
    storage::{EntryResponder, RaftStateMachine},
};

use crate::{types::Types, wal::Local};

/// A committed entry.
#[derive(Clone, Copy)]
pub struct Committed<'a> {
    /// Place in the group's log. Indexes of successive calls ascend, with gaps where Raft's own entries stand.
    pub index: u64,
    /// Term of the leader that proposed it.
    pub term: u64,
    /// What was proposed.
    pub data: &'a Bytes,
    /// What the proposer handed in with it; only in the proposer's process, and not after the entry left the log's memory.
    pub local: Option<&'a Local>,
}

/// A reason to stop this replica. The same entry will fail again after a restart.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Fatal(pub String);

/// The state that a group replicates.
pub trait Machine: Send + Sync + 'static {
    /// Applies an entry. May block for bounded time only: the group's apply worker is a task.
    fn apply(&self, entry: Committed<'_>) -> Result<(), Fatal>;

    /// An entry of Raft's own stands at `index`: the first of a leader's term, or a change of members.
    fn blank(&self, index: u64, term: u64);

    /// The state as it is now, between two entries. Takes no longer than an entry: it copies roots, not data.
    fn snapshot(&self) -> Box<dyn Image>;

    /// Replaces the state by the content of a snapshot, all of `content` and nothing else. The content is proven to be whole
    /// and understood before anything is replaced: after an error nothing has changed. May take its time; no entry is applied meanwhile.
    fn restore(&self, content: &mut dyn io::Read) -> Result<(), Fatal>;
}

/// A frozen state. It is written in the background while the machine goes on, and dropped there.
pub trait Image: Send + 'static {
    /// Writes the state, in pieces of bounded size.
    fn write(self: Box<Self>, out: &mut dyn io::Write) -> io::Result<()>;
}

/// Snapshots come later; nothing can make a value of this type.
pub(crate) enum NoSnapshot {}

/// Lends a [`Machine`] to openraft.
pub(crate) struct Applier {
    machine: Arc<dyn Machine>,
    applied: Option<LogIdOf<Types>>,
    membership: StoredMembershipOf<Types>,
}

impl Applier {
    pub(crate) fn new(machine: Arc<dyn Machine>) -> Applier {
        Applier { machine, applied: None, membership: StoredMembership::default() }
    }

    fn apply_one(&mut self, entry: openraft::alias::EntryOf<Types>) -> io::Result<()> {
        let id = entry.log_id;
        let expected = self.applied.map_or(0, |applied| applied.index + 1);
        if id.index != expected {
            return Err(io::Error::other(format!("entry {} came instead of entry {expected}", id.index)));
        }
        let machine = &self.machine;
        // A panic would end the worker without a word to the group, which would wait for ever.
        let outcome = catch_unwind(AssertUnwindSafe(|| match &entry.payload {
            EntryPayload::Normal(data) => machine.apply(Committed {
                index: id.index,
                term: id.leader_id.term,
                data: &data.content(),
                local: data.local.as_ref(),
            }),
            EntryPayload::Blank | EntryPayload::Membership(_) => {
                machine.blank(id.index, id.leader_id.term);
                Ok(())
            }
        }));
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(fatal)) => return Err(io::Error::other(format!("entry {}: {fatal}", id.index))),
            Err(panic) => {
                return Err(io::Error::other(format!(
                    "entry {}: panicked: {}",
                    id.index,
                    panic_text(&*panic)
                )));
            }
        }
        if let EntryPayload::Membership(membership) = entry.payload {
            self.membership = StoredMembership::new(Some(id), membership);
        }
        self.applied = Some(id);
        Ok(())
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "no message"
    }
}

fn no_snapshots() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "snapshots are not supported yet")
}

impl RaftStateMachine<Types> for Applier {
    type SnapshotData = NoSnapshot;
    type SnapshotBuilder = NoSnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogIdOf<Types>>, StoredMembershipOf<Types>)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + Send,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            self.apply_one(entry)?;
            if let Some(responder) = responder {
                responder.send(());
            }
            // Replaying a log must not keep the runtime's worker from everything else.
            tokio::task::consume_budget().await;
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<NoSnapshotBuilder> {
        None
    }

    async fn get_snapshot_builder(&mut self) -> NoSnapshotBuilder {
        NoSnapshotBuilder
    }

    async fn install_snapshot(
        &mut self,
        _meta: &SnapshotMetaOf<Types>,
        snapshot: NoSnapshot,
    ) -> io::Result<()> {
        match snapshot {}
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<Types, NoSnapshot>>> {
        Ok(None)
    }
}

/// Refuses.
pub(crate) struct NoSnapshotBuilder;

impl RaftSnapshotBuilder<Types> for NoSnapshotBuilder {
    type SnapshotData = NoSnapshot;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<Types, NoSnapshot>> {
        Err(no_snapshots())
    }
}
