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
//! - A command that the port's gate holds (CLIENT PAUSE) is deferred, too, until the gate opens.
//! - Memory is bounded: reading stops while too much waits for an outcome or for the client to take its
//!   replies. What one turn does is bounded too, so that a long pipeline lets the others have theirs.
//!
//! Left out: what commands mean (the keyspace), where they go (`dispatch`), what a client has told us
//! (`session`).

mod batch;
mod flow;
mod hold;

#[cfg(test)]
mod tests;

use self::batch::{Commands, Dispatched, Open, Running, Terms, Work};
use self::hold::Deferred;
use crate::clients::Client;
use crate::crowd::Newcomer;
use crate::dispatch::{self, Course, Way};
use crate::engine::{Engine, Failure};
use crate::port::{Place, Port, Replica};
use crate::reign::{Noted, Reign};
use crate::resp::{Limits, Protocol, RequestDecoder, RespSink};
use crate::session::{Action, Asked, Next, Session};
use crate::slowlog::SlowCommand;
use crate::stats::{Tally, count_error};
use kvorum_cluster::{Footing, Mode, ReplicaId, View};
use kvorum_keyspace::{Args, Command, Sink};
use kvorum_node::{Batch, HandoverError, ReadError, ReplySink};
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
use tracing::{debug, warn};

/// Requests looked at in one turn.
const TURN_REQUESTS: usize = 1024;
/// Batches on their way at a time.
const BATCHES_IN_FLIGHT: usize = 16;
/// Batches on their way and replies that stand behind them, at a time.
const QUEUE_LENGTH: usize = 64;
/// Bytes of batches on their way at a time. What goes through the log in chunks is overtaken by what is submitted after it, so
/// nothing may be.
const BYTES_IN_FLIGHT: usize = kvorum_node::CHUNK_BYTES;
/// Replies that the client has not taken, beyond which no request is looked at.
const UNSENT_BYTES: usize = 1024 * 1024;
/// What a reply is taken for before there was one: batches are small until replies turn out to be, for what a pipeline asks for at
/// once is in memory at once.
const FIRST_REPLY_BYTES: usize = UNSENT_BYTES / 16;
/// In a standalone cluster a client that came to the leader, and finds itself at a follower now, is let go when it has been at rest for so
/// long: it will look for the leader. Redis disconnects it at once, in the middle of whatever it does.
const LEAVE_AFTER: Duration = Duration::from_secs(1);
const LEAVE_SPREAD_MS: u64 = 1000;
/// So old may be what a client that connects knows of who leads.
const LED_LATELY: Duration = Duration::from_secs(1);
/// Replies of the session share a sink until it holds this much.
const SHARED_SINK_BYTES: usize = 16 * 1024;

/// What a port and its connections share about their replica and their end.
pub(crate) struct Shared<E> {
    /// The port.
    pub(crate) port: Arc<Port>,
    /// The replica behind it, once there is one; another one may take its place.
    engine: RwLock<Option<Arc<E>>>,
    /// Set when the connections are to finish what they have and end.
    pub(crate) draining: AtomicBool,
    /// When the replica of a standalone cluster led last.
    reign: Reign,
}

impl<E> Shared<E> {
    /// A port without a replica yet.
    pub(crate) fn new(port: Port) -> Shared<E> {
        Shared {
            port: Arc::new(port),
            engine: RwLock::default(),
            draining: AtomicBool::new(false),
            reign: Reign::default(),
        }
    }

    /// The replica behind the port as of now.
    pub(crate) fn engine(&self) -> Option<Arc<E>> {
        self.engine.read().clone()
    }

