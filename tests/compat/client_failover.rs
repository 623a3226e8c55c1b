//! Client libraries, unmodified, across everything that takes a leader away: kill -9, SIGSTOP, a server that nobody reaches any more, and
//! a planned handover. Each has to find the new leader by itself, and no acknowledged write may be lost.
//!
//! Every server is a host of its own (a network namespace, which needs root). One writer for each client marks growing numbers in a string of
//! its own, in the shard whose leader is harmed, by SETRANGE of one byte: a late write whose outcome was unknown cannot undo another.
//! redis-py, redis-cli and hiredis are programs beside this file, which print what came of each number; redis-rs runs here. The gaps between
//! acknowledged writes are printed and not judged, but for a generous limit: most of them are a client's own time-outs.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kvorum_testkit::binary::{self, workspace};
use kvorum_testkit::cluster::succeed;
use kvorum_testkit::slots::key_in;
use kvorum_testkit::{Cluster, Connection, Fault, Nemesis, Network, Shape, Value};
use redis::sentinel::{SentinelClient, SentinelServerType};

const MASTER: &str = "mymaster";
/// Within this time every client has to write again.
const LIMIT: Duration = Duration::from_secs(15);
/// A harm lasts at least this long, and after it is undone there is as much time to settle.
const LASTS: Duration = Duration::from_secs(3);
/// So many acknowledged writes after the harm, one after the other, show that a client is well: one may have been on its way before.
const WELL: usize = 10;
/// How often leaders are handed over by a client, and as often by an operator.
const HANDOVERS: usize = 3;
/// Between two writes of a client.
const PACE: Duration = Duration::from_millis(5);
/// What docs/clients.md recommends.
const CONNECT: Duration = Duration::from_secs(1);
const REPLY: Duration = Duration::from_secs(2);

/// What a client has told so far.
#[derive(Default)]
struct Told {
    acknowledged: Vec<u64>,
    last: Option<Instant>,
    /// Since the step began.
    longest: Duration,
    errors: BTreeMap<String, usize>,
    /// Since the harm was done.
    well: usize,
}

impl Told {
    fn acknowledged(&mut self, number: u64) {
        let now = Instant::now();
        self.longest = self.longest.max(self.last.map_or(Duration::ZERO, |last| now - last));
        self.last = Some(now);
        self.well += 1;
        self.acknowledged.push(number);
    }

    fn failed(&mut self, kind: &str) {
        *self.errors.entry(kind.to_owned()).or_default() += 1;
    }

    /// The errors since the step began.
    fn errors(&self) -> String {
        let errors: Vec<String> = self.errors.iter().map(|(kind, times)| format!("{kind} {times}")).collect();
        errors.join(", ")
    }
}

/// A client that writes.
struct Writer {
    name: &'static str,
    key: String,
    told: Arc<Mutex<Told>>,
    /// A program of its own, or else a thread here.
    program: Option<Child>,
    stopped: Arc<AtomicBool>,
}

impl Writer {
    fn new(name: &'static str, n: usize, slots: &[(u16, u16)]) -> Writer {
        let of_shard = |slot| slots.iter().any(|&(first, last)| (first..=last).contains(&slot));
        let key = key_in("writer", n as u64, of_shard);
        Writer { name, key, told: Arc::default(), program: None, stopped: Arc::default() }
    }

    /// Lets a program write, which prints `ok NUMBER` and `error KIND`.
    fn run(mut self, mut command: Command, kind: &str, addrs: &[String]) -> Result<Writer> {
        command.args([kind, &self.key, MASTER]).args(addrs);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut program = command.spawn().with_context(|| format!("starting {}", self.name))?;
        let lines = BufReader::new(program.stdout.take().context("a pipe")?).lines();
        self.program = Some(program);
        let told = Arc::clone(&self.told);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut told = told.lock().expect("no panic");
                match line.split_once(' ') {
                    Some(("ok", number)) => told.acknowledged(number.parse().expect("a number")),
                    Some(("error", kind)) => told.failed(kind),
                    _ => told.failed(&line),
                }
            }
        });
        Ok(self)
    }

    /// Writes here; `mark` marks a number.
    fn spawn(self, mut mark: impl FnMut(&str, u64) -> redis::RedisResult<()> + Send + 'static) -> Writer {
        let (key, told, stopped) = (self.key.clone(), Arc::clone(&self.told), Arc::clone(&self.stopped));
        std::thread::spawn(move || {
            for number in 1.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                match mark(&key, number) {
                    Ok(()) => told.lock().expect("no panic").acknowledged(number),
                    Err(error) => told.lock().expect("no panic").failed(&kind_of(&error)),
                }
                std::thread::sleep(PACE);
            }
        });
        self
    }

    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().expect("no panic")
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        if let Some(program) = &mut self.program {
            let _ = program.kill();
            let _ = program.wait();
        }
    }
}

