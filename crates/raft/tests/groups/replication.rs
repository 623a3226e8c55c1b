//! What is proposed is applied: in order, once, everywhere.

use std::{sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use kvorum_raft::{ENTRY_BYTES, GroupId, HostError, NotLeased, ProposeError, SyncMode};

use crate::cluster::{Cluster, GROUP, PATIENCE, Recorder, eventually, local, members, put, text};

#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_apply_in_order() {
    let cluster = Cluster::with_group().await;
    let leader = cluster.server(cluster.leader().await);
    let mut proposals = Vec::new();
    for number in 0..500 {
        proposals.push(leader.group().propose(text(number), local(number)).await.unwrap());
    }
    let mut last = 0;
    for proposal in proposals {
        let position = proposal.await.unwrap();
        assert!(position.index > last);
        last = position.index;
    }
    cluster.agree_on(500).await;
    let expected: Vec<Bytes> = (0..500).map(text).collect();
    assert_eq!(leader.machine().contents(), expected);
    for server in cluster.servers.values() {
        let locals = server.machine().locals.load(Ordering::Relaxed);
        assert_eq!(locals, if server.id == leader.id { 500 } else { 0 }, "server {}", server.id);
    }
    let status = eventually("followers that match", || {
        let status = leader.status();
        (status.applied == last && status.matched.values().all(|matched| *matched == last)).then_some(status)
    })
    .await;
    assert_eq!(*status.members, members(&[1, 2, 3]));
    assert!(leader.group().member_ages().values().all(|age| *age < Duration::from_secs(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_refuses_and_names_the_leader() {
    let cluster = Cluster::with_group().await;
    let leader = cluster.leader().await;
    let follower = cluster.server(cluster.others(leader)[0]);
    eventually("the follower knows the leader", || (follower.status().leader == Some(leader)).then_some(()))
        .await;
    let outcome = follower.group().propose(text(0), None).await.unwrap().await;
    assert_eq!(outcome, Err(ProposeError::NotLeader { leader: Some(leader) }));
    assert_eq!(follower.group().lease(), Err(NotLeased::NotLeader));
    let read = follower.group().read_index().await;
    assert_eq!(read, Err(kvorum_raft::ReadError::NotLeader { leader: Some(leader) }));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_entry_passes_and_a_larger_one_is_refused() {
    let cluster = Cluster::with_group().await;
    let leader = cluster.server(cluster.leader().await);
    let refused = leader.group().propose(Bytes::from(vec![0; ENTRY_BYTES]), None).await;
    assert_eq!(refused.err(), Some(ProposeError::TooLarge { bytes: ENTRY_BYTES }));
    put(leader.group(), Bytes::from(vec![1; ENTRY_BYTES - 1])).await;
    put(leader.group(), text(1)).await;
    cluster.agree_on(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_on_one_host_are_independent() {
    let mut cluster = Cluster::new();
    let groups: Vec<GroupId> = (1..=6).map(GroupId).collect();
    for group in &groups {
        cluster.create(*group, group.0 % 3 + 1).await;
    }
    for group in &groups {
        let leader = eventually("a leader", || {
            let mut replicas = cluster.servers.values().map(|server| &server.groups[group]);
            replicas.find(|replica| replica.group.status().borrow().ready)
        })
        .await;
        if group.0 == 2 {
            leader.group.set_durability(SyncMode::Lazy);
        }
        for number in 0..50 {
            put(&leader.group, Bytes::from(format!("{group} {number}"))).await;
        }
    }
    for (server, group) in cluster.servers.values().flat_map(|server| groups.iter().map(move |g| (server, g)))
    {
        let replica = &server.groups[group];
        eventually("all applied", || (replica.machine.len() == 50).then_some(())).await;
        let expected: Vec<Bytes> = (0..50).map(|number| Bytes::from(format!("{group} {number}"))).collect();
        assert_eq!(replica.machine.contents(), expected);
    }
    let again = cluster.servers[&1].host.open(groups[0], 1, std::sync::Arc::new(Recorder::default())).await;
    assert!(matches!(again, Err(HostError::AlreadyOpen(group)) if group == groups[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_fails_or_panics_stops_its_replica_and_no_other() {
    for poison in ["fail", "panic"] {
        let mut cluster = Cluster::new();
        for id in 1..=3 {
            let machine = if id == 1 { Recorder::poisoned(poison) } else { Recorder::default() };
            cluster.servers.get_mut(&id).unwrap().open_with(GROUP, machine).await;
        }
        cluster.server(1).group().initialize(members(&[1, 2, 3])).await.unwrap();
        assert_eq!(cluster.leader().await, 1);
        let leader = cluster.server(1);
        put(leader.group(), text(0)).await;
        let outcome = leader.group().propose(Bytes::from_static(poison.as_bytes()), None).await.unwrap();
        let outcome = tokio::time::timeout(PATIENCE, outcome).await.expect("no outcome");
        assert_eq!(outcome, Err(ProposeError::Lost));
        let reason = eventually("the replica has failed", || leader.status().failed.clone()).await;
        assert!(reason.contains("told to"), "{reason}");
        let next = cluster.leader_among(&[2, 3]).await;
        put(cluster.server(next).group(), text(1)).await;
        assert_eq!(cluster.server(next).machine().contents(), [text(0), poison.into(), text(1)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_was_away_catches_up() {
    let cluster = Cluster::with_group().await;
    let leader = cluster.leader().await;
    let away = cluster.others(leader)[0];
    cluster.network.isolate(away);
    for number in 0..2000 {
        let last = cluster.server(leader).group().propose(text(number), None).await.unwrap();
        if number % 100 == 99 {
            last.await.unwrap();
        }
    }
    assert!(cluster.server(away).machine().len() < 2000);
    cluster.network.heal();
    cluster.agree_on(2000).await;
    assert_eq!(cluster.leader().await, leader, "a replica that was away unseated the leader");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sole_replica_leads_and_leases_to_itself() {
    let mut cluster = Cluster::new();
    let server = cluster.servers.get_mut(&1).unwrap();
    server.open(GROUP).await;
    assert!(!server.group().is_initialized().await);
    server.group().initialize(members(&[1])).await.unwrap();
    assert!(server.group().is_initialized().await);
    server.group().initialize(members(&[1])).await.unwrap();
    cluster.leader_among(&[1]).await;
    let server = cluster.server(1);
    put(server.group(), text(0)).await;
    eventually("a lease", || server.group().lease().ok()).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(server.group().lease(), Ok(()));
    server.group().read_index().await.unwrap();
}
