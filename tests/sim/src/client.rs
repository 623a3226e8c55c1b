//! Clients: what a cluster client does, without the wire. They find the leader, follow redirections, wait out elections, and
//! write down what they were told.
//!
//! A call is definite or unknown as a socket's would be: it dies with the server's process, it waits while the server is
//! suspended, and its time runs out.

use crate::judge::Expiring;
use crate::server::{Directory, machine_at};
use crate::trace::{Trace, say};
use kvorum_cluster::{Footing, Intent, Route, route};
use kvorum_keyspace::{Sink, Slot, lookup, slot_of};
use kvorum_node::{Batch, Node, ReplySink, SubmitError};
use kvorum_testkit::check::counter::Increment;
use kvorum_testkit::history::{Action, Ending, Operation};
use kvorum_testkit::random::Random;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// How long a client waits for a reply.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long it follows redirections and waits for leaders.
const ROUTING_PATIENCE: Duration = Duration::from_secs(3);
/// What it takes to be sent elsewhere.
const ROUND_TRIP: Duration = Duration::from_micros(200);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);
/// Registers come in generations of this length, so that each is short enough to judge.
const GENERATION: Duration = Duration::from_millis(1200);
/// Registers of a generation.
const REGISTERS: u64 = 5;
/// Counters of a run.
const COUNTERS: u64 = 3;
/// A key that expires is read for so long after it was written.
const EXPIRING_FOR: Duration = Duration::from_secs(6);

/// What every client shares.
#[derive(Clone)]
pub(crate) struct Town {
    pub(crate) directory: Directory,
    pub(crate) servers: u64,
    /// The suspended servers.
    pub(crate) suspended: watch::Receiver<BTreeSet<u64>>,
    pub(crate) trace: Trace,
    /// Numbers events: what ended before another began has the smaller number.
    pub(crate) events: Arc<AtomicU64>,
    pub(crate) books: Arc<Mutex<Books>>,
    /// Nobody begins anything any more.
    pub(crate) closing: Arc<AtomicBool>,
}

/// What clients were told.
#[derive(Default)]
pub(crate) struct Books {
    pub(crate) registers: Vec<Operation>,
    pub(crate) counters: BTreeMap<String, Counted>,
    pub(crate) expiring: BTreeMap<String, Expiring>,
    /// Keys that may be read for their expiry: when they were written, microseconds, and how long they live, milliseconds.
    recent: Vec<(String, u64, u64)>,
    values: u64,
    pub(crate) operations: u64,
    pub(crate) refused: u64,
    pub(crate) unknown: u64,
    /// Something a client saw that no history shows.
    pub(crate) wrong: Option<String>,
}

#[derive(Default)]
pub(crate) struct Counted {
    pub(crate) acknowledged: Vec<Increment>,
    pub(crate) unknown: u64,
}

/// What came of a call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Told {
    Reply(Reply),
    /// It certainly did not run.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// A reply, as far as these clients ask for any.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Reply {
    Ok,
    Error(String),
    Int(i64),
    Bulk(Vec<u8>),
    Null,
    NotServed,
}

#[derive(Default)]
struct Replies(Vec<Reply>);

impl Sink for Replies {
    fn simple(&mut self, _: &str) {
        self.0.push(Reply::Ok);
    }
    fn error(&mut self, text: &[u8]) {
        self.0.push(Reply::Error(String::from_utf8_lossy(text).into_owned()));
    }
    fn int(&mut self, value: i64) {
        self.0.push(Reply::Int(value));
    }
    fn bulk(&mut self, bytes: &[u8]) {
        self.0.push(Reply::Bulk(bytes.to_vec()));
    }
    fn null(&mut self) {
        self.0.push(Reply::Null);
    }
    fn null_array(&mut self) {
        self.0.push(Reply::Null);
    }
    fn array(&mut self, _: usize) {}
    fn map(&mut self, _: usize) {}
    fn set(&mut self, _: usize) {}
    fn double(&mut self, _: f64) {}
    fn boolean(&mut self, value: bool) {
        self.0.push(Reply::Int(value.into()));
    }
    fn verbatim(&mut self, _: &str, text: &[u8]) {
        self.0.push(Reply::Bulk(text.to_vec()));
    }
}

