//! One run: a cluster is born, clients work, things go wrong, peace comes, and everything is held against the invariants.

use crate::client::{Client, Reply, Told, Town};
use crate::clock::MachineClock;
use crate::judge::{
    Judge, invariant_acknowledged_writes_readable, invariant_expired_never_returns,
    invariant_leases_never_overlap, invariant_no_effect_twice,
};
use crate::nemesis::{Nemesis, Restless};
use crate::operator::topology;
use crate::server::{Directory, Machine, base_port, host};
use crate::trace::{Trace, say};
use kvorum_cluster::{
    Create, Durability, MetaCommand, Mode, NewServer, ReplicaId, ServerId, ShardId, Tenure,
};
use kvorum_node::Call;
use kvorum_proto::admin as rpc;
use kvorum_raft::disk::MemoryDisk;
use kvorum_raft::meta_store::MemoryMetaStore;
use kvorum_raft::{LocalNetwork, Weather};
use kvorum_testkit::random::Random;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Clients of a run.
const CLIENTS: u32 = 6;
/// How long things go wrong.
const WAR: Duration = Duration::from_secs(12);
/// After that, everything works again within this time: longer than the longest wait of any part.
const RECOVERY: Duration = Duration::from_secs(8);
/// After that and the last write, all replicas are there and equal within this time.
const LEVELLING: Duration = Duration::from_secs(20);
/// After that, every server and replica that was on its way has arrived or is gone within this time.
const SETTLING: Duration = Duration::from_secs(60);
/// How often every process is looked at.
const SAMPLING: Duration = Duration::from_millis(3);

/// What came of a run.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) violation: Option<String>,
    pub(crate) summary: String,
    pub(crate) trace: String,
    pub(crate) digest: (u64, u64),
}

/// Runs one seed on a runtime of its own. The same seed gives the same run, in the same program.
pub(crate) fn run(seed: u64, keep_trace: bool) -> Report {
    runtime().block_on(simulate(seed, keep_trace))
}

/// A runtime of one thread, whose time moves when nothing else does.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime of one thread")
}

/// What kind of cluster a run has.
pub(crate) struct Shape {
    pub(crate) servers: u64,
    pub(crate) shards: u16,
    pub(crate) durability: Durability,
    pub(crate) restless: Restless,
    pub(crate) weather: Weather,
}

/// A cluster at work.
pub(crate) struct World {
    pub(crate) nemesis: Nemesis,
    pub(crate) judge: Arc<Judge>,
    pub(crate) town: Town,
    pub(crate) clients: Vec<JoinHandle<()>>,
    sampler: JoinHandle<()>,
}

impl World {
    /// Servers start, become a cluster, and clients begin.
    pub(crate) async fn begin(seed: u64, shape: Shape, trace: &Trace, random: &mut Random) -> World {
        let Shape { servers, shards, durability, restless, weather } = shape;
        let judge = Arc::new(Judge::new(durability));
        let spares = if restless == Restless::Not { 0 } else { 2 };
        let machines = servers + spares;
        // Longer than a restart, much shorter than an absence.
        let replace_after = Duration::from_secs(if restless == Restless::Away { 2 } else { 0 });
        let network = LocalNetwork::new();
        for machine in 1..=machines {
            network.name(&format!("{}:7098", host(machine)), machine);
        }
        network.set_weather(weather, random.next());
        let all = (1..=machines)
            .map(|id| {
                let booted = Duration::from_secs(100 + random.below(1_000_000));
                let drift_ppm = random.below(100_000).cast_signed() - 50_000;
                let machine = Machine {
                    id,
                    disk: MemoryDisk::default(),
                    store: Arc::new(MemoryMetaStore::default()),
                    clock: Arc::new(MachineClock::new(trace.origin(), booted, drift_ppm)),
                    process: None,
                    starts: 0,
                    boots: 1,
                    suspended: false,
                    replace_after,
                };
                (id, machine)
            })
            .collect();
        let mut nemesis =
            Nemesis::new(seed, all, network, Arc::clone(&judge), trace.clone(), (restless, servers));
        let town = Town {
            directory: nemesis.directory.clone(),
            servers: machines,
            suspended: nemesis.suspended.subscribe(),
            trace: trace.clone(),
            events: Arc::default(),
            books: Arc::default(),
            closing: Arc::clone(&nemesis.operator.closing),
        };
        for server in 1..=machines {
            nemesis.set_delays(server, 0, 3);
            nemesis.start(server).await;
        }
        judge.hold(found(&nemesis, servers, shards, durability, random).await);
        let sampler =
            tokio::spawn(sample(nemesis.directory.clone(), machines, Arc::clone(&judge), trace.clone()));
        let clients = (0..CLIENTS)
            .map(|number| tokio::spawn(Client::new(town.clone(), number, random.next()).work()))
            .collect();
        World { nemesis, judge, town, clients, sampler }
    }
}

