use crate::support::{create, created, pack};
use kvorum_cluster::{
    BASE_LEVEL, Configure, EntryBuilder, FEATURE_LEVEL, Header, MetaCommand, MetaMachine, Mode, Note,
    RestoreError, ServerId, ShardId, ShardMachine, SlotSet, Unwitnessed,
};
use proptest::prelude::*;

const START_MS: u64 = 1_000_000;

fn configure() -> Configure {
    Configure {
        version: 3,
        shard: ShardId(2),
        group: 3,
        mode: Mode::Cluster,
        databases: 2,
        hash_seed: [9; 16],
        slots: SlotSet::all(),
    }
}

fn entry(clock_ms: u64) -> EntryBuilder {
    EntryBuilder::new(Header { feature_level: BASE_LEVEL, clock_ms, seed: 1, out_of_memory: false })
}

fn apply(machine: &mut ShardMachine, build: impl FnOnce(&mut EntryBuilder)) {
    let index = machine.applied().map_or(0, |applied| applied + 1);
    let mut entry = entry(START_MS + 10 * index);
    build(&mut entry);
    machine.apply(index, 7, &entry.finish(), &mut Unwitnessed).unwrap();
}

fn sample() -> ShardMachine {
    let mut machine = ShardMachine::new();
    apply(&mut machine, |entry| {
        entry.configure(&configure());
    });
    for n in 0..5 {
        apply(&mut machine, |entry| {
            entry.command(0, &pack(&format!("SET key:{n} {n}"))).command(1, &pack("APPEND log more")).check();
        });
    }
    apply(&mut machine, |entry| {
        entry.command(0, &pack("SET fleeting v PX 30")).command(0, &pack("DEL key:3"));
    });
    machine.advance(7, 8).unwrap();
    machine
}

fn restore(bytes: &[u8]) -> Result<ShardMachine, RestoreError> {
    ShardMachine::restore(&mut &bytes[..])
}

/// The bytes of `docs/data-on-disk.md`. They are in files: this test never changes, a new format gets its own.
#[test]
fn the_persisted_form() {
    let mut machine = ShardMachine::new();
    assert_eq!(
        machine.snapshot().dump(),
        [&b"KvS\x01\x02\0\0"[..], &[0; 8], &[0; 8], &[0; 8], &[0, 0]].concat(),
    );
    apply(&mut machine, |entry| {
        entry.configure(&configure()).command(0, &pack("SET a 1"));
    });
    apply(&mut machine, |entry| {
        entry.check();
    });
    let json = concat!(
        r#"{"version":3,"shard":2,"group":3,"mode":"cluster","databases":2,"#,
        r#""hash_seed":"09090909090909090909090909090909","slots":["0-16383"]}"#
    );
    let mut expected = b"KvS\x01\x02\0".to_vec();
    expected.extend(b"\x01\x01\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0");
    expected.extend((START_MS + 10).to_le_bytes());
    expected.push(1);
    expected.extend(1u64.to_le_bytes());
    expected.extend(0x0c0c_d024_8deb_3af3_u64.to_le_bytes());
    expected.extend([0x80 | u8::try_from(json.len() - 128).unwrap(), 1]);
    expected.extend(json.as_bytes());
    expected.extend(machine.keyspace().dump());
    assert_eq!(machine.snapshot().dump(), expected);
}

#[test]
fn a_restored_replica_goes_on_where_the_other_was() {
    let mut a = sample();
    let mut b = restore(&a.snapshot().dump()).unwrap();
    assert_eq!(b.snapshot().dump(), a.snapshot().dump());
    assert_eq!((b.applied(), b.clock_ms(), b.configured()), (a.applied(), a.clock_ms(), a.configured()));
    assert_eq!(b.notes().collect::<Vec<_>>(), a.notes().collect::<Vec<_>>());
    assert_eq!((b.noted().unwrap().index, b.checksum()), (5, a.checksum()));
    for machine in [&mut a, &mut b] {
        assert!(machine.advance(8, 7).is_err(), "the term is remembered");
    }
    let (mut a, mut b) = (sample(), restore(&sample().snapshot().dump()).unwrap());
    for machine in [&mut a, &mut b] {
        machine.advance(8, 8).unwrap();
        let mut entry = entry(START_MS + 500);
        entry.command(0, &pack("APPEND key:1 x")).tick(5).check();
        machine.apply(9, 8, &entry.finish(), &mut Unwitnessed).unwrap();
        assert_eq!(machine.keyspace().stats().expired_keys, 1);
    }
    assert_eq!(a.snapshot().dump(), b.snapshot().dump());
}

