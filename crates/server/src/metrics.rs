//! The text of `/metrics`: what the ports count, what the node counts, and the process.
//!
//! Names follow Prometheus (base units, `_total` for what only grows). Labels have few values, all of them ours: shards, databases,
//! commands of the table, error codes that are Redis's or our own, reasons. Nothing that a client makes up becomes a label.
//!
//! Counters of a port start anew with CONFIG RESETSTAT, which Prometheus takes for a restart.

use crate::port::{KeyspaceFacts, Port, REDIS_VERSION};
use crate::process;
use crate::stats::PortStats;
use kvorum_node::{Buckets, Metrics};
use prometheus::TextEncoder;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Upper bounds of the buckets of command times, seconds.
const COMMAND_BOUNDS_S: [f64; 13] =
    [0.000_025, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.25, 0.5, 1.0];

/// Codes of errors that are a label; all others are `other`.
const ERROR_CODES: [&str; 29] = [
    "ASK",
    "BUSY",
    "BUSYGROUP",
    "BUSYKEY",
    "CLUSTERDOWN",
    "CROSSSLOT",
    "DENIED",
    "ERR",
    "EXECABORT",
    "INPROG",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "MOVED",
    "NOAUTH",
    "NOGROUP",
    "NOPERM",
    "NOPROTO",
    "NOREPLICAS",
    "NOSCRIPT",
    "NOTBUSY",
    "OOM",
    "READONLY",
    "TRYAGAIN",
    "UNBLOCKED",
    "UNKNOWN",
    "UNKILLABLE",
    "WRONGPASS",
    "WRONGTYPE",
];

/// What Azure's metric `Gets` adds up, and what `Sets` does.
const GETS: [&str; 7] = ["get", "hget", "hgetall", "hmget", "mget", "getbit", "getrange"];
const SETS: [&str; 10] =
    ["set", "hset", "hmset", "hsetnx", "lset", "mset", "msetnx", "setbit", "setex", "setrange"];
const SETNX: &str = "setnx";

/// Collects metrics into Prometheus's families, in the order of their names.
#[derive(Default)]
pub(crate) struct Exposition(BTreeMap<String, MetricFamily>);

impl Exposition {
    fn add(
        &mut self,
        (name, help, kind): (&str, &str, MetricType),
        labels: &[(&'static str, &str)],
        fill: impl FnOnce(&mut Metric),
    ) {
        let pairs = labels.iter().map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        });
        let mut metric = Metric::from_label(pairs.collect());
        fill(&mut metric);
        let family = self.0.entry(name.to_owned()).or_insert_with(|| {
            let mut family = MetricFamily::default();
            family.set_name(name.to_owned());
            family.set_help(help.to_owned());
            family.set_field_type(kind);
            family
        });
        family.mut_metric().push(metric);
    }

    /// The text.
    pub(crate) fn text(self) -> String {
        let families: Vec<MetricFamily> = self.0.into_values().collect();
        TextEncoder::new().encode_to_string(&families).expect("every family has a name and a metric")
    }
}

impl Metrics for Exposition {
    fn counter(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        value: f64,
    ) {
        self.add((name, help, MetricType::COUNTER), labels, |metric| set_counter(metric, value));
    }

    fn gauge(&mut self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)], value: f64) {
        self.add((name, help, MetricType::GAUGE), labels, |metric| set_gauge(metric, value));
    }

    fn histogram(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        distribution: &Buckets<'_>,
    ) {
        self.add((name, help, MetricType::HISTOGRAM), labels, |metric| {
            let buckets = distribution.bounds.iter().zip(&distribution.counts).map(|(bound, count)| {
                let mut bucket = Bucket::default();
                bucket.set_upper_bound(*bound);
                bucket.set_cumulative_count(*count);
                bucket
            });
            let mut histogram = Histogram::default();
            histogram.set_bucket(buckets.collect());
            histogram.set_sample_count(distribution.count);
            histogram.set_sample_sum(distribution.sum);
            metric.set_histogram(histogram);
        });
    }
}

fn set_counter(metric: &mut Metric, value: f64) {
    let mut counter = Counter::default();
    counter.set_value(value);
    metric.set_counter(counter);
}

fn set_gauge(metric: &mut Metric, value: f64) {
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    metric.set_gauge(gauge);
}

