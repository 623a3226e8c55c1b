//! Properties of the keyspace under random histories, seen through its commands.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use kvorum_keyspace::{Keyspace, Settings, Slot, argv, slot_of};
use proptest::{collection::vec, prelude::*};
use std::collections::{BTreeMap, BTreeSet};
use support::{Bare, Reply};

/// One step of a history over a small set of keys.
#[derive(Clone, Debug)]
enum Step {
    Set {
        key: u16,
        len: usize,
        ttl_ms: Option<u64>,
    },
    Append {
        key: u16,
        len: usize,
    },
    SetRange {
        key: u16,
        offset: usize,
        len: usize,
    },
    Rename {
        key: u16,
        to: u16,
    },
    Copy {
        key: u16,
        to: u16,
    },
    /// There and back: nothing changes but the sequences.
    Swap,
    Del {
        key: u16,
    },
    Expire {
        key: u16,
        ttl_ms: i64,
    },
    Persist {
        key: u16,
    },
    Clock {
        ms: u64,
    },
    ExpireDue {
        limit: usize,
    },
    /// Many keys at once, so that tables grow, or shrink.
    Fill {
        from: u16,
        to: u16,
        remove: bool,
    },
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..3000u16;
    // Short, at the edge of what is packed, and big.
    let len = prop_oneof![4 => 0..40usize, 1 => 250..260usize, 1 => 1000..1100usize];
    prop_oneof![
        6 => (key.clone(), len.clone(), prop::option::of(1..500u64)).prop_map(|(key, len, ttl_ms)| Step::Set { key, len, ttl_ms }),
        2 => (key.clone(), len.clone()).prop_map(|(key, len)| Step::Append { key, len }),
        2 => (key.clone(), 0..300usize, len).prop_map(|(key, offset, len)| Step::SetRange { key, offset, len }),
        2 => (key.clone(), key.clone()).prop_map(|(key, to)| Step::Rename { key, to }),
        2 => (key.clone(), key.clone()).prop_map(|(key, to)| Step::Copy { key, to }),
        1 => Just(Step::Swap),
        3 => key.clone().prop_map(|key| Step::Del { key }),
        2 => (key.clone(), -10..500i64).prop_map(|(key, ttl_ms)| Step::Expire { key, ttl_ms }),
        1 => key.clone().prop_map(|key| Step::Persist { key }),
        2 => (0..100u64).prop_map(|ms| Step::Clock { ms }),
        1 => (0..20usize).prop_map(|limit| Step::ExpireDue { limit }),
        2 => (key.clone(), key, any::<bool>()).prop_map(|(a, b, remove)| Step::Fill { from: a.min(b), to: a.max(b), remove }),
        1 => Just(Step::Flush),
    ]
}

/// A third of the keys share one slot, so that its table becomes a tree; some names are too long to be packed.
fn name(key: u16) -> Vec<u8> {
    match key % 3 {
        0 => format!("key:{key}").into_bytes(),
        1 => format!("{{one slot}}:{key}").into_bytes(),
        _ => [format!("key:{key}:").as_bytes(), &b"x".repeat(usize::from(key % 300))].concat(),
    }
}

/// The same in an ordered map: value and deadline.
type Model = BTreeMap<Vec<u8>, (Vec<u8>, Option<u64>)>;