#[test]
fn notes_are_the_checksums_before_them_and_the_last_16_stay() {
    let mut machine = ShardMachine::new();
    apply(&mut machine, |entry| {
        entry.configure(&configure()).check();
    });
    let mut expected = machine.noted().into_iter().collect::<Vec<_>>();
    for n in 0..40 {
        apply(&mut machine, |entry| {
            entry.command(0, &pack(&format!("SET k {n}")));
        });
        let checksum = machine.checksum();
        let index = machine.applied().unwrap() + 1;
        apply(&mut machine, |entry| {
            entry.check().command(0, &pack("SET k after"));
        });
        expected.push(Note { index, checksum });
        assert_ne!(machine.checksum(), checksum);
    }
    assert_eq!(machine.notes().collect::<Vec<_>>(), expected[expected.len() - 16..]);
    // Of two in one entry the second stays: an index has one note.
    apply(&mut machine, |entry| {
        entry.check().command(0, &pack("SET k v")).check();
    });
    assert_eq!(machine.noted(), Some(Note { index: 81, checksum: machine.checksum() }));
    assert_eq!(machine.notes().count(), 16);
}

#[test]
fn a_cut_snapshot_is_refused_at_every_byte() {
    let dump = sample().snapshot().dump();
    for cut in 0..dump.len() {
        let error = restore(&dump[..cut]).unwrap_err();
        assert_eq!(error.to_string(), "malformed snapshot: it ends early", "cut at {cut}");
    }
    let error = restore(&[&dump[..], &[0]].concat()).unwrap_err();
    assert_eq!(error.to_string(), "malformed snapshot: it does not end where it should");
}

#[test]
fn a_changed_byte_is_refused_or_gives_a_whole_replica() {
    let dump = sample().snapshot().dump();
    let mut refused = 0;
    for at in 0..dump.len() {
        for bit in 0..8 {
            let mut wrong = dump.clone();
            wrong[at] ^= 1 << bit;
            let Ok(mut machine) = restore(&wrong) else {
                refused += 1;
                continue;
            };
            let again = machine.snapshot().dump();
            assert_eq!(restore(&again).unwrap().snapshot().dump(), again, "byte {at}, bit {bit}");
            let index = machine.applied().unwrap().wrapping_add(1);
            let mut entry = entry(START_MS + 5000);
            entry.command(0, &pack("APPEND key:1 x")).command(0, &pack("FLUSHALL")).tick(5).check();
            // A term that changed may be too high.
            let _ = machine.apply(index, 8, &entry.finish(), &mut Unwitnessed);
        }
    }
    assert!(refused > dump.len() * 3, "{refused} of {}", dump.len() * 8);
}

#[test]
fn what_a_snapshot_cannot_say_is_refused() {
    let dump = sample().snapshot().dump();
    let with = |at: usize, byte: u8| {
        let mut bytes = dump.clone();
        bytes[at] = byte;
        restore(&bytes).unwrap_err().to_string()
    };
    assert_eq!(with(0, b'k'), "malformed snapshot: it is none");
    assert_eq!(with(3, 2), "snapshot format 2 is not known to this version");
    assert_eq!(with(4, 6), format!("the snapshot needs feature level 6, this version has {FEATURE_LEVEL}"));
    assert_eq!(with(6, 2), "malformed snapshot: neither applied nor not");
    assert_eq!(with(6, 0), "malformed snapshot: a state before the first entry");
    assert_eq!(with(31, 17), "malformed snapshot: too many notes");
    assert_eq!(with(32, 9), "malformed snapshot: a note that is not in order");
    // A configuration that promises more than there can be.
    let head = [&dump[..31], &[0, 0xff, 0xff, 0xff, 0x7f]].concat();
    assert_eq!(restore(&head).unwrap_err().to_string(), "malformed snapshot: a configuration without end");
}

