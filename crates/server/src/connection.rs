//! One client connection: one task, from bytes to bytes.
//!
//! Contract: replies leave in the order of the requests, and commands run in that order as far as they run at all.
//! - Consecutive commands of the keyspace form a batch. Reads take the short way, without leaving this task,
//!   only while nothing earlier of this connection waits for its outcome; everything else is submitted, and a few
//!   batches may be on their way at a time.
//! - A batch that found no leader ran nothing. It is *deferred*: nothing behind it is looked at until everything
//!   before it is answered; then it is routed anew, until there is a leader or the hold time is over. Should a later
//!   batch have run meanwhile, the deferred one would run out of order, so it is answered with an error instead.
//! - A batch whose outcome is not known is answered `-UNKNOWN`, and never submitted again.
//! - Memory is bounded: reading stops while too much waits for an outcome or for the client to take its
//!   replies. What one turn does is bounded too, so that a long pipeline lets the others have theirs.
//!
//! Left out: what commands mean (the keyspace), where they go (`dispatch`), what a client has told us
//! (`session`).

#[cfg(test)]
mod tests;

use crate::clients::Client;
use crate::dispatch::{self, Course};
use crate::engine::{Engine, Failure};
use crate::port::{Place, Port, Replica};
use crate::resp::{Limits, MAX_BULK_BYTES, Protocol, RequestDecoder, RespSink};
use crate::session::{Action, Next, Session};
use crate::slowlog::SlowCommand;
use crate::stats::{Tally, count_error};
use kvorum_cluster::View;
use kvorum_keyspace::{Args, Command, Sink};
use kvorum_node::{Batch, ReadError, ReplySink};
use parking_lot::RwLock;
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tracing::debug;

/// Requests looked at in one turn.
const TURN_REQUESTS: usize = 1024;
/// Commands of one batch. The shard's lock is held in slices of its own, so this bounds latency and memory.
const BATCH_COMMANDS: usize = 256;
/// A batch takes commands until it is this large.
const BATCH_BYTES: usize = 256 * 1024;
/// Batches on their way at a time.
const BATCHES_IN_FLIGHT: usize = 16;
/// Batches on their way and replies that stand behind them, at a time.
const QUEUE_LENGTH: usize = 64;
/// Bytes of batches on their way at a time. What goes through the log in chunks is overtaken by what is submitted after it, so
/// nothing may be.
const BYTES_IN_FLIGHT: usize = kvorum_node::CHUNK_BYTES;
/// Replies that the client has not taken, beyond which no request is looked at.
const UNSENT_BYTES: usize = 1024 * 1024;
/// Room made for each read.
const READ_BYTES: usize = 16 * 1024;
/// Bytes that may be read ahead while no request is looked at: enough to notice a client that went away.
const READ_AHEAD_BYTES: usize = 256 * 1024;
/// `client-query-buffer-limit`: the largest request, all its arguments together.
const REQUEST_BYTES: usize = 1024 * 1024 * 1024;
/// While held, the leader is looked for at least this often.
const HOLD_INTERVAL: Duration = Duration::from_millis(25);
/// How long a client that is on its way out may take to read its last replies.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(5);
/// Replies of the session share a sink until it holds this much.
const SHARED_SINK_BYTES: usize = 16 * 1024;
/// Sinks kept for batches to come.
const SPARE_SINKS: usize = 4;

/// What a port and its connections share about their replica and their end.
pub(crate) struct Shared<E> {
    /// The port.
    pub(crate) port: Arc<Port>,
    /// The replica behind it, once there is one; another one may take its place.
    engine: RwLock<Option<Arc<E>>>,
    /// Set when the connections are to finish what they have and end.
    pub(crate) draining: AtomicBool,
}

impl<E> Shared<E> {
    /// A port without a replica yet.
    pub(crate) fn new(port: Port) -> Shared<E> {
        Shared { port: Arc::new(port), engine: RwLock::default(), draining: AtomicBool::new(false) }
    }

    /// The replica behind the port as of now.
    pub(crate) fn engine(&self) -> Option<Arc<E>> {
        self.engine.read().clone()
    }

    /// From here on this replica is behind the port. Connections that are there go on with it.
    pub(crate) fn set_engine(&self, engine: E) {
        *self.engine.write() = Some(Arc::new(engine));
    }
}

