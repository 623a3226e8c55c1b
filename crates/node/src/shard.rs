//! The handle of one shard's replica on this server: what connections read from and submit to.

use crate::batch::{Batch, ReplySink};
use crate::config::{NodeConfig, ReadMode};
use crate::proposer::{COMMAND_BYTES, Submission, SubmitError, Upload};
use crate::replica::{Replica, Waiting};
use kvorum_cluster::{Note, ReplicaId, ShardId};
use kvorum_keyspace::Slot;
use kvorum_raft::{Environment, Group, NotLeased, SnapshotError, SnapshotStats, Status};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};

/// A replica on this server. Clones are cheap and mean the same replica.
#[derive(Clone)]
pub struct Shard(Arc<Inner>);

struct Inner {
    id: ShardId,
    replica_id: ReplicaId,
    group: Group,
    replica: Arc<Replica>,
    proposer: mpsc::Sender<Submission>,
    environment: Environment,
    read_mode: ReadMode,
    write_timeout: Duration,
    chunk_bytes: usize,
    stale_bound: Duration,
    freshness: Mutex<Freshness>,
}

/// How old a follower's state can be at most: it has everything that its leader had at some time, which is
/// counted from when the follower asked, not from when the answer came. Times are of the environment's clock.
#[derive(Default)]
struct Freshness {
    /// This replica has what the leader had then.
    had: Option<Duration>,
    /// What the leader had at a later time, while this replica does not have that yet.
    awaited: Option<(Duration, u64)>,
}

impl Freshness {
    fn learn(&mut self, asked: Duration, index: u64, applied: u64) {
        self.settle(applied);
        if applied >= index {
            self.had = self.had.max(Some(asked));
        } else if self.awaited.is_none() {
            self.awaited = Some((asked, index));
        }
    }

    fn settle(&mut self, applied: u64) {
        if let Some((asked, _)) = self.awaited.take_if(|&mut (_, index)| applied >= index) {
            self.had = self.had.max(Some(asked));
        }
    }

    fn age(&mut self, applied: u64, now: Duration) -> Option<Duration> {
        self.settle(applied);
        self.had.map(|had| now.saturating_sub(had))
    }
}

/// Why reads were not served. Definite: nothing ran, and the sink holds no reply of this batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReadError {
    /// This replica cannot prove that it leads.
    #[error("this replica does not lead")]
    NotLeader,
    /// This follower does not have what its leader had within the configured bound.
    #[error("this replica is too far behind its leader")]
    TooStale,
}

/// How often a read that waits for the log's clock looks whether it still may.
const CLOCK_PATIENCE: Duration = Duration::from_millis(100);

/// A round to the majority takes no longer, or there is none.
const ROUND_PATIENCE: Duration = Duration::from_secs(1);

/// A replica that never heard from its leader since its start makes stale reads wait this long for that.
const FIRST_ANSWER_PATIENCE: Duration = Duration::from_secs(1);

/// How often such a read looks.
const FIRST_ANSWER_PAUSE: Duration = Duration::from_millis(10);

/// How often WAIT looks at what the followers have.
const WAIT_INTERVAL: Duration = Duration::from_millis(2);

impl Shard {
    pub(crate) fn new(
        (id, replica_id): (ShardId, ReplicaId),
        group: Group,
        replica: Arc<Replica>,
        proposer: mpsc::Sender<Submission>,
        environment: Environment,
        config: &NodeConfig,
    ) -> Shard {
        Shard(Arc::new(Inner {
            id,
            replica_id,
            group,
            replica,
            proposer,
            environment,
            read_mode: config.read_mode,
            write_timeout: config.write_timeout,
            chunk_bytes: config.chunk_bytes,
            stale_bound: config.stale_bound,
            freshness: Mutex::default(),
        }))
    }

    /// Which shard.
    pub fn id(&self) -> ShardId {
        self.0.id
    }

    /// Which of its replicas.
    pub fn replica(&self) -> ReplicaId {
        self.0.replica_id
    }

    /// Raft's view of this replica.
    pub fn status(&self) -> Arc<Status> {
        self.0.group.status().borrow().clone()
    }

