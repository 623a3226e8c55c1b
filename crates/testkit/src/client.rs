//! A cluster-aware client that is honest about what it does not know.
//!
//! It keeps a map of slots, follows `MOVED`, and tries again as long as it is *certain* that nothing ran: after a definite refusal, or when no
//! connection could be made. The first time it cannot be certain it stops and says so. It never sends a command a
//! second time once the command may have run, which is what the promises of the server are measured against.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::resp::{Connection, Value};
use crate::slots::{SLOTS, slot_of};

/// What is known about a command afterwards.
#[derive(Clone, PartialEq, Debug)]
pub enum Outcome {
    /// It ran, with this reply; an error such as `WRONGTYPE` is a reply too.
    Ok(Value),
    /// It certainly did not run.
    Refused(String),
    /// Nobody knows whether it ran: time-out, connection closed after sending, `-UNKNOWN`.
    Unknown(String),
}

impl Outcome {
    /// What a reply means.
    pub fn of_reply(reply: Value) -> Outcome {
        match &reply {
            Value::Error(text) => match text.split(' ').next().unwrap_or_default() {
                "MOVED" | "ASK" | "CLUSTERDOWN" | "READONLY" | "CROSSSLOT" | "TRYAGAIN" | "LOADING"
                | "MASTERDOWN" => Outcome::Refused(text.clone()),
                "ERR" | "WRONGTYPE" | "NOAUTH" | "NOPERM" | "OOM" | "NOPROTO" => Outcome::Ok(reply),
                // `UNKNOWN`, and whatever we have never heard of.
                _ => Outcome::Unknown(text.clone()),
            },
            _ => Outcome::Ok(reply),
        }
    }

    /// The reply.
    ///
    /// # Panics
    /// When there is none: for tests of what must succeed.
    #[track_caller]
    pub fn expect_ok(self) -> Value {
        match self {
            Outcome::Ok(value) => value,
            other => panic!("expected a reply, got {other:?}"),
        }
    }
}

/// How long a client waits for what.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For one reply; after that the command is `Unknown`.
    pub reply: Duration,
    /// For the whole of a command that is refused again and again; after that it is `Refused`.
    pub command: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience { reply: Duration::from_secs(10), command: Duration::from_secs(20) }
    }
}

/// Addresses that some clients cannot reach: a partition between them and servers. Clones are the same set.
#[derive(Clone, Default, Debug)]
pub struct Blocked(Arc<Mutex<BTreeSet<String>>>);

impl Blocked {
    /// Blocks these addresses, and no others any more.
    pub fn set(&self, addrs: impl IntoIterator<Item = String>) {
        *self.0.lock() = addrs.into_iter().collect();
    }

    fn contains(&self, addr: &str) -> bool {
        self.0.lock().contains(addr)
    }
}

/// A client of a whole cluster; one command at a time.
#[derive(Debug)]
pub struct Client {
    seeds: Vec<String>,
    patience: Patience,
    blocked: Blocked,
    owners: Vec<Option<String>>,
    connections: HashMap<String, Connection>,
    /// Who did not answer, and when: asked again only later, or when nobody else is left.
    silent: HashMap<String, Instant>,
    next_seed: usize,
    refusals: BTreeMap<String, usize>,
    /// Whom to ask for the master, and its name; nobody in a cluster.
    sentinels: (Vec<String>, String),
}

/// A Sentinel that does not answer within this time is passed over.
const SENTINEL_PATIENCE: Duration = Duration::from_millis(200);

/// For how long an address that did not answer is passed over.
const PASSED_OVER: Duration = Duration::from_secs(5);

impl Client {
    /// A client that finds the cluster through any of `seeds` (`host:port`). Connects when it needs to.
    pub fn new(seeds: impl IntoIterator<Item = String>) -> Client {
        let seeds: Vec<String> = seeds.into_iter().collect();
        assert!(!seeds.is_empty(), "a client needs an address to start from");
        Client {
            seeds,
            patience: Patience::default(),
            blocked: Blocked::default(),
            owners: vec![None; SLOTS.into()],
            connections: HashMap::new(),
            silent: HashMap::new(),
            next_seed: 0,
            refusals: BTreeMap::new(),
            sentinels: Default::default(),
        }
    }