fn kind_of(error: &redis::RedisError) -> String {
    match error.code() {
        Some(code) => code.to_owned(),
        None if error.is_timeout() => "timeout".to_owned(),
        None => format!("{:?}", error.kind()),
    }
}

/// redis-py, redis-cli and hiredis.
fn programs(
    cluster: &Cluster,
    kind: &'static str,
    addrs: &[String],
    slots: &[(u16, u16)],
) -> Result<Vec<Writer>> {
    let source = |name: &str| workspace().join("tests/compat").join(name);
    let hiredis = cluster.dir().join("hiredis");
    let mut compile = Command::new("cc");
    compile.args(["-O1", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&hiredis);
    succeed(compile.arg(source("client_failover.c")).arg("-lhiredis"))?;
    let python = || -> Result<Command> {
        let mut python = Command::new(binary::python()?);
        python.arg(source("client_failover.py"));
        Ok(python)
    };
    let asyncio = format!("{kind}-asyncio");
    Ok(vec![
        Writer::new("redis-py", 0, slots).run(python()?, kind, addrs)?,
        Writer::new("redis-py asyncio", 1, slots).run(python()?, &asyncio, addrs)?,
        Writer::new("redis-cli", 2, slots).run(Command::new(source("client_failover.sh")), kind, addrs)?,
        Writer::new("hiredis", 3, slots).run(Command::new(hiredis), kind, addrs)?,
    ])
}

fn setrange(key: &str, number: u64) -> redis::Cmd {
    redis::cmd("SETRANGE").arg(key).arg(number).arg("x").clone()
}

fn urls(addrs: &[String]) -> Vec<String> {
    addrs.iter().map(|addr| format!("redis://{addr}/")).collect()
}

/// redis-rs's `ClusterClient`, blocking and not. When the leader that it knows does not answer, it goes on asking that one: after an error
/// it needs another connection.
fn redis_rs_cluster(addrs: &[String], slots: &[(u16, u16)]) -> Result<Vec<Writer>> {
    let builder = || {
        redis::cluster::ClusterClient::builder(urls(addrs))
            .connection_timeout(CONNECT)
            .response_timeout(REPLY)
            .min_retry_wait(10)
            .max_retry_wait(100)
    };
    // The blocking one may wait for a reply again at each of them.
    let (blocking_client, client) = (builder().retries(2).build()?, builder().build()?);
    let mut own = None;
    let blocking = move |key: &str, number: u64| {
        let mut connection = match own.take() {
            Some(connection) => connection,
            None => blocking_client.get_connection()?,
        };
        setrange(key, number).exec(&mut connection)?;
        own = Some(connection);
        Ok(())
    };
    let runtime = tokio::runtime::Handle::current();
    let mut shared = None;
    let not_blocking = move |key: &str, number: u64| {
        runtime.block_on(async {
            let mut connection = match shared.take() {
                Some(connection) => connection,
                None => client.get_async_connection().await?,
            };
            setrange(key, number).exec_async(&mut connection).await?;
            shared = Some(connection);
            Ok(())
        })
    };
    Ok(vec![
        Writer::new("redis-rs", 4, slots).spawn(blocking),
        Writer::new("redis-rs async", 5, slots).spawn(not_blocking),
    ])
}

/// redis-rs's `SentinelClient`: after an error it is asked for a connection again, which is all it does.
fn redis_rs_sentinel(addrs: &[String], slots: &[(u16, u16)]) -> Result<Vec<Writer>> {
    let mut client = SentinelClient::build(urls(addrs), MASTER.to_owned(), None, SentinelServerType::Master)?;
    let settings = redis::AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT))
        .set_response_timeout(Some(REPLY));
    let runtime = tokio::runtime::Handle::current();
    let mut connection = None;
    let mark = move |key: &str, number: u64| {
        runtime.block_on(async {
            let mut master = match connection.take() {
                Some(master) => master,
                None => client.get_async_connection_with_config(&settings).await?,
            };
            setrange(key, number).exec_async(&mut master).await?;
            connection = Some(master);
            Ok(())
        })
    };
    Ok(vec![Writer::new("redis-rs async", 4, slots).spawn(mark)])
}

