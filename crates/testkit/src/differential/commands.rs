//! Random commands of the families that keys hold strings in, most of them valid, many hostile.

use crate::random::Random;

/// A command: name, what follows it, and options of which some follow that.
///
/// | word | stands for |
/// |---|---|
/// | `key`, `keys`, `pairs` | a key; one or a few; a few keys with values |
/// | `val`, `blob` | a value; a value that may be long |
/// | `int`, `offset`, `count` | any integer; one that makes no string huge; a small one |
/// | `float` | any number |
/// | `secs`, `ms` | a time from now, far or past |
/// | `at`, `atms` | a time, far or past |
/// | `db` | a database |
/// | `glob` | a pattern |
/// | `payload` | something for RESTORE |
/// | `command` | another command |
/// | `NAME?` | a name of that command's family, or nonsense |
/// | anything else | itself |
struct Form {
    weight: u64,
    name: &'static str,
    fixed: &'static [&'static str],
    options: &'static [&'static str],
}

const fn form(
    weight: u64,
    name: &'static str,
    fixed: &'static [&'static str],
    options: &'static [&'static str],
) -> Form {
    Form { weight, name, fixed, options }
}

/// Nothing here may answer more or less than one reply, close the connection, or stop the server.
const FORMS: &[Form] = &[
    // Strings.
    form(40, "SET", &["key", "blob"], SET),
    form(20, "GET", &["key"], &[]),
    form(8, "SETNX", &["key", "val"], &[]),
    form(8, "SETEX", &["key", "secs", "val"], &[]),
    form(8, "PSETEX", &["key", "ms", "val"], &[]),
    form(8, "GETSET", &["key", "val"], &[]),
    form(8, "GETDEL", &["key"], &[]),
    form(12, "GETEX", &["key"], &["PERSIST", "EX secs", "PX ms", "EXAT at", "PXAT atms", "NX"]),
    form(10, "MGET", &["keys"], &[]),
    form(8, "MSET", &["pairs"], &[]),
    form(8, "MSETNX", &["pairs"], &[]),
    form(12, "APPEND", &["key", "blob"], &[]),
    form(8, "STRLEN", &["key"], &[]),
    form(10, "INCR", &["key"], &[]),
    form(8, "DECR", &["key"], &[]),
    form(12, "INCRBY", &["key", "int"], &[]),
    form(10, "DECRBY", &["key", "int"], &[]),
    form(16, "INCRBYFLOAT", &["key", "float"], &[]),
    form(14, "GETRANGE", &["key", "int", "int"], &[]),
    form(6, "SUBSTR", &["key", "int", "int"], &[]),
    form(14, "SETRANGE", &["key", "offset", "val"], &[]),
    form(10, "LCS", &["key", "key"], &["LEN", "IDX", "WITHMATCHLEN", "MINMATCHLEN count"]),
    // Keys.
    form(8, "DEL", &["keys"], &[]),
    form(6, "UNLINK", &["keys"], &[]),
    form(6, "EXISTS", &["keys"], &[]),
    form(6, "TOUCH", &["keys"], &[]),
    form(10, "EXPIRE", &["key", "secs"], &["NX", "XX", "GT", "LT"]),
    form(10, "PEXPIRE", &["key", "ms"], &["NX", "XX", "GT", "LT"]),
    form(10, "EXPIREAT", &["key", "at"], &["NX", "XX", "GT", "LT", "val"]),
    form(10, "PEXPIREAT", &["key", "atms"], &["NX", "XX", "GT", "LT"]),
    form(6, "TTL", &["key"], &[]),
    form(6, "PTTL", &["key"], &[]),
    form(6, "EXPIRETIME", &["key"], &[]),
    form(6, "PEXPIRETIME", &["key"], &[]),
    form(6, "PERSIST", &["key"], &[]),
    form(6, "TYPE", &["key"], &[]),
    form(10, "RENAME", &["key", "key"], &[]),
    form(8, "RENAMENX", &["key", "key"], &[]),
    form(14, "COPY", &["key", "key"], &["DB db", "REPLACE"]),
    form(10, "MOVE", &["key", "db"], &[]),
    form(2, "SWAPDB", &["db", "db"], &[]),
    form(4, "RANDOMKEY", &[], &[]),
    form(6, "DBSIZE", &[], &[]),
    form(6, "KEYS", &["glob"], &[]),
    form(6, "SCAN", &["0", "COUNT", "100000"], &["MATCH glob", "TYPE string", "TYPE hash", "COUNT 100000"]),
    form(3, "SCAN", &["int"], &["MATCH glob", "TYPE val", "COUNT int"]),
    form(8, "DUMP", &["key"], &[]),
    form(12, "RESTORE", &["key", "ttl", "payload"], &["REPLACE", "ABSTTL", "IDLETIME int", "FREQ int"]),
    form(10, "OBJECT", &["ENCODING", "key"], &[]),
    form(3, "OBJECT", &["IDLETIME", "key"], &[]),
    form(5, "OBJECT", &["REFCOUNT", "key"], &[]),
    form(3, "OBJECT", &["FREQ", "key"], &[]),
    form(1, "OBJECT", &["HELP"], &[]),
    form(2, "OBJECT", &["val", "key"], &[]),
    form(1, "FLUSHDB", &[], &["ASYNC", "SYNC"]),
    form(1, "FLUSHALL", &[], &["ASYNC", "SYNC"]),
    // Connection.
    form(3, "PING", &[], &["val"]),
    form(3, "ECHO", &["val"], &[]),
    form(6, "SELECT", &["db"], &[]),
    form(2, "HELLO", &["protover"], &["SETNAME name", "AUTH default val", "AUTH val val", "val"]),
    form(2, "AUTH", &["val"], &["val"]),
    form(1, "RESET", &[], &[]),
    form(3, "CLIENT", &["SETNAME", "name"], &[]),
    form(3, "CLIENT", &["GETNAME"], &[]),
    form(1, "CLIENT", &["ID"], &[]),
    form(1, "CLIENT", &["GETREDIR"], &[]),
    form(1, "CLIENT", &["TRACKINGINFO"], &[]),
    form(1, "CLIENT", &["NO-EVICT", "onoff"], &[]),
    form(1, "CLIENT", &["UNBLOCK", "int"], &["TIMEOUT", "ERROR"]),
    form(
        1,
        "CLIENT",
        &["KILL", "ID", "count"],
        &["SKIPME yes", "TYPE pubsub", "USER val", "ADDR val", "LADDR val"],
    ),
    form(1, "CLIENT", &["LIST"], &["ID int", "TYPE val", "TYPE master", "TYPE replica", "TYPE pubsub"]),
    form(1, "CLIENT", &["INFO"], &[]),
    form(1, "CLIENT", &["UNPAUSE"], &[]),
    form(1, "CLIENT", &["PAUSE", "0"], &["WRITE", "ALL"]),
    form(1, "CLIENT", &["REPLY", "ON"], &[]),
    form(1, "CLIENT", &["val"], &[]),
    form(1, "READONLY", &[], &[]),
    form(1, "READWRITE", &[], &[]),
    form(1, "ASKING", &[], &[]),
    // Server, as far as it is deterministic.
    form(2, "CONFIG", &["GET", "setting"], &["setting"]),
    form(3, "CONFIG", &["SET", "safe", "int"], &["safe int"]),
    form(1, "CONFIG", &["val"], &[]),
    form(1, "CONFIG", &["SET", "val", "val"], &[]),
    form(1, "CONFIG", &["RESETSTAT"], &[]),
    form(4, "COMMAND", &["GETKEYS", "command"], &[]),
    form(3, "COMMAND", &["GETKEYSANDFLAGS", "command"], &[]),
    form(1, "COMMAND", &["INFO", "val"], &[]),
    form(1, "TIME", &[], &[]),
    form(1, "SLOWLOG", &["RESET"], &[]),
    form(1, "SLOWLOG", &["GET"], &["int"]),
    form(1, "SLOWLOG", &["LEN"], &[]),
    form(1, "SLOWLOG", &["val"], &[]),
    form(1, "LATENCY", &["RESET"], &["val"]),
    form(1, "LATENCY", &["HISTORY", "val"], &[]),
    form(1, "LATENCY", &["LATEST"], &[]),
    form(1, "LATENCY", &["val"], &[]),
    form(1, "MEMORY", &["USAGE", "key"], &["SAMPLES int"]),
    form(1, "MEMORY", &["DOCTOR"], &[]),
    form(1, "MEMORY", &["val"], &[]),
    form(4, "DEBUG", &["DIGEST-VALUE", "keys"], &[]),
    form(1, "DEBUG", &["SLEEP", "0"], &[]),
    form(1, "DEBUG", &["val"], &[]),
    form(1, "LOLWUT", &[], &["VERSION count"]),
    form(1, "INFO", &[], &["server", "keyspace", "val"]),
    form(3, "val", &[], &["val", "key", "blob"]),
];
const SET: &[&str] = &["NX", "XX", "GET", "KEEPTTL", "EX secs", "PX ms", "EXAT at", "PXAT atms"];

