use crate::support::pack;
use kvorum_cluster::{
    BASE_LEVEL, CHECK_LEVEL, CHUNK_LEVEL, CHUNKED_BYTES_MAX, Configure, Entry, EntryBuilder, EntryError,
    FEATURE_LEVEL, Header, Mode, Part, ShardId, SlotSet,
};
use proptest::prelude::*;

const HEADER: Header = Header { feature_level: 1, clock_ms: 0x0102_0304, seed: 0xa0b0, out_of_memory: false };

fn configure() -> Configure {
    Configure {
        version: 1,
        shard: ShardId(2),
        group: 3,
        mode: Mode::Cluster,
        databases: 1,
        hash_seed: [0xab; 16],
        slots: "10923-16383".parse().unwrap(),
    }
}

fn sample() -> Vec<u8> {
    let mut entry = EntryBuilder::new(HEADER);
    entry.configure(&configure()).command(0, &pack("SET k v")).command(300, &pack("DEL k")).tick(200);
    assert_eq!(entry.len_bytes(), entry.clone().finish().len());
    entry.finish()
}

fn parts(bytes: &[u8]) -> Result<Vec<Part<'_>>, EntryError> {
    Entry::decode(bytes)?.parts().collect()
}

/// The bytes of `docs/data-on-disk.md`. They are in logs: this test never changes, a new format gets its own.
#[test]
fn the_persisted_form() {
    let json = concat!(
        r#"{"version":1,"shard":2,"group":3,"mode":"cluster","databases":1,"#,
        r#""hash_seed":"abababababababababababababababab","slots":["10923-16383"]}"#
    );
    let mut bytes = vec![1, 0, 1, 0, 4, 3, 2, 1, 0, 0, 0, 0, 0xb0, 0xa0, 0, 0, 0, 0, 0, 0];
    bytes.extend([2, 0x80 | u8::try_from(json.len() - 128).unwrap(), 1]);
    bytes.extend(json.as_bytes());
    bytes.extend(b"\x01\x00\x03\x03SET\x01k\x01v");
    bytes.extend(b"\x01\xac\x02\x02\x03DEL\x01k");
    bytes.extend(b"\x03\xc8\x01");
    assert_eq!(sample(), bytes);
    assert_eq!(Entry::decode(&bytes).unwrap().header, HEADER);
    assert_eq!(
        parts(&bytes).unwrap(),
        [
            Part::Configure(configure()),
            Part::Command { db: 0, argv: [&b"SET"[..], b"k", b"v"].into_iter().collect() },
            Part::Command { db: 300, argv: [&b"DEL"[..], b"k"].into_iter().collect() },
            Part::Tick { limit: 200 },
        ]
    );
}

/// Only the entries that need it have the higher level: a server that is not upgraded yet stops at those alone.
#[test]
fn a_check_raises_the_level_of_its_entry() {
    let mut entry = EntryBuilder::new(HEADER);
    entry.command(0, &pack("SET k v")).check();
    let bytes = entry.finish();
    let mut expected = vec![1, 0, 2, 0, 4, 3, 2, 1, 0, 0, 0, 0, 0xb0, 0xa0, 0, 0, 0, 0, 0, 0];
    expected.extend(b"\x01\x00\x03\x03SET\x01k\x01v");
    expected.push(4);
    assert_eq!(bytes, expected);
    assert_eq!(Entry::decode(&bytes).unwrap().header, Header { feature_level: 2, ..HEADER });
    assert_eq!(parts(&bytes).unwrap()[1], Part::Check);
}

#[test]
fn a_large_write_in_its_persisted_form() {
    let mut entry = EntryBuilder::new(HEADER);
    entry.chunk(300, 400, b"SET").assembled(300, 400);
    let bytes = entry.finish();
    let mut expected = vec![1, 0, 3, 0, 4, 3, 2, 1, 0, 0, 0, 0, 0xb0, 0xa0, 0, 0, 0, 0, 0, 0];
    expected.extend(b"\x05\xac\x02\x90\x03\x03SET");
    expected.extend(b"\x06\xac\x02\x90\x03");
    assert_eq!(bytes, expected);
    assert_eq!(
        parts(&bytes).unwrap(),
        [Part::Chunk { offset: 300, total: 400, bytes: b"SET" }, Part::Assembled { db: 300, total: 400 },]
    );
    // Entries of the levels before know neither.
    let mut older = bytes.clone();
    older[2] = 2;
    assert_eq!(parts(&older), Err(EntryError::Malformed { offset: 20 }));
}

