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

/// Weights are by repetition.
const COMMANDS: &[&str] = &[
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
    "INCRBYFLOAT",
    "INCRBYFLOAT",
    "INCRBYFLOAT",
    "APPEND",
    "STRLEN",
    "SETRANGE",
    "SETRANGE",
    "GETRANGE",
    "SUBSTR",
    "LCS",
    "MGET",
    "MSET",
    "MSETNX",
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
    "RENAME",
    "RENAMENX",
    "COPY",
    "COPY",
    "MOVE",
    "SWAPDB",
    "SELECT",
    "RANDOMKEY",
    "DUMP",
    "RESTORE",
    "RESTORE",
    "OBJECT",
    "DEBUG",
    "MEMORY",
];
const KEYS: [&str; 6] = ["a", "b", "c", "d", "", "{tag}e"];
const VALUES: [&str; 22] = [
    "",
    "1",
    "-5",
    "9223372036854775807",
    "-9223372036854775808",
    "text",
    "01",
    " 1",
    "a longer text",
    "10",
    "127",
    "-129",
    "32768",
    "2147483648",
    "10000",
    "1.5",
    "-0",
    "3.0e3",
    "a text of just forty-four bytes, not one more",
    "abcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabc",
    "two\x00\u{7f}\r\n",
    "aaaaaaaaaaaaaaaaaaaaa",
];
const FLOATS: [&str; 24] = [
    "0.1",
    "-0.1",
    "3.14159265358979323846",
    "1e17",
    "-1e17",
    "1e-17",
    "5e-18",
    "0x1p-4",
    "0x.8p1",
    "inf",
    "-inf",
    "nan",
    "1e400",
    "-1e400",
    "1e4932",
    "1e-4940",
    "1e-4951",
    ".5",
    "5.",
    "1e",
    "+1",
    "0.30000000000000004",
    "123456789012345678.875",
    "x",
];
const TIMES: [&str; 7] =
    ["33177117420", "33177117420000", "0", "-1", "x", "9223372036854775807", "9223372036854775"];
/// None makes a string huge.
const OFFSETS: [&str; 13] = [
    "0",
    "1",
    "2",
    "5",
    "40",
    "254",
    "300",
    "-1",
    "x",
    "536870912",
    "9223372036854775807",
    "9223372036854775808",
    "07",
];
const ENDS: [&str; 12] = [
    "0",
    "1",
    "-1",
    "-2",
    "3",
    "100",
    "-100",
    "x",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775808",
    "44",
];
const OPTIONS: [&str; 13] =
    ["NX", "XX", "GET", "KEEPTTL", "PERSIST", "EXAT", "PXAT", "nx", "GT", "LT", "gt", "xx", "bogus"];
const LCS_OPTIONS: [&str; 6] = ["LEN", "IDX", "MINMATCHLEN", "WITHMATCHLEN", "idx", "bogus"];
const COPY_OPTIONS: [&str; 4] = ["DB", "REPLACE", "replace", "bogus"];
const RESTORE_OPTIONS: [&str; 7] = ["REPLACE", "ABSTTL", "IDLETIME", "FREQ", "REPLACE", "replace", "bogus"];
const DATABASES: [&str; 7] = ["0", "1", "2", "15", "16", "-1", "x"];
const PATTERNS: [&str; 6] = ["*", "?", "[a-c]", "[^a]*", "\\a", "{*}*"];
const NUMBERS: [&str; 8] = ["0", "1", "4", "255", "256", "-1", "x", "2147483648"];

type Words = Vec<Vec<u8>>;

impl Random {
    fn add(&mut self, words: &mut Words, from: &[&str]) {
        words.push(self.pick(from).as_bytes().to_vec());
    }

    /// Options, some of which want a word behind them.
    fn options(&mut self, words: &mut Words, from: &[&str], most: usize, with: &[(&str, &[&str])]) {
        for _ in 0..self.below(most) {
            let option = self.pick(from);
            words.push(option.as_bytes().to_vec());
            if let Some((_, values)) = with.iter().find(|(name, _)| *name == option) {
                self.add(words, values);
            }
        }
    }

