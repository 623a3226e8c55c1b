//! Runs the golden scripts of `scripts/`, on the bare keyspace and on a real Redis.
//!
//! A script is lines of text:
//!
//! ```text
//! # A comment; the first one says what the script is for.
//! > SET k "a value\r\n"        a command line; words may be quoted, with \n \r \t \\ \" \xHH inside
//! OK                           its reply in the notation of redis-cli, up to an empty line or the next command
//! @clock +1000                 time goes on by that many milliseconds
//! @unordered                   the order inside the next reply's arrays does not count
//! @differs <why>               the next reply is not compared with Redis, for this reason
//! ```

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::{fmt::Write, fs, path::Path, time::Duration};
use support::{Bare, Reply, redis::Redis};

/// Who runs a script's commands.
trait Subject {
    fn run(&mut self, args: &[&[u8]]) -> Reply;
    fn sleep(&mut self, ms: u64);
    /// Whether it is Redis itself.
    const ORACLE: bool;
}

impl Subject for Bare {
    fn run(&mut self, args: &[&[u8]]) -> Reply {
        Bare::run(self, args)
    }
    fn sleep(&mut self, ms: u64) {
        self.now_ms += ms;
    }
    const ORACLE: bool = false;
}

impl Subject for Redis {
    fn run(&mut self, args: &[&[u8]]) -> Reply {
        Redis::run(self, args)
    }
    fn sleep(&mut self, ms: u64) {
        std::thread::sleep(Duration::from_millis(ms));
    }
    const ORACLE: bool = true;
}

#[test]
fn scripts_hold_on_the_bare_keyspace() {
    let scripts = scripts();
    if std::env::var_os("UPDATE_SCRIPTS").is_some() {
        for (name, text) in &scripts {
            let updated = play(name, text, &mut Bare::new(), &mut Vec::new());
            fs::write(Path::new(ROOT).join(name), updated).unwrap();
        }
        return;
    }
    let mut faults = Vec::new();
    for (name, text) in &scripts {
        play(name, text, &mut Bare::new(), &mut faults);
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn scripts_hold_on_a_real_redis() {
    let mut redis = Redis::start();
    let mut faults = Vec::new();
    for (name, text) in scripts() {
        redis.run(&[b"FLUSHALL"]);
        play(&name, &text, &mut redis, &mut faults);
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts");

/// Name (`family/behaviour`) and text of each script.
fn scripts() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for family in fs::read_dir(ROOT).unwrap() {
        let family = family.unwrap();
        for script in fs::read_dir(family.path()).unwrap() {
            let path = script.unwrap().path();
            let name = path.strip_prefix(ROOT).unwrap().to_str().unwrap().to_string();
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("# "), "{name} opens with a comment on its purpose");
            found.push((name, text));
        }
    }
    found.sort();
    assert!(found.len() > 10, "the scripts are where they should be");
    found
}

/// Runs a script; adds what does not hold to `faults`. Returns the script with the replies as they came.
fn play<S: Subject>(name: &str, text: &str, subject: &mut S, faults: &mut Vec<String>) -> String {
    let mut updated = String::new();
    let (mut unordered, mut differs) = (false, false);
    let mut lines = text.lines().enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        writeln!(updated, "{line}").unwrap();
        if let Some(command) = line.strip_prefix("> ") {
            let mut expected = Vec::new();
            while let Some((_, reply)) = lines
                .next_if(|(_, next)| !next.is_empty() && !next.starts_with("> ") && !next.starts_with('@'))
            {
                expected.push(reply);
            }
            let words = words(command);
            let args: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
            let mut reply = subject.run(&args);
            if unordered {
                reply = reply.sorted();
            }
            let reply = reply.render();
            writeln!(updated, "{reply}").unwrap();
            if reply != expected.join("\n") && !(S::ORACLE && differs) {
                let expected = expected.join("\n");
                faults.push(format!(
                    "{name}:{}: {command}\n  script: {expected}\n  reply:  {reply}",
                    number + 1
                ));
            }
            (unordered, differs) = (false, false);
        } else if let Some(ms) = line.strip_prefix("@clock +") {
            subject.sleep(ms.parse().unwrap());
        } else if line == "@unordered" {
            unordered = true;
        } else if line.strip_prefix("@differs ").is_some_and(|why| !why.is_empty()) {
            differs = true;
        } else {
            assert!(line.is_empty() || line.starts_with('#'), "{name}:{}: {line}", number + 1);
        }
    }
    updated
}

/// Splits a command line as redis-cli does, quotes and escapes included.
fn words(line: &str) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut bytes = line.bytes().peekable();
    loop {
        while bytes.next_if_eq(&b' ').is_some() {}
        let Some(&first) = bytes.peek() else { return words };
        let mut word = Vec::new();
        if first == b'"' {
            bytes.next();
            loop {
                match bytes.next().expect("a closing quote") {
                    b'"' => break,
                    b'\\' => word.push(match bytes.next().expect("an escape") {
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        b'x' => {
                            let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                            u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
                        }
                        other => other,
                    }),
                    byte => word.push(byte),
                }
            }
        } else {
            while let Some(byte) = bytes.next_if(|byte| *byte != b' ') {
                word.push(byte);
            }
        }
        words.push(word);
    }
}