#[test]
fn a_chunk_beyond_its_command_is_malformed() {
    let chunk = |offset: u64, total: u64| {
        let mut entry = EntryBuilder::new(HEADER);
        entry.chunk(offset, total, b"SET");
        parts(&entry.finish()).map(|parts| parts.len())
    };
    assert_eq!(chunk(397, 400), Ok(1));
    assert!(matches!(chunk(398, 400), Err(EntryError::Malformed { .. })));
    assert!(matches!(chunk(u64::MAX, 400), Err(EntryError::Malformed { .. })));
    assert_eq!(chunk(0, CHUNKED_BYTES_MAX), Ok(1));
    assert!(matches!(chunk(0, CHUNKED_BYTES_MAX + 1), Err(EntryError::Malformed { .. })));
}

#[test]
fn out_of_memory_is_a_flag() {
    let header = Header { out_of_memory: true, ..HEADER };
    let bytes = EntryBuilder::new(header).finish();
    assert_eq!(bytes[1], 1);
    assert_eq!(Entry::decode(&bytes).unwrap().header, header);
    assert_eq!(parts(&bytes), Ok(vec![]));
}

#[test]
fn a_newer_version_is_named() {
    let mut bytes = sample();
    bytes[0] = 2;
    assert_eq!(parts(&bytes), Err(EntryError::UnknownFormat(2)));
    assert_eq!(
        parts(&bytes[..1]),
        Err(EntryError::UnknownFormat(2)),
        "of another format the header is unknown too"
    );
    let mut bytes = sample();
    bytes[2] = u8::try_from(FEATURE_LEVEL + 1).unwrap();
    assert_eq!(parts(&bytes), Err(EntryError::NewerFeatureLevel(FEATURE_LEVEL + 1)));
}

/// Each with the offset that the error names.
#[test]
fn malformed_entries() {
    let with = |tail: &[u8]| [&EntryBuilder::new(HEADER).finish(), tail].concat();
    let no_level = {
        let mut bytes = sample();
        bytes[2] = 0;
        bytes
    };
    let unknown_flag = {
        let mut bytes = sample();
        bytes[1] = 2;
        bytes
    };
    let json = |json: &str| {
        let mut tail =
            vec![2, u8::try_from(json.len() % 128).unwrap() | 0x80, u8::try_from(json.len() / 128).unwrap()];
        tail.extend(json.as_bytes());
        with(&tail)
    };
    let good = serde_json::to_string(&configure()).unwrap();
    parts(&json(&good)).unwrap();
    for (what, bytes, offset) in [
        ("nothing", vec![], 0),
        ("half a header", sample()[..19].to_vec(), 19),
        ("feature level 0", no_level, 2),
        ("an unknown flag", unknown_flag, 1),
        ("part kind 0", with(&[0]), 20),
        ("a check in an entry of level 1", with(&[4]), 20),
        ("an unknown part", with(&[5]), 20),
        ("a part after a good one", with(&[3, 5, 9]), 22),
        ("a command without a database", with(&[1]), 21),
        ("database 65536", with(&[1, 0x80, 0x80, 4, 1, 0]), 24),
        ("no arguments", with(&[1, 0, 0]), 23),
        ("more arguments than bytes", with(&[1, 0, 3, 0, 0]), 23),
        ("2^63 arguments", with(&[1, 0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1, 0]), 32),
        ("an argument beyond the end", with(&[1, 0, 1, 200, 1]), 25),
        ("a number beyond 64 bits", with(&[3, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2]), 31),
        ("a tick without a limit", with(&[3]), 21),
        ("a configuration beyond the end", with(&[2, 5, b'{']), 22),
        ("a configuration that is no JSON", json("{"), 23),
        ("no databases", json(&good.replace("\"databases\":1", "\"databases\":0")), 23),
        ("a field too many", json(&good.replacen('{', "{\"new\":1,", 1)), 23),
        ("a field missing", json(&good.replace("\"version\":1,", "")), 23),
        ("a field twice", json(&good.replacen('{', "{\"version\":1,", 1)), 23),
        ("a slot beyond the last", json(&good.replace("16383", "16384")), 23),
        ("half a secret", json(&good.replace("abab\"", "\"")), 23),
    ] {
        assert_eq!(parts(&bytes), Err(EntryError::Malformed { offset }), "{what}");
    }
}