fn apply(bare: &mut Bare, step: &Step) {
    let text = |number: &dyn ToString| number.to_string().into_bytes();
    match step {
        Step::Set { key, len, ttl_ms: None } => drop(bare.run(&[b"SET", &name(*key), &vec![b'v'; *len]])),
        Step::Set { key, len, ttl_ms: Some(ttl) } => {
            bare.run(&[b"SET", &name(*key), &vec![b'v'; *len], b"PX", &text(ttl)]);
        }
        Step::Append { key, len } => drop(bare.run(&[b"APPEND", &name(*key), &vec![b'a'; *len]])),
        Step::SetRange { key, offset, len } => {
            bare.run(&[b"SETRANGE", &name(*key), &text(offset), &vec![b'r'; *len]]);
        }
        Step::Rename { key, to } => drop(bare.run(&[b"RENAME", &name(*key), &name(*to)])),
        Step::Copy { key, to } => drop(bare.run(&[b"COPY", &name(*key), &name(*to), b"REPLACE"])),
        Step::Swap => {
            bare.run(&[b"SWAPDB", b"0", b"1"]);
            bare.run(&[b"SWAPDB", b"0", b"1"]);
        }
        Step::Del { key } => drop(bare.run(&[b"DEL", &name(*key)])),
        Step::Expire { key, ttl_ms } => drop(bare.run(&[b"PEXPIRE", &name(*key), &text(ttl_ms)])),
        Step::Persist { key } => drop(bare.run(&[b"PERSIST", &name(*key)])),
        Step::Clock { ms } => bare.now_ms += ms,
        Step::ExpireDue { limit } => drop(bare.keyspace.expire_due(bare.now_ms, *limit)),
        Step::Fill { from, to, remove } => {
            for key in *from..*to {
                apply(
                    bare,
                    &if *remove { Step::Del { key } } else { Step::Set { key, len: 8, ttl_ms: None } },
                );
            }
        }
        Step::Flush => drop(bare.run(&[b"FLUSHALL"])),
    }
}

fn apply_to_model(model: &mut Model, now_ms: &mut u64, step: &Step) {
    let now = *now_ms;
    let alive =
        |model: &Model, key: &[u8]| model.get(key).is_some_and(|(_, at)| at.is_none_or(|at| at > now));
    match step {
        Step::Set { key, len, ttl_ms } => {
            model.insert(name(*key), (vec![b'v'; *len], ttl_ms.map(|ttl| now + ttl)));
        }
        Step::Append { key, len } => {
            let key = name(*key);
            if !alive(model, &key) {
                model.remove(&key);
            }
            model.entry(key).or_default().0.extend(vec![b'a'; *len]);
        }
        Step::SetRange { key, offset, len } => {
            let key = name(*key);
            if !alive(model, &key) {
                model.remove(&key);
            }
            if *len > 0 {
                let value = &mut model.entry(key).or_default().0;
                value.resize(value.len().max(offset + len), 0);
                value[*offset..offset + len].fill(b'r');
            }
        }
        Step::Rename { key, to } | Step::Copy { key, to } => {
            let (key, to) = (name(*key), name(*to));
            if alive(model, &key) && key != to {
                let value = model[&key].clone();
                if matches!(step, Step::Rename { .. }) {
                    model.remove(&key);
                }
                model.insert(to, value);
            }
        }
        Step::Swap => {}
        Step::Del { key } => drop(model.remove(&name(*key))),
        Step::Expire { key, ttl_ms } => {
            let key = name(*key);
            if alive(model, &key) {
                model.get_mut(&key).unwrap().1 = Some(now.saturating_add_signed(*ttl_ms));
            }
        }
        Step::Persist { key } => {
            let key = name(*key);
            if alive(model, &key) {
                model.get_mut(&key).unwrap().1 = None;
            }
        }
        Step::Clock { ms } => *now_ms += ms,
        Step::ExpireDue { .. } => {}
        Step::Fill { from, to, remove } => {
            for key in *from..*to {
                let step = if *remove { Step::Del { key } } else { Step::Set { key, len: 8, ttl_ms: None } };
                apply_to_model(model, now_ms, &step);
            }
        }
        Step::Flush => model.clear(),
    }
}

