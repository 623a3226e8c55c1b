use crate::support::Rendered;
use kvorum_cluster::{
    Configure, EntryBuilder, EntryError, Header, Mode, Refusal, ShardId, ShardMachine, SlotSet, Unwitnessed,
    Witness,
};
use kvorum_keyspace::{Sink, Slot, argv, lookup, slot_of};
use proptest::prelude::*;

const START_MS: u64 = 1_000_000;

fn configure() -> Configure {
    Configure {
        version: 1,
        shard: ShardId(0),
        group: 1,
        mode: Mode::Cluster,
        databases: 1,
        hash_seed: [9; 16],
        slots: SlotSet::all(),
    }
}

fn slot(number: u16) -> Slot {
    Slot::new(number).unwrap()
}

fn at(clock_ms: u64) -> EntryBuilder {
    EntryBuilder::new(Header { feature_level: 1, clock_ms, seed: 1, out_of_memory: false })
}

fn packed(words: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    argv::pack(&mut out, words.iter().copied());
    out
}

fn words(command: &str) -> Vec<&[u8]> {
    command.split(' ').map(str::as_bytes).collect()
}

/// One replica, and what its clients were told.
struct Shard {
    machine: ShardMachine,
    told: Told,
}

#[derive(Default)]
struct Told {
    replies: Rendered,
    /// Read before each command of the next entry, and what it gave.
    read_before: Option<&'static str>,
    reads: Vec<Result<String, Refusal>>,
}

impl Witness for Told {
    fn sink(&mut self, _: usize, before: &ShardMachine) -> &mut dyn Sink {
        if let Some(command) = self.read_before {
            self.reads.push(read(before, command, before.clock_ms()));
        }
        &mut self.replies
    }

    fn refused(&mut self, n: usize, refusal: Refusal) {
        self.replies.0.push(format!("{n} {refusal:?}"));
    }
}

fn read(machine: &ShardMachine, command: &str, now_ms: u64) -> Result<String, Refusal> {
    let args = words(command);
    let mut out = Rendered::default();
    let result = machine.read(0, now_ms, lookup(args[0]).unwrap(), &args, &mut out);
    match result {
        Ok(()) => Ok(out.0.join(" ")),
        Err(refusal) => {
            assert_eq!(out, Rendered::default(), "a refused read has no reply");
            Err(refusal)
        }
    }
}

impl Shard {
    fn virgin() -> Shard {
        Shard { machine: ShardMachine::new(), told: Told::default() }
    }

    fn new(configure: &Configure) -> Shard {
        let mut shard = Shard::virgin();
        shard.machine.advance(0, 0).unwrap();
        let mut entry = at(START_MS);
        entry.configure(configure);
        shard.apply(entry).unwrap();
        shard
    }

    fn apply(&mut self, entry: EntryBuilder) -> Result<(), EntryError> {
        let index = self.machine.applied().map_or(0, |applied| applied + 1);
        self.machine.apply(index, 1, &entry.finish(), &mut self.told)
    }

    /// Applies commands as one entry; the replies.
    fn run(&mut self, clock_ms: u64, commands: &[&str]) -> Vec<String> {
        let mut entry = at(clock_ms);
        for command in commands {
            entry.command(0, &packed(&words(command)));
        }
        self.apply(entry).unwrap();
        std::mem::take(&mut self.told.replies.0)
    }

    fn read(&self, command: &str) -> Result<String, Refusal> {
        read(&self.machine, command, self.machine.clock_ms())
    }

    /// Applies `part` as an entry of this term; the replies.
    fn run_in(&mut self, term: u64, part: impl FnOnce(&mut EntryBuilder)) -> Vec<String> {
        let mut entry = at(START_MS);
        part(&mut entry);
        let index = self.machine.applied().unwrap() + 1;
        self.machine.apply(index, term, &entry.finish(), &mut self.told).unwrap();
        std::mem::take(&mut self.told.replies.0)
    }
}

