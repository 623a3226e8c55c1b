//! Whole servers in this process on paused time, whose machines lose power, come and go.

mod servers;

use crate::testing::{Text, batch};
use crate::{
    Answer, Call, Contact, HandoverError, Node, NodeConfig, Platform, Role, Shard, TimeSource, WalConfig,
};
use futures::FutureExt;
use futures::future::BoxFuture;
use kvorum_cluster::{Create, Durability, MetaCommand, Mode, NewServer, ReplicaId, ServerId, ShardId, Stage};
use kvorum_proto::admin as rpc;
use kvorum_raft::disk::MemoryDisk;
use kvorum_raft::meta_store::MemoryMetaStore;
use kvorum_raft::{Environment, LocalNetwork, TokioClock};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

const SHARD: ShardId = ShardId(0);

/// Everything here happens within this (simulated) time, or not at all.
const PATIENCE: Duration = Duration::from_secs(60);

/// Wall time and monotonic time are the runtime's.
struct Time(Instant);

impl TimeSource for Time {
    fn monotonic_us(&self) -> u64 {
        self.0.elapsed().as_micros() as u64
    }
    fn wall_ms(&self) -> u64 {
        1_790_000_000_000 + self.0.elapsed().as_millis() as u64
    }
}

type Nodes = Arc<Mutex<BTreeMap<u64, (Node, Environment)>>>;

struct LocalContact {
    from: u64,
    network: LocalNetwork,
    nodes: Nodes,
}

impl Contact for LocalContact {
    fn call(
        &self,
        to: ServerId,
        addr: &str,
        call: Call,
        patience: Duration,
    ) -> BoxFuture<'static, Result<Answer, String>> {
        let (from, network, nodes) = (self.from, self.network.clone(), Arc::clone(&self.nodes));
        // Whoever is at the address.
        let number = addr.strip_prefix("10.0.0.").and_then(|rest| rest.split(':').next()?.parse().ok());
        let to = number.unwrap_or(to.0);
        let exchange = async move {
            network.travel(from, to).await.map_err(|error| error.to_string())?;
            let (node, environment) = nodes.lock().get(&to).cloned().ok_or("nobody listens")?;
            let answer = environment.spawn(async move { node.answer(call).await });
            let answer = answer.await.map_err(|_| "the process has ended")??;
            network.travel(to, from).await.map_err(|error| error.to_string())?;
            Ok(answer)
        };
        timeout(patience, exchange).map(|answer| answer.unwrap_or_else(|_| Err("no answer".into()))).boxed()
    }
}

struct Machine {
    disk: MemoryDisk,
    store: Arc<MemoryMetaStore>,
    boots: u32,
    starts: u64,
}

struct Town {
    replace_after: Duration,
    network: LocalNetwork,
    nodes: Nodes,
    machines: BTreeMap<u64, Machine>,
    origin: Instant,
}

impl Town {
    /// Three servers and one shard with a replica on each.
    async fn new(durability: Durability) -> Town {
        Town::of(durability, 1).await
    }

    /// The same with more shards, in cluster mode.
    async fn of(durability: Durability, shards: u16) -> Town {
        let machines = (1..=3).map(|id| {
            let disk = MemoryDisk::default();
            (id, Machine { disk, store: Arc::default(), boots: 1, starts: 0 })
        });
        let mut town = Town {
            replace_after: Duration::ZERO,
            network: LocalNetwork::new(),
            nodes: Nodes::default(),
            machines: machines.collect(),
            origin: Instant::now(),
        };
        for server in 1..=3 {
            town.start(server).await;
        }
        let servers =
            (1..=3).map(|id| NewServer { id: ServerId(id), host: host(id), base_port: 7000, peer: None });
        let create = MetaCommand::Create(Create {
            cluster_id: "test".to_owned(),
            mode: if shards == 1 { Mode::Standalone } else { Mode::Cluster },
            durability,
            databases: 1,
            shards,
            replicas: 3,
            hash_seed: [7; 16],
            id_seed: 1,
            servers: servers.collect(),
        });
        let members =
            (1..=3).map(|id| rpc::MetaMember { replica: id, server: id, addr: format!("{}:7098", host(id)) });
        let members: Vec<_> = members.collect();
        for server in 1..=3 {
            let request = rpc::AdoptRequest {
                cluster_id: "test".to_owned(),
                server_id: server,
                meta_members: members.clone(),
                create: serde_json::to_vec(&create).unwrap().into(),
                joins: false,
            };
            let (node, environment) = town.process(server);
            environment.spawn(async move { node.answer(Call::Adopt(request)).await }).await.unwrap().unwrap();
        }
        town.leader(&[1, 2, 3]).await;
        town
    }

