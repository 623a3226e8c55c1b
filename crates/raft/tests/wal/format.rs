//! The bytes on disk, as `docs/data-on-disk.md` has them: decoded here by other code than the log's own.

use std::path::Path;

use bytes::Bytes;
use kvorum_raft::{
    disk::{Disk, MemoryDisk},
    wal::{GroupId, SyncMode, WalConfig, WalError},
};

use crate::support::{DIR, Sync, at, open, open_with, record, records, segments, small};

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn crc(segment: u64, offset: usize, bytes: &[u8]) -> u64 {
    let salted = [&segment.to_le_bytes()[..], &(offset as u64).to_le_bytes(), bytes].concat();
    crc32c::crc32c(&salted).into()
}

/// Sequence, synced, and kind, group and content of each record.
type Frame = (u64, u64, Vec<(u8, u64, Vec<u8>)>);

fn frames(segment: u64, bytes: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    let mut offset = 0;
    while bytes[offset..offset + 4] == *b"KvW\x01" {
        let header = &bytes[offset..offset + 32];
        assert_eq!(number(&header[28..]), crc(segment, offset, &header[..28]));
        let mut at = offset + 32;
        let end = at + number(&header[4..8]) as usize;
        let mut records = Vec::new();
        while at < end {
            let size = 8 + number(&bytes[at + 4..at + 8]) as usize;
            let record = &bytes[at..at + size];
            assert_eq!(number(&record[..4]), crc(segment, at, &record[4..]));
            records.push((record[8], number(&record[9..17]), record[17..].to_vec()));
            at += size;
        }
        assert_eq!((at, records.len() as u64), (end, number(&header[24..28])));
        frames.push((number(&header[8..16]), number(&header[16..24]), records));
        offset = end.next_multiple_of(8);
    }
    // A clean end is a header of zeros.
    assert!(bytes[offset..].iter().take(32).all(|&byte| byte == 0));
    frames
}

fn content(disk: &MemoryDisk, segment: usize) -> Vec<u8> {
    let file = disk.open(&segments(disk, Path::new(DIR))[segment]).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn the_format_is_the_documented_one() {
    let disk = MemoryDisk::default();
    let wal = open(&disk);
    let log = wal.group(GroupId(0x0102));
    log.vote_now(b"vote").unwrap();
    log.append_now(vec![record(0, 1, 5), record(1, 1, 0)]).unwrap();
    log.truncate_now(Some(0)).unwrap();
    log.truncate_now(None).unwrap();
    log.purge_now(at(7, 2)).unwrap();
    log.save_committed(Bytes::from_static(b"committed"));
    log.append_now(vec![record(8, 3, 2)]).unwrap();
    let other = wal.group(GroupId(9));
    other.forget();
    drop((log, other, wal));

    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let entry = |index, term, bytes: usize| {
        [&words(&[index, term, term % 3])[..], &record(index, term, bytes).payload].concat()
    };
    let group = 0x0102;
    let expected: Vec<Frame> = vec![
        (1, 0, vec![(8, 0, words(&[1]))]),
        (2, 1, vec![(3, group, b"vote".to_vec())]),
        (3, 2, vec![(1, group, entry(0, 1, 5)), (1, group, entry(1, 1, 0))]),
        (4, 3, vec![(5, group, [&[1][..], &words(&[0])].concat())]),
        (5, 4, vec![(5, group, [&[0][..], &words(&[0])].concat())]),
        (6, 5, vec![(6, group, words(&[7, 2, 2]))]),
        (7, 6, vec![(1, group, entry(8, 3, 2)), (4, group, b"committed".to_vec())]),
        (8, 7, vec![(7, 9, vec![])]),
        (9, 8, vec![]),
    ];
    assert_eq!(frames(1, &content(&disk, 0)), expected);
}

#[test]
fn a_new_segment_begins_with_all_there_is_beside_entries() {
    let disk = MemoryDisk::default();
    let wal = open(&disk);
    let (one, two) = (wal.group(GroupId(1)), wal.group(GroupId(2)));
    one.vote_now(b"v1").unwrap();
    two.append_now(records(0..4, 1, 1000)).unwrap();
    two.purge_now(at(1, 1)).unwrap();
    two.save_committed(Bytes::from_static(b"c"));
    two.append_now(records(4..6, 1, 1000)).unwrap();
    two.append_now(records(6..9, 1, 1000)).unwrap();
    let position: Vec<_> = [1_u64, 1, 1].iter().flat_map(|word| word.to_le_bytes()).collect();
    let first = frames(2, &content(&disk, 1)).swap_remove(0);
    let beside = vec![
        (8, 0, 1_u64.to_le_bytes().to_vec()),
        (3, 1, b"v1".to_vec()),
        (6, 2, position),
        (4, 2, b"c".to_vec()),
    ];
    assert_eq!(first.2, beside);
}

#[test]
fn frames_of_a_later_version_are_refused_not_cut() {
    let disk = MemoryDisk::default();
    let wal = open(&disk);
    wal.group(GroupId(1)).append_now(records(0..3, 1, 10)).unwrap();
    let offset = wal.stats().bytes as usize;
    let disk = disk.kill();
    let path = segments(&disk, Path::new(DIR)).pop().unwrap();
    disk.update(&path, |bytes| {
        let header =
            [&b"KvW\x02"[..], &0_u32.to_le_bytes(), &3_u64.to_le_bytes(), &2_u64.to_le_bytes(), &[0; 4]]
                .concat();
        let crc = crc(1, offset, &header) as u32;
        bytes[offset..offset + 28].copy_from_slice(&header);
        bytes[offset + 28..offset + 32].copy_from_slice(&crc.to_le_bytes());
    });
    match open_with(&disk, small()) {
        Err(WalError::Corrupt { offset: refused, reason, .. }) => {
            assert_eq!(refused as usize, offset);
            assert!(reason.contains("version"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn stale_frames_behind_a_cut_are_destroyed() {
    let config = WalConfig { segment_bytes: 64 << 10, batch_bytes: 64 << 10, ..small() };
    let disk = MemoryDisk::default();
    let (wal, _) = open_with(&disk, config.clone()).unwrap();
    let log = wal.group(GroupId(1));
    log.set_sync(SyncMode::Lazy);
    log.append_now(records(0..1, 1, 10)).unwrap();
    let lost = wal.stats().bytes as usize;
    // The second frame's first block is lost; the third frame, some blocks on, made it.
    log.append_now(records(1..2, 1, 10_000)).unwrap();
    log.append_now(records(2..3, 1, 10_000)).unwrap();
    let disk = disk.kill();
    let path = segments(&disk, Path::new(DIR)).pop().unwrap();
    disk.update(&path, |bytes| bytes[lost..4096].fill(0));
    let (wal, recovery) = open_with(&disk, config.clone()).unwrap();
    assert_eq!(recovery.repaired.map(|repair| repair.offset as usize), Some(lost));
    wal.group(GroupId(1)).append_now(records(1..2, 2, 10)).unwrap();
    let left = disk.kill();
    drop(wal);
    for disk in [disk, left] {
        let (wal, recovery) = open_with(&disk, config.clone()).unwrap();
        assert_eq!(recovery.repaired, None);
        assert_eq!(wal.group(GroupId(1)).state().last, Some(at(1, 2)));
    }
}
