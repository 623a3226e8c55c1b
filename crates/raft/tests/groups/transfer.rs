//! Handing the leadership over.

use std::sync::atomic::Ordering;
use std::time::Duration;

use kvorum_raft::{NotLeased, ProposeError, TransferError};

use crate::cluster::{Cluster, eventually, put, text};

#[tokio::test(flavor = "multi_thread")]
async fn leadership_goes_to_the_target_and_comes_back() {
    let cluster = Cluster::with_group().await;
    let mut leader = cluster.leader().await;
    for round in 0..6 {
        put(cluster.server(leader).group(), text(round)).await;
        let target = cluster.others(leader)[round % 2];
        eventually("a transfer", || (cluster.server(leader).status().matched.len() == 3).then_some(())).await;
        let group = cluster.server(leader).group();
        group.transfer_leader(target).await.unwrap();
        assert!(group.lease().is_err());
        let outcome = group.propose(text(99), None).await.unwrap().await;
        assert!(matches!(outcome, Err(ProposeError::NotLeader { .. })), "{outcome:?}");
        assert_eq!(cluster.leader().await, target);
        eventually("the new leader's lease", || cluster.server(target).group().lease().ok()).await;
        leader = target;
    }
    cluster.agree_on(6).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_known_to_lead_has_heard_of_its_own_vote() {
    let cluster = Cluster::with_group().await;
    let mut leader = cluster.leader().await;
    for round in 0..10 {
        put(cluster.server(leader).group(), text(round)).await;
        eventually("a transfer", || (cluster.server(leader).status().matched.len() == 3).then_some(())).await;
        let [target, witness] = cluster.others(leader)[..] else { panic!("three replicas") };
        let before = cluster.server(leader).status().term;
        let mut statuses = cluster.server(witness).group().status();
        let transferring = cluster.server(leader).group().clone();
        let transfer = tokio::spawn(async move { transferring.transfer_leader(target).await });
        let told = statuses.wait_for(|status| status.term > before && status.leader == Some(target)).await;
        let term = told.unwrap().term;
        assert!(cluster.server(target).machine().voted.load(Ordering::Relaxed) >= term);
        transfer.await.unwrap().unwrap();
        leader = cluster.leader().await;
        assert_eq!(leader, target);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_fails_ends_the_lease_for_the_term() {
    let cluster = Cluster::with_group().await;
    let leader = cluster.leader().await;
    put(cluster.server(leader).group(), text(0)).await;
    cluster.agree_on(1).await;
    let group = cluster.server(leader).group();
    eventually("a lease", || group.lease().ok()).await;
    let target = cluster.others(leader)[0];
    cluster.network.isolate(target);
    let transferring = {
        let group = group.clone();
        tokio::spawn(async move { group.transfer_leader(target).await })
    };
    let refused = eventually("the lease ends", || group.lease().err()).await;
    assert!(matches!(refused, NotLeased::GivenUp | NotLeased::NotLeader), "{refused:?}");
    for _ in 0..100 {
        assert!(group.lease().is_err());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(transferring.await.unwrap(), Err(TransferError::TimedOut { to: target }));
    cluster.network.heal();
    // The group recovers by itself: openraft's leader stays silent after a transfer, so the others elect.
    let next = cluster.leader().await;
    put(cluster.server(next).group(), text(1)).await;
    cluster.agree_on(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transfers_that_cannot_work_are_refused_and_change_nothing() {
    let cluster = Cluster::with_group().await;
    let leader = cluster.leader().await;
    let group = cluster.server(leader).group();
    let [behind, follower] = cluster.others(leader)[..] else { panic!("two followers") };
    assert_eq!(group.transfer_leader(77).await, Err(TransferError::NotVoter { to: 77 }));
    assert_eq!(group.transfer_leader(leader).await, Ok(()));
    let outcome = cluster.server(follower).group().transfer_leader(behind).await;
    assert!(matches!(outcome, Err(TransferError::NotLeader { .. })), "{outcome:?}");
    cluster.network.isolate(behind);
    for number in 0..200 {
        put(group, text(number)).await;
    }
    let outcome = group.transfer_leader(behind).await;
    assert!(matches!(outcome, Err(TransferError::Behind { behind: 200.., .. })), "{outcome:?}");
    eventually("still a lease", || group.lease().ok()).await;
    cluster.network.heal();
    cluster.agree_on(200).await;
}