impl ReplySink for Replies {
    fn not_served(&mut self, _: Slot) {
        self.0.push(Reply::NotServed);
    }
    fn mark(&self) -> usize {
        self.0.len()
    }
    fn rewind(&mut self, mark: usize) {
        self.0.truncate(mark);
    }
}

/// What one server did with a call.
enum Served {
    Told(Told),
    Moved(u64),
    Hold,
}

/// One client.
pub(crate) struct Client {
    town: Town,
    number: u32,
    random: Random,
    /// Where it would ask first.
    home: u64,
    /// One of so many commands reaches a shard that does not own its slot.
    misrouted_of: Option<u64>,
}

impl Client {
    pub(crate) fn new(town: Town, number: u32, seed: u64) -> Client {
        let mut random = Random::new(seed);
        let home = random.below(town.servers) + 1;
        Client { town, number, random, home, misrouted_of: Some(40) }
    }

    /// Its commands reach the shard that owns their slot.
    pub(crate) fn well_informed(mut self) -> Client {
        self.misrouted_of = None;
        self
    }

    /// Works until the town closes; ends with the outcome of its last command known.
    pub(crate) async fn work(mut self) {
        while !self.town.closing.load(Ordering::Relaxed) {
            let pause = self.random.between(Duration::ZERO, Duration::from_millis(40));
            tokio::time::sleep(pause).await;
            match self.random.below(10) {
                0..=2 => self.write_register().await,
                3..=5 => self.read_register().await,
                6 => self.count().await,
                7 => self.write_expiring().await,
                _ => self.read_expiring().await,
            }
        }
    }

    fn event(&self) -> u64 {
        self.town.events.fetch_add(1, Ordering::Relaxed)
    }

    fn register(&mut self) -> u64 {
        let generation = self.town.trace.now_us() / GENERATION.as_micros() as u64;
        generation * REGISTERS + self.random.below(REGISTERS)
    }

    async fn write_register(&mut self) {
        let key = self.register();
        let value = {
            let mut books = self.town.books.lock();
            books.values += 1;
            books.values
        };
        let start_ns = self.event();
        // Every fourth is so large that it goes through the log in chunks.
        let digits = if value % 4 == 0 { 80 } else { 0 };
        let told = self.ask(&["SET", &format!("r{key}"), &format!("{value:0digits$}")]).await;
        let ending = match told {
            Told::Reply(Reply::Ok) => Ending::Ok(None),
            Told::Reply(Reply::NotServed) | Told::Refused => Ending::Fail,
            Told::Unknown => Ending::Info,
            Told::Reply(other) => return self.astonished("SET", &other),
        };
        self.record(key, Action::Write(value), start_ns, ending);
    }

    async fn read_register(&mut self) {
        let key = self.register();
        self.read_this_register(key).await;
    }

    /// Reads one register; whether it got an answer.
    pub(crate) async fn read_this_register(&mut self, key: u64) -> bool {
        let start_ns = self.event();
        let told = self.ask(&["GET", &format!("r{key}")]).await;
        let ending = match told {
            Told::Reply(Reply::Null) => Ending::Ok(None),
            Told::Reply(Reply::Bulk(value)) => match String::from_utf8_lossy(&value).parse() {
                Ok(value) => Ending::Ok(Some(value)),
                Err(_) => {
                    self.astonished("GET", &Reply::Bulk(value));
                    return true;
                }
            },
            Told::Reply(Reply::NotServed) | Told::Refused => Ending::Fail,
            Told::Unknown => Ending::Info,
            Told::Reply(other) => {
                self.astonished("GET", &other);
                return true;
            }
        };
        self.record(key, Action::Read, start_ns, ending);
        matches!(ending, Ending::Ok(_))
    }

    fn record(&self, key: u64, action: Action, start_ns: u64, ending: Ending) {
        let end_ns = self.event();
        let operation = Operation { client: self.number, key, action, start_ns, end_ns, ending };
        self.town.books.lock().registers.push(operation);
    }

