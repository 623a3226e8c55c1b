//! Elections: none while nobody is gone, and a prompt one when somebody is.
//!
//! A cluster works under one kind of trouble in which no leader is lost, and its leaders must stay. Then leaders are killed, on a quiet
//! machine, and it counts how long a shard is without one. Simulated time is exact, so these are bars that a test can hold.

use crate::nemesis::Restless;
use crate::run::{Shape, World, runtime};
use crate::trace::{Trace, say};
use kvorum_cluster::{Durability, ShardId};
use kvorum_raft::Weather;
use kvorum_testkit::random::Random;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// Leaders are in their places after this.
const SETTLED: Duration = Duration::from_secs(8);
/// How long trouble lasts.
const TROUBLED: Duration = Duration::from_secs(20);
/// Leaders killed in a run.
const KILLS: usize = 4;
const SHARDS: u16 = 3;
/// How soon another leads that holds a lease: the lease (500 ms) on a clock that is five percent slow, the turn of one who is second (75 ms),
/// its votes, its first entry and the replies to it, each with a disk that takes up to three milliseconds. openraft's own timer could not
/// stand before 650 ms.
const RECOVERED: Duration = Duration::from_millis(640);

/// What a cluster has to bear without an election.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Trouble {
    /// Nothing.
    None,
    /// Every operation of every disk takes 300 ms.
    Disks,
    /// One server after the other is not heard for up to 250 ms: its machine is busy with something else.
    Stutter,
    /// Every message takes up to 60 ms, and one of twenty is lost.
    Network,
}

/// All of them.
pub(crate) const TROUBLES: [Trouble; 4] = [Trouble::None, Trouble::Disks, Trouble::Stutter, Trouble::Network];

/// One cluster under one trouble; how long its shards were without a leader after each kill, when there was no trouble.
pub(crate) fn run(seed: u64, trouble: Trouble) -> Result<Vec<Duration>, String> {
    runtime().block_on(bear(seed, trouble))
}

async fn bear(seed: u64, trouble: Trouble) -> Result<Vec<Duration>, String> {
    let trace = Trace::new(Instant::now(), false);
    let mut random = Random::new(seed);
    let mut weather = Weather {
        shortest: Duration::from_micros(50),
        longest: Duration::from_millis(1),
        ..Weather::default()
    };
    let shape = Shape {
        servers: 3,
        shards: SHARDS,
        durability: Durability::QuorumFsync,
        restless: Restless::Not,
        weather,
    };
    let mut world = World::begin(seed, shape, &trace, &mut random).await;
    tokio::time::sleep(SETTLED).await;
    let before = leaders(&world);
    if before.len() != usize::from(SHARDS) {
        return Err(format!("leaders after {SETTLED:?}: {before:?}"));
    }
    match trouble {
        Trouble::Disks => (1..=3).for_each(|server| world.nemesis.set_delays(server, 300, 300)),
        Trouble::Network => {
            weather.longest = Duration::from_millis(60);
            weather.lost_permille = 50;
            world.nemesis.network.set_weather(weather, random.next());
        }
        Trouble::None | Trouble::Stutter => {}
    }
    let end = Instant::now() + TROUBLED;
    while Instant::now() < end {
        if trouble == Trouble::Stutter {
            let server = random.below(3) + 1;
            world.nemesis.suspend(server);
            tokio::time::sleep(random.between(Duration::ZERO, Duration::from_millis(250))).await;
            world.nemesis.resume(server);
        }
        tokio::time::sleep(random.between(Duration::from_millis(50), Duration::from_millis(150))).await;
    }
    // Those that were not heard just now will be.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let after = leaders(&world);
    if after != before {
        return Err(format!("leaders and their terms before {trouble:?}: {before:?}, after it: {after:?}"));
    }
    let mut gaps = Vec::new();
    for _ in 0..if trouble == Trouble::None { KILLS } else { 0 } {
        gaps.push(kill_a_leader(&mut world, &trace).await?);
    }
    world.town.closing.store(true, Ordering::Relaxed);
    for client in world.clients {
        client.await.map_err(|error| error.to_string())?;
    }
    world.judge.violation().map_or(Ok(gaps), Err)
}

async fn kill_a_leader(world: &mut World, trace: &Trace) -> Result<Duration, String> {
    let victim = world.nemesis.leader();
    say!(trace, "{victim} is killed");
    world.nemesis.kill(victim);
    let killed = Instant::now();
    while leaders(world).len() < usize::from(SHARDS) {
        if killed.elapsed() > RECOVERED {
            return Err(format!(
                "no new leaders {RECOVERED:?} after {victim} was killed: {:?}",
                leaders(world)
            ));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let gap = killed.elapsed();
    world.nemesis.start(victim).await;
    tokio::time::sleep(SETTLED).await;
    Ok(gap)
}

/// The server that leads each shard and holds a lease, and its term.
fn leaders(world: &World) -> BTreeMap<ShardId, (u64, u64)> {
    let mut leaders = BTreeMap::new();
    for server in 1..=3 {
        let Some(process) = world.town.directory.get(server) else { continue };
        for (id, shard) in process.node.shards().borrow().iter().filter(|(_, shard)| shard.holds_lease()) {
            leaders.insert(*id, (server, shard.status().term));
        }
    }
    leaders
}
