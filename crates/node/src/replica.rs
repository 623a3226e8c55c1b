//! One shard's state on this server: the pure machine under a lock, applied to by Raft's state-machine
//! worker, read by connections. On a leader, applying an entry also answers the batches it was made of.

use crate::batch::{Batch, ReplySink};
use crate::clock::LogClock;
use crate::platform::Observer;
use crate::proposer::Submission;
use crate::stopwatch::{Stopwatch, tell_if_slow};
use crate::views::Views;
use bytes::Bytes;
use kvorum_cluster::{Refusal, ReplicaId, ShardId, ShardMachine, ShardSnapshot, Witness};
use kvorum_keyspace::{NullSink, Sink};
use kvorum_raft::{Committed, Fatal, Image, Local, Machine, give_way};
use parking_lot::{Mutex, RwLock};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use tokio::sync::Notify;

/// Commands read under one hold of the lock: apply waits no longer than these take.
const READ_SLICE: usize = 64;

/// The batches that became one entry. They travel with the entry, in memory only, and are answered exactly
/// once: by apply with their replies, or by the proposer with the reason why there are none.
pub(crate) struct Pending(Mutex<Option<Vec<Submission>>>);

impl Pending {
    pub(crate) fn new(submissions: Vec<Submission>) -> Arc<Pending> {
        Arc::new(Pending(Mutex::new(Some(submissions))))
    }

    /// Whoever takes them answers them.
    pub(crate) fn take(&self) -> Option<Vec<Submission>> {
        self.0.lock().take()
    }
}

/// State and clock of one replica.
pub(crate) struct Replica {
    machine: RwLock<ShardMachine>,
    pub(crate) clock: LogClock,
    /// Copy of the machine's clock for those who wait for it.
    applied_clock_ms: AtomicU64,
    /// Bytes of a large write that has come in part.
    assembling_bytes: AtomicU64,
    clock_waiters: AtomicU64,
    clock_moved: Notify,
    /// A reader met a key that is due by the leader's clock but not by the log's.
    pub(crate) tick_wanted: Notify,
    configured: AtomicBool,
    /// Whether ticks remove keys.
    active_expire: AtomicBool,
    /// Why it serves no more; set once.
    wrong: OnceLock<String>,
    id: (ShardId, ReplicaId),
    views: Arc<Views>,
    observer: Option<Arc<dyn Observer>>,
}

impl Replica {
    pub(crate) fn new(
        id: (ShardId, ReplicaId),
        clock: LogClock,
        views: Arc<Views>,
        observer: Option<Arc<dyn Observer>>,
    ) -> Arc<Replica> {
        Arc::new(Replica {
            id,
            views,
            observer,
            machine: RwLock::new(ShardMachine::new()),
            clock,
            applied_clock_ms: AtomicU64::new(0),
            assembling_bytes: AtomicU64::new(0),
            clock_waiters: AtomicU64::new(0),
            clock_moved: Notify::new(),
            tick_wanted: Notify::new(),
            configured: AtomicBool::new(false),
            active_expire: AtomicBool::new(true),
            wrong: OnceLock::new(),
        })
    }

    /// Looks at the state under its lock; for short looks only.
    pub(crate) fn with<R>(&self, look: impl FnOnce(&ShardMachine) -> R) -> R {
        look(&self.machine.read())
    }

    /// Whether it knows what its shard is, and may serve it.
    pub(crate) fn is_configured(&self) -> bool {
        self.configured.load(Ordering::Acquire) && self.wrong.get().is_none()
    }

    /// Whether ticks that this replica proposes are to remove keys.
    pub(crate) fn set_active_expire(&self, on: bool) {
        self.active_expire.store(on, Ordering::Relaxed);
    }

    /// The same, asked.
    pub(crate) fn expires_actively(&self) -> bool {
        self.active_expire.load(Ordering::Relaxed)
    }

    /// Stops serving for good: its state is wrong. Once this returns, nothing is read from it and nothing is applied.
    pub(crate) fn condemn(&self, reason: String) {
        let _ = self.wrong.set(reason);
        self.machine.write().stop();
    }

    /// Changes the state behind the log's back, in its persisted form.
    #[cfg(test)]
    pub(crate) fn tamper(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut machine = self.machine.write();
        let mut dump = machine.snapshot().dump();
        change(&mut dump);
        *machine = ShardMachine::restore(&mut dump.as_slice()).unwrap();
    }

    /// Why it was condemned, if it was.
    pub(crate) fn wrong(&self) -> Option<&str> {
        self.wrong.get().map(String::as_str)
    }

