//! One behaviour a test.

use std::sync::Arc;

use bytes::Bytes;
use kvorum_raft::{
    disk::MemoryDisk,
    wal::{GroupId, GroupState, Record, WalConfig},
};

use crate::support::{Ack, Sync, at, open, open_with, plain, record, records, small};

#[test]
fn what_was_saved_is_there_after_a_restart() {
    let disk = MemoryDisk::default();
    let before = {
        let wal = open(&disk);
        let (one, two) = (wal.group(GroupId(1)), wal.group(GroupId(2)));
        one.vote_now(b"term 1").unwrap();
        one.append_now(records(0..10, 1, 100)).unwrap();
        two.append_now(records(0..5, 1, 10)).unwrap();
        one.append_now(records(7..12, 2, 50)).unwrap();
        two.truncate_now(Some(2)).unwrap();
        one.purge_now(at(3, 1)).unwrap();
        one.save_committed(Bytes::from_static(b"11"));
        (one.state(), one.all(), two.state(), two.all())
    };
    let wal = open(&disk);
    let (one, two) = (wal.group(GroupId(1)), wal.group(GroupId(2)));
    let state = GroupState {
        purged: Some(at(3, 1)),
        last: Some(at(11, 2)),
        vote: Some(Bytes::from_static(b"term 1")),
        committed: Some(Bytes::from_static(b"11")),
    };
    assert_eq!(one.state(), state);
    assert_eq!((before.0, before.2), (one.state(), two.state()));
    let plain = |records: Vec<Record>| records.iter().map(plain).collect::<Vec<_>>();
    assert_eq!(plain(before.1), plain(one.all()));
    assert_eq!(plain(before.3), plain(two.all()));
    assert_eq!(plain(records(4..7, 1, 100)), plain(one.read(4..7, usize::MAX).unwrap()));
}

#[test]
fn appends_are_visible_before_they_are_on_disk() {
    let disk = MemoryDisk::default();
    let wal = open(&disk);
    let group = wal.group(GroupId(1));
    let (done, ack) = Ack::new();
    let local: Arc<dyn std::any::Any + Send + std::marker::Sync> = Arc::new(7_u32);
    group.append(vec![Record { local: Some(local), ..record(0, 1, 10) }], done);
    let read = group.read(0..1, 0).unwrap();
    assert_eq!(read[0].local.as_ref().and_then(|local| local.downcast_ref()), Some(&7_u32));
    ack.wait().unwrap();
}

#[test]
fn a_read_is_bounded_by_bytes_but_brings_one() {
    let disk = MemoryDisk::default();
    let wal = open(&disk);
    let group = wal.group(GroupId(1));
    // The first ones have left the tail of 2 KiB.
    for index in 0..100 {
        group.append_now(vec![record(index, 1, 100)]).unwrap();
    }
    for from in [0, 50, 70, 80, 84, 99] {
        assert_eq!(group.read(from..100, 0).unwrap().len(), 1, "from {from}");
        let indexes: Vec<_> =
            group.read(from..100, 1000).unwrap().iter().map(|record| record.index).collect();
        let wanted: Vec<_> = (from..100).take(indexes.len()).collect();
        assert_eq!(indexes, wanted);
        assert!((5..=10).contains(&indexes.len()) || from == 99, "{} from {from}", indexes.len());
    }
    assert_eq!(group.read(0..u64::MAX, usize::MAX).unwrap().len(), 100);
    assert_eq!(group.read(100..200, 1000).unwrap().len(), 0);
}

#[test]
fn groups_share_the_memory_for_their_last_entries() {
    const RECORD_BYTES: usize = 64 << 10;
    for (groups, share) in [(1, 4 << 20), (2, 2 << 20), (16, 1 << 20)] {
        let disk = MemoryDisk::default();
        let config =
            WalConfig { segment_bytes: 64 << 20, tail_bytes: 4 << 20, batch_bytes: 1 << 20, ..small() };
        let (wal, _) = open_with(&disk, config).unwrap();
        for group in 1..=groups {
            wal.group(GroupId(group)).append_now(vec![record(0, 1, 1)]).unwrap();
        }
        let group = wal.group(GroupId(1));
        for index in 1..100 {
            // What belongs to an entry in this process is there as long as the entry is in memory.
            let local = Some(Arc::new(()) as Arc<dyn std::any::Any + Send + std::marker::Sync>);
            group.append_now(vec![Record { local, ..record(index, 1, RECORD_BYTES) }]).unwrap();
        }
        let all = group.read(0..100, usize::MAX).unwrap();
        let kept = all.iter().filter(|record| record.local.is_some()).count();
        assert!((share - RECORD_BYTES..=share).contains(&(kept * RECORD_BYTES)), "{kept} of {groups} groups");
        assert!(all[100 - kept..].iter().all(|record| record.local.is_some()), "they are the last");
    }
}

#[test]
fn an_entry_that_is_waited_for_stays_in_memory() {
    let disk = MemoryDisk::default();
    let wal = open(&disk);
    let group = wal.group(GroupId(1));
    let waiting: Arc<dyn std::any::Any + Send + std::marker::Sync> = Arc::new(7_u32);
    group.append_now(vec![Record { local: Some(Arc::clone(&waiting)), ..record(0, 1, 100) }]).unwrap();
    // Far more than the tail of 2 KiB.
    let append = |indexes: std::ops::Range<u64>| {
        indexes.for_each(|index| group.append_now(vec![record(index, 1, 100)]).unwrap());
    };
    append(1..100);
    assert!(group.read(0..1, 0).unwrap()[0].local.is_some());
    drop(waiting);
    append(100..101);
    assert!(group.read(0..1, 0).unwrap()[0].local.is_none());
    assert_eq!(group.read(0..101, usize::MAX).unwrap().len(), 101);
}

#[test]
fn what_a_follower_lacks_stays_in_memory_up_to_eight_shares() {
    const RECORD_BYTES: usize = 4 << 10;
    let disk = MemoryDisk::default();
    let config = WalConfig { segment_bytes: 64 << 20, tail_bytes: 64 << 10, batch_bytes: 1 << 20, ..small() };
    let (wal, _) = open_with(&disk, config).unwrap();
    let group = wal.group(GroupId(1));
    let append = |indexes: std::ops::Range<u64>| {
        for index in indexes {
            // What belongs to an entry in this process is there as long as the entry is in memory.
            let local = Some(Arc::new(()) as Arc<dyn std::any::Any + Send + std::marker::Sync>);
            group.append_now(vec![Record { local, ..record(index, 1, RECORD_BYTES) }]).unwrap();
        }
    };
    let first_in_memory = || {
        let all = group.read(0..u64::MAX, usize::MAX).unwrap();
        all.iter().find(|record| record.local.is_some()).unwrap().index
    };
    group.set_lacking(Some(10));
    append(0..60);
    assert_eq!(first_in_memory(), 10);
    // The follower is too far behind.
    append(60..200);
    assert!((60..90).contains(&first_in_memory()), "{}", first_in_memory());
    // It has caught up.
    group.set_lacking(None);
    append(200..201);
    assert!((185..=188).contains(&first_in_memory()), "{}", first_in_memory());
}
