//! The handle of one shard's replica on this server: what connections read from and submit to.

use crate::batch::{Batch, ReplySink};
use crate::config::ReadMode;
use crate::proposer::{COMMAND_BYTES, SubmitError, Submission};
use crate::replica::{Replica, Waiting};
use kvorum_cluster::{ReplicaId, ShardId};
use kvorum_keyspace::Slot;
use kvorum_raft::{Group, Status};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// A replica on this server. Clones are cheap and mean the same replica.
#[derive(Clone)]
pub struct Shard(Arc<Inner>);

struct Inner {
    id: ShardId,
    replica_id: ReplicaId,
    group: Group,
    replica: Arc<Replica>,
    proposer: mpsc::Sender<Submission>,
    read_mode: ReadMode,
    write_timeout: Duration,
    stale_bound: Duration,
}

/// Why reads were not served. Definite: nothing ran, and the sink holds no reply of this batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReadError {
    /// This replica cannot prove that it leads.
    #[error("this replica does not lead")]
    NotLeader,
    /// This follower has not heard from its leader within the configured bound.
    #[error("this replica is too far behind its leader")]
    TooStale,
}

/// How often a read that waits for the log's clock looks whether it still may.
const CLOCK_PATIENCE: Duration = Duration::from_millis(100);

/// How often WAIT looks at what the followers have.
const WAIT_INTERVAL: Duration = Duration::from_millis(2);

impl Shard {
    pub(crate) fn new(
        (id, replica_id): (ShardId, ReplicaId),
        group: Group,
        replica: Arc<Replica>,
        proposer: mpsc::Sender<Submission>,
        read_mode: ReadMode,
        (write_timeout, stale_bound): (Duration, Duration),
    ) -> Shard {
        Shard(Arc::new(Inner { id, replica_id, group, replica, proposer, read_mode, write_timeout, stale_bound }))
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

    pub(crate) fn group(&self) -> &Group {
        &self.0.group
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
        match self.0.read_mode {
            ReadMode::Lease => self.0.group.lease().map_err(|_| ReadError::NotLeader),
            ReadMode::Quorum => {
                let round = self.0.group.read_index();
                match tokio::time::timeout(self.0.write_timeout, round).await {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(_)) | Err(_) => Err(ReadError::NotLeader),
                }
            }
        }
    }

    /// Runs a batch of reads on what this replica has applied, judging expiry by the log's clock.
    ///
    /// # Errors
    /// [`ReadError::TooStale`] when the leader has not been heard within the configured bound.
    ///
    /// # Panics
    /// When the batch holds a write.
    pub async fn read_stale(&self, batch: &Batch, out: &mut dyn ReplySink) -> Result<(), ReadError> {
        assert_eq!(batch.writes(), 0, "reads only");
        let status = self.status();
        let fresh = status.leader.is_some()
            && status.leader_heard.is_none_or(|heard| heard.elapsed() <= self.0.stale_bound);
        if !self.0.replica.is_configured() || !fresh {
            return Err(ReadError::TooStale);
        }
        let read = self.0.replica.read(batch, 0, |machine| machine.clock_ms(), out);
        debug_assert!(read.is_ok(), "a read at the log's own clock waits for nothing");
        Ok(())
    }

    /// Takes a batch through the log. Its writes are acknowledged by their replies once a majority has them;
    /// its reads run between them.
    ///
    /// # Errors
    /// See [`SubmitError`]: only [`SubmitError::Unknown`] leaves open whether the writes ran.
    pub async fn submit(
        &self,
        batch: Batch,
        out: Box<dyn ReplySink>,
    ) -> Result<Box<dyn ReplySink>, SubmitError> {
        if batch.size_bytes() > COMMAND_BYTES {
            return Err(SubmitError::TooLarge);
        }
        let (reply, replied) = oneshot::channel();
        let submission = Submission { batch, out, reply };
        if let Err(mpsc::error::SendError(submission)) = self.0.proposer.send(submission).await {
            return Err(SubmitError::NotLeader(submission.batch, submission.out));
        }
        match tokio::time::timeout(self.0.write_timeout, replied).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) | Err(_) => Err(SubmitError::Unknown),
        }
    }

    /// Waits until `n` followers have everything this replica has applied by now, at most `patience`
    /// (`None`: as long as it takes). Returns how many have it.
    pub async fn wait_replicas(&self, n: usize, patience: Option<Duration>) -> usize {
        let deadline = patience.map(|patience| Instant::now() + patience);
        let wanted = self.status().applied;
        loop {
            let status = self.status();
            let others = status.matched.iter().filter(|&(&replica, _)| replica != self.0.replica_id.0);
            let have = others.filter(|&(_, &index)| index >= wanted).count();
            let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            if have >= n || late || !status.ready {
                return have;
            }
            tokio::time::sleep(WAIT_INTERVAL).await;
        }
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

    /// The shard's clock as this replica estimates it, milliseconds since the Unix epoch.
    pub fn clock_ms(&self) -> u64 {
        self.0.replica.clock.now_ms()
    }
}