    async fn count(&mut self) {
        let key = format!("c{}", self.random.below(COUNTERS));
        let start_ns = self.event();
        let told = self.ask(&["INCR", &key]).await;
        let end_ns = self.event();
        let mut books = self.town.books.lock();
        let counted = books.counters.entry(key).or_default();
        match told {
            Told::Reply(Reply::Int(value)) => {
                counted.acknowledged.push(Increment { start_ns, end_ns, value: value.unsigned_abs() });
            }
            Told::Reply(Reply::NotServed) | Told::Refused => {}
            Told::Unknown => counted.unknown += 1,
            Told::Reply(other) => {
                drop(books);
                self.astonished("INCR", &other);
            }
        }
    }

    /// What a counter shows.
    pub(crate) async fn read_counter(&mut self, key: &str) -> Option<u64> {
        match self.ask(&["GET", key]).await {
            Told::Reply(Reply::Null) => Some(0),
            Told::Reply(Reply::Bulk(value)) => String::from_utf8_lossy(&value).parse().ok(),
            _ => None,
        }
    }

    async fn write_expiring(&mut self) {
        let number = self.event();
        let key = format!("e{number}");
        let life_ms = 100 + self.random.below(2500);
        let begun_us = self.town.trace.now_us();
        let told = self.ask(&["SET", &key, "x", "PX", &life_ms.to_string()]).await;
        if told == Told::Reply(Reply::Ok) {
            let written = self.event();
            let mut books = self.town.books.lock();
            books.expiring.insert(key.clone(), Expiring { written, reads: Vec::new() });
            books.recent.push((key, begun_us, life_ms));
        }
    }

    async fn read_expiring(&mut self) {
        let now_us = self.town.trace.now_us();
        let chosen = {
            let mut books = self.town.books.lock();
            let oldest = now_us.saturating_sub(EXPIRING_FOR.as_micros() as u64);
            books.recent.retain(|(_, begun_us, _)| *begun_us >= oldest);
            let count = books.recent.len() as u64;
            if count == 0 {
                return;
            }
            books.recent[self.random.below(count) as usize].clone()
        };
        let (key, begun_us, life_ms) = chosen;
        let began = self.event();
        let told = self.ask(&["GET", &key]).await;
        let there = match told {
            Told::Reply(Reply::Bulk(_)) => true,
            Told::Reply(Reply::Null) => false,
            Told::Reply(Reply::NotServed) | Told::Refused | Told::Unknown => return,
            Told::Reply(other) => return self.astonished("GET", &other),
        };
        let ended = self.event();
        let lived_us = self.town.trace.now_us() - begun_us;
        let mut books = self.town.books.lock();
        // The log's clock is slewed by a tenth at most, and a machine's is a twentieth fast at most.
        if !there && lived_us < life_ms * 850 {
            books
                .wrong
                .get_or_insert(format!("{key} lived {lived_us} us, its time to live was {life_ms} ms"));
        }
        if let Some(expiring) = books.expiring.get_mut(&key) {
            expiring.reads.push((began, ended, there));
        }
    }

    fn astonished(&self, command: &str, reply: &Reply) {
        self.town.books.lock().wrong.get_or_insert(format!("{command} was answered {reply:?}"));
    }

    /// Sends a command that is in no book.
    pub(crate) async fn ask_for(&mut self, argv: &[&str]) -> Told {
        self.ask(argv).await
    }

    /// Sends a command, as a cluster client does.
    async fn ask(&mut self, argv: &[&str]) -> Told {
        let told = self.try_to_ask(argv).await;
        say!(self.town.trace, "client {} {argv:?} -> {told:?}", self.number);
        let mut books = self.town.books.lock();
        books.operations += 1;
        books.refused += u64::from(told == Told::Refused);
        books.unknown += u64::from(told == Told::Unknown);
        drop(books);
        told
    }