    /// The same client, which asks these Sentinels for the address of a master whenever it does not know who it is.
    pub fn with_sentinels(mut self, sentinels: impl IntoIterator<Item = String>, master: &str) -> Client {
        self.sentinels = (sentinels.into_iter().collect(), master.to_owned());
        self
    }

    /// The same client, waiting as said.
    pub fn with_patience(mut self, patience: Patience) -> Client {
        self.patience = patience;
        self
    }

    /// The same client, unable to reach what is in `blocked` at the time.
    pub fn with_blocked(mut self, blocked: Blocked) -> Client {
        self.blocked = blocked;
        self
    }

    /// How long it waits.
    pub fn patience(&self) -> Patience {
        self.patience
    }

    /// How often it was refused, though it may have gone on to succeed: by the error's first word, or `no connection`. Redirects to another
    /// server are not among them.
    pub fn refusals(&self) -> &BTreeMap<String, usize> {
        &self.refusals
    }

    fn note_refusal(&mut self, why: &str) {
        let code = why.split(' ').next().unwrap_or_default();
        let kind = match code {
            "MOVED" | "ASK" => return,
            code if code.chars().all(|c| c.is_ascii_uppercase()) => code,
            _ => "no connection",
        };
        *self.refusals.entry(kind.to_owned()).or_default() += 1;
    }

