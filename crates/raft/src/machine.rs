//! What committed entries are applied to: a [`Machine`] of the caller's, in order, on the group's own worker.
//!
//! A machine lives in memory and is built anew at every start, from the newest snapshot and the log behind it; each start applies every
//! committed entry behind the snapshot exactly once. An error, or a panic, ends the group on this server: a replica that cannot apply
//! what the majority committed must not go on.

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
    alias::{EntryOf, LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf},
    storage::{EntryResponder, RaftStateMachine},
};
use parking_lot::Mutex;

use crate::{
    snapshot::{Attempt, Header, SnapshotData, SnapshotStore, blocking, restore},
    types::{Data, Member, Types},
    wal::Local,
};

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

    /// This replica is about to vote in `term`, for itself or another: who led an earlier term leads no more, as far as it is
    /// concerned. Called before anybody can learn of that vote, so before that term has a leader. Must not block.
    fn voted(&self, _term: u64) {}

    /// The state as it is now, between two entries. Takes no longer than an entry: it copies roots, not data.
    fn snapshot(&self) -> Box<dyn Image>;

    /// Replaces the state by the content of a snapshot, all of `content` and nothing else. The content is proven to be whole
    /// and understood before anything is replaced: after an error nothing has changed. May take its time; no entry is applied meanwhile.
    fn restore(&self, content: &mut dyn io::Read) -> Result<(), Fatal>;

    /// Bytes of the state, of the last entries, that will not be there for long. Snapshots wait for their end, unless the
    /// log gets long without them.
    fn passing_bytes(&self) -> u64 {
        0
    }
}

/// A frozen state. It is written in the background while the machine goes on, and dropped there.
pub trait Image: Send + 'static {
    /// Writes the state, in pieces of bounded size.
    fn write(self: Box<Self>, out: &mut dyn io::Write) -> io::Result<()>;
}

/// With so many [passing bytes](Machine::passing_bytes) an entry may take long enough to hold up whatever else its thread has to do,
/// heartbeats among it: it is applied on a thread for work that blocks.
const HEAVY_BYTES: u64 = 4 << 20;

/// Lends a [`Machine`] to openraft.
pub(crate) struct Applier {
    machine: Arc<dyn Machine>,
    store: Arc<SnapshotStore>,
    applied: Option<LogIdOf<Types>>,
    membership: StoredMembershipOf<Types>,
}

impl Applier {
    /// `machine` is in the state of the store's current snapshot, or in its first.
    pub(crate) fn new(machine: Arc<dyn Machine>, store: Arc<SnapshotStore>) -> Applier {
        let current = store.current();
        let applied = current.as_ref().map(|file| file.header.last);
        let membership = current.map(|file| file.header.membership.clone()).unwrap_or_default();
        Applier { machine, store, applied, membership }
    }

    async fn apply_one(&mut self, entry: EntryOf<Types>) -> io::Result<()> {
        let id = entry.log_id;
        let expected = self.applied.map_or(0, |applied| applied.index + 1);
        if id.index != expected {
            return Err(io::Error::other(format!("entry {} came instead of entry {expected}", id.index)));
        }
        self.store.note_applying(id.index);
        let (payload, outcome) = if self.machine.passing_bytes() < HEAVY_BYTES {
            let outcome = run(&*self.machine, id, &entry.payload);
            (entry.payload, outcome)
        } else {
            let machine = self.machine.clone();
            let running = blocking(self.store.environment(), move || {
                let outcome = run(&*machine, id, &entry.payload);
                (entry.payload, outcome)
            });
            running.await
        };
        let bytes = outcome.map_err(|reason| io::Error::other(format!("entry {}: {reason}", id.index)))?;
        if let EntryPayload::Membership(membership) = payload {
            self.membership = StoredMembership::new(Some(id), membership);
        }
        self.applied = Some(id);
        self.store.note_applied(bytes, self.machine.passing_bytes());
        Ok(())
    }
}

