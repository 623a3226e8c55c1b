//! What goes wrong while the log runs: failed syncs and writes, full disks, full queues, panicking callbacks.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use kvorum_raft::{
    disk::{Disk, Fault, MemoryDisk},
    wal::{GroupId, SyncMode, WalConfig},
};
use parking_lot::Mutex;

use crate::support::{Ack, DIR, Sync, at, open, open_with, record, records, small, until};

const ONE: GroupId = GroupId(1);
const TWO: GroupId = GroupId(2);

#[test]
fn a_failed_sync_ends_the_log() {
    let disk = MemoryDisk::default();
    let wal = open(&disk);
    let (one, two) = (wal.group(ONE), wal.group(TWO));
    one.append_now(records(0..2, 1, 10)).unwrap();
    disk.inject(Fault::SyncFails { syncs: 0 });
    let error = one.append_now(records(2..3, 1, 10)).unwrap_err();
    assert!(error.to_string().contains("failed sync"), "{error}");
    assert!(wal.failed());
    // The disk would work again; the log does not.
    assert!(one.append_now(records(3..4, 1, 10)).is_err());
    assert!(two.vote_now(b"v").is_err());
    assert!(two.truncate_now(None).is_err());
    assert!(one.purge_now(at(0, 1)).is_err());
    assert!(one.read(0..1, 100).is_err());
    assert!(wal.admit(1).is_err());
    assert!(one.when_room(Box::new(|| {})));
    drop(wal);

    // The kernel shows the bytes of the failed sync but will never write them. What a start shows, it makes durable.
    let restarted = disk.kill();
    let wal = open(&restarted);
    assert_eq!(wal.group(ONE).all().len(), 3);
    assert_eq!(open(&restarted.power_cut(0)).group(ONE).all().len(), 3);
}

#[test]
fn a_failed_write_ends_the_log() {
    let disk = MemoryDisk::default();
    let wal = open(&disk);
    let log = wal.group(ONE);
    log.set_sync(SyncMode::Never);
    disk.inject(Fault::Halt { operations: 0 });
    assert!(log.append_now(records(0..1, 1, 10)).is_err());
    assert!(wal.failure().unwrap().contains("lost power"));
}

#[test]
fn lazy_appends_are_synced_by_themselves() {
    let disk = MemoryDisk::default();
    let interval = Duration::from_millis(20);
    let (wal, _) = open_with(&disk, WalConfig { lazy_sync_interval: interval, ..small() }).unwrap();
    let log = wal.group(ONE);
    log.set_sync(SyncMode::Lazy);
    log.append_now(records(0..3, 1, 10)).unwrap();
    log.save_committed(Bytes::from_static(b"2"));
    until("the append is synced", || open(&disk.power_cut(0)).group(ONE).state().last == Some(at(2, 1)));
    // The committed position is written without anything to ride along with.
    until("the committed position is written", || open(&disk.kill()).group(ONE).state().committed.is_some());
}

#[test]
fn lazy_and_never_do_not_sync_each_append() {
    for mode in [SyncMode::Lazy, SyncMode::Never] {
        let disk = MemoryDisk::default();
        let (wal, _) = open_with(&disk, WalConfig { segment_bytes: 1 << 20, ..small() }).unwrap();
        let log = wal.group(ONE);
        log.set_sync(mode);
        let before = disk.syncs();
        for index in 0..50 {
            log.append_now(vec![record(index, 1, 10)]).unwrap();
        }
        assert_eq!(disk.syncs(), before, "{mode:?}");
        log.vote_now(b"v").unwrap();
        assert_eq!(disk.syncs(), before + 1, "{mode:?}");
    }
}