/// Every key of the keyspace that is alive, by walking with SCAN.
fn scan_all(bare: &mut Bare, count: usize, mut between: impl FnMut(&mut Bare)) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut cursor = b"0".to_vec();
    loop {
        let reply = bare.run(&[b"SCAN", &cursor, b"COUNT", count.to_string().as_bytes()]);
        let Reply::Array(parts) = reply else { panic!("{reply:?}") };
        let [Reply::Bulk(next), Reply::Array(keys)] = parts.as_slice() else { panic!("{parts:?}") };
        found.extend(keys.iter().map(|key| match key {
            Reply::Bulk(key) => key.clone(),
            other => panic!("{other:?}"),
        }));
        if next == b"0" {
            return found;
        }
        cursor = next.clone();
        between(bare);
    }
}

/// Everything there is, but not the checksum.
fn state(bare: &Bare) -> Vec<u8> {
    let dump = bare.keyspace.dump();
    let mut rest = dump.as_slice();
    argv::take_varint(&mut rest).unwrap();
    argv::take_varint(&mut rest).unwrap();
    let at = dump.len() - rest.len();
    [&dump[..at], &dump[at + 8..]].concat()
}

fn invariant_counts_agree(bare: &Bare) {
    let counted: usize =
        (0..16384).filter_map(Slot::new).map(|slot| bare.keyspace.count_in_slot(0, slot)).sum();
    assert_eq!(counted, bare.keyspace.len(0));
    if bare.keyspace.len(0) == 0 {
        assert_eq!(bare.keyspace.used_memory(), 0);
        assert_eq!(bare.keyspace.expiring(0), 0);
    }
    assert_eq!(bare.keyspace.next_deadline().is_some(), bare.keyspace.expiring(0) > 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_keyspace_equals_an_ordered_map(steps in vec(step(), 1..60)) {
        let mut bare = Bare::new();
        let mut model = Model::new();
        let mut now_ms = bare.now_ms;
        for step in &steps {
            apply(&mut bare, step);
            apply_to_model(&mut model, &mut now_ms, step);
            invariant_counts_agree(&bare);
        }
        model.retain(|_, (_, deadline)| deadline.is_none_or(|deadline| deadline > now_ms));
        let found: BTreeSet<Vec<u8>> = scan_all(&mut bare, 100, |_| {}).into_iter().collect();
        prop_assert_eq!(found, model.keys().cloned().collect());
        for (key, (value, deadline)) in &model {
            prop_assert_eq!(bare.run(&[b"GET", key]), Reply::Bulk(value.clone()));
            let shown = deadline.map_or(-1, |deadline| i64::try_from(deadline).unwrap());
            prop_assert_eq!(bare.run(&[b"PEXPIRETIME", key]), Reply::Int(shown));
        }
        bare.keyspace.expire_due(now_ms, usize::MAX);
        prop_assert_eq!(bare.keyspace.len(0), model.len());
        invariant_counts_agree(&bare);
    }

    #[test]
    fn the_same_history_gives_the_same_bytes(steps in vec(step(), 1..60)) {
        let (mut a, mut b) = (Bare::new(), Bare::new());
        for step in &steps {
            apply(&mut a, step);
        }
        for step in &steps {
            apply(&mut b, step);
        }
        prop_assert_eq!(a.keyspace.dump(), b.keyspace.dump());
        prop_assert_eq!(a.keyspace.next_deadline(), b.keyspace.next_deadline());
        prop_assert_eq!(a.keyspace.expire_due(u64::MAX, 7), b.keyspace.expire_due(u64::MAX, 7));
        prop_assert_eq!(a.keyspace.dump(), b.keyspace.dump());
    }

    #[test]
    fn a_snapshot_does_not_see_later_writes(before in vec(step(), 1..30), after in vec(step(), 1..30)) {
        let mut bare = Bare::new();
        before.iter().for_each(|step| apply(&mut bare, step));
        let dump = bare.keyspace.dump();
        let snapshot = bare.keyspace.snapshot();
        after.iter().for_each(|step| apply(&mut bare, step));
        prop_assert_eq!(snapshot.dump(), dump);
        // And the keyspace is what it would be without the snapshot.
        let mut alone = Bare::new();
        before.iter().chain(&after).for_each(|step| apply(&mut alone, step));
        prop_assert_eq!(bare.keyspace.dump(), alone.keyspace.dump());
    }

    /// Once two keyspaces went different ways, their checksums differ for ever, also when they come to hold the same.
    #[test]
    fn the_checksum_remembers_every_difference(
        before in vec(step(), 0..10), a in step(), b in step(), after in vec(step(), 0..10),
    ) {
        let run = |this: &Step| {
            let mut bare = Bare::new();
            let mut way = Vec::new();
            for step in before.iter().chain([this]).chain(&after).chain([&Step::Flush]) {
                apply(&mut bare, step);
                way.push(state(&bare));
            }
            way.dedup();
            (way, bare.keyspace.checksum())
        };
        let (a, b) = (run(&a), run(&b));
        prop_assert!(a.0 == b.0 || a.1 != b.1);
    }

    #[test]
    fn a_restored_keyspace_goes_on_alike(before in vec(step(), 1..30), after in vec(step(), 1..30)) {
        let mut bare = Bare::new();
        before.iter().for_each(|step| apply(&mut bare, step));
        let mut other = Bare::new();
        let settings = Settings { databases: 16, hash_seed: *b"sixteen bytes ok" };
        other.keyspace = Keyspace::restore(settings, 0, &mut bare.keyspace.dump().as_slice()).unwrap();
        other.now_ms = bare.now_ms;
        invariant_counts_agree(&other);
        for step in &after {
            apply(&mut bare, step);
            apply(&mut other, step);
            prop_assert_eq!(bare.keyspace.checksum(), other.keyspace.checksum());
        }
        invariant_counts_agree(&other);
        prop_assert_eq!(bare.keyspace.dump(), other.keyspace.dump());
        prop_assert_eq!(bare.keyspace.used_memory(), other.keyspace.used_memory());
        prop_assert_eq!(bare.keyspace.next_deadline(), other.keyspace.next_deadline());
    }

    #[test]
    fn scan_returns_what_stays_even_while_the_table_grows_and_shrinks(
        stay in 1..2000u16,
        count in 1..200usize,
        changes in vec(step(), 1..20),
    ) {
        let mut bare = Bare::new();
        let kept = |key: u16| format!("stays:{key}:{{{}}}", key % 7).into_bytes();
        for key in 0..stay {
            bare.run(&[b"SET", &kept(key), b"v"]);
        }
        let mut changes = changes.iter().filter(|change| !matches!(change, Step::Flush)).cycle();
        let found = scan_all(&mut bare, count, |bare| {
            if let Some(change) = changes.next() {
                apply(bare, change);
            }
        });
        let found: BTreeSet<Vec<u8>> = found.into_iter().collect();
        for key in 0..stay {
            prop_assert!(found.contains(&kept(key)), "key {} was missed", key);
        }
    }

    #[test]
    fn expire_due_removes_the_earliest_first(deadlines in vec(1..1000u64, 1..300), now in 0..1200u64, limit in 0..400usize) {
        let mut bare = Bare::new();
        let start = bare.now_ms;
        for (key, deadline) in deadlines.iter().enumerate() {
            bare.run(&[b"SET", key.to_string().as_bytes(), b"v", b"PXAT", (start + deadline).to_string().as_bytes()]);
        }
        let due = deadlines.iter().filter(|deadline| **deadline <= now).count().min(limit);
        prop_assert_eq!(bare.keyspace.expire_due(start + now, limit), due);
        let mut left: Vec<u64> = deadlines.clone();
        left.sort_unstable();
        prop_assert_eq!(bare.keyspace.next_deadline(), left.get(due).map(|deadline| start + deadline));
        prop_assert_eq!(bare.keyspace.len(0), deadlines.len() - due);
        prop_assert_eq!(bare.keyspace.stats().expired_keys, due as u64);
    }
}

#[test]
fn a_read_in_doubt_waits_for_the_clock_of_the_log() {
    let mut bare = Bare::new();
    let now = bare.now_ms;
    bare.line("SET k v PX 100");
    let get = |log_clock: u64, now: u64| {
        let reader = bare.keyspace.reader(0, log_clock, now);
        (reader.get(b"k").is_some(), reader.waits_for())
    };
    assert_eq!(get(now, now + 99), (true, None));
    assert_eq!(get(now, now + 100), (false, Some(now + 100)));
    assert_eq!(get(now + 99, now + 500), (false, Some(now + 100)));
    assert_eq!(get(now + 100, now + 500), (false, None));
    assert_eq!(bare.keyspace.len(0), 1, "a read never deletes");
}

#[test]
fn sequences_tell_changes_of_keys_there_and_gone() {
    let mut bare = Bare::new();
    let sequence = |bare: &Bare, key: &str| {
        bare.keyspace.reader(0, bare.now_ms, bare.now_ms).sequence_of(key.as_bytes())
    };
    bare.line("SET a 1");
    bare.line("SET b 1");
    assert_eq!((sequence(&bare, "a"), sequence(&bare, "b"), bare.keyspace.sequence()), (1, 2, 2));
    // All keys of one command have one sequence; what changes nothing advances nothing.
    bare.line("MSET a 2 c 2");
    bare.line("GET a");
    bare.line("DEL nothing");
    bare.line("SET a x NX");
    bare.line("PERSIST a");
    assert_eq!((sequence(&bare, "a"), sequence(&bare, "c"), bare.keyspace.sequence()), (3, 3, 3));
    bare.line("EXPIRE a 1");
    assert_eq!(sequence(&bare, "a"), 4);
    bare.line("DEL b");
    assert_eq!(sequence(&bare, "b"), 5);
    assert_eq!(sequence(&bare, "never was"), 0);
    bare.now_ms += 1000;
    assert_eq!(bare.keyspace.expire_due(bare.now_ms, 10), 1);
    assert_eq!((sequence(&bare, "a"), slot_of(b"a") == slot_of(b"b")), (6, false));
    bare.line("FLUSHALL");
    assert_eq!((sequence(&bare, "c"), sequence(&bare, "never was")), (7, 7));
    bare.line("FLUSHALL");
    assert_eq!(bare.keyspace.sequence(), 7);
}

#[test]
fn one_slot_grows_to_many_keys_and_shrinks_to_none() {
    // Enough for a branch below a branch: more than 256 times 256, less what chance fills unevenly.
    const KEYS: usize = 62_000;
    let mut bare = Bare::new();
    let key = |n: usize| format!("{{t}}{n}").into_bytes();
    for n in 0..KEYS {
        bare.run(&[b"SET", &key(n), b"v"]);
    }
    assert_eq!(bare.keyspace.count_in_slot(0, slot_of(b"t")), KEYS);
    assert_eq!(scan_all(&mut bare, 1000, |_| {}).into_iter().collect::<BTreeSet<_>>().len(), KEYS);
    let snapshot = bare.keyspace.snapshot();
    let dump = bare.keyspace.dump();
    for n in 0..KEYS {
        assert_eq!(bare.run(&[b"DEL", &key(n)]), Reply::Int(1), "key {n}");
        if n % 10_007 == 0 {
            assert_eq!(bare.run(&[b"GET", &key(KEYS - 1)]), Reply::Bulk(b"v".to_vec()));
        }
    }
    invariant_counts_agree(&bare);
    assert_eq!(snapshot.dump(), dump);
}

#[test]
fn readers_share_a_keyspace_and_snapshots_travel() {
    fn shared<T: Send + Sync>() {}
    shared::<kvorum_keyspace::Keyspace>();
    shared::<kvorum_keyspace::Snapshot>();
    shared::<kvorum_keyspace::Garbage>();
}

#[test]
fn a_random_key_is_any_that_has_not_expired() {
    const KEYS: usize = 1500;
    let mut bare = Bare::new();
    assert_eq!(bare.run(&[b"RANDOMKEY"]), Reply::Null);
    // A third in one slot, whose table is a tree; every fifth key is due and still there.
    for n in 0..KEYS {
        let key = if n % 3 == 0 { format!("{{t}}{n}") } else { n.to_string() };
        let value: &[u8] = if n % 5 == 0 { b"gone" } else { b"stays" };
        bare.run(&[b"SET", key.as_bytes(), value]);
        if n % 5 == 0 {
            bare.run(&[b"PEXPIRE", key.as_bytes(), b"10"]);
        }
    }
    bare.now_ms += 10;
    let mut drawn: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    for _ in 0..40 * KEYS {
        let Reply::Bulk(key) = bare.run(&[b"RANDOMKEY"]) else { panic!("there are keys") };
        *drawn.entry(key).or_default() += 1;
    }
    assert_eq!(bare.keyspace.len(0), KEYS, "a read never deletes");
    assert_eq!(drawn.len(), KEYS - KEYS / 5, "each that is there comes, and no other");
    // Forty to fifty times each, give or take; where a table was split, twice as often or half as often.
    let (least, most) = (drawn.values().min().unwrap(), drawn.values().max().unwrap());
    assert!(*least > 10 && *most < 180, "{least} to {most}");
    // One key among many that are gone is found, and none where none is left.
    for n in 0..KEYS {
        let key = if n % 3 == 0 { format!("{{t}}{n}") } else { n.to_string() };
        if n != 7 {
            bare.run(&[b"PEXPIRE", key.as_bytes(), b"10"]);
        }
    }
    bare.now_ms += 10;
    assert_eq!(bare.run(&[b"RANDOMKEY"]), Reply::Bulk(b"7".to_vec()));
    bare.run(&[b"DEL", b"7"]);
    assert_eq!(bare.run(&[b"RANDOMKEY"]), Reply::Null);
}

#[test]
fn a_random_key_in_doubt_waits_for_the_clock_of_the_log() {
    let mut bare = Bare::new();
    let now = bare.now_ms;
    bare.line("SET k v PX 100");
    let row = kvorum_keyspace::lookup(b"randomkey").unwrap();
    let kvorum_keyspace::Run::Read(run) = row.run else { panic!("it reads") };
    let reader = bare.keyspace.reader(0, now, now + 100);
    run(&reader, &[b"RANDOMKEY"], &mut kvorum_keyspace::NullSink).unwrap();
    assert_eq!(reader.waits_for(), Some(now + 100));
}

#[test]
fn the_use_of_a_key_is_no_state() {
    let mut bare = Bare::new();
    bare.line("SET k v");
    bare.line("SET big v");
    bare.run(&[b"APPEND", b"big", &[b'x'; 400]]);
    let idle = |bare: &mut Bare, key: &str| bare.line(&format!("OBJECT IDLETIME {key}"));
    let (dump, checksum) = (bare.keyspace.dump(), bare.keyspace.checksum());
    let snapshot = bare.keyspace.snapshot();
    bare.now_ms += 70_000;
    assert_eq!(
        (idle(&mut bare, "k"), idle(&mut bare, "big")),
        ("(integer) 70".into(), "(integer) 70".into())
    );
    bare.line("GET k");
    bare.line("TOUCH big");
    assert_eq!((idle(&mut bare, "k"), idle(&mut bare, "big")), ("(integer) 0".into(), "(integer) 0".into()));
    assert_eq!(
        (bare.keyspace.dump(), bare.keyspace.checksum(), snapshot.dump()),
        (dump.clone(), checksum, dump.clone())
    );
    // Whoever restores it takes all keys for just used.
    let settings = Settings { databases: 16, hash_seed: *b"sixteen bytes ok" };
    bare.keyspace = Keyspace::restore(settings, bare.now_ms, &mut dump.as_slice()).unwrap();
    bare.now_ms += 5_000;
    assert_eq!(idle(&mut bare, "k"), "(integer) 5");
    // A client that asked for it reads without using, and can still touch.
    let read = |bare: &Bare, line: &str| {
        let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let kvorum_keyspace::Run::Read(run) = kvorum_keyspace::lookup(args[0]).unwrap().run else {
            panic!("it reads")
        };
        let reader = bare.keyspace.reader(0, bare.now_ms, bare.now_ms).untouching();
        run(&reader, &args, &mut kvorum_keyspace::NullSink).unwrap();
    };
    read(&bare, "MGET k big");
    assert_eq!(idle(&mut bare, "k"), "(integer) 5");
    read(&bare, "TOUCH k");
    assert_eq!((idle(&mut bare, "k"), idle(&mut bare, "big")), ("(integer) 0".into(), "(integer) 5".into()));
    bare.now_ms += 5_000;
    // Writes use a key as well, and what moves a key takes its value along, not its rest.
    bare.line("APPEND k x");
    assert_eq!(idle(&mut bare, "k"), "(integer) 0");
    // Compaction, splits and joins keep the times.
    bare.now_ms += 1_000_000;
    (0..600).for_each(|n| drop(bare.line(&format!("SET {{k}}{n} v"))));
    (0..600).for_each(|n| drop(bare.line(&format!("DEL {{k}}{n}"))));
    assert_eq!(idle(&mut bare, "k"), "(integer) 1000");
}

/// WATCH compares sequences: whoever watched a key sees the databases change places, whatever was and is there.
#[test]
fn sequences_tell_that_databases_changed_places() {
    let mut bare = Bare::new();
    let sequence = |bare: &Bare, db: u16, key: &str| {
        bare.keyspace.reader(db, bare.now_ms, bare.now_ms).sequence_of(key.as_bytes())
    };
    bare.line("SET both 0");
    bare.line("SET moved 0");
    bare.db = 1;
    bare.line("SET both 1");
    bare.db = 0;
    // One command, one sequence: there in one database, gone from the other.
    bare.line("MOVE moved 1");
    assert_eq!(sequence(&bare, 0, "moved"), sequence(&bare, 1, "moved"));
    let keys = ["both", "moved"];
    let before: Vec<u64> = [0, 1].iter().flat_map(|db| keys.map(|key| sequence(&bare, *db, key))).collect();
    bare.line("SWAPDB 0 1");
    let after: Vec<u64> = [0, 1].iter().flat_map(|db| keys.map(|key| sequence(&bare, *db, key))).collect();
    assert!(before.iter().zip(&after).all(|(before, after)| before < after), "{before:?} {after:?}");
    assert_eq!(bare.line("GET moved"), "\"0\"");
    bare.line("SET both 2");
    assert!(sequence(&bare, 0, "both") > sequence(&bare, 1, "both"));
}

/// A copy of a long value shares its bytes until one of the two changes.
#[test]
fn copies_of_long_values_go_their_own_ways() {
    let mut bare = Bare::new();
    bare.run(&[b"SET", b"from", &[b'v'; 1000]]);
    bare.line("COPY from a");
    bare.line("COPY from b");
    bare.line("RENAME b c");
    bare.line("APPEND a more");
    bare.line("SETRANGE c 0 other");
    assert_eq!(bare.line("STRLEN from"), "(integer) 1000");
    assert_eq!(bare.line("GETRANGE from 0 4"), "\"vvvvv\"");
    assert_eq!(bare.line("GETRANGE c 0 5"), "\"otherv\"");
    assert_eq!(bare.line("GETRANGE a 998 -1"), "\"vvmore\"");
}
