//! What the log costs: syncs and entries per second, and the CPU the writer and the callers spend per entry.
//!
//! `cargo run --release -p kvorum-raft --example wal_bench [-- DIR]`: a few seconds. DIR should lie on the disk that counts; the
//! default is the system's temporary directory, which may be memory.

use std::{
    env, fs, io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use kvorum_raft::{
    disk::StdDisk,
    wal::{GroupId, Position, Record, SyncMode, Wal, WalConfig},
};
use rustix::time::{ClockId, clock_gettime};

const RUN: Duration = Duration::from_millis(1000);

struct Case {
    name: &'static str,
    mode: SyncMode,
    groups: u64,
    /// Appends in flight per group.
    depth: u64,
    /// Records per append.
    records: u64,
    payload_bytes: usize,
}

fn main() -> io::Result<()> {
    let base = env::args_os().nth(1).map_or_else(env::temp_dir, PathBuf::from);
    let dir = base.join(format!("kvorum-wal-bench-{}", std::process::id()));
    let cases = [
        Case {
            name: "1 group, depth 1",
            mode: SyncMode::Before,
            groups: 1,
            depth: 1,
            records: 1,
            payload_bytes: 100,
        },
        Case {
            name: "4 groups, depth 4",
            mode: SyncMode::Before,
            groups: 4,
            depth: 4,
            records: 1,
            payload_bytes: 1000,
        },
        Case {
            name: "4 groups, depth 64",
            mode: SyncMode::Before,
            groups: 4,
            depth: 64,
            records: 1,
            payload_bytes: 1000,
        },
        Case {
            name: "4 groups, 64 KiB",
            mode: SyncMode::Before,
            groups: 4,
            depth: 4,
            records: 1,
            payload_bytes: 64 << 10,
        },
        Case {
            name: "lazy, depth 1",
            mode: SyncMode::Lazy,
            groups: 1,
            depth: 1,
            records: 1,
            payload_bytes: 100,
        },
        Case {
            name: "lazy, depth 64",
            mode: SyncMode::Lazy,
            groups: 4,
            depth: 64,
            records: 1,
            payload_bytes: 1000,
        },
    ];
    #[expect(clippy::print_stdout, reason = "the figures are what this program is for")]
    for case in cases {
        println!("{:<20} {}", case.name, run(&dir, &case)?);
        fs::remove_dir_all(&dir)?;
    }
    Ok(())
}

fn run(dir: &std::path::Path, case: &Case) -> io::Result<String> {
    let disk = Arc::new(StdDisk);
    let (wal, _) = Wal::open(disk, dir.to_owned(), WalConfig::default()).map_err(io::Error::other)?;
    let payload = Bytes::from(vec![7; case.payload_bytes]);
    let waited_us = AtomicU64::new(0);
    let begun = Instant::now();
    let cpu_begun = cpu();
    let entries: u64 = thread::scope(|scope| {
        let threads: Vec<_> = (1..=case.groups)
            .map(|id| {
                let log = wal.group(GroupId(id));
                let (payload, waited_us) = (&payload, &waited_us);
                scope.spawn(move || {
                    log.set_sync(case.mode);
                    let (done, acks) = std::sync::mpsc::channel();
                    let (mut next, mut flying) = (0, 0);
                    while begun.elapsed() < RUN || flying > 0 {
                        while flying < case.depth && begun.elapsed() < RUN {
                            let record = |index| Record {
                                index,
                                term: 1,
                                leader: 1,
                                payload: payload.clone(),
                                local: None,
                            };
                            let (done, sent) = (done.clone(), Instant::now());
                            let ack = move |result: io::Result<()>| {
                                drop(done.send(result.map(|()| sent.elapsed())))
                            };
                            log.append((next..next + case.records).map(record).collect(), Box::new(ack));
                            next += case.records;
                            flying += 1;
                        }
                        match acks.recv() {
                            Ok(Ok(waited)) => {
                                waited_us.fetch_add(waited.as_micros() as u64, Ordering::Relaxed);
                            }
                            _ => return next,
                        }
                        flying -= 1;
                        if next % 10_000 == 0 && next > 0 {
                            let to = Position { index: next - 5_000, term: 1, leader: 1 };
                            log.purge_to(to, Box::new(|_| {}));
                        }
                    }
                    next
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(0)).sum()
    });
    let seconds = begun.elapsed().as_secs_f64();
    let cpu_us = (cpu() - cpu_begun).as_secs_f64() * 1e6;
    let stats = wal.stats();
    let per = |total: f64, count: u64| total / (count.max(1) as f64);
    Ok(format!(
        "{:>9.0} entries/s {:>7.0} syncs/s {:>7.1} entries/frame  sync {:>6.0} us (max {:>6})  write {:>5.1} us  ack {:>6.0} us  cpu {:>5.2} us/entry  {:>6.1} MB/s",
        entries as f64 / seconds,
        stats.syncs as f64 / seconds,
        per(stats.entries as f64, stats.frames),
        per(stats.sync_us as f64, stats.syncs),
        stats.sync_max_us,
        per(stats.write_us as f64, stats.frames),
        per(waited_us.load(Ordering::Relaxed) as f64, entries / case.records),
        per(cpu_us, entries),
        stats.bytes as f64 / seconds / 1e6,
    ))
}

/// CPU time of this process.
fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}