    /// A value, now and then a long one of parts that come again.
    fn value(&mut self) -> Vec<u8> {
        if self.below(8) > 0 {
            return self.pick(&VALUES).as_bytes().to_vec();
        }
        let parts: Vec<Vec<u8>> = (0..=self.below(4))
            .map(|_| {
                let (len, kinds) = (1 + self.below(60), 1 + self.below(256));
                (0..len).map(|_| self.below(kinds) as u8).collect()
            })
            .collect();
        (0..self.below(60)).flat_map(|_| parts[self.below(parts.len())].clone()).collect()
    }

    /// A float, from the list or of random digits.
    fn float(&mut self) -> Vec<u8> {
        if self.below(3) == 0 {
            return self.pick(&FLOATS).as_bytes().to_vec();
        }
        let mut text = String::new();
        if self.below(3) == 0 {
            text.push('-');
        }
        let (whole, places) = (self.below(22), self.below(22));
        (0..=whole).for_each(|_| text.push(char::from(b'0' + self.below(10) as u8)));
        if places > 0 {
            text.push('.');
            (0..places).for_each(|_| text.push(char::from(b'0' + self.below(10) as u8)));
        }
        if self.below(4) == 0 {
            text.push_str(&format!("e{}{}", self.pick(&["", "-", "+"]), self.below(30)));
        }
        text.into_bytes()
    }

    /// A payload for RESTORE: something that was dumped, whole or not, or anything with a good checksum.
    fn payload(&mut self, dumped: &[Vec<u8>]) -> Vec<u8> {
        let mut payload = match dumped.is_empty() {
            false => dumped[self.below(dumped.len())].clone(),
            true => Vec::new(),
        };
        match self.below(8) {
            0 => {
                if let Some(at) = (!payload.is_empty()).then(|| self.below(payload.len())) {
                    payload[at] ^= 1 << self.below(8);
                }
                return payload;
            }
            1 => {
                payload.truncate(self.below(payload.len() + 1));
                return payload;
            }
            2..4 => return payload,
            4..6 => {
                // A string whose head says anything.
                let heads = [
                    0x00, 0x05, 0x3f, 0x40, 0x80, 0x81, 0x82, 0xbf, 0xc0, 0xc1, 0xc2, 0xc3, 0xc3, 0xc3, 0xc4,
                    0xff,
                ];
                payload = vec![0, heads[self.below(heads.len())]];
                (0..self.below(30)).for_each(|_| {
                    let byte = if self.below(2) == 0 { self.below(40) } else { self.below(256) };
                    payload.push(byte as u8);
                });
            }
            6 => payload = vec![[8, 20, 0xf0, 0xff][self.below(4)], 1, b'a'],
            // A dump with another byte, and a checksum that fits.
            _ => {
                payload.truncate(payload.len().saturating_sub(10));
                if payload.len() > 1 {
                    let at = 1 + self.below(payload.len() - 1);
                    payload[at] = self.below(256) as u8;
                }
            }
        }
        let version = if self.below(10) == 0 { 11u16 } else { 1 + self.below(10) as u16 };
        payload.extend(version.to_le_bytes());
        let crc = crc64(&payload);
        payload.extend(crc.to_le_bytes());
        payload
    }
}

/// Bit by bit, which is not how the crate does it.
fn crc64(bytes: &[u8]) -> u64 {
    const POLYNOMIAL: u64 = 0x95ac_9329_ac4b_c9b5;
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(
            crc ^ u64::from(*byte),
            |crc, _| if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 },
        )
    })
}

