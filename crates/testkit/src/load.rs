//! Clients that do some of everything and keep books, so that one run answers to all [judges](crate::check).
//!
//! | share | commands | judged by |
//! |---|---|---|
//! | 50 % | GET and SET of shared registers | [`register`] |
//! | 20 % | SET of keys with one writer | [`ledger`](crate::check::ledger) |
//! | 10 % | INCR of shared counters | [`counter`] |
//! | 20 % | SET of unique keys, DEL of some, all read back | [`set`](crate::check::set) |
//!
//! All keys start with the name of the load, so that several can follow each other, and lie in slots of one shard, so that a fault of its leader concerns every command. Clients pause between commands: what
//! counts is what overlaps with a fault, not the rate, and a judge should look at every register in a moment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::task::JoinHandle;

use crate::binary::target_dir;
use crate::check::counter::{self, Increment};
use crate::check::ledger::Ledger;
use crate::check::register::{self, Verdict};
use crate::check::set::Elements;
use crate::client::{Client, Outcome};
use crate::history::{self, Action, Ending, Recorder};
use crate::map::{Map, wait};
use crate::random::Random;
use crate::resp::{Connection, Value};
use crate::slots::key_in;
use crate::workload::read_back;

const REGISTERS: u64 = 400;
const COUNTERS: u64 = 8;
const PAUSE: Duration = Duration::from_millis(4);
/// Keys that each client writes to alone at a time.
const OWN_KEYS: usize = 4;

/// Clients at work on one shard.
#[derive(Debug)]
pub struct Load {
    name: String,
    shard: u16,
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<Books>>,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    recorder: Recorder,
    registers: Vec<String>,
    counters: Vec<String>,
    name: String,
    /// Starts every unique key; a hash tag puts them all into one slot.
    element: String,
    slots: Vec<(u16, u16)>,
    next_value: AtomicU64,
    done: AtomicUsize,
}

/// What a client was told.
#[derive(Debug, Default)]
struct Books {
    ledger: Ledger,
    elements: Elements,
    increments: BTreeMap<usize, (Vec<Increment>, u64)>,
    calls: Vec<Call>,
}

/// One command of a client. Times are those of the load, see [`Load::now_ns`].
#[derive(Clone, PartialEq, Debug)]
pub struct Call {
    /// Which client: the place in the list that the load was started with.
    pub client: usize,
    /// Whether it changes anything.
    pub writes: bool,
    /// When it was sent.
    pub start_ns: u64,
    /// When its outcome was known.
    pub end_ns: u64,
    /// The outcome.
    pub outcome: Outcome,
}

