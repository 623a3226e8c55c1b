//! Turns waiting batches into Raft entries. One task per replica: it joins whatever waits into one entry,
//! keeps a few entries in flight, proposes ticks when keys are due and the shard's configuration when the
//! shard is new. When it waits for more to come is up to [`Gathering`](crate::gather::Gathering).
//!
//! Order: batches are proposed in the order they came, except that one with a large write is overtaken while the write is
//! [uploaded](crate::upload). Reads in a batch run at their place when the entry is
//! applied. Batches of reads alone ride with the next entry; when none is in flight they are served at once.

use crate::batch::{Batch, BatchItem, ReplySink};
use crate::checks::Checks;
use crate::gather::{Gathering, PATIENCE};
use crate::replica::{Pending, Replica, Waiting, local};
use crate::upload::{UploadError, Uploader};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use kvorum_cluster::{BASE_LEVEL, Configure, EntryBuilder, Header};
use kvorum_raft::wal::Wal;
use kvorum_raft::{Environment, Group, NotLeased, ProposeError};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, info};

/// Batches that wait for the proposer; beyond that, submitters are sent away and come again.
const QUEUE_BATCHES: usize = 4096;

/// Entries in flight per shard. More only deepens queues: batching does the rest.
const ENTRIES_IN_FLIGHT: usize = 4;

/// An entry takes batches until it is this large.
const ENTRY_BYTES: usize = 256 << 10;

/// Room for what an entry has beside its commands.
const OVERHEAD_BYTES: usize = 64;

/// What a command takes in an entry beside its packed form: one byte, and the number of a database below 128.
const PART_BYTES: usize = 2;

/// What an entry has room for, with some to spare.
pub(crate) const COMMAND_BYTES: usize = kvorum_raft::ENTRY_BYTES - (64 << 10);

/// Keys that one tick may expire.
const TICK_LIMIT: u64 = 1_000;

/// How often a leader looks whether keys are due.
const TICK_INTERVAL: Duration = Duration::from_millis(100);

/// How often a leader has the replicas compared, at most.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Where the outcome of a batch goes.
pub(crate) type ReplySender = oneshot::Sender<Result<Box<dyn ReplySink>, SubmitError>>;

/// A batch on its way through the log.
pub(crate) struct Submission {
    pub(crate) batch: Batch,
    pub(crate) out: Box<dyn ReplySink>,
    pub(crate) reply: ReplySender,
    pub(crate) upload: Upload,
    /// The least feature level of an entry with its writes.
    pub(crate) level: u16,
}

/// How a submission's large write stands.
pub(crate) enum Upload {
    /// There is none.
    NotNeeded,
    /// It is not in the log yet. The submitter waits to hear that it is.
    Wanted(oneshot::Sender<()>),
    /// Its chunks are in the log.
    Done,
}

/// Why a batch has no replies.
pub enum SubmitError {
    /// Definite: nothing of it ran, here is it again. This replica does not lead (yet, or any more).
    NotLeader(Batch, Box<dyn ReplySink>),
    /// Indefinite: leadership was lost or time ran out after the proposal; nobody knows what ran.
    Unknown,
    /// Definite: nothing ran, a command is larger than any may be.
    TooLarge,
    /// Definite: nothing ran, some server is of an earlier version that does not know a command, or an option, or one so large.
    NotSupported,
    /// Definite: nothing ran, the disk of the leader is nearly full.
    NoSpace,
}

impl std::fmt::Debug for SubmitError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            SubmitError::NotLeader(..) => "NotLeader",
            SubmitError::Unknown => "Unknown",
            SubmitError::TooLarge => "TooLarge",
            SubmitError::NotSupported => "NotSupported",
            SubmitError::NoSpace => "NoSpace",
        })
    }
}

impl Submission {
    /// All replies are in `out`. A client that went away does not care.
    pub(crate) fn answered(self) {
        let _ = self.reply.send(Ok(self.out));
    }

    fn not_leader(self) {
        let Submission { batch, out, reply, .. } = self;
        let _ = reply.send(Err(SubmitError::NotLeader(batch, out)));
    }

    fn too_large(self) {
        let _ = self.reply.send(Err(SubmitError::TooLarge));
    }

    fn not_supported(self) {
        let _ = self.reply.send(Err(SubmitError::NotSupported));
    }

    fn no_space(self) {
        let _ = self.reply.send(Err(SubmitError::NoSpace));
    }

    fn unknown(self) {
        let _ = self.reply.send(Err(SubmitError::Unknown));
    }

    /// Nobody waits for the outcome any more.
    fn is_unwanted(&self) -> bool {
        self.reply.is_closed()
    }

    fn wants_upload(&self) -> bool {
        matches!(self.upload, Upload::Wanted(_))
    }