    async fn try_to_ask(&mut self, argv: &[&str]) -> Told {
        let deadline = tokio::time::Instant::now() + ROUTING_PATIENCE;
        // Some commands were routed before the slots' owner changed: they reach the wrong shard.
        let misrouted = self.misrouted_of.is_some_and(|of| self.random.below(of) == 0);
        let mut server = self.home;
        while tokio::time::Instant::now() < deadline {
            let argv = argv.iter().map(|argument| argument.as_bytes().to_vec()).collect();
            match self.call(server, argv, misrouted).await {
                Served::Told(told) => {
                    self.home = server;
                    return told;
                }
                Served::Moved(to) => {
                    // Servers may disagree until they have heard from each other, and meanwhile send a client to and fro.
                    tokio::time::sleep(ROUND_TRIP).await;
                    server = to;
                }
                Served::Hold => {
                    tokio::time::sleep(PAUSE).await;
                    server = self.random.below(self.town.servers) + 1;
                }
            }
        }
        Told::Refused
    }

    /// One request to one server.
    async fn call(&mut self, server: u64, argv: Vec<Vec<u8>>, misrouted: bool) -> Served {
        let Some(process) = self.town.directory.get(server) else { return Served::Hold };
        let (node, mut suspended) = (process.node.clone(), self.town.suspended.clone());
        let exchange = async {
            awake(&mut suspended, server).await;
            let serving = process.environment.spawn(serve(node, argv, misrouted));
            let served = serving.await;
            awake(&mut suspended, server).await;
            served
        };
        match tokio::time::timeout(PATIENCE, exchange).await {
            Ok(Ok(served)) => served,
            // The connection broke, or nothing came.
            Ok(Err(_)) | Err(_) => Served::Told(Told::Unknown),
        }
    }
}

/// Waits until a server is not suspended.
async fn awake(suspended: &mut watch::Receiver<BTreeSet<u64>>, server: u64) {
    // The sender lives as long as the run.
    let _ = suspended.wait_for(|suspended| !suspended.contains(&server)).await;
}

/// What a server does with a command of one key.
async fn serve(node: Node, argv: Vec<Vec<u8>>, misrouted: bool) -> Served {
    let Some(view) = node.view() else { return Served::Hold };
    let command = argv.first().and_then(|name| lookup(name)).expect("a command of the table");
    let slot = slot_of(&argv[1]);
    let Some(me) = node.server().server_id else { return Served::Hold };
    let shards = &view.topology.shards;
    let shard = if misrouted {
        shards.iter().find(|shard| !shard.slots.contains(slot))
    } else {
        shards.iter().find(|shard| shard.slots.contains(slot))
    };
    let Some(shard) = shard else { return Served::Hold };
    let Some(replica) = shard.replicas.iter().find(|replica| replica.server == me) else {
        return Served::Hold;
    };
    let intent = if command.is_write() { Intent::Write } else { Intent::Read };
    if misrouted {
        if view.leader(shard).is_none_or(|leader| leader.id != replica.id) {
            return Served::Hold;
        }
    } else {
        match route(&view, replica.id, [slot].into_iter(), intent, Footing::Any) {
            Route::Local => {}
            Route::Moved { host, .. } => return Served::Moved(machine_at(&host).unwrap_or(1)),
            _ => return Served::Hold,
        }
    }
    let Some(handle) = node.shard(shard.id) else { return Served::Hold };
    let mut batch = Batch::new();
    batch.push(command, 0, argv.iter().map(Vec::as_slice));
    let mut out = Replies::default();
    let replies = if command.is_write() {
        match handle.submit(batch, Box::new(out)).await {
            Ok(out) => match (out as Box<dyn std::any::Any>).downcast::<Replies>() {
                Ok(replies) => replies.0,
                Err(_) => return Served::Told(Told::Unknown),
            },
            Err(SubmitError::NotLeader(..)) => return Served::Hold,
            Err(SubmitError::Unknown) => return Served::Told(Told::Unknown),
            Err(SubmitError::TooLarge | SubmitError::NotSupported | SubmitError::NoSpace) => {
                return Served::Told(Told::Refused);
            }
        }
    } else {
        match handle.read(&batch, &mut out).await {
            Ok(()) => out.0,
            Err(_) => return Served::Hold,
        }
    };
    match replies.into_iter().next() {
        Some(Reply::Error(text)) if text.starts_with("CLUSTERDOWN") => Served::Hold,
        Some(Reply::Error(text)) if text.starts_with("TRYAGAIN") => Served::Told(Told::Refused),
        Some(reply) => Served::Told(Told::Reply(reply)),
        None => Served::Told(Told::Unknown),
    }
}