/// The keys that commands are about: few, so that they meet.
pub const KEYS: &[&[u8]] = &[
    b"a",
    b"b",
    b"c",
    b"d",
    b"{t}e",
    b"{t}f",
    b"",
    b"key with spaces",
    b"\x00\xff\r\n",
    b"n1",
    b"n2",
    b"a-key-that-is-longer-than-any-that-would-be-kept-in-place-0123456789-0123456789",
];
const VALUES: &[&[u8]] = &[
    b"",
    b"0",
    b"1",
    b"-1",
    b"12",
    b"9999",
    b"10000",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"9223372036854775808",
    b"01",
    b" 1",
    b"1 ",
    b"+1",
    b"-0",
    b"1.5",
    b"-1.25e3",
    b"3.0",
    b"1e400",
    b"0x1f",
    b"nan",
    b"inf",
    b"text",
    b"another text",
    b"text and more",
    b"\x00",
    b"\x00\x01\xfe\xff",
    b"\xff\xfea\xe2\x82",
    b"a\r\nb",
    b"\"quoted\"",
    b"\xc3\xa4",
    b"abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqr",
    b"abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrs",
    b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
];
const INTEGERS: &[&str] = &[
    "0",
    "1",
    "-1",
    "2",
    "-2",
    "3",
    "5",
    "-5",
    "10",
    "100",
    "-100",
    "1000000",
    "2147483647",
    "2147483648",
    "-2147483648",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775808",
    "-9223372036854775809",
    "18446744073709551615",
    "18446744073709551616",
    "99999999999999999999",
    "01",
    "+1",
    "1.0",
    "1e3",
    " 1",
    "1 ",
    "",
    "-",
    "abc",
    "nan",
    "0x10",
    "\u{0}",
];
const FLOATS: &[&str] = &[
    "0",
    "1",
    "-1",
    "0.1",
    "-0.1",
    "0.5",
    "1.5",
    "3.0",
    "1e3",
    "1.0e-3",
    "5e-324",
    "1e-17",
    "1e17",
    "1e18",
    "1e20",
    "123456789.123456789",
    "1.7976931348623157e308",
    "1e308",
    "-1e308",
    "1e309",
    "1e4932",
    "1e5000",
    "0.1e-5",
    "99999999999999999999",
    "9223372036854775807",
    "9007199254740993",
    "inf",
    "-inf",
    "+inf",
    "infinity",
    "nan",
    "-nan",
    "NaN",
    "0x10",
    "0x1p3",
    " 1",
    "1 ",
    "",
    "-",
    "+5",
    ".5",
    "5.",
    "1e",
    "e5",
    "1,5",
    "--1",
    "abc",
    "1\u{0}",
];
/// Errors of all kinds, times long past, and what overflows.
const ODD_TIMES: &[&str] = &[
    "0",
    "-1",
    "-100000",
    "-9223372036854775808",
    "9223372036854775807",
    "9223372036854775",
    "9223372036854776",
    "9223370000000000",
    "99999999999999999999",
    "",
    "abc",
    "1.5",
    " 1",
];
const DATABASES: &[&str] = &[
    "0",
    "1",
    "2",
    "3",
    "0",
    "1",
    "16",
    "15",
    "-1",
    "abc",
    "",
    "99999999999999999999",
    "1.0",
    "01",
    "4294967296",
];
const GLOBS: &[&str] = &[
    "*", "?", "a*", "[a-c]", "[^a]", "[a", "\\a", "*t}*", "", "n[0-9]", "n[9-0]", "**", "[]", "[\\]", "*\\",
    "[a-", "[^", "?*?", "{t}?",
];
const NAMES: &[&str] = &["", "me", "a-longer-name", "a b", "a\nb", "\u{e4}", "!~"];
const SETTINGS: &[&str] = &[
    "timeout",
    "databases",
    "requirepass",
    "maxmemory-policy",
    "slave-read-only",
    "replica-read-only",
    "tcp-keepalive",
    "slowlog-max-len",
    "slowlog-log-slower-than",
    "latency-monitor-threshold",
    "nonsense",
    "",
    "*keepalive",
    "slowlog-*",
    "[t]imeout",
    "TIMEOUT",
];
/// Settings that may take any integer without harm to the run.
const SAFE: &[&str] =
    &["slowlog-max-len", "slowlog-log-slower-than", "latency-monitor-threshold", "nonsense", "databases"];