    /// Takes note of what a view of a standalone cluster says about the replica, and returns whether it leads. Clients that have nothing
    /// to do learn that it does not any more when they are told.
    pub(crate) fn note_leader(&self, view: &View, replica: ReplicaId) -> bool {
        let noted = self.reign.note(view, replica);
        if noted == Noted::Deposed {
            self.port.clients.all().iter().for_each(|client| client.tell());
        }
        noted == Noted::Leads
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
    /// Whether it has to wait for others like it.
    newcomer: Newcomer,
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
    /// In a standalone cluster: this replica was the leader at some turn of this connection, or right before it was made.
    led: bool,
    /// And does not lead now: the client is served by another one, through this.
    guest: bool,
    /// Resolves when such a client has been at rest for a while.
    leave: Option<Pin<Box<tokio::time::Sleep>>>,
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
    /// Whether it is the port's gate that holds the client.
    gated: bool,
    /// Resolves when what is held should be routed again.
    hold: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    #[expect(clippy::vec_box, reason = "batches travel with boxed sinks: the boxes are what is kept")]
    spare: Vec<Box<RespSink>>,
    tally: Tally,
    /// Bytes that a reply had of late: batches are made smaller when replies are large.
    reply_bytes: usize,
    last_command: &'static str,
}

/// Takes a client off the port's list, however its connection ended.
struct Registration<E>(Arc<Shared<E>>, Arc<Client>);

impl<E> Drop for Registration<E> {
    fn drop(&mut self) {
        self.0.port.monitors.leave(&self.1);
        self.0.port.clients.leave(&self.1);
        self.0.port.stats.connections_closed.fetch_add(1, Ordering::Relaxed);
        self.0.port.limits.leave(self.1.peer.ip(), &self.1.name());
    }
}

/// Serves one client until it goes, is told to go, or the port closes.
pub(crate) async fn serve<E: Engine>(shared: Arc<Shared<E>>, stream: TcpStream, client: Arc<Client>) {
    let _registration = Registration(Arc::clone(&shared), Arc::clone(&client));
    let mut connection = Connection {
        session: Session::new(Arc::clone(&client), &shared.port),
        engine: shared.engine(),
        newcomer: Newcomer::new(&shared.port.crowd),
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
        led: false,
        guest: false,
        leave: None,
        open: None,
        queue: VecDeque::new(),
        batches_in_flight: 0,
        bytes_in_flight: 0,
        deferred: VecDeque::new(),
        held_since: None,
        gated: false,
        hold: None,
        spare: Vec::new(),
        tally: Tally::default(),
        reply_bytes: FIRST_REPLY_BYTES,
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
            let mut turn_is_over = self.take_turn().await;
            self.note_turn();
            self.note_rest();
            // What it can take at once does not count, as in Redis, where replies are written before they are measured.
            if self.is_over_hard_limit() {
                // What was written made room: there may be more to do.
                turn_is_over |= poll_fn(|cx| Poll::Ready(self.poll_write(cx))).await?;
                if self.is_over_hard_limit() {
                    self.shared.port.stats.output_limit_disconnections.fetch_add(1, Ordering::Relaxed);
                    warn!(client = %client.describe(Instant::now()), "a client left too much unread and is disconnected");
                    return Ok(());
                }
            }
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
            if let Some(how) = client.take_unblock() {
                self.unblock(how);
            }
            if self.shared.draining.load(Ordering::Acquire) {
                self.draining = true;
                self.read_closed = true;
                // Who is held now is told so rather than cut off.
                self.hold = None;
            }
        }
    }

    /// One turn. Other newcomers may have theirs as soon as this one is over, or waits for something.
    async fn take_turn(&mut self) -> bool {
        let mut place = self.newcomer.take_place();
        let mut turn = pin!(self.turn());
        poll_fn(|cx| {
            let turned = turn.as_mut().poll(cx);
            place = None;
            turned
        })
        .await
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
        if let Some(leave) = &mut self.leave
            && leave.as_mut().poll(cx).is_ready()
        {
            self.leave = None;
            // What has arrived by now is a reason to stay.
            self.finishing |= !self.poll_read(cx)? && self.is_at_rest() && self.unsent() == 0;
            progress = true;
        }
        // Room for replies is news only to who waited for it.
        let waits_for_room = !self.may_look();
        progress |= self.poll_write(cx)? && waits_for_room;
        progress |= self.poll_read(cx)?;
        Ok(if progress { Poll::Ready(()) } else { Poll::Pending })
    }