    async fn start(&mut self, server: u64) {
        self.network.name(&format!("{}:7098", host(server)), server);
        let machine = self.machines.get_mut(&server).unwrap();
        machine.starts += 1;
        let environment = Environment::simulated(Arc::new(TokioClock::new()), server << 32 | machine.starts);
        let platform = Platform {
            disk: Arc::new(machine.disk.clone()),
            store: machine.store.clone(),
            transport: Arc::new(self.network.transport(server)),
            contact: Arc::new(LocalContact {
                from: server,
                network: self.network.clone(),
                nodes: Arc::clone(&self.nodes),
            }),
            environment: environment.clone(),
            observer: None,
            time: Arc::new(Time(self.origin)),
            boot_id: format!("boot-{server}-{}", machine.boots),
        };
        let mut config = NodeConfig::new(PathBuf::from("/data"), &host(server), 7000);
        config.wal = WalConfig { segment_bytes: 64 << 10, reserve_bytes: 0, ..WalConfig::default() };
        config.write_timeout = Duration::from_secs(2);
        config.server_replace_after = self.replace_after;
        config.leader_balance = Some(Duration::from_secs(3));
        // Few, so that who comes back with nothing needs a snapshot of who took one.
        config.snapshots.keep_entries = 2;
        let node = environment.spawn(Node::start_with(config, platform)).await.unwrap().unwrap();
        self.nodes.lock().insert(server, (node, environment));
    }

    fn process(&self, server: u64) -> (Node, Environment) {
        self.nodes.lock()[&server].clone()
    }

    fn node(&self, server: u64) -> Node {
        self.process(server).0
    }

    fn stop_process(&mut self, server: u64) {
        if let Some((_, environment)) = self.nodes.lock().remove(&server) {
            environment.kill();
        }
        self.network.disconnect(server);
    }

    fn kill(&mut self, server: u64) {
        self.stop_process(server);
        let machine = self.machines.get_mut(&server).unwrap();
        machine.disk = machine.disk.kill();
    }

    /// Everything that was not synced is gone.
    fn lose_power(&mut self, server: u64) {
        self.stop_process(server);
        let machine = self.machines.get_mut(&server).unwrap();
        machine.disk = machine.disk.power_cut(0);
        machine.boots += 1;
    }

    /// Cuts a server off, also from those that do not run yet.
    fn isolate(&self, server: u64) {
        (1..=3).filter(|other| *other != server).for_each(|other| self.network.cut(server, other));
    }

    /// The replicas that run of the shard of a key.
    fn replicas_for(&self, key: usize) -> Vec<Shard> {
        let slot = kvorum_keyspace::slot_of(format!("key:{key}").as_bytes());
        let nodes = self.nodes.lock();
        let Some(view) = nodes.values().find_map(|(node, _)| node.view()) else { return Vec::new() };
        let Some(shard) = view.topology.shard_of_slot(slot) else { return Vec::new() };
        nodes.values().filter_map(|(node, _)| node.shard(shard.id)).collect()
    }

    fn shard(&self, server: u64) -> Option<Shard> {
        self.nodes.lock().get(&server).and_then(|(node, _)| node.shard(SHARD))
    }

    fn replica(&self, server: u64) -> Option<u64> {
        self.shard(server).map(|shard| shard.replica().0)
    }

    async fn leader(&self, among: &[u64]) -> u64 {
        eventually("a leader", || {
            among
                .iter()
                .copied()
                .find(|&server| self.shard(server).is_some_and(|shard| shard.serves_for_sure()))
        })
        .await
    }