/// Commands that may set a time from now.
const TIMED: &[&str] = &["SET", "SETEX", "PSETEX", "GETEX", "EXPIRE", "PEXPIRE", "RESTORE"];

/// Makes commands.
#[derive(Debug)]
pub struct Commands {
    random: Random,
    total: u64,
    missing: Vec<&'static str>,
    /// What DUMP said so far, for RESTORE.
    payloads: Vec<Vec<u8>>,
}

impl Commands {
    /// Commands that follow from `random`, without those whose name is in `missing`.
    pub fn new(random: Random, missing: Vec<&'static str>) -> Commands {
        let total = FORMS.iter().filter(|form| !missing.contains(&form.name)).map(|form| form.weight).sum();
        Commands { random, total, missing, payloads: Vec::new() }
    }

    /// The names of all commands that can come.
    pub fn names() -> Vec<&'static str> {
        let mut names: Vec<&str> = FORMS.iter().map(|form| form.name).filter(|name| *name != "val").collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Something that DUMP said.
    pub fn remember(&mut self, payload: &[u8]) {
        if self.payloads.len() == 64 {
            let at = self.random.below(64) as usize;
            self.payloads.swap_remove(at);
        }
        self.payloads.push(payload.to_vec());
    }

    /// The next command.
    pub fn command(&mut self) -> Vec<Vec<u8>> {
        let mut at = self.random.below(self.total);
        let mut forms = FORMS.iter().filter(|form| !self.missing.contains(&form.name));
        let form = loop {
            let form = forms.next().unwrap_or(&FORMS[0]);
            match at.checked_sub(form.weight) {
                Some(rest) => at = rest,
                None => break form,
            }
        };
        let mut argv = Vec::new();
        self.word(form.name, &mut argv);
        form.fixed.iter().for_each(|word| self.word(word, &mut argv));
        if !form.options.is_empty() {
            let options = [0, 0, 1, 1, 1, 2, 2, 3, 5][self.random.below(9) as usize];
            for _ in 0..options {
                if self.random.chance(3) {
                    argv.push(b"bogus".to_vec());
                    continue;
                }
                let option = form.options[self.random.below(form.options.len() as u64) as usize];
                option.split(' ').for_each(|word| self.word(word, &mut argv));
            }
        }
        // Too many, too few, or something else in place of one.
        match self.random.below(60) {
            0 => argv.push(self.value()),
            1 if argv.len() > 1 => drop(argv.pop()),
            2 if argv.len() > 2 => drop(argv.remove(1)),
            3 if argv.len() > 1 => {
                let at = 1 + self.random.below(argv.len() as u64 - 1) as usize;
                // Not in place of a length, which might then be huge.
                if !matches!(form.name, "SETRANGE" | "CLIENT" | "CONFIG" | "DEBUG") {
                    argv[at] = self.value();
                }
                // Nor a time that comes during the run.
                let near = [&b"1"[..], b"12", b"9999", b"10000"].contains(&argv[at].as_slice());
                if near && TIMED.contains(&form.name) {
                    argv[at] = b"0".to_vec();
                }
            }
            _ => {}
        }
        argv
    }