/// The figures of a data port and of the keyspace behind it.
pub(crate) fn port(shard: &str, port: &Port, keyspace: &KeyspaceFacts, out: &mut Exposition) {
    let labels = [("shard", shard)];
    let stats = &port.stats;
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
    let counts = stats.since_reset(keyspace.counts);
    clients(str::to_owned, &labels, port, out);
    let gauges: [(&'static str, &'static str, f64); 2] = [
        ("kvorum_slowlog_entries", "Entries of the slow log.", port.slowlog.len() as f64),
        ("kvorum_memory_used_bytes", "Bytes that the data count for.", keyspace.used_bytes as f64),
    ];
    gauges.into_iter().for_each(|(name, help, value)| out.gauge(name, help, &labels, value));
    let counters: [(&'static str, &'static str, f64); 6] = [
        (
            "kvorum_unknown_outcomes_total",
            "Commands answered UNKNOWN: nobody knows whether they ran.",
            get(&stats.unknown_outcomes),
        ),
        (
            "kvorum_failover_holds_total",
            "Times that a client was held for want of a leader.",
            get(&stats.holds),
        ),
        ("kvorum_keyspace_hits_total", "Reads that found their key.", counts.hits as f64),
        ("kvorum_keyspace_misses_total", "Reads that did not find their key.", counts.misses as f64),
        ("kvorum_expired_keys_total", "Keys removed because their time had come.", counts.expired as f64),
        ("kvorum_evicted_keys_total", "Keys removed for want of memory: none ever.", 0.0),
    ];
    counters.into_iter().for_each(|(name, help, value)| out.counter(name, help, &labels, value));
    commands(shard, stats, out);
    for (db, (keys, expiring)) in keyspace.databases.iter().enumerate() {
        if db > 0 && *keys == 0 {
            continue;
        }
        let db = db.to_string();
        let labels = [("shard", shard), ("db", db.as_str())];
        out.gauge("kvorum_db_keys", "Keys of a database.", &labels, *keys as f64);
        out.gauge(
            "kvorum_db_expiring_keys",
            "Keys of a database that have a deadline.",
            &labels,
            *expiring as f64,
        );
    }
}

fn commands(shard: &str, stats: &PortStats, out: &mut dyn Metrics) {
    let (mut gets, mut sets) = (0, 0);
    for command in stats.commands() {
        if GETS.contains(&command.name) {
            gets += command.calls;
        }
        if SETS.contains(&command.name) || command.name == SETNX {
            sets += command.calls;
        }
        let labels = [("shard", shard), ("command", command.name)];
        out.counter("kvorum_commands_total", "Calls of commands.", &labels, command.calls as f64);
        out.counter(
            "kvorum_commands_failed_total",
            "Calls of commands that ended with an error.",
            &labels,
            command.failed as f64,
        );
        out.counter(
            "kvorum_commands_rejected_total",
            "Calls of commands that were refused before they ran.",
            &labels,
            command.rejected as f64,
        );
    }
    for (name, latency) in stats.latencies().filter(|(_, latency)| latency.total() > 0) {
        let counts = latency.cumulative(COMMAND_BOUNDS_S.map(|seconds| (seconds * 1e9) as u64));
        out.histogram(
            "kvorum_command_duration_seconds",
            "How long calls took: reads to run, writes until a majority had them and they were applied.",
            &[("shard", shard), ("command", name)],
            &Buckets {
                bounds: &COMMAND_BOUNDS_S,
                counts,
                count: latency.total(),
                sum: latency.sum_ns() as f64 / 1e9,
            },
        );
    }
    let labels = [("shard", shard)];
    out.counter("kvorum_gets_total", "Calls of GET and its kind.", &labels, gets as f64);
    out.counter("kvorum_sets_total", "Calls of SET and its kind.", &labels, sets as f64);
}

/// The figures of the Sentinel port, and how many events were told there.
pub(crate) fn sentinel(port: &Port, events: u64, out: &mut Exposition) {
    clients(|name| name.replacen("kvorum_", "kvorum_sentinel_", 1), &[], port, out);
    let subscribers = port.clients.all().iter().filter(|client| client.profile().is_subscriber()).count();
    out.gauge(
        "kvorum_sentinel_subscribers",
        "Clients of the Sentinel port that are told of events.",
        &[],
        subscribers as f64,
    );
    out.counter(
        "kvorum_sentinel_events_total",
        "Events of which subscribers of the Sentinel port were told, if there were any.",
        &[],
        events as f64,
    );
}

