//! One long random log on several replicas, some of them restored from snapshots on the way: they stay equal, byte for
//! byte, and tell the leader's clients the same.

use crate::support::Rendered;
use kvorum_cluster::{
    BASE_LEVEL, Configure, EntryBuilder, Header, Mode, Note, Refusal, ShardId, ShardMachine, ShardSnapshot,
    SlotSet, SplitMix64, Unwitnessed, Witness,
};
use kvorum_keyspace::{Sink, argv, command};
use std::collections::BTreeSet;

const COMMANDS: usize = 100_000;
const COMMANDS_PER_ENTRY: u64 = 20;
const START_MS: u64 = 1_700_000_000_000;
const DATABASES: u16 = 3;

/// `K` is a key, `V` a value, `N` a number, `L` a value that is sometimes long, `D` a dump.
const TEMPLATES: &[(u64, &str)] = &[
    (30, "SET K L"),
    (10, "SET K V PX N"),
    (4, "SET K V EX N GET"),
    (4, "SET K V NX"),
    (4, "SET K V XX KEEPTTL"),
    (4, "SET K V PXAT N"),
    (3, "SETNX K V"),
    (3, "SETEX K N V"),
    (3, "PSETEX K N V"),
    (3, "GETSET K L"),
    (3, "GETDEL K"),
    (3, "GETEX K PX N"),
    (2, "GETEX K PERSIST"),
    (12, "APPEND K L"),
    (6, "INCR K"),
    (4, "INCRBY K N"),
    (3, "DECR K"),
    (3, "DECRBY K N"),
    (4, "MSET K V K L K V"),
    (6, "DEL K K"),
    (3, "UNLINK K K K"),
    (6, "EXPIRE K N"),
    (6, "PEXPIRE K N"),
    (2, "EXPIREAT K N"),
    (2, "PEXPIREAT K N"),
    (4, "PERSIST K"),
    (2, "SET K V IFEQ V GET"),
    (2, "SET K V IFNE V KEEPTTL"),
    (4, "INCRBYFLOAT K N"),
    (2, "INCRBYFLOAT K 0.1"),
    (3, "MSETNX K V K V"),
    (5, "SETRANGE K 3 L"),
    (2, "SETRANGE K 300 V"),
    (2, "DELEX K IFNE V"),
    (2, "DELIFEQ K V"),
    (5, "RENAME K K"),
    (3, "RENAMENX K K"),
    (4, "COPY K K REPLACE"),
    (3, "COPY K K DB 1"),
    (3, "MOVE K 2"),
    (2, "RESTORE K 0 D REPLACE"),
    (2, "RESTORE K N D ABSTTL IDLETIME N"),
    (1, "RESTORE-ASKING K 0 D"),
];

struct Generator {
    seeds: SplitMix64,
    clock_ms: u64,
    version: u64,
    commands: usize,
    used: BTreeSet<String>,
}

impl Generator {
    fn below(&mut self, limit: u64) -> u64 {
        self.seeds.draw() % limit
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    /// A third of the keys share a slot, a few names are too long to be packed.
    fn key(&mut self) -> Vec<u8> {
        let n = self.below(6000);
        match n % 3 {
            0 => format!("key:{n}").into_bytes(),
            1 => format!("{{one slot}}:{n}").into_bytes(),
            _ => [format!("{n}:").as_bytes(), &b"x".repeat(if n.is_multiple_of(11) { 260 } else { 5 })]
                .concat(),
        }
    }

    fn value(&mut self, long: bool) -> Vec<u8> {
        match self.below(40) {
            0..15 => self.below(1000).to_string().into_bytes(),
            15 => i64::MAX.to_string().into_bytes(),
            16 if long => vec![b'l'; 250 + self.below(10) as usize],
            17 if long => vec![b'b'; self.below(3000) as usize],
            18 if long && self.chance(4) => vec![b'B'; 50_000 + self.below(50_000) as usize],
            _ => vec![b'v'; self.below(30) as usize],
        }
    }

    fn number(&mut self) -> Vec<u8> {
        match self.below(12) {
            0 => b"0".to_vec(),
            1 => b"-5".to_vec(),
            2 => b"x".to_vec(),
            3 => i64::MAX.to_string().into_bytes(),
            4..8 => (self.clock_ms + self.below(3000)).to_string().into_bytes(),
            8 => (1 + self.below(2000)).to_string().into_bytes(),
            _ => (1 + self.below(100_000)).to_string().into_bytes(),
        }
    }

    fn command(&mut self) -> Vec<Vec<u8>> {
        self.commands += 1;
        let template = if self.chance(6000) {
            "FLUSHALL"
        } else if self.chance(3000) {
            "FLUSHDB"
        } else if self.chance(2000) {
            "SWAPDB 0 1"
        } else {
            let mut left = self.below(TEMPLATES.iter().map(|(weight, _)| weight).sum());
            let row = TEMPLATES.iter().find(|(weight, _)| {
                let found = left < *weight;
                left = left.saturating_sub(*weight);
                found
            });
            row.unwrap().1
        };
        self.used.insert(template.split(' ').next().unwrap().to_lowercase());
        template
            .split(' ')
            .map(|word| match word {
                "K" => self.key(),
                "V" => self.value(false),
                "L" => self.value(true),
                "N" => self.number(),
                // `aaaa…`, ninety times, as Redis dumps it.
                "D" => b"\x00\xc3\t@Z\x01aa\xe0M\x00\x01aa\n\x00\xd0$7e)h[\x80".to_vec(),
                word => word.as_bytes().to_vec(),
            })
            .collect()
    }

    /// The next entry; `None` is one of Raft's own.
    fn entry(&mut self) -> Option<Vec<u8>> {
        if self.chance(50) {
            return None;
        }
        self.clock_ms += self.below(40);
        let header = Header {
            feature_level: BASE_LEVEL,
            clock_ms: self.clock_ms,
            seed: self.seeds.draw(),
            out_of_memory: self.chance(20),
        };
        let mut entry = EntryBuilder::new(header);
        if self.version == 0 || self.chance(200) {
            self.version += 1;
            entry.configure(&configure(self.version));
        }
        for _ in 0..self.below(2 * COMMANDS_PER_ENTRY + 1) {
            let command = self.command();
            let mut packed = Vec::new();
            argv::pack(&mut packed, command.iter().map(Vec::as_slice));
            let db = if self.chance(5) { 1 + self.below(u64::from(DATABASES) - 1) } else { 0 };
            entry.command(u16::try_from(db).unwrap(), &packed);
        }
        if self.chance(4) {
            entry.tick(self.below(30));
        }
        if self.chance(20) {
            entry.check();
        }
        Some(entry.finish())
    }
}

fn configure(version: u64) -> Configure {
    Configure {
        version,
        shard: ShardId(0),
        group: 1,
        mode: Mode::Standalone,
        databases: DATABASES,
        hash_seed: [9; 16],
        slots: SlotSet::all(),
    }
}

#[derive(Default)]
struct Told(Rendered);

impl Witness for Told {
    fn sink(&mut self, _: usize, _: &ShardMachine) -> &mut dyn Sink {
        &mut self.0
    }