    fn word(&mut self, word: &str, argv: &mut Vec<Vec<u8>>) {
        let text = match word {
            "key" => return argv.push(self.key()),
            "val" => return argv.push(self.value()),
            "blob" => return argv.push(self.blob()),
            "payload" => return argv.push(self.payload()),
            "keys" => {
                let count = 1 + self.random.below(4);
                return (0..count).for_each(|_| argv.push(self.key()));
            }
            "pairs" => {
                let count = 1 + self.random.below(3);
                return (0..count).for_each(|_| argv.extend([self.key(), self.value()]));
            }
            "command" => {
                let command = self.command();
                // One level is enough.
                return if command[0].eq_ignore_ascii_case(b"command") {
                    argv.push(b"PING".to_vec())
                } else {
                    argv.extend(command)
                };
            }
            "int" => self.pick(INTEGERS),
            "offset" => match self.pick(INTEGERS) {
                // What fits and would fill the memory of this machine.
                "1000000" | "2147483647" => "300",
                other => other,
            },
            "count" => ["0", "1", "2", "3", "5", "-1"][self.random.below(6) as usize],
            "float" => self.pick(FLOATS),
            "db" => self.pick(DATABASES),
            "glob" => self.pick(GLOBS),
            "name" => self.pick(NAMES),
            "protover" => self.pick(&["2", "3", "2", "3", "4", "1", "0", "-1", "abc", ""]),
            "onoff" => self.pick(&["on", "OFF", "maybe"]),
            "setting" => self.pick(SETTINGS),
            "safe" => self.pick(SAFE),
            "secs" | "ms" | "at" | "atms" | "ttl" => return argv.push(self.time(word)),
            name => {
                let lower = self.random.chance(20);
                let mixed = self.random.chance(10);
                let cased = name.bytes().enumerate().map(|(at, byte)| match byte {
                    _ if mixed && at % 2 == 0 => byte.to_ascii_lowercase(),
                    _ if lower => byte.to_ascii_lowercase(),
                    _ => byte,
                });
                return argv.push(cased.collect());
            }
        };
        argv.push(text.as_bytes().to_vec());
    }