#[test]
fn writes_reply_and_reads_see_them() {
    let mut shard = Shard::new(&configure());
    assert_eq!(
        shard.run(START_MS, &["SET k v", "INCR n", "incr n", "INCR k"]),
        ["+OK", ":1", ":2", "-ERR value is not an integer or out of range"]
    );
    assert_eq!(shard.read("GET k").unwrap(), "$v");
    assert_eq!(shard.read("MGET k n x").unwrap(), "*3 $v $2 _");
    assert_eq!((shard.machine.applied(), shard.machine.clock_ms()), (Some(2), START_MS));
    assert_eq!(shard.machine.configured(), Some(&configure()));
}

#[test]
fn a_virgin_shard_refuses_everything() {
    let mut shard = Shard::virgin();
    assert_eq!(shard.read("GET k"), Err(Refusal::NotConfigured));
    assert_eq!(shard.run(START_MS, &["SET k v", "FLUSHALL"]), ["0 NotConfigured", "1 NotConfigured"]);
    assert!(!shard.machine.owns(slot(0)) && shard.machine.configured().is_none());
    let mut genesis = at(START_MS);
    genesis.configure(&configure()).command(0, &packed(&words("SET k v")));
    shard.apply(genesis).unwrap();
    assert_eq!(shard.read("GET k").unwrap(), "$v");
}

#[test]
fn slots_of_others_are_refused_in_apply_and_read() {
    // foo is in slot 12182, bar in 5061.
    let mut shard = Shard::new(&Configure { slots: "0-5460".parse().unwrap(), ..configure() });
    let foreign = Refusal::NotOwner(slot(12182));
    assert_eq!(
        shard.run(START_MS, &["SET bar 1", "SET foo 1", "INCR bar"]),
        ["+OK".to_owned(), format!("1 {foreign:?}"), ":2".to_owned()]
    );
    assert_eq!(
        shard.run(START_MS, &["MSET bar 5 foo 5"]),
        [format!("0 {foreign:?}")],
        "not even the keys it owns"
    );
    assert_eq!(shard.read("GET foo"), Err(foreign));
    assert_eq!(shard.read("MGET bar foo"), Err(foreign));
    assert_eq!(shard.read("GET bar").unwrap(), "$2");
    assert_eq!(shard.read("DBSIZE").unwrap(), ":1", "a command without keys needs no slot");
    assert!(shard.machine.owns(slot(5460)) && !shard.machine.owns(slot(5461)));

    // The shard's own log moves the slots: at once for what follows in the same entry.
    let mut entry = at(START_MS);
    entry
        .command(0, &packed(&words("INCR bar")))
        .configure(&Configure { version: 2, slots: "12182".parse().unwrap(), ..configure() })
        .command(0, &packed(&words("INCR bar")))
        .command(0, &packed(&words("INCR foo")));
    shard.apply(entry).unwrap();
    assert_eq!(
        shard.told.replies.0,
        [":3".to_owned(), format!("1 {:?}", Refusal::NotOwner(slot(5061))), ":1".to_owned()]
    );
    assert_eq!(shard.read("GET bar"), Err(Refusal::NotOwner(slot(5061))));
}

#[test]
fn a_standalone_shard_owns_everything() {
    let standalone =
        Configure { mode: Mode::Standalone, databases: 16, slots: SlotSet::EMPTY, ..configure() };
    let mut shard = Shard::new(&standalone);
    assert_eq!(shard.run(START_MS, &["MSET foo 1 bar 2"]), ["+OK"]);
    let mut entry = at(START_MS);
    entry.command(15, &packed(&words("SET foo x")));
    shard.apply(entry).unwrap();
    assert_eq!(shard.read("MGET foo bar").unwrap(), "*2 $1 $2");
    let mut out = Rendered::default();
    shard.machine.read(15, 0, lookup(b"get").unwrap(), &[b"get", b"foo"], &mut out).unwrap();
    shard.machine.read(16, 0, lookup(b"get").unwrap(), &[b"get", b"foo"], &mut out).unwrap();
    assert_eq!(out.0, ["$x", "-ERR DB index is out of range"]);
}