    /// Runs the reads of `batch` from command `from` on. `Err` names the command that has to wait and the
    /// log clock it waits for; its reply is not in `out`.
    pub(crate) fn read(
        &self,
        batch: &Batch,
        from: usize,
        now_ms: impl Fn(&ShardMachine) -> u64,
        out: &mut dyn ReplySink,
    ) -> Result<(), Waiting> {
        let mut next = from;
        while next < batch.len() {
            let machine = self.machine.read();
            let now_ms = now_ms(&machine);
            let end = batch.len().min(next + READ_SLICE);
            let mut watch = Stopwatch::start(out.slow_after());
            for n in next..end {
                match read_one(&machine, batch, n, now_ms, out) {
                    Ok(()) => {}
                    Err(Refusal::WaitForClock(clock_ms)) => return Err(Waiting { command: n, clock_ms }),
                    Err(refusal) => refuse(out, refusal),
                }
                watch.ran(batch, n, n + 1 == end || out.is_full(), out);
                if out.is_full() {
                    return Ok(());
                }
            }
            next += READ_SLICE;
        }
        Ok(())
    }

    /// Waits until the log's clock has reached `clock_ms`, asking for a tick.
    pub(crate) async fn clock_reaches(&self, clock_ms: u64) {
        let _waiter = Waiter::of(&self.clock_waiters);
        loop {
            let moved = self.clock_moved.notified();
            if self.applied_clock_ms.load(Ordering::SeqCst) >= clock_ms {
                break;
            }
            self.tick_wanted.notify_one();
            moved.await;
        }
    }

    fn apply_now(&self, entry: Committed<'_>) -> Result<(), Fatal> {
        let pending = entry.local.and_then(|local| Arc::clone(local).downcast::<Pending>().ok());
        let mut submissions = pending.and_then(|pending| pending.take());
        let mut machine = self.machine.write();
        let data: &Bytes = entry.data;
        match &mut submissions {
            None => machine.apply(entry.index, entry.term, data, &mut Unanswered::default()),
            Some(submissions) => {
                let mut replies = Replies::new(submissions);
                let outcome = machine.apply(entry.index, entry.term, data, &mut replies);
                replies.note_time();
                if outcome.is_ok() {
                    replies.run_reads(&machine);
                }
                outcome
            }
        }
        .map_err(|error| Fatal(error.to_string()))?;
        if let Some(observer) = &self.observer {
            observer.applied(self.id, (entry.index, entry.term), Some(data), &machine);
        }
        let after = After::of(&machine);
        drop(machine);
        self.applied(after);
        for submission in submissions.into_iter().flatten() {
            submission.answered();
        }
        Ok(())
    }

    fn applied(&self, after: After) {
        self.clock.observe(after.term, after.clock_ms);
        self.applied_clock_ms.store(after.clock_ms, Ordering::SeqCst);
        self.assembling_bytes.store(after.assembling_bytes, Ordering::Relaxed);
        if after.configured && !self.is_configured() {
            self.configured.store(true, Ordering::Release);
        }
        if self.clock_waiters.load(Ordering::SeqCst) > 0 {
            self.clock_moved.notify_waiters();
        }
    }
}

/// What others want to know of a machine's state after an entry.
struct After {
    term: u64,
    clock_ms: u64,
    configured: bool,
    assembling_bytes: u64,
}

impl After {
    fn of(machine: &ShardMachine) -> After {
        After {
            term: machine.term(),
            clock_ms: machine.clock_ms(),
            configured: machine.configured().is_some(),
            assembling_bytes: machine.assembling_bytes(),
        }
    }
}

/// Counts one who waits, also when the wait is cut short.
struct Waiter<'a>(&'a AtomicU64);

