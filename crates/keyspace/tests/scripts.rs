//! Runs the golden scripts of `scripts/` on the bare keyspace and on a real Redis. [`kvorum_testkit::script`] says what a
//! script is; the lane `scripts` of the workspace runs the same ones over TCP on a cluster.
//!
//! `UPDATE_SCRIPTS=1` writes the replies of the bare keyspace into the scripts.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use kvorum_testkit::script::{Script, Subject};
use std::{fs, path::Path, time::Duration};
use support::{Bare, Reply, redis::Redis};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts");

fn args(argv: &[Vec<u8>]) -> Vec<&[u8]> {
    argv.iter().map(Vec::as_slice).collect()
}

/// There is one connection, whatever its name.
impl Subject for Bare {
    fn call(&mut self, _: &str, argv: &[Vec<u8>]) -> anyhow::Result<Reply> {
        Ok(self.run(&args(argv)))
    }
    fn sleep(&mut self, ms: u64) {
        self.now_ms += ms;
    }
}

impl Subject for Redis {
    fn call(&mut self, _: &str, argv: &[Vec<u8>]) -> anyhow::Result<Reply> {
        Ok(self.run(&args(argv)))
    }
    fn sleep(&mut self, ms: u64) {
        std::thread::sleep(Duration::from_millis(ms));
    }
}

fn scripts() -> Vec<Script> {
    let scripts = Script::all(Path::new(ROOT)).unwrap();
    assert!(scripts.len() > 10, "the scripts are where they should be");
    scripts
}

#[test]
fn scripts_hold_on_the_bare_keyspace() {
    let mut faults = Vec::new();
    for script in scripts() {
        let played = script.play(&mut Bare::new(), false);
        if std::env::var_os("UPDATE_SCRIPTS").is_some() {
            fs::write(Path::new(ROOT).join(&script.name), played.updated).unwrap();
        } else {
            faults.extend(played.faults);
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn scripts_hold_on_a_real_redis() {
    let mut redis = Redis::start();
    let mut faults = Vec::new();
    for script in scripts() {
        redis.run(&[b"FLUSHALL"]);
        redis.run(&[b"SELECT", b"0"]);
        faults.extend(script.play(&mut redis, true).faults);
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
