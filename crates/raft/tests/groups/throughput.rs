//! Many entries under way, and one at a time: not benchmarks, but bounds that a stall or a lost wake-up would break.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;
use kvorum_raft::{Group, Proposal, ProposeError};

use crate::cluster::{Cluster, PATIENCE, put, text};

async fn settle(group: &Group, proposal: Proposal, content: &Bytes) {
    match tokio::time::timeout(PATIENCE, proposal).await.expect("no outcome") {
        Ok(_) => {}
        // The machine was too busy for heartbeats: certainly not proposed, so it can be again.
        Err(ProposeError::NotLeader { leader: None }) => {
            tokio::time::sleep(Duration::from_millis(300)).await;
            put(group, content.clone()).await;
        }
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_entries_with_a_window() {
    const ENTRIES: usize = 100_000;
    const WINDOW: usize = 1024;
    let cluster = Cluster::with_group().await;
    let leader = cluster.server(cluster.leader().await);
    let begin = Instant::now();
    let mut window: VecDeque<(Proposal, Bytes)> = VecDeque::new();
    for number in 0..ENTRIES {
        if window.len() == WINDOW {
            let (oldest, content) = window.pop_front().expect("the window is full");
            settle(leader.group(), oldest, &content).await;
        }
        let content = Bytes::from(format!("{number:064}"));
        let proposal = leader.group().propose(content.clone(), None).await.unwrap();
        window.push_back((proposal, content));
    }
    for (proposal, content) in window {
        settle(leader.group(), proposal, &content).await;
    }
    let took = begin.elapsed();
    println!("{ENTRIES} entries in {took:?}: {:.0} a second", ENTRIES as f64 / took.as_secs_f64());
    cluster.agree_on(ENTRIES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_entry_at_a_time_does_not_wait_for_timers() {
    let cluster = Cluster::with_group().await;
    let leader = cluster.server(cluster.leader().await);
    let mut latencies = Vec::new();
    for number in 0..500 {
        let begin = Instant::now();
        put(leader.group(), text(number)).await;
        latencies.push(begin.elapsed());
    }
    latencies.sort();
    let (median, worst) = (latencies[latencies.len() / 2], latencies[latencies.len() - 1]);
    println!("one at a time: median {median:?}, worst {worst:?}");
    assert!(median < Duration::from_millis(50), "{median:?}");
}
