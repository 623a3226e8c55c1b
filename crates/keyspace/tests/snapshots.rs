//! Snapshots of a keyspace: what is written comes back, and bytes that nobody wrote do no harm.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use kvorum_keyspace::{Keyspace, RestoreError, Settings};
use std::io::{self, BufReader, Read};
use support::Bare;

fn settings(databases: u16) -> Settings {
    Settings { databases, hash_seed: *b"sixteen bytes ok" }
}

fn empty() -> Bare {
    let mut bare = Bare::new();
    bare.keyspace = Keyspace::new(settings(4));
    bare
}

fn restore(bytes: &[u8]) -> Result<Keyspace, RestoreError> {
    let mut rest = bytes;
    let keyspace = Keyspace::restore(settings(4), 0, &mut rest)?;
    assert!(rest.is_empty(), "{} bytes were left", rest.len());
    Ok(keyspace)
}

/// A little of everything, in two databases.
fn sample() -> Bare {
    let mut bare = empty();
    bare.line("SET short 1");
    bare.line("SET fleeting v PX 100");
    bare.line("SET later v PX 100000");
    bare.run(&[b"SET", b"long", &[b'x'; 300]]);
    bare.run(&[b"SET", &[b'k'; 270], b""]);
    bare.line("DEL short");
    bare.line("SET {tag}a 1");
    bare.line("SET {tag}b 2");
    bare.line("APPEND {tag}b 3");
    bare.line("INCRBYFLOAT {tag}c 4");
    bare.line("SETRANGE long 290 {another}");
    bare.line("COPY long longer");
    bare.line("RENAME longer {tag}d");
    bare.line("MOVE {tag}a 2");
    bare.line("SWAPDB 1 2");
    bare.db = 3;
    bare.line("SET other 1");
    bare.line("FLUSHDB");
    bare.line("SET after 1");
    bare.now_ms += 100;
    bare.keyspace.expire_due(bare.now_ms, 10);
    bare
}

#[test]
fn the_bytes_are_frozen() {
    let mut bare = Bare::new();
    bare.keyspace = Keyspace::new(settings(2));
    bare.line("SET a 12");
    bare.line("SET {a}b 3 PXAT 1700000000200");
    bare.line("DEL a");
    bare.line("SET a 4");
    bare.db = 1;
    bare.line("SET x y");
    bare.line("FLUSHDB");
    let mut expected = vec![6, 0];
    expected.extend(&bare.keyspace.dump()[2..10]);
    expected.extend([2, 0]);
    // Slot 15495, deleted at 3, 2 keys.
    expected.extend([0x87, 0x3c, 3, 2]);
    expected.extend([0x10, 2, 0xc8, 0xd1, 0x95, 0xff, 0xbc, 0x31, 4, b'{', b'a', b'}', b'b', 1, b'3']);
    expected.extend([0, 4, 1, b'a', 1, b'4']);
    expected.extend([0x00, 0x40, 2, 1]);
    expected.extend([6, 0x00, 0x40, 0, 0]);
    assert_eq!(bare.keyspace.dump(), expected, "{:x?}", bare.keyspace.dump());
}

/// What became of a string is frozen, too.
#[test]
fn the_bytes_of_forms_are_frozen() {
    let mut bare = Bare::new();
    bare.keyspace = Keyspace::new(settings(1));
    bare.line("SET a 1");
    assert!(!bare.keyspace.snapshot().has_forms());
    bare.line("APPEND a 2");
    assert!(bare.keyspace.snapshot().has_forms());
    let tail = |bare: &Bare| bare.keyspace.dump()[11..].to_vec();
    assert_eq!(tail(&bare), [0, 0x87, 0x3c, 0, 1, 1, 2, 1, b'a', 2, b'1', b'2', 0x00, 0x40, 1, 0]);
    bare.line("INCRBYFLOAT a 3");
    assert_eq!(tail(&bare), [0, 0x87, 0x3c, 0, 1, 2, 3, 1, b'a', 2, b'1', b'5', 0x00, 0x40, 1, 0]);
    bare.line("SET a 4");
    assert!(!bare.keyspace.snapshot().has_forms());
    assert_eq!(tail(&bare), [0, 0x87, 0x3c, 0, 1, 0, 4, 1, b'a', 1, b'4', 0x00, 0x40, 1, 0]);
    bare.line("COPY a {a}b");
    bare.line("DEL a");
    let copied = [3, 5, 4, b'{', b'a', b'}', b'b', 1, b'4'];
    assert_eq!(tail(&bare), [&[0, 0x87, 0x3c, 6, 1], &copied[..], &[0x00, 0x40, 1, 0]].concat());
    bare.line("SETRANGE a 0 5");
    bare.line("FLUSHALL");
    assert!(!bare.keyspace.snapshot().has_forms());
}

