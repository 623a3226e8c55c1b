//! Whole servers in this process, one of whose replicas goes wrong.

use super::Checks;
use crate::testing::{Text, batch};
use crate::{AdminClient, CHUNK_BYTES, CreateCluster, Node, NodeConfig, Shard, SubmitError};
use kvorum_cluster::{Durability, Mode, ServerId, ShardId};
use kvorum_raft::{Member, Status};
use kvorum_testkit::ports::PortBlock;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Everything here happens within this time, or not at all.
const PATIENCE: Duration = Duration::from_secs(30);

struct Cluster {
    nodes: Vec<Node>,
    _dir: tempfile::TempDir,
    _ports: PortBlock,
}

impl Cluster {
    /// One shard with a replica on each of so many servers.
    async fn start(servers: u16) -> Cluster {
        let ports = PortBlock::take().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut nodes = Vec::new();
        for n in 0..servers {
            let mut config =
                NodeConfig::new(dir.path().join(n.to_string()), "127.0.0.1", ports.base() + 100 * n);
            config.wal.segment_bytes = 1 << 20;
            nodes.push(Node::start(config).await.unwrap());
        }
        let servers: Vec<String> = nodes.iter().map(|node| node.config().peer_addr()).collect();
        let create = CreateCluster {
            replicas: u16::try_from(servers.len()).unwrap(),
            shards: 1,
            mode: Mode::Standalone,
            durability: Durability::QuorumMemory,
            databases: 1,
            servers,
        };
        let mut admin = AdminClient::connect(&create.servers[0]).await.unwrap();
        admin.create_cluster(&create).await.unwrap();
        Cluster { nodes, _dir: dir, _ports: ports }
    }

    fn replicas(&self) -> Vec<Shard> {
        self.nodes.iter().filter_map(|node| node.shard(ShardId(0))).collect()
    }

    /// The replica that serves, other than `not`.
    async fn leader(&self, not: Option<&Shard>) -> Shard {
        let not = not.map(Shard::replica);
        wait_for("a leader", || {
            self.replicas().into_iter().find(|shard| shard.serves() && Some(shard.replica()) != not)
        })
        .await
    }

    /// Runs commands until one has a reply, whoever leads.
    async fn run(&self, line: &str) -> String {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            let leader = self.leader(None).await;
            if let Some(reply) = run(&leader, line).await {
                return reply;
            }
        }
        panic!("nobody answers {line}");
    }

    async fn stop(self) {
        for node in &self.nodes {
            node.shutdown().await;
        }
    }
}

async fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Some(found) = look() {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("waited in vain for {what}");
}

/// Runs one command on a replica; `None` when it does not answer.
async fn run(shard: &Shard, line: &str) -> Option<String> {
    let batch = batch(line);
    if batch.writes() == 0 {
        let mut out = Text::default();
        return shard.read(&batch, &mut out).await.ok().map(|()| out.0);
    }
    let out = shard.submit(batch, Box::new(Text::default())).await.ok()?;
    let out: Box<dyn std::any::Any> = out;
    Some(out.downcast::<Text>().unwrap().0)
}

/// Changes one digit in a replica's memory: `counter` is 10 for it now, where it was 40.
fn corrupt(shard: &Shard) {
    shard.replica_state().tamper(|dump| {
        let at = dump.windows(10).position(|bytes| bytes == b"counter\x0240").expect("it is there");
        dump[at + 8] = b'1';
    });
}

/// All replicas but `not` have taken the same note, later than `index`.
async fn agree_after(cluster: &Cluster, not: &Shard, index: u64) {
    let others = cluster.replicas().into_iter().filter(|shard| shard.replica() != not.replica());
    let others: Vec<Shard> = others.collect();
    wait_for("equal notes", || {
        let notes: Vec<_> = others.iter().map(|shard| shard.notes().last().copied()).collect();
        (notes[0].is_some_and(|note| note.index > index) && notes.iter().all(|note| *note == notes[0]))
            .then_some(())
    })
    .await;
}

