//! The Sentinel port of the built binary: what redis-cli, redis-py's Sentinel and StackExchange.Redis's conversation get from it, beside
//! a real Redis Sentinel; leaders that are killed and handed over, and how soon clients hear of it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kvorum_testkit::binary::{self, workspace};
use kvorum_testkit::cluster::succeed;
use kvorum_testkit::oracle::{Redis, Sentinel};
use kvorum_testkit::script::play_on_both;
use kvorum_testkit::slots::key_in;
use kvorum_testkit::{Cluster, Connection, Shape, Value, http};

/// A client that subscribed hears of a new leader within this time of the first write that it acknowledges.
const TOLD_WITHIN: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(20);

fn port_of(addr: &str) -> &str {
    addr.rsplit_once(':').map_or(addr, |(_, port)| port)
}

async fn ask(addr: &str, words: &str) -> Result<Value> {
    let words: Vec<&str> = words.split(' ').collect();
    Ok(Connection::open(addr).await?.call(&words).await?)
}

/// A flat array as fields and values, in their order.
fn fields(value: &Value) -> Vec<(String, String)> {
    let items: Vec<String> =
        value.items().unwrap_or_default().iter().map(|item| item.text().unwrap_or_default()).collect();
    items.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
}

fn names(fields: &[(String, String)]) -> Vec<&str> {
    fields.iter().map(|(name, _)| name.as_str()).collect()
}

/// `host:port` of a master, as a Sentinel tells it.
async fn master_at(sentinel: &str, name: &str) -> Result<String> {
    let reply = ask(sentinel, &format!("SENTINEL GET-MASTER-ADDR-BY-NAME {name}")).await?;
    let parts: Vec<String> = reply.items().unwrap_or_default().iter().filter_map(Value::text).collect();
    let [host, port] = parts.as_slice() else { bail!("{sentinel} answers {reply}") };
    Ok(format!("{host}:{port}"))
}