    fn is_uploaded(&self) -> bool {
        matches!(self.upload, Upload::Done)
    }

    /// The writes that go into an entry as they are.
    fn writes(&self) -> impl Iterator<Item = BatchItem<'_>> {
        let commands = self.batch.len() - usize::from(self.is_uploaded());
        self.batch.iter().take(commands).filter(|item| item.command.is_write())
    }

    fn uploaded(&mut self) {
        if let Upload::Wanted(heard) = std::mem::replace(&mut self.upload, Upload::Done) {
            let _ = heard.send(());
        }
    }
}

/// What the proposer of one replica works with.
pub(crate) struct Proposer {
    pub(crate) group: Group,
    pub(crate) replica: Arc<Replica>,
    pub(crate) wal: Wal,
    /// Where seeds come from.
    pub(crate) environment: Environment,
    /// What the shard's log should say about the shard; the leader proposes it when the log does not.
    pub(crate) configuration: watch::Receiver<Option<Configure>>,
    /// Who can be compared.
    pub(crate) checks: Arc<Checks>,
    /// When the replica was opened.
    pub(crate) since: Duration,
    /// Larger writes go in chunks of this many bytes.
    pub(crate) chunk_bytes: usize,
    /// How long a chunk may take.
    pub(crate) patience: Duration,
}

/// Submissions with large writes, and the one whose write is on its way.
#[derive(Default)]
struct Uploads {
    waiting: VecDeque<Submission>,
    running: Option<BoxFuture<'static, (Submission, Result<(), UploadError>)>>,
}

impl Uploads {
    /// The next upload that ends.
    async fn next(&mut self) -> (Submission, Result<(), UploadError>) {
        poll_fn(|cx| {
            let Some(running) = &mut self.running else { return Poll::Pending };
            let ended = running.as_mut().poll(cx);
            if ended.is_ready() {
                self.running = None;
            }
            ended
        })
        .await
    }
}

/// What a leader decides for an entry that it proposes now.
pub(crate) fn header(replica: &Replica, environment: &Environment) -> Header {
    Header {
        feature_level: BASE_LEVEL,
        clock_ms: replica.clock.now_ms(),
        seed: environment.draw(),
        out_of_memory: false,
    }
}

type InFlight = BoxFuture<'static, (Option<Arc<Pending>>, Result<(), ProposeError>)>;

impl Proposer {
    /// Starts the task on the current runtime; it ends when the last sender is gone.
    pub(crate) fn spawn(self) -> mpsc::Sender<Submission> {
        let (submit, submissions) = mpsc::channel(QUEUE_BATCHES);
        let environment = self.environment.clone();
        environment.spawn(self.run(submissions));
        submit
    }

    async fn run(mut self, mut submissions: mpsc::Receiver<Submission>) {
        let mut in_flight: FuturesUnordered<InFlight> = FuturesUnordered::new();
        let mut waiting: Vec<Submission> = Vec::new();
        let mut uploads = Uploads::default();
        let mut due = tokio::time::interval(TICK_INTERVAL);
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut tick_in_flight = false;
        let mut checked = self.environment.now();
        let mut gathering = Gathering::default();
        let mut patience = pin!(tokio::time::sleep(Duration::ZERO));
        loop {
            let may_tick = in_flight.len() < ENTRIES_IN_FLIGHT && !tick_in_flight;
            tokio::select! {
                biased;
                Some((pending, outcome)) = in_flight.next() => {
                    tick_in_flight &= pending.is_some();
                    settle(pending, outcome);
                    if in_flight.is_empty() && gathering.settled(waiting.len(), self.environment.now()) {
                        patience.set(tokio::time::sleep(PATIENCE));
                    }
                }
                () = patience.as_mut(), if gathering.is_on() => gathering.give_up(),
                received = submissions.recv_many(&mut waiting, QUEUE_BATCHES), if waiting.len() < QUEUE_BATCHES => {
                    if received == 0 {
                        break;
                    }
                }
                (submission, outcome) = uploads.next() => self.end_upload(submission, outcome, &mut waiting),
                () = self.replica.tick_wanted.notified(), if may_tick => {
                    // Readers wait for the clock; whether keys go is another matter.
                    let limit = if self.replica.expires_actively() { TICK_LIMIT } else { 0 };
                    if self.leads() {
                        tick_in_flight = true;
                        self.propose_own(&mut in_flight, |builder| _ = builder.tick(limit)).await;
                    }
                }
                _ = due.tick() => {
                    let missing = if may_tick { self.missing_configuration() } else { None };
                    if let Some(configure) = missing {
                        tick_in_flight = true;
                        info!(shard = configure.shard.0, "configuring a new shard");
                        self.propose_own(&mut in_flight, |builder| _ = builder.configure(&configure)).await;
                    } else if may_tick && self.replica.expires_actively() && self.is_due() {
                        let limit = TICK_LIMIT;
                        tick_in_flight = true;
                        self.propose_own(&mut in_flight, |builder| _ = builder.tick(limit)).await;
                    } else if may_tick
                        && self.environment.now().saturating_sub(checked) >= CHECK_INTERVAL
                        && self.is_check_due()
                    {
                        tick_in_flight = true;
                        checked = self.environment.now();
                        self.propose_own(&mut in_flight, |builder| _ = builder.check()).await;
                    }
                }
            }
            // Who was answered meanwhile (time ran out) is not proposed after all.
            waiting.retain(|submission| !submission.is_unwanted());
            self.begin_uploads(&mut uploads, &mut waiting);
            let must_wait =
                in_flight.len() >= ENTRIES_IN_FLIGHT || !gathering.is_over(waiting.len(), in_flight.len());
            if !in_flight.is_empty() && must_wait && self.lost_majority() {
                // What is in flight may yet be committed. What waits behind it was never proposed: say so.
                waiting.drain(..).for_each(Submission::not_leader);
            }
            while !waiting.is_empty() && in_flight.len() < ENTRIES_IN_FLIGHT {
                let writes = waiting.iter().any(|submission| submission.batch.writes() > 0);
                if !writes {
                    if !in_flight.is_empty() {
                        break;
                    }
                    self.serve_reads(&mut waiting);
                    if waiting.is_empty() {
                        break;
                    }
                }
                if !gathering.is_over(waiting.len(), in_flight.len()) {
                    break;
                }
                let rest = waiting.split_off(entry_length(&waiting));
                let submissions = std::mem::replace(&mut waiting, rest);
                gathering.proposed(submissions.len(), self.environment.now());
                self.propose(&mut in_flight, submissions).await;
            }
        }
        debug!("proposer ends");
        uploads.waiting.into_iter().for_each(Submission::not_leader);
        while let Some((pending, outcome)) = in_flight.next().await {
            settle(pending, outcome);
        }
    }

