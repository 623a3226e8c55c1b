//! Many entries under way: not a benchmark, but a bound that a stall or a lost wake-up would break.

use std::{collections::VecDeque, time::Instant};

use bytes::Bytes;
use kvorum_raft::Proposal;

use crate::cluster::{Cluster, PATIENCE};

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_entries_with_a_window() {
    const ENTRIES: usize = 100_000;
    const WINDOW: usize = 1024;
    let cluster = Cluster::with_group().await;
    let leader = cluster.server(cluster.leader().await);
    let begin = Instant::now();
    let mut window: VecDeque<Proposal> = VecDeque::new();
    for number in 0..ENTRIES {
        if window.len() == WINDOW {
            let oldest = window.pop_front().expect("the window is full");
            tokio::time::timeout(PATIENCE, oldest).await.expect("no outcome").unwrap();
        }
        let mut content = Vec::with_capacity(64);
        content.extend_from_slice(&number.to_le_bytes());
        content.resize(63, b'x');
        window.push_back(leader.group().propose(Bytes::from(content), None).await.unwrap());
    }
    for proposal in window {
        proposal.await.unwrap();
    }
    let took = begin.elapsed();
    println!("{ENTRIES} entries in {took:?}: {:.0} a second", ENTRIES as f64 / took.as_secs_f64());
    cluster.agree_on(ENTRIES).await;
}