async fn simulate(seed: u64, keep_trace: bool) -> Report {
    let trace = Trace::new(Instant::now(), keep_trace);
    let mut random = Random::new(seed);
    let servers = if random.below(4) == 0 { 5 } else { 3 };
    let shards = 1 + random.below(2) as u16;
    let durability = if random.below(4) == 0 { Durability::QuorumMemory } else { Durability::QuorumFsync };
    let restless = match random.below(9) {
        0 | 1 => Restless::Moving,
        2 | 4 if durability == Durability::QuorumFsync => Restless::Wiped,
        3 => Restless::Away,
        _ => Restless::Not,
    };
    let weather = Weather {
        shortest: Duration::from_micros(50 + random.below(500)),
        longest: Duration::from_micros(600 + random.below(15_000)),
        lost_permille: random.below(40),
        repeated_permille: random.below(40),
        broken_permille: random.below(4),
        garbled_permille: random.below(300),
    };
    let shape = Shape { servers, shards, durability, restless, weather };
    let World { mut nemesis, judge, town, clients, sampler } =
        World::begin(seed, shape, &trace, &mut random).await;
    nemesis.rage(Instant::now() + Duration::from_secs(3), false).await;
    nemesis.rage(Instant::now() + WAR, true).await;
    nemesis.make_peace().await;
    nemesis.rage(Instant::now() + RECOVERY, false).await;
    if restless != Restless::Not {
        let deadline = Instant::now() + SETTLING;
        while let Err(why) = has_settled(&nemesis) {
            if Instant::now() >= deadline || judge.violation().is_some() {
                judge.hold(Err(why));
                break;
            }
            nemesis.rage(Instant::now() + Duration::from_millis(500), false).await;
        }
    }
    town.closing.store(true, std::sync::atomic::Ordering::Relaxed);
    for client in clients {
        judge.hold(client.await.map_err(|error| format!("a client ended badly: {error}")));
    }
    if judge.violation().is_none() {
        judge.hold(audit(&town, &nemesis, shards, random.next()).await);
    }
    sampler.abort();
    let books = town.books.lock();
    let summary = format!(
        "{servers} servers, {shards} shards, {durability}, {restless:?}, {} operations ({} refused, {} unknown), {} entries, faults {:?}",
        books.operations,
        books.refused,
        books.unknown,
        judge.entries(),
        nemesis.faults
    );
    say!(trace, "{summary}");
    let digest = trace.digest();
    Report { violation: judge.violation(), summary, trace: trace.text(), digest }
}

/// Makes a cluster of the virgin servers.
async fn found(
    nemesis: &Nemesis,
    servers: u64,
    shards: u16,
    durability: Durability,
    random: &mut Random,
) -> Result<(), String> {
    let create = MetaCommand::Create(Create {
        cluster_id: "simulated".to_owned(),
        mode: Mode::Cluster,
        durability,
        databases: 1,
        shards,
        replicas: 3,
        hash_seed: [7; 16],
        id_seed: random.next(),
        servers: (1..=servers)
            .map(|id| NewServer { id: ServerId(id), host: host(id), base_port: base_port(), peer: None })
            .collect(),
    });
    let create = serde_json::to_vec(&create).map_err(|error| error.to_string())?;
    let members: Vec<_> = (1..=servers)
        .map(|id| rpc::MetaMember { replica: id, server: id, addr: format!("{}:7098", host(id)) })
        .collect();
    for server in 1..=servers {
        let request = rpc::AdoptRequest {
            cluster_id: "simulated".to_owned(),
            server_id: server,
            meta_members: members.clone(),
            create: create.clone().into(),
            joins: false,
        };
        let process = nemesis.directory.get(server).ok_or("a server did not start")?;
        let node = process.node.clone();
        let adopting = process.environment.spawn(async move { node.answer(Call::Adopt(request)).await });
        adopting.await.map_err(|error| error.to_string())??;
    }
    Ok(())
}