/// Applies one entry; returns how many bytes it had, or why the group has to end here.
fn run(
    machine: &dyn Machine,
    id: LogIdOf<Types>,
    payload: &EntryPayload<Data, u64, Member>,
) -> Result<usize, String> {
    let (index, term) = (id.index, id.leader_id.term);
    // A panic would end the worker without a word to the group, which would wait for ever.
    let outcome = catch_unwind(AssertUnwindSafe(|| match payload {
        EntryPayload::Normal(data) => {
            let content = data.content();
            machine.apply(Committed { index, term, data: &content, local: data.local.as_ref() })?;
            Ok(content.len())
        }
        EntryPayload::Blank | EntryPayload::Membership(_) => {
            machine.blank(index, term);
            Ok(0)
        }
    }));
    match outcome {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(Fatal(reason))) => Err(reason),
        Err(panic) => Err(format!("panicked: {}", panic_text(&*panic))),
    }
}

pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "no message"
    }
}

impl RaftStateMachine<Types> for Applier {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogIdOf<Types>>, StoredMembershipOf<Types>)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + Send,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            self.apply_one(entry).await?;
            if let Some(responder) = responder {
                responder.send(());
            }
            // Replaying a log must not keep the runtime's worker from everything else.
            tokio::task::consume_budget().await;
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<SnapshotBuilder> {
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        let attempt = self.store.begin_build();
        let frozen = self.applied.map(|last| {
            let header = Header {
                group: self.store.group(),
                id: self.store.draw_id(),
                last,
                membership: self.membership.clone(),
            };
            (header, self.machine.snapshot())
        });
        SnapshotBuilder { store: self.store.clone(), frozen: Mutex::new(Some((attempt, frozen))) }
    }

    /// Nothing has changed unless the snapshot is whole, understood by the machine, and durable.
    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<Types>,
        snapshot: SnapshotData,
    ) -> io::Result<()> {
        let SnapshotData(Some(file)) = snapshot else {
            return Err(io::Error::other("there is no snapshot to install"));
        };
        let (machine, store) = (self.machine.clone(), self.store.clone());
        let installing = blocking(self.store.environment(), move || {
            file.verify()?;
            restore(&file, &*machine)
                .map_err(|reason| io::Error::other(format!("snapshot {}: {reason}", file.path.display())))?;
            store.adopt(&file)
        });
        installing.await?;
        let index = meta.last_log_id.as_ref().map(|id| id.index);
        tracing::info!(group = self.store.group(), index, "took over the state of a leader's snapshot");
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<Types, SnapshotData>>> {
        let current = self.store.current();
        Ok(current.map(|file| SnapshotOf::<Types, SnapshotData> {
            meta: file.header.meta(),
            snapshot: SnapshotData(Some(file)),
        }))
    }
}

/// Writes a state that was frozen between two entries.
pub(crate) struct SnapshotBuilder {
    store: Arc<SnapshotStore>,
    /// The lock only makes it shareable.
    frozen: Mutex<Option<Frozen>>,
}

/// The attempt, and unless nothing was applied yet, what it is of and the state.
type Frozen = (Attempt, Option<(Header, Box<dyn Image>)>);

impl RaftSnapshotBuilder<Types> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    /// A snapshot that cannot be written is no reason to stop a replica, which any error would be to openraft. So an
    /// attempt that failed gives a snapshot of nothing, which openraft passes over; the store knows the reason.
    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<Types, SnapshotData>> {
        let built = match self.frozen.get_mut().take() {
            Some((attempt, Some((header, image)))) => self.store.build(attempt, header, image).await.ok(),
            Some((attempt, None)) => {
                attempt.end(Some("nothing has been applied yet".to_owned()));
                None
            }
            None => None,
        };
        let meta = built.as_ref().map(|file| file.header.meta()).unwrap_or_default();
        Ok(SnapshotOf::<Types, SnapshotData> { meta, snapshot: SnapshotData(built) })
    }
}