impl Load {
    /// Starts one task for each of `clients`, on a shard with these slots.
    pub fn start(
        name: &str,
        shard: u16,
        slots: Vec<(u16, u16)>,
        clients: Vec<Client>,
        random: &mut Random,
    ) -> Load {
        let wanted = |slot| slots.iter().any(|&(first, last)| (first..=last).contains(&slot));
        let keys =
            |what: &str, count| (0..count).map(|n| key_in(&format!("{name}:{what}"), n, wanted)).collect();
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            recorder: Recorder::default(),
            registers: keys("register", REGISTERS),
            counters: keys("counter", COUNTERS),
            element: format!("{{{}}}:element:", key_in(&format!("{name}:set"), 0, wanted)),
            name: name.to_owned(),
            slots: slots.clone(),
            next_value: AtomicU64::new(1),
            done: AtomicUsize::new(0),
        });
        let tasks = clients
            .into_iter()
            .enumerate()
            .map(|(number, client)| {
                let worker = Worker {
                    number,
                    client,
                    shared: Arc::clone(&shared),
                    random: random.fork(),
                    books: Books::default(),
                    own: Vec::new(),
                    made: 0,
                    kept: Vec::new(),
                };
                tokio::spawn(worker.run())
            })
            .collect();
        Load { name: name.to_owned(), shard, shared, tasks }
    }

    /// Nanoseconds since the load began.
    pub fn now_ns(&self) -> u64 {
        self.shared.recorder.now_ns()
    }

    /// Waits until `more` further commands were done.
    ///
    /// # Errors
    /// When that takes longer than `limit`.
    pub async fn progress(&self, more: usize, limit: Duration) -> Result<()> {
        let done = || self.shared.done.load(Ordering::Relaxed);
        let (goal, deadline) = (done() + more, Instant::now() + limit);
        while done() < goal {
            ensure!(
                Instant::now() < deadline,
                "{}: {} of {more} commands done within {limit:?}",
                self.name,
                more - (goal - done())
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// Lets every client finish what it is at, and collects what they were told.
    ///
    /// # Panics
    /// When a client was answered what no server should answer.
    pub async fn stop(self) -> Evidence {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut books = Books::default();
        for task in self.tasks {
            let other = task.await.expect("a client panicked");
            books.ledger.absorb(other.ledger);
            books.elements.absorb(other.elements);
            books.calls.extend(other.calls);
            for (counter, (increments, unknown)) in other.increments {
                let sum = books.increments.entry(counter).or_default();
                sum.0.extend(increments);
                sum.1 += unknown;
            }
        }
        Evidence { name: self.name, shard: self.shard, shared: self.shared, books }
    }
}

struct Worker {
    number: usize,
    client: Client,
    shared: Arc<Shared>,
    random: Random,
    books: Books,
    /// Keys that only this client writes, with their versions.
    own: Vec<(String, u64)>,
    /// Own keys and elements made so far.
    made: u64,
    /// Elements that are certainly in the set.
    kept: Vec<String>,
}

impl Worker {
    async fn run(mut self) -> Books {
        while !self.shared.stop.load(Ordering::Relaxed) {
            match self.random.below(10) {
                0..5 => self.use_register().await,
                5..7 => self.write_own().await,
                7 => self.count().await,
                _ => self.change_set().await,
            }
            tokio::time::sleep(PAUSE).await;
        }
        self.books
    }

    async fn call(&mut self, writes: bool, argv: &[&str]) -> (u64, Outcome) {
        let start_ns = self.shared.recorder.now_ns();
        let outcome = self.client.call(argv).await;
        if let Outcome::Ok(value) = &outcome {
            assert!(value.error().is_none(), "{argv:?} answered {value}");
            self.shared.done.fetch_add(1, Ordering::Relaxed);
        }
        let end_ns = self.shared.recorder.now_ns();
        let call = Call { client: self.number, writes, start_ns, end_ns, outcome: outcome.clone() };
        self.books.calls.push(call);
        (start_ns, outcome)
    }

    async fn use_register(&mut self) {
        let key = self.random.below(REGISTERS);
        let name = self.shared.registers[key as usize].clone();
        let (action, (start_ns, outcome)) = if self.random.chance(60) {
            (Action::Read, self.call(false, &["GET", &name]).await)
        } else {
            let value = self.shared.next_value.fetch_add(1, Ordering::Relaxed);
            (Action::Write(value), self.call(true, &["SET", &name, &value.to_string()]).await)
        };
        let ending = match (action, outcome) {
            (Action::Read, Outcome::Ok(value)) => Ending::Ok(number(&value)),
            (Action::Write(_), Outcome::Ok(_)) => Ending::Ok(None),
            (_, Outcome::Refused(_)) => Ending::Fail,
            (_, Outcome::Unknown(_)) => Ending::Info,
        };
        self.shared.recorder.record(self.number as u32, key, action, start_ns, ending);
    }

    async fn write_own(&mut self) {
        let slots = self.shared.slots.clone();
        let wanted = |slot| slots.iter().any(|&(first, last)| (first..=last).contains(&slot));
        while self.own.len() < OWN_KEYS {
            self.made += 1;
            self.own
                .push((key_in(&format!("{}:own:{}", self.shared.name, self.number), self.made, wanted), 0));
        }
        let at = self.random.below(OWN_KEYS as u64) as usize;
        self.own[at].1 += 1;
        let (key, version) = self.own[at].clone();
        let (_, outcome) = self.call(true, &["SET", &key, &version.to_string()]).await;
        self.books.ledger.note(&key, version, &outcome);
        if !self.books.ledger.is_open(&key) {
            self.own.remove(at);
        }
    }

    async fn count(&mut self) {
        let counter = self.random.below(COUNTERS) as usize;
        let name = self.shared.counters[counter].clone();
        let (start_ns, outcome) = self.call(true, &["INCR", &name]).await;
        let end_ns = self.shared.recorder.now_ns();
        let sum = self.books.increments.entry(counter).or_default();
        match outcome {
            Outcome::Ok(value) => {
                let value = value.integer().and_then(|value| u64::try_from(value).ok());
                sum.0.push(Increment { start_ns, end_ns, value: value.expect("INCR answers with a number") });
            }
            Outcome::Refused(_) => {}
            Outcome::Unknown(_) => sum.1 += 1,
        }
    }

    async fn change_set(&mut self) {
        if self.random.chance(25) && !self.kept.is_empty() {
            let at = self.random.below(self.kept.len() as u64) as usize;
            let element = self.kept.swap_remove(at);
            let (_, outcome) = self.call(true, &["DEL", &element]).await;
            assert_ne!(outcome, Outcome::Ok(Value::Integer(0)), "{element} was lost before it was removed");
            self.books.elements.note_removed(&element, &outcome);
        } else {
            self.made += 1;
            let element = format!("{}{}:{}", self.shared.element, self.number, self.made);
            let (_, outcome) = self.call(true, &["SET", &element, "1"]).await;
            self.books.elements.note_added(&element, &outcome);
            if matches!(outcome, Outcome::Ok(_)) {
                self.kept.push(element);
            }
        }
    }
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Null => None,
        value => {
            let text = value.text();
            Some(
                text.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("a register holds {value}")),
            )
        }
    }
}