#[test]
fn a_configuration_counts_once_and_keeps_what_never_changes() {
    let mut shard = Shard::new(&Configure { version: 5, ..configure() });
    shard.run(START_MS, &["SET k v"]);
    for version in [4, 5] {
        let mut entry = at(START_MS);
        entry.configure(&Configure { version, slots: SlotSet::EMPTY, ..configure() });
        shard.apply(entry).unwrap();
        assert_eq!(shard.machine.configured().unwrap().slots, SlotSet::all());
    }
    let mut entry = at(START_MS);
    entry.configure(&Configure { version: 6, ..configure() });
    shard.apply(entry).unwrap();
    assert_eq!(shard.machine.configured().unwrap().version, 6);
    assert_eq!(shard.read("GET k").unwrap(), "$v", "the data stay");

    let same = Configure { version: 7, ..configure() };
    for other in [
        Configure { shard: ShardId(1), ..same.clone() },
        Configure { group: 2, ..same.clone() },
        Configure { mode: Mode::Standalone, ..same.clone() },
        Configure { databases: 2, ..same.clone() },
        Configure { hash_seed: [8; 16], ..same.clone() },
    ] {
        let mut shard = Shard::new(&configure());
        let mut entry = at(START_MS);
        entry.configure(&other);
        assert_eq!(shard.apply(entry), Err(EntryError::Reconfigured { version: 7 }));
    }
}

#[test]
fn reads_wait_for_the_log_to_reach_a_deadline() {
    let mut shard = Shard::new(&configure());
    shard.run(START_MS, &["SET soon 1 PX 50", "SET later 1 PX 5000", "SET kept 1"]);
    let deadline = START_MS + 50;
    let read_at = |shard: &Shard, command, now| read(&shard.machine, command, now);
    assert_eq!(shard.machine.next_deadline(), Some(deadline));
    assert_eq!(read_at(&shard, "GET soon", deadline - 1).unwrap(), "$1");
    assert_eq!(read_at(&shard, "GET soon", deadline), Err(Refusal::WaitForClock(deadline)));
    assert_eq!(read_at(&shard, "MGET kept soon", deadline + 9), Err(Refusal::WaitForClock(deadline)));
    assert_eq!(read_at(&shard, "GET kept", deadline + 9).unwrap(), "$1", "another key is not in doubt");
    assert_eq!(
        read_at(&shard, "GET soon", START_MS - 500).unwrap(),
        "$1",
        "a clock behind the log's does not count"
    );

    // An entry without parts moves the clock; the key is gone before a tick removes it.
    shard.apply(at(deadline)).unwrap();
    assert_eq!(read_at(&shard, "GET soon", deadline).unwrap(), "_");
    assert_eq!(shard.machine.keyspace().len(0), 3);
    let mut tick = at(deadline);
    tick.tick(10);
    shard.apply(tick).unwrap();
    assert_eq!(shard.machine.keyspace().len(0), 2);
    assert_eq!(shard.machine.next_deadline(), Some(START_MS + 5000));
}

#[test]
fn a_tick_removes_no_more_than_its_limit() {
    let mut shard = Shard::new(&configure());
    for n in 0..10 {
        shard.run(START_MS, &[&format!("SET k{n} v PX {}", n + 1)]);
    }
    let tick = |shard: &mut Shard, limit| {
        let mut entry = at(START_MS + 8);
        entry.tick(limit);
        shard.apply(entry).unwrap();
        shard.machine.keyspace().len(0)
    };
    assert_eq!([3, 0, 4, u64::MAX].map(|limit| tick(&mut shard, limit)), [7, 7, 3, 2]);
    assert_eq!(shard.machine.next_deadline(), Some(START_MS + 9));
}

/// What a batch of reads and writes needs: each read sees the writes before it and none after, though the log has
/// only the writes.
#[test]
fn a_witness_reads_at_the_place_of_each_command() {
    let mut shard = Shard::new(&Configure { slots: "0-5460".parse().unwrap(), ..configure() });
    shard.told.read_before = Some("GET bar");
    shard.run(START_MS, &["SET bar 1 PX 10", "INCR bar", "INCR foo"]);
    let seen = |told: &Told| told.reads.iter().map(|read| read.clone().unwrap()).collect::<Vec<_>>();
    assert_eq!(seen(&shard.told), ["_", "$1", "$2"], "before a refused command, too");
    shard.run(START_MS + 10, &["SET bar 7", "DEL bar"]);
    assert_eq!(seen(&shard.told)[3..], ["_", "$7"], "at the clock of this entry");
}