    /// Takes what wants an upload out of the row, and begins one when nothing is in its way.
    fn begin_uploads(&self, uploads: &mut Uploads, waiting: &mut Vec<Submission>) {
        uploads.waiting.extend(waiting.extract_if(.., |submission| submission.wants_upload()));
        uploads.waiting.retain(|submission| !submission.is_unwanted());
        // The chunks of the next would push out those of one that has not been proposed yet.
        if uploads.running.is_some() || waiting.iter().any(Submission::is_uploaded) {
            return;
        }
        if let Some(submission) = uploads.waiting.pop_front() {
            let uploader = Uploader {
                group: self.group.clone(),
                replica: Arc::clone(&self.replica),
                wal: self.wal.clone(),
                environment: self.environment.clone(),
                checks: Arc::clone(&self.checks),
                since: self.since,
                chunk_bytes: self.chunk_bytes,
                patience: self.patience,
            };
            uploads.running = Some(Box::pin(uploader.run(submission)));
        }
    }

    /// What was uploaded takes its place in the row; what was not has its outcome.
    fn end_upload(
        &self,
        mut submission: Submission,
        outcome: Result<(), UploadError>,
        waiting: &mut Vec<Submission>,
    ) {
        match outcome {
            Ok(()) => {
                submission.uploaded();
                waiting.push(submission);
            }
            Err(UploadError::NotLeader) => submission.not_leader(),
            Err(UploadError::TooLarge) => submission.too_large(),
            Err(UploadError::NotSupported) => submission.not_supported(),
            Err(UploadError::NoSpace) => submission.no_space(),
            Err(UploadError::Unwanted) => {}
        }
    }

    fn header(&self) -> Header {
        header(&self.replica, &self.environment)
    }

    async fn propose(&mut self, in_flight: &mut FuturesUnordered<InFlight>, submissions: Vec<Submission>) {
        // Until this term's first entry is applied, the log may hold readings of the clock not seen here yet.
        if !self.replica.is_configured() || !self.leads() {
            submissions.into_iter().for_each(Submission::not_leader);
            return;
        }
        let submissions = self.supported(submissions);
        if submissions.is_empty() {
            return;
        }
        // The log keeps the last entries in memory, with all the room they were given.
        let items = submissions.iter().flat_map(Submission::writes);
        let bytes: usize = items.map(|item| item.packed.len() + PART_BYTES).sum();
        let mut builder = EntryBuilder::with_capacity(self.header(), OVERHEAD_BYTES + bytes);
        for submission in &submissions {
            builder.needs(submission.level);
            for item in submission.writes() {
                builder.command(item.db, item.packed);
            }
            if submission.is_uploaded() {
                let item = submission.batch.item(submission.batch.len() - 1);
                builder.assembled(item.db, item.packed.len() as u64);
            }
        }
        if self.wal.admit(builder.len_bytes() as u64).is_err() {
            submissions.into_iter().for_each(Submission::no_space);
            return;
        }
        let pending = Pending::new(submissions);
        match self.group.propose(builder.finish().into(), Some(local(&pending))).await {
            Ok(proposal) => in_flight.push(Box::pin(async move {
                let outcome = proposal.await.map(|_| ());
                (Some(pending), outcome)
            })),
            Err(error) => settle(Some(pending), Err(error)),
        }
    }