    /// Runs a command whose first key is its second word; a command without one goes to any server.
    pub async fn call<A: AsRef<[u8]>>(&mut self, argv: &[A]) -> Outcome {
        let slot = usize::from(argv.get(1).map_or(0, |key| slot_of(key.as_ref())));
        let deadline = Instant::now() + self.patience.command;
        let mut pause = Duration::from_millis(2);
        loop {
            let addr = match &self.owners[slot] {
                Some(addr) => addr.clone(),
                None => match self.told_by_sentinel().await {
                    Some(master) => master,
                    None => self.any_seed(),
                },
            };
            let why = match self.attempt(&addr, argv).await {
                Outcome::Refused(why) => why,
                certain => return certain,
            };
            self.note_refusal(&why);
            let moved = why.strip_prefix("MOVED ").and_then(|rest| rest.split_once(' '));
            if let Some((moved_slot, to)) = moved {
                if moved_slot.parse() == Ok(slot) && to != addr {
                    self.learn(&addr).await;
                    self.owners[slot] = Some(to.to_owned());
                    if Instant::now() < deadline {
                        continue;
                    }
                }
            } else if ["CROSSSLOT", "ASK"].iter().any(|code| why.starts_with(code)) {
                return Outcome::Refused(why);
            }
            if Instant::now() >= deadline {
                return Outcome::Refused(why);
            }
            // Whoever we asked cannot tell: ask somebody else, not at once.
            self.owners[slot] = None;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    async fn attempt<A: AsRef<[u8]>>(&mut self, addr: &str, argv: &[A]) -> Outcome {
        if self.blocked.contains(addr) {
            self.connections.remove(addr);
            return Outcome::Refused(format!("{addr} is out of reach"));
        }
        // Taken out, and put back only when request and reply went through whole.
        let mut connection = match self.connections.remove(addr) {
            Some(connection) if !connection.is_spent() => connection,
            _ => match Connection::open(addr).await {
                Ok(connection) => connection,
                Err(e) => return Outcome::Refused(format!("connecting to {addr}: {e}")),
            },
        };
        match connection.call_within(self.patience.reply, argv).await {
            Ok(reply) => {
                self.connections.insert(addr.to_owned(), connection);
                Outcome::of_reply(reply)
            }
            // Even a failed send may have delivered everything.
            Err(e) => {
                self.forget(addr);
                Outcome::Unknown(format!("{addr}: {e}"))
            }
        }
    }

    /// Asks who redirected us for the whole map, as every cluster client does: where one slot has moved, others have.
    async fn learn(&mut self, addr: &str) {
        let Some(connection) = self.connections.get_mut(addr) else { return };
        match cluster_slots(connection).await {
            Ok(ranges) => {
                for range in ranges {
                    let slots = usize::from(range.first)..=usize::from(range.last);
                    self.owners[slots].fill(Some(range.leader));
                }
            }
            // The redirect alone is enough to go on; this connection is not.
            Err(_) => drop(self.connections.remove(addr)),
        }
    }

    async fn told_by_sentinel(&self) -> Option<String> {
        let (sentinels, master) = &self.sentinels;
        for sentinel in sentinels {
            let asking = async {
                let mut connection = Connection::open(sentinel).await.ok()?;
                let argv = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", master];
                let reply = connection.call_within(SENTINEL_PATIENCE, &argv).await.ok()?;
                let parts = reply.items()?;
                Some(format!("{}:{}", parts.first()?.text()?, parts.get(1)?.text()?))
            };
            if let Ok(Some(addr)) = tokio::time::timeout(SENTINEL_PATIENCE, asking).await {
                return Some(addr);
            }
        }
        None
    }

    fn forget(&mut self, addr: &str) {
        self.silent.insert(addr.to_owned(), Instant::now());
        self.owners.iter_mut().filter(|owner| owner.as_deref() == Some(addr)).for_each(|owner| *owner = None);
    }

    fn any_seed(&mut self) -> String {
        self.silent.retain(|_, since| since.elapsed() < PASSED_OVER);
        let silent_hosts: BTreeSet<&str> = self.silent.keys().map(|addr| host(addr)).collect();
        let in_turns = (1..=self.seeds.len()).map(|n| (self.next_seed + n) % self.seeds.len());
        // Another host if there is one that did not fall silent, else another port.
        let other_host = in_turns.clone().find(|&seed| !silent_hosts.contains(host(&self.seeds[seed])));
        let other_port = || in_turns.clone().find(|&seed| !self.silent.contains_key(&self.seeds[seed]));
        self.next_seed = other_host.or_else(other_port).unwrap_or(self.next_seed);
        self.seeds[self.next_seed].clone()
    }
}

fn host(addr: &str) -> &str {
    addr.rsplit_once(':').map_or(addr, |(host, _)| host)
}

/// A range of slots and who serves it, as CLUSTER SLOTS says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlotRange {
    /// First slot.
    pub first: u16,
    /// Last slot, included.
    pub last: u16,
    /// `host:port` of the leader.
    pub leader: String,
    /// `host:port` of the other replicas.
    pub followers: Vec<String>,
}

/// Asks a server for CLUSTER SLOTS.
///
/// # Errors
/// When the connection fails, or the reply has another shape than Redis's.
pub async fn cluster_slots(connection: &mut Connection) -> io::Result<Vec<SlotRange>> {
    let reply = connection.call_within(Duration::from_secs(5), &["CLUSTER", "SLOTS"]).await?;
    let odd = || io::Error::new(io::ErrorKind::InvalidData, format!("CLUSTER SLOTS answered {reply}"));
    let node = |value: &Value| -> Option<String> {
        let parts = value.items()?;
        Some(format!("{}:{}", parts.first()?.text()?, parts.get(1)?.integer()?))
    };
    let range = |value: &Value| -> Option<SlotRange> {
        let parts = value.items()?;
        let mut nodes = parts.get(2..)?.iter().map(node).collect::<Option<Vec<_>>>()?.into_iter();
        Some(SlotRange {
            first: parts.first()?.integer()?.try_into().ok()?,
            last: parts.get(1)?.integer()?.try_into().ok()?,
            leader: nodes.next()?,
            followers: nodes.collect(),
        })
    };
    reply.items().and_then(|ranges| ranges.iter().map(range).collect()).ok_or_else(odd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    fn impatient(addr: String) -> Client {
        Client::new([addr]).with_patience(Patience {
            reply: Duration::from_millis(200),
            command: Duration::from_millis(100),
        })
    }

    /// A server that answers each read with the next of `answers`, and closes after the last.
    async fn server(answers: Vec<String>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let mut answers = answers.into_iter();
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut buffer = [0; 1024];
                while socket.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                    let Some(answer) = answers.next() else { break };
                    socket.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        });
        addr
    }

    #[test]
    fn replies_are_classified() {
        let class = |text: &str| match Outcome::of_reply(Value::Error(text.to_owned())) {
            Outcome::Ok(_) => "ok",
            Outcome::Refused(_) => "refused",
            Outcome::Unknown(_) => "unknown",
        };
        for text in
            ["MOVED 1 a:1", "CLUSTERDOWN The cluster is down", "READONLY x", "TRYAGAIN x", "LOADING x"]
        {
            assert_eq!(class(text), "refused", "{text}");
        }
        assert_eq!(class("ERR value is not an integer or out of range"), "ok");
        assert_eq!(class("UNKNOWN the outcome of this command"), "unknown");
        assert_eq!(class("NEVERHEARDOF it"), "unknown");
    }

