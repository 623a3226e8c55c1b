//! Random commands on the keyspace and on a real Redis: every reply is the same.
//!
//! Deadlines are in a future so far, or in a past so long gone, that the two clocks do not matter.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use support::{Bare, Reply, redis::Redis};

/// SplitMix64: the same commands in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) >> 1).unwrap() % n
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

const COMMANDS: [&str; 36] = [
    "SET",
    "SET",
    "SET",
    "SET",
    "GET",
    "GET",
    "DEL",
    "EXISTS",
    "INCR",
    "INCRBY",
    "DECR",
    "DECRBY",
    "APPEND",
    "STRLEN",
    "MGET",
    "MSET",
    "EXPIRE",
    "PEXPIRE",
    "EXPIREAT",
    "PEXPIREAT",
    "EXPIRETIME",
    "PEXPIRETIME",
    "PERSIST",
    "TYPE",
    "DBSIZE",
    "GETEX",
    "GETDEL",
    "GETSET",
    "SETNX",
    "SETEX",
    "PSETEX",
    "UNLINK",
    "TOUCH",
    "KEYS",
    "TTL",
    "FLUSHDB",
];
const KEYS: [&str; 6] = ["a", "b", "c", "d", "", "{tag}e"];
const VALUES: [&str; 10] =
    ["", "1", "-5", "9223372036854775807", "-9223372036854775808", "text", "01", " 1", "a longer text", "10"];
const TIMES: [&str; 7] =
    ["33177117420", "33177117420000", "0", "-1", "x", "9223372036854775807", "9223372036854775"];
const OPTIONS: [&str; 13] =
    ["NX", "XX", "GET", "KEEPTTL", "PERSIST", "EXAT", "PXAT", "nx", "GT", "LT", "gt", "xx", "bogus"];
const PATTERNS: [&str; 6] = ["*", "?", "[a-c]", "[^a]*", "\\a", "{*}*"];

fn command(random: &mut Random) -> Vec<&'static str> {
    let name = random.pick(&COMMANDS);
    let mut words = vec![name];
    match name {
        // Rarely, or nothing would ever be there.
        "FLUSHDB" if random.below(10) > 0 => return vec!["DBSIZE"],
        "DBSIZE" | "FLUSHDB" => {}
        "KEYS" => words.push(random.pick(&PATTERNS)),
        "DEL" | "EXISTS" | "MGET" | "UNLINK" | "TOUCH" => {
            (0..=random.below(3)).for_each(|_| words.push(random.pick(&KEYS)))
        }
        "MSET" => {
            (0..=random.below(3)).for_each(|_| words.extend([random.pick(&KEYS), random.pick(&VALUES)]))
        }
        "EXPIRE" | "PEXPIRE" | "EXPIREAT" | "PEXPIREAT" => {
            words.extend([random.pick(&KEYS), random.pick(&TIMES)]);
            // GT and LT on times counted from now would ask which of two clocks ticked.
            let options = if name.ends_with("AT") { &OPTIONS[..] } else { &["NX", "XX", "bogus"] };
            (0..random.below(3)).for_each(|_| words.push(random.pick(options)));
        }
        "SETEX" | "PSETEX" => words.extend([random.pick(&KEYS), random.pick(&TIMES), random.pick(&VALUES)]),
        "SET" | "GETEX" => {
            words.push(random.pick(&KEYS));
            if name == "SET" {
                words.push(random.pick(&VALUES));
            }
            for _ in 0..random.below(4) {
                let option = random.pick(&OPTIONS);
                words.push(option);
                if option.ends_with("AT") {
                    words.push(random.pick(&TIMES));
                }
            }
        }
        "INCRBY" | "DECRBY" | "APPEND" | "GETSET" | "SETNX" => {
            words.extend([random.pick(&KEYS), random.pick(&VALUES)])
        }
        _ => words.push(random.pick(&KEYS)),
    }
    // Sometimes a word too many or too few.
    match random.below(40) {
        0 => words.push("more"),
        1 if words.len() > 1 => drop(words.pop()),
        _ => {}
    }
    words
}

#[test]
fn random_commands_answer_as_redis_does() {
    let (mut redis, mut bare) = (Redis::start(), Bare::new());
    bare.now_ms = match redis.run(&[b"TIME"]) {
        Reply::Array(parts) => match &parts[0] {
            Reply::Bulk(seconds) => std::str::from_utf8(seconds).unwrap().parse::<u64>().unwrap() * 1000,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    let mut random = Random(1);
    let mut history = Vec::new();
    for _ in 0..30_000 {
        let words = command(&mut random);
        if words[0] == "DBSIZE" {
            // Redis counts a key that was set with a past deadline until somebody looks; here it never was.
            let mut look = vec![&b"EXISTS"[..]];
            look.extend(KEYS.iter().map(|key| key.as_bytes()));
            assert_eq!(bare.run(&look), redis.run(&look));
        }
        let args: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        let (ours, theirs): (Reply, Reply) = (bare.run(&args), redis.run(&args));
        history.push(format!("{words:?}"));
        // Times counted from now differ by the two clocks, which were set together.
        if let (true, Reply::Int(ours @ 0..), Reply::Int(theirs @ 0..)) =
            (words[0].contains("TTL") || words[0].contains("TIME"), &ours, &theirs)
            && ours.abs_diff(*theirs) < 600_000
        {
            continue;
        }
        assert_eq!(
            ours.sorted(),
            theirs.sorted(),
            "after\n{}",
            history[history.len().saturating_sub(30)..].join("\n")
        );
    }
}