fn place<'a, E: Engine>(shared: &'a Shared<E>, engine: &'a Option<Arc<E>>) -> Place<'a> {
    Place { port: &shared.port, replica: engine.as_deref().map(|engine| engine as &dyn Replica) }
}

/// A connection and what it is in the middle of.
struct Connection<E> {
    shared: Arc<Shared<E>>,
    /// The replica behind the port, as of this turn.
    engine: Option<Arc<E>>,
    client: Arc<Client>,
    stream: TcpStream,
    session: Session,
    decoder: RequestDecoder,
    /// The decoder has no complete request left.
    wants_bytes: bool,
    /// The client has sent its last byte, or we want no more.
    read_closed: bool,
    /// No further request is looked at: QUIT, or bytes that are no request.
    finishing: bool,
    /// The port closes.
    draining: bool,
    /// Replies whose turn has come.
    out: RespSink,
    /// Bytes of `out` that the client has.
    sent: usize,
    /// What the server knows of the cluster, as of this turn.
    view: Option<Arc<View>>,
    /// The batch that is being filled.
    open: Option<Open>,
    /// What was dispatched and is not in `out` yet, in order.
    queue: VecDeque<Dispatched>,
    batches_in_flight: usize,
    bytes_in_flight: usize,
    /// What waits until `queue` is empty, in order. No request is looked at while there is something.
    deferred: VecDeque<Deferred>,
    /// Since when the client has been held for want of a leader.
    held_since: Option<Instant>,
    /// Resolves when what is held should be routed again.
    hold: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    #[expect(clippy::vec_box, reason = "batches travel with boxed sinks: the boxes are what is kept")]
    spare: Vec<Box<RespSink>>,
    tally: Tally,
    /// Bytes that a reply had of late: batches are made smaller when replies are large.
    reply_bytes: usize,
    last_command: &'static str,
}

/// What the commands of one batch have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Terms {
    db: u16,
    readonly: bool,
    muted: bool,
    protocol: Protocol,
    /// To be read from this replica's own state, though it does not lead.
    stale: bool,
}

/// A batch that takes more commands.
#[derive(Debug)]
struct Open {
    terms: Terms,
    batch: Batch,
    commands: Commands,
}