    /// Those that all servers understand; the others have their outcome.
    fn supported(&self, submissions: Vec<Submission>) -> Vec<Submission> {
        if submissions.iter().all(|submission| submission.level <= BASE_LEVEL) {
            return submissions;
        }
        let up = self.environment.now().saturating_sub(self.since);
        let status = self.group.status().borrow().clone();
        let mut supported = Vec::with_capacity(submissions.len());
        for submission in submissions {
            match self.checks.may_propose(&status, submission.level, up) {
                Some(true) => supported.push(submission),
                Some(false) => submission.not_supported(),
                // It comes again, and by then it is known.
                None => submission.not_leader(),
            }
        }
        supported
    }

    /// Proposes an entry that no client asked for.
    async fn propose_own(
        &mut self,
        in_flight: &mut FuturesUnordered<InFlight>,
        fill: impl FnOnce(&mut EntryBuilder),
    ) {
        let mut builder = EntryBuilder::new(self.header());
        fill(&mut builder);
        match self.group.propose(builder.finish().into(), None).await {
            Ok(proposal) => in_flight.push(Box::pin(async move { (None, proposal.await.map(|_| ())) })),
            // Someone else leads by now; what we wanted is theirs to do.
            Err(error) => in_flight.push(Box::pin(async move { (None, Err(error)) })),
        }
    }

    /// Serves batches of reads while nothing is in flight. What has to wait for the log stays.
    fn serve_reads(&self, waiting: &mut Vec<Submission>) {
        if self.group.lease().is_err() {
            return;
        }
        let mut rest = Vec::new();
        for mut submission in waiting.drain(..) {
            if !rest.is_empty() {
                rest.push(submission);
                continue;
            }
            let start = submission.out.mark();
            match self.replica.read(
                &submission.batch,
                0,
                |_| self.replica.clock.now_ms(),
                &mut *submission.out,
            ) {
                Ok(()) => submission.answered(),
                Err(Waiting { .. }) => {
                    submission.out.rewind(start);
                    rest.push(submission);
                }
            }
        }
        *waiting = rest;
    }

    /// Nobody answered for a lease: a majority may have gone, and another may lead it.
    fn lost_majority(&self) -> bool {
        matches!(self.group.lease(), Err(NotLeased::NotLeader | NotLeased::Expired))
    }

    fn leads(&self) -> bool {
        self.group.status().borrow().ready
    }

    fn is_due(&self) -> bool {
        let deadline = self.replica.with(|machine| machine.next_deadline());
        deadline.is_some_and(|deadline| self.leads() && deadline <= self.replica.clock.now_ms())
    }

    /// The data changed since the replicas were compared last, and all of them know how to be compared.
    fn is_check_due(&self) -> bool {
        let changed = || {
            self.replica
                .with(|machine| machine.noted().is_none_or(|note| note.checksum != machine.checksum()))
        };
        self.replica.is_configured()
            && self.leads()
            && self.checks.are_possible(&self.group.status().borrow())
            && changed()
    }

    fn missing_configuration(&self) -> Option<Configure> {
        if self.replica.is_configured() || self.replica.wrong().is_some() || !self.leads() {
            return None;
        }
        self.configuration.borrow().clone()
    }
}

/// How many of the waiting batches fit one entry; at least one.
fn entry_length(waiting: &[Submission]) -> usize {
    let mut bytes = 0;
    let fitting = waiting.iter().take_while(|submission| {
        // Of a large write only the name goes into the entry.
        bytes += if submission.is_uploaded() { 0 } else { submission.batch.size_bytes() };
        bytes <= ENTRY_BYTES
    });
    fitting.count().max(1)
}

/// An entry has an outcome. Apply has answered its batches, unless there was no apply.
fn settle(pending: Option<Arc<Pending>>, outcome: Result<(), ProposeError>) {
    let Some(submissions) = pending.and_then(|pending| pending.take()) else { return };
    for submission in submissions {
        match outcome {
            Err(ProposeError::NotLeader { .. }) => submission.not_leader(),
            Err(ProposeError::TooLarge { .. }) => submission.too_large(),
            Ok(()) | Err(ProposeError::Lost) => submission.unknown(),
        }
    }
}
