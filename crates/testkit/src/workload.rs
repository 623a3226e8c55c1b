//! Concurrent clients that keep books: writers for the [`Ledger`], register clients for the history.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::check::ledger::Ledger;
use crate::client::{Client, Outcome, Patience};
use crate::history::{Action, Ending, Recorder};
use crate::random::Random;
use crate::resp::Value;

/// Keys that each writer works on at a time.
const KEYS_PER_WRITER: usize = 8;

/// Writers at work.
#[derive(Debug)]
pub struct Writers {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<(Instant, String)>>>,
    tasks: Vec<JoinHandle<Ledger>>,
}

/// What writers report at the end.
#[derive(Debug)]
pub struct Written {
    /// What each key was told.
    pub ledger: Ledger,
    /// When each write was acknowledged, and of which key, in order of time.
    pub acknowledged: Vec<(Instant, String)>,
}

impl Written {
    /// How long after `moment` the longest pause ended in which nothing was acknowledged: after the death of a
    /// leader, when writes resumed. Acknowledgements that were on their way at that moment do not count as
    /// resumption. `None` when nothing was acknowledged afterwards.
    pub fn resumed_after(&self, moment: Instant) -> Option<Duration> {
        let mut longest = (Duration::ZERO, None);
        let mut before = moment;
        for (at, _) in self.acknowledged.iter().filter(|(at, _)| *at > moment) {
            if *at - before >= longest.0 {
                longest = (*at - before, Some(*at - moment));
            }
            before = *at;
        }
        longest.1
    }
}

impl Writers {
    /// Starts `count` writers, each with a client and with keys of its own: `{name}:{writer}:{n}`.
    pub fn start(name: &str, count: usize, client: impl Fn() -> Client, random: &mut Random) -> Writers {
        Writers::start_in(name, count, client, random, |_| true)
    }

    /// As [`Writers::start`], with keys only in slots that `wanted` accepts.
    pub fn start_in(
        name: &str,
        count: usize,
        client: impl Fn() -> Client,
        random: &mut Random,
        wanted: impl Fn(u16) -> bool + Clone + Send + Sync + 'static,
    ) -> Writers {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged: Arc<Mutex<Vec<(Instant, String)>>> = Arc::default();
        let tasks = (0..count)
            .map(|writer| {
                let (stop, acknowledged, wanted) = (stop.clone(), acknowledged.clone(), wanted.clone());
                let (client, random, name) = (client(), random.fork(), format!("{name}:{writer}"));
                tokio::spawn(
                    async move { write_until(&stop, &acknowledged, client, random, &name, wanted).await },
                )
            })
            .collect();
        Writers { stop, acknowledged, tasks }
    }