/// Waits until a Sentinel has met the others, and all of them name the leader that the data ports name.
async fn agree(cluster: &mut Cluster, name: &str, shard: u16) -> Result<String> {
    cluster.ready().await?;
    let leader = cluster.leader(shard).await?;
    for number in cluster.running() {
        let sentinel = cluster.sentinel_addr(number);
        let start = Instant::now();
        loop {
            let told = master_at(&sentinel, name).await;
            let others = ask(&sentinel, &format!("SENTINEL SENTINELS {name}")).await?;
            let met = others.items().map_or(0, <[Value]>::len) + 1 == usize::from(cluster.shape().servers);
            if met && told.as_ref().is_ok_and(|told| *told == leader) {
                break;
            }
            ensure!(start.elapsed() < PATIENCE, "{sentinel} names {told:?}, not {leader}; others: {others}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    Ok(leader)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_replies_have_the_shape_of_a_real_sentinels() -> Result<()> {
    let mut cluster = Cluster::start(Shape::standalone(3, "quorum-memory")).await?;
    let leader = agree(&mut cluster, "mymaster", 0).await?;
    let master = Redis::start(&[])?;
    let of = format!("127.0.0.1 {}", master.port());
    let _replica = Redis::start(&["--replicaof", &of, "--repl-diskless-sync-delay", "0"])?;
    let real = Sentinel::pair(&master, 1)?;
    let (ours, real) = (cluster.sentinel_addr(1), real[0].addr());
    // Names of fields, in their order.
    for words in ["MASTER mymaster", "MASTERS", "REPLICAS mymaster", "SLAVES mymaster", "SENTINELS mymaster"]
    {
        let words = format!("SENTINEL {words}");
        let (a, b) = (ask(&ours, &words).await?, ask(&real, &words).await?);
        let first = |value: &Value| match value.items() {
            Some([first @ Value::Array(_), ..]) => fields(first),
            _ => fields(value),
        };
        let (a, b) = (first(&a), first(&b));
        ensure!(!b.is_empty(), "{words}: the real one has none");
        assert_eq!(names(&a), names(&b), "{words}");
        for of_both in ["role-reported", "replica-announced", "voted-leader"] {
            let value = |fields: &[(String, String)]| {
                fields.iter().find(|(name, _)| name == of_both).map(|(_, value)| value.clone())
            };
            assert_eq!(value(&a), value(&b), "{words}: {of_both}");
        }
    }
    // Whole replies, above all errors.
    for words in [
        "SENTINEL",
        "SENTINEL BOGUS",
        "SENTINEL MASTERS x",
        "SENTINEL MASTER nosuch",
        "SENTINEL REPLICAS nosuch",
        "SENTINEL SENTINELS nosuch",
        "SENTINEL GET-MASTER-ADDR-BY-NAME",
        "SENTINEL GET-MASTER-ADDR-BY-NAME nosuch",
        "SENTINEL CKQUORUM nosuch",
        "SENTINEL FAILOVER nosuch",
        "SENTINEL REMOVE nosuch",
        "SENTINEL IS-MASTER-DOWN-BY-ADDR 127.0.0.1 1 0 *",
        "SENTINEL IS-MASTER-DOWN-BY-ADDR 127.0.0.1 x 0 *",
        "SENTINEL CONFIG GET *",
        "SENTINEL CONFIG GET nosuch",
        "SENTINEL CONFIG GET",
        "SENTINEL CONFIG x y",
        "SENTINEL CONFIG SET foo bar",
        "SENTINEL CONFIG SET resolve-hostnames maybe",
        "SENTINEL SET nosuch quorum 2",
        "SENTINEL SET mymaster quorum",
        "SENTINEL SET mymaster foo 2",
        "SENTINEL SET mymaster quorum x",
        "SENTINEL SET mymaster quorum 2 foo",
        "SENTINEL SET mymaster notification-script /x",
        "SENTINEL SET mymaster down-after-milliseconds 60000",
        "SENTINEL SIMULATE-FAILURE foo",
        "SENTINEL SIMULATE-FAILURE help",
        "SENTINEL DEBUG foo",
        "SENTINEL MONITOR mymaster 127.0.0.1 1 1",
        "SENTINEL MONITOR z 127.0.0.1 x 1",
        "SENTINEL MONITOR z 127.0.0.1 1 x",
        "SENTINEL MONITOR z 127.0.0.1 1 0",
        "SENTINEL FLUSHCONFIG",
        "SENTINEL PENDING-SCRIPTS",
        "SENTINEL RESET nosuch",
        "SENTINEL INFO-CACHE nosuch",
        "SENTINEL HELP",
        "PING",
        "PING x",
        "PING x y",
        "ROLE",
        "ROLE x",
        "INFO bogus",
        "INFO persistence",
        "GET x",
        "SET x y",
        "ECHO x",
        "CONFIG GET *",
        "CLUSTER NODES",
        "SELECT 0",
        "MULTI",
        "SSUBSCRIBE a",
        "PUBLISH a b",
        "PUBLISH __sentinel__:hello x",
        "SUBSCRIBE",
        "PSUBSCRIBE a*",
        "SUBSCRIBE a",
        "UNSUBSCRIBE",
        "PUNSUBSCRIBE",
        "UNSUBSCRIBE a",
        "ACL WHOAMI",
        "CLIENT SETNAME a",
        "CLIENT GETNAME",
        "CLIENT BOGUS",
        "CLIENT KILL ID 999999999",
        "COMMAND INFO get",
        "COMMAND BOGUS",
        "AUTH x",
        "HELLO 4",
        "SHUTDOWN foo",
    ] {
        let (a, b) = (ask(&ours, words).await?, ask(&real, words).await?);
        assert_eq!(a, b, "{words}");
    }
    // What a subscriber may say.
    let mut said = Vec::new();
    for addr in [&ours, &real] {
        let mut connection = Connection::open(addr).await?;
        let mut replies = Vec::new();
        for words in [
            "SUBSCRIBE a",
            "PSUBSCRIBE b*",
            "PING",
            "PING x",
            "GET a",
            "INFO",
            "SENTINEL MASTERS",
            "HELLO 3",
            "UNSUBSCRIBE",
            "PUNSUBSCRIBE b*",
            "PING",
        ] {
            replies.push(connection.call(&words.split(' ').collect::<Vec<_>>()).await?);
        }
        said.push(replies);
    }
    assert_eq!(said[0], said[1]);
    // The rows of its own commands.
    for command in
        ["sentinel|masters", "sentinel|set", "sentinel|help", "subscribe", "unsubscribe", "publish"]
    {
        let words = format!("COMMAND INFO {command}");
        assert_eq!(ask(&ours, &words).await?, ask(&real, &words).await?, "{words}");
    }
    // Conversations of clients.
    play_on_both(&["tests/handshakes/sentinel"], &ours, &real)?;
    // What is set is told where it was set, and only there.
    let other = cluster.sentinel_addr(2);
    let mut told = Vec::new();
    let mut elsewhere = Connection::open(&other).await?;
    elsewhere.call(&["SUBSCRIBE", "+set"]).await?;
    let port = leader.rsplit_once(':').map_or("", |(_, port)| port);
    for (addr, port) in [(&ours, port), (&real, &master.port().to_string())] {
        let mut subscriber = Connection::open(addr).await?;
        subscriber.call(&["SUBSCRIBE", "+set"]).await?;
        ask(addr, "SENTINEL SET mymaster Parallel-Syncs 1 auth-pass secret quorum 2 auth-user me quorum x")
            .await?;
        let mut payloads = Vec::new();
        for _ in 0..4 {
            let message = subscriber.receive().await?;
            let parts: Vec<String> =
                message.items().unwrap_or_default().iter().filter_map(Value::text).collect();
            let [kind, channel, payload] = parts.as_slice() else { bail!("{addr} says {message}") };
            assert_eq!((kind.as_str(), channel.as_str()), ("message", "+set"));
            payloads.push(payload.replace(&format!("127.0.0.1 {port} "), "ADDRESS "));
        }
        told.push(payloads);
    }
    assert_eq!(told[0], told[1]);
    ensure!(told[0][1].ends_with(" ADDRESS auth-pass ******"), "{told:?}");
    // The next thing that it hears is an answer.
    elsewhere.call(&["PING"]).await?.items().context("only what it asked for")?;
    let timeline = http::get(&format!("127.0.0.1:{}", cluster.base_port(1) + 99), "/events").await?.body;
    ensure!(!timeline.contains("+set"), "the timeline keeps what clients do: {timeline}");
    assert_eq!(
        ask(&leader, "ROLE").await?.items().and_then(|items| items[0].text()).as_deref(),
        Some("master")
    );
    // Nobody takes a data port for a Sentinel.
    for number in cluster.numbers() {
        let reply = ask(&cluster.addr(number, 0), "SENTINEL MASTERS").await?;
        ensure!(reply.error().is_some_and(|text| text.starts_with("ERR unknown command")), "{reply}");
    }
    Ok(())
}

/// Two lines of output of redis-cli that subscribed.
struct Listener {
    process: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Listener {
    fn start(addr: &str) -> Result<Listener> {
        let mut process = Command::new("redis-cli")
            .args(["-p", port_of(addr), "PSUBSCRIBE", "*"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting redis-cli")?;
        let lines = BufReader::new(process.stdout.take().context("a pipe")?).lines();
        let mut listener = Listener { process, lines };
        for expected in ["psubscribe", "*", "1"] {
            ensure!(listener.line()? == expected, "redis-cli did not subscribe");
        }
        Ok(listener)
    }

    fn line(&mut self) -> Result<String> {
        Ok(self.lines.next().context("redis-cli ended")??)
    }

    /// `channel payload` of all messages up to the one that begins like that.
    fn until(&mut self, last: &str) -> Result<Vec<String>> {
        let mut heard: Vec<String> = Vec::new();
        while !heard.last().is_some_and(|message| message.starts_with(last)) {
            ensure!(self.line()? == "pmessage" && self.line()? == "*", "no message");
            heard.push(format!("{} {}", self.line()?, self.line()?));
        }
        Ok(heard)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Whether these stand in `heard` in this order, perhaps with others in between; each is the beginning of a message.
fn in_order(heard: &[String], expected: &[String]) -> Result<()> {
    let mut rest = heard.iter();
    for beginning in expected {
        ensure!(
            rest.any(|message| message.starts_with(beginning.as_str())),
            "{beginning:?} does not come in its turn:\n{}",
            heard.join("\n")
        );
    }
    Ok(())
}

/// A failover as an observer and as the new leader's server tell it, by kill -9 and by SENTINEL FAILOVER.
async fn told_by_redis_cli(shape: Shape, name: &str) -> Result<()> {
    let mut cluster = Cluster::start(shape).await?;
    let old = agree(&mut cluster, name, 0).await?;
    let victim = cluster.server_of(&old);
    let others: Vec<u16> = cluster.numbers().filter(|number| *number != victim).collect();
    let mut listeners =
        others.iter().map(|n| Listener::start(&cluster.sentinel_addr(*n))).collect::<Result<Vec<_>>>()?;
    cluster.kill(victim)?;
    cluster.ready().await?;
    let new = agree_among(&mut cluster, name, &others).await?;
    let [old_ip_port, new_ip_port] = [&old, &new].map(|addr| addr.replace(':', " "));
    let heard = tokio::task::block_in_place(|| {
        let last = format!("+sdown slave {old} ");
        listeners.iter_mut().map(|listener| listener.until(&last)).collect::<Result<Vec<_>>>()
    })?;
    for (number, heard) in others.iter().zip(&heard) {
        let master = format!("master {name} {old_ip_port}");
        let slave = |addr: &str, of: &str| {
            let [ip_port, of] = [addr, of].map(|addr| addr.replace(':', " "));
            format!("slave {addr} {ip_port} @ {name} {of}")
        };
        let switch = format!("+switch-master {name} {old_ip_port} {new_ip_port}");
        let expected = if cluster.server_of(&new) == *number {
            vec![
                format!("+sdown {master}"),
                format!("+odown {master} #quorum 2/2"),
                "+new-epoch ".to_owned(),
                format!("+try-failover {master}"),
                "+vote-for-leader ".to_owned(),
                format!("+elected-leader {master}"),
                format!("+failover-state-select-slave {master}"),
                format!("+selected-slave {}", slave(&new, &old)),
                format!("+promoted-slave {}", slave(&new, &old)),
                format!("+failover-end {master}"),
                switch,
                format!("+slave {}", slave(&old, &new)),
                format!("+sdown {}", slave(&old, &new)),
            ]
        } else {
            vec![
                format!("+sdown {master}"),
                "+new-epoch ".to_owned(),
                "+vote-for-leader ".to_owned(),
                format!("+odown {master} #quorum 2/2"),
                format!("-role-change {} new reported role is master", slave(&new, &old)),
                "+config-update-from sentinel ".to_owned(),
                switch,
                format!("+slave {}", slave(&old, &new)),
                format!("+sdown {}", slave(&old, &new)),
            ]
        };
        in_order(heard, &expected).with_context(|| format!("told by server {number}"))?;
        eprintln!("sentinel: kill -9, told by server {number}:\n  {}", heard.join("\n  "));
    }
    // It comes back.
    cluster.spawn(victim)?;
    cluster.ready().await?;
    let returned =
        format!("+role-change slave {old} {old_ip_port} @ {name} {new_ip_port} new reported role is slave");
    for listener in &mut listeners {
        let heard = tokio::task::block_in_place(|| listener.until(&returned))?;
        in_order(&heard, &[format!("-sdown slave {old}"), returned.clone()])?;
    }
    cluster.caught_up().await?;
    // Who has just come has not heard of anybody yet, and does not tell that they were lost.
    let mut events = Command::new(binary::kvorum());
    let events = succeed(events.args(["cluster", "events", "--server", &cluster.peer_addr(victim)]))?;
    ensure!(events.contains("+monitor") && !events.contains("down "), "{events}");
    // Planned: asked of whoever does not lead.
    agree(&mut cluster, name, 0).await?;
    let asked = cluster.sentinel_addr(victim);
    let said =
        succeed(Command::new("redis-cli").args(["-p", port_of(&asked), "SENTINEL", "FAILOVER", name]))?;
    ensure!(said == "OK\n", "SENTINEL FAILOVER: {said}");
    for (number, listener) in others.iter().zip(&mut listeners) {
        let heard = tokio::task::block_in_place(|| listener.until("+switch-master "))?;
        ensure!(heard.iter().all(|message| !message.contains("down master ")), "server {number}: {heard:?}");
        ensure!(
            heard
                .last()
                .is_some_and(|last| last.starts_with(&format!("+switch-master {name} {new_ip_port} ")))
        );
    }
    let next = agree(&mut cluster, name, 0).await?;
    ensure!(next != new, "SENTINEL FAILOVER moved nothing");
    timelines(&cluster, name, &new, &next).await
}

/// The same as `agree`, for servers that still run.
async fn agree_among(cluster: &mut Cluster, name: &str, numbers: &[u16]) -> Result<String> {
    let leader = cluster.leader(0).await?;
    for number in numbers {
        let start = Instant::now();
        while master_at(&cluster.sentinel_addr(*number), name).await.ok().as_ref() != Some(&leader) {
            ensure!(start.elapsed() < PATIENCE, "server {number} does not name {leader}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    Ok(leader)
}

/// `kvorum cluster events` and the HTTP port tell the same.
async fn timelines(cluster: &Cluster, name: &str, from: &str, to: &str) -> Result<()> {
    let [from, to] = [from, to].map(|addr| addr.replace(':', " "));
    let switch = format!("{name} {from} {to}");
    for number in cluster.numbers() {
        let peer = cluster.peer_addr(number);
        let run = |more: &[&str]| {
            succeed(Command::new(binary::kvorum()).args(["cluster", "events", "--server", &peer]).args(more))
        };
        let events: serde_json::Value = serde_json::from_str(&run(&["--json"])?)?;
        let list = events.as_array().context("a list")?;
        let last = list.iter().rfind(|event| event["event"] == "+switch-master").context("a switch")?;
        ensure!(last["payload"] == switch.as_str(), "server {number}: {last}");
        ensure!(last["cause"].as_str().is_some_and(|cause| cause.contains("took the lead over")), "{last}");
        let table = run(&[])?;
        ensure!(table.starts_with("time (UTC) ") && table.contains(&switch), "{table}");
        let response = http::get(&format!("127.0.0.1:{}", cluster.base_port(number) + 99), "/events").await?;
        ensure!(response.status == 200, "{}", response.body);
        let over_http: serde_json::Value = serde_json::from_str(&response.body)?;
        ensure!(over_http == events, "server {number} tells something else over HTTP");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_cli_hears_of_failovers_in_standalone_mode() -> Result<()> {
    told_by_redis_cli(Shape::standalone(3, "quorum-memory"), "mymaster").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_cli_hears_of_failovers_of_one_of_three_shards() -> Result<()> {
    told_by_redis_cli(Shape { durability: "quorum-memory", ..Shape::default() }, "shard-0").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_hear_of_a_new_leader_as_soon_as_it_serves() -> Result<()> {
    const ROUNDS: usize = 12;
    let mut cluster = Cluster::start(Shape::standalone(3, "quorum-memory")).await?;
    agree(&mut cluster, "mymaster", 0).await?;
    cluster.caught_up().await?;
    let (heard, mut news) = tokio::sync::mpsc::unbounded_channel();
    for number in cluster.numbers() {
        let mut connection = Connection::open(&cluster.sentinel_addr(number)).await?;
        connection.call(&["SUBSCRIBE", "+switch-master"]).await?;
        let heard = heard.clone();
        tokio::spawn(async move {
            while let Ok(message) = connection.receive().await {
                let payload = message.items().and_then(|items| items.get(2)?.text()).unwrap_or_default();
                let _ = heard.send((number, payload, Instant::now()));
            }
        });
    }
    // A client of each server writes without a pause, while that leads: what is connected to the leader is served when it leads no more.
    let (wrote, mut writes) = tokio::sync::mpsc::unbounded_channel();
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for number in cluster.numbers() {
        let mut connection = cluster.connect(number, 0).await?;
        let (wrote, stop) = (wrote.clone(), Arc::clone(&stop));
        writers.push(tokio::spawn(async move {
            let mut succeeded = false;
            while !stop.load(Ordering::Relaxed) {
                let Ok(role) = connection.call(&["ROLE"]).await else { return };
                let leads =
                    role.items().and_then(|items| items.first()?.text()).is_some_and(|role| role == "master");
                let succeeds = leads
                    && connection.call(&["SET", "k", "v"]).await.is_ok_and(|reply| reply == Value::ok());
                if succeeds && !succeeded {
                    let _ = wrote.send((number, Instant::now()));
                }
                succeeded = succeeds;
                tokio::time::sleep(Duration::from_micros(500)).await;
            }
        }));
    }
    let first = tokio::time::timeout(PATIENCE, writes.recv()).await?.context("a leader")?.0;
    let mut leader = first;
    let mut delays = Vec::new();
    for round in 0..ROUNDS {
        let asked = cluster.sentinel_addr(1 + u16::try_from(round % 3)?);
        assert_eq!(ask(&asked, "SENTINEL FAILOVER mymaster").await?, Value::ok(), "round {round}");
        let (next, served) = loop {
            let (number, at) = tokio::time::timeout(PATIENCE, writes.recv()).await?.context("a writer")?;
            if number != leader {
                break (number, at);
            }
        };
        let mut told = BTreeMap::new();
        while told.len() < 3 {
            let (number, payload, at) = tokio::time::timeout(PATIENCE, news.recv()).await?.context("news")?;
            ensure!(payload.ends_with(port_of(&cluster.addr(next, 0))), "{payload}, but server {next} leads");
            told.insert(number, at);
        }
        let after = |at: &Instant| match at.checked_duration_since(served) {
            Some(late) => late.as_secs_f64() * 1e3,
            None => -served.duration_since(*at).as_secs_f64() * 1e3,
        };
        delays.extend(told.values().map(after));
        leader = next;
        // The next one only when all followers are level again.
        cluster.caught_up().await?;
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await?;
    }
    delays.sort_by(f64::total_cmp);
    let (median, longest) = (delays[delays.len() / 2], delays[delays.len() - 1]);
    eprintln!(
        "sentinel: {ROUNDS} handovers, {} tellings: +switch-master {median:.1} ms (median), {longest:.1} ms (longest) after the \
         first write that the new leader acknowledged; less than nothing is before it",
        delays.len()
    );
    assert!(longest < TOLD_WITHIN.as_secs_f64() * 1e3, "{delays:?}");
    Ok(())
}

/// redis-py's Sentinel across kill -9, return, and a planned handover.
async fn redis_py(shape: Shape, name: &str) -> Result<()> {
    let mut cluster = Cluster::start(shape).await?;
    let leader = agree(&mut cluster, name, 0).await?;
    let slots =
        if cluster.shape().mode == "standalone" { vec![(0, 16_383)] } else { cluster.slots_of(0).await? };
    let tag = key_in("py", 0, |slot| slots.iter().any(|&(first, last)| (first..=last).contains(&slot)));
    let sentinels: Vec<String> = cluster.numbers().map(|n| cluster.sentinel_addr(n)).collect();
    let mut client = Command::new(binary::python()?)
        .arg(workspace().join("tests/compat/redis_py_sentinel.py"))
        .args([name, &tag])
        .args(sentinels.iter().map(|addr| port_of(addr)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = BufReader::new(client.stdout.take().context("a pipe")?);
    let mut line = String::new();
    tokio::task::block_in_place(|| said.read_line(&mut line))?;
    assert_eq!(line, "ready\n");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let victim = cluster.server_of(&leader);
    cluster.kill(victim)?;
    tokio::time::sleep(Duration::from_secs(4)).await;
    cluster.spawn(victim)?;
    cluster.ready().await?;
    cluster.caught_up().await?;
    agree(&mut cluster, name, 0).await?;
    let before = cluster.leader(0).await?;
    let asked = cluster.sentinel_addr(victim);
    assert_eq!(ask(&asked, &format!("SENTINEL FAILOVER {name}")).await?, Value::ok());
    cluster.ready().await?;
    ensure!(cluster.leader(0).await? != before, "SENTINEL FAILOVER moved nothing");
    tokio::time::sleep(Duration::from_secs(2)).await;
    drop(client.stdin.take());
    let mut rest = String::new();
    tokio::task::block_in_place(|| said.read_to_string(&mut rest))?;
    let status = client.wait()?;
    eprint!("{}: {rest}", cluster.shape().mode);
    ensure!(status.success() && rest.ends_with(": ok\n"), "{status}: {rest}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_py_finds_the_master_in_standalone_mode() -> Result<()> {
    redis_py(Shape::standalone(3, "quorum-memory"), "mymaster").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_py_finds_the_master_of_one_of_three_shards() -> Result<()> {
    redis_py(Shape { durability: "quorum-memory", ..Shape::default() }, "shard-0").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_data_ports_hand_the_lead_over() -> Result<()> {
    let mut cluster = Cluster::start(Shape { durability: "quorum-memory", ..Shape::default() }).await?;
    cluster.caught_up().await?;
    for how in ["CLUSTER FAILOVER", "CLUSTER FAILOVER FORCE", "CLUSTER FAILOVER TAKEOVER"] {
        let leader = cluster.leader(1).await?;
        let refused = ask(&leader, how).await?;
        assert_eq!(refused, Value::Error("ERR You should send CLUSTER FAILOVER to a replica".to_owned()));
        let follower = cluster.numbers().map(|n| cluster.addr(n, 1)).find(|addr| *addr != leader);
        let follower = follower.context("a follower")?;
        assert_eq!(ask(&follower, how).await?, Value::ok(), "{how}");
        cluster.ready().await?;
        assert_eq!(cluster.leader(1).await?, follower, "{how}");
        cluster.caught_up().await?;
    }
    let mut cluster = Cluster::start(Shape::standalone(3, "quorum-memory")).await?;
    cluster.caught_up().await?;
    let leader = cluster.leader(0).await?;
    assert_eq!(ask(&leader, "FAILOVER").await?, Value::ok());
    cluster.ready().await?;
    let second = cluster.leader(0).await?;
    ensure!(second != leader, "FAILOVER moved nothing");
    cluster.caught_up().await?;
    let to = format!("FAILOVER TO 127.0.0.1 {} FORCE TIMEOUT 1000", port_of(&leader));
    assert_eq!(ask(&second, &to).await?, Value::ok());
    cluster.ready().await?;
    assert_eq!(cluster.leader(0).await?, leader);
    // Another name of `kvorum cluster handover`.
    let peer = cluster.peer_addr(1);
    let program = binary::kvorum();
    succeed(Command::new(program).args(["cluster", "failover", "--server", &peer, "--shard", "0"]))?;
    cluster.ready().await?;
    ensure!(cluster.leader(0).await? != leader, "`kvorum cluster failover` moved nothing");
    // Several at once: each is answered, and at least one is carried out.
    cluster.caught_up().await?;
    let asked = (0..9u16).map(|n| {
        let sentinel = cluster.sentinel_addr(1 + n % 3);
        tokio::spawn(async move { ask(&sentinel, "SENTINEL FAILOVER mymaster").await })
    });
    let mut done = 0;
    for asked in asked.collect::<Vec<_>>() {
        let reply = tokio::time::timeout(PATIENCE, asked).await.context("no answer")???;
        let refused = ["INPROG ", "NOGOODSLAVE ", "ERR the lead was not handed over"];
        let is_refused =
            reply.error().is_some_and(|text| refused.iter().any(|start| text.starts_with(start)));
        ensure!(reply == Value::ok() || is_refused, "{reply}");
        done += usize::from(reply == Value::ok());
    }
    ensure!(done > 0, "none of several was carried out");
    cluster.ready().await?;
    cluster.caught_up().await?;
    // Without anybody to take over.
    let leader = cluster.leader(0).await?;
    let own = cluster.server_of(&leader);
    let others: Vec<u16> = cluster.numbers().filter(|number| *number != own).collect();
    cluster.kill_together(&others)?;
    let start = Instant::now();
    loop {
        let reply = ask(&cluster.sentinel_addr(own), "SENTINEL FAILOVER mymaster").await?;
        if reply == Value::Error("NOGOODSLAVE No suitable replica to promote".to_owned()) {
            break;
        }
        ensure!(start.elapsed() < PATIENCE, "{reply}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Alone, it does not say where a master is: another Sentinel may know better.
    let start = Instant::now();
    while master_at(&cluster.sentinel_addr(own), "mymaster").await.is_ok() {
        ensure!(start.elapsed() < PATIENCE, "a Sentinel that is cut off still names a master");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_port_may_be_announced() -> Result<()> {
    let settings = vec!["sentinel-announce-port = 36379".to_owned()];
    let mut cluster = Cluster::start(Shape { settings, ..Shape::standalone(3, "quorum-memory") }).await?;
    agree(&mut cluster, "mymaster", 0).await?;
    for number in cluster.numbers() {
        let sentinel = cluster.sentinel_addr(number);
        let others = ask(&sentinel, "SENTINEL SENTINELS mymaster").await?;
        for other in others.items().unwrap_or_default() {
            let fields = fields(other);
            let address: Vec<&str> = fields[1..3].iter().map(|(_, value)| value.as_str()).collect();
            assert_eq!(address, ["127.0.0.1", "36379"], "of server {number}: {fields:?}");
        }
        let shown = fields(&ask(&sentinel, "SENTINEL CONFIG GET announce-port").await?);
        assert_eq!(shown, [("announce-port".to_owned(), "36379".to_owned())]);
        let events =
            http::get(&format!("127.0.0.1:{}", cluster.base_port(number) + 99), "/events").await?.body;
        let events: Vec<serde_json::Value> = serde_json::from_str(&events)?;
        let met: Vec<&str> = events
            .iter()
            .filter(|event| event["event"] == "+sentinel")
            .filter_map(|event| event["payload"].as_str())
            .collect();
        ensure!(
            !met.is_empty() && met.iter().all(|payload| payload.contains(" 127.0.0.1 36379 @ ")),
            "{met:?}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_protected_from_its_clients() -> Result<()> {
    let settings = ["requirepass = \"secret\"", "sentinel-master-name = \"cache\""];
    let shape =
        Shape { settings: settings.map(str::to_owned).to_vec(), ..Shape::standalone(1, "quorum-memory") };
    // Whoever waits for the cluster does not know the password; asking for it is an answer, too.
    let Ok(mut cluster) =
        Cluster::start(Shape { settings: settings[1..].iter().map(|s| (*s).to_owned()).collect(), ..shape })
            .await
    else {
        bail!("no cluster")
    };
    agree(&mut cluster, "cache", 0).await?;
    let (sentinel, data) = (cluster.sentinel_addr(1), cluster.addr(1, 0));
    let mut admin = Connection::open(&data).await?;
    let mut early = Connection::open(&sentinel).await?;
    early.call(&["PING"]).await?;
    admin.call(&["CONFIG", "SET", "requirepass", "secret"]).await?;
    let refused = Value::Error("NOAUTH Authentication required.".to_owned());
    assert_eq!(ask(&sentinel, "SENTINEL MASTERS").await?, refused);
    let mut client = Connection::open(&sentinel).await?;
    assert_eq!(client.call(&["AUTH", "secret"]).await?, Value::ok());
    assert_eq!(client.call(&["PING"]).await?.text().as_deref(), Some("PONG"));
    admin.call(&["CONFIG", "SET", "requirepass", ""]).await?;
    // One that asks and does not read, and one that sends without end.
    admin.call(&["CONFIG", "SET", "client-output-buffer-limit", "pubsub 65536 0 0"]).await?;
    let mut deaf = std::net::TcpStream::connect(&sentinel)?;
    deaf.set_write_timeout(Some(PATIENCE))?;
    let flood = tokio::task::spawn_blocking(move || {
        use std::io::Write;
        deaf.write_all(b"SUBSCRIBE a\r\n")?;
        let pings = b"*2\r\n$4\r\nPING\r\n$64\r\n0123456789012345678901234567890123456789012345678901234567890123\r\n".repeat(1000);
        for _ in 0..2000 {
            deaf.write_all(&pings)?;
        }
        std::io::Result::Ok(())
    });
    let ended = flood.await?;
    ensure!(
        ended.is_err_and(|error| error.kind() != std::io::ErrorKind::WouldBlock),
        "it was not disconnected"
    );
    let mut endless = std::net::TcpStream::connect(&sentinel)?;
    let flood = tokio::task::spawn_blocking(move || {
        use std::io::Write;
        endless.write_all(b"*100000\r\n")?;
        let words = b"$4\r\nPING\r\n".repeat(1000);
        for _ in 0..1000 {
            endless.write_all(&words)?;
        }
        std::io::Result::Ok(())
    });
    ensure!(flood.await?.is_err(), "a request of a megabyte and more was taken");
    assert_eq!(early.call(&["PING"]).await?.text().as_deref(), Some("PONG"), "the others go on");
    // As many as may.
    admin.call(&["CONFIG", "SET", "maxclients", "2"]).await?;
    let error = Connection::open(&sentinel).await?.receive().await?;
    assert_eq!(error, Value::Error("ERR max number of clients reached".to_owned()));
    Ok(())
}