    #[tokio::test]
    async fn moved_is_followed_and_remembered() {
        let slot = slot_of(b"k");
        let right = server(vec!["+OK\r\n".to_owned(), "$1\r\nv\r\n".to_owned()]).await;
        let port = right.rsplit_once(':').unwrap().1;
        let map = format!("*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:{port}\r\n");
        let wrong = server(vec![format!("-MOVED {slot} {right}\r\n"), map]).await;
        let mut client = Client::new([wrong]);
        assert_eq!(client.call(&["SET", "k", "v"]).await, Outcome::Ok(Value::ok()));
        // A key of another slot goes there without a detour: the whole map was learnt.
        assert_ne!(slot_of(b"other"), slot);
        assert_eq!(client.call(&["GET", "other"]).await, Outcome::Ok(Value::bulk("v")));
    }

    #[test]
    fn who_did_not_answer_is_passed_over_with_its_host_if_there_are_others() {
        let seeds = ["a:1", "a:2", "b:1", "b:2"].map(str::to_owned);
        let mut client = Client::new(seeds);
        client.forget("a:1");
        let asked: Vec<String> = (0..3).map(|_| client.any_seed()).collect();
        assert_eq!(asked, ["b:1", "b:2", "b:1"]);
        client.forget("b:2");
        let asked: Vec<String> = (0..3).map(|_| client.any_seed()).collect();
        assert_eq!(asked, ["a:2", "b:1", "a:2"]);
        client.forget("a:2");
        client.forget("b:1");
        client.any_seed();
    }

    #[tokio::test]
    async fn a_sentinel_is_asked_who_the_master_is() {
        let master = server(vec!["+OK\r\n".to_owned()]).await;
        let (host, port) = master.rsplit_once(':').unwrap();
        let told = format!("*2\r\n${}\r\n{host}\r\n${}\r\n{port}\r\n", host.len(), port.len());
        let sentinel = server(vec![told]).await;
        let silent = server(vec![String::new()]).await;
        let nobody = "127.0.0.1:1".to_owned();
        let mut client = impatient(nobody).with_sentinels([silent, sentinel], "mymaster");
        assert_eq!(client.call(&["SET", "k", "v"]).await, Outcome::Ok(Value::ok()));
    }

    #[tokio::test]
    async fn a_refused_connection_is_definite() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        drop(listener);
        assert!(matches!(impatient(addr).call(&["SET", "k", "v"]).await, Outcome::Refused(_)));
    }

    #[tokio::test]
    async fn what_is_out_of_reach_is_not_asked() {
        let addr = server(vec!["+OK\r\n".to_owned(), "+OK\r\n".to_owned()]).await;
        let blocked = Blocked::default();
        let mut client = impatient(addr.clone()).with_blocked(blocked.clone());
        assert_eq!(client.call(&["SET", "k", "v"]).await, Outcome::Ok(Value::ok()));
        blocked.set([addr]);
        assert!(matches!(client.call(&["SET", "k", "v"]).await, Outcome::Refused(_)));
        blocked.set([]);
        assert_eq!(client.call(&["SET", "k", "v"]).await, Outcome::Ok(Value::ok()));
    }

    #[tokio::test]
    async fn a_closed_connection_and_a_late_reply_are_not() {
        let closes = server(vec![]).await;
        assert!(matches!(impatient(closes).call(&["SET", "k", "v"]).await, Outcome::Unknown(_)));
        let silent = server(vec![String::new()]).await;
        assert!(matches!(impatient(silent).call(&["SET", "k", "v"]).await, Outcome::Unknown(_)));
    }

    #[tokio::test]
    async fn refusals_are_retried_while_patience_lasts() {
        let down = "-CLUSTERDOWN The cluster is down\r\n".to_owned();
        let addr = server(vec![down.clone(), down, "+OK\r\n".to_owned()]).await;
        let mut client = impatient(addr);
        assert_eq!(client.call(&["SET", "k", "v"]).await, Outcome::Ok(Value::ok()));
        assert_eq!(client.refusals(), &BTreeMap::from([("CLUSTERDOWN".to_owned(), 2)]));
    }
}