async fn invariant_a_wrong_replica_stops_and_is_replaced(leader_is_wrong: bool) {
    let cluster = Cluster::start(3).await;
    assert_eq!(cluster.run("SET counter 40").await, "OK");
    let leader = cluster.leader(None).await;
    // The replicas are compared without anybody having gone wrong.
    wait_for("a first check", || {
        let all: Vec<_> = cluster.replicas().iter().map(|shard| shard.notes().last().copied()).collect();
        (all.len() == 3 && all.iter().all(|note| note.is_some() && *note == all[0])).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(cluster.replicas().iter().all(|shard| shard.wrong().is_none()), "nobody is wrong yet");

    let wrong = if leader_is_wrong {
        leader
    } else {
        cluster.replicas().into_iter().find(|shard| shard.replica() != leader.replica()).unwrap()
    };
    corrupt(&wrong);
    let index = wrong.status().applied;
    // Only a change that depends on what was there can show it.
    run(&wrong, "INCR counter").await;
    if !leader_is_wrong {
        assert_eq!(cluster.run("INCR counter").await, "41");
    }
    let reason = wait_for("the wrong replica to be found", || wrong.wrong()).await;
    assert!(reason.contains("checksum"), "{reason}");
    assert!(cluster.replicas().iter().filter(|shard| shard.wrong().is_some()).count() <= 1);

    // It answers nothing, of itself or as a follower.
    assert!(run(&wrong, "GET counter").await.is_none());
    assert!(run(&wrong, "INCR counter").await.is_none());
    assert!(wrong.read_stale(&batch("GET counter"), &mut Text::default()).await.is_err());
    // The others go on, and have what they had.
    let reply = cluster.run("INCR counter").await;
    assert_eq!(reply, "42");
    assert_eq!(cluster.run("GET counter").await, "42");
    assert_ne!(cluster.leader(None).await.replica(), wrong.replica());
    agree_after(&cluster, &wrong, index).await;
    // A new one has taken its place, with what the others have.
    let replicas = wait_for("another replica in its place", || {
        let replicas = cluster.replicas();
        let all = replicas.len() == 3 && replicas.iter().all(|shard| shard.replica() != wrong.replica());
        (all && replicas.iter().all(|shard| shard.status().voters.len() == 3)).then_some(replicas)
    })
    .await;
    assert!(replicas.iter().all(|shard| shard.wrong().is_none()));
    let index = replicas.iter().map(|shard| shard.status().applied).max().unwrap();
    assert_eq!(cluster.run("INCR counter").await, "43");
    agree_after(&cluster, &wrong, index).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_follower_stops_and_is_replaced() {
    invariant_a_wrong_replica_stops_and_is_replaced(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_leader_steps_down_and_is_replaced() {
    invariant_a_wrong_replica_stops_and_is_replaced(true).await;
}

#[test]
fn an_entry_is_proposed_when_no_server_is_known_to_be_too_old_for_it() {
    let checks = Checks::default();
    let members = [1, 2, 3].map(|id| (id, Member { server: id, addr: String::new() }));
    let status = Status { members: Arc::new(members.into()), ..Status::default() };
    let soon = |level| checks.may_propose(&status, level, Duration::from_millis(100));
    let later = |level| checks.may_propose(&status, level, Duration::from_secs(60));
    checks.hear(ServerId(1), 4);
    checks.hear(ServerId(2), 4);
    assert_eq!(soon(1), Some(true), "every version knows it");
    assert_eq!(soon(4), None, "one has not been heard yet");
    assert_eq!(later(4), Some(true), "one is down, and the others go on");
    checks.hear(ServerId(3), 2);
    assert_eq!((soon(4), later(4)), (Some(false), Some(false)), "one is of an earlier version");
    assert_eq!(soon(2), Some(true));
    checks.hear(ServerId(3), 4);
    assert_eq!(soon(4), Some(true), "it was upgraded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_of_an_earlier_version_does_not_know_is_refused() {
    let cluster = Cluster::start(3).await;
    assert_eq!(cluster.run("SET key value").await, "OK");
    let leader = cluster.leader(None).await;
    let led = |node: &&Node| node.shard(ShardId(0)).is_some_and(|shard| shard.replica() == leader.replica());
    let node = cluster.nodes.iter().find(led).unwrap();
    let other = cluster.nodes.iter().find(|node| !led(node)).unwrap().server().server_id.unwrap();
    let large = format!("SET key {}", "x".repeat(CHUNK_BYTES + 1));
    for line in ["SETRANGE key 0 V", &large] {
        let submit = || {
            // As if it had just been said by a server of the first version.
            node.0.checks.hear(other, 1);
            leader.submit(batch(line), Box::<Text>::default())
        };
        assert!(matches!(submit().await, Err(SubmitError::NotSupported)), "{}", &line[..16]);
    }
    assert_eq!(cluster.run("GET key").await, "value");
    // Its true level is heard again at once.
    wait_for("the true level", || (node.0.checks.may_propose(&leader.status(), 4, PATIENCE)?).then_some(()))
        .await;
    assert_eq!(cluster.run("SETRANGE key 0 V").await, "5");
    assert_eq!(cluster.run(&large).await, "OK");
    assert_eq!(cluster.run("STRLEN key").await, (CHUNK_BYTES + 1).to_string());
    cluster.stop().await;
}
