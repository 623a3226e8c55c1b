//! Snapshots: a log that goes, replicas that are brought up, and everything that can get in between.

use std::{
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::Duration,
};

use bytes::Bytes;
use kvorum_proto::{
    peer::{
        SnapshotChunk, SnapshotFinish, SnapshotOffer, SnapshotReply, SnapshotRequest, snapshot_reply::Reply,
        snapshot_request::Request,
    },
    raft::{LogId, Vote},
};
use kvorum_raft::{GroupId, HostError, SnapshotConfig, SnapshotError, Transport, Weather, disk::Disk};

use crate::cluster::{Cluster, GROUP, eventually, members, put, snapshot_config, text};

/// Files of the group's directory on a server's disk.
fn files(cluster: &Cluster, server: u64) -> Vec<PathBuf> {
    let dir = Path::new("/snapshots/group-0000000000000001");
    let mut names = cluster.disks[&server].list(dir).unwrap();
    names.sort();
    names.into_iter().map(|name| dir.join(name)).collect()
}

async fn fill(cluster: &Cluster, server: u64, entries: std::ops::Range<usize>, bytes: usize) {
    let group = cluster.server(server).group();
    let content = |number: usize| {
        let mut content = text(number).to_vec();
        content.resize(bytes.max(content.len()), b'.');
        Bytes::from(content)
    };
    let mut under_way = Vec::new();
    for number in entries {
        under_way.push(group.propose(content(number), None).await.unwrap());
        if under_way.len() == 64 {
            for proposal in under_way.drain(..) {
                proposal.await.unwrap();
            }
        }
    }
    for proposal in under_way {
        proposal.await.unwrap();
    }
}

fn slow() -> Weather {
    let (shortest, longest) = (Duration::from_millis(2), Duration::from_millis(3));
    Weather { shortest, longest, ..Weather::default() }
}

