//! What a user meets first: commands, redirects, the topology, pipelines, the two protocols, expiry; over a real
//! three-server cluster, with redis-cli and with a client of our own.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kvorum_testkit::cluster::{info_fields, succeed};
use kvorum_testkit::random::Random;
use kvorum_testkit::resp::words;
use kvorum_testkit::slots::{key_in, slot_of};
use kvorum_testkit::{Cluster, Connection, Outcome, Shape, Value};

/// A cluster, its first shard's leader, and a way to make keys of that shard.
struct Setting {
    cluster: Cluster,
    leader: String,
    slots: Vec<(u16, u16)>,
}

impl Setting {
    async fn start() -> Result<Setting> {
        let cluster = Cluster::start(Shape::default()).await?;
        let (leader, slots) = (cluster.leader(0).await?, cluster.slots_of(0).await?);
        Ok(Setting { cluster, leader, slots })
    }

    async fn connect(&self) -> Result<Connection> {
        Ok(Connection::open(&self.leader).await?)
    }

    fn owns(&self, slot: u16) -> bool {
        self.slots.iter().any(|&(first, last)| (first..=last).contains(&slot))
    }

    /// A key of the first shard.
    fn key(&self, n: u64) -> String {
        key_in("here", n, |slot| self.owns(slot))
    }

    /// A key of another shard.
    fn foreign_key(&self, n: u64) -> String {
        key_in("there", n, |slot| !self.owns(slot))
    }
}

fn redis_cli(arguments: &[&str]) -> Result<String> {
    // On a colour terminal redis-cli colours its reports even into a pipe.
    succeed(Command::new("redis-cli").args(arguments).env("TERM", "dumb"))
        .context("redis-cli (Debian's package redis-tools)")
}

