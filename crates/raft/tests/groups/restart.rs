//! Servers that stop and come back with their log.

use std::time::{Duration, Instant};

use kvorum_proto::{
    peer::{ControlReply, ControlRequest, control_reply::Reply, control_request::Request},
    raft::{LogId, Vote, VoteRequest},
};
use kvorum_raft::{ProposeError, Timing, Transport};

use crate::cluster::{Cluster, GROUP, PATIENCE, eventually, members, put, text};

#[tokio::test(flavor = "multi_thread")]
async fn each_start_applies_the_whole_log_once() {
    let mut cluster = Cluster::with_group().await;
    let mut written = 0;
    for round in 0..3 {
        let leader = cluster.leader().await;
        for _ in 0..200 {
            put(cluster.server(leader).group(), text(written)).await;
            written += 1;
        }
        cluster.agree_on(written).await;
        for id in 1..=3 {
            cluster.stop(id).await;
        }
        for id in 1..=3 {
            cluster.start(id).open(GROUP).await;
        }
        assert!(cluster.server(1).group().is_initialized().await, "round {round}");
        cluster.server(1).group().initialize(members(&[1, 2, 3])).await.unwrap();
        cluster.leader().await;
        cluster.agree_on(written).await;
        for server in cluster.servers.values() {
            eventually("recovered", || server.status().recovered.then_some(())).await;
        }
    }
    let expected: Vec<_> = (0..written).map(text).collect();
    assert_eq!(cluster.server(2).machine().contents(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_leader_leads_no_more_and_its_proposals_are_lost() {
    let mut cluster = Cluster::with_group().await;
    let old = cluster.leader().await;
    let term = cluster.server(old).status().term;
    put(cluster.server(old).group(), text(0)).await;
    cluster.network.isolate(old);
    let lost = cluster.server(old).group().propose(text(1), None).await.unwrap();
    cluster.stop(old).await;
    let outcome = tokio::time::timeout(PATIENCE, lost).await.expect("no outcome");
    assert_eq!(outcome, Err(ProposeError::Lost));
    cluster.network.heal();
    let server = cluster.start(old);
    server.open(GROUP).await;
    assert!(server.group().lease().is_err());
    let new = cluster.leader().await;
    assert!(cluster.server(new).status().term > term);
    put(cluster.server(new).group(), text(2)).await;
    for server in cluster.servers.values() {
        eventually("applied", || (server.machine().contents().last() == Some(&text(2))).then_some(())).await;
    }
}

/// Asks a server's replica for a vote, from a server that nobody knows.
async fn ask(cluster: &Cluster, to: u64, request: Request) -> Reply {
    let link = cluster.network.transport(9).link(to, "");
    let request = ControlRequest { group: GROUP.0, to, request: Some(request) };
    let ControlReply { reply } = link.control(request, Duration::from_secs(1)).await.unwrap();
    reply.unwrap()
}

fn candidate(term: u64, last: LogId, transfer: bool) -> VoteRequest {
    VoteRequest { vote: Some(Vote { term, replica: 2, committed: false }), last: Some(last), transfer }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_voter_is_silent_for_one_lease_unless_the_leader_asks() {
    let mut cluster = Cluster::with_group().await;
    let leader = cluster.leader().await;
    put(cluster.server(leader).group(), text(0)).await;
    cluster.agree_on(1).await;
    for id in 1..=3 {
        cluster.stop(id).await;
    }
    let started = Instant::now();
    cluster.start(1).open(GROUP).await;
    let term = cluster.server(1).status().term;
    let last = LogId { term: 1000, index: 1000 };
    for _ in 0..3 {
        let vote = ask(&cluster, 1, Request::Vote(candidate(term + 1, last, false))).await;
        let pre_vote = ask(&cluster, 1, Request::PreVote(candidate(term + 1, last, false))).await;
        if started.elapsed() < Timing::default().lease() {
            assert!(matches!(&vote, Reply::Silent(reason) if reason.contains("restarted")), "{vote:?}");
            assert!(matches!(pre_vote, Reply::Silent(_)), "{pre_vote:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let transfer = ask(&cluster, 1, Request::Vote(candidate(term + 1, last, true))).await;
    assert!(matches!(&transfer, Reply::Vote(reply) if reply.granted), "{transfer:?}");
    tokio::time::sleep(Timing::default().lease()).await;
    let pre_vote = ask(&cluster, 1, Request::PreVote(candidate(term + 2, last, false))).await;
    assert!(matches!(&pre_vote, Reply::PreVote(reply) if reply.granted), "{pre_vote:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn restarted_voters_elect_nobody_within_one_lease() {
    let mut cluster = Cluster::with_group().await;
    let term = cluster.server(cluster.leader().await).status().term;
    for id in 1..=3 {
        cluster.stop(id).await;
    }
    let started = Instant::now();
    for id in 1..=3 {
        cluster.start(id).open(GROUP).await;
    }
    let first_campaign = eventually("a campaign", || {
        let asked_at = Instant::now();
        cluster.servers.values().any(|server| server.status().term > term).then_some(asked_at)
    })
    .await;
    assert!(first_campaign - started >= Timing::default().lease(), "{:?}", first_campaign - started);
    cluster.leader().await;
    println!("a leader {:?} after the start", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_group_elects_at_once() {
    let begin = Instant::now();
    Cluster::with_group().await;
    assert!(begin.elapsed() < Timing::default().lease() * 2, "{:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sole_replica_leads_again_at_once() {
    let mut cluster = Cluster::new();
    cluster.servers.get_mut(&1).unwrap().open(GROUP).await;
    cluster.server(1).group().initialize(members(&[1])).await.unwrap();
    cluster.leader_among(&[1]).await;
    put(cluster.server(1).group(), text(0)).await;
    cluster.stop(1).await;
    cluster.start(1).open(GROUP).await;
    let started = Instant::now();
    cluster.leader_among(&[1]).await;
    println!("led again {:?} after the start", started.elapsed());
    assert!(started.elapsed() < Timing::default().lease(), "{:?}", started.elapsed());
    assert_eq!(cluster.server(1).machine().contents(), [text(0)]);
    put(cluster.server(1).group(), text(1)).await;
}