    /// A time that no clock of the two servers reaches during the run, and that equals no other.
    fn time(&mut self, kind: &str) -> Vec<u8> {
        if self.random.chance(25) {
            return self.pick(ODD_TIMES).as_bytes().to_vec();
        }
        let far = 1_000 + self.random.below(1_000_000);
        let text = match kind {
            "secs" => (10 * far).to_string(),
            "ms" | "ttl" => (10_000 * far).to_string(),
            "at" => (4_000_000_000 + 10 * far).to_string(),
            _ => (4_000_000_000_000 + 10_000 * far).to_string(),
        };
        text.into_bytes()
    }

    fn key(&mut self) -> Vec<u8> {
        KEYS[self.random.below(KEYS.len() as u64) as usize].to_vec()
    }

    fn value(&mut self) -> Vec<u8> {
        VALUES[self.random.below(VALUES.len() as u64) as usize].to_vec()
    }

    fn blob(&mut self) -> Vec<u8> {
        match self.random.below(20) {
            0 => {
                let length = self.random.below(400) as usize;
                (0..length).map(|_| self.random.below(256) as u8).collect()
            }
            1 => b"compressible ".repeat(self.random.below(100) as usize),
            2 => self.random.next().to_string().into_bytes(),
            3 => (self.random.next().cast_signed() >> self.random.below(64)).to_string().into_bytes(),
            _ => self.value(),
        }
    }

    fn payload(&mut self) -> Vec<u8> {
        if self.payloads.is_empty() || self.random.chance(5) {
            return self.value();
        }
        let at = self.random.below(self.payloads.len() as u64) as usize;
        let mut payload = self.payloads[at].clone();
        match self.random.below(20) {
            0 => {
                let at = self.random.below(payload.len() as u64) as usize;
                payload[at] ^= 1 << self.random.below(8);
            }
            1 => payload.truncate(self.random.below(payload.len() as u64) as usize),
            _ => {}
        }
        payload
    }

    fn pick(&mut self, from: &[&'static str]) -> &'static str {
        from[self.random.below(from.len() as u64) as usize]
    }
}