    fn refused(&mut self, n: usize, refusal: Refusal) {
        self.0.0.push(format!("{n} {refusal:?}"));
    }
}

fn apply(machine: &mut ShardMachine, index: u64, entry: Option<&[u8]>, witness: &mut dyn Witness) {
    let term = 1 + index / 1000;
    match entry {
        Some(entry) => machine.apply(index, term, entry, witness).unwrap(),
        None => machine.advance(index, term).unwrap(),
    }
}

fn through_bytes(snapshot: &ShardSnapshot) -> ShardMachine {
    let mut bytes = Vec::new();
    snapshot.write(&mut bytes).unwrap();
    ShardMachine::restore(&mut bytes.as_slice()).unwrap()
}

/// The most there was at once.
#[derive(Default, Debug)]
struct Peak {
    keys: usize,
    expiring: usize,
    bytes: u64,
}

impl Peak {
    fn see(&mut self, machine: &ShardMachine) {
        let keyspace = machine.keyspace();
        self.keys = self.keys.max(keyspace.len(0));
        self.expiring = self.expiring.max(keyspace.expiring(0));
        self.bytes = self.bytes.max(keyspace.used_memory());
    }
}

#[test]
fn invariant_replicas_stay_equal_through_snapshots() {
    let mut log = Generator {
        seeds: SplitMix64::new(20_240_601),
        clock_ms: START_MS,
        version: 0,
        commands: 0,
        used: BTreeSet::new(),
    };
    // A leader that never stops, and a follower that is restored now and then.
    let (mut steady, mut restored) = (ShardMachine::new(), ShardMachine::new());
    let mut restores = 0;
    let mut peak = Peak::default();
    // What is still written while the leader goes on, with what it has to say.
    let mut alive: Option<(u64, ShardSnapshot, Vec<u8>)> = None;
    let mut index = 0;
    while log.commands < COMMANDS {
        let entry = log.entry();
        let mut told = Told::default();
        apply(&mut steady, index, entry.as_deref(), &mut told);
        if index % 3 == 0 {
            let mut told_again = Told::default();
            apply(&mut restored, index, entry.as_deref(), &mut told_again);
            assert_eq!(told.0, told_again.0, "at entry {index}");
        } else {
            apply(&mut restored, index, entry.as_deref(), &mut Unwitnessed);
        }
        assert_eq!(steady.checksum(), restored.checksum(), "at entry {index}");
        assert_eq!(steady.next_deadline(), restored.next_deadline(), "at entry {index}");
        if index % 611 == 610 {
            let (a, b) = (steady.snapshot().dump(), restored.snapshot().dump());
            assert!(a == b, "the dumps differ at entry {index}");
            restored = through_bytes(&restored.snapshot());
            assert!(restored.snapshot().dump() == a, "the dump changed through a snapshot at entry {index}");
            restores += 1;
        }
        if index % 400 == 100 {
            let snapshot = steady.snapshot();
            let dump = snapshot.dump();
            alive = Some((index, snapshot, dump));
        }
        if let Some((since, snapshot, dump)) = alive.take_if(|(since, ..)| *since + 150 == index) {
            assert!(snapshot.dump() == dump, "the snapshot of entry {since} changed");
        }
        peak.see(&steady);
        index += 1;
    }
    assert!(steady.snapshot().dump() == restored.snapshot().dump());
    let notes: Vec<Note> = steady.notes().collect();
    assert_eq!(notes, restored.notes().collect::<Vec<_>>());
    assert_eq!(notes.len(), 16);
    // The test is worth something only when all of this happened.
    assert!(restores >= 5, "{restores} restores");
    assert!(peak.keys > 1000 && peak.expiring > 300, "{peak:?}");
    assert!(peak.bytes > 1_000_000, "{peak:?}");
    assert!(steady.keyspace().stats().expired_keys > 500, "{}", steady.keyspace().stats().expired_keys);
    let writes: BTreeSet<String> =
        command::all().filter(|row| row.is_write()).map(|row| row.name.to_owned()).collect();
    assert_eq!(log.used, writes, "each write of the command table is in the log, and nothing else");
}