#[test]
fn a_nearly_full_disk_refuses_appends_and_nothing_else() {
    let disk = MemoryDisk::with_capacity(100 << 10);
    let config = WalConfig { reserve_bytes: 30 << 10, ..small() };
    let (wal, _) = open_with(&disk, config).unwrap();
    let (one, two) = (wal.group(ONE), wal.group(TWO));
    let mut next = 0;
    let refused = loop {
        let before = one.state();
        match one.append_now(vec![record(next, 1, 500)]) {
            Ok(()) => next += 1,
            Err(error) => {
                assert_eq!(one.state(), before, "nothing happens when an append is refused");
                break error;
            }
        }
        assert!(next < 1000, "the disk of 100 KiB never fills up");
    };
    assert_eq!(refused.kind(), io::ErrorKind::StorageFull, "{refused}");
    assert!(refused.to_string().contains("reserve of 30720 bytes"), "{refused}");
    assert!(!wal.failed());
    assert!(next > 80, "refused after {next} entries of 500 bytes already");
    assert_eq!(wal.admit(1).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert!(disk.available_bytes(DIR.as_ref()).unwrap() >= 30 << 10);
    // Votes go on, and so does what frees space.
    for _ in 0..50 {
        two.vote_now(b"a vote").unwrap();
    }
    one.purge_now(at(next - 5, 1)).unwrap();
    until("segments are dropped", || wal.stats().dropped_segments > 0);
    two.append_now(vec![record(0, 1, 500)]).unwrap();
    wal.admit(1).unwrap();
    drop((one, two, wal));
    assert_eq!(open(&disk).group(ONE).all().len(), 4);
}

#[test]
fn space_that_others_free_is_noticed() {
    let disk = MemoryDisk::with_capacity(20 << 10);
    let (wal, _) = open_with(&disk, WalConfig { reserve_bytes: 16 << 10, ..small() }).unwrap();
    let log = wal.group(ONE);
    let fill = |from: u64| {
        let refused = (from..from + 100).find(|&index| log.append_now(vec![record(index, 1, 500)]).is_err());
        refused.expect("fills up")
    };
    let next = fill(0);
    disk.set_capacity(60 << 10);
    assert!(fill(next) > next + 10);
}

/// Holds the writer thread in a callback until the sender is dropped.
fn hold_the_writer(log: &kvorum_raft::wal::GroupLog) -> mpsc::Sender<()> {
    let (release, held) = mpsc::channel::<()>();
    let (entered, inside) = mpsc::channel();
    let hold = move |_| {
        entered.send(()).unwrap();
        assert!(held.recv().is_err(), "released by the drop of the sender");
    };
    log.save_vote(Bytes::new(), Box::new(hold));
    inside.recv().unwrap();
    release
}

#[test]
fn a_full_queue_makes_appends_wait() {
    let disk = MemoryDisk::default();
    let (wal, _) = open_with(&disk, WalConfig { queue_bytes: 2000, ..small() }).unwrap();
    let log = wal.group(ONE);
    let release = hold_the_writer(&log);
    assert!(log.when_room(Box::new(|| panic!("there was room"))));
    for index in 0..4 {
        log.append(vec![record(index, 1, 500)], Box::new(|result| result.unwrap()));
    }
    let (woken, wait_for_room) = mpsc::channel();
    assert!(!log.when_room(Box::new(move || woken.send(()).unwrap())));
    let appended = Arc::new(AtomicBool::new(false));
    let waiting = thread::spawn({
        let (log, appended) = (log.clone(), appended.clone());
        move || {
            log.append_now(vec![record(4, 1, 500)]).unwrap();
            appended.store(true, Ordering::SeqCst);
        }
    });
    // Small requests do not wait for room.
    let (done, ack) = Ack::new();
    log.save_vote(Bytes::from_static(b"v"), done);
    thread::sleep(Duration::from_millis(50));
    assert!(!appended.load(Ordering::SeqCst));
    assert_eq!(log.state().last.map(|last| last.index), Some(3), "the append that waits changed nothing yet");
    drop(release);
    waiting.join().unwrap();
    ack.wait().unwrap();
    wait_for_room.recv_timeout(Duration::from_secs(30)).unwrap();
    assert_eq!(log.state().last.map(|last| last.index), Some(4));
}

#[test]
fn groups_are_served_in_turn_and_callbacks_come_in_order() {
    let disk = MemoryDisk::default();
    let wal = open(&disk);
    let (one, two) = (wal.group(ONE), wal.group(TWO));
    let release = hold_the_writer(&one);
    let order = Arc::new(Mutex::new(Vec::new()));
    let note = |name: &'static str, number: u64| {
        let order = order.clone();
        Box::new(move |result: io::Result<()>| order.lock().push((result.is_ok(), name, number)))
    };
    // 100 kB of one group wait before a few bytes of the other come.
    for index in 0..200 {
        one.append(vec![record(index, 1, 500)], note("busy", index));
    }
    for index in 0..3 {
        two.append(vec![record(index, 1, 10)], note("quiet", index));
    }
    drop(release);
    drop(wal);
    let order = order.lock();
    assert_eq!(order.len(), 203);
    assert!(order.iter().all(|(ok, ..)| *ok));
    for (name, count) in [("busy", 200), ("quiet", 3)] {
        let numbers: Vec<_> =
            order.iter().filter(|(_, of, _)| *of == name).map(|(.., number)| *number).collect();
        assert_eq!(numbers, (0..count).collect::<Vec<_>>(), "{name}");
    }
    let quiet_done = order.iter().rposition(|(_, name, _)| *name == "quiet").unwrap();
    assert!(quiet_done < 20, "the quiet group waited for {quiet_done} callbacks");
}