fn error(text: &str) -> Value {
    Value::Error(text.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_answer_as_redis_does() -> Result<()> {
    let cluster = Cluster::start(Shape::default()).await?;
    let mut client = cluster.client();
    let wrong_type = error("ERR value is not an integer or out of range");
    let table: Vec<(&str, Value)> = vec![
        ("SET k v", Value::ok()),
        ("GET k", Value::bulk("v")),
        ("GET nothing", Value::Null),
        ("SET k w NX", Value::Null),
        ("SET k w XX GET", Value::bulk("v")),
        ("SET k w EX 0", error("ERR invalid expire time in 'set' command")),
        ("SET k w BOGUS", error("ERR syntax error")),
        ("SET k w EX 100", Value::ok()),
        ("TTL k", Value::Integer(100)),
        ("SET k x KEEPTTL", Value::ok()),
        ("PERSIST k", Value::Integer(1)),
        ("TTL k", Value::Integer(-1)),
        ("TTL nothing", Value::Integer(-2)),
        ("EXPIRE nothing 5", Value::Integer(0)),
        ("EXPIRE k 100 NX", Value::Integer(1)),
        ("EXPIRE k 50 GT", Value::Integer(0)),
        ("PEXPIRE k -1", Value::Integer(1)),
        ("EXISTS k", Value::Integer(0)),
        ("INCR n", Value::Integer(1)),
        ("INCRBY n 41", Value::Integer(42)),
        ("DECR n", Value::Integer(41)),
        ("TYPE n", Value::Status("string".to_owned())),
        ("TYPE nothing", Value::Status("none".to_owned())),
        ("APPEND s abc", Value::Integer(3)),
        ("APPEND s def", Value::Integer(6)),
        ("STRLEN s", Value::Integer(6)),
        ("INCR s", wrong_type),
        ("MSET {t}a 1 {t}b 2", Value::ok()),
        ("MGET {t}a {t}none {t}b", Value::Array(vec![Value::bulk("1"), Value::Null, Value::bulk("2")])),
        ("EXISTS {t}a {t}a {t}none", Value::Integer(2)),
        ("DEL {t}a {t}b {t}none", Value::Integer(2)),
        ("GET", error("ERR wrong number of arguments for 'get' command")),
        ("nosuch thing", error("ERR unknown command 'nosuch', with args beginning with: 'thing' ")),
        ("CLUSTER KEYSLOT foo", Value::Integer(12182)),
        ("SELECT 1", error("ERR SELECT is not allowed in cluster mode")),
        ("ECHO hello", Value::bulk("hello")),
        ("READWRITE", Value::ok()),
    ];
    for (line, expected) in table {
        assert_eq!(client.call(&words(line)).await, Outcome::Ok(expected), "{line}");
    }
    let binary: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    assert_eq!(client.call(&[b"SET".as_slice(), b"binary", &binary]).await.expect_ok(), Value::ok());
    assert_eq!(client.call(&["GET", "binary"]).await.expect_ok(), Value::bulk(&binary));

    // The same data through redis-cli, whichever port it starts from.
    for addr in cluster.addrs() {
        let port = addr.rsplit_once(':').context("a port")?.1.to_owned();
        assert_eq!(redis_cli(&["-c", "-p", &port, "set", "from-cli", &port])?, "OK\n");
        assert_eq!(redis_cli(&["-c", "-p", &port, "get", "from-cli"])?, format!("{port}\n"));
        assert_eq!(redis_cli(&["-c", "-p", &port, "--no-raw", "get", "n"])?, "\"41\"\n");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keyless_commands_answer_for_the_port() -> Result<()> {
    let setting = Setting::start().await?;
    let mut leader = setting.connect().await?;
    let keys: BTreeSet<String> = (0..50).map(|n| setting.key(n)).collect();
    for key in &keys {
        assert_eq!(leader.call(&["SET", key, "v"]).await?, Value::ok());
    }
    assert_eq!(leader.call(&["DBSIZE"]).await?, Value::Integer(50));
    let texts = |value: &Value| -> BTreeSet<String> {
        value.items().unwrap_or_default().iter().filter_map(Value::text).collect()
    };
    assert_eq!(texts(&leader.call(&["KEYS", "here:*"]).await?), keys);
    let (mut cursor, mut scanned) = ("0".to_owned(), BTreeSet::new());
    loop {
        let reply = leader.call(&["SCAN", &cursor, "COUNT", "7"]).await?;
        let parts = reply.items().context("SCAN answers with an array")?;
        scanned.extend(texts(&parts[1]));
        cursor = parts[0].text().context("a cursor")?;
        if cursor == "0" {
            break;
        }
    }
    assert_eq!(scanned, keys);

    let slot = slot_of(setting.key(0).as_bytes()).to_string();
    assert_eq!(leader.call(&["CLUSTER", "COUNTKEYSINSLOT", &slot]).await?, Value::Integer(1));
    let in_slot = leader.call(&["CLUSTER", "GETKEYSINSLOT", &slot, "10"]).await?;
    assert_eq!(texts(&in_slot), BTreeSet::from([setting.key(0)]));
    let waited =
        leader.call(&["WAIT", "1", "5000"]).await?.integer().context("WAIT answers with a number")?;
    assert!(waited >= 1, "WAIT 1 answered {waited}");

    let info = info_fields(&leader.call(&["INFO"]).await?);
    for (field, value) in [("redis_mode", "cluster"), ("cluster_enabled", "1"), ("role", "master")] {
        assert_eq!(info.get(field).map(String::as_str), Some(value), "INFO {field}");
    }
    assert!(info.get("db0").is_some_and(|db| db.starts_with("keys=50,")), "{:?}", info.get("db0"));
    let databases = leader.call(&["CONFIG", "GET", "databases"]).await?;
    assert_eq!(databases, Value::Array(vec![Value::bulk("databases"), Value::bulk("1")]));

    // A subcommand that is not ours yet says which of our commands to use.
    for command in
        ["MEET 127.0.0.1 1", "FORGET id", "REPLICATE id", "ADDSLOTS 1", "SETSLOT 1 STABLE", "RESET"]
    {
        let reply = leader.call(&words(&format!("CLUSTER {command}"))).await?;
        let text = reply.error().with_context(|| format!("CLUSTER {command} answered {reply}"))?;
        assert!(text.starts_with("ERR ") && text.contains("kvorum cluster"), "CLUSTER {command}: {text}");
    }
    assert_eq!(leader.call(&["FLUSHALL"]).await?, Value::ok());
    assert_eq!(leader.call(&["DBSIZE"]).await?, Value::Integer(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_port_tells_the_same_topology() -> Result<()> {
    let cluster = Cluster::start(Shape::default()).await?;
    let mut answers: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut myselves = BTreeSet::new();
    for number in cluster.numbers() {
        for shard in 0..3 {
            let mut connection = cluster.connect(number, shard).await?;
            let nodes =
                connection.call(&["CLUSTER", "NODES"]).await?.text().context("CLUSTER NODES is text")?;
            let myself: Vec<&str> = nodes.lines().filter(|line| line.contains("myself")).collect();
            ensure!(myself.len() == 1, "one line is `myself`: {nodes}");
            let id = myself[0].split(' ').next().context("an id")?.to_owned();
            ensure!(myself[0].contains(&format!("{}@", cluster.addr(number, shard))), "{}", myself[0]);
            assert_eq!(connection.call(&["CLUSTER", "MYID"]).await?.text(), Some(id.clone()));
            myselves.insert(id);
            answers.entry("nodes").or_default().insert(without_self_and_pings(&nodes));
            for what in ["SLOTS", "SHARDS"] {
                let reply = connection.call(&["CLUSTER", what]).await?;
                assert!(reply.items().is_some_and(|items| items.len() == 3), "CLUSTER {what}: {reply}");
                answers.entry(what).or_default().insert(without_offsets(&reply));
            }
            let info = info_fields(&connection.call(&["CLUSTER", "INFO"]).await?);
            for (field, value) in [
                ("cluster_state", "ok"),
                ("cluster_slots_assigned", "16384"),
                ("cluster_slots_ok", "16384"),
                ("cluster_known_nodes", "9"),
                ("cluster_size", "3"),
            ] {
                assert_eq!(info.get(field).map(String::as_str), Some(value), "CLUSTER INFO {field}");
            }
        }
    }
    assert_eq!(myselves.len(), 9);
    for (what, different) in answers {
        assert_eq!(different.len(), 1, "{what}: {different:#?}");
    }
    Ok(())
}

/// CLUSTER NODES without what may differ between nodes: `myself` and the two times.
fn without_self_and_pings(nodes: &str) -> String {
    let lines = nodes.lines().map(|line| {
        let mut columns: Vec<String> = line.split(' ').map(|column| column.replace("myself,", "")).collect();
        columns[4] = "-".to_owned();
        columns[5] = "-".to_owned();
        columns.join(" ")
    });
    let mut lines: Vec<String> = lines.collect();
    lines.sort();
    lines.join("\n")
}

/// A reply without replication offsets, which move while one looks from node to node.
fn without_offsets(reply: &Value) -> String {
    fn plain(value: &Value) -> Value {
        match value {
            Value::Array(items) => {
                let mut items: Vec<Value> = items.iter().map(plain).collect();
                if let Some(at) = items.iter().position(|item| *item == Value::bulk("replication-offset")) {
                    items[at + 1] = Value::Null;
                }
                Value::Array(items)
            }
            other => other.clone(),
        }
    }
    plain(reply).to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_cli_finds_nothing_to_complain_about() -> Result<()> {
    let cluster = Cluster::start(Shape::default()).await?;
    for number in cluster.numbers() {
        let said = redis_cli(&["--cluster", "check", &cluster.addr(number, number - 1)])?;
        let count = |start: &str| said.lines().filter(|line| line.starts_with(start)).count();
        assert_eq!((count("M: "), count("S: ")), (3, 6), "{said}");
        assert!(said.contains("[OK] All nodes agree about slots configuration."), "{said}");
        assert!(said.contains("[OK] All 16384 slots covered."), "{said}");
        for complaint in ["[ERR]", "[WARNING]", "Could not", "not in the same"] {
            assert!(!said.contains(complaint), "{said}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redirects_name_the_leader() -> Result<()> {
    let setting = Setting::start().await?;
    let key = setting.key(1);
    let moved = error(&format!("MOVED {} {}", slot_of(key.as_bytes()), setting.leader));
    setting.connect().await?.call(&["SET", &key, "v"]).await?;
    for addr in setting.cluster.addrs().into_iter().filter(|addr| *addr != setting.leader) {
        let mut connection = Connection::open(&addr).await?;
        for command in [vec!["GET", &key], vec!["SET", &key, "w"], vec!["EXISTS", &key]] {
            assert_eq!(connection.call(&command).await?, moved, "{command:?} on {addr}");
        }
        assert_eq!(connection.call(&["READONLY"]).await?, Value::ok());
        let follows =
            setting.cluster.map().shard_of(&addr) == setting.cluster.map().shard_of(&setting.leader);
        let expected = if follows { Value::bulk("v") } else { moved.clone() };
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            // A follower may be a moment behind, or not have heard from its leader yet; another shard is wrong for ever.
            let reply = connection.call(&["GET", &key]).await?;
            if reply == expected {
                break;
            }
            let behind =
                reply == Value::Null || reply.error().is_some_and(|text| text.starts_with("MASTERDOWN "));
            assert!(follows && behind && Instant::now() < deadline, "{addr} after READONLY: {reply}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(connection.call(&["SET", &key, "w"]).await?, moved, "a write on {addr} after READONLY");
    }
    let crossslot = error("CROSSSLOT Keys in request don't hash to the same slot");
    let mut leader = setting.connect().await?;
    let (a, b) = (setting.key(1), setting.key(2));
    assert_eq!(leader.call(&["MSET", &a, "1", &b, "2"]).await?, crossslot);
    assert_eq!(leader.call(&["MGET", &a, &b]).await?, crossslot);
    assert_eq!(leader.call(&["DEL", &a, &setting.foreign_key(1)]).await?, crossslot);
    assert_eq!(leader.call(&["GET", &key]).await?, Value::bulk("v"), "what was refused did not run");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_of_a_thousand_mixed_commands_is_answered_in_order() -> Result<()> {
    let (mut random, seed) = Random::for_run("pipeline");
    let setting = Setting::start().await?;
    let mut connection = setting.connect().await?;
    let ranges = setting.cluster.ranges().await?;
    let owner =
        |slot: u16| ranges.iter().find(|r| (r.first..=r.last).contains(&slot)).map(|r| r.leader.clone());
    let mut model: BTreeMap<String, String> = BTreeMap::new();
    let (mut requests, mut expected) = (Vec::new(), Vec::new());
    for n in 0..1000u64 {
        let key = setting.key(random.below(20));
        let (request, reply) = match random.below(9) {
            0 | 1 => {
                model.insert(key.clone(), n.to_string());
                (format!("SET {key} {n}"), Value::ok())
            }
            2 | 3 => {
                let value = model.get(&key).map_or(Value::Null, Value::bulk);
                (format!("GET {key}"), value)
            }
            4 => {
                let value = model.get(&key).and_then(|v| v.parse::<i64>().ok()).unwrap_or(0) + 1;
                model.insert(key.clone(), value.to_string());
                (format!("INCR {key}"), Value::Integer(value))
            }
            5 => (format!("DEL {key}"), Value::Integer(i64::from(model.remove(&key).is_some()))),
            6 => (format!("ECHO {n}"), Value::bulk(n.to_string())),
            7 => {
                let key = setting.foreign_key(n);
                let slot = slot_of(key.as_bytes());
                let to = owner(slot).context("every slot has an owner")?;
                (format!("GET {key}"), error(&format!("MOVED {slot} {to}")))
            }
            _ => (format!("GET {key} extra"), error("ERR wrong number of arguments for 'get' command")),
        };
        requests.push(words(&request));
        expected.push(reply);
    }
    let replies = connection.pipeline(&requests).await?;
    for (n, (reply, expected)) in replies.iter().zip(&expected).enumerate() {
        assert_eq!(reply, expected, "seed {seed}, command {n}: {:?}", requests[n]);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inline_commands_and_resp3_work() -> Result<()> {
    let setting = Setting::start().await?;
    let key = setting.key(1);
    let mut inline = setting.connect().await?;
    inline
        .send_raw(format!("PING\r\nSET {key} \"two words\"\r\nGET {key}\r\n\r\nECHO x\r\n").as_bytes())
        .await?;
    for expected in
        [Value::Status("PONG".to_owned()), Value::ok(), Value::bulk("two words"), Value::bulk("x")]
    {
        assert_eq!(inline.receive().await?, expected);
    }
    let mut connection = setting.connect().await?;
    let Value::Map(hello) = connection.hello3().await? else { panic!("HELLO 3 answers with a map") };
    let field = |name: &str| hello.iter().find(|(k, _)| *k == Value::bulk(name)).map(|(_, v)| v.clone());
    assert_eq!(field("proto"), Some(Value::Integer(3)));
    assert_eq!(field("mode"), Some(Value::bulk("cluster")));
    assert_eq!(field("role"), Some(Value::bulk("master")));
    assert_eq!(connection.call(&["GET", &setting.key(99)]).await?, Value::Null);
    assert_eq!(connection.call(&["GET", &key]).await?, Value::bulk("two words"));
    assert!(
        matches!(connection.call(&["CLUSTER", "SHARDS"]).await?, Value::Array(shards) if shards.len() == 3)
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_seen_as_expired_never_comes_back() -> Result<()> {
    let (mut random, seed) = Random::for_run("expiry");
    let mut setting = Setting::start().await?;
    let mut client = setting.cluster.client();
    let mut keys = Vec::new();
    for n in 0..200 {
        let (key, ttl) = (setting.key(n), Duration::from_millis(200 + random.below(4000)));
        let sent_at = Instant::now();
        client.call(&["SET", &key, "v", "PX", &ttl.as_millis().to_string()]).await.expect_ok();
        keys.push((key, ttl, sent_at));
    }
    // Readers look at every key again and again; a key they saw expire must stay away.
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let (keys, mut client) = (keys.clone(), setting.cluster.client());
            tokio::spawn(async move {
                let mut gone: BTreeMap<String, Instant> = BTreeMap::new();
                let deadline = Instant::now() + Duration::from_secs(40);
                while gone.len() < keys.len() {
                    for (key, ttl, sent_at) in &keys {
                        ensure!(
                            Instant::now() < deadline,
                            "{} of {} keys have not expired",
                            keys.len() - gone.len(),
                            keys.len()
                        );
                        match client.call(&["GET", key]).await {
                            Outcome::Ok(Value::Null) => {
                                let early = sent_at.elapsed() < ttl.mul_f64(0.9);
                                ensure!(!early, "{key} expired after {:?} of {ttl:?}", sent_at.elapsed());
                                gone.entry(key.clone()).or_insert_with(Instant::now);
                            }
                            Outcome::Ok(value) => {
                                let seen = gone.get(key);
                                ensure!(
                                    seen.is_none(),
                                    "{key} came back as {value}, {:?} after it was seen expired",
                                    seen.map(Instant::elapsed)
                                );
                            }
                            Outcome::Refused(_) | Outcome::Unknown(_) => {}
                        }
                    }
                }
                Ok(())
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(800)).await;
    let victim = setting.cluster.server_of(&setting.leader);
    setting.cluster.kill(victim)?;
    for reader in readers {
        reader.await?.with_context(|| format!("seed {seed}"))?;
    }
    // The dead leader replays its log: what expired while it was away is expired there too.
    setting.cluster.spawn(victim)?;
    setting.cluster.ready().await?;
    setting.cluster.caught_up().await?;
    let mut replica = Connection::open(&setting.leader).await?;
    replica.call(&["READONLY"]).await?;
    for (key, ..) in &keys {
        assert_eq!(replica.call(&["GET", key]).await?, Value::Null, "{key} on the restarted server");
    }
    Ok(())
}
