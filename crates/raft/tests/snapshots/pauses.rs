//! Entries go on while a large state is written and sent.

use std::{
    io::{self, Read, Write},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use kvorum_raft::{
    Committed, Environment, Fatal, Host, HostConfig, Image, LocalNetwork, Machine, SnapshotConfig,
    disk::MemoryDisk,
    wal::{Wal, WalConfig},
};

use crate::support::{GROUP, members};

/// A state of many megabytes that takes its time to write, as a slow disk would have it.
#[derive(Default)]
struct Large {
    applied: AtomicU64,
    panics: AtomicBool,
}

struct Slow {
    panics: bool,
}

impl Image for Slow {
    fn write(self: Box<Self>, out: &mut dyn Write) -> io::Result<()> {
        assert!(!self.panics, "told to panic");
        for _ in 0..100 {
            std::thread::sleep(Duration::from_millis(10));
            out.write_all(&[7; 100 << 10])?;
        }
        Ok(())
    }
}

impl Machine for Large {
    fn apply(&self, _: Committed<'_>) -> Result<(), Fatal> {
        self.applied.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn blank(&self, _: u64, _: u64) {}

    fn snapshot(&self) -> Box<dyn Image> {
        Box::new(Slow { panics: self.panics.load(Ordering::Relaxed) })
    }

    fn restore(&self, _: &mut dyn Read) -> Result<(), Fatal> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_do_not_wait_for_a_snapshot() {
    let disk = MemoryDisk::default();
    let config = WalConfig { reserve_bytes: 0, ..WalConfig::default() };
    let (wal, _) = Wal::open(Arc::new(disk), PathBuf::from("/wal"), config).unwrap();
    let config = HostConfig { server: 1, snapshots: SnapshotConfig::default(), ..HostConfig::default() };
    let network = LocalNetwork::new();
    let transport = Arc::new(network.transport(1));
    let host = Host::start(config, wal.clone(), transport, Environment::real()).unwrap();
    let machine = Arc::new(Large::default());
    let group = host.open(GROUP, 1, machine.clone()).await.unwrap();
    group.initialize(members(&[1])).await.unwrap();
    let mut status = group.status();
    status.wait_for(|status| status.ready).await.unwrap();
    group.propose(Bytes::from_static(b"first"), None).await.unwrap().await.unwrap();
    machine.panics.store(true, Ordering::Relaxed);
    let error = group.snapshot().await.unwrap_err();
    assert!(error.to_string().contains("panicked: told to panic"), "{error}");
    machine.panics.store(false, Ordering::Relaxed);
    let building = tokio::spawn({
        let group = group.clone();
        async move { group.snapshot().await }
    });
    let begun = Instant::now();
    let mut latencies = Vec::new();
    while !building.is_finished() {
        let begun = Instant::now();
        group.propose(Bytes::from_static(b"entry"), None).await.unwrap().await.unwrap();
        latencies.push(begun.elapsed());
    }
    let took = begun.elapsed();
    building.await.unwrap().unwrap();
    latencies.sort();
    let (median, worst) = (latencies[latencies.len() / 2], latencies[latencies.len() - 1]);
    println!(
        "{} entries in {took:?} while a snapshot was written: median {median:?}, worst {worst:?}",
        latencies.len()
    );
    assert!(took > Duration::from_millis(900), "the snapshot was not slow");
    assert!(latencies.len() > 50 && worst < took / 2, "entries waited for it");
    group.shutdown().await;
    host.shutdown().await;
    wal.close();
}