/// Looks at every process again and again.
async fn sample(directory: Directory, servers: u64, judge: Arc<Judge>, trace: Trace) {
    let mut seen: BTreeMap<(u64, ShardId), (u64, bool)> = BTreeMap::new();
    loop {
        tokio::time::sleep(SAMPLING).await;
        let mut holders: BTreeMap<ShardId, Vec<ReplicaId>> = BTreeMap::new();
        for server in 1..=servers {
            let Some(process) = directory.get(server) else { continue };
            let shards = process.node.shards().borrow().clone();
            for (id, shard) in shards {
                let status = shard.status();
                judge.sampled(id, shard.replica(), &status);
                let leads = shard.holds_lease();
                if leads {
                    holders.entry(id).or_default().push(shard.replica());
                }
                if seen.insert((server, id), (status.term, leads)) != Some((status.term, leads)) {
                    say!(
                        trace,
                        "server {server} {id:?}: {:?}, term {}, lease {leads}",
                        status.role,
                        status.term
                    );
                }
                // A machine that is about to lose power in the middle of a write fails in all its parts.
                if let Some(reason) = &status.failed
                    && process.node.wal_failure().is_none()
                    && process.disk.has_power()
                {
                    judge.hold(Err(format!("a replica goes on: server {server} {id:?}: {reason}")));
                }
            }
        }
        for (shard, holders) in holders {
            judge.hold(invariant_leases_never_overlap(shard, &holders));
        }
    }
}

/// After the war: everybody is there, everything acknowledged is there, all replicas are equal.
async fn audit(town: &Town, nemesis: &Nemesis, shards: u16, seed: u64) -> Result<(), String> {
    let mut reader = Client::new(town.clone(), CLIENTS, seed).well_informed();
    let keys: BTreeSet<u64> = town.books.lock().registers.iter().map(|operation| operation.key).collect();
    for key in keys {
        if !reader.read_this_register(key).await {
            return Err(format!("liveness after healing: register {key} cannot be read"));
        }
    }
    let counters: Vec<String> = town.books.lock().counters.keys().cloned().collect();
    for name in counters {
        let last = reader.read_counter(&name).await;
        let last = last.ok_or_else(|| format!("liveness after healing: counter {name} cannot be read"))?;
        let books = town.books.lock();
        let counted = &books.counters[&name];
        invariant_no_effect_twice(&name, &counted.acknowledged, counted.unknown, last)?;
    }
    {
        let books = town.books.lock();
        if let Some(wrong) = &books.wrong {
            return Err(wrong.clone());
        }
        invariant_acknowledged_writes_readable(&books.registers)?;
        for (key, seen) in &books.expiring {
            invariant_expired_never_returns(key, seen)?;
        }
    }
    // One write through each shard is the last entry that all replicas have to reach.
    for n in 0..u64::from(shards) * 8 {
        match reader.ask_for(&["SET", &format!("last{n}"), "x"]).await {
            Told::Reply(Reply::Ok) => {}
            other => return Err(format!("liveness after healing: a write was answered {other:?}")),
        }
    }
    // The network still loses a message now and then, and each costs a snapshot on its way seconds.
    let deadline = Instant::now() + LEVELLING;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        match replicas_are_equal(nemesis) {
            Err(_) if Instant::now() < deadline => {}
            outcome => return outcome,
        }
    }
}

/// Nobody is on the way any more.
fn has_settled(nemesis: &Nemesis) -> Result<(), String> {
    let topology =
        topology(&nemesis.directory, nemesis.machines.len() as u64).ok_or("nobody has a topology")?;
    for server in topology.servers.values() {
        if server.tenure != Tenure::Settled {
            return Err(format!("servers come to rest: server {} is {:?}", server.id, server.tenure));
        }
        if !server.up {
            return Err(format!("servers come to rest: server {} is down", server.id));
        }
    }
    for shard in &topology.shards {
        if shard.replicas.len() != 3 || shard.replicas.iter().any(|replica| !replica.stage.is_settled()) {
            return Err(format!("replicas come to rest: shard {}: {:?}", shard.id, shard.replicas));
        }
    }
    Ok(())
}

fn replicas_are_equal(nemesis: &Nemesis) -> Result<(), String> {
    let topology =
        topology(&nemesis.directory, nemesis.machines.len() as u64).ok_or("nobody has a topology")?;
    let mut states: BTreeMap<ShardId, BTreeMap<u64, (u64, u64)>> = BTreeMap::new();
    for machine in nemesis.machines.values() {
        let process =
            machine.process.as_ref().ok_or_else(|| format!("server {} is not there", machine.id))?;
        // Who was taken out may not know yet that what it has is worth nothing.
        let me = process.node.server().server_id.filter(|me| topology.server(*me).is_some());
        for (id, shard) in process.node.shards().borrow().iter().filter(|_| me.is_some()) {
            let checksum = shard.with_keyspace(kvorum_keyspace::Keyspace::checksum);
            states.entry(*id).or_default().insert(machine.id, (shard.status().applied, checksum));
        }
    }
    for (shard, states) in states {
        let mut all = states.values();
        let first = all.next();
        if all.any(|other| Some(other) != first) {
            return Err(format!("all replicas are equal in the end: {shard:?}: {states:?}"));
        }
        if states.len() != 3 {
            return Err(format!("all replicas are there in the end: {shard:?}: {states:?}"));
        }
    }
    Ok(())
}