#[test]
fn one_sync_serves_everybody_who_waits() {
    let disk = MemoryDisk::default();
    let (wal, _) =
        open_with(&disk, WalConfig { segment_bytes: 1 << 20, batch_bytes: 1 << 20, ..small() }).unwrap();
    let logs: Vec<_> = (1..20).map(|id| wal.group(GroupId(id))).collect();
    let release = hold_the_writer(&logs[0]);
    let before = disk.syncs();
    let acks: Vec<_> = logs
        .iter()
        .map(|log| {
            let (done, ack) = Ack::new();
            log.append(records(0..3, 1, 100), done);
            ack
        })
        .collect();
    drop(release);
    acks.into_iter().for_each(|ack| ack.wait().unwrap());
    assert_eq!(disk.syncs(), before + 1);
}

#[test]
fn senseless_calls_are_refused_and_change_nothing() {
    let disk = MemoryDisk::default();
    let wal = open(&disk);
    let log = wal.group(ONE);
    log.append_now(records(0..10, 1, 10)).unwrap();
    log.purge_now(at(4, 1)).unwrap();
    let before = log.state();
    let kind = |result: io::Result<()>| result.unwrap_err().kind();
    assert_eq!(kind(log.append_now(records(12..13, 1, 10))), io::ErrorKind::InvalidInput, "a hole");
    assert_eq!(kind(log.append_now(records(4..6, 1, 10))), io::ErrorKind::InvalidInput, "purged");
    let gap = vec![record(10, 1, 10), record(12, 1, 10)];
    assert_eq!(kind(log.append_now(gap)), io::ErrorKind::InvalidInput, "a gap inside");
    assert_eq!(
        kind(log.append_now(vec![record(u64::MAX, 1, 1)])),
        io::ErrorKind::InvalidInput,
        "the last index"
    );
    // A purge does not go back, but is acknowledged.
    log.purge_now(at(2, 1)).unwrap();
    assert_eq!(log.state(), before);
    assert!(!wal.failed());
}

#[test]
fn calls_after_the_end_fail_at_once() {
    let disk = MemoryDisk::default();
    let wal = open(&disk);
    let log = wal.group(ONE);
    wal.close();
    assert!(log.append_now(records(0..1, 1, 10)).is_err());
    assert!(log.vote_now(b"v").is_err());
    assert!(!wal.failed(), "a closed log has not failed");
}

#[test]
fn a_callback_that_panics_fails_the_log_instead_of_hanging_it() {
    let disk = MemoryDisk::default();
    let wal = open(&disk);
    let log = wal.group(ONE);
    log.save_vote(Bytes::new(), Box::new(|_| panic!("a bug in a callback, on purpose")));
    until("the log fails", || wal.failed());
    assert!(log.append_now(records(0..1, 1, 10)).is_err());
}

#[test]
fn an_entry_larger_than_a_segment_gets_one_of_its_own() {
    let disk = MemoryDisk::default();
    let wal = open(&disk);
    let log = wal.group(ONE);
    log.append_now(vec![record(0, 1, 10), record(1, 1, 50_000)]).unwrap();
    log.append_now(vec![record(2, 1, 10)]).unwrap();
    drop((log, wal));
    let wal = open(&disk);
    let sizes: Vec<_> = wal.group(ONE).all().iter().map(|record| record.payload.len()).collect();
    assert_eq!(sizes, [10, 50_000, 10]);
}