/// A cluster whose server `away` was cut off while the leader got `entries` entries of `bytes`, took a snapshot and purged its log.
async fn with_one_away(entries: usize, bytes: usize) -> (Cluster, u64, u64) {
    let cluster = Cluster::with_group().await;
    let leader = cluster.leader().await;
    put(cluster.server(leader).group(), text(0)).await;
    cluster.agree_on(1).await;
    let away = cluster.others(leader)[0];
    cluster.network.isolate(away);
    fill(&cluster, leader, 1..entries, bytes).await;
    let group = cluster.server(leader).group();
    let index = group.snapshot().await.unwrap();
    // Raft decides to purge a moment before the log has heard of it, and a replica may be stopped in between.
    let log = cluster.server(leader).host.wal().group(GROUP);
    let is_purged = || log.state().purged.is_some_and(|purged| purged.index == index);
    eventually("the log was purged", || is_purged().then_some(())).await;
    (cluster, leader, away)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_purged_behind_a_snapshot_and_replicas_start_from_it() {
    let mut cluster = Cluster::with_group().await;
    let leader = cluster.leader().await;
    assert_eq!(cluster.server(leader).group().snapshot_stats().index, None);
    let mut written = 0;
    for round in 0..3 {
        let leader = cluster.leader().await;
        fill(&cluster, leader, written..written + 300, 50).await;
        written += 300;
        cluster.agree_on(written).await;
        for server in cluster.servers.values() {
            let index = server.group().snapshot().await.unwrap();
            assert_eq!(server.group().snapshot().await, Ok(index), "nothing new to write");
            let stats = eventually("purged", || {
                let stats = server.group().snapshot_stats();
                (stats.purged == Some(index)).then_some(stats)
            })
            .await;
            assert_eq!((stats.index, stats.built, stats.log_bytes), (Some(index), 1, 0));
            assert_eq!(files(&cluster, server.id).len(), 1, "round {round}");
        }
        fill(&cluster, leader, written..written + 7, 50).await;
        written += 7;
        cluster.agree_on(written).await;
        for id in 1..=3 {
            cluster.stop(id).await;
        }
        for id in 1..=3 {
            cluster.start(id).open(GROUP).await;
        }
        cluster.agree_on(written).await;
        for server in cluster.servers.values() {
            assert_eq!(server.machine().restored.load(Ordering::Relaxed), 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_away_for_too_long_gets_a_snapshot() {
    let (cluster, leader, away) = with_one_away(3000, 50).await;
    let term = cluster.server(leader).status().term;
    fill(&cluster, leader, 3000..3100, 50).await;
    cluster.network.heal();
    cluster.agree_on(3100).await;
    installed(&cluster, away).await;
    let (sent, received) =
        (cluster.server(leader).group().snapshot_stats(), cluster.server(away).group().snapshot_stats());
    assert_eq!(cluster.server(away).machine().restored.load(Ordering::Relaxed), 1);
    assert_eq!((received.index, received.bytes, received.installed), (sent.index, sent.bytes, 1));
    assert_eq!((sent.sent_bytes, received.received_bytes), (sent.bytes, sent.bytes));
    assert_eq!(files(&cluster, away).len(), 1);
    let status = cluster.server(leader).status();
    assert_eq!((status.term, status.leader), (term, Some(leader)), "it unseated the leader");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_got_a_snapshot_starts_from_it_and_can_lead() {
    let (mut cluster, leader, away) = with_one_away(500, 50).await;
    cluster.network.heal();
    cluster.agree_on(500).await;
    installed(&cluster, away).await;
    cluster.stop(away).await;
    cluster.start(away).open(GROUP).await;
    cluster.agree_on(500).await;
    fill(&cluster, leader, 500..510, 50).await;
    cluster.agree_on(510).await;
    eventually("a transfer", || {
        let matched = cluster.server(leader).status().matched.get(&away).copied();
        (matched == Some(cluster.server(leader).status().last)).then_some(())
    })
    .await;
    cluster.server(leader).group().transfer_leader(away).await.unwrap();
    let leader = cluster.leader().await;
    fill(&cluster, leader, 510..520, 50).await;
    cluster.agree_on(520).await;
    eventually("a lease", || cluster.server(leader).group().lease().ok()).await;
}

/// Waits until the snapshot that a server's machine has read counts as its own.
async fn installed(cluster: &Cluster, server: u64) {
    eventually("installed", || {
        (cluster.server(server).group().snapshot_stats().installed == 1).then_some(())
    })
    .await;
}

/// Lets the transfer to `away` begin and ends it when a part has arrived.
async fn interrupt(cluster: &Cluster, leader: u64, away: u64) -> u64 {
    cluster.network.set_weather(slow(), 1);
    cluster.network.heal();
    let whole = cluster.server(leader).group().snapshot_stats().bytes;
    let received = eventually("a part", || {
        let received = cluster.server(away).group().snapshot_stats().received_bytes;
        (received > whole / 4).then_some(received)
    })
    .await;
    cluster.network.isolate(away);
    assert!(received < whole, "nothing was left to interrupt");
    received
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_transfer_goes_on_where_it_was() {
    let (mut cluster, leader, away) = with_one_away(200, 64 << 10).await;
    interrupt(&cluster, leader, away).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    // Nor does a restart of the receiver lose it.
    let first = cluster.server(away).group().snapshot_stats().received_bytes;
    cluster.stop(away).await;
    assert!(files(&cluster, away).iter().any(|path| path.to_string_lossy().ends_with(".part")));
    cluster.network.set_weather(Weather::default(), 1);
    cluster.start(away).open(GROUP).await;
    cluster.network.heal();
    cluster.agree_on(200).await;
    installed(&cluster, away).await;
    let (sent, received) =
        (cluster.server(leader).group().snapshot_stats(), cluster.server(away).group().snapshot_stats());
    assert!(first > 0 && received.received_bytes > 0);
    // Blocks are the unit that a restart recognises.
    let again = (first + received.received_bytes) - sent.bytes;
    assert!(again < 8 << 10, "{first} and {} of {} bytes", received.received_bytes, sent.bytes);
    assert_eq!(received.installed, 1);
    assert_eq!(files(&cluster, away).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_received_in_vain_is_removed() {
    let cluster = Cluster::with_group().await;
    let leader = cluster.leader().await;
    fill(&cluster, leader, 0..10, 50).await;
    cluster.agree_on(10).await;
    let follower = cluster.others(leader)[0];
    let status = cluster.server(leader).status();
    let offer = SnapshotOffer {
        vote: Some(Vote { term: status.term, replica: leader, committed: true }),
        last: Some(LogId { term: status.term, index: status.committed + 5 }),
        id: 7,
        length: 1000,
    };
    assert_eq!(ask(&cluster, follower, Request::Offer(offer)).await, Reply::Held(0));
    assert_eq!(ask(&cluster, follower, Request::Chunk(chunk(7, 0, b"begin"))).await, Reply::Held(5));
    assert_eq!(files(&cluster, follower).len(), 1);
    fill(&cluster, leader, 10..30, 50).await;
    cluster.agree_on(30).await;
    eventually("it is removed", || files(&cluster, follower).is_empty().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_begins_its_own_transfer() {
    let (mut cluster, leader, away) = with_one_away(200, 64 << 10).await;
    let other = cluster.others(leader).into_iter().find(|id| *id != away).unwrap();
    eventually("applied", || (cluster.server(other).machine().len() == 200).then_some(())).await;
    let index = cluster.server(other).group().snapshot().await.unwrap();
    eventually("purged", || {
        (cluster.server(other).group().snapshot_stats().purged == Some(index)).then_some(())
    })
    .await;
    interrupt(&cluster, leader, away).await;
    cluster.stop(leader).await;
    cluster.network.set_weather(Weather::default(), 1);
    cluster.network.heal();
    assert_eq!(cluster.leader_among(&[other, away]).await, other);
    fill(&cluster, other, 200..210, 100).await;
    cluster.agree_on(210).await;
    installed(&cluster, away).await;
    assert_eq!(cluster.server(away).machine().restored.load(Ordering::Relaxed), 1);
    assert_eq!(files(&cluster, away).len(), 1, "the unfinished one is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_replica_has_is_not_taken_from_it_by_an_older_snapshot() {
    let cluster = Cluster::with_group().await;
    let leader = cluster.leader().await;
    fill(&cluster, leader, 0..50, 50).await;
    cluster.agree_on(50).await;
    let follower = cluster.others(leader)[0];
    let status = cluster.server(leader).status();
    let offer = SnapshotOffer {
        vote: Some(Vote { term: status.term, replica: leader, committed: true }),
        last: Some(LogId { term: status.term, index: status.committed - 10 }),
        id: 7,
        length: 1000,
    };
    let reply = ask(&cluster, follower, Request::Offer(offer)).await;
    assert!(matches!(reply, Reply::Installed(_)), "{reply:?}");
    assert!(files(&cluster, follower).is_empty());
    cluster.agree_on(50).await;
}

async fn ask(cluster: &Cluster, to: u64, request: Request) -> Reply {
    let link = cluster.network.transport(9).link(to, "");
    let request = SnapshotRequest { group: GROUP.0, to, request: Some(request) };
    let SnapshotReply { reply } = link.snapshot(request, Duration::from_secs(5)).await.unwrap();
    reply.unwrap()
}

fn chunk(id: u64, offset: u64, content: &[u8]) -> SnapshotChunk {
    let mut salted = [id.to_le_bytes(), offset.to_le_bytes()].concat();
    salted.extend_from_slice(content);
    SnapshotChunk { id, offset, content: Bytes::copy_from_slice(content), crc: crc32c::crc32c(&salted) }
}

#[tokio::test(flavor = "multi_thread")]
async fn senseless_and_damaged_pieces_are_refused() {
    let (cluster, leader, away) = with_one_away(100, 50).await;
    let status = cluster.server(leader).status();
    let path = files(&cluster, leader).pop().unwrap();
    let mut content = Vec::new();
    cluster.disks[&leader].update(&path, |bytes| content = bytes.clone());
    let offer = SnapshotOffer {
        vote: Some(Vote { term: status.term, replica: leader, committed: true }),
        last: Some(LogId { term: status.term, index: status.applied }),
        id: u64::from_le_bytes(content[16..24].try_into().unwrap()),
        length: content.len() as u64,
    };
    let id = offer.id;
    let refused = async |request: Request, why: &str| match ask(&cluster, away, request).await {
        Reply::Refused(reason) => assert!(reason.contains(why), "{reason}"),
        reply => panic!("{why}: {reply:?}"),
    };
    let held = async |request: Request, bytes: u64| {
        assert_eq!(ask(&cluster, away, request).await, Reply::Held(bytes));
    };

    refused(Request::Offer(SnapshotOffer::default()), "malformed").await;
    let vote = Vote { committed: false, ..offer.vote.unwrap() };
    refused(Request::Offer(SnapshotOffer { vote: Some(vote), ..offer }), "only a leader").await;
    let last = LogId { term: status.term + 1, index: 99 };
    refused(Request::Offer(SnapshotOffer { last: Some(last), ..offer }), "newer than its leader").await;
    refused(Request::Offer(SnapshotOffer { length: 3, ..offer }), "no snapshot has").await;
    let deposed = Vote { term: 0, ..offer.vote.unwrap() };
    let last = LogId { term: 0, index: 999 };
    let old = SnapshotOffer { vote: Some(deposed), last: Some(last), ..offer };
    assert!(matches!(ask(&cluster, away, Request::Offer(old)).await, Reply::HigherVote(_)));

    refused(Request::Chunk(chunk(id, 0, b"abc")), "not offered").await;
    refused(Request::Finish(SnapshotFinish { id }), "not offered").await;
    held(Request::Offer(offer), 0).await;
    refused(Request::Finish(SnapshotFinish { id }), "not whole").await;
    refused(Request::Chunk(chunk(id + 1, 0, b"abc")), "not offered").await;
    let damaged = SnapshotChunk { crc: 1, ..chunk(id, 0, &content[..100]) };
    refused(Request::Chunk(damaged), "checksum").await;
    refused(Request::Chunk(chunk(id, 0, &vec![0; 600 << 10])), "in one chunk").await;
    refused(Request::Chunk(chunk(id, 0, &vec![0; content.len() + 1])), "more bytes").await;
    held(Request::Chunk(chunk(id, 0, &content[..100])), 100).await;
    held(Request::Chunk(chunk(id, 0, &content[..100])), 100).await;
    held(Request::Chunk(chunk(id, 200, &content[200..300])), 100).await;
    held(Request::Offer(offer), 100).await;
    // Intact pieces of a file that is not.
    let mut rotten = content[100..].to_vec();
    rotten[500] ^= 1;
    held(Request::Chunk(chunk(id, 100, &rotten)), content.len() as u64).await;
    refused(Request::Finish(SnapshotFinish { id }), "damaged at offset").await;
    assert!(files(&cluster, away).is_empty(), "a damaged one is sent from the begin");
    assert_eq!(cluster.server(away).machine().len(), 1, "it was installed");
    // An intact file that is not what was offered.
    let last = LogId { term: status.term, index: status.applied + 5 };
    held(Request::Offer(SnapshotOffer { last: Some(last), ..offer }), 0).await;
    held(Request::Chunk(chunk(id, 0, &content)), content.len() as u64).await;
    refused(Request::Finish(SnapshotFinish { id }), "not the snapshot that was offered").await;
    assert_eq!(cluster.server(away).status().failed, None);
    cluster.network.heal();
    cluster.agree_on(100).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_is_refused_with_file_and_offset_once_the_log_was_purged() {
    let (mut cluster, leader, _) = with_one_away(300, 50).await;
    cluster.stop(leader).await;
    let path = files(&cluster, leader).pop().unwrap();
    for at in [0, 40, 5000, 9000] {
        let disk = cluster.disks[&leader].clone();
        disk.update(&path, |bytes| bytes[at] ^= 0x40);
        let machine = crate::cluster::Recorder::default();
        let opened = cluster.start(leader).host.open(GROUP, leader, std::sync::Arc::new(machine)).await;
        let Err(HostError::Lost { reason, .. }) = opened else { panic!("byte {at}: {:?}", opened.err()) };
        assert!(reason.contains(path.to_str().unwrap()) && reason.contains("damaged at offset"), "{reason}");
        assert!(reason.contains("has to be replaced"), "{reason}");
        disk.update(&path, |bytes| bytes[at] ^= 0x40);
        cluster.stop(leader).await;
    }
    // It is missing.
    let disk = cluster.disks[&leader].clone();
    disk.rename(&path, Path::new("/elsewhere")).unwrap();
    let machine = crate::cluster::Recorder::default();
    let opened = cluster.start(leader).host.open(GROUP, leader, std::sync::Arc::new(machine)).await;
    let Err(error) = opened else { panic!("it started without its snapshot") };
    assert!(error.to_string().contains("is missing in"), "{error}");
    cluster.stop(leader).await;
    disk.rename(Path::new("/elsewhere"), &path).unwrap();
    cluster.start(leader).open(GROUP).await;
    cluster.network.heal();
    cluster.agree_on(300).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_is_passed_over_while_the_log_has_everything() {
    let mut cluster = Cluster::with_group().await;
    let leader = cluster.leader().await;
    fill(&cluster, leader, 0..100, 50).await;
    cluster.agree_on(100).await;
    // Crashed before the purge: the file is there, the log too.
    assert_eq!(cluster.server(leader).group().snapshot_stats().purged, None);
    let before = cluster.disks[&leader].kill();
    cluster.server(leader).group().snapshot().await.unwrap();
    let path = files(&cluster, leader).pop().unwrap();
    let mut content = Vec::new();
    cluster.disks[&leader].update(&path, |bytes| content = bytes.clone());
    cluster.stop(leader).await;
    let file = before.create(&path).unwrap();
    content[4500] ^= 1;
    file.write_at(&content, 0).unwrap();
    cluster.disks.insert(leader, before);
    cluster.start(leader).open(GROUP).await;
    assert!(files(&cluster, leader).is_empty());
    cluster.agree_on(100).await;
    assert_eq!(cluster.server(leader).machine().restored.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_snapshot_rots_makes_another() {
    let (cluster, leader, away) = with_one_away(300, 50).await;
    let path = files(&cluster, leader).pop().unwrap();
    cluster.disks[&leader].update(&path, |bytes| bytes[6000] ^= 1);
    cluster.network.heal();
    cluster.agree_on(300).await;
    assert_eq!(cluster.server(away).machine().restored.load(Ordering::Relaxed), 1);
    assert!(!files(&cluster, leader).contains(&path));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_a_snapshot_and_not_the_replica() {
    let cluster = Cluster::with_group().await;
    let leader = cluster.leader().await;
    fill(&cluster, leader, 0..100, 5000).await;
    let disk = &cluster.disks[&leader];
    let used = u64::MAX - disk.available_bytes(Path::new("/")).unwrap();
    disk.set_capacity(used + (100 << 10));
    let group = cluster.server(leader).group();
    let error = group.snapshot().await.unwrap_err();
    assert!(matches!(&error, SnapshotError::Write(_)), "{error}");
    assert!(files(&cluster, leader).is_empty());
    fill(&cluster, leader, 100..110, 50).await;
    disk.set_capacity(u64::MAX);
    group.snapshot().await.unwrap();
    cluster.agree_on(110).await;
}

/// A sole replica of each group on server 1.
async fn alone(snapshots: SnapshotConfig, groups: &[GroupId]) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.stop(1).await;
    let server = cluster.start_with(1, snapshots);
    for group in groups {
        server.open(*group).await.group.initialize(members(&[1])).await.unwrap();
    }
    for replica in cluster.server(1).groups.values() {
        eventually("ready", || replica.group.status().borrow().ready.then_some(())).await;
    }
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_stays_short_by_itself_and_keeps_a_tail() {
    const LOG_BYTES: u64 = 256 << 10;
    let snapshots = SnapshotConfig { log_bytes: LOG_BYTES, keep_entries: 5, ..snapshot_config() };
    let cluster = alone(snapshots, &[GROUP]).await;
    let group = cluster.server(1).group();
    let mut written = 0;
    for round in 1..=3 {
        fill(&cluster, 1, written..written + 100, 4000).await;
        written += 100;
        let stats = eventually("a snapshot", || {
            let stats = group.snapshot_stats();
            (stats.built >= round && stats.log_bytes < LOG_BYTES).then_some(stats)
        })
        .await;
        let index = stats.index.unwrap();
        eventually("purged", || (group.snapshot_stats().purged >= index.checked_sub(5)).then_some(())).await;
    }
    let stats = group.snapshot_stats();
    let last = group.status().borrow().last;
    assert!(last - stats.purged.unwrap() >= 5, "no tail is left: {stats:?}, {last}");
    // Without new entries there are no new snapshots.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(group.snapshot_stats(), stats);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_group_does_not_hold_the_log_for_ever() {
    const IDLE: GroupId = GroupId(2);
    let snapshots = SnapshotConfig { pinned_bytes: 20 << 20, keep_entries: 5, ..snapshot_config() };
    let cluster = alone(snapshots, &[GROUP, IDLE]).await;
    let idle = &cluster.server(1).groups[&IDLE].group;
    // More than an eighth of a segment, so that it is not worth copying.
    for number in 0..40 {
        put(idle, Bytes::from(vec![number; 64 << 10])).await;
    }
    let busy = cluster.server(1).group();
    for round in 0..8 {
        fill(&cluster, 1, round * 100..(round + 1) * 100, 64 << 10).await;
    }
    eventually("the idle group's log goes", || {
        let stats = idle.snapshot_stats();
        (stats.built == 1 && stats.purged == stats.index).then_some(())
    })
    .await;
    assert!(busy.status().borrow().failed.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_nothing_is_refused() {
    let mut cluster = Cluster::new();
    cluster.servers.get_mut(&1).unwrap().open(GROUP).await;
    assert_eq!(cluster.server(1).group().snapshot().await, Err(SnapshotError::Empty));
}
