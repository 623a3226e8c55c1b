//! Batches: how commands of the keyspace are put together, sent on their way, and counted when their replies are there.

use super::*;
use crate::clients::Unblock;

/// Commands of one batch. The shard's lock is held in slices of its own, so this bounds latency and memory.
pub(super) const BATCH_COMMANDS: usize = 256;
/// A batch takes commands until it is this large.
pub(super) const BATCH_BYTES: usize = 256 * 1024;
/// Sinks kept for batches to come.
pub(super) const SPARE_SINKS: usize = 4;

/// What the commands of one batch have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Terms {
    pub(super) db: u16,
    pub(super) readonly: bool,
    pub(super) muted: bool,
    pub(super) protocol: Protocol,
    /// CLIENT NO-TOUCH: reads are no uses of their keys.
    pub(super) no_touch: bool,
    /// Who runs it.
    pub(super) way: Way,
}

/// A batch that takes more commands.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) terms: Terms,
    pub(super) batch: Batch,
    pub(super) commands: Commands,
}

/// The commands of a batch: each with how often it comes in a row.
#[derive(Debug, Default)]
pub(super) struct Commands(SmallVec<[(&'static Command, usize); 4]>);

impl Terms {
    /// An empty batch for commands on these terms.
    pub(super) fn batch(self) -> Batch {
        let mut batch = Batch::new();
        batch.leave_untouched(self.no_touch);
        batch
    }
}

impl Commands {
    pub(super) fn push(&mut self, command: &'static Command) {
        match self.0.last_mut() {
            Some((last, times)) if std::ptr::eq(*last, command) => *times += 1,
            _ => self.0.push((command, 1)),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|(_, times)| times).sum()
    }

    /// Keeps the first `n`.
    pub(super) fn truncate(&mut self, mut n: usize) {
        self.0.retain(|(_, times)| {
            *times = n.min(*times);
            n -= *times;
            *times > 0
        });
    }

    /// The `n`-th command.
    pub(super) fn get(&self, mut n: usize) -> Option<&'static Command> {
        for &(command, times) in &self.0 {
            if n < times {
                return Some(command);
            }
            n -= times;
        }
        None
    }
}

/// Something whose reply has its place in the order.
pub(super) enum Dispatched {
    /// Its outcome is not known yet.
    Running(Running),
    /// Its replies.
    Done {
        out: Box<RespSink>,
        /// Whether they are those of a batch that ran, or may have.
        ran: bool,
    },
    /// A batch of which nothing ran.
    Returned { batch: Batch, terms: Terms },
    /// Keeps the place of something that is just being settled.
    Settling,
}

pub(super) struct Running {
    pub(super) work: Work,
    pub(super) commands: Commands,
    pub(super) terms: Terms,
    pub(super) bytes: usize,
    pub(super) since: Instant,
}

pub(super) enum Work {
    Batch(Pin<Box<dyn Future<Output = Result<Box<RespSink>, Failure>> + Send>>),
    /// WAIT, perhaps for as long as it takes.
    Replicas {
        count: Pin<Box<dyn Future<Output = Counted> + Send>>,
        wanted: usize,
        on_disk: Option<bool>,
        endless: bool,
    },
    /// SAVE.
    Save(Pin<Box<dyn Future<Output = bool> + Send>>),
    /// FAILOVER and its kin; an error is the reply.
    Handover(Pin<Box<dyn Future<Output = Result<(), String>> + Send>>),
    /// SHUTDOWN, until somebody calls it off.
    Shutdown(Pin<Box<dyn Future<Output = ()> + Send>>),
    /// A command that takes its time, and then is OK.
    Sleep {
        wake: Pin<Box<tokio::time::Sleep>>,
        /// What the slow log has to know.
        slow: Option<SlowCommand>,
    },
    /// Somebody ended it: this is its error.
    Ended(&'static str),
}

/// Who has everything that was written.
pub(super) enum Counted {
    /// WAIT: so many replicas.
    Replicas(usize),
    /// WAITAOF: the own disk, and those of so many replicas.
    Disks { local: bool, replicas: usize },
}

impl Work {
    /// WAIT, or WAITAOF when it is about disks.
    pub(super) fn wait<E: Engine>(
        engine: &E,
        wanted: usize,
        on_disk: Option<bool>,
        patience: Option<Duration>,
    ) -> Work {
        let count: Pin<Box<dyn Future<Output = Counted> + Send>> = match on_disk {
            None => {
                let count = engine.wait_replicas(wanted, patience);
                Box::pin(async move { Counted::Replicas(count.await) })
            }
            Some(local) => {
                let count = engine.wait_on_disk(local, wanted, patience);
                Box::pin(async move {
                    let (local, replicas) = count.await;
                    Counted::Disks { local, replicas }
                })
            }
        };
        Work::Replicas { count, wanted, on_disk, endless: patience.is_none() }
    }
}

impl<E: Engine> Connection<E> {
    pub(super) async fn add_to_batch(&mut self, command: &'static Command, args: Args<'_>, terms: Terms) {
        let limit = (UNSENT_BYTES / self.reply_bytes.max(1)).clamp(1, BATCH_COMMANDS);
        let bytes: usize = args.iter().map(|arg| arg.len()).sum();
        let full = self.open.as_ref().is_some_and(|open| {
            open.terms != terms || open.batch.len() >= limit || open.batch.size_bytes() + bytes > BATCH_BYTES
        });
        if full {
            self.close_batch().await;
            if !self.deferred.is_empty() {
                return self.defer_command(command, args, terms);
            }
        }
        let open = self.open.get_or_insert_with(|| Open {
            terms,
            batch: terms.batch(),
            commands: Commands::default(),
        });
        open.batch.push(command, terms.db, args.iter().copied());
        open.commands.push(command);
        if open.batch.size_bytes() > BATCH_BYTES {
            // At once, so that what is on its way is known before the next request is looked at.
            self.close_batch().await;
        }
    }

    /// Dispatches the batch that is being filled, if there is one.
    pub(super) async fn close_batch(&mut self) {
        let Some(Open { terms, batch, commands }) = self.open.take() else { return };
        let Some(engine) = self.engine.clone() else { return };
        if batch.writes() == 0 && self.queue.is_empty() && terms.way != Way::Forward {
            return self.read(&engine, batch, commands, terms).await;
        }
        if terms.way != Way::Leads && !self.queue.is_empty() {
            // In its turn: the leader would not know in which order batches left here.
            return self.defer_batch(batch, terms);
        }
        let bytes = batch.size_bytes();
        let out = self.sink(terms.protocol);
        let mut work: Pin<Box<dyn Future<Output = _> + Send>> = match terms.way {
            Way::Forward => Box::pin(engine.forward(terms.db, batch, out)),
            Way::Leads | Way::Stale => Box::pin(engine.submit(batch, out)),
        };
        let since = Instant::now();
        self.batches_in_flight += 1;
        self.bytes_in_flight += bytes;
        // Its place in the order is the moment of this first poll.
        let first = poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await;
        let running = Running { work: Work::Batch(work), commands, terms, bytes, since };
        let dispatched = match first {
            Poll::Pending => Dispatched::Running(running),
            Poll::Ready(outcome) => self.settle(running, outcome),
        };
        self.queue.push_back(dispatched);
    }

    /// The short way of a batch of reads: nothing earlier is pending, so its replies go right behind the others.
    pub(super) async fn read(&mut self, engine: &E, batch: Batch, commands: Commands, terms: Terms) {
        let since = Instant::now();
        self.out.set_protocol(terms.protocol);
        self.out.watch_for_slow(self.shared.port.settings.slow_after());
        self.out.take_at_most(Some(UNSENT_BYTES));
        self.out.reset_counts();
        let mark = self.out.mark();
        let read = if terms.way == Way::Stale {
            engine.read_stale(&batch, &mut self.out).await
        } else {
            engine.read(&batch, &mut self.out).await
        };
        self.out.take_at_most(None);
        let mut commands = commands;
        match read {
            Ok(()) => {
                self.held_since = None;
                let done = self.out.replies();
                if done < commands.len() {
                    // The replies are large: the rest runs when the client has taken these.
                    let mut rest = terms.batch();
                    for (command, args) in batch.commands().skip(done) {
                        rest.push(command, terms.db, args.iter().copied());
                    }
                    self.defer_batch(rest, terms);
                    commands.truncate(done);
                }
            }
            Err(ReadError::NotLeader) => {
                self.defer_batch(batch, terms);
                // Asking the majority in vain took its time already.
                return self.hold(since);
            }
            Err(ReadError::TooStale) => {
                (0..commands.len()).for_each(|_| self.out.error(dispatch::MASTER_DOWN.as_bytes()));
            }
        }
        let mut out = std::mem::take(&mut self.out);
        self.account(&mut out, mark, &commands, terms, since);
        self.out = out;
    }

    /// Looks for outcomes, from the oldest batch on: that is also the order in which they enter the log.
    pub(super) fn poll_running(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        for index in 0..self.queue.len() {
            let Dispatched::Running(running) = &mut self.queue[index] else { continue };
            let outcome = match &mut running.work {
                Work::Batch(batch) => batch.as_mut().poll(cx),
                Work::Replicas { count, .. } => count.as_mut().poll(cx).map(|count| {
                    let mut out = Box::new(RespSink::new(running.terms.protocol));
                    match count {
                        Counted::Replicas(count) => out.count(count),
                        Counted::Disks { local, replicas } => {
                            out.array(2);
                            out.int(i64::from(local));
                            out.count(replicas);
                        }
                    }
                    Ok(out)
                }),
                Work::Save(save) => save.as_mut().poll(cx).map(|saved| {
                    let mut out = Box::new(RespSink::new(running.terms.protocol));
                    if saved {
                        out.ok();
                    } else {
                        out.error(b"ERR the snapshot could not be written, the log says why");
                    }
                    Ok(out)
                }),
                Work::Handover(handover) => handover.as_mut().poll(cx).map(|done| {
                    let mut out = Box::new(RespSink::new(running.terms.protocol));
                    match done {
                        Ok(()) => out.ok(),
                        Err(why) => out.error(why.as_bytes()),
                    }
                    Ok(out)
                }),
                Work::Shutdown(withdrawn) => withdrawn.as_mut().poll(cx).map(|()| {
                    let mut out = Box::new(RespSink::new(running.terms.protocol));
                    out.error(b"ERR Errors trying to SHUTDOWN. Check logs.");
                    Ok(out)
                }),
                Work::Sleep { wake, slow } => wake.as_mut().poll(cx).map(|()| {
                    let elapsed = running.since.elapsed();
                    if let Some(mut slow) = slow.take()
                        && self.shared.port.settings.slow_after().is_some_and(|after| elapsed >= after)
                    {
                        slow.took = elapsed;
                        self.shared.port.note_slow(slow, &self.client);
                    }
                    let mut out = Box::new(RespSink::new(running.terms.protocol));
                    out.ok();
                    Ok(out)
                }),
                Work::Ended(error) => {
                    let mut out = Box::new(RespSink::new(running.terms.protocol));
                    out.error(error.as_bytes());
                    Poll::Ready(Ok(out))
                }
            };
            if let Poll::Ready(outcome) = outcome {
                progress = true;
                let place = &mut self.queue[index];
                if let Dispatched::Running(running) = std::mem::replace(place, Dispatched::Settling) {
                    self.queue[index] = self.settle(running, outcome);
                }
            }
        }
        progress
    }

    /// CLIENT UNBLOCK: the wait is over.
    pub(super) fn unblock(&mut self, how: Unblock) {
        let waiting = self.queue.iter_mut().find_map(|dispatched| match dispatched {
            Dispatched::Running(running) if matches!(running.work, Work::Replicas { .. }) => Some(running),
            _ => None,
        });
        let Some(running) = waiting else { return };
        let (wanted, on_disk) = match running.work {
            Work::Replicas { wanted, on_disk, .. } => (wanted, on_disk),
            _ => (0, None),
        };
        running.work = match (how, &self.engine) {
            (Unblock::Timeout, Some(engine)) => Work::wait(&**engine, wanted, on_disk, Some(Duration::ZERO)),
            _ => Work::Ended("UNBLOCKED client unblocked via CLIENT UNBLOCK"),
        };
    }

    /// What came of a batch.
    pub(super) fn settle(&mut self, running: Running, outcome: Result<Box<RespSink>, Failure>) -> Dispatched {
        let Running { commands, terms, bytes, since, .. } = running;
        self.batches_in_flight -= 1;
        self.bytes_in_flight -= bytes;
        let (mut out, ran) = match outcome {
            Ok(out) => (out, true),
            Err(Failure::NotLeader(batch)) => return Dispatched::Returned { batch, terms },
            Err(Failure::Unknown) => {
                let unknown = &self.shared.port.stats.unknown_outcomes;
                unknown.fetch_add(commands.len() as u64, Ordering::Relaxed);
                (self.errors(commands.len(), dispatch::UNKNOWN, terms), true)
            }
            Err(Failure::Refused(text)) => (self.errors(commands.len(), &text, terms), false),
        };
        self.held_since = None;
        self.account(&mut out, 0, &commands, terms, since);
        Dispatched::Done { out, ran }
    }

    /// Counts what a batch did and finishes its replies, which begin at `mark`.
    pub(super) fn account(
        &mut self,
        out: &mut RespSink,
        mark: usize,
        commands: &Commands,
        terms: Terms,
        since: Instant,
    ) {
        let total = commands.len().max(1);
        debug_assert_eq!(out.replies(), total, "one reply for each command");
        if out.has_unserved()
            && let (Some(view), Some(engine)) = (&self.view, &self.engine)
        {
            out.resolve_unserved(|slot| dispatch::redirection(view, engine.id(), slot));
        }
        let elapsed = since.elapsed();
        let tracked = self.shared.port.settings.latency_tracking.load(Ordering::Relaxed);
        // Reads of a batch run one after the other; when there is a write, all wait for its majority together.
        let waited = commands.0.iter().any(|(command, _)| command.is_write());
        let latency = if waited { elapsed } else { elapsed / u32::try_from(total).unwrap_or(u32::MAX) };
        for &(command, times) in &commands.0 {
            let share = elapsed.mul_f64(times as f64 / total as f64);
            self.tally.call(command, times as u64, share);
            if tracked {
                self.tally.latency(command, times as u64, latency);
            }
        }
        for slow in out.take_slow() {
            self.shared.port.note_slow(slow, &self.client);
        }
        for (index, text) in out.errors() {
            if let Some(command) = commands.get(index) {
                self.tally.fail(command);
            }
            count_error(&self.shared.port.stats, text);
        }
        let bytes = out.bytes().len() - mark;
        self.reply_bytes = (bytes / total).max((3 * self.reply_bytes + bytes / total) / 4);
        if terms.muted {
            out.mute_since(mark);
        }
    }

    /// Moves replies whose turn has come to the client, and batches that found no leader to what is deferred.
    pub(super) fn advance(&mut self) {
        while let Some(Dispatched::Done { .. }) = self.queue.front() {
            if let Some(Dispatched::Done { out, .. }) = self.queue.pop_front() {
                self.take_replies(out);
            }
        }
        // Whether a batch may still run is known only when the fate of those behind it is.
        if self.batches_in_flight > 0 || self.queue.is_empty() {
            return;
        }
        let ran_last = self.queue.iter().rposition(|done| matches!(done, Dispatched::Done { ran: true, .. }));
        let mut deferred = VecDeque::new();
        for (index, dispatched) in std::mem::take(&mut self.queue).into_iter().enumerate() {
            match dispatched {
                Dispatched::Returned { batch, terms } if ran_last.is_some_and(|last| index < last) => {
                    let out = self.refuse(&batch, dispatch::CLUSTER_DOWN, terms);
                    self.take_replies(out);
                }
                Dispatched::Returned { batch, terms } => deferred.push_back(Deferred::Batch { batch, terms }),
                Dispatched::Done { out, .. } if deferred.is_empty() => self.take_replies(out),
                Dispatched::Done { out, .. } => deferred.push_back(Deferred::Reply(out)),
                Dispatched::Running(_) | Dispatched::Settling => unreachable!("nothing is in flight"),
            }
        }
        if !deferred.is_empty() {
            deferred.append(&mut self.deferred);
            self.deferred = deferred;
            self.hold(Instant::now());
        }
    }

    /// The same error for each of some commands.
    pub(super) fn errors(&mut self, commands: usize, text: &str, terms: Terms) -> Box<RespSink> {
        let mut out = self.sink(terms.protocol);
        (0..commands).for_each(|_| out.error(text.as_bytes()));
        out
    }

    /// The replies to a batch that will not run.
    pub(super) fn refuse(&mut self, batch: &Batch, text: &str, terms: Terms) -> Box<RespSink> {
        for (command, _) in batch.commands() {
            self.tally.reject(command);
            count_error(&self.shared.port.stats, text.as_bytes());
        }
        self.errors(if terms.muted { 0 } else { batch.len() }, text, terms)
    }

    /// Replies whose turn has come.
    pub(super) fn take_replies(&mut self, mut out: Box<RespSink>) {
        self.out.append(&mut out);
        if self.spare.len() < SPARE_SINKS {
            out.clear();
            self.spare.push(out);
        }
    }

    /// An empty sink.
    pub(super) fn sink(&mut self, protocol: Protocol) -> Box<RespSink> {
        let mut out = self.spare.pop().unwrap_or_default();
        out.set_protocol(protocol);
        out.watch_for_slow(self.shared.port.settings.slow_after());
        out
    }
}