#[test]
fn out_of_memory_is_the_leaders_verdict() {
    let mut shard = Shard::new(&configure());
    shard.run(START_MS, &["SET k v"]);
    let header = Header { feature_level: 1, clock_ms: START_MS, seed: 1, out_of_memory: true };
    let mut entry = EntryBuilder::new(header);
    entry.command(0, &packed(&words("SET k w"))).command(0, &packed(&words("DEL k")));
    shard.apply(entry).unwrap();
    assert_eq!(shard.told.replies.0, ["-OOM command not allowed when used memory > 'maxmemory'.", ":1"]);
}

/// A leader that was elected again may not have seen the newest clock yet: its entry happens at that clock.
#[test]
fn an_entry_with_an_older_clock_does_not_turn_the_clock_back() {
    let mut shard = Shard::new(&configure());
    shard.run(START_MS, &["SET k v PX 100"]);
    shard.run(START_MS + 200, &["SET other v"]);
    let replies = shard.run(START_MS + 50, &["APPEND k w", "SET short v PX 10"]);
    assert_eq!(shard.machine.clock_ms(), START_MS + 200);
    assert_eq!(replies, [":1", "+OK"], "the key had expired: nothing to append to");
    assert_eq!(shard.machine.next_deadline(), Some(START_MS + 210), "deadlines count from the shard's time");
}

/// Each entry stops the replica for good, and is named.
#[test]
fn what_stops_a_replica() {
    let command = |db, command: &str| {
        let mut entry = at(START_MS);
        entry.command(db, &packed(&words(command)));
        entry.finish()
    };
    let mut newer = command(0, "SET k w");
    newer[2] = 99;
    let mut torn = command(0, "SET k w");
    torn.pop();
    use EntryError::*;
    for (index, term, entry, error) in [
        (3, 1, command(0, "GET k"), NotAWrite("GET".to_owned())),
        (3, 1, command(0, "PING"), NotAWrite("PING".to_owned())),
        (3, 1, command(0, "SETT k v"), UnknownCommand("SETT".to_owned())),
        (3, 1, command(0, "CLUSTER NOPE"), UnknownCommand("CLUSTER".to_owned())),
        (3, 1, command(0, "SET k"), WrongArity("SET".to_owned())),
        (3, 1, command(1, "SET k w"), UnknownDatabase(1)),
        (2, 1, command(0, "SET k w"), IndexGap { expected: 3, got: 2 }),
        (4, 1, command(0, "SET k w"), IndexGap { expected: 3, got: 4 }),
        (3, 0, command(0, "SET k w"), TermWentBack { term: 1, got: 0 }),
        (3, 1, newer, NewerFeatureLevel(99)),
        (3, 1, vec![7], UnknownFormat(7)),
        (3, 1, torn, Malformed { offset: 30 }),
    ] {
        let mut shard = Shard::new(&configure());
        shard.run(START_MS, &["SET k v"]);
        assert_eq!(shard.machine.apply(index, term, &entry, &mut shard.told), Err(error.clone()));
        assert_eq!(shard.told.replies, Rendered::default(), "{error}: nothing was told");
        assert_eq!(shard.machine.applied(), Some(2));
        assert_eq!(shard.read("GET k"), Err(Refusal::NotConfigured), "{error}: it serves no more");
        assert!(!shard.machine.owns(slot(0)));
        assert_eq!(shard.machine.apply(3, 1, &command(0, "SET k w"), &mut Unwitnessed), Err(Stopped));
        assert_eq!(shard.machine.advance(3, 1), Err(Stopped));
    }
    let mut shard = Shard::new(&configure());
    assert_eq!(shard.machine.advance(5, 1), Err(IndexGap { expected: 2, got: 5 }));
}

