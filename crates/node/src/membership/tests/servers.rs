//! Servers that come and go.

use super::*;
use crate::checks::Checks;
use kvorum_cluster::{BASE_LEVEL, FEATURE_LEVEL, SERVERS_LEVEL, Tenure, Topology};
use kvorum_proto::admin::change_request::Change;

impl Town {
    /// A machine that was never used, with a virgin server.
    async fn add_machine(&mut self, number: u64) {
        let machine = Machine { disk: MemoryDisk::default(), store: Arc::default(), boots: 1, starts: 0 };
        self.machines.insert(number, machine);
        self.start(number).await;
    }

    /// Everything that a machine had is gone, and its server starts again.
    async fn wipe(&mut self, number: u64) {
        self.stop_process(number);
        let starts = self.machines[&number].starts;
        let machine = Machine { disk: MemoryDisk::default(), store: Arc::default(), boots: 1, starts };
        self.machines.insert(number, machine);
        self.start(number).await;
    }

    async fn change(&self, asked: u64, change: Change) -> Result<u64, String> {
        let (node, environment) = self.process(asked);
        let asking = environment.spawn(async move { node.change(change).await });
        asking.await.unwrap().map(|reply| reply.server)
    }

    /// What `kvorum cluster join` does; returns the id that the machine's server is given.
    async fn join(&self, asked: u64, number: u64, rebalance: bool) -> Result<u64, String> {
        let described = self.node(number).describe();
        let add = rpc::AddServer {
            server_hex: described.server_hex,
            host: described.host,
            base_port: described.base_port.into(),
            peer: String::new(),
            rebalance,
        };
        let server_id = self.change(asked, Change::Add(add)).await?;
        let adopt =
            rpc::AdoptRequest { cluster_id: "test".to_owned(), server_id, joins: true, ..Default::default() };
        let (node, environment) = self.process(number);
        environment.spawn(async move { node.answer(Call::Adopt(adopt)).await }).await.unwrap()?;
        Ok(server_id)
    }

    async fn leave(&self, asked: u64, server: u64, fewer_replicas: bool) -> Result<u64, String> {
        self.change(asked, Change::Leave(rpc::Leave { server, fewer_replicas })).await
    }

    async fn remove(&self, asked: u64, server: u64) -> Result<u64, String> {
        self.change(asked, Change::Remove(rpc::Remove { server })).await
    }

    /// The newest topology that anybody knows.
    fn topology(&self) -> Arc<Topology> {
        let nodes = self.nodes.lock();
        let topologies = nodes.values().filter_map(|(node, _)| Some(Arc::clone(&node.view()?.topology)));
        topologies.max_by_key(|topology| topology.version).unwrap()
    }