    /// How many writes were acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.lock().len()
    }

    /// Waits until `more` further writes were acknowledged.
    ///
    /// # Panics
    /// When that takes longer than `limit`.
    pub async fn progress(&self, more: usize, limit: Duration) {
        let (goal, deadline) = (self.acknowledged() + more, Instant::now() + limit);
        while self.acknowledged() < goal {
            assert!(Instant::now() < deadline, "writers made no progress within {limit:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Lets every writer finish what it is at and collects their books.
    pub async fn stop(self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        let mut ledger = Ledger::default();
        for task in self.tasks {
            ledger.absorb(task.await.expect("a writer panicked"));
        }
        let acknowledged = std::mem::take(&mut *self.acknowledged.lock());
        Written { ledger, acknowledged }
    }
}

async fn write_until(
    stop: &AtomicBool,
    acknowledged: &Mutex<Vec<(Instant, String)>>,
    client: Client,
    mut random: Random,
    name: &str,
    wanted: impl Fn(u16) -> bool,
) -> Ledger {
    // A writer should notice soon that it is told to stop, even when it is refused again and again.
    let patience = Patience { command: Duration::from_millis(500), ..client.patience() };
    let mut client = client.with_patience(patience);
    let mut ledger = Ledger::default();
    let mut made = 0;
    let mut fresh = || {
        made += 1;
        (crate::slots::key_in(name, made, &wanted), 0)
    };
    let mut keys: Vec<(String, u64)> = (0..KEYS_PER_WRITER).map(|_| fresh()).collect();
    while !stop.load(Ordering::Relaxed) {
        let at = random.below(keys.len() as u64) as usize;
        let (key, version) = &mut keys[at];
        *version += 1;
        let outcome = client.call(&["SET", key, &version.to_string()]).await;
        ledger.note(key, *version, &outcome);
        match outcome {
            Outcome::Ok(ref value) if *value == Value::ok() => {
                acknowledged.lock().push((Instant::now(), key.clone()))
            }
            Outcome::Ok(value) => panic!("SET {key} answered {value}"),
            Outcome::Refused(_) => {}
            Outcome::Unknown(_) => keys[at] = fresh(),
        }
    }
    ledger
}

/// Reads every key of a ledger with `client`.
///
/// # Panics
/// When a key cannot be read: then nothing can be said about it.
pub async fn read_back(client: &mut Client, ledger: &Ledger) -> BTreeMap<String, Option<u64>> {
    let mut found = BTreeMap::new();
    for key in ledger.keys() {
        let value = match client.call(&["GET", key]).await {
            Outcome::Ok(Value::Null) => None,
            Outcome::Ok(value @ Value::Bulk(_)) => {
                let text = value.text().unwrap_or_default();
                Some(text.parse().unwrap_or_else(|_| panic!("{key} holds {text:?}")))
            }
            other => panic!("GET {key}: {other:?}"),
        };
        found.insert(key.to_owned(), value);
    }
    found
}

/// Register clients at work.
#[derive(Debug)]
pub struct Registers {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Registers {
    /// Starts the clients, each with one operation after another on one of `keys` keys, `read_percent` of them reads.
    /// What they do goes to the recorder. Values are unique over the run.
    pub fn start(
        recorder: &Recorder,
        clients: Vec<Client>,
        keys: u64,
        read_percent: u64,
        random: &mut Random,
    ) -> Registers {
        let stop = Arc::new(AtomicBool::new(false));
        let next_value = Arc::new(AtomicU64::new(1));
        let start = |(number, client)| {
            let (recorder, stop, next_value, mut random) =
                (recorder.clone(), stop.clone(), next_value.clone(), random.fork());
            tokio::spawn(async move {
                let mut client = Register { number, client, recorder, next_value };
                while !stop.load(Ordering::Relaxed) {
                    client.operate(random.below(keys), random.chance(read_percent)).await;
                }
            })
        };
        let tasks = (0..).zip(clients).map(start).collect();
        Registers { stop, tasks }
    }

    /// Lets every client finish what it is at.
    ///
    /// # Panics
    /// When a server answered what no register answers.
    pub async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("a register client panicked");
        }
    }
}

struct Register {
    number: u32,
    client: Client,
    recorder: Recorder,
    next_value: Arc<AtomicU64>,
}

impl Register {
    async fn operate(&mut self, key: u64, read: bool) {
        let name = format!("register:{key}");
        let action = match read {
            true => Action::Read,
            false => Action::Write(self.next_value.fetch_add(1, Ordering::Relaxed)),
        };
        let start_ns = self.recorder.now_ns();
        let outcome = match action {
            Action::Read => self.client.call(&["GET", &name]).await,
            Action::Write(value) => self.client.call(&["SET", &name, &value.to_string()]).await,
        };
        let ending = match (action, outcome) {
            (Action::Read, Outcome::Ok(Value::Null)) => Ending::Ok(None),
            (Action::Read, Outcome::Ok(Value::Bulk(bytes))) => {
                let text = String::from_utf8_lossy(&bytes);
                Ending::Ok(Some(text.parse().unwrap_or_else(|_| panic!("{name} holds {text:?}"))))
            }
            (Action::Write(_), Outcome::Ok(Value::Status(text))) if text == "OK" => Ending::Ok(None),
            (_, Outcome::Ok(other)) => panic!("{action:?} of {name} answered {other}"),
            (_, Outcome::Refused(_)) => Ending::Fail,
            (_, Outcome::Unknown(_)) => Ending::Info,
        };
        self.recorder.record(self.number, key, action, start_ns, ending);
    }
}