/// The commands of a batch: each with how often it comes in a row.
#[derive(Debug, Default)]
struct Commands(SmallVec<[(&'static Command, usize); 4]>);

impl Commands {
    fn push(&mut self, command: &'static Command) {
        match self.0.last_mut() {
            Some((last, times)) if std::ptr::eq(*last, command) => *times += 1,
            _ => self.0.push((command, 1)),
        }
    }

    fn len(&self) -> usize {
        self.0.iter().map(|(_, times)| times).sum()
    }

    /// The `n`-th command.
    fn get(&self, mut n: usize) -> Option<&'static Command> {
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
enum Dispatched {
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

struct Running {
    work: Work,
    commands: Commands,
    terms: Terms,
    bytes: usize,
    since: Instant,
}

enum Work {
    Batch(Pin<Box<dyn Future<Output = Result<Box<RespSink>, Failure>> + Send>>),
    /// WAIT, perhaps for as long as it takes.
    Replicas {
        count: Pin<Box<dyn Future<Output = usize> + Send>>,
        endless: bool,
    },
}

/// Something that waits for everything before it to be answered.
enum Deferred {
    /// A batch to be routed, perhaps again.
    Batch { batch: Batch, terms: Terms },
    /// A request to be looked at again.
    Request { args: Vec<Vec<u8>>, muted: bool },
    /// A reply that is ready but stands behind something else that waits.
    Reply(Box<RespSink>),
}

/// Takes a client off the port's list, however its connection ended.
struct Registration<E>(Arc<Shared<E>>, Arc<Client>);

impl<E> Drop for Registration<E> {
    fn drop(&mut self) {
        self.0.port.clients.leave(&self.1);
    }
}

/// Serves one client until it goes, is told to go, or the port closes.
pub(crate) async fn serve<E: Engine>(shared: Arc<Shared<E>>, stream: TcpStream, client: Arc<Client>) {
    let _registration = Registration(Arc::clone(&shared), Arc::clone(&client));
    let mut connection = Connection {
        session: Session::new(Arc::clone(&client), &shared.port),
        engine: shared.engine(),
        shared: Arc::clone(&shared),
        client: Arc::clone(&client),
        stream,
        decoder: RequestDecoder::default(),
        wants_bytes: true,
        read_closed: false,
        finishing: false,
        draining: false,
        out: RespSink::default(),
        sent: 0,
        view: None,
        open: None,
        queue: VecDeque::new(),
        batches_in_flight: 0,
        bytes_in_flight: 0,
        deferred: VecDeque::new(),
        held_since: None,
        hold: None,
        spare: Vec::new(),
        tally: Tally::default(),
        reply_bytes: 0,
        last_command: "",
    };
    if let Err(error) = connection.run().await {
        // Clients come and go as they like; it is not worth more than this.
        debug!(client = %client.peer, %error, "connection lost");
    }
    connection.tally.flush(&shared.port.stats);
}

impl<E: Engine> Connection<E> {
    async fn run(&mut self) -> io::Result<()> {
        let client = Arc::clone(&self.client);
        let mut told = pin!(client.told());
        loop {
            let turn_is_over = self.turn().await;
            self.note_turn();
            if client.is_killed() {
                return Ok(());
            }
            if self.is_over() {
                return self.say_goodbye().await;
            }
            if turn_is_over {
                // There is more to do; first the others have their turn.
                tokio::task::yield_now().await;
            }
            poll_fn(|cx| {
                let mut news = false;
                if told.as_mut().poll(cx).is_ready() {
                    told.set(client.told());
                    news = true;
                }
                match self.poll_progress(cx)? {
                    Poll::Pending if !news && !turn_is_over => Poll::Pending,
                    _ => Poll::Ready(io::Result::Ok(())),
                }
            })
            .await?;
            if self.shared.draining.load(Ordering::Acquire) {
                self.draining = true;
                self.read_closed = true;
                // Who is held now is told so rather than cut off.
                self.hold = None;
            }
        }
    }

    /// Outcomes, bytes in and bytes out, as far as they are there.
    fn poll_progress(&mut self, cx: &mut Context<'_>) -> io::Result<Poll<()>> {
        let mut progress = self.poll_running(cx);
        if let Some(hold) = &mut self.hold
            && hold.as_mut().poll(cx).is_ready()
        {
            self.hold = None;
            progress = true;
        }
        // Room for replies is news only to who waited for it.
        let waits_for_room = !self.may_look();
        progress |= self.poll_write(cx)? && waits_for_room;
        progress |= self.poll_read(cx)?;
        Ok(if progress { Poll::Ready(()) } else { Poll::Pending })
    }

    /// Looks for outcomes, from the oldest batch on: that is also the order in which they enter the log.
    fn poll_running(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        for index in 0..self.queue.len() {
            let Dispatched::Running(running) = &mut self.queue[index] else { continue };
            let outcome = match &mut running.work {
                Work::Batch(batch) => batch.as_mut().poll(cx),
                Work::Replicas { count, .. } => count.as_mut().poll(cx).map(|count| {
                    let mut out = Box::new(RespSink::new(running.terms.protocol));
                    out.int(i64::try_from(count).unwrap_or(i64::MAX));
                    Ok(out)
                }),
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

    fn poll_write(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut progress = false;
        while self.sent < self.out.bytes().len() {
            let unsent = &self.out.bytes()[self.sent..];
            match Pin::new(&mut self.stream).poll_write(cx, unsent) {
                Poll::Pending => return Ok(progress),
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => {
                    let written = written?;
                    self.sent += written;
                    let stats = &self.shared.port.stats;
                    stats.output_bytes.fetch_add(written as u64, Ordering::Relaxed);
                    stats.writes.fetch_add(1, Ordering::Relaxed);
                    progress = true;
                }
            }
        }
        if self.sent > 0 {
            self.sent = 0;
            self.out.clear();
        }
        Ok(progress)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let ahead = !self.may_look() && self.decoder.pending_bytes() < READ_AHEAD_BYTES;
        if self.read_closed || self.finishing || !(self.wants_bytes || ahead) {
            return Ok(false);
        }
        if self.decoder.pending_bytes() > REQUEST_BYTES {
            // Redis closes such a connection without a word, too.
            self.finishing = true;
            return Ok(true);
        }
        let buffer = self.decoder.buffer(READ_BYTES);
        let read = pin!(self.stream.read_buf(buffer));
        let Poll::Ready(read) = read.poll(cx) else { return Ok(false) };
        let read = read?;
        self.read_closed = read == 0;
        self.wants_bytes &= read == 0;
        let stats = &self.shared.port.stats;
        stats.input_bytes.fetch_add(read as u64, Ordering::Relaxed);
        stats.reads.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    }

    /// Looks at everything there is to look at. Returns whether it stopped only because its turn was over.
    async fn turn(&mut self) -> bool {
        self.engine = self.shared.engine();
        self.view = self.engine.as_deref().map(Replica::view);
        self.advance();
        self.take_up_deferred().await;
        if self.queue.is_empty() && self.deferred.is_empty() {
            self.held_since = None;
        }
        // The requests lie in the decoder's buffer while they are looked at.
        let mut decoder = std::mem::take(&mut self.decoder);
        let mut requests = 0;
        while requests < TURN_REQUESTS && !self.wants_bytes && self.may_look() {
            // It may have authenticated just now.
            let limits = Limits {
                bulk_bytes: MAX_BULK_BYTES,
                stranger: self.session.lacks_password(&self.shared.port),
            };
            match decoder.next(limits) {
                Ok(Some(args)) => {
                    requests += 1;
                    self.session.begin();
                    self.look(&args).await;
                }
                Ok(None) => self.wants_bytes = true,
                Err(error) => {
                    self.close_batch().await;
                    self.finishing = true;
                    count_error(&self.shared.port.stats, error.text().as_bytes());
                    self.reply(|_, _, out| out.error(error.text()));
                }
            }
        }
        self.close_batch().await;
        self.decoder = decoder;
        // What had an outcome at once may have made way for more.
        self.advance();
        !self.wants_bytes && self.may_look() || self.may_take_up_deferred()
    }

    /// Whether the next request may be looked at.
    fn may_look(&self) -> bool {
        !self.finishing
            && self.deferred.is_empty()
            && self.batches_in_flight < BATCHES_IN_FLIGHT
            && self.queue.len() < QUEUE_LENGTH
            && self.bytes_in_flight < BYTES_IN_FLIGHT
            && self.out.bytes().len() - self.sent < UNSENT_BYTES
    }

    /// Whether what is deferred may be looked at again.
    fn may_take_up_deferred(&self) -> bool {
        !self.deferred.is_empty() && self.queue.is_empty() && self.hold.is_none()
    }

    /// Whether there is nothing left to do but to write what is ready.
    fn is_over(&self) -> bool {
        if self.read_closed && !self.draining && self.hold.is_some() && self.queue.is_empty() {
            // What is held was not proposed, and nobody waits for it any more.
            return true;
        }
        if self.read_closed
            && let Some(Dispatched::Running(Running { work: Work::Replicas { endless: true, .. }, .. })) =
                self.queue.front()
        {
            return true;
        }
        (self.finishing || self.read_closed && self.wants_bytes)
            && self.queue.is_empty()
            && self.deferred.is_empty()
    }

    async fn say_goodbye(&mut self) -> io::Result<()> {
        let written = poll_fn(|cx| {
            let _ = self.poll_write(cx)?;
            if self.out.bytes().is_empty() { Poll::Ready(io::Result::Ok(())) } else { Poll::Pending }
        });
        tokio::time::timeout(GOODBYE_PATIENCE, written).await??;
        self.stream.shutdown().await
    }

    /// What others see of this connection.
    fn note_turn(&mut self) {
        self.tally.flush(&self.shared.port.stats);
        let command = std::mem::take(&mut self.last_command);
        if !command.is_empty() {
            let (input_bytes, output_bytes) =
                (self.decoder.pending_bytes(), self.out.bytes().len() - self.sent);
            self.client.update(|profile| {
                profile.command = command;
                profile.active = Some(Instant::now());
                profile.input_bytes = input_bytes;
                profile.output_bytes = output_bytes;
            });
        }
    }

    /// Looks at one request. The session knows by now whether its reply is wanted.
    async fn look(&mut self, args: Args<'_>) {
        match self.session.on_request(args, &self.shared.port) {
            Action::Run(command) => {
                let terms = Terms {
                    db: self.session.db,
                    readonly: self.session.readonly,
                    muted: self.session.is_muted(),
                    protocol: self.session.protocol(),
                    stale: false,
                };
                self.last_command = command.name;
                self.run_command(command, args, terms).await;
            }
            Action::Serve { command, in_order } => {
                self.close_batch().await;
                if !self.deferred.is_empty() || in_order && !self.queue.is_empty() {
                    return self.defer_request(args);
                }
                self.last_command = command.name;
                self.serve_command(command, args);
            }
            Action::Refuse { command, error } => {
                self.close_batch().await;
                if !self.deferred.is_empty() {
                    return self.defer_request(args);
                }
                if let Some(command) = command {
                    self.tally.reject(command);
                }
                count_error(&self.shared.port.stats, error.text().as_bytes());
                let muted = self.session.is_muted();
                if !muted {
                    self.reply(|_, _, out| out.error(error.text()));
                }
            }
        }
    }

    /// Sends a command of the keyspace on its way.
    async fn run_command(&mut self, command: &'static Command, args: Args<'_>, terms: Terms) {
        if !self.deferred.is_empty() {
            return self.defer_command(command, args, terms);
        }
        let (Some(engine), Some(view)) = (&self.engine, &self.view) else {
            return self.reply(|_, _, out| {
                if !terms.muted {
                    dispatch::without_cluster(command, args, out);
                }
            });
        };
        let refusal = match dispatch::course(view, engine.id(), command, args, terms.readonly) {
            Course::Local => return self.add_to_batch(command, args, terms).await,
            Course::Stale => return self.add_to_batch(command, args, Terms { stale: true, ..terms }).await,
            Course::Hold => None,
            Course::Refused(text) => Some(text),
        };
        self.close_batch().await;
        match refusal {
            Some(text) if self.deferred.is_empty() => {
                self.tally.reject(command);
                count_error(&self.shared.port.stats, text.as_bytes());
                if !terms.muted {
                    self.reply(|_, _, out| out.error(&text));
                }
            }
            Some(_) => self.defer_command(command, args, terms),
            None => {
                self.defer_command(command, args, terms);
                self.hold(Instant::now());
            }
        }
    }

    async fn add_to_batch(&mut self, command: &'static Command, args: Args<'_>, terms: Terms) {
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
            batch: Batch::new(),
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
    async fn close_batch(&mut self) {
        let Some(Open { terms, batch, commands }) = self.open.take() else { return };
        let Some(engine) = self.engine.clone() else { return };
        if batch.writes() == 0 && self.queue.is_empty() {
            return self.read(&engine, batch, commands, terms).await;
        }
        if terms.stale {
            return self.defer_batch(batch, terms);
        }
        let bytes = batch.size_bytes();
        let mut work = Box::pin(engine.submit(batch, self.sink(terms.protocol)));
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
    async fn read(&mut self, engine: &E, batch: Batch, commands: Commands, terms: Terms) {
        let since = Instant::now();
        self.out.set_protocol(terms.protocol);
        self.out.watch_for_slow(self.shared.port.settings.slow_after());
        self.out.reset_counts();
        let mark = self.out.mark();
        let read = if terms.stale {
            engine.read_stale(&batch, &mut self.out).await
        } else {
            engine.read(&batch, &mut self.out).await
        };
        match read {
            Ok(()) => self.held_since = None,
            Err(ReadError::NotLeader) => {
                self.defer_batch(batch, terms);
                // Asking the majority in vain took its time already.
                return self.hold(since);
            }
            Err(ReadError::TooStale) => {
                (0..commands.len()).for_each(|_| self.out.error(dispatch::MASTER_DOWN));
            }
        }
        let mut out = std::mem::take(&mut self.out);
        self.account(&mut out, mark, &commands, terms, since);
        self.out = out;
    }

    /// Counts what a batch did and finishes its replies, which begin at `mark`.
    fn account(
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
        self.reply_bytes = (3 * self.reply_bytes + bytes / total) / 4;
        if terms.muted {
            out.mute_since(mark);
        }
    }

    /// What came of a batch.
    fn settle(&mut self, running: Running, outcome: Result<Box<RespSink>, Failure>) -> Dispatched {
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
            Err(Failure::Refused(text)) => (self.errors(commands.len(), text, terms), false),
        };
        self.held_since = None;
        self.account(&mut out, 0, &commands, terms, since);
        Dispatched::Done { out, ran }
    }

    /// The same error for each of some commands.
    fn errors(&mut self, commands: usize, text: &str, terms: Terms) -> Box<RespSink> {
        let mut out = self.sink(terms.protocol);
        (0..commands).for_each(|_| out.error(text));
        out
    }

    /// Moves replies whose turn has come to the client, and batches that found no leader to what is deferred.
    fn advance(&mut self) {
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

    /// The replies to a batch that will not run.
    fn refuse(&mut self, batch: &Batch, text: &str, terms: Terms) -> Box<RespSink> {
        for (command, _) in batch.commands() {
            self.tally.reject(command);
            count_error(&self.shared.port.stats, text.as_bytes());
        }
        self.errors(if terms.muted { 0 } else { batch.len() }, text, terms)
    }

    /// Replies whose turn has come.
    fn take_replies(&mut self, mut out: Box<RespSink>) {
        self.out.append(&mut out);
        if self.spare.len() < SPARE_SINKS {
            out.clear();
            self.spare.push(out);
        }
    }

    /// Routes what is deferred once everything before it is answered and there is news about who leads.
    async fn take_up_deferred(&mut self) {
        if !self.may_take_up_deferred() {
            return;
        }
        if !self.draining && self.is_out_of_patience() {
            // Before it is routed once more: a leader without a majority takes a batch, and gives it back only later.
            self.give_up_hold();
        }
        let mut rest = std::mem::take(&mut self.deferred);
        while self.deferred.is_empty()
            && let Some(next) = rest.pop_front()
        {
            match next {
                Deferred::Reply(out) if self.queue.is_empty() && self.open.is_none() => {
                    self.take_replies(out)
                }
                Deferred::Reply(out) => {
                    self.close_batch().await;
                    match self.deferred.is_empty() {
                        true => self.queue.push_back(Dispatched::Done { out, ran: false }),
                        false => self.deferred.push_back(Deferred::Reply(out)),
                    }
                }
                Deferred::Request { args, muted } => {
                    let args: SmallVec<[&[u8]; 8]> = args.iter().map(Vec::as_slice).collect();
                    self.session.resume(muted);
                    self.look(&args).await;
                }
                Deferred::Batch { batch, terms } => {
                    for (command, args) in batch.commands() {
                        self.run_command(command, &args, terms).await;
                    }
                }
            }
        }
        self.close_batch().await;
        self.deferred.append(&mut rest);
        if self.hold.is_some() && (self.draining || self.is_out_of_patience()) {
            self.give_up_hold();
        }
        if self.hold.is_none() && self.deferred.is_empty() && self.queue.is_empty() {
            self.held_since = None;
        }
    }

    fn is_out_of_patience(&self) -> bool {
        let patience = self.shared.port.settings.failover_hold();
        self.held_since.is_some_and(|since| since.elapsed() >= patience)
    }

    /// The client was held for as long as it may be: what could not run is answered.
    fn give_up_hold(&mut self) {
        self.hold = None;
        self.held_since = None;
        // Later requests get a hold of their own; they stand behind what is answered here.
        while let Some(Deferred::Batch { .. } | Deferred::Reply(_)) = self.deferred.front() {
            let out = match self.deferred.pop_front() {
                Some(Deferred::Batch { batch, terms }) => self.refuse(&batch, dispatch::CLUSTER_DOWN, terms),
                Some(Deferred::Reply(out)) => out,
                _ => break,
            };
            match self.queue.is_empty() {
                true => self.take_replies(out),
                false => self.queue.push_back(Dispatched::Done { out, ran: false }),
            }
        }
    }

    /// Waits for a leader before anything is routed again. The client waits since `since`, unless it is held already.
    fn hold(&mut self, since: Instant) {
        let Some(engine) = &self.engine else { return };
        if self.held_since.is_none() {
            self.held_since = Some(since);
            self.shared.port.stats.holds.fetch_add(1, Ordering::Relaxed);
        }
        let change = engine.leadership_changes();
        self.hold = Some(Box::pin(async move {
            let _ = tokio::time::timeout(HOLD_INTERVAL, change).await;
        }));
    }

    fn defer_batch(&mut self, batch: Batch, terms: Terms) {
        self.deferred.push_back(Deferred::Batch { batch, terms: Terms { stale: false, ..terms } });
    }

    fn defer_command(&mut self, command: &'static Command, args: Args<'_>, terms: Terms) {
        let terms = Terms { stale: false, ..terms };
        if let Some(Deferred::Batch { batch, terms: same }) = self.deferred.back_mut()
            && *same == terms
        {
            return batch.push(command, terms.db, args.iter().copied());
        }
        let mut batch = Batch::new();
        batch.push(command, terms.db, args.iter().copied());
        self.deferred.push_back(Deferred::Batch { batch, terms });
    }

    fn defer_request(&mut self, args: Args<'_>) {
        let args = args.iter().map(|arg| arg.to_vec()).collect();
        self.deferred.push_back(Deferred::Request { args, muted: self.session.is_muted() });
    }

    /// Runs a command of the session's own.
    fn serve_command(&mut self, command: &'static Command, args: Args<'_>) {
        let since = Instant::now();
        let (next, failed) = self.reply(|session, place, out| {
            let mark = out.mark();
            out.reset_counts();
            let next = session.serve(command, args, place, out);
            let error = out.errors().next().map(|(_, text)| text.to_vec());
            if session.is_muted() {
                out.mute_since(mark);
            }
            (next, error)
        });
        let elapsed = since.elapsed();
        let settings = &self.shared.port.settings;
        self.tally.call(command, 1, elapsed);
        if settings.latency_tracking.load(Ordering::Relaxed) {
            self.tally.latency(command, 1, elapsed);
        }
        if settings.slow_after().is_some_and(|after| elapsed >= after) {
            self.shared.port.note_slow(SlowCommand::new(command, args, elapsed), &self.client);
        }
        if let Some(error) = failed {
            self.tally.fail(command);
            count_error(&self.shared.port.stats, &error);
        }
        match next {
            Next::Continue => {}
            Next::Close => self.finishing = true,
            Next::Wait { replicas, patience } => self.wait_replicas(replicas, patience),
        }
    }

    fn wait_replicas(&mut self, replicas: usize, patience: Option<Duration>) {
        let Some(engine) = self.engine.clone() else { return self.reply(|_, _, out| out.int(0)) };
        let count = Box::pin(engine.wait_replicas(replicas, patience));
        let work = Work::Replicas { count, endless: patience.is_none() };
        let terms = Terms {
            db: self.session.db,
            readonly: self.session.readonly,
            muted: self.session.is_muted(),
            protocol: self.session.protocol(),
            stale: false,
        };
        self.batches_in_flight += 1;
        let commands = Commands::default();
        self.queue.push_back(Dispatched::Running(Running {
            work,
            commands,
            terms,
            bytes: 0,
            since: Instant::now(),
        }));
    }

    /// Writes a reply behind everything dispatched so far.
    fn reply<R>(&mut self, write: impl FnOnce(&mut Session, Place<'_>, &mut RespSink) -> R) -> R {
        let protocol = self.session.protocol();
        if self.queue.is_empty() && self.deferred.is_empty() {
            self.out.set_protocol(protocol);
            return write(&mut self.session, place(&self.shared, &self.engine), &mut self.out);
        }
        if self.deferred.is_empty()
            && let Some(Dispatched::Done { out, ran: false }) = self.queue.back_mut()
            && out.bytes().len() < SHARED_SINK_BYTES
        {
            out.set_protocol(protocol);
            return write(&mut self.session, place(&self.shared, &self.engine), out);
        }
        let mut out = self.sink(protocol);
        let result = write(&mut self.session, place(&self.shared, &self.engine), &mut out);
        if self.deferred.is_empty() {
            self.queue.push_back(Dispatched::Done { out, ran: false });
        } else {
            self.deferred.push_back(Deferred::Reply(out));
        }
        result
    }

    /// An empty sink.
    fn sink(&mut self, protocol: Protocol) -> Box<RespSink> {
        let mut out = self.spare.pop().unwrap_or_default();
        out.set_protocol(protocol);
        out.watch_for_slow(self.shared.port.settings.slow_after());
        out
    }
}
