//! Leaders that are cut off: who leads next, until when the old one may answer, what becomes of its proposals.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use kvorum_raft::{Group, ProposeError, ReadError};

use crate::cluster::{Cluster, PATIENCE, eventually, put, text};

/// Asks for a group's lease without a pause; returns when it was last there.
fn watch_lease(group: Group, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<Option<Instant>> {
    std::thread::spawn(move || {
        let mut last = None;
        while !stop.load(Ordering::Relaxed) {
            if group.lease().is_ok() {
                // After the question: the lease was there at some moment before this one.
                last = Some(Instant::now());
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        last
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lease_of_a_leader_that_is_cut_off_ends_before_the_next_leader_answers() {
    let cluster = Cluster::with_group().await;
    let old = cluster.leader().await;
    let others = cluster.others(old);
    put(cluster.server(old).group(), text(0)).await;
    eventually("a lease", || cluster.server(old).group().lease().ok()).await;

    let stop = Arc::new(AtomicBool::new(false));
    let watching = watch_lease(cluster.server(old).group().clone(), stop.clone());
    let cut_at = Instant::now();
    cluster.network.isolate(old);
    let lost = cluster.server(old).group().propose(text(1), None).await.unwrap();

    let answered_at = eventually("a lease of another", || {
        // Before the question: the first moment at which the next leader could have answered.
        let asked_at = Instant::now();
        others.iter().any(|id| cluster.server(*id).group().lease().is_ok()).then_some(asked_at)
    })
    .await;
    let new = cluster.leader_among(&others).await;
    put(cluster.server(new).group(), text(2)).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    stop.store(true, Ordering::Relaxed);
    let last_old = watching.join().unwrap().expect("the old leader had a lease");
    assert!(
        last_old < answered_at,
        "old lease until {:?}, new lease from {:?} after the cut",
        last_old - cut_at,
        answered_at - cut_at
    );
    println!("old lease {:?}, next leader {:?} after the cut", last_old - cut_at, answered_at - cut_at);
    assert!(cluster.server(old).group().lease().is_err());
    assert_eq!(cluster.server(old).group().read_index().await, Err(ReadError::NoQuorum));
    // A leader without a lease refuses for certain instead of taking what it may lose.
    let refused = cluster.server(old).group().propose(text(3), None).await.unwrap().await;
    assert_eq!(refused, Err(ProposeError::NotLeader { leader: None }));

    cluster.network.heal();
    let outcome = tokio::time::timeout(PATIENCE, lost).await.expect("no outcome");
    assert_eq!(outcome, Err(ProposeError::Lost));
    cluster.agree_on(2).await;
    assert_eq!(cluster.server(old).machine().contents(), [text(0), text(2)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minority_elects_nobody_and_disturbs_nobody_when_it_comes_back() {
    let cluster = Cluster::with_group().await;
    let leader = cluster.leader().await;
    let term = cluster.server(leader).status().term;
    let away = cluster.others(leader)[1];
    cluster.network.isolate(away);
    // Long enough for several campaigns without pre-vote.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(cluster.server(away).status().term, term, "campaigned alone");
    cluster.network.heal();
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert_eq!(cluster.leader().await, leader);
    assert_eq!(cluster.server(leader).status().term, term);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lease_is_renewed_while_nothing_happens() {
    let cluster = Cluster::with_group().await;
    let leader = cluster.server(cluster.leader().await);
    eventually("a lease", || leader.group().lease().ok()).await;
    let (mut asked, mut refused) = (0, 0);
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        asked += 1;
        refused += usize::from(leader.group().lease().is_err());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(refused * 10 < asked, "refused {refused} of {asked}");
    leader.group().read_index().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn asking_for_the_lease_is_cheap() {
    let cluster = Cluster::with_group().await;
    let leader = cluster.server(cluster.leader().await);
    eventually("a lease", || leader.group().lease().ok()).await;
    let begin = Instant::now();
    let asked = 200_000;
    let granted = (0..asked).filter(|_| leader.group().lease().is_ok()).count();
    let each = begin.elapsed() / asked;
    println!("a question costs {each:?}, {granted} of {asked} granted");
    assert!(each < Duration::from_micros(5), "{each:?}");
}
