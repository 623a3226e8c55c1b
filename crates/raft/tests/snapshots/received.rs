//! A replica that gets snapshots of its leader, twice, and builds its own between; power fails at every single operation of its disk.

use bytes::Bytes;
use kvorum_raft::{
    LocalNetwork,
    disk::{Fault, MemoryDisk},
};

use crate::support::{
    Points, Server, Settings, Watched, entry, eventually, files, members, remains, simulate,
};

const AWAY: u64 = 3;

/// Snapshots are larger than what travels at once.
const SETTINGS: Settings = Settings { keep_entries: 0, block_bytes: 12_000 };

/// Servers 1 and 2, which never fail, and all that was acknowledged.
struct Cluster {
    network: LocalNetwork,
    servers: Vec<Server>,
    written: Vec<Bytes>,
}

impl Cluster {
    async fn start(disks: &[MemoryDisk], written: Vec<Bytes>) -> Cluster {
        let network = LocalNetwork::new();
        let mut servers = Vec::new();
        for (id, disk) in (1..).zip(disks) {
            servers.push(Server::start(id, &Watched::new(disk.clone()), &network, SETTINGS).await.unwrap());
        }
        Cluster { network, servers, written }
    }

    async fn leader(&self) -> &Server {
        let leads = |server: &&Server| server.group.status().borrow().ready;
        eventually("a leader", || self.servers.iter().any(|server| leads(&server))).await;
        self.servers.iter().find(leads).unwrap()
    }

    async fn put(&mut self, entries: usize) {
        for _ in 0..entries {
            let content = entry(self.written.len(), 6000);
            assert!(self.leader().await.put(content.clone()).await, "the leader cannot write");
            self.written.push(content);
        }
    }

    /// Stops both; what was written stays.
    async fn stop(self) -> Vec<Bytes> {
        for (id, server) in (1..).zip(self.servers) {
            server.stop(&self.network, id).await;
        }
        self.written
    }

    /// All that server 3 does not have is in snapshots only.
    async fn forget_log(&self) {
        for server in &self.servers {
            eventually("applied", || server.list.len() == self.written.len()).await;
            let index = server.group.snapshot().await.unwrap();
            eventually("purged", || server.group.snapshot_stats().purged == Some(index)).await;
        }
    }
}

/// The disks of a cluster whose server 3 misses what the others have in snapshots only, and all that was written.
fn prepare() -> (Vec<MemoryDisk>, Vec<Bytes>) {
    simulate(async {
        let disks =
            vec![MemoryDisk::default(); 3].into_iter().map(|_| MemoryDisk::default()).collect::<Vec<_>>();
        let mut cluster = Cluster::start(&disks, Vec::new()).await;
        cluster.servers[0].group.initialize(members(&[1, 2, 3])).await.unwrap();
        cluster.put(5).await;
        for server in &cluster.servers {
            eventually("applied", || server.list.len() == 5).await;
        }
        let away = cluster.servers.pop().unwrap();
        away.stop(&cluster.network, AWAY).await;
        cluster.put(60).await;
        cluster.forget_log().await;
        (disks, cluster.stop().await)
    })
}

/// Server 3 comes back and is brought up, then once more. Ends early when power fails.
async fn live(cluster: &mut Cluster, disk: &Watched) -> Option<()> {
    let server = Server::start_humbly(AWAY, disk, &cluster.network, SETTINGS).await.ok()?;
    let outcome = async {
        caught_up(cluster, &server, disk).await?;
        cluster.put(4).await;
        caught_up(cluster, &server, disk).await?;
        server.group.snapshot().await.ok()?;
        cluster.put(2).await;
        caught_up(cluster, &server, disk).await?;
        cluster.network.isolate(AWAY);
        cluster.put(15).await;
        cluster.forget_log().await;
        cluster.network.heal();
        caught_up(cluster, &server, disk).await?;
        cluster.put(2).await;
        caught_up(cluster, &server, disk).await
    };
    let outcome = outcome.await;
    server.kill(&cluster.network, AWAY);
    cluster.network.heal();
    outcome
}

/// Waits until it has everything; none when power fails before.
async fn caught_up(cluster: &Cluster, server: &Server, disk: &Watched) -> Option<()> {
    let ended = || server.failed() || disk.failed().is_some();
    eventually("it has all or has failed", || ended() || server.list.len() == cluster.written.len()).await;
    (!ended()).then_some(())
}

/// It starts, and comes to have all that was acknowledged, from where it was.
async fn invariant_it_comes_to_have_everything(
    disks: &[MemoryDisk],
    written: Vec<Bytes>,
    left: MemoryDisk,
    context: &str,
) {
    let mut cluster = Cluster::start(disks, written).await;
    let server = Server::start_humbly(AWAY, &Watched::new(left.clone()), &cluster.network, SETTINGS).await;
    let server = server.unwrap_or_else(|error| panic!("{context}: {error:?}"));
    let had = server.list.contents();
    assert!(had[..] == cluster.written[..had.len()], "{context}: it starts with something else");
    cluster.put(1).await;
    eventually(context, || server.list.len() == cluster.written.len()).await;
    assert!(server.list.contents() == cluster.written, "{context}: it ends with something else");
    assert!(!server.failed(), "{context}");
    let names = files(&left);
    assert!(names.len() <= 1, "{context}: {names:?}");
    server.kill(&cluster.network, AWAY);
    cluster.stop().await;
}

#[test]
fn a_replica_that_gets_a_snapshot_loses_nothing_wherever_power_fails() {
    let (base, written) = prepare();
    let mut points = Points::default();
    for operations in 0.. {
        let disks: Vec<_> = base[..2].iter().map(MemoryDisk::kill).collect();
        let disk = Watched::new(base[2].kill());
        disk.disk.inject(Fault::Halt { operations });
        let (finished, written) = simulate(async {
            let mut cluster = Cluster::start(&disks, written.clone()).await;
            (live(&mut cluster, &disk).await, cluster.stop().await)
        });
        let Some(failed) = disk.failed() else {
            assert!(finished.is_some(), "it ended before the end, and not for want of power");
            break;
        };
        points.add(failed);
        for (outcome, left) in remains(&disk.disk, operations) {
            // Each outcome is the only one for a cluster of its own.
            let disks: Vec<_> = disks.iter().map(MemoryDisk::kill).collect();
            let context = format!("power failed at operation {operations}, {failed}; {outcome}");
            simulate(invariant_it_comes_to_have_everything(&disks, written.clone(), left, &context));
        }
    }
    assert!(points.report("a replica that is sent snapshots") > 100);
    for operation in ["write incoming", "sync incoming", "rename incoming", "rename build", "remove snapshot"]
    {
        assert!(points.has(operation), "power never failed at: {operation}");
    }
}