#[test]
fn everything_comes_back() {
    let mut bare = sample();
    let dump = bare.keyspace.dump();
    let mut other = Bare::new();
    other.keyspace = restore(&dump).unwrap();
    other.now_ms = bare.now_ms;
    assert_eq!(other.keyspace.dump(), dump);
    assert_eq!(other.keyspace.used_memory(), bare.keyspace.used_memory());
    assert_eq!(other.keyspace.next_deadline(), bare.keyspace.next_deadline());
    assert_eq!(other.keyspace.stats().expired_keys, bare.keyspace.stats().expired_keys);
    for db in [0, 3] {
        for key in ["short", "fleeting", "later", "long", "other", "never"] {
            let sequence =
                |bare: &Bare| bare.keyspace.reader(db, bare.now_ms, bare.now_ms).sequence_of(key.as_bytes());
            assert_eq!(sequence(&other), sequence(&bare), "{key} in {db}");
        }
    }
    // And it goes on alike.
    for bare in [&mut bare, &mut other] {
        bare.db = 0;
        bare.line("SET short 2");
        bare.line("APPEND long y");
        bare.line("APPEND later y");
        assert_eq!(bare.keyspace.expire_due(u64::MAX, 10), 1);
    }
    assert_eq!(other.keyspace.dump(), bare.keyspace.dump());
    assert_eq!(other.keyspace.checksum(), bare.keyspace.checksum());
}

#[test]
fn a_cut_snapshot_is_refused_at_every_byte() {
    let dump = sample().keyspace.dump();
    for cut in 0..dump.len() {
        let error = restore(&dump[..cut]).unwrap_err();
        assert_eq!(error.to_string(), "malformed snapshot: it ends early", "cut at {cut}");
    }
}

#[test]
fn a_changed_byte_is_refused_or_gives_a_whole_keyspace() {
    let sample = sample();
    let dump = sample.keyspace.dump();
    let mut refused = 0;
    // Within the long texts one place is like the next.
    let plain = |at: usize| {
        at > 0 && dump[at - 1] == dump[at] && matches!(dump[at], b'x' | b'k') && !at.is_multiple_of(16)
    };
    let places: Vec<usize> = (0..dump.len()).filter(|&at| !plain(at)).collect();
    for &at in &places {
        for change in [1, 2, 4, 8, 16, 32, 64, 128, 255] {
            let mut wrong = dump.clone();
            wrong[at] ^= change;
            // What follows the end belongs to somebody else.
            let Ok(keyspace) = Keyspace::restore(settings(4), 0, &mut wrong.as_slice()) else {
                refused += 1;
                continue;
            };
            // What was read is what was written, and it can be worked with.
            let mut bare = Bare { keyspace, now_ms: sample.now_ms, db: 0 };
            assert!(wrong.starts_with(&bare.keyspace.dump()), "byte {at} ^ {change}");
            bare.line("APPEND long more");
            bare.line("DEL {tag}a");
            bare.keyspace.expire_due(u64::MAX, 100);
            bare.line("FLUSHALL");
            assert!(bare.keyspace.is_empty());
            assert_eq!((bare.keyspace.used_memory(), bare.keyspace.next_deadline()), (0, None));
        }
    }
    assert!(refused > places.len() * 4, "{refused} of {}", places.len() * 9);
}

#[test]
fn nothing_is_believed_that_was_not_read() {
    let head = |rest: &[u8]| [&[6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0], rest].concat();
    // A key, then a value, of 2^60 bytes of which ten are there.
    let huge = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];
    for rest in
        [[&[0, 0, 0, 1, 0, 1], &huge[..], &[b'x'; 10]].concat(), [&[0, 0, 0, 1, 0, 1, 0], &huge[..]].concat()]
    {
        let error = restore(&head(&rest)).unwrap_err();
        assert_eq!(error.to_string(), "malformed snapshot: it ends early");
    }
    for (rest, what) in [
        (&[0x01, 0x40][..], "a slot that is not in order"),
        (&[5, 0, 0, 0], "a slot without anything"),
        (&[5, 0, 7], "a change from the future"),
        (&[5, 0, 0x80, 0], "a number that is none"),
        (&[5, 0, 0, 1, 4], "a value of an unknown type"),
        (&[5, 0, 0, 1, 0, 1, 1, b'x', 0], "a key in another slot than its own"),
        (&[0, 0x40, 1, 0], "other numbers of keys"),
    ] {
        let error = restore(&head(rest)).unwrap_err();
        assert_eq!(error.to_string(), format!("malformed snapshot: {what}"));
    }
}