fn any_command() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let key = prop::sample::select(vec!["a", "b", "foo", "bar", "{a}1", "{a}2"]);
    let value = prop::sample::select(vec!["1", "10", "x", "", "9223372036854775807"]);
    let number = prop::sample::select(vec!["1", "3", "40", "0", "-1", "x"]);
    let template = prop::sample::select(vec![
        "SET K V",
        "SET K V PX N",
        "SET K V NX GET",
        "SET K V KEEPTTL",
        "GETDEL K",
        "DEL K K",
        "INCR K",
        "INCRBY K N",
        "DECR K",
        "APPEND K V",
        "MSET K V K V",
        "EXPIRE K N",
        "PEXPIRE K N",
        "PERSIST K",
        "FLUSHALL",
    ]);
    (template, prop::collection::vec((key, value, number), 5)).prop_map(|(template, fill)| {
        let mut fill = fill.into_iter();
        template
            .split(' ')
            .map(|word| {
                let (key, value, number) = fill.next().unwrap_or(("a", "1", "1"));
                match word {
                    "K" => key,
                    "V" => value,
                    "N" => number,
                    word => word,
                }
                .as_bytes()
                .to_vec()
            })
            .collect()
    })
}

#[derive(Debug, Clone)]
enum Step {
    Blank,
    Entry {
        later_ms: u64,
        seed: u64,
        full: bool,
        commands: Vec<Vec<Vec<u8>>>,
        tick: Option<u64>,
        slots: Option<u16>,
    },
}

fn any_step() -> impl Strategy<Value = Step> {
    let entry = (
        0u64..30,
        any::<u64>(),
        prop::bool::weighted(0.1),
        prop::collection::vec(any_command(), 0..6),
        prop::option::weighted(0.3, 0u64..4),
        prop::option::weighted(0.1, 5000u16..16384),
    );
    prop_oneof![
        1 => Just(Step::Blank),
        9 => entry.prop_map(|(later_ms, seed, full, commands, tick, slots)| Step::Entry {
            later_ms, seed, full, commands, tick, slots
        }),
    ]
}

fn log_of(steps: &[Step]) -> Vec<Option<Vec<u8>>> {
    let mut clock_ms = START_MS;
    let mut version = 1;
    let mut genesis = at(clock_ms);
    genesis.configure(&configure());
    let entries = steps.iter().map(|step| match step {
        Step::Blank => None,
        Step::Entry { later_ms, seed, full, commands, tick, slots } => {
            clock_ms += later_ms;
            let header = Header { feature_level: 1, clock_ms, seed: *seed, out_of_memory: *full };
            let mut entry = EntryBuilder::new(header);
            for command in
                commands.iter().filter(|command| lookup(&command[0]).is_some_and(|row| row.is_write()))
            {
                entry.command(0, &packed(&command.iter().map(Vec::as_slice).collect::<Vec<_>>()));
            }
            if let Some(last) = slots {
                version += 1;
                entry.configure(&Configure {
                    version,
                    slots: SlotSet::from(slot(0)..=slot(*last)),
                    ..configure()
                });
            }
            if let Some(limit) = tick {
                entry.tick(*limit);
            }
            Some(entry.finish())
        }
    });
    std::iter::once(Some(genesis.finish())).chain(entries).collect()
}