fn command(random: &mut Random, dumped: &[Vec<u8>]) -> Words {
    let name = random.pick(COMMANDS);
    let mut words = vec![name.as_bytes().to_vec()];
    let one = |word: &str| vec![word.as_bytes().to_vec()];
    match name {
        // Rarely, or nothing would ever be there.
        "FLUSHDB" if random.below(10) > 0 => return one("DBSIZE"),
        "DBSIZE" | "FLUSHDB" | "RANDOMKEY" => {}
        "KEYS" => random.add(&mut words, &PATTERNS),
        "DEL" | "EXISTS" | "MGET" | "UNLINK" | "TOUCH" => {
            (0..=random.below(3)).for_each(|_| random.add(&mut words, &KEYS));
        }
        "MSET" | "MSETNX" => (0..=random.below(3)).for_each(|_| {
            random.add(&mut words, &KEYS);
            random.add(&mut words, &VALUES);
        }),
        "EXPIRE" | "PEXPIRE" | "EXPIREAT" | "PEXPIREAT" => {
            random.add(&mut words, &KEYS);
            random.add(&mut words, &TIMES);
            // GT and LT on times counted from now would ask which of two clocks ticked.
            let options = if name.ends_with("AT") { &OPTIONS[..] } else { &["NX", "XX", "bogus"] };
            random.options(&mut words, options, 3, &[]);
        }
        "SETEX" | "PSETEX" => {
            random.add(&mut words, &KEYS);
            random.add(&mut words, &TIMES);
            random.add(&mut words, &VALUES);
        }
        "SET" | "GETEX" => {
            random.add(&mut words, &KEYS);
            if name == "SET" {
                words.push(random.value());
            }
            random.options(&mut words, &OPTIONS, 4, &[("EXAT", &TIMES), ("PXAT", &TIMES)]);
        }
        "INCRBY" | "DECRBY" | "APPEND" | "GETSET" | "SETNX" => {
            random.add(&mut words, &KEYS);
            words.push(random.value());
        }
        "INCRBYFLOAT" => {
            random.add(&mut words, &KEYS);
            words.push(random.float());
            if random.below(3) == 0 {
                // The other side of the sum.
                words[0] = b"SET".to_vec();
            }
        }
        "SETRANGE" => {
            random.add(&mut words, &KEYS);
            random.add(&mut words, &OFFSETS);
            random.add(&mut words, &VALUES);
        }
        "GETRANGE" | "SUBSTR" => {
            random.add(&mut words, &KEYS);
            random.add(&mut words, &ENDS);
            random.add(&mut words, &ENDS);
        }
        "LCS" => {
            random.add(&mut words, &KEYS);
            random.add(&mut words, &KEYS);
            random.options(&mut words, &LCS_OPTIONS, 4, &[("MINMATCHLEN", &NUMBERS)]);
        }
        "RENAME" | "RENAMENX" => {
            random.add(&mut words, &KEYS);
            random.add(&mut words, &KEYS);
        }
        "COPY" => {
            random.add(&mut words, &KEYS);
            random.add(&mut words, &KEYS);
            random.options(&mut words, &COPY_OPTIONS, 3, &[("DB", &DATABASES)]);
        }
        "MOVE" => {
            random.add(&mut words, &KEYS);
            random.add(&mut words, &DATABASES);
        }
        "SWAPDB" => {
            random.add(&mut words, &DATABASES);
            random.add(&mut words, &DATABASES);
        }
        // Mostly where most keys are.
        "SELECT" => random.add(&mut words, &["0", "0", "1", "2"]),
        "RESTORE" => {
            random.add(&mut words, &KEYS);
            let time = random.below(3);
            random.add(&mut words, if time == 0 { &TIMES } else { &["0"] });
            words.push(random.payload(dumped));
            random.options(&mut words, &RESTORE_OPTIONS, 4, &[("IDLETIME", &NUMBERS), ("FREQ", &NUMBERS)]);
        }
        "OBJECT" => {
            random.add(&mut words, &["ENCODING", "REFCOUNT", "FREQ", "HELP", "bogus"]);
            random.add(&mut words, &KEYS);
        }
        "DEBUG" => {
            random.add(&mut words, &["DIGEST-VALUE", "DIGEST-VALUE", "OBJECT", "bogus"]);
            random.add(&mut words, &KEYS);
        }
        "MEMORY" => {
            words.push(b"USAGE".to_vec());
            random.add(&mut words, &KEYS);
            random.options(&mut words, &["SAMPLES", "bogus"], 3, &[("SAMPLES", &NUMBERS)]);
        }
        _ => random.add(&mut words, &KEYS),
    }
    // Sometimes a word too many or too few.
    match random.below(40) {
        0 if name != "SELECT" => words.push(b"more".to_vec()),
        1 if words.len() > 1 && name != "SELECT" => drop(words.pop()),
        _ => {}
    }
    words
}

