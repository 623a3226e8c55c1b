//! Values as large as Redis allows, 512 MB: written in one command beside small ones of others, through the death of a leader,
//! and there after a restart of everything.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use kvorum_testkit::client::Outcome;
use kvorum_testkit::process::peak_resident_bytes;
use kvorum_testkit::random::Random;
use kvorum_testkit::resp::{Connection, Value};
use kvorum_testkit::slots::key_in;
use kvorum_testkit::workload::{Writers, read_back};
use kvorum_testkit::{Cluster, Shape};

/// `proto-max-bulk-len`.
const LARGEST: usize = 512 << 20;

/// The death of a leader comes in the middle of this one.
const INTERRUPTED: usize = 192 << 20;

/// A busy machine may elect another leader meanwhile.
const TRIES: u32 = 5;

/// Bounds for safety only.
const PATIENCE: Duration = Duration::from_secs(120);

/// Bytes that differ from place to place, so that a chunk that is missing, twice or elsewhere shows.
fn value(len: usize, seed: u64) -> Bytes {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}

/// Who leads the shard, once all agree: a busy machine may just elect another leader.
async fn leader(cluster: &Cluster) -> Result<String> {
    let began = Instant::now();
    loop {
        match cluster.leader(0).await {
            Err(_) if began.elapsed() < PATIENCE => tokio::time::sleep(Duration::from_millis(50)).await,
            found => return found,
        }
    }
}

/// Sets a key, as a client does it: an error that says that nothing ran means once more, to whoever leads by then. So does one that
/// leaves it open, when a busy machine changed the leader just as the last part was proposed: nobody else writes this key.
async fn insist(cluster: &Cluster, key: &str, value: &Bytes) -> Result<()> {
    for _ in 0..TRIES {
        match set(leader(cluster).await?, key.to_owned(), value.clone()).await? {
            Value::Error(text) => {
                let refused = matches!(Outcome::of_reply(Value::Error(text.clone())), Outcome::Refused(_));
                assert!(refused || text.starts_with("UNKNOWN "), "{text}");
                eprintln!("large_values: {text}");
            }
            reply => {
                assert_eq!(reply, Value::ok());
                return Ok(());
            }
        }
    }
    panic!("{key} was not written in {TRIES} tries");
}

/// Sends `SET key value` and waits for what comes.
async fn set(addr: String, key: String, value: Bytes) -> Result<Value> {
    let mut connection = Connection::open(&addr).await?;
    let head = format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n", key.len(), value.len());
    let exchange = async {
        connection.send_raw(head.as_bytes()).await?;
        connection.send_raw(&value).await?;
        connection.send_raw(b"\r\n").await?;
        connection.receive().await
    };
    Ok(tokio::time::timeout(PATIENCE, exchange).await??)
}

async fn assert_is(cluster: &Cluster, key: &str, value: &Bytes) -> Result<()> {
    let Value::Bulk(read) = ask(cluster, &["GET", key]).await? else { panic!("{key} is no string") };
    assert!(read == *value, "{key} has {} bytes, some of them wrong", read.len());
    Ok(())
}

/// What whoever leads says of a key.
async fn ask(cluster: &Cluster, command: &[&str]) -> Result<Value> {
    for _ in 0..TRIES {
        let mut connection = Connection::open(&leader(cluster).await?).await?;
        let reply = connection.call_within(PATIENCE, command).await?;
        match Outcome::of_reply(reply) {
            Outcome::Ok(reply) => return Ok(reply),
            Outcome::Refused(text) | Outcome::Unknown(text) => eprintln!("large_values: {text}"),
        }
    }
    panic!("{command:?} was not answered in {TRIES} tries");
}

/// The most memory that any of the servers ever took, MiB.
fn peak_mib(cluster: &Cluster) -> Result<u64> {
    let mut peak = 0;
    for number in cluster.running() {
        let pid = cluster.pid(number).context("it runs")?;
        peak = peak.max(peak_resident_bytes(pid)? >> 20);
    }
    Ok(peak)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_values() -> Result<()> {
    let (mut random, _) = Random::for_run("large_values");
    let mut cluster = Cluster::start(Shape::default()).await?;
    let slots = cluster.slots_of(0).await?;
    let in_shard = move |slot: u16| slots.iter().any(|&(first, last)| (first..=last).contains(&slot));
    let (largest, interrupted) = (key_in("large", 1, &in_shard), key_in("large", 2, &in_shard));

    // Others go on meanwhile, on the same shard.
    let writers = Writers::start_in("small", 4, || cluster.client(), &mut random, in_shard);
    writers.progress(200, PATIENCE).await;
    let content = value(LARGEST, 1);
    let began = Instant::now();
    let mut beside = 0;
    let others = async {
        loop {
            writers.progress(100, PATIENCE).await;
            beside += 100;
        }
    };
    tokio::select! {
        done = insist(&cluster, &largest, &content) => done?,
        () = others => {}
    }
    let took = began.elapsed();
    eprintln!(
        "large_values: 512 MiB in {took:.1?}, at least {beside} small writes beside it; the largest server took {} MiB",
        peak_mib(&cluster)?
    );
    assert!(beside >= 500, "the shard stood still for others");
    assert_is(&cluster, &largest, &content).await?;

    // The leader dies in the middle: the write ran or it did not, and not in part.
    let other = value(INTERRUPTED, 2);
    let first = leader(&cluster).await?;
    let victim = cluster.server_of(&first);
    let upload = tokio::spawn(set(first, interrupted.clone(), other.clone()));
    tokio::time::sleep(Duration::from_millis(200 + random.below(400))).await;
    cluster.kill(victim)?;
    let ending = upload.await?.map_err(|error| error.to_string());
    writers.progress(100, PATIENCE).await;
    let there = ask(&cluster, &["STRLEN", &interrupted]).await?.integer();
    eprintln!("large_values: the interrupted write ended with {ending:?}, {there:?} bytes are there");
    let all = Some(i64::try_from(INTERRUPTED)?);
    match ending {
        Ok(reply) if reply == Value::ok() => assert_eq!(there, all),
        _ => assert!(there == Some(0) || there == all, "a part of a write: {there:?}"),
    }
    // The same again, to whoever leads now.
    insist(&cluster, &interrupted, &other).await?;
    cluster.spawn(victim)?;
    cluster.ready().await?;
    let written = writers.stop().await;
    cluster.caught_up().await?;

    let all: Vec<u16> = cluster.numbers().collect();
    cluster.kill_together(&all)?;
    for number in all {
        cluster.spawn(number)?;
    }
    cluster.ready().await?;
    assert_is(&cluster, &largest, &content).await?;
    assert_is(&cluster, &interrupted, &other).await?;
    let audit = written.ledger.audit(&read_back(&mut cluster.client(), &written.ledger).await);
    assert!(audit.is_clean(), "small writes beside the large ones: {audit}");
    Ok(())
}