    /// Writes a key; `true` when it was acknowledged.
    async fn set(&self, key: usize) -> bool {
        let serving = self.replicas_for(key).into_iter().find(Shard::serves);
        let Some(shard) = serving else { return false };
        let submitted = shard.submit(batch(&format!("SET key:{key} value:{key}")), Box::new(Text::default()));
        timeout(Duration::from_secs(3), submitted).await.is_ok_and(|outcome| outcome.is_ok())
    }

    /// Writes until it is acknowledged.
    async fn must_set(&self, key: usize) {
        let end = Instant::now() + PATIENCE;
        while !self.set(key).await {
            assert!(Instant::now() < end, "key {key} cannot be written");
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn get(&self, key: usize) -> String {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            for shard in self.replicas_for(key) {
                let mut out = Text::default();
                let batch = batch(&format!("GET key:{key}"));
                let read = shard.read(&batch, &mut out);
                if timeout(Duration::from_secs(2), read).await.is_ok_and(|outcome| outcome.is_ok()) {
                    return out.0;
                }
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("key {key} cannot be read");
    }

    async fn all_are_there(&self, keys: impl IntoIterator<Item = usize>) {
        for key in keys {
            assert_eq!(self.get(key).await, format!("value:{key}"), "an acknowledged write is lost");
        }
    }

    /// The replicas of the shard in the newest topology, with the server and the stage of each.
    fn placed(&self) -> BTreeMap<u64, (u64, Stage)> {
        let nodes = self.nodes.lock();
        let views = nodes.values().filter_map(|(node, _)| node.view());
        let view = views.max_by_key(|view| view.topology.version).unwrap();
        let replicas = &view.topology.shard(SHARD).unwrap().replicas;
        replicas.iter().map(|replica| (replica.id.0, (replica.server.0, replica.stage))).collect()
    }

    /// Waits until the replica of a server has an id above `above`, votes, has joined and is equal to the others; returns its id.
    async fn replaced(&self, server: u64, above: u64) -> u64 {
        let replica = eventually("a new replica that has joined", || {
            let replica = self.replica(server)?;
            let joined = self.placed().get(&replica) == Some(&(server, Stage::Member));
            (replica > above && joined).then_some(replica)
        })
        .await;
        eventually("a voter", || {
            let status = self.shard(server)?.status();
            (matches!(status.role, Role::Follower | Role::Leader) && status.voters.contains(&replica))
                .then_some(())
        })
        .await;
        let equal = || {
            let shards: Option<Vec<Shard>> = (1..=3).map(|server| self.shard(server)).collect();
            let states: BTreeSet<_> = shards?
                .iter()
                .map(|shard| {
                    (shard.status().applied, shard.with_keyspace(kvorum_keyspace::Keyspace::checksum))
                })
                .collect();
            (states.len() == 1).then_some(())
        };
        eventually("equal replicas", equal).await;
        assert_eq!(self.placed().len(), 3);
        replica
    }
}

fn host(server: u64) -> String {
    format!("10.0.0.{server}")
}

async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_lost_power_comes_back_under_a_new_id() {
    for leader_loses in [false, true] {
        let mut town = Town::new(Durability::QuorumMemory).await;
        let leader = town.leader(&[1, 2, 3]).await;
        let lost = if leader_loses { leader } else { leader % 3 + 1 };
        for key in 0..50 {
            town.must_set(key).await;
        }
        let old = town.replica(lost).unwrap();
        town.lose_power(lost);
        for key in 50..60 {
            town.must_set(key).await;
        }
        town.start(lost).await;
        // Until a membership in the log says that it votes, it is a learner that has voted for nobody.
        let mut seen = BTreeSet::new();
        let end = Instant::now() + PATIENCE;
        while town.placed().values().any(|(_, stage)| *stage != Stage::Founder)
            || town.replica(lost).is_none()
        {
            if let Some(shard) = town.shard(lost) {
                let status = shard.status();
                assert!(shard.replica().0 > old, "the log that is in doubt was opened");
                seen.insert(shard.replica().0);
                if !status.voters.contains(&shard.replica().0) {
                    assert_eq!(status.role, Role::Learner);
                    assert!(!shard.serves());
                } else if town
                    .placed()
                    .get(&shard.replica().0)
                    .is_some_and(|(_, stage)| *stage == Stage::Member)
                {
                    break;
                }
            }
            assert!(Instant::now() < end, "not replaced");
            sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(seen, BTreeSet::from([4]));
        assert_eq!(town.replaced(lost, 3).await, 4);
        town.all_are_there(0..60).await;
        // It counts: the shard goes on with it and one other.
        let other = (1..=3).find(|server| *server != lost).unwrap();
        town.kill(other);
        town.must_set(60).await;
        town.all_are_there(0..61).await;
    }
}

/// The write is on two of three, one of which forgets it; the one that never had it must not make a majority with that one.
#[tokio::test(start_paused = true)]
async fn who_lost_its_log_does_not_help_to_elect_who_never_had_it() {
    let mut town = Town::new(Durability::QuorumMemory).await;
    let leader = town.leader(&[1, 2, 3]).await;
    let (lost, behind) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    town.must_set(0).await;
    sleep(Duration::from_secs(3)).await;
    town.isolate(behind);
    for key in 1..20 {
        town.must_set(key).await;
    }
    town.lose_power(lost);
    town.network.heal();
    town.isolate(leader);
    town.start(lost).await;
    let end = Instant::now() + Duration::from_secs(15);
    while Instant::now() < end {
        for server in [lost, behind] {
            assert!(
                !town.shard(server).is_some_and(|shard| shard.serves()),
                "server {server} leads without the writes"
            );
        }
        sleep(Duration::from_millis(5)).await;
    }
    let doubtful = town.node(lost).unopened();
    assert_eq!(
        (doubtful.len(), doubtful[0].replica.0),
        (1, town.placed().iter().find(|(_, at)| at.0 == lost).map(|(id, _)| *id).unwrap())
    );
    assert!(doubtful[0].why.contains("not replaced yet"), "{doubtful:?}");
    town.network.heal();
    town.replaced(lost, 3).await;
    town.all_are_there(0..20).await;
}

#[tokio::test(start_paused = true)]
async fn a_majority_that_lost_power_waits_for_an_operator() {
    let mut town = Town::new(Durability::QuorumMemory).await;
    for key in 0..20 {
        town.must_set(key).await;
    }
    // Long enough for the log to be synced: what follows is what may be lost.
    sleep(Duration::from_secs(3)).await;
    let leader = town.leader(&[1, 2, 3]).await;
    let second = leader % 3 + 1;
    let before: Vec<_> = town.placed().into_keys().collect();
    town.lose_power(leader);
    town.lose_power(second);
    town.start(leader).await;
    town.start(second).await;
    let end = Instant::now() + Duration::from_secs(15);
    while Instant::now() < end {
        assert!((1..=3).all(|server| !town.shard(server).is_some_and(|shard| shard.serves())));
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(
        town.placed().into_keys().collect::<Vec<_>>(),
        before,
        "a log was given up that may be the best there is"
    );
    for server in [leader, second] {
        let described = town.node(server).describe();
        let [replica] = &described.replicas[..] else { panic!("{described:?}") };
        assert_eq!(replica.role, "distrusted");
        assert!(replica.failed.as_ref().unwrap().contains("no leader"), "{replica:?}");
    }
    // A restart changes nothing about it.
    town.kill(leader);
    town.start(leader).await;
    sleep(Duration::from_secs(3)).await;
    assert_eq!(town.node(leader).unopened().len(), 1);
    assert!(town.node(leader).trust_logs(Some(ShardId(9)), "ann").is_err());

    let (node, environment) = town.process(leader);
    let trusted = environment.spawn(async move { node.trust_logs(Some(SHARD), "ann") }).await.unwrap();
    assert_eq!(trusted, Ok(vec![SHARD]));
    // It is the one it was, and together with the one that kept its power it is a majority. The other gets a new id then.
    town.replaced(second, 3).await;
    assert!(before.contains(&town.replica(leader).unwrap()));
    town.all_are_there(0..20).await;
    assert!(town.node(leader).trust_logs(None, "ann").is_err(), "nothing is in doubt any more");
}

#[tokio::test(start_paused = true)]
async fn everybody_killed_or_stopped_loses_nothing_and_keeps_its_id() {
    for stopped in [false, true] {
        let mut town = Town::new(Durability::QuorumMemory).await;
        for key in 0..30 {
            town.must_set(key).await;
        }
        let before = town.placed();
        for server in 1..=3 {
            if stopped {
                let (node, environment) = town.process(server);
                environment.spawn(async move { node.shutdown().await }).await.unwrap();
                town.lose_power(server);
            } else {
                town.kill(server);
            }
        }
        for server in 1..=3 {
            town.start(server).await;
        }
        town.all_are_there(0..30).await;
        sleep(Duration::from_secs(3)).await;
        assert_eq!(town.placed(), before);
    }
}

#[tokio::test(start_paused = true)]
async fn with_synced_logs_nobody_is_replaced() {
    let mut town = Town::new(Durability::QuorumFsync).await;
    for key in 0..30 {
        town.must_set(key).await;
    }
    let before = town.placed();
    for server in 1..=3 {
        town.lose_power(server);
    }
    for server in 1..=3 {
        town.start(server).await;
    }
    town.all_are_there(0..30).await;
    assert_eq!(town.placed(), before);
}

/// Power fails again at any moment of the replacement, and the process is killed at any moment of it.
#[tokio::test(start_paused = true)]
async fn a_replacement_that_is_interrupted_goes_on() {
    for power in [true, false] {
        let mut town = Town::new(Durability::QuorumMemory).await;
        let lost = town.leader(&[1, 2, 3]).await % 3 + 1;
        let mut key = 0;
        let mut last = 3;
        for pause_ms in
            [1, 20, 100, 300, 900, 1010, 1020, 1040, 1060, 1080, 1100, 1150, 1200, 1300, 1500, 1700, 2000]
        {
            for _ in 0..5 {
                town.must_set(key).await;
                key += 1;
            }
            town.lose_power(lost);
            town.start(lost).await;
            sleep(Duration::from_millis(pause_ms)).await;
            if let Some(replica) = town.replica(lost) {
                assert!(replica >= last, "replica {replica} came back after {last}");
                last = replica;
            }
            if power {
                town.lose_power(lost);
            } else {
                town.kill(lost);
            }
            town.start(lost).await;
        }
        town.replaced(lost, 3).await;
        town.all_are_there(0..key).await;
    }
}

/// A server that cannot reach the others after a loss of power does not forget that its log is in doubt.
#[tokio::test(start_paused = true)]
async fn a_doubt_outlives_restarts_until_somebody_can_be_asked() {
    let mut town = Town::new(Durability::QuorumMemory).await;
    let lost = town.leader(&[1, 2, 3]).await % 3 + 1;
    town.must_set(0).await;
    town.lose_power(lost);
    town.isolate(lost);
    for _ in 0..3 {
        town.start(lost).await;
        sleep(Duration::from_secs(2)).await;
        assert_eq!(town.replica(lost), None);
        assert_eq!(town.node(lost).unopened().len(), 1);
        town.kill(lost);
    }
    town.start(lost).await;
    town.network.heal();
    town.replaced(lost, 3).await;
    town.all_are_there([0]).await;
}

/// The last replica that is asked to leave while others have not joined yet has to wait.
#[tokio::test(start_paused = true)]
async fn no_more_than_a_minority_is_replaced_at_a_time() {
    let town = Town::new(Durability::QuorumMemory).await;
    let leader = town.leader(&[1, 2, 3]).await;
    let (one, two) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    for key in 0..10 {
        town.must_set(key).await;
    }
    for server in [one, two] {
        let (node, environment) = town.process(server);
        let shard = town.shard(server).unwrap();
        environment
            .spawn(async move { node.request_replacement(&shard, "a test wants it".into()) })
            .await
            .unwrap();
    }
    let mut most = 0;
    let end = Instant::now() + PATIENCE;
    while town.placed().values().filter(|(_, stage)| *stage == Stage::Member).count() < 2 {
        most = most.max(town.placed().values().filter(|(_, stage)| *stage == Stage::Joining).count());
        assert!(Instant::now() < end, "{:?}", town.placed());
        sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(most, 1);
    assert_eq!(town.placed().into_keys().filter(|id| *id > 3).count(), 2);
    town.all_are_there(0..9).await;
    assert_ne!(ReplicaId(town.replica(one).unwrap()), ReplicaId(town.replica(two).unwrap()));
}

/// A replica that lost something of what it had, whatever the durability.
#[tokio::test(start_paused = true)]
async fn a_replica_whose_snapshot_is_damaged_is_replaced() {
    let mut town = Town::new(Durability::QuorumFsync).await;
    let lost = town.leader(&[1, 2, 3]).await % 3 + 1;
    for key in 0..20 {
        town.must_set(key).await;
    }
    for server in 1..=3 {
        let (shard, (_, environment)) = (town.shard(server).unwrap(), town.process(server));
        environment.spawn(async move { shard.group().snapshot().await }).await.unwrap().unwrap();
    }
    town.kill(lost);
    let dir = PathBuf::from("/data/snapshots/group-0000000000000001");
    let disk = town.machines[&lost].disk.clone();
    let files = kvorum_raft::disk::Disk::list(&disk, &dir).unwrap();
    assert!(!files.is_empty());
    for file in files {
        disk.update(&dir.join(file), |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        });
    }
    town.start(lost).await;
    town.replaced(lost, 3).await;
    town.all_are_there(0..20).await;
}

#[tokio::test(start_paused = true)]
async fn a_shard_is_handed_over_whoever_is_asked() {
    let town = Town::new(Durability::QuorumFsync).await;
    for key in 0..6 {
        town.must_set(key).await;
    }
    let hand_over = async |asked: u64, to: Option<u64>| {
        let node = town.node(asked);
        node.transfer(SHARD, to.map(ReplicaId)).await.map(|replica| replica.0)
    };
    for asked in [1, 2, 3] {
        let before = town.leader(&[1, 2, 3]).await;
        let replica = hand_over(asked, None).await.unwrap();
        let after = eventually("another leader", || {
            (1..=3).find(|&server| server != before && town.shard(server).is_some_and(|shard| shard.serves()))
        })
        .await;
        assert_eq!(town.replica(after), Some(replica));
        town.must_set(5 + asked as usize).await;
        // Everybody heard of it, and of each other.
        sleep(Duration::from_secs(2)).await;
    }
    let leader = town.leader(&[1, 2, 3]).await;
    let [heir, other] = [1, 2, 3].into_iter().filter(|server| *server != leader).collect::<Vec<_>>()[..]
    else {
        panic!("there are three servers")
    };
    assert_eq!(hand_over(other, town.replica(leader)).await, Ok(town.replica(leader).unwrap()), "so it is");
    assert_eq!(hand_over(other, town.replica(heir)).await, Ok(town.replica(heir).unwrap()));
    assert_eq!(hand_over(other, Some(999)).await, Err(HandoverError::NotReady));
    assert_eq!(
        town.node(heir).transfer(ShardId(7), None).await.map(|replica| replica.0),
        Err(HandoverError::NoSuchShard)
    );
    // What they saw of it. The last switch is to the heir, on each of them.
    sleep(Duration::from_secs(2)).await;
    for server in 1..=3 {
        let timeline = town.node(server).timeline();
        let switches: Vec<_> = timeline.iter().filter(|event| event.event == "+switch-master").collect();
        assert!(switches.len() >= 4, "server {server}: {switches:?}");
        let last = switches.last().unwrap();
        assert_eq!(
            last.payload,
            format!("mymaster {} 7000 {} 7000", host(leader), host(heir)),
            "server {server}"
        );
        assert!(!timeline.iter().any(|event| event.event.ends_with("down")), "server {server}: {timeline:?}");
    }
    // Nobody is there to take over; and then nobody leads any more.
    town.isolate(heir);
    sleep(Duration::from_secs(1)).await;
    let left = hand_over(heir, None).await;
    assert!(matches!(left, Err(HandoverError::NoHeir | HandoverError::NoLeader)), "{left:?}");
    town.all_are_there(0..9).await;
}
