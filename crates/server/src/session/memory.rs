//! MEMORY, but for USAGE: what the data of this port and the clients of this port take, and what the process has.

use crate::port::Place;
use crate::process;
use crate::resp::RespSink;
use kvorum_keyspace::{Command, Sink};

/// Below this much there is nothing to diagnose.
const SMALL_BYTES: u64 = 5 << 20;

/// Memory of a port and of its process.
pub(super) struct Memory {
    /// Bytes that the data count for.
    pub(super) dataset: u64,
    /// Bytes of buffers of clients.
    pub(super) clients: u64,
    /// The most that both took together, as far as somebody looked.
    pub(super) peak: u64,
    /// Keys, and those with a deadline, of each database.
    pub(super) databases: Vec<(usize, usize)>,
    /// Memory that the process has.
    pub(super) resident: u64,
}

impl Memory {
    pub(super) fn of(place: Place<'_>) -> Memory {
        let keyspace = place.replica.map(|replica| replica.keyspace()).unwrap_or_default();
        let (dataset, clients) = (keyspace.used_bytes, place.port.clients.buffer_bytes());
        let peak = place.port.stats.peak(dataset + clients);
        Memory { dataset, clients, peak, databases: keyspace.databases, resident: process::memory_bytes().0 }
    }

    pub(super) fn used(&self) -> u64 {
        self.dataset + self.clients
    }

    fn keys(&self) -> usize {
        self.databases.iter().map(|(keys, _)| keys).sum()
    }
}

/// How large one is compared with the other.
pub(super) fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

pub(super) fn memory(command: &Command, place: Place<'_>, out: &mut RespSink) {
    match command.subname() {
        "doctor" => out.verbatim("txt", doctor(&Memory::of(place)).as_bytes()),
        "stats" => stats(&Memory::of(place), out),
        // The allocator gives pages back by itself, and each thread knows its own.
        "purge" => out.ok(),
        // Redis's words for an allocator without them.
        _ => out.bulk(b"Stats not supported for the current allocator"),
    }
}

fn stats(memory: &Memory, out: &mut RespSink) {
    let used = memory.used();
    let filled: Vec<usize> = (0..memory.databases.len()).filter(|&db| memory.databases[db].0 > 0).collect();
    let keys = memory.keys() as u64;
    let fields: [(&str, u64); 10] = [
        ("peak.allocated", memory.peak),
        ("total.allocated", used),
        ("startup.allocated", 0),
        ("replication.backlog", 0),
        ("clients.slaves", 0),
        ("clients.normal", memory.clients),
        ("cluster.links", 0),
        ("aof.buffer", 0),
        ("lua.caches", 0),
        ("functions.caches", 0),
    ];
    out.map(fields.len() + filled.len() + 12);
    for (name, value) in fields {
        out.bulk(name.as_bytes());
        out.int(value.cast_signed());
    }
    for db in filled {
        out.bulk(format!("db.{db}").as_bytes());
        out.map(2);
        // An index and its records are one here, and what they take is the data's.
        for name in ["overhead.hashtable.main", "overhead.hashtable.expires"] {
            out.bulk(name.as_bytes());
            out.int(0);
        }
    }
    let fields: [(&str, u64); 4] = [
        ("overhead.total", memory.clients),
        ("keys.count", keys),
        ("keys.bytes-per-key", memory.dataset.checked_div(keys).unwrap_or(0)),
        ("dataset.bytes", memory.dataset),
    ];
    for (name, value) in fields {
        out.bulk(name.as_bytes());
        out.int(value.cast_signed());
    }
    let percentages =
        [("dataset.percentage", ratio(memory.dataset, used)), ("peak.percentage", ratio(used, memory.peak))];
    for (name, share) in percentages {
        out.bulk(name.as_bytes());
        out.double(share * 100.0);
    }
    for (name, value) in [
        ("allocator.allocated", used),
        ("allocator.active", memory.resident),
        ("allocator.resident", memory.resident),
    ] {
        out.bulk(name.as_bytes());
        out.int(value.cast_signed());
    }
    out.bulk(b"fragmentation");
    out.double(ratio(memory.resident, used));
    out.bulk(b"fragmentation.bytes");
    out.int(memory.resident.cast_signed() - used.cast_signed());
    out.bulk(b"process.resident");
    out.int(memory.resident.cast_signed());
}

/// MEMORY DOCTOR. Its first lines are Redis's.
fn doctor(memory: &Memory) -> String {
    let used = memory.used();
    if used < SMALL_BYTES {
        return "Hi Sam, this instance is empty or is using very little memory, my issues detector can't be used in these \
                conditions. Please, leave for your mission on Earth and fill it with some data. The new Sam and I will be \
                back to our programming as soon as I finished rebooting.\n"
            .to_owned();
    }
    let mut issues = Vec::new();
    if memory.peak > used + used / 2 {
        issues.push(
            " * Peak memory: data and clients of this port took more than 150% of what they take now. The process may keep \
             the difference for a while; watch used_memory_rss.",
        );
    }
    if memory.clients > memory.dataset.max(SMALL_BYTES) {
        issues.push(
            " * Buffers of clients: they take more than the data. CLIENT LIST (omem, tot-mem) says whose they are: \
             clients that do not read their replies, or very long pipelines.",
        );
    }
    if issues.is_empty() {
        return "Hi Sam, I can't find any memory issue in your instance. I can only account for what occurs on this \
                base.\n"
            .to_owned();
    }
    let issues = issues.join("\n\n");
    format!(
        "Sam, I detected a few issues in this Redis instance memory implants:\n\n{issues}\n\nI'm here to keep you safe, \
         Sam. I want to help you.\n"
    )
}