/// What the clients of a load were told, once they have ended.
#[derive(Debug)]
pub struct Evidence {
    name: String,
    shard: u16,
    shared: Arc<Shared>,
    books: Books,
}

impl Evidence {
    /// All commands, by client.
    pub fn calls(&self) -> &[Call] {
        &self.books.calls
    }

    /// Reads everything back and lets every judge look at it. Returns what there was, in words.
    ///
    /// # Errors
    /// With what is wrong. A history that is not linearizable is kept in a file.
    pub async fn judge(&self, map: &Map) -> Result<String> {
        let Books { ledger, elements, increments, calls } = &self.books;
        let history = self.shared.recorder.history();
        let verdict = register::check(&history);
        if verdict != Verdict::Linearizable {
            let path = target_dir().join(format!("histories/{}-{}.edn", self.name, std::process::id()));
            history::save(&history, &path)?;
            bail!("{}: {verdict:?}; the history is in {}", self.name, path.display());
        }
        let mut client = map.client();
        let audit = ledger.audit(&read_back(&mut client, ledger).await);
        ensure!(audit.is_clean(), "{}: {audit}", self.name);
        for (counter, (acknowledged, unknown)) in increments {
            let last = match client.call(&["GET", &self.shared.counters[*counter]]).await {
                Outcome::Ok(value) => number(&value).unwrap_or(0),
                other => bail!("{}: a counter cannot be read: {other:?}", self.name),
            };
            if let Err(why) = counter::check(acknowledged, *unknown, last) {
                bail!("{}: counter {counter}: {why}", self.name);
            }
        }
        let found = self.elements(map).await?;
        let judgement = elements.judge(found.iter().map(String::as_str));
        ensure!(judgement.is_clean(), "{}: {judgement}", self.name);
        let unknown = calls.iter().filter(|call| matches!(call.outcome, Outcome::Unknown(_))).count();
        let refused = calls.iter().filter(|call| matches!(call.outcome, Outcome::Refused(_))).count();
        Ok(format!(
            "{} commands, {unknown} unknown, {refused} refused; {} register operations linearizable; ledger {audit}; {} counters; {judgement}",
            calls.len(),
            history.len(),
            increments.len(),
        ))
    }

    /// All unique keys that are there.
    async fn elements(&self, map: &Map) -> Result<Vec<String>> {
        let everyone: Vec<u16> = map.numbers().collect();
        let mut found = Vec::new();
        wait("the set can be read", async || {
            let leader = map.leader(&everyone, self.shard).await?;
            let mut connection = Connection::open(&leader).await?;
            let pattern = format!("{}*", self.shared.element);
            let reply = connection.call_within(Duration::from_secs(10), &["KEYS", &pattern]).await?;
            let keys = reply.items().with_context(|| format!("KEYS answers {reply}"))?;
            found = keys.iter().map(|key| key.text().context("a key")).collect::<Result<_>>()?;
            Ok(())
        })
        .await?;
        Ok(found)
    }
}