    /// Waits until the topology is as it shall be: `servers` are all there is, each shard has `replicas`, nobody is on the way, and the servers
    /// have what it says and nothing else.
    async fn settled(&self, servers: &[u64], replicas: usize) {
        let end = Instant::now() + 3 * PATIENCE;
        while let Some(why) = self.unsettled(servers, replicas) {
            assert!(Instant::now() < end, "{why}: {:?}", self.topology().layout());
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn unsettled(&self, servers: &[u64], replicas: usize) -> Option<String> {
        let topology = self.topology();
        if !topology.servers.keys().map(|server| server.0).eq(servers.iter().copied()) {
            return Some(format!("not the servers {servers:?}"));
        }
        if topology.servers.values().any(|server| server.tenure == Tenure::Settling) {
            return Some("a server still settles in".to_owned());
        }
        for shard in &topology.shards {
            if shard.replicas.len() != replicas
                || shard.replicas.iter().any(|replica| !replica.stage.is_settled())
            {
                return Some(format!("shard {} is on its way", shard.id));
            }
            let ids: BTreeSet<u64> = shard.replicas.iter().map(|replica| replica.id.0).collect();
            for (node, _) in self.nodes.lock().values() {
                let Some(me) = node.server().server_id else { continue };
                let here = node.shard(shard.id).map(|open| open.replica());
                if here != shard.replica_on(me).map(|replica| replica.id) && topology.server(me).is_some() {
                    return Some(format!("server {me} has replica {here:?} of shard {}", shard.id));
                }
                let Some(open) = node.shard(shard.id).filter(|_| topology.server(me).is_some()) else {
                    continue;
                };
                let status = open.status();
                if *status.voters != ids || status.members.len() != ids.len() {
                    return Some(format!(
                        "shard {} has voters {:?} instead of {ids:?}",
                        shard.id, status.voters
                    ));
                }
            }
        }
        let states: BTreeSet<_> = self
            .nodes
            .lock()
            .values()
            .filter(|(node, _)| node.server().server_id.is_some_and(|me| topology.server(me).is_some()))
            .filter_map(|(node, _)| node.shard(SHARD))
            .map(|shard| (shard.status().applied, shard.with_keyspace(kvorum_keyspace::Keyspace::checksum)))
            .collect();
        (states.len() != 1).then(|| format!("replicas differ: {states:?}"))
    }

    /// Who votes in the meta group, as its leader has it.
    fn meta_voters(&self) -> BTreeSet<u64> {
        let nodes = self.nodes.lock();
        let groups = nodes.values().filter_map(|(node, _)| node.meta_group());
        let mut led = groups.filter(|group| group.status().borrow().ready);
        led.next().map(|group| (*group.status().borrow().voters).clone()).unwrap_or_default()
    }

    async fn meta_is(&self, voters: &[u64]) {
        let wanted = voters.iter().copied().collect::<BTreeSet<_>>();
        eventually("the voters of the meta group", || (self.meta_voters() == wanted).then_some(())).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_joins_gets_its_share_and_another_leaves() {
    let mut town = Town::of(Durability::QuorumFsync, 3).await;
    for key in 0..30 {
        town.must_set(key).await;
    }
    town.add_machine(4).await;
    assert!(town.topology().server(ServerId(4)).is_none());
    // Whoever is asked asks the right one; asking twice gives the same.
    for asked in [1, 2, 3] {
        assert_eq!(town.join(asked, 4, true).await, Ok(4));
    }
    town.settled(&[1, 2, 3, 4], 3).await;
    assert_eq!(town.topology().replicas_on(ServerId(4)).count(), 2);
    town.meta_is(&[1, 2, 3]).await;
    town.all_are_there(0..30).await;

    for server in [0, 9] {
        assert!(town.leave(1, server, false).await.unwrap_err().contains("there is no server"));
    }
    assert_eq!(town.leave(2, 1, false).await, Ok(0));
    town.settled(&[2, 3, 4], 3).await;
    town.meta_is(&[2, 3, 4]).await;
    town.all_are_there(0..30).await;
    // It has nothing any more, and is nobody, also after a restart.
    town.kill(1);
    town.start(1).await;
    sleep(Duration::from_secs(3)).await;
    assert!(town.shard(1).is_none());
    for key in 30..40 {
        town.must_set(key).await;
    }
    town.all_are_there(0..40).await;
    assert!(town.leave(2, 2, false).await.unwrap_err().contains("every other server has one"));
    assert_eq!(town.leave(2, 2, true).await, Ok(0));
    town.settled(&[3, 4], 2).await;
    town.all_are_there(0..40).await;
}

/// The leader of everything leaves, the leader of the meta group among it; nobody that writes is refused for long.
#[tokio::test(start_paused = true)]
async fn each_server_may_leave_whatever_it_leads() {
    let mut town = Town::new(Durability::QuorumFsync).await;
    town.must_set(0).await;
    let mut servers = vec![1, 2, 3];
    for next in 4..8 {
        town.add_machine(next).await;
        assert_eq!(town.join(servers[0], next, false).await, Ok(next));
        servers.push(next);
        town.settled(&servers, 3).await;
        let leader = town.leader(&servers).await;
        let asked = servers.iter().copied().find(|server| ![next, leader].contains(server)).unwrap();
        assert_eq!(town.leave(asked, leader, false).await, Ok(0));
        servers.retain(|server| *server != leader);
        town.settled(&servers, 3).await;
        town.kill(leader);
        town.must_set(next as usize).await;
    }
    town.all_are_there([0, 4, 5, 6, 7]).await;
}

/// Whoever dies at whatever moment of it.
#[tokio::test(start_paused = true)]
async fn joining_and_leaving_go_on_after_any_crash() {
    let mut random = 7u64;
    let mut below = |n: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % n
    };
    for durability in [Durability::QuorumFsync, Durability::QuorumMemory] {
        let mut town = Town::new(durability).await;
        let mut key = 0;
        let mut servers = vec![1, 2, 3];
        for next in 4..7 {
            town.add_machine(next).await;
            let id = loop {
                match town.join(servers[below(3) as usize], next, true).await {
                    Ok(id) => break id,
                    Err(_) => sleep(Duration::from_millis(100)).await,
                }
            };
            assert_eq!(id, next);
            servers.push(next);
            let leaving = servers[0];
            let mut asked = false;
            for _ in 0..12 {
                asked = asked || town.leave(servers[1], leaving, false).await.is_ok();
                town.must_set(key).await;
                key += 1;
                sleep(Duration::from_millis(below(700))).await;
                let victim = servers[below(4) as usize];
                town.kill(victim);
                sleep(Duration::from_millis(below(900))).await;
                town.start(victim).await;
            }
            while !asked {
                asked = town.leave(servers[1], leaving, false).await.is_ok();
                sleep(Duration::from_millis(100)).await;
            }
            servers.remove(0);
            town.settled(&servers, 3).await;
        }
        town.all_are_there(0..key).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_gone_for_good_is_removed() {
    let mut town = Town::new(Durability::QuorumFsync).await;
    for key in 0..20 {
        town.must_set(key).await;
    }
    town.add_machine(4).await;
    assert_eq!(town.join(1, 4, false).await, Ok(4));
    town.settled(&[1, 2, 3, 4], 3).await;
    assert!(town.remove(1, 2).await.unwrap_err().contains("is up"));
    town.kill(2);
    eventually("server 2 is down", || (!town.topology().server(ServerId(2)).unwrap().up).then_some(())).await;
    assert!(town.leave(1, 2, false).await.unwrap_err().contains("is down"));
    assert_eq!(town.remove(1, 2).await, Ok(0));
    town.settled(&[1, 3, 4], 3).await;
    town.all_are_there(0..20).await;
    // It was only asleep: it stays outside.
    town.start(2).await;
    sleep(Duration::from_secs(5)).await;
    town.settled(&[1, 3, 4], 3).await;
    assert!(!town.shard(2).is_some_and(|shard| shard.serves()));
    // Two more are too many: with one of three there is no majority.
    town.kill(2);
    town.kill(3);
    town.kill(4);
    sleep(Duration::from_secs(4)).await;
    assert!(town.remove(1, 3).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stays_away_is_made_up_for_and_takes_part_again() {
    let mut town = Town::new(Durability::QuorumFsync).await;
    town.replace_after = Duration::from_secs(30);
    for server in 1..=3 {
        town.kill(server);
        town.start(server).await;
    }
    town.leader(&[1, 2, 3]).await;
    for key in 0..20 {
        town.must_set(key).await;
    }
    town.add_machine(4).await;
    eventually_joined(&town, 4).await;
    town.settled(&[1, 2, 3, 4], 3).await;
    let away = town.leader(&[1, 2, 3, 4]).await;
    town.kill(away);
    // Not at once.
    sleep(Duration::from_secs(20)).await;
    assert!(town.placed().values().any(|(server, _)| *server == away));
    town.must_set(20).await;
    eventually("its replica is elsewhere", || {
        town.placed().values().all(|(server, _)| *server != away).then_some(())
    })
    .await;
    town.all_are_there(0..21).await;
    assert_eq!(town.topology().server(ServerId(away)).unwrap().tenure, Tenure::Away);
    // Who was taken away from is back: it forgets what it had.
    town.start(away).await;
    eventually("it is back", || {
        (town.topology().server(ServerId(away)).unwrap().tenure == Tenure::Settled).then_some(())
    })
    .await;
    town.settled(&[1, 2, 3, 4], 3).await;
    assert!(town.shard(away).is_none());
    // And makes up for the next one.
    let next = town.leader(&[1, 2, 3, 4]).await;
    town.kill(next);
    eventually("the next one's replica is elsewhere", || {
        let placed = town.placed();
        let elsewhere = placed.values().all(|(server, _)| *server != next);
        (elsewhere && placed.values().all(|(_, stage)| stage.is_settled())).then_some(())
    })
    .await;
    assert!(town.replica(away).is_some());
    town.all_are_there(0..21).await;
}

async fn eventually_joined(town: &Town, number: u64) {
    let end = Instant::now() + PATIENCE;
    while let Err(why) = town.join(1, number, false).await {
        assert!(Instant::now() < end, "{why}");
        sleep(Duration::from_millis(100)).await;
    }
}

/// Its memory is gone, so is what it promised: it is a stranger, whatever its address.
#[tokio::test(start_paused = true)]
async fn a_wiped_server_is_another_server() {
    let mut town = Town::new(Durability::QuorumFsync).await;
    for key in 0..20 {
        town.must_set(key).await;
    }
    let wiped = town.leader(&[1, 2, 3]).await % 3 + 1;
    town.wipe(wiped).await;
    // The others speak to it as to the one it was.
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        assert!(town.shard(wiped).is_none() && town.node(wiped).server().server_id.is_none());
        sleep(Duration::from_millis(20)).await;
    }
    // With its vote there would be a majority.
    let other = (1..=3).find(|server| *server != wiped).unwrap();
    town.kill(other);
    sleep(Duration::from_secs(5)).await;
    assert!(!town.set(99).await, "a server without memory made a majority");
    town.start(other).await;
    town.must_set(20).await;
    let refused = town.join(other, wiped, true).await.unwrap_err();
    assert!(refused.contains("lost its data directory"), "{refused}");
    eventually("the old one is down", || {
        (!town.topology().server(ServerId(wiped)).unwrap().up).then_some(())
    })
    .await;
    assert_eq!(town.remove(other, wiped).await, Ok(0));
    let servers: Vec<u64> = (1..=3).filter(|server| *server != wiped).collect();
    town.settled(&servers, 2).await;
    assert_eq!(town.join(other, wiped, true).await, Ok(4));
    assert!(town.change(other, Change::Want(rpc::WantReplicas { replicas: 3 })).await.is_ok());
    let servers: Vec<u64> = servers.into_iter().chain([4]).collect();
    town.settled(&servers, 3).await;
    town.all_are_there(0..21).await;
}

/// The preferred replica leads again, once all is well, and the operator says which that is.
#[tokio::test(start_paused = true)]
async fn leaderships_return_to_the_preferred_leaders_when_all_is_well() {
    let mut town = Town::of(Durability::QuorumFsync, 3).await;
    let in_place = |town: &Town| {
        let topology = town.topology();
        topology.shards.iter().all(|shard| {
            let node = town.nodes.lock().get(&shard.replicas[0].server.0).map(|(node, _)| node.clone());
            node.and_then(|node| node.shard(shard.id)).is_some_and(|shard| shard.serves_for_sure())
        })
    };
    eventually("everybody in place", || in_place(&town).then_some(())).await;
    let lead_elsewhere = |town: &Town| !in_place(town);
    town.kill(2);
    sleep(Duration::from_secs(10)).await;
    assert!(lead_elsewhere(&town), "nothing returns while a server is down");
    town.start(2).await;
    eventually("everybody in place again", || in_place(&town).then_some(())).await;

    let shard = town.topology().shards[0].clone();
    let other = shard.replicas[2].clone();
    let prefer = Change::Prefer(rpc::Prefer { shard: 0, replica: other.id.0 });
    assert!(town.change(1, prefer).await.is_ok());
    assert_eq!(town.topology().shards[0].replicas[0].id, other.id);
    eventually("the new one leads", || in_place(&town).then_some(())).await;
    assert!(town.node(other.server.0).shard(ShardId(0)).unwrap().serves());

    // A handover by hand is meant to last.
    let asked = town.node(other.server.0).transfer(ShardId(0), Some(shard.replicas[1].id)).await;
    assert_eq!(asked, Ok(shard.replicas[1].id));
    eventually("it is preferred", || {
        (town.topology().shards[0].replicas[0].id == shard.replicas[1].id).then_some(())
    })
    .await;
    sleep(Duration::from_secs(30)).await;
    assert!(in_place(&town), "it went back");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_proposed_that_a_server_of_an_earlier_version_would_stop_at() {
    let town = Town::new(Durability::QuorumFsync).await;
    let leads_meta = |server: &u64| {
        let group = town.node(*server).meta_group();
        group.is_some_and(|group| group.status().borrow().ready)
    };
    let leader = (1..=3).find(leads_meta).unwrap();
    let other = leader % 3 + 1;
    let before = town.topology();
    while !town.node(leader).0.checks.all_told(&before) {
        sleep(Duration::from_millis(10)).await;
    }
    let want = |replicas, level: Option<u16>| {
        let (node, environment) = town.process(leader);
        let request = rpc::ChangeRequest {
            cluster_id: "test".to_owned(),
            from_server: leader,
            change: Some(Change::Want(rpc::WantReplicas { replicas })),
        };
        environment.spawn(async move {
            // As if it had just been said.
            level.into_iter().for_each(|level| node.0.checks.hear(ServerId(other), level));
            node.answer_change(request).await
        })
    };
    for level in [0, SERVERS_LEVEL - 1] {
        let refused = want(2, Some(level)).await.unwrap().unwrap_err();
        assert_eq!(
            refused,
            format!(
                "server {other} at 10.0.0.{other}:7000 is of an earlier version, which would stop at this: upgrade it first"
            )
        );
    }
    assert_eq!(town.topology().version, before.version);
    // Who has just started and was told nothing yet waits for those that are up, and for nobody else.
    let nothing = Checks::default();
    let down = (1..=3).fold(Topology::clone(&before), |topology, server| {
        let down = MetaCommand::ServerUp { server: ServerId(server), up: false };
        down.applied_to(&topology).unwrap().unwrap()
    });
    let told = nothing.too_early_for(&before, SERVERS_LEVEL).unwrap();
    assert!(told.ends_with("has not said yet of which version it is: try again"), "{told}");
    assert_eq!(nothing.too_early_for(&down, SERVERS_LEVEL), None);
    assert_eq!(nothing.too_early_for(&before, BASE_LEVEL), None, "every version knows it");
    want(2, Some(FEATURE_LEVEL)).await.unwrap().unwrap();
    assert!(town.topology().version > before.version);
}
