//! Files that are not what was written: torn tails are cut, damage before them is refused, garbage never panics.

use std::{fs, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use kvorum_raft::{
    disk::{Disk, MemoryDisk, StdDisk},
    wal::{GroupId, Wal, WalConfig, WalError},
};
use proptest::prelude::*;

use crate::support::{DIR, Sync, at, open, open_with, plain, record, records, segments, small, until};

const GROUP: GroupId = GroupId(1);

/// One segment, one frame a call; returns where each frame ends. The log is not stopped cleanly.
fn one_segment(frames: u64) -> (MemoryDisk, Vec<usize>) {
    let disk = MemoryDisk::default();
    let wal = open(&disk);
    let log = wal.group(GROUP);
    let mut ends = vec![wal.stats().bytes as usize];
    for index in 0..frames {
        log.append_now(vec![record(index, 1, 20 + index as usize)]).unwrap();
        ends.push(wal.stats().bytes as usize);
    }
    (disk.kill(), ends)
}

/// Several segments, stopped cleanly; all entries are needed.
fn many_segments() -> MemoryDisk {
    let disk = MemoryDisk::default();
    let wal = open(&disk);
    let log = wal.group(GROUP);
    log.vote_now(b"a vote").unwrap();
    for index in 0..40 {
        log.append_now(vec![record(index, 1, 500)]).unwrap();
    }
    drop((log, wal));
    disk
}

fn indexes(wal: &Wal) -> Vec<u64> {
    wal.group(GROUP).all().iter().map(|record| record.index).collect()
}

#[test]
fn a_tail_torn_at_any_byte_is_cut() {
    let (disk, ends) = one_segment(6);
    let path = segments(&disk, Path::new(DIR)).pop().unwrap();
    let [.., start, end] = ends[..] else { panic!("frames were written") };
    // Header, prefix and position of the record, payload: behind them is padding.
    let content_end = start + 32 + 41 + 25;
    assert_eq!(end, content_end.next_multiple_of(8));
    for tear in start..=end {
        type Tear = fn(&mut [u8]);
        let tears: [(&str, Tear); 3] = [
            ("zeros", |rest| rest.fill(0)),
            ("flipped", |rest| rest.iter_mut().for_each(|byte| *byte ^= 0x55)),
            ("old bytes", |rest| {
                (0..).zip(rest).for_each(|(at, byte)| *byte = (at as u8).wrapping_mul(83) | 1)
            }),
        ];
        for (name, change) in tears {
            let torn = disk.kill();
            torn.update(&path, |bytes| change(&mut bytes[tear..]));
            let (wal, recovery) =
                open_with(&torn, small()).unwrap_or_else(|error| panic!("{name} {tear}: {error}"));
            let whole = tear >= content_end;
            assert_eq!(
                indexes(&wal),
                (0..if whole { 6 } else { 5 }).collect::<Vec<_>>(),
                "{name} from {tear}"
            );
            if !whole && (name != "zeros" || tear > start) {
                let repaired = recovery.repaired.expect("the repair is reported");
                assert_eq!(
                    (repaired.file, repaired.offset as usize),
                    (path.clone(), start),
                    "{name} from {tear}"
                );
            }
            // The log goes on behind the cut.
            let log = wal.group(GROUP);
            let next = log.state().last.unwrap().index + 1;
            log.append_now(records(next..next + 3, 2, 25)).unwrap();
            drop((log, wal));
            let (wal, recovery) = open_with(&torn, small()).unwrap();
            assert_eq!(
                (recovery.repaired, indexes(&wal)),
                (None, (0..next + 3).collect()),
                "{name} from {tear}"
            );
        }
        // A file that was cut short, as by a file system check.
        let torn = disk.kill();
        torn.update(&path, |bytes| bytes.truncate(tear));
        let expected = if tear >= content_end { 6 } else { 5 };
        assert_eq!(indexes(&open(&torn)).len(), expected, "cut at {tear}");
    }
}

#[test]
fn a_flipped_byte_before_the_last_frame_is_refused_with_file_and_offset() {
    let (disk, ends) = one_segment(6);
    let path = segments(&disk, Path::new(DIR)).pop().unwrap();
    let last = ends[ends.len() - 2];
    let mut refused = 0;
    for flip in 0..last {
        let bad = disk.kill();
        bad.update(&path, |bytes| bytes[flip] ^= 1 << (flip % 8));
        let start = ends.iter().rev().find(|end| **end <= flip).copied().unwrap_or(0);
        match open_with(&bad, small()) {
            Err(WalError::Corrupt { file, offset, .. }) => {
                assert_eq!((&file, offset as usize), (&path, start), "byte {flip}");
                refused += 1;
            }
            Ok((wal, _)) => assert_eq!(indexes(&wal), (0..6).collect::<Vec<_>>(), "byte {flip} is padding"),
            Err(error) => panic!("byte {flip}: {error}"),
        }
    }
    let padding: usize = 7 * ends.len();
    assert!(refused >= last - padding, "{refused} of {last}");
    // Nothing was changed by refusing: the byte flipped back, all is well.
    assert_eq!(indexes(&open(&disk)).len(), 6);
}

#[test]
fn every_segment_of_a_log_that_was_stopped_cleanly_is_guarded() {
    let disk = many_segments();
    let files = segments(&disk, Path::new(DIR));
    assert!(files.len() >= 3, "{files:?}");
    for path in &files {
        let mut refused = 0;
        for flip in (0..8 << 10).step_by(61) {
            let bad = disk.kill();
            bad.update(path, |bytes| bytes[flip] ^= 0x10);
            match open_with(&bad, small()) {
                Err(WalError::Corrupt { file, .. }) => {
                    assert_eq!(&file, path, "byte {flip}");
                    refused += 1;
                }
                Ok((wal, _)) => {
                    assert_eq!(
                        indexes(&wal),
                        (0..40).collect::<Vec<_>>(),
                        "byte {flip} of {path:?} means nothing"
                    );
                    assert_eq!(wal.group(GROUP).state().vote, Some(Bytes::from_static(b"a vote")));
                }
                Err(error) => panic!("byte {flip} of {path:?}: {error}"),
            }
        }
        // The newest segment is not full.
        assert!(refused > 100 || refused > 5 && Some(path) == files.last(), "{refused} refused in {path:?}");
    }
}

#[test]
fn the_last_frame_is_guarded_once_the_log_was_idle() {
    let disk = MemoryDisk::default();
    let config = WalConfig { lazy_sync_interval: Duration::from_millis(10), ..small() };
    let (wal, _) = open_with(&disk, config).unwrap();
    let log = wal.group(GROUP);
    log.append_now(vec![record(0, 1, 50)]).unwrap();
    log.vote_now(b"a vote that must not be forgotten").unwrap();
    let end = wal.stats().bytes as usize;
    until("a mark is written", || wal.stats().bytes as usize > end);
    let marked = wal.stats();
    // Killed, not stopped.
    let disk = disk.kill();
    let path = segments(&disk, Path::new(DIR)).pop().unwrap();
    disk.update(&path, |bytes| bytes[end - 10] ^= 1);
    assert!(matches!(open_with(&disk, small()), Err(WalError::Corrupt { .. })));
    // One mark is enough; an idle log stays idle.
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(wal.stats().frames, marked.frames);
}

#[test]
fn a_missing_segment_is_refused_by_name() {
    for missing in 0..2 {
        let disk = many_segments();
        let path = segments(&disk, Path::new(DIR)).swap_remove(missing);
        disk.remove(&path).unwrap();
        match open_with(&disk, small()) {
            Err(WalError::Missing { file }) => assert_eq!(file, path),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_real_disk_repairs_and_refuses_alike() {
    let dir = tempfile::tempdir().unwrap();
    let wal_dir = dir.path().join("server-1").join("wal");
    let config = WalConfig { segment_bytes: 64 << 10, ..small() };
    let open = || Wal::open(Arc::new(StdDisk), wal_dir.clone(), config.clone());
    {
        let (wal, _) = open().unwrap();
        let log = wal.group(GROUP);
        log.vote_now(b"v").unwrap();
        for index in 0..300 {
            log.append_now(vec![record(index, 1, 500)]).unwrap();
        }
        log.purge_now(at(149, 1)).unwrap();
        until("segments are dropped", || wal.stats().dropped_segments > 0);
    }
    let files = segments(&StdDisk, &wal_dir);
    let newest = files.last().unwrap();
    // The mark of the clean stop is the last frame; tear it.
    let mut bytes = fs::read(newest).unwrap();
    let mark = bytes.windows(4).rposition(|window| window == b"KvW\x01").unwrap();
    bytes[mark + 8] ^= 1;
    fs::write(newest, &bytes).unwrap();
    let (wal, recovery) = open().unwrap();
    let repaired = recovery.repaired.expect("reported");
    assert_eq!((&repaired.file, repaired.offset as usize), (newest, mark));
    assert_eq!(indexes(&wal), (150..300).collect::<Vec<_>>());
    let whole: Vec<_> = records(150..300, 1, 500).iter().map(plain).collect();
    assert_eq!(wal.group(GROUP).all().iter().map(plain).collect::<Vec<_>>(), whole);
    drop(wal);

    let victim = &files[files.len() - 2];
    let mut bytes = fs::read(victim).unwrap();
    bytes[30_000] ^= 0x80;
    fs::write(victim, &bytes).unwrap();
    let error = open().unwrap_err();
    let WalError::Corrupt { file, offset, .. } = &error else { panic!("{error}") };
    assert_eq!(file, victim);
    assert!((29_000..=30_000).contains(offset), "{offset}");
    let text = error.to_string();
    assert!(text.contains(victim.to_str().unwrap()) && text.contains(&format!("offset {offset}")), "{text}");
}

#[test]
fn rot_under_a_running_server_is_met_by_the_read() {
    let disk = MemoryDisk::default();
    let wal = open(&disk);
    let log = wal.group(GROUP);
    for index in 0..30 {
        log.append_now(vec![record(index, 1, 500)]).unwrap();
    }
    let path = segments(&disk, Path::new(DIR)).swap_remove(0);
    disk.update(&path, |bytes| bytes[1000] ^= 1);
    let error = log.read(0..30, usize::MAX).unwrap_err();
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    assert_eq!(log.read(20..30, usize::MAX).unwrap().len(), 10);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn garbage_never_panics(
        edits in prop::collection::vec((0..8_usize, 0..(8_usize << 10), prop::collection::vec(any::<u8>(), 0..200)), 0..6),
        copies in prop::collection::vec((0..8_usize, 0..8_usize, 0..(8_usize << 10), 1..(4_usize << 10)), 0..3),
        lengths in prop::collection::vec((0..8_usize, 0..(20_usize << 10)), 0..2),
    ) {
        let disk = many_segments();
        let files = segments(&disk, Path::new(DIR));
        let file = |at: usize| &files[at % files.len()];
        for (from, to, at, bytes) in copies {
            let mut piece = Vec::new();
            disk.update(file(from), |content| piece = content.iter().skip(at).take(bytes).copied().collect());
            disk.update(file(to), |content| content.iter_mut().skip(at).zip(piece).for_each(|(old, new)| *old = new));
        }
        for (at, offset, bytes) in edits {
            disk.update(file(at), |content| content.iter_mut().skip(offset).zip(bytes).for_each(|(old, new)| *old = new));
        }
        for (at, bytes) in lengths {
            disk.update(file(at), |content| content.resize(bytes, 0));
        }
        if let Ok((wal, _)) = open_with(&disk, small()) {
            // Whatever survived is what was written.
            for found in wal.group(GROUP).all() {
                prop_assert_eq!(plain(&found), plain(&record(found.index, 1, 500)));
            }
        }
    }

    #[test]
    fn files_of_garbage_never_panic(contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9000), 1..4)) {
        let disk = MemoryDisk::default();
        for (id, content) in (1..).zip(contents) {
            let path = Path::new(DIR).join(format!("segment-{id:016x}.wal"));
            disk.create(&path).unwrap().write_at(&content, 0).unwrap();
        }
        drop(open_with(&disk, small()));
    }
}