/// Both replies as far as they can be equal.
fn comparable(words: &Words, ours: Reply, theirs: Reply) -> (Reply, Reply) {
    let is =
        |at: usize, name: &str| words.get(at).is_some_and(|word| word.eq_ignore_ascii_case(name.as_bytes()));
    match (&ours, &theirs) {
        // Times counted from now differ by the two clocks, which were set together.
        (Reply::Int(a @ 0..), Reply::Int(b @ 0..))
            if (is(0, "TTL") || is(0, "EXPIRETIME") || is(0, "PEXPIRETIME")) && a.abs_diff(*b) < 600_000 =>
        {
            (Reply::Null, Reply::Null)
        }
        // Some key: the caller asks whether it is there.
        (Reply::Bulk(_), Reply::Bulk(_)) if is(0, "RANDOMKEY") => (Reply::Null, Reply::Null),
        (Reply::Int(_), Reply::Int(_)) if is(0, "MEMORY") => (Reply::Null, Reply::Null),
        (Reply::Simple(a), Reply::Simple(b)) if is(0, "DEBUG") => {
            // Without address and clock.
            let part = |text: &str| {
                let words: Vec<&str> = text
                    .split(' ')
                    .filter(|word| {
                        ["encoding:", "serializedlength:", "refcount:"]
                            .iter()
                            .any(|name| word.starts_with(name))
                    })
                    .collect();
                Reply::Simple(words.join(" "))
            };
            (part(a), part(b))
        }
        _ => (ours.sorted(), theirs.sorted()),
    }
}

/// `KVORUM_COMMANDS` is how many, `KVORUM_SEED` which.
#[test]
fn random_commands_answer_as_redis_does() {
    let number = |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (commands, seed) = (number("KVORUM_COMMANDS", 40_000), number("KVORUM_SEED", 1));
    let (mut redis, mut bare) = (Redis::start(), Bare::new());
    bare.now_ms = match redis.run(&[b"TIME"]) {
        Reply::Array(parts) => match &parts[0] {
            Reply::Bulk(seconds) => std::str::from_utf8(seconds).unwrap().parse::<u64>().unwrap() * 1000,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    let mut random = Random(seed);
    let mut history: Vec<String> = Vec::new();
    let mut dumped: Vec<Vec<u8>> = Vec::new();
    for n in 0..commands {
        let words = command(&mut random, &dumped);
        if matches!(words[0].as_slice(), b"DBSIZE" | b"DEBUG" | b"MEMORY") || n % 500 == 0 {
            // Redis has a key that was set with a past deadline until somebody looks; here it never was.
            let mut look = vec![&b"EXISTS"[..]];
            look.extend(KEYS.iter().map(|key| key.as_bytes()));
            assert_eq!(bare.run(&look), redis.run(&look));
        }
        let args: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        let (ours, theirs): (Reply, Reply) = (bare.run(&args), redis.run(&args));
        let shown: Vec<String> = words.iter().map(|word| format!("\"{}\"", word.escape_ascii())).collect();
        history.push(shown.join(" "));
        let context = || history[history.len().saturating_sub(30)..].join("\n");
        if let (b"RANDOMKEY", Reply::Bulk(key)) = (args[0], &ours) {
            assert_eq!(redis.run(&[b"EXISTS", key]), Reply::Int(1), "after\n{}", context());
        }
        if let (b"DUMP", Reply::Bulk(payload)) = (args[0], &ours) {
            if dumped.len() == 50 {
                dumped.remove(0);
            }
            dumped.push(payload.clone());
        }
        let (ours, theirs) = comparable(&words, ours, theirs);
        assert_eq!(ours, theirs, "seed {seed}, after\n{}", context());
        if n % 500 == 0 {
            for db in ["0", "1", "2", "15"] {
                for command in [
                    &[&b"SELECT"[..], db.as_bytes()][..],
                    &[&b"EXISTS"[..], b"a", b"b", b"c", b"d", b"", b"{tag}e"],
                ] {
                    assert_eq!(bare.run(command), redis.run(command));
                }
            }
            let digest: &[&[u8]] = &[b"DEBUG", b"DIGEST"];
            assert_eq!(bare.run(digest), redis.run(digest), "seed {seed}, after\n{}", context());
            let back: &[&[u8]] = &[b"SELECT", b"0"];
            assert_eq!(bare.run(back), redis.run(back));
        }
    }
}