#[test]
fn a_cut_entry_is_a_shorter_entry_or_malformed() {
    let whole = sample();
    let ends = [20, 20 + 3 + serde_json::to_vec(&configure()).unwrap().len()];
    for cut in 0..whole.len() {
        match parts(&whole[..cut]) {
            Ok(parts) => assert!(parts.len() < 4 && cut >= ends[0]),
            Err(error) => {
                assert!(matches!(error, EntryError::Malformed { offset } if offset <= cut), "{error}")
            }
        }
    }
    assert_eq!(parts(&whole[..ends[1]]).unwrap().len(), 1);
}

/// Kind, database, arguments and number of a part; each kind takes what it needs.
type AnyPart = (u8, u16, Vec<Vec<u8>>, u64);

fn any_part() -> impl Strategy<Value = AnyPart> {
    let argv = prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..12);
    (0u8..6, any::<u16>(), argv, any::<u64>())
}

fn part((kind, db, argv, number): &AnyPart) -> Part<'_> {
    match kind {
        0 => Part::Command { db: *db, argv: argv.iter().map(Vec::as_slice).collect() },
        1 => Part::Configure(Configure { version: *number, slots: SlotSet::EMPTY, ..configure() }),
        2 => Part::Tick { limit: *number },
        3 => Part::Check,
        4 => Part::Chunk { offset: u64::from(*db), total: u64::from(*db) + 20, bytes: &argv[0] },
        _ => Part::Assembled { db: *db, total: *number },
    }
}

proptest! {
    #[test]
    fn what_was_built_is_read(
        feature_level in 1..=FEATURE_LEVEL, clock_ms: u64, seed: u64, out_of_memory: bool,
        any in prop::collection::vec(any_part(), 0..8),
    ) {
        let header = Header { feature_level, clock_ms, seed, out_of_memory };
        let mut builder = EntryBuilder::new(header);
        for part in any.iter().map(part) {
            match &part {
                Part::Command { db, argv } => {
                    let mut packed = Vec::new();
                    kvorum_keyspace::argv::pack(&mut packed, argv.iter().copied());
                    builder.command(*db, &packed);
                }
                Part::Configure(configure) => {
                    builder.configure(configure);
                }
                Part::Tick { limit } => {
                    builder.tick(*limit);
                }
                Part::Check => {
                    builder.check();
                }
                Part::Chunk { offset, total, bytes } => {
                    builder.chunk(*offset, *total, bytes);
                }
                Part::Assembled { db, total } => {
                    builder.assembled(*db, *total);
                }
            }
        }
        let bytes = builder.finish();
        let needed = match any.iter().map(|part| part.0).filter(|&kind| kind >= 3).max() {
            Some(3) => CHECK_LEVEL,
            Some(_) => CHUNK_LEVEL,
            None => BASE_LEVEL,
        };
        let header = Header { feature_level: feature_level.max(needed), ..header };
        prop_assert_eq!(Entry::decode(&bytes).unwrap().header, header);
        let (read, built): (_, Vec<Part<'_>>) = (parts(&bytes).unwrap(), any.iter().map(part).collect());
        prop_assert_eq!(read, built);
    }

    /// Random bytes, and good entries with some bytes changed, never panic; an error ends the parts.
    #[test]
    fn any_bytes_are_an_entry_or_an_error(
        random in prop::collection::vec(any::<u8>(), 0..100),
        start in prop::sample::select(vec![0usize, 1, 4, 20]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut changed = sample();
        for (at, byte) in changes {
            let at = at.index(changed.len());
            changed[at] = byte;
        }
        let plausible = [&sample()[..start], &random].concat();
        for bytes in [changed, plausible] {
            if let Ok(entry) = Entry::decode(&bytes) {
                let parts: Vec<_> = entry.parts().collect();
                let faults = parts.iter().filter(|part| part.is_err()).count();
                prop_assert!(faults <= 1 && parts.iter().rev().skip(1).all(Result::is_ok));
            }
        }
    }
}