fn replay(
    log: &[Option<Vec<u8>>],
    witness: &mut dyn Witness,
    each: &mut dyn FnMut(&ShardMachine),
) -> ShardMachine {
    let mut machine = ShardMachine::new();
    for (index, entry) in log.iter().enumerate() {
        match entry {
            Some(entry) => machine.apply(index as u64, 1, entry, witness).unwrap(),
            None => machine.advance(index as u64, 1).unwrap(),
        }
        each(&machine);
    }
    machine
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// A leader whose clients watch, read and wait, a follower, and a replica that replays after a restart come to the
    /// same state. What a leader reads by its own clock is what anybody reads by the log's: nothing is seen as expired
    /// that a later reader could still see.
    #[test]
    fn invariant_same_log_same_state(steps in prop::collection::vec(any_step(), 0..30), ahead_ms in 0u64..60) {
        let log = log_of(&steps);
        let mut told = Told { read_before: Some("MGET a {a}1 {a}2"), ..Told::default() };
        // The reads of a leader whose own clock is ahead of the log's.
        let leader = replay(&log, &mut told, &mut |machine| {
            for command in ["GET a", "MGET foo bar", "KEYS *"] {
                match read(machine, command, machine.clock_ms() + ahead_ms) {
                    Ok(reply) => assert_eq!(Ok(reply), read(machine, command, machine.clock_ms())),
                    Err(Refusal::WaitForClock(at_ms)) => assert!(at_ms > machine.clock_ms()),
                    Err(refusal) => assert!(matches!(refusal, Refusal::NotOwner(_))),
                }
            }
        });
        let mut clock_ms = 0;
        let follower = replay(&log, &mut Unwitnessed, &mut |machine| {
            assert!(machine.clock_ms() >= clock_ms, "the log's clock never goes back");
            clock_ms = machine.clock_ms();
        });
        prop_assert_eq!(leader.keyspace().dump(), follower.keyspace().dump());
        prop_assert_eq!((leader.applied(), leader.clock_ms()), (follower.applied(), follower.clock_ms()));
        prop_assert_eq!(leader.configured(), follower.configured());
        let mut again = Told { read_before: told.read_before, ..Told::default() };
        replay(&log, &mut again, &mut |_| ());
        prop_assert_eq!(told.replies, again.replies, "and the same replies");
        prop_assert_eq!(told.reads, again.reads);
    }

    /// Any bytes in a log stop the replica or are applied; nothing panics.
    #[test]
    fn any_bytes_are_applied_or_stop(mut entry in prop::collection::vec(any::<u8>(), 0..60), start: bool) {
        let mut shard = Shard::new(&configure());
        if start {
            entry = [&at(START_MS).finish(), &entry[..]].concat();
        }
        let before = shard.machine.applied();
        let result = shard.machine.apply(2, 1, &entry, &mut shard.told);
        prop_assert_eq!(shard.machine.applied() == before, result.is_err());
    }
}

#[test]
fn the_slots_used_above() {
    assert_eq!((slot_of(b"foo"), slot_of(b"bar")), (slot(12182), slot(5061)));
}

/// `SET k <100 times x>`, packed.
fn large() -> Vec<u8> {
    packed(&[b"SET", b"k", &[b'x'; 100]])
}

fn send(shard: &mut Shard, term: u64, command: &[u8], range: std::ops::Range<usize>) {
    let total = command.len() as u64;
    let told = shard.run_in(term, |entry| {
        entry.chunk(range.start as u64, total, &command[range.clone()]);
    });
    assert_eq!(told, Vec::<String>::new());
}

fn end(shard: &mut Shard, term: u64, command: &[u8]) -> Vec<String> {
    shard.run_in(term, |entry| {
        entry
            .command(0, &packed(&[b"SET", b"before", b"1"]))
            .assembled(0, command.len() as u64)
            .command(0, &packed(&[b"SET", b"after", b"1"]));
    })
}

#[test]
fn a_large_write_comes_in_chunks_with_other_entries_between() {
    let (mut shard, large) = (Shard::new(&configure()), large());
    send(&mut shard, 1, &large, 0..40);
    assert_eq!(shard.run(START_MS, &["SET k small"]), ["+OK"]);
    send(&mut shard, 1, &large, 40..large.len());
    assert_eq!(shard.read("GET k").unwrap(), "$small");
    assert_eq!(shard.machine.assembling_bytes(), large.len() as u64);
    assert_eq!(end(&mut shard, 1, &large), ["+OK", "+OK", "+OK"]);
    assert_eq!(shard.read("STRLEN k").unwrap(), ":100");
    assert_eq!(shard.machine.assembling_bytes(), 0);
    // It runs once.
    assert_eq!(end(&mut shard, 1, &large), ["+OK", "1 Incomplete", "+OK"]);
}

