//! Members that come and go: replacing a replica by a new one while clients write, under partitions, over a change of leaders.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use kvorum_raft::{Group, Member, MembershipError, Role, disk::MemoryDisk};

use crate::cluster::{Cluster, GROUP, PATIENCE, Recorder, Server, eventually, members, put, text};

const STEP: Duration = Duration::from_secs(2);

/// What a slow machine may answer before it answers what is asked for: the step before has no outcome yet.
fn is_passing(error: &MembershipError) -> bool {
    matches!(error, MembershipError::InProgress | MembershipError::TimedOut)
}

impl Cluster {
    /// Starts one more server with an empty replica that knows nothing.
    async fn newcomer(&mut self, id: u64) {
        self.disks.insert(id, MemoryDisk::default());
        self.start(id).open(GROUP).await;
    }

    fn voters(&self, server: u64) -> BTreeSet<u64> {
        (*self.server(server).status().voters).clone()
    }
}

/// Asks again and again, of whoever leads, until the members are as asked. Returns the refusals met on the way.
async fn drive(cluster: &Cluster, among: &[u64], target: &BTreeMap<u64, Member>) -> Vec<MembershipError> {
    let begin = Instant::now();
    let mut met = Vec::new();
    loop {
        let leader = cluster.leader_among(among).await;
        match cluster.server(leader).group().set_members(target, STEP).await {
            Ok(()) => return met,
            Err(error) => met.push(error),
        }
        assert!(begin.elapsed() < PATIENCE, "{met:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Writes until told to stop; returns what was acknowledged.
fn write(groups: Vec<Group>, stop: Arc<AtomicBool>) -> tokio::task::JoinHandle<Vec<usize>> {
    tokio::spawn(async move {
        let mut acknowledged = Vec::new();
        for number in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            for group in &groups {
                if group.status().borrow().role != Role::Leader {
                    continue;
                }
                let Ok(proposal) = group.propose(text(number), None).await else { continue };
                if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(1), proposal).await {
                    acknowledged.push(number);
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        acknowledged
    })
}

fn lacks(machine: &Recorder, acknowledged: &[usize]) -> Vec<usize> {
    let there: BTreeSet<_> = machine.contents().into_iter().collect();
    acknowledged.iter().copied().filter(|number| !there.contains(&text(*number))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_replaced_while_clients_write() {
    let mut cluster = Cluster::with_group().await;
    let leader = cluster.leader().await;
    let gone = cluster.others(leader)[0];
    cluster.newcomer(4).await;
    let groups = cluster.servers.values().map(|server| server.group().clone()).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let writing = write(groups, stop.clone());
    cluster.stop(gone).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let left: Vec<u64> = cluster.others(gone);
    drive(&cluster, &left, &members(&left)).await;
    assert_eq!(cluster.voters(cluster.leader_among(&left).await), left.iter().copied().collect());
    stop.store(true, Ordering::Relaxed);
    let acknowledged = writing.await.unwrap();
    assert!(acknowledged.len() > 10, "{}", acknowledged.len());
    let last = cluster.server(cluster.leader_among(&left).await).status().last;
    for id in left {
        eventually("everything applied", || (cluster.server(id).status().applied >= last).then_some(()))
            .await;
        assert_eq!(lacks(cluster.server(id).machine(), &acknowledged), [0; 0], "server {id}");
        assert_ne!(cluster.server(id).status().role, Role::Learner);
    }
    // The new one counts: with another of the old ones away there is still a majority.
    let away = if leader == 3 { 1 } else { 3 };
    let away = if away == gone { 2 } else { away };
    cluster.network.isolate(away);
    let rest: Vec<u64> = cluster.servers.keys().copied().filter(|id| *id != away).collect();
    let leader = cluster.leader_among(&rest).await;
    put(cluster.server(leader).group(), text(1_000_000)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn asking_for_what_is_changes_nothing() {
    let cluster = Cluster::with_group().await;
    let leader = cluster.server(cluster.leader().await);
    let last = leader.status().last;
    leader.group().set_members(&members(&[1, 2, 3]), STEP).await.unwrap();
    assert_eq!(leader.status().last, last);
    assert_eq!(leader.group().set_members(&BTreeMap::new(), STEP).await, Err(MembershipError::NoMember));
    let follower = cluster.server(cluster.others(leader.id)[0]);
    assert_eq!(
        follower.group().set_members(&members(&[1, 2]), STEP).await,
        Err(MembershipError::NotLeader { leader: Some(leader.id) })
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_becomes_a_voter_before_it_has_the_log() {
    let cluster = Cluster::with_group().await;
    let leader = cluster.leader().await;
    let gone = cluster.others(leader)[0];
    let stays = cluster.others(leader)[1];
    let target = members(&[leader, stays, 4]);
    for number in 0..300 {
        put(cluster.server(leader).group(), text(number)).await;
    }
    // Replica 4 is nowhere: it stays a learner, and the group goes on with its three voters.
    for _ in 0..3 {
        let begin = Instant::now();
        let refused = loop {
            let refused = cluster.server(leader).group().set_members(&target, STEP).await;
            if !refused.as_ref().is_err_and(is_passing) || begin.elapsed() > PATIENCE {
                break refused;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert!(
            matches!(refused, Err(MembershipError::Lagging { replica: 4, behind: 300.. })),
            "{refused:?}"
        );
    }
    assert_eq!(cluster.voters(leader), BTreeSet::from([1, 2, 3]));
    assert!(cluster.server(leader).status().members.contains_key(&4));
    put(cluster.server(leader).group(), text(300)).await;
    // It is given up for another, and no trace of it is left.
    cluster.server(leader).group().set_members(&members(&[leader, gone, stays]), STEP).await.unwrap();
    assert!(!cluster.server(leader).status().members.contains_key(&4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_removed_hands_over_and_is_quiet() {
    let mut cluster = Cluster::with_group().await;
    let old = cluster.leader().await;
    cluster.newcomer(4).await;
    put(cluster.server(old).group(), text(0)).await;
    let rest: Vec<u64> = cluster.others(old);
    let target = members(&rest);
    let begin = Instant::now();
    while let Err(error) = cluster.server(old).group().set_members(&target, STEP).await {
        assert!(
            is_passing(&error)
                || matches!(error, MembershipError::Lagging { .. } | MembershipError::Silent { .. }),
            "{error:?}"
        );
        assert!(begin.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let new = cluster.leader_among(&rest).await;
    put(cluster.server(new).group(), text(1)).await;
    eventually("the removed leader to be a learner", || {
        (cluster.server(old).status().role == Role::Learner).then_some(())
    })
    .await;
    assert!(cluster.server(old).group().lease().is_err());
    // Nobody is disturbed by what it does from now on.
    let term = cluster.server(new).status().term;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((cluster.leader_among(&rest).await, cluster.server(new).status().term), (new, term));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_follower_disturbs_nobody() {
    let mut cluster = Cluster::with_group().await;
    let leader = cluster.leader().await;
    let gone = cluster.others(leader)[0];
    cluster.newcomer(4).await;
    // It does not hear that it is removed, and comes back when all is done.
    cluster.network.isolate(gone);
    let rest = cluster.others(gone);
    drive(&cluster, &rest, &members(&rest)).await;
    let leader = cluster.leader_among(&rest).await;
    let term = cluster.server(leader).status().term;
    cluster.network.heal();
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        assert_eq!(cluster.server(leader).status().role, Role::Leader);
        put(cluster.server(leader).group(), text(1)).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(cluster.server(leader).status().term, term, "a removed replica caused an election");
    assert!(cluster.server(gone).machine().len() == 0, "a removed replica still receives the log");
    // After a restart it is no different.
    cluster.stop(gone).await;
    cluster.start(gone).open(GROUP).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(cluster.server(leader).status().term, term, "a removed replica caused an election");
    assert_ne!(cluster.server(gone).status().role, Role::Leader);
}

/// Looks at all servers all the time: two leases at one moment are a violation.
fn watch_leases(
    groups: Vec<Group>,
    stop: Arc<AtomicBool>,
    overlaps: Arc<AtomicUsize>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            let first = groups.iter().position(|group| group.lease().is_ok());
            if let Some(first) = first {
                let second = groups.iter().enumerate().any(|(n, group)| n != first && group.lease().is_ok());
                // Only when the first still holds it after the second was seen did both hold one.
                if second && groups[first].lease().is_ok() {
                    overlaps.fetch_add(1, Ordering::Relaxed);
                }
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    })
}

/// The leader is cut off in the middle of a change, alone with the newcomer; the change goes on elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_under_a_partition_never_gives_two_leaders() {
    for round in 0..3u64 {
        let mut cluster = Cluster::with_group().await;
        let old = cluster.leader().await;
        let (gone, stays) = (cluster.others(old)[0], cluster.others(old)[1]);
        cluster.newcomer(4).await;
        put(cluster.server(old).group(), text(0)).await;
        let groups: Vec<Group> = cluster.servers.values().map(|server| server.group().clone()).collect();
        let (stop, overlaps) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let watching = watch_leases(groups.clone(), stop.clone(), overlaps.clone());
        let writing = write(groups, stop.clone());

        let target = members(&[old, stays, 4]);
        let group = cluster.server(old).group().clone();
        let goal = target.clone();
        let changing = tokio::spawn(async move {
            for _ in 0..10 {
                let _ = group.set_members(&goal, STEP).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        // At another moment of the change each time.
        tokio::time::sleep(Duration::from_millis(3 + 15 * round)).await;
        cluster.network.cut(old, gone);
        cluster.network.cut(old, stays);
        cluster.network.cut(4, gone);
        cluster.network.cut(4, stays);
        tokio::time::sleep(Duration::from_millis(2500)).await;
        cluster.network.heal();
        changing.await.unwrap();
        let left: Vec<u64> = target.keys().copied().collect();
        drive(&cluster, &[1, 2, 3, 4], &target).await;
        let leader = cluster.leader_among(&left).await;
        put(cluster.server(leader).group(), text(1_000_000)).await;
        stop.store(true, Ordering::Relaxed);
        watching.join().unwrap();
        let acknowledged = writing.await.unwrap();
        assert_eq!(overlaps.load(Ordering::Relaxed), 0, "two leases at one moment, round {round}");
        let last = cluster.server(cluster.leader_among(&left).await).status().last;
        for id in left {
            eventually("everything applied", || (cluster.server(id).status().applied >= last).then_some(()))
                .await;
            let missing = lacks(cluster.server(id).machine(), &acknowledged);
            assert_eq!(missing, [0; 0], "server {id} lost acknowledged entries, round {round}");
        }
    }
}

/// The leader dies with the joint membership in the log; the next one leaves it.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_change_goes_on_under_the_next_leader() {
    let mut cluster = Cluster::with_group().await;
    let old = cluster.leader().await;
    let (one, two) = (cluster.others(old)[0], cluster.others(old)[1]);
    cluster.newcomer(4).await;
    put(cluster.server(old).group(), text(0)).await;
    // Learners first, and while they catch up the leader is lost.
    let target = members(&[one, two, 4]);
    let _ = cluster.server(old).group().set_members(&target, STEP).await;
    cluster.stop(old).await;
    let met = drive(&cluster, &[one, two, 4], &target).await;
    println!("met {met:?}");
    let leader = cluster.leader_among(&[one, two, 4]).await;
    let status = cluster.server(leader).status();
    assert_eq!(*status.voters, BTreeSet::from([one, two, 4]));
    assert_eq!(status.members.len(), 3);
    // A majority of the new members is enough.
    let away = if leader == 4 { one } else { 4 };
    cluster.network.isolate(away);
    put(cluster.server(leader).group(), text(1)).await;
    cluster.network.heal();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_was_forgotten_stays_forgotten() {
    let mut cluster = Cluster::with_group().await;
    let leader = cluster.leader().await;
    for number in 0..20 {
        put(cluster.server(leader).group(), text(number)).await;
    }
    let gone = cluster.others(leader)[0];
    let refused = cluster.server(gone).host.forget(GROUP).await;
    assert!(matches!(refused, Err(kvorum_raft::HostError::AlreadyOpen(GROUP))), "it is open");
    cluster.server(gone).group().shutdown().await;
    cluster.server(gone).host.forget(GROUP).await.unwrap();
    // Nothing that was not synced survives; that it was forgotten does.
    let left = cluster.disks[&gone].power_cut(0);
    cluster.stop(gone).await;
    cluster.disks.insert(gone, left);
    cluster.network.isolate(gone);
    let replica = cluster.start(gone).open(GROUP).await;
    assert!(!replica.group.is_initialized().await);
    assert_eq!(replica.group.status().borrow().term, 0);
}

/// Every position in the log at which a leader can be lost during a change.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_survives_the_loss_of_its_leader_at_any_moment() {
    for pause_ms in [0, 1, 2, 4, 8, 16, 32, 64, 128] {
        let mut cluster = Cluster::with_group().await;
        let old = cluster.leader().await;
        let gone = cluster.others(old)[0];
        let stays = cluster.others(old)[1];
        cluster.newcomer(4).await;
        put(cluster.server(old).group(), text(0)).await;
        let target = members(&[old, stays, 4]);
        let (group, goal) = (cluster.server(old).group().clone(), target.clone());
        let changing = tokio::spawn(async move {
            while group.set_members(&goal, STEP).await.is_err() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        changing.abort();
        let disk = cluster.disks[&old].clone();
        let server: Server = cluster.servers.remove(&old).unwrap();
        cluster.network.isolate(old);
        server.stop().await;
        cluster.network.heal();
        // It comes back as who it was, with its log.
        cluster.disks.insert(old, disk);
        cluster.start(old).open(GROUP).await;
        drive(&cluster, &[1, 2, 3, 4], &target).await;
        cluster.stop(gone).await;
        let left: Vec<u64> = target.keys().copied().collect();
        let leader = cluster.leader_among(&left).await;
        put(cluster.server(leader).group(), text(1)).await;
        assert_eq!(*cluster.server(leader).status().voters, target.keys().copied().collect::<BTreeSet<_>>());
    }
}