    /// Looks at everything there is to look at. Returns whether it stopped only because its turn was over.
    async fn turn(&mut self) -> bool {
        self.engine = self.shared.engine();
        self.view = self.engine.as_deref().map(Replica::view);
        self.note_leader();
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
                bulk_bytes: self.shared.port.settings.proto_max_bulk_len.load(Ordering::Relaxed),
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
                    count_error(&self.shared.port.stats, error.text());
                    self.reply(|session, _, out| {
                        if session.wants_replies() {
                            out.error(error.text());
                        }
                    });
                }
            }
        }
        self.close_batch().await;
        self.decoder = decoder;
        if self.session.monitors() && self.may_take_replies() {
            self.out.append_raw(&self.client.feed.take());
        }
        // What had an outcome at once may have made way for more.
        self.advance();
        !self.wants_bytes && self.may_look() || self.may_take_up_deferred()
    }

    /// Whether this replica leads, which decides what becomes of a client that cannot be redirected.
    fn note_leader(&mut self) {
        let (Some(view), Some(engine)) = (&self.view, &self.engine) else { return };
        if view.topology.mode == Mode::Cluster {
            return;
        }
        let leads = self.shared.note_leader(view, engine.id());
        // Who connected only just after that may have been told that this is where the leader is.
        let led_lately =
            || self.shared.reign.ended().is_some_and(|ended| self.client.created < ended + LED_LATELY);
        self.led = leads || self.led || led_lately();
        self.guest = self.led && !leads;
    }

    /// After a turn: from when on a guest without anything to do may be let go.
    fn note_rest(&mut self) {
        self.leave = (self.guest && self.is_at_rest()).then(|| {
            // Not all at one moment: each will ask who leads, and connect there.
            let spread = Duration::from_millis(self.client.id % LEAVE_SPREAD_MS);
            Box::pin(tokio::time::sleep(LEAVE_AFTER + spread))
        });
    }

    /// Whether no request of the client's is on its way.
    fn is_at_rest(&self) -> bool {
        self.wants_bytes
            && self.decoder.pending_bytes() == 0
            && self.open.is_none()
            && self.queue.is_empty()
            && self.deferred.is_empty()
    }

    /// Whether the next request may be looked at.
    fn may_look(&self) -> bool {
        !self.finishing
            && !self.awaits_shutdown()
            && self.deferred.is_empty()
            && self.batches_in_flight < BATCHES_IN_FLIGHT
            && self.queue.len() < QUEUE_LENGTH
            && self.bytes_in_flight < BYTES_IN_FLIGHT
            && self.may_take_replies()
    }

    /// Whether there is room for more replies.
    fn may_take_replies(&self) -> bool {
        self.unsent() < self.unsent_allowed()
    }

    /// Who gave `client-output-buffer-limit` is willing to let so much wait before a client that does not read is disconnected.
    /// Without it such a client is not read from any more.
    fn unsent_allowed(&self) -> usize {
        let limit = self.shared.port.settings.output_limits.normal();
        let most = limit.hard_bytes.max(limit.soft_bytes).saturating_add(1);
        usize::try_from(most).unwrap_or(usize::MAX).max(UNSENT_BYTES)
    }

    /// Whether more waits for the client than may.
    fn is_over_hard_limit(&self) -> bool {
        let hard_bytes = self.shared.port.settings.output_limits.normal().hard_bytes;
        hard_bytes > 0 && self.unsent() as u64 > hard_bytes
    }

    /// Bytes of replies that the client has not taken, those that wait for their turn included.
    fn unsent(&self) -> usize {
        let waiting = self.queue.iter().map(|dispatched| match dispatched {
            Dispatched::Done { out, .. } => out.bytes().len(),
            _ => 0,
        });
        self.out.bytes().len() - self.sent + waiting.sum::<usize>()
    }

    /// Whether there is nothing left to do but to write what is ready.
    fn is_over(&self) -> bool {
        if self.read_closed && !self.draining && self.hold.is_some() && self.queue.is_empty() {
            // What is held was not proposed, and nobody waits for it any more.
            return true;
        }
        if self.read_closed
            && let Some(Dispatched::Running(Running {
                work: Work::Replicas { endless: true, .. } | Work::Shutdown(_),
                ..
            })) = self.queue.front()
        {
            return true;
        }
        (self.finishing || self.read_closed && self.wants_bytes)
            && self.queue.is_empty()
            && self.deferred.is_empty()
    }

    /// What others see of this connection.
    fn note_turn(&mut self) {
        let commands = self.tally.flush(&self.shared.port.stats);
        let command = std::mem::take(&mut self.last_command);
        if !command.is_empty() {
            self.client.update(|profile| profile.command = command);
        }
        let deferred = self.deferred.iter().map(Deferred::bytes).sum::<usize>();
        let waits = self.queue.iter().any(|dispatched| {
            matches!(dispatched, Dispatched::Running(Running { work: Work::Replicas { .. }, .. }))
        });
        let meters = &self.client.meters;
        meters.commands.fetch_add(commands, Ordering::Relaxed);
        meters.argument_bytes.store(deferred + self.bytes_in_flight, Ordering::Relaxed);
        meters.waits.store(waits, Ordering::Release);
        meters.blocked.store(waits || self.gated || self.sleeps(), Ordering::Relaxed);
        self.note_buffers();
    }

    /// Looks at one request. The session knows by now whether its reply is wanted.
    async fn look(&mut self, args: Args<'_>) {
        if let Some(until) = self.shared.port.gate.holds(None) {
            return self.hold_request(args, until).await;
        }
        let action = self.session.on_request(args, &self.shared.port);
        if let Action::Run(command) | Action::Serve { command, .. } = &action
            && let Some(until) = self.shared.port.gate.holds(Some(command))
        {
            self.last_command = command.name;
            return self.hold_request(args, until).await;
        }
        match action {
            Action::Run(command) => {
                let terms = Terms {
                    db: self.session.db,
                    readonly: self.session.readonly,
                    muted: self.session.is_muted(),
                    protocol: self.session.protocol(),
                    no_touch: self.session.no_touch,
                    way: Way::Leads,
                };
                self.last_command = command.name;
                // A batch that is routed anew was told already.
                if !self.shared.port.monitors.is_empty() && !self.is_refused(command, args, terms) {
                    self.tell_monitors(command, args);
                }
                self.run_command(command, args, terms).await;
            }
            Action::Serve { command, in_order } => {
                self.close_batch().await;
                if !self.deferred.is_empty() || in_order && !self.queue.is_empty() {
                    return self.defer_request(args);
                }
                self.last_command = command.name;
                self.client
                    .meters
                    .argument_bytes
                    .store(args.iter().map(|arg| arg.len()).sum(), Ordering::Relaxed);
                self.serve_command(command, args);
            }
            Action::Close => {
                self.close_batch().await;
                self.finishing = true;
            }
            Action::Refuse { command, error } => {
                self.close_batch().await;
                if !self.deferred.is_empty() {
                    return self.defer_request(args);
                }
                if let Some(command) = command {
                    self.tally.reject(command);
                }
                count_error(&self.shared.port.stats, error.text());
                let muted = self.session.is_muted();
                if !muted {
                    self.reply(|_, _, out| out.error(error.text()));
                }
            }
        }
    }

    /// What the client takes this replica for.
    fn footing(&self, terms: Terms) -> Footing {
        match (self.led, terms.readonly) {
            (_, true) => Footing::Follower,
            (true, false) => Footing::Leader,
            (false, false) => Footing::Any,
        }
    }

    /// Whether a command goes nowhere, as far as is known now.
    fn is_refused(&self, command: &Command, args: Args<'_>, terms: Terms) -> bool {
        let (Some(engine), Some(view)) = (&self.engine, &self.view) else { return false };
        matches!(dispatch::course(view, engine.id(), command, args, self.footing(terms)), Course::Refused(_))
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
        let refusal = match dispatch::course(view, engine.id(), command, args, self.footing(terms)) {
            // What was forwarded in vain may run here by now, and the other way round.
            Course::Run(way) => return self.add_to_batch(command, args, Terms { way, ..terms }).await,
            Course::Hold => None,
            Course::Refused(text) => Some(text),
        };
        self.close_batch().await;
        match refusal {
            Some(text) if self.deferred.is_empty() => {
                self.tally.reject(command);
                count_error(&self.shared.port.stats, text.as_bytes());
                if !terms.muted {
                    self.reply(|_, _, out| out.error(text.as_bytes()));
                }
            }
            Some(_) => self.defer_command(command, args, terms),
            None => {
                self.defer_command(command, args, terms);
                self.hold(Instant::now());
            }
        }
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
        // Who sleeps is counted when it wakes.
        if !matches!(next, Next::Sleep { .. }) {
            let elapsed = since.elapsed();
            self.tally.call(command, 1, elapsed);
            let settings = &self.shared.port.settings;
            if settings.latency_tracking.load(Ordering::Relaxed) {
                self.tally.latency(command, 1, elapsed);
            }
            if settings.slow_after().is_some_and(|after| elapsed >= after) {
                self.shared.port.note_slow(SlowCommand::new(command, args, elapsed), &self.client);
            }
        }
        if !self.shared.port.monitors.is_empty() {
            self.tell_monitors(command, args);
        }
        if let Some(error) = failed {
            self.tally.fail(command);
            count_error(&self.shared.port.stats, &error);
        }
        match next {
            Next::Continue => {}
            Next::Close => self.finishing = true,
            Next::Wait { replicas, patience, on_disk } => self.wait_replicas(replicas, patience, on_disk),
            Next::Save { in_background } => self.save(in_background),
            Next::Handover { to, asked } => self.hand_over(to, asked),
            Next::Shutdown => {
                let control = self.shared.port.control.clone();
                let withdrawn = Box::pin(async move { control.withdrawn().await });
                self.run_work(Work::Shutdown(withdrawn), Commands::default());
            }
            Next::Sleep { duration } => {
                let wake = Box::pin(tokio::time::sleep(duration));
                let mut commands = Commands::default();
                commands.push(command);
                let slow = SlowCommand::new(command, args, duration);
                self.run_work(Work::Sleep { wake, slow: Some(slow) }, commands);
            }
        }
    }

    /// Whether it asked for the shutdown: nothing behind that is looked at, so it is the last one.
    fn awaits_shutdown(&self) -> bool {
        matches!(self.queue.back(), Some(Dispatched::Running(Running { work: Work::Shutdown(_), .. })))
    }

    /// Whether it waits in a command that takes its time.
    fn sleeps(&self) -> bool {
        matches!(self.queue.front(), Some(Dispatched::Running(Running { work: Work::Sleep { .. }, .. })))
    }

    fn tell_monitors(&self, command: &'static Command, args: Args<'_>) {
        let port = &self.shared.port;
        let cut = port.monitors.tell(&self.client, self.session.db, command, args);
        if cut > 0 {
            port.stats.output_limit_disconnections.fetch_add(cut, Ordering::Relaxed);
            warn!(port = port.number, cut, "monitors that did not keep up were disconnected");
        }
    }

    fn wait_replicas(&mut self, replicas: usize, patience: Option<Duration>, on_disk: Option<bool>) {
        let Some(engine) = self.engine.clone() else { return self.reply(|_, _, out| out.int(0)) };
        self.run_work(Work::wait(&*engine, replicas, on_disk, patience), Commands::default());
    }

    /// Writes a snapshot. It is written to its end whatever becomes of this connection.
    fn save(&mut self, in_background: bool) {
        let Some(engine) = self.engine.clone() else {
            self.shared.port.saves.end(true, 0);
            if !in_background {
                self.reply(|_, _, out| out.ok());
            }
            return;
        };
        let port = Arc::clone(&self.shared.port);
        let saving = tokio::spawn(async move {
            let saved = engine.save().await;
            if let Err(error) = &saved {
                warn!(port = port.number, %error, "cannot write a snapshot");
            }
            port.saves.end(saved.is_ok(), engine.keyspace().sequence);
            saved.is_ok()
        });
        if !in_background {
            let saved = Box::pin(async move { saving.await.unwrap_or(false) });
            self.run_work(Work::Save(saved), Commands::default());
        }
    }

    /// Another replica is to lead.
    fn hand_over(&mut self, to: Option<ReplicaId>, asked: Asked) {
        let Some(engine) = self.engine.clone() else {
            let text = asked.refusal(&HandoverError::NoHeir);
            return self.reply(|_, _, out| out.error(text.as_bytes()));
        };
        let handover = engine.hand_over(to);
        let work = Box::pin(async move { handover.await.map_err(|why| asked.refusal(&why)) });
        self.run_work(Work::Handover(work), Commands::default());
    }

    /// Something that takes its time is on its way.
    fn run_work(&mut self, work: Work, commands: Commands) {
        let terms = Terms {
            db: self.session.db,
            readonly: self.session.readonly,
            muted: self.session.is_muted(),
            protocol: self.session.protocol(),
            no_touch: self.session.no_touch,
            way: Way::Leads,
        };
        self.batches_in_flight += 1;
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
}