    /// The same, with a way to wait for news.
    pub fn statuses(&self) -> watch::Receiver<Arc<Status>> {
        self.0.group.status()
    }

    /// Whether this replica may answer linearizable reads by its lease right now.
    pub fn holds_lease(&self) -> bool {
        self.0.group.lease().is_ok()
    }

    /// A leader that was asked at `asked` answered that it leads and had applied `index`.
    pub(crate) fn leader_had(&self, asked: Duration, index: u64) {
        let applied = self.0.group.status().borrow().applied;
        self.0.freshness.lock().learn(asked, index, applied);
    }

    pub(crate) fn group(&self) -> &Group {
        &self.0.group
    }

    /// Whether it serves and a majority has confirmed of late that it leads: what others are told.
    pub fn serves_for_sure(&self) -> bool {
        self.serves() && self.holds_lease()
    }

    /// Whether this replica leads, has applied its term's first entry and knows the shard's configuration.
    pub fn serves(&self) -> bool {
        self.0.replica.is_configured() && self.0.group.status().borrow().ready
    }

    /// Runs a batch of reads, linearizably, on the leader.
    ///
    /// # Errors
    /// [`ReadError::NotLeader`] when the lease (or, in quorum mode, the round) does not hold.
    ///
    /// # Panics
    /// When the batch holds a write.
    pub async fn read(&self, batch: &Batch, out: &mut dyn ReplySink) -> Result<(), ReadError> {
        assert_eq!(batch.writes(), 0, "reads only");
        let start = out.mark();
        let replica = &self.0.replica;
        if !replica.is_configured() {
            return Err(ReadError::NotLeader);
        }
        let mut from = 0;
        loop {
            if let Err(error) = self.confirm_leadership().await {
                out.rewind(start);
                return Err(error);
            }
            match replica.read(batch, from, |_| replica.clock.now_ms(), out) {
                Ok(()) => return Ok(()),
                Err(Waiting { command, clock_ms }) => {
                    from = command;
                    // Leadership may be lost meanwhile, and then nobody moves the clock for us: look again.
                    let _ = tokio::time::timeout(CLOCK_PATIENCE, replica.clock_reaches(clock_ms)).await;
                }
            }
        }
    }

    async fn confirm_leadership(&self) -> Result<(), ReadError> {
        if self.0.read_mode == ReadMode::Lease {
            match self.0.group.lease() {
                Ok(()) => return Ok(()),
                Err(NotLeased::NotLeader) => return Err(ReadError::NotLeader),
                // The lease is late, or was given up for this term: a round to the majority decides.
                Err(_) => {}
            }
        }
        match tokio::time::timeout(ROUND_PATIENCE, self.0.group.read_index()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(ReadError::NotLeader),
        }
    }

    /// Runs a batch of reads on what this replica has applied, judging expiry by the log's clock.
    ///
    /// # Errors
    /// [`ReadError::TooStale`] when it does not have what the leader had a configured time ago.
    ///
    /// # Panics
    /// When the batch holds a write.
    pub async fn read_stale(&self, batch: &Batch, out: &mut dyn ReplySink) -> Result<(), ReadError> {
        assert_eq!(batch.writes(), 0, "reads only");
        self.confirm_freshness().await?;
        let read = self.0.replica.read(batch, 0, |machine| machine.clock_ms(), out);
        debug_assert!(read.is_ok(), "a read at the log's own clock waits for nothing");
        Ok(())
    }

    /// How long ago the leader had everything that is applied here, nothing while that is not known: zero on a leader with a lease, on
    /// one without it the time since a majority was heard.
    pub fn data_age(&self) -> Option<Duration> {
        if self.holds_lease() {
            return Some(Duration::ZERO);
        }
        if let Some(age) = self.0.group.quorum_age() {
            return Some(age);
        }
        let applied = self.0.group.status().borrow().applied;
        self.0.freshness.lock().age(applied, self.0.environment.now())
    }

    /// Whether a stale read would be refused.
    pub(crate) fn is_stale(&self) -> bool {
        self.data_age().is_none_or(|age| age > self.0.stale_bound)
    }

