//! The format of snapshot files is the documented one, and every byte of it is guarded.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use kvorum_raft::{
    LocalNetwork,
    disk::{Disk, MemoryDisk},
};

use crate::support::{DIR, List, Server, Settings, Watched, entry, files, members, simulate};

const SETTINGS: Settings = Settings { keep_entries: 0, block_bytes: 100 };

/// A disk with a snapshot of these entries and a purged log.
fn with_snapshot(entries: &[Bytes]) -> MemoryDisk {
    simulate(async {
        let disk = MemoryDisk::default();
        let network = LocalNetwork::new();
        let server = Server::start(1, &Watched::new(disk.clone()), &network, SETTINGS).await.unwrap();
        server.group.initialize(members(&[1])).await.unwrap();
        assert!(server.leads().await);
        for entry in entries {
            assert!(server.put(entry.clone()).await);
        }
        let index = server.group.snapshot().await.unwrap();
        crate::support::eventually("purged", || server.group.snapshot_stats().purged == Some(index)).await;
        server.stop(&network, 1).await;
        disk
    })
}

fn content(disk: &MemoryDisk) -> (String, Vec<u8>) {
    let name = files(disk).pop().unwrap();
    let file = disk.open(&Path::new(DIR).join(&name)).unwrap();
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    file.read_at(&mut bytes, 0).unwrap();
    (name, bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn the_format_is_the_documented_one() {
    let disk = with_snapshot(&[entry(0, 150), entry(1, 20)]);
    let (name, bytes) = content(&disk);
    // Header. Entries 0 and 1 are Raft's own.
    assert_eq!(&bytes[..4], b"KvF\x01");
    let header = u32_at(&bytes, 4) as usize;
    assert_eq!(u64_at(&bytes, 8), 1, "group");
    let id = u64_at(&bytes, 16);
    assert_eq!((u64_at(&bytes, 24), u64_at(&bytes, 32)), (3, 1), "last entry");
    assert_eq!((bytes[40], u64_at(&bytes, 41), u64_at(&bytes, 49)), (1, 0, 0), "members");
    let members = [0x0a, 3, 0x0a, 1, 1, 0x12, 16, 0x08, 1, 0x10, 1, 0x1a, 8 + 2];
    assert_eq!(&bytes[57..57 + members.len()], members);
    assert_eq!(&bytes[57 + members.len()..header - 4], b"server-1:1");
    assert_eq!(u32_at(&bytes, header - 4), crc32c::crc32c(&bytes[..header - 4]));
    assert_eq!(name, format!("snapshot-{:016x}-{id:016x}.kvs", 3));
    // Blocks.
    let salted = |offset: usize, bytes: &[u8]| {
        let salt = [id.to_le_bytes(), (offset as u64).to_le_bytes()].concat();
        crc32c::crc32c(&[&salt[..], bytes].concat())
    };
    let mut whole = Vec::new();
    let mut at = header;
    for expected in [100, 86] {
        let length = u32_at(&bytes, at + 4) as usize;
        assert_eq!(length, expected);
        assert_eq!(u32_at(&bytes, at), salted(at, &bytes[at + 4..at + 8 + length]));
        whole.extend_from_slice(&bytes[at + 8..at + 8 + length]);
        at += 8 + length;
    }
    assert_eq!(
        whole,
        [&150_u64.to_le_bytes()[..], &entry(0, 150), &20_u64.to_le_bytes(), &entry(1, 20)].concat()
    );
    // Footer.
    assert_eq!(bytes.len(), at + 28);
    assert_eq!(u32_at(&bytes, at), salted(at, &bytes[at + 4..]));
    assert_eq!(u32_at(&bytes, at + 4), 0);
    assert_eq!((u64_at(&bytes, at + 8), u64_at(&bytes, at + 16)), (bytes.len() as u64, 186));
    assert_eq!(u32_at(&bytes, at + 24), crc32c::crc32c(&whole));
}

#[test]
fn every_byte_is_guarded() {
    let entries = [entry(0, 250), entry(1, 20)];
    let disk = with_snapshot(&entries);
    let (name, bytes) = content(&disk);
    let path = Path::new(DIR).join(name);
    let start = |change: &dyn Fn(&mut Vec<u8>)| {
        let disk = disk.kill();
        disk.update(&path, change);
        simulate(async {
            let network = LocalNetwork::new();
            Server::start(1, &Watched::new(disk), &network, SETTINGS).await.map(|server| server.list)
        })
    };
    let list: Arc<List> = start(&|_| {}).unwrap();
    assert_eq!(list.contents(), entries);
    let refused = |change: &dyn Fn(&mut Vec<u8>), context: String| match start(change) {
        Ok(list) => panic!("{context}: it started with {} entries", list.len()),
        Err(error) => {
            let text = format!("{error:?}");
            assert!(
                text.contains("damaged at offset") || text.contains("it is of group"),
                "{context}: {text}"
            );
        }
    };
    for at in 0..bytes.len() {
        for bit in [0x01, 0x80] {
            refused(&|bytes| bytes[at] ^= bit, format!("bit {bit} of byte {at}"));
        }
        refused(&|bytes| bytes.truncate(at), format!("cut at {at}"));
        refused(&|bytes| bytes[at..].fill(0), format!("zeros from {at}"));
    }
    refused(&|bytes| bytes.push(0), "one byte more".to_owned());
    refused(&|bytes| bytes.extend_from_within(..), "twice".to_owned());
}