/// What every port counts of its clients. `named` makes the metric's name from the one that a data port has.
fn clients(
    named: impl Fn(&str) -> String,
    labels: &[(&'static str, &str)],
    port: &Port,
    out: &mut Exposition,
) {
    let stats = &port.stats;
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
    let most = port.settings.maxclients.load(Ordering::Relaxed);
    for (name, help, value) in [
        ("kvorum_connected_clients", "Client connections.", port.clients.len() as f64),
        ("kvorum_max_clients", "Most client connections at a time.", most as f64),
        ("kvorum_port", "Number of the client port.", f64::from(port.number)),
    ] {
        out.add((&named(name), help, MetricType::GAUGE), labels, |metric| set_gauge(metric, value));
    }
    let mut count = |name: &str, help, labels: &[(&'static str, &str)], value| {
        out.add((&named(name), help, MetricType::COUNTER), labels, |metric| set_counter(metric, value));
    };
    for (name, help, counter) in [
        (
            "kvorum_client_connections_opened_total",
            "Client connections accepted.",
            &stats.connections_received,
        ),
        ("kvorum_client_connections_closed_total", "Client connections ended.", &stats.connections_closed),
        ("kvorum_commands_processed_total", "Commands run.", &stats.commands_processed),
        ("kvorum_net_input_bytes_total", "Bytes read from clients.", &stats.input_bytes),
        ("kvorum_net_output_bytes_total", "Bytes written to clients.", &stats.output_bytes),
        ("kvorum_net_reads_total", "Reads from sockets of clients.", &stats.reads),
        ("kvorum_net_writes_total", "Writes to sockets of clients.", &stats.writes),
        (
            "kvorum_query_buffer_limit_disconnections_total",
            "Clients disconnected because they sent more than a request may be.",
            &stats.query_limit_disconnections,
        ),
        (
            "kvorum_output_buffer_limit_disconnections_total",
            "Clients disconnected because too much waited for them.",
            &stats.output_limit_disconnections,
        ),
        ("kvorum_error_replies_total", "Error replies.", &stats.error_replies),
    ] {
        count(name, help, labels, get(counter));
    }
    for (refusal, refused) in port.limits.refused() {
        let labels = [labels, &[("reason", refusal.word())]].concat();
        let name = "kvorum_client_connections_refused_total";
        count(name, "Client connections turned away.", &labels, refused as f64);
    }
    let mut errors: BTreeMap<&str, u64> = BTreeMap::default();
    for (code, replies) in stats.errors() {
        let known = ERROR_CODES.iter().find(|known| **known == code).copied();
        *errors.entry(known.unwrap_or("other")).or_default() += replies;
    }
    for (code, replies) in errors {
        let labels = [labels, &[("code", code)]].concat();
        count("kvorum_errors_total", "Error replies by their codes.", &labels, replies as f64);
    }
}

/// The figures of the process.
pub(crate) fn process(out: &mut dyn Metrics) {
    let (resident, reserved) = process::memory_bytes();
    let cpu = process::cpu_time();
    let (open, most) = process::files();
    out.counter(
        "process_cpu_seconds_total",
        "CPU time of the process, user and system.",
        &[],
        cpu.user + cpu.system,
    );
    let gauges: [(&'static str, &'static str, f64); 5] = [
        ("process_resident_memory_bytes", "Memory that the process has.", resident as f64),
        ("process_virtual_memory_bytes", "Memory that the process has reserved.", reserved as f64),
        ("process_open_fds", "Open files.", open as f64),
        ("process_threads", "Threads.", process::threads() as f64),
        (
            "process_start_time_seconds",
            "When the process started, since the Unix epoch.",
            process::start().as_secs_f64(),
        ),
    ];
    gauges.into_iter().for_each(|(name, help, value)| out.gauge(name, help, &[], value));
    if let Some(most) = most {
        out.gauge("process_max_fds", "How many files may be open.", &[], most as f64);
    }
    let build = [("version", env!("CARGO_PKG_VERSION")), ("redis_version", REDIS_VERSION)];
    out.gauge(
        "kvorum_build_info",
        "Versions: of Kvorum, and of the Redis whose commands it follows.",
        &build,
        1.0,
    );
}