    /// Whether it knows what its shard is, and may serve it.
    pub(crate) fn is_configured(&self) -> bool {
        self.0.replica.is_configured()
    }

    /// A replica that has just started has not asked its leader yet; it is given a moment for that.
    async fn confirm_freshness(&self) -> Result<(), ReadError> {
        let deadline = self.0.environment.now() + FIRST_ANSWER_PATIENCE;
        loop {
            let applied = self.0.group.status().borrow().applied;
            let age = self.0.freshness.lock().age(applied, self.0.environment.now());
            let fresh = self.0.group.lease().is_ok() || age.is_some_and(|age| age <= self.0.stale_bound);
            if fresh && self.0.replica.is_configured() {
                return Ok(());
            }
            if age.is_some() || self.0.environment.now() >= deadline {
                return Err(ReadError::TooStale);
            }
            tokio::time::sleep(FIRST_ANSWER_PAUSE).await;
        }
    }

    /// Takes a batch through the log. Its writes are acknowledged by their replies once a majority has them;
    /// its reads run between them. The batch has its place in the shard's order once the future was polled for
    /// the first time; but one whose last write is so large that it goes in chunks is overtaken by those submitted after
    /// it. Who cares about the order waits for the outcome of such a batch.
    ///
    /// # Errors
    /// See [`SubmitError`]: only [`SubmitError::Unknown`] leaves open whether the writes ran.
    pub async fn submit(
        &self,
        batch: Batch,
        out: Box<dyn ReplySink>,
    ) -> Result<Box<dyn ReplySink>, SubmitError> {
        let large = batch.large(self.0.chunk_bytes).map_or(0, |item| item.packed.len());
        if batch.size_bytes() - large > COMMAND_BYTES {
            return Err(SubmitError::TooLarge);
        }
        let (reply, replied) = oneshot::channel();
        let (upload, uploaded) = if large > 0 {
            let (heard, uploaded) = oneshot::channel();
            (Upload::Wanted(heard), Some(uploaded))
        } else {
            (Upload::NotNeeded, None)
        };
        let level = batch.level();
        let submission = Submission { batch, out, reply, upload, level };
        // Never waiting for room here keeps batches in the order in which they are submitted; who finds the
        // queue full has lost nothing and comes again.
        match self.0.proposer.try_send(submission) {
            Ok(()) => {}
            // Not even queued: the proposer has ended, or its queue is full.
            Err(TrySendError::Closed(submission) | TrySendError::Full(submission)) => {
                return Err(SubmitError::NotLeader(submission.batch, submission.out));
            }
        }
        if let Some(uploaded) = uploaded {
            // Until then the proposer watches over it, and nothing is in doubt. An error means that there is an outcome.
            let _ = uploaded.await;
        }
        match tokio::time::timeout(self.0.write_timeout, replied).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) | Err(_) => Err(SubmitError::Unknown),
        }
    }

    /// Why this replica serves no more, though its server is well: its state was found wrong.
    pub fn wrong(&self) -> Option<String> {
        self.0.replica.wrong().map(str::to_owned)
    }

    #[cfg(test)]
    pub(crate) fn replica_state(&self) -> &Replica {
        &self.0.replica
    }

    /// Stops serving for good, for that reason.
    pub(crate) fn condemn(&self, reason: String) {
        self.0.replica.condemn(reason);
    }

    /// What the replica noted of its checksum, ascending by index.
    pub(crate) fn notes(&self) -> Vec<Note> {
        self.0.replica.with(|machine| machine.notes().collect())
    }

    /// Waits until `n` followers have everything this replica has applied by now, at most `patience`
    /// (`None`: as long as it takes). Returns how many have it.
    pub async fn wait_replicas(&self, n: usize, patience: Option<Duration>) -> usize {
        let deadline = patience.map(|patience| self.0.environment.now() + patience);
        let wanted = self.status().applied;
        loop {
            let status = self.status();
            let others = status.matched.iter().filter(|&(&replica, _)| replica != self.0.replica_id.0);
            let have = others.filter(|&(_, &index)| index >= wanted).count();
            let late = deadline.is_some_and(|deadline| self.0.environment.now() >= deadline);
            if have >= n || late || !status.ready {
                return have;
            }
            tokio::time::sleep(WAIT_INTERVAL).await;
        }
    }

    /// Waits until everything this replica has applied by now is on the disks of `n` followers and, if `local`, on its own, at
    /// most `patience` (`None`: as long as it takes). Returns whether it is on its own, and on how many others. `synced` says
    /// that replicas acknowledge what they have on disk; when they do not, nobody knows that of the others.
    pub async fn wait_on_disk(
        &self,
        (local, n): (bool, usize),
        synced: bool,
        patience: Option<Duration>,
    ) -> (bool, usize) {
        let me = self.0.replica_id.0;
        let deadline = patience.map(|patience| self.0.environment.now() + patience);
        let wanted = self.status().applied;
        // The frame that is to be on disk, once everything wanted was written.
        let mut frame = None;
        loop {
            let status = self.status();
            let has = |replica: &u64| status.matched.get(replica).is_some_and(|&index| index >= wanted);
            let (written, on_disk) = self.0.group.frames();
            if has(&me) {
                frame.get_or_insert(written);
            }
            let own = frame.is_some_and(|frame| synced || on_disk >= frame);
            let others = status.matched.keys().filter(|replica| **replica != me && has(replica));
            let others = if synced { others.count() } else { 0 };
            let late = deadline.is_some_and(|deadline| self.0.environment.now() >= deadline);
            if (own || !local) && others >= n || late || !status.ready {
                return (own, others);
            }
            tokio::time::sleep(WAIT_INTERVAL).await;
        }
    }

    /// Writes a snapshot of everything applied here, unless there is one; the log before it can go then.
    ///
    /// # Errors
    /// Says why there is none.
    pub async fn snapshot(&self) -> Result<(), SnapshotError> {
        match self.0.group.snapshot().await {
            Ok(_) | Err(SnapshotError::Empty) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Figures of the snapshots here.
    pub fn snapshot_stats(&self) -> SnapshotStats {
        self.0.group.snapshot_stats()
    }

    /// Whether keys whose time has come are removed though nobody touches them, while this replica leads: they are, unless a
    /// test suite says otherwise. They are gone for readers in any case.
    pub fn set_active_expire(&self, on: bool) {
        self.0.replica.set_active_expire(on);
    }

    /// Keys of a slot.
    pub fn count_in_slot(&self, db: u16, slot: Slot) -> usize {
        self.0.replica.with(|machine| machine.keyspace().count_in_slot(db, slot))
    }

    /// At most `limit` keys of a slot.
    pub fn keys_in_slot(&self, db: u16, slot: Slot, limit: usize) -> Vec<Vec<u8>> {
        self.0.replica.with(|machine| machine.keyspace().keys_in_slot(db, slot, limit))
    }

    /// Looks at the keyspace under its lock, for INFO and the like; a short look, please.
    pub fn with_keyspace<R>(&self, look: impl FnOnce(&kvorum_keyspace::Keyspace) -> R) -> R {
        self.0.replica.with(|machine| look(machine.keyspace()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_is_as_fresh_as_the_question_whose_answer_it_has() {
        let mut freshness = Freshness::default();
        let start = Duration::from_secs(1);
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(freshness.age(0, Duration::ZERO), None, "nothing was asked yet");
        freshness.learn(at(1), 10, 10);
        assert_eq!(freshness.had, Some(at(1)));
        freshness.learn(at(2), 20, 15);
        assert_eq!(freshness.had, Some(at(1)), "it does not have entry 20");
        freshness.learn(at(3), 30, 25);
        assert_eq!(freshness.had, Some(at(2)), "it has entry 20 by now");
        assert_eq!(freshness.age(30, at(9)), Some(Duration::from_millis(6)));
        assert_eq!(freshness.had, Some(at(3)), "it was told of entry 30 and has it by now");
        freshness.learn(at(4), 40, 30);
        freshness.learn(at(5), 50, 30);
        assert!(freshness.age(50, at(9)).is_some());
        assert_eq!(freshness.had, Some(at(4)), "one question is remembered, the oldest");
    }
}
