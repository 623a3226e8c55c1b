//! A sole replica: appends, votes, snapshots, purges, dropped segments, restarts; power fails at every single operation.

use bytes::Bytes;
use kvorum_raft::{
    LocalNetwork,
    disk::{Fault, MemoryDisk},
};

use crate::support::{Points, Server, Settings, Watched, entry, files, members, remains, simulate};

const SETTINGS: Settings = Settings { keep_entries: 0, block_bytes: 700 };

/// What was proposed, and how much of it was acknowledged.
#[derive(Default)]
struct Past {
    proposed: Vec<Bytes>,
    acknowledged: usize,
}

impl Past {
    /// Proposes some entries one after the other; `false` when power is gone.
    async fn put(&mut self, server: &Server, entries: usize) -> bool {
        for _ in 0..entries {
            let content = entry(self.proposed.len(), 300);
            self.proposed.push(content.clone());
            if !server.put(content).await {
                return false;
            }
            self.acknowledged = self.proposed.len();
        }
        true
    }
}

/// The life of a replica. Ends early when power fails.
async fn live(disk: &Watched, past: &mut Past) -> Option<()> {
    let network = LocalNetwork::new();
    let server = Server::start(1, disk, &network, SETTINGS).await.ok()?;
    let outcome = async {
        server.group.initialize(members(&[1])).await.ok()?;
        server.leads().await.then_some(())?;
        for _ in 0..3 {
            past.put(&server, 12).await.then_some(())?;
            server.group.snapshot().await.ok()?;
            past.put(&server, 3).await.then_some(())?;
        }
        Some(())
    };
    let outcome = outcome.await;
    if outcome.is_none() {
        server.kill(&network, 1);
        return None;
    }
    server.stop(&network, 1).await;

    let tail = Settings { keep_entries: 6, ..SETTINGS };
    let server = Server::start(1, disk, &network, tail).await.ok()?;
    let outcome = async {
        server.leads().await.then_some(())?;
        past.put(&server, 5).await.then_some(())?;
        server.group.snapshot().await.ok()?;
        past.put(&server, 5).await.then_some(())?;
        Some(())
    };
    let outcome = outcome.await;
    server.kill(&network, 1);
    outcome
}

/// Everything acknowledged is there, in order, nothing that was not proposed is, and the replica goes on.
async fn invariant_nothing_acknowledged_is_lost(disk: MemoryDisk, past: &Past, context: &str) {
    let network = LocalNetwork::new();
    for round in 0..2 {
        let watched = Watched::new(disk.clone());
        let server = Server::start(1, &watched, &network, SETTINGS).await;
        let server = server.unwrap_or_else(|error| panic!("{context}, round {round}: {error:?}"));
        if !server.group.is_initialized().await {
            assert_eq!(past.acknowledged, 0, "{context}: everything is gone");
            server.group.initialize(members(&[1])).await.unwrap();
        }
        assert!(server.leads().await, "{context}: it does not lead: {:?}", server.group.status().borrow());
        let left = files(&disk);
        assert!(left.len() <= 1 && left.iter().all(|name| name.ends_with(".kvs")), "{context}: {left:?}");
        let contents = server.list.contents();
        assert!(
            contents.len() >= past.acknowledged + round,
            "{context}: {} of {}",
            contents.len(),
            past.acknowledged
        );
        let known = contents.len().min(past.proposed.len());
        assert!(
            contents[..known - round.min(known)] == past.proposed[..known - round.min(known)],
            "{context}: other entries"
        );
        assert!(server.put(entry(1000, 10)).await, "{context}: it does not go on");
        server.group.snapshot().await.unwrap();
        server.kill(&network, 1);
    }
}

fn crash_everywhere() -> Points {
    let mut points = Points::default();
    for operations in 0.. {
        let disk = Watched::new(MemoryDisk::default());
        disk.disk.inject(Fault::Halt { operations });
        let mut past = Past::default();
        let finished = simulate(live(&disk, &mut past));
        let Some(failed) = disk.failed() else {
            assert!(finished.is_some(), "it ended before the end, and not for want of power");
            break;
        };
        points.add(failed);
        for (outcome, left) in remains(&disk.disk, operations) {
            let context = format!("power failed at operation {operations}, {failed}; {outcome}");
            simulate(invariant_nothing_acknowledged_is_lost(left, &past, &context));
        }
    }
    points
}

#[test]
fn a_sole_replica_loses_nothing_wherever_power_fails() {
    let points = crash_everywhere();
    assert!(points.report("a sole replica") > 200);
    for operation in
        ["write build", "sync build", "rename build", "sync snapshot directory", "remove snapshot"]
    {
        assert!(points.has(operation), "power never failed at: {operation}");
    }
    assert!(points.has("rename segment") || points.has("remove segment"), "no segment was dropped");
}