#[test]
fn a_large_write_that_has_come_in_part_is_in_the_snapshot() {
    let large = pack("SET large 0123456789");
    let (half, total) = (large.len() / 2, large.len() as u64);
    let mut machine = sample();
    let send = |machine: &mut ShardMachine, from: usize, to: usize| {
        let index = machine.applied().unwrap() + 1;
        let mut entry = entry(START_MS);
        entry.chunk(from as u64, total, &large[from..to]);
        machine.apply(index, 8, &entry.finish(), &mut Unwitnessed).unwrap();
    };
    assert_eq!(machine.snapshot().dump()[4], 4, "what became of a string is newer, too");
    let mut forget = entry(START_MS);
    forget.command(1, &pack("DEL log"));
    machine.apply(machine.applied().unwrap() + 1, 8, &forget.finish(), &mut Unwitnessed).unwrap();
    let without = machine.snapshot().dump();
    send(&mut machine, 0, half);
    let dump = machine.snapshot().dump();
    let tail = [&[large.len() as u8, half as u8], &large[..half]].concat();
    assert!(dump.ends_with(&tail));
    assert_eq!((dump[4], without[4]), (3, 2), "only what older versions do not know has the higher level");
    for cut in 0..dump.len() {
        restore(&dump[..cut]).unwrap_err();
    }
    let mut lying = dump.clone();
    let at = lying.len() - tail.len();
    lying[at] = half as u8 - 1;
    assert_eq!(restore(&lying).unwrap_err().to_string(), "malformed snapshot: a command longer than it is");

    let mut restored = restore(&dump).unwrap();
    // Both at once: a string that was changed in place, and a write that has come in part.
    let mut both = sample();
    send(&mut both, 0, half);
    let dump_of_both = both.snapshot().dump();
    assert_eq!(dump_of_both[4], 4);
    assert!(dump_of_both.ends_with(&tail));
    assert_eq!(restore(&dump_of_both).unwrap().snapshot().dump(), dump_of_both);
    for machine in [&mut machine, &mut restored] {
        send(machine, half, large.len());
        let mut entry = entry(START_MS);
        entry.assembled(0, total);
        let index = machine.applied().unwrap() + 1;
        machine.apply(index, 8, &entry.finish(), &mut Unwitnessed).unwrap();
    }
    assert_eq!(machine.snapshot().dump(), restored.snapshot().dump());
    assert_eq!(machine.snapshot().dump()[4], 2);
    assert_eq!(restored.keyspace().len(0), sample().keyspace().len(0) + 1);
}

#[test]
fn a_replica_that_stopped_has_no_snapshot() {
    let mut machine = sample();
    machine.apply(8, 8, b"?", &mut Unwitnessed).unwrap_err();
    let error = machine.snapshot().write(&mut Vec::new()).unwrap_err();
    assert_eq!(error.to_string(), "the replica has stopped in the middle of an entry");
}

#[test]
fn a_snapshot_travels() {
    fn travels<T: Send + Sync + 'static>() {}
    travels::<kvorum_cluster::ShardSnapshot>();
}

proptest! {
    /// Random bytes behind a good beginning never panic.
    #[test]
    fn any_bytes_are_a_replica_or_an_error(keep in any::<prop::sample::Index>(), random in prop::collection::vec(any::<u8>(), 0..200)) {
        let dump = sample().snapshot().dump();
        let bytes = [&dump[..keep.index(dump.len())], &random].concat();
        if let Ok(machine) = restore(&bytes) {
            prop_assert_eq!(restore(&machine.snapshot().dump()).unwrap().snapshot().dump(), machine.snapshot().dump());
        }
    }
}

#[test]
fn the_meta_machine_as_json() {
    let empty = MetaMachine::new();
    assert_eq!(empty.snapshot(), br#"{"format":1,"applied":null,"topology":null}"#);
    assert_eq!(MetaMachine::restore(&empty.snapshot()).unwrap(), empty);
    let mut meta = created(create(3, 3, Mode::Cluster));
    meta.apply(2, &MetaCommand::ServerUp { server: ServerId(2), up: false }.encode()).unwrap();
    let snapshot = meta.snapshot();
    let mut restored = MetaMachine::restore(&snapshot).unwrap();
    assert_eq!(restored, meta);
    assert_eq!(restored.snapshot(), snapshot);
    for meta in [&mut meta, &mut restored] {
        meta.apply(3, &MetaCommand::ServerUp { server: ServerId(2), up: true }.encode()).unwrap();
    }
    assert_eq!(restored, meta);

    let text = String::from_utf8(snapshot.clone()).unwrap();
    let error = |text: &str| MetaMachine::restore(text.as_bytes()).unwrap_err().to_string();
    assert_eq!(
        error(&text.replacen("\"format\":1", "\"format\":2", 1)),
        "snapshot format 2 is not known to this version"
    );
    for (from, to) in [
        ("\"applied\":2", "\"applied\":null"),
        ("\"applied\":2", "\"applied\":2,\"more\":1"),
        ("\"applied\":2,", ""),
        // The rules of a topology hold here too.
        ("\"base_port\":7200", "\"base_port\":7101"),
    ] {
        assert!(text.contains(from), "{text}");
        assert!(error(&text.replacen(from, to, 1)).starts_with("malformed snapshot: "), "{to}");
    }
    for cut in 0..snapshot.len() {
        assert!(MetaMachine::restore(&snapshot[..cut]).is_err(), "cut at {cut}");
    }
}