/// All writers of a cluster, and what came of them.
struct Trial {
    /// They end before the cluster.
    writers: Vec<Writer>,
    cluster: Cluster,
    /// A name, and each writer's longest gap in seconds and errors, in the order of the writers.
    steps: Vec<(&'static str, Vec<(f64, String)>)>,
}

impl Trial {
    /// Does something, and waits until every client writes afterwards.
    async fn step(
        &mut self,
        name: &'static str,
        act: impl AsyncFnOnce(&mut Cluster) -> Result<()>,
    ) -> Result<()> {
        for writer in &self.writers {
            let mut told = writer.told();
            (told.longest, told.errors) = (Duration::ZERO, BTreeMap::new());
        }
        act(&mut self.cluster).await.context(name)?;
        self.writers.iter().for_each(|writer| writer.told().well = 0);
        let acted = Instant::now();
        let unwell = |writer: &&Writer| writer.told().well < WELL;
        while let Some(writer) = self.writers.iter().find(unwell) {
            if acted.elapsed() > LIMIT {
                let state = |writer: &Writer| {
                    let told = writer.told();
                    format!("{}: {} writes since, errors: {}", writer.name, told.well, told.errors())
                };
                let states: Vec<String> = self.writers.iter().map(state).collect();
                bail!("{name}: {} does not write after {LIMIT:?}:\n{}", writer.name, states.join("\n"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(LASTS.saturating_sub(acted.elapsed())).await;
        let outcome = |writer: &Writer| {
            let told = writer.told();
            (told.longest.as_secs_f64(), told.errors())
        };
        self.steps.push((name, self.writers.iter().map(outcome).collect()));
        Ok(())
    }

    /// A handover that somebody asks for, which no client has to notice.
    async fn handover(
        &mut self,
        name: &'static str,
        act: impl AsyncFnOnce(&mut Cluster) -> Result<()>,
    ) -> Result<()> {
        self.step(name, act).await?;
        let (_, outcomes) = self.steps.last().expect("it was one");
        for (writer, (_, errors)) in self.writers.iter().zip(outcomes) {
            ensure!(errors.is_empty(), "{name}: {}: {errors}", writer.name);
        }
        Ok(())
    }

    /// Does something to the leader and undoes it.
    async fn harm(&mut self, names: [&'static str; 2], fault: impl Fn(u16) -> Fault) -> Result<()> {
        self.cluster.ready().await?;
        let victim = self.cluster.server_of(&self.cluster.leader(0).await?);
        self.step(names[0], async |cluster: &mut Cluster| cluster.inflict(&fault(victim))).await?;
        self.step(names[1], async |cluster: &mut Cluster| {
            cluster.heal()?;
            cluster.ready().await
        })
        .await
    }

    /// Steps in rows, clients in columns; then the errors.
    fn table(&self) -> String {
        let row = |name: &str, cells: Vec<String>| format!("| {name} | {} |\n", cells.join(" | "));
        let names = self.writers.iter().map(|writer| writer.name.to_owned()).collect();
        let mut text = row(self.cluster.shape().mode, names);
        text.push_str(&format!("|{}\n", "---|".repeat(1 + self.writers.len())));
        for (name, outcomes) in &self.steps {
            text.push_str(&row(name, outcomes.iter().map(|(gap, _)| format!("{gap:.2}")).collect()));
        }
        let count = |writer: &Writer| writer.told().acknowledged.len().to_string();
        text.push_str(&row("acknowledged", self.writers.iter().map(count).collect()));
        for (n, writer) in self.writers.iter().enumerate() {
            let errors = self.steps.iter().map(|(name, outcomes)| (name, &outcomes[n].1));
            let errors = errors.filter(|(_, errors)| !errors.is_empty());
            let errors: Vec<String> = errors.map(|(name, errors)| format!("{name}: {errors}")).collect();
            text.push_str(&format!("errors of {}: {}\n", writer.name, errors.join("; ")));
        }
        text
    }

    /// Stops the writers and looks for what was acknowledged.
    async fn nothing_is_lost(&mut self) -> Result<()> {
        self.cluster.ready().await?;
        let leader = self.cluster.leader(0).await?;
        let mut connection = Connection::open(&leader).await?;
        for writer in self.writers.drain(..) {
            let acknowledged = std::mem::take(&mut writer.told().acknowledged);
            let (name, key) = (writer.name, writer.key.clone());
            drop(writer);
            let reply = connection.call(&["GET", &key]).await?;
            let Value::Bulk(marks) = &reply else { bail!("{name}: GET {key}: {reply}") };
            let is_there = |number: &&u64| marks.get(**number as usize) == Some(&b'x');
            let lost = acknowledged.iter().filter(|number| !is_there(number)).count();
            ensure!(lost == 0, "{name}: {lost} of {} acknowledged writes are lost", acknowledged.len());
        }
        Ok(())
    }
}

async fn trial(shape: Shape) -> Result<()> {
    // Leaderships that return by themselves would be handovers in the middle of anything else.
    let settings = vec!["leader-balance = false".to_owned()];
    let cluster = Cluster::start(Shape { network: Network::Namespaces, settings, ..shape }).await?;
    let is_cluster = cluster.shape().mode == "cluster";
    let slots = cluster.slots_of(0).await?;
    let (kind, addrs) = if is_cluster {
        ("cluster", cluster.numbers().map(|n| cluster.addr(n, 0)).collect::<Vec<_>>())
    } else {
        ("sentinel", cluster.numbers().map(|n| cluster.sentinel_addr(n)).collect())
    };
    let mut writers = programs(&cluster, kind, &addrs, &slots)?;
    writers.extend(if is_cluster {
        redis_rs_cluster(&addrs, &slots)?
    } else {
        redis_rs_sentinel(&addrs, &slots)?
    });
    let mut trial = Trial { writers, cluster, steps: Vec::new() };
    let done = all_harms(&mut trial).await;
    eprintln!("Longest gaps between acknowledged writes, in seconds:\n{}", trial.table());
    if done.is_err() {
        trial.cluster.print_logs();
    }
    done?;
    trial.nothing_is_lost().await
}

async fn all_harms(trial: &mut Trial) -> Result<()> {
    trial.step("nothing", async |_: &mut Cluster| Ok(())).await?;
    trial.harm(["kill -9", "start"], Fault::Kill).await?;
    trial.harm(["SIGSTOP", "SIGCONT"], Fault::Freeze).await?;
    trial.harm(["cut off", "healed"], Fault::Unplug).await?;
    for _ in 0..HANDOVERS {
        trial.handover("failover by a client", hand_over).await?;
        trial.handover("kvorum cluster failover", async |cluster: &mut Cluster| cluster.handover(0)).await?;
    }
    trial.cluster.ready().await?;
    let victim = trial.cluster.server_of(&trial.cluster.leader(0).await?);
    trial.step("SIGTERM", async |cluster: &mut Cluster| cluster.stop(victim).await.map(drop)).await?;
    trial
        .step("start", async |cluster: &mut Cluster| {
            cluster.spawn(victim)?;
            cluster.ready().await
        })
        .await
}

/// As clients ask for it.
async fn hand_over(cluster: &mut Cluster) -> Result<()> {
    let before = cluster.leader(0).await?;
    let other = cluster.numbers().find(|n| cluster.addr(*n, 0) != before).context("a follower")?;
    let reply = if cluster.shape().mode == "cluster" {
        cluster.connect(other, 0).await?.call(&["CLUSTER", "FAILOVER"]).await?
    } else {
        Connection::open(&cluster.sentinel_addr(other)).await?.call(&["SENTINEL", "FAILOVER", MASTER]).await?
    };
    ensure!(reply == Value::ok(), "{reply}");
    // The old leader knows it before the servers have told each other.
    cluster
        .wait("another server leads", async |cluster: &mut Cluster| {
            let leader = cluster.leader(0).await?;
            ensure!(leader != before, "{leader} does");
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_clients_recover_by_themselves() -> Result<()> {
    trial(Shape::default()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinel_clients_recover_by_themselves() -> Result<()> {
    trial(Shape::standalone(3, "quorum-fsync")).await
}