impl<'a> Waiter<'a> {
    fn of(waiters: &'a AtomicU64) -> Waiter<'a> {
        waiters.fetch_add(1, Ordering::SeqCst);
        Waiter(waiters)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A read that waits for the log's clock.
pub(crate) struct Waiting {
    /// Index of the command in its batch.
    pub(crate) command: usize,
    /// Milliseconds the log's clock has to reach.
    pub(crate) clock_ms: u64,
}

impl Machine for Replica {
    fn apply(&self, entry: Committed<'_>) -> Result<(), Fatal> {
        self.apply_now(entry)
    }

    fn blank(&self, index: u64, term: u64) {
        let mut machine = self.machine.write();
        machine.advance(index, term).expect("Raft hands entries over in order");
        if let Some(observer) = &self.observer {
            observer.applied(self.id, (index, term), None, &machine);
        }
        self.assembling_bytes.store(machine.assembling_bytes(), Ordering::Relaxed);
        self.clock.entered(term);
    }

    /// Whoever is told who leads by another server, and comes here, must not be sent back to the one who led before.
    fn voted(&self, term: u64) {
        self.views.learn_vacancy(self.id.0, term);
    }

    fn passing_bytes(&self) -> u64 {
        self.assembling_bytes.load(Ordering::Relaxed)
    }

    fn snapshot(&self) -> Box<dyn Image> {
        Box::new(Frozen(self.machine.read().snapshot()))
    }

    fn restore(&self, content: &mut dyn io::Read) -> Result<(), Fatal> {
        if let Some(reason) = self.wrong() {
            return Err(Fatal(reason.to_owned()));
        }
        let restored = ShardMachine::restore(content).map_err(|error| Fatal(error.to_string()))?;
        let after = After::of(&restored);
        let replaced = {
            let mut machine = self.machine.write();
            let replaced = std::mem::replace(&mut *machine, restored);
            if let Some(observer) = &self.observer {
                observer.restored(self.id, &machine);
            }
            replaced
        };
        self.applied(after);
        // All of the old data may go with it: not while readers wait for the lock.
        drop(replaced);
        Ok(())
    }
}

/// The shard's state at one place of its log.
struct Frozen(ShardSnapshot);

impl Image for Frozen {
    fn write(self: Box<Self>, out: &mut dyn io::Write) -> io::Result<()> {
        self.0.write(out)
    }
}

fn read_one(
    machine: &ShardMachine,
    batch: &Batch,
    n: usize,
    now_ms: u64,
    out: &mut dyn ReplySink,
) -> Result<(), Refusal> {
    let item = batch.item(n);
    let argv = item.argv().expect("a batch holds what it packed itself");
    machine.read_touching(batch.touches(), item.db, now_ms, item.command, &argv, out)
}

/// The reply to a command that was refused for the state's sake.
fn refuse(out: &mut dyn ReplySink, refusal: Refusal) {
    match refusal {
        Refusal::NotOwner(slot) => out.not_served(slot),
        Refusal::NotConfigured => out.error(b"CLUSTERDOWN The cluster is down"),
        // Definite, and clients try again by themselves.
        Refusal::Incomplete => out.error(b"TRYAGAIN The leader changed while the command was on its way"),
        Refusal::WaitForClock(_) => unreachable!("a read at the log's own clock waits for nothing"),
    }
}

/// Hands the entry's replies to the batches it was made of, and runs the batches' reads at their places.
struct Replies<'a> {
    submissions: &'a mut [Submission],
    /// The command that comes next: batch and its command.
    batch: usize,
    command: usize,
    null: NullSink,
    /// When the last command ended, if somebody wants to hear of slow ones.
    since: Option<Instant>,
    /// The write that runs: batch and command.
    running: Option<(usize, usize)>,
}

impl<'a> Replies<'a> {
    fn new(submissions: &'a mut [Submission]) -> Replies<'a> {
        let wanted = submissions.iter().any(|submission| submission.out.slow_after().is_some());
        let since = wanted.then(Instant::now);
        Replies { submissions, batch: 0, command: 0, null: NullSink, since, running: None }
    }

    /// The command that ran has ended.
    fn note_time(&mut self) {
        let (Some(since), Some((batch, command))) = (self.since, self.running.take()) else { return };
        let now = Instant::now();
        self.since = Some(now);
        if let Some(Submission { batch, out, .. }) = self.submissions.get_mut(batch) {
            tell_if_slow(batch, command, now - since, &mut **out);
        }
    }

    /// Runs the reads that stand before the next write; stops at it.
    fn run_reads(&mut self, machine: &ShardMachine) {
        while let Some(submission) = self.submissions.get_mut(self.batch) {
            let Submission { batch, out, .. } = submission;
            while self.command < batch.len() {
                if batch.item(self.command).command.is_write() {
                    return;
                }
                let mut read = || read_one(machine, batch, self.command, machine.clock_ms(), &mut **out);
                let lengthy = batch.item(self.command).command.is_lengthy();
                if let Err(refusal) = if lengthy { give_way(read) } else { read() } {
                    refuse(&mut **out, refusal);
                }
                if let Some(since) = self.since {
                    let now = Instant::now();
                    tell_if_slow(batch, self.command, now - since, &mut **out);
                    self.since = Some(now);
                }
                self.command += 1;
            }
            self.batch += 1;
            self.command = 0;
        }
    }
}

/// Applies what nobody here waits for.
#[derive(Default)]
struct Unanswered(NullSink);

impl Witness for Unanswered {
    fn sink(&mut self, _: usize, _: &ShardMachine) -> &mut dyn Sink {
        &mut self.0
    }

    fn refused(&mut self, _: usize, _: Refusal) {}

    fn runner(&self) -> fn(&mut dyn FnMut()) {
        |work| give_way(work)
    }
}

impl Witness for Replies<'_> {
    fn sink(&mut self, _: usize, before: &ShardMachine) -> &mut dyn Sink {
        self.note_time();
        self.run_reads(before);
        self.running = Some((self.batch, self.command));
        self.command += 1;
        match self.submissions.get_mut(self.batch) {
            Some(submission) => &mut *submission.out,
            None => &mut self.null,
        }
    }

    fn refused(&mut self, _: usize, refusal: Refusal) {
        if let Some(submission) = self.submissions.get_mut(self.batch) {
            refuse(&mut *submission.out, refusal);
        }
    }

    fn runner(&self) -> fn(&mut dyn FnMut()) {
        |work| give_way(work)
    }
}

/// The proposer keeps a handle to what travels with its entry.
pub(crate) fn local(pending: &Arc<Pending>) -> Local {
    Arc::clone(pending) as Local
}
