//! The command table against a real Redis: every row says what Redis 7.0 says.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use kvorum_keyspace::{Command, command, lookup};
use std::collections::BTreeSet;
use support::{Bare, Reply, redis::Redis};

/// Rows of later versions of Redis; 7.0 does not know them.
const NEWER: [&str; 6] = ["client|setinfo", "client|no-touch", "waitaof", "delex", "delifeq", "digest"];

fn rows() -> impl Iterator<Item = &'static Command> {
    command::all()
        .flat_map(|row| std::iter::once(row).chain(row.shown_subcommands()))
        .filter(|row| !NEWER.contains(&row.name))
}

/// What a container has below it is compared row by row, for Redis may have more subcommands.
fn without_subcommands(mut reply: Reply) -> Reply {
    if let Reply::Array(rows) = &mut reply {
        for row in rows {
            let Reply::Array(fields) = row else { continue };
            if let Some(at) = fields.iter().position(|field| *field == Reply::Bulk(b"subcommands".to_vec())) {
                fields.truncate(at);
            }
            if fields.len() == 10 && matches!(fields[1], Reply::Int(_)) {
                fields.pop();
            }
        }
    }
    reply
}

#[test]
fn command_info_equals_that_of_redis() {
    compare(b"INFO");
}

#[test]
fn command_docs_equals_that_of_redis() {
    compare(b"DOCS");
}

fn compare(sub: &[u8]) {
    let (mut redis, mut bare) = (Redis::start(), Bare::new());
    let mut faults = Vec::new();
    for row in rows() {
        let args = [&b"COMMAND"[..], sub, row.name.as_bytes()];
        let ours = without_subcommands(bare.run(&args)).sorted();
        let theirs = without_subcommands(redis.run(&args)).sorted();
        if ours != theirs {
            faults.push(format!("{}\nours: {}\nRedis: {}", row.name, ours.render(), theirs.render()));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n\n"));
}

#[test]
fn every_row_can_be_found_once() {
    let mut names = BTreeSet::new();
    for row in command::all() {
        assert!(names.insert(row.name), "{} stands twice", row.name);
        assert_eq!(lookup(row.name.to_ascii_uppercase().as_bytes()).map(|found| found.name), Some(row.name));
        for sub in row.subcommands {
            assert_eq!(sub.name, format!("{}|{}", row.name, sub.subname()));
        }
    }
    assert!(lookup(b"nonsense").is_none() && lookup(b"").is_none() && lookup(&[b'x'; 1000]).is_none());
    let mut bare = Bare::new();
    assert_eq!(bare.run(&[b"COMMAND", b"COUNT"]), Reply::Int(names.len().try_into().unwrap()));
    let Reply::Array(all) = bare.run(&[b"COMMAND"]) else { panic!("COMMAND answers an array") };
    assert_eq!(all.len(), names.len());
    let Reply::Array(docs) = bare.run(&[b"COMMAND", b"DOCS"]) else { panic!("COMMAND DOCS answers a map") };
    assert_eq!(docs.len(), 2 * names.len());
}