/// Gives a few bytes at a time, fails now and then for no reason, and at last for one.
struct Slow<'a> {
    bytes: &'a [u8],
    calls: usize,
    broken: bool,
}

impl Read for Slow<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.calls += 1;
        if self.calls.is_multiple_of(3) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let len = self.bytes.len().min(into.len()).min(7);
        if self.broken && len < 7 {
            return Err(io::Error::other("the disk is gone"));
        }
        into[..len].copy_from_slice(&self.bytes[..len]);
        self.bytes = &self.bytes[len..];
        Ok(len)
    }
}

#[test]
fn a_slow_reader_gives_the_same_and_a_broken_one_says_why() {
    let dump = sample().keyspace.dump();
    let slow = |broken| Slow { bytes: &dump, calls: 0, broken };
    let keyspace = Keyspace::restore(settings(4), 0, &mut BufReader::with_capacity(5, slow(false))).unwrap();
    assert_eq!(keyspace.dump(), dump);
    let error = Keyspace::restore(settings(4), 0, &mut BufReader::with_capacity(5, slow(true))).unwrap_err();
    assert!(
        matches!(&error, RestoreError::Io(error) if error.to_string() == "the disk is gone"),
        "{error:?}"
    );
}

#[test]
fn a_writer_that_fails_is_told_once() {
    struct Full(usize);
    impl io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or_else(|| io::Error::other("full"))?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut bare = Bare::new();
    for n in 0..100 {
        bare.run(&[b"SET", format!("key:{n}").as_bytes(), &vec![b'v'; n * 3000]]);
    }
    let snapshot = bare.keyspace.snapshot();
    let len = snapshot.dump().len();
    for room in [0, 100_000, len / 2, len - 1] {
        assert_eq!(snapshot.write(&mut Full(room)).unwrap_err().to_string(), "full");
    }
    snapshot.write(&mut Full(len)).unwrap();
}

/// Each way to change something, and each detail of it, is in the checksum, though FLUSHALL makes all of them equal.
#[test]
fn no_two_changes_have_one_checksum() {
    let mut seen = std::collections::BTreeMap::new();
    for line in [
        "GET a",
        "SET a 1",
        "SET a 2",
        "SET b 1",
        "SET ab 1",
        "SET a b1",
        "SET a 1 PXAT 1700000100000",
        "SET a 1 PXAT 1700000100001",
        "APPEND a 1",
        "APPEND a 2",
        "APPEND b 1",
        "APPEND there 1",
        "PEXPIREAT there 1700000100000",
        "PEXPIREAT there 1700000100001",
        "PEXPIREAT soon 1700000100000",
        "PERSIST soon",
        "DEL there",
        "DEL soon",
        "DEL gone",
        "FLUSHDB",
        "SETRANGE there 0 w",
        "SETRANGE there 0 x",
        "SETRANGE there 1 w",
        "SETRANGE nothing 0 w",
        "INCRBYFLOAT a 1.5",
        "RENAME there a",
        "RENAME there b",
        "RENAME soon a",
        "COPY there a",
        "COPY there b",
        "COPY there a DB 2",
        "MOVE there 2",
        "MOVE there 3",
        "SWAPDB 0 2",
        "SWAPDB 1 2",
        "SWAPDB 0 1",
        "SWAPDB 1 0",
    ] {
        for db in [0, 1] {
            let mut bare = empty();
            bare.db = db;
            bare.line("SET there v");
            bare.line("SET soon v PX 1000");
            bare.line("SET gone v PX 10");
            bare.now_ms += 10;
            bare.line(line);
            bare.line("SET end 1");
            bare.line("FLUSHALL");
            let other = seen.insert(bare.keyspace.checksum(), (line, db));
            assert_eq!(other, None, "{line} in {db}");
        }
    }
    // A key that went by itself is not one that was removed.
    let expired = |line: &str| {
        let mut bare = empty();
        bare.line("SET gone v PX 10");
        bare.line("SET last v PX 20");
        bare.now_ms += 10;
        bare.line(line);
        bare.keyspace.checksum()
    };
    assert_ne!(expired("GETDEL gone"), expired("GETDEL last"));
}