#[test]
fn a_large_write_is_as_if_it_had_come_at_once() {
    let (mut chunked, mut whole, large) = (Shard::new(&configure()), Shard::new(&configure()), large());
    for n in 0..3 {
        send(&mut chunked, 1, &large, n * 36..(n * 36 + 36).min(large.len()));
        whole.run_in(1, |_| {});
    }
    assert_eq!(end(&mut chunked, 1, &large).len(), 3);
    whole.run_in(1, |entry| {
        entry
            .command(0, &packed(&[b"SET", b"before", b"1"]))
            .command(0, &large)
            .command(0, &packed(&[b"SET", b"after", b"1"]));
    });
    assert_eq!(chunked.machine.snapshot().dump(), whole.machine.snapshot().dump());
}

#[test]
fn a_large_write_that_did_not_come_whole_in_one_term_does_not_run() {
    let large = large();
    let refused = ["+OK", "1 Incomplete", "+OK"];
    let begin = |term| {
        let mut shard = Shard::new(&configure());
        send(&mut shard, term, &large, 0..60);
        shard
    };
    // The end is missing.
    assert_eq!(end(&mut begin(1), 1, &large), refused);
    // Another leader came between.
    let mut shard = begin(1);
    shard.machine.advance(shard.machine.applied().unwrap() + 1, 2).unwrap();
    assert_eq!(shard.machine.assembling_bytes(), 0);
    send(&mut shard, 2, &large, 60..large.len());
    assert_eq!(end(&mut shard, 2, &large), refused);
    // A chunk is missing.
    let mut shard = begin(1);
    send(&mut shard, 1, &large, 70..large.len());
    assert_eq!(end(&mut shard, 1, &large), refused);
    // Another command began.
    let mut shard = begin(1);
    send(&mut shard, 1, &packed(&[b"SET", b"k", b"y"]), 0..5);
    send(&mut shard, 1, &large, 60..large.len());
    assert_eq!(end(&mut shard, 1, &large), refused);
    // It was given up.
    let mut shard = begin(1);
    shard.run_in(1, |entry| {
        entry.chunk(0, 0, b"");
    });
    assert_eq!(shard.machine.assembling_bytes(), 0);
    send(&mut shard, 1, &large, 60..large.len());
    assert_eq!(end(&mut shard, 1, &large), refused);
    assert_eq!(shard.read("EXISTS k").unwrap(), ":0");
}

#[test]
fn chunks_that_are_no_command_stop_the_replica() {
    let mut no_command = large();
    no_command.push(0);
    let mut shard = Shard::new(&configure());
    send(&mut shard, 1, &no_command, 0..no_command.len());
    let mut entry = at(START_MS);
    entry.assembled(0, no_command.len() as u64);
    assert_eq!(shard.apply(entry), Err(EntryError::NoCommand));
    assert_eq!(shard.apply(at(START_MS)), Err(EntryError::Stopped));
}

/// Counts what it is asked to run.
struct Ran(Unwitnessed);

static RUN: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

impl Witness for Ran {
    fn sink(&mut self, _: usize, _: &ShardMachine) -> &mut dyn Sink {
        &mut self.0
    }

    fn refused(&mut self, _: usize, _: Refusal) {}

    fn runner(&self) -> fn(&mut dyn FnMut()) {
        |work| {
            RUN.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            work();
        }
    }
}

#[test]
fn the_witness_runs_what_may_take_long_and_nothing_else() {
    let mut machine = ShardMachine::new();
    let mut entry = at(START_MS);
    entry.configure(&configure());
    machine.apply(0, 1, &entry.finish(), &mut Unwitnessed).unwrap();
    for (index, command, run) in
        [(1, "SET a 1", 0), (2, "MSET {a}b 1 {a}c 2", 0), (3, "DEBUG POPULATE 10", 1)]
    {
        let mut entry = at(START_MS);
        entry.command(0, &packed(&words(command)));
        machine.apply(index, 1, &entry.finish(), &mut Ran(Unwitnessed)).unwrap();
        assert_eq!(RUN.load(std::sync::atomic::Ordering::Relaxed), run, "{command}");
    }
    assert_eq!(read(&machine, "DBSIZE", START_MS).unwrap(), ":13");
}
