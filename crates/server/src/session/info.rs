//! INFO: Redis's sections and fields, as far as they have a true value here, and a section `raft`.
//!
//! One port is one node, so clients, stats, keyspace, commandstats and the data's memory are the port's.
//! Process id, resident memory and CPU time are the whole process's: the ports of one server share them.

use super::memory::{Memory, ratio};
use super::server::others;
use crate::port::{KeyspaceFacts, Place, Port, REDIS_VERSION, Standing, wall_time};
use crate::process;
use crate::resp::RespSink;
use crate::stats::KeyspaceCounts;
use kvorum_cluster::{Durability, Mode};
use kvorum_keyspace::{Args, Sink};
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Writes a section.
type Section = fn(&Facts<'_>) -> String;

/// Sections in their order, and whether a plain INFO shows them.
const SECTIONS: [(&str, bool, Section); 14] = [
    ("server", true, server),
    ("clients", true, clients),
    ("memory", true, memory),
    ("persistence", true, persistence),
    ("stats", true, stats),
    ("replication", true, replication),
    ("cpu", true, cpu),
    ("modules", true, |_| "# Modules\r\n".to_owned()),
    ("commandstats", false, commandstats),
    ("errorstats", true, errorstats),
    ("latencystats", false, latencystats),
    ("cluster", true, cluster),
    ("keyspace", true, keyspace),
    ("raft", true, raft),
];

/// What the sections are made of.
struct Facts<'a> {
    place: Place<'a>,
    keyspace: KeyspaceFacts,
    counts: KeyspaceCounts,
    standing: Standing,
    /// What kind of port it is.
    mode: &'static str,
}

/// Writes the sections that are asked for.
fn write_sections(args: Args<'_>, facts: &Facts<'_>, sections: &[(&str, bool, Section)]) -> String {
    let asked = &args[1..];
    let is = |name: &str| asked.iter().any(|arg| arg.eq_ignore_ascii_case(name.as_bytes()));
    let (all, default) = (is("all") || is("everything"), asked.is_empty() || is("default"));
    let sections: Vec<String> = sections
        .iter()
        .filter(|(name, by_default, _)| all || default && *by_default || is(name))
        .map(|(_, _, section)| section(facts))
        .collect();
    sections.join("\r\n")
}

/// INFO of the port that answers as a Sentinel; `sentinel` are the fields of its own section.
pub(crate) fn of_sentinel(args: Args<'_>, port: &Port, sentinel: &str) -> String {
    /// In Redis's order; the last section is made elsewhere.
    const SECTIONS: [(&str, bool, Section); 4] =
        [("server", true, server), ("clients", true, clients), ("stats", true, stats), ("cpu", true, cpu)];
    let facts = Facts {
        place: Place { port, replica: None },
        keyspace: KeyspaceFacts::default(),
        counts: KeyspaceCounts::default(),
        standing: Standing::default(),
        mode: "sentinel",
    };
    let mut text = write_sections(args, &facts, &SECTIONS);
    let asked = &args[1..];
    let is_wanted = |arg: &&[u8]| {
        ["sentinel", "all", "everything", "default"]
            .iter()
            .any(|name| arg.eq_ignore_ascii_case(name.as_bytes()))
    };
    if asked.is_empty() || asked.iter().any(is_wanted) {
        if !text.is_empty() {
            text.push_str("\r\n");
        }
        text.push_str("# Sentinel\r\n");
        text.push_str(sentinel);
    }
    text
}

/// INFO [section …]
pub(super) fn info(args: Args<'_>, place: Place<'_>, out: &mut RespSink) {
    let keyspace = place.replica.map(|replica| replica.keyspace()).unwrap_or_default();
    let facts = Facts {
        place,
        counts: place.port.stats.since_reset(keyspace.counts),
        keyspace,
        standing: place.replica.map(|replica| replica.standing()).unwrap_or_default(),
        mode: match place.mode() {
            Mode::Cluster => "cluster",
            Mode::Standalone => "standalone",
        },
    };
    out.verbatim("txt", write_sections(args, &facts, &SECTIONS).as_bytes());
}

/// A section of `name:value` lines.
fn section(title: &str, fields: &[(&str, &dyn std::fmt::Display)]) -> String {
    let mut text = format!("# {title}\r\n");
    for (name, value) in fields {
        write!(text, "{name}:{value}\r\n").expect("a String takes everything");
    }
    text
}

fn server(facts: &Facts<'_>) -> String {
    let port = facts.place.port;
    let uptime = port.started.elapsed().as_secs();
    let executable = std::env::current_exe().map(|path| path.display().to_string()).unwrap_or_default();
    let file = port.settings.file.as_ref().map(|file| file.display().to_string()).unwrap_or_default();
    let mode = facts.mode;
    section(
        "Server",
        &[
            ("redis_version", &REDIS_VERSION),
            ("redis_git_sha1", &"00000000"),
            ("redis_git_dirty", &0),
            ("redis_build_id", &"0000000000000000"),
            ("redis_mode", &mode),
            ("kvorum_version", &env!("CARGO_PKG_VERSION")),
            ("os", &process::operating_system()),
            ("arch_bits", &usize::BITS),
            ("monotonic_clock", &"POSIX clock_gettime"),
            ("multiplexing_api", &"epoll"),
            ("process_id", &std::process::id()),
            ("process_supervised", &"no"),
            ("run_id", &port.run_id),
            ("tcp_port", &port.number),
            ("server_time_usec", &wall_time().as_micros()),
            ("uptime_in_seconds", &uptime),
            ("uptime_in_days", &(uptime / 86_400)),
            ("hz", &10),
            ("configured_hz", &10),
            ("lru_clock", &(wall_time().as_secs() & 0xff_ffff)),
            ("executable", &executable),
            ("config_file", &file),
            ("io_threads_active", &0),
        ],
    )
}

fn clients(facts: &Facts<'_>) -> String {
    let port = facts.place.port;
    let (input, output) = port.clients.largest_buffers();
    section(
        "Clients",
        &[
            ("connected_clients", &port.clients.len()),
            ("cluster_connections", &0),
            ("maxclients", &port.settings.maxclients.load(Ordering::Relaxed)),
            ("client_recent_max_input_buffer", &input),
            ("client_recent_max_output_buffer", &output),
            ("blocked_clients", &port.clients.blocked()),
            ("tracking_clients", &0),
            ("clients_in_timeout_table", &0),
        ],
    )
}

fn memory(facts: &Facts<'_>) -> String {
    static PEAK: AtomicU64 = AtomicU64::new(0);
    let memory = Memory::of(facts.place);
    let (used, resident) = (memory.used(), memory.resident);
    let resident_peak = PEAK.fetch_max(resident, Ordering::Relaxed).max(resident);
    let total = process::total_memory_bytes();
    let percent = |part, whole| format!("{:.2}%", 100.0 * ratio(part, whole));
    section(
        "Memory",
        &[
            ("used_memory", &used),
            ("used_memory_human", &human(used)),
            ("used_memory_rss", &resident),
            ("used_memory_rss_human", &human(resident)),
            ("used_memory_rss_peak", &resident_peak),
            ("used_memory_peak", &memory.peak),
            ("used_memory_peak_human", &human(memory.peak)),
            ("used_memory_peak_perc", &percent(used, memory.peak)),
            ("used_memory_overhead", &memory.clients),
            ("used_memory_startup", &0),
            ("used_memory_dataset", &memory.dataset),
            ("used_memory_dataset_perc", &percent(memory.dataset, used)),
            ("total_system_memory", &total),
            ("total_system_memory_human", &human(total)),
            ("used_memory_lua", &0),
            ("used_memory_vm_eval", &0),
            ("used_memory_lua_human", &human(0)),
            ("used_memory_scripts_eval", &0),
            ("number_of_cached_scripts", &0),
            ("number_of_functions", &0),
            ("number_of_libraries", &0),
            ("used_memory_vm_functions", &0),
            ("used_memory_vm_total", &0),
            ("used_memory_vm_total_human", &human(0)),
            ("used_memory_functions", &0),
            ("used_memory_scripts", &0),
            ("used_memory_scripts_human", &human(0)),
            ("maxmemory", &0),
            ("maxmemory_human", &human(0)),
            ("maxmemory_policy", &"noeviction"),
            ("mem_fragmentation_ratio", &format_args!("{:.2}", ratio(resident, used))),
            ("mem_fragmentation_bytes", &(resident.cast_signed() - used.cast_signed())),
            ("mem_not_counted_for_evict", &0),
            ("mem_replication_backlog", &0),
            ("mem_total_replication_buffers", &0),
            ("mem_clients_slaves", &0),
            ("mem_clients_normal", &memory.clients),
            ("mem_cluster_links", &0),
            ("mem_aof_buffer", &0),
            ("mem_allocator", &"mimalloc"),
            ("active_defrag_running", &0),
            ("lazyfree_pending_objects", &0),
            ("lazyfreed_objects", &0),
        ],
    )
}

fn persistence(facts: &Facts<'_>) -> String {
    let port = facts.place.port;
    let durability = facts.place.replica.map(|replica| replica.view().topology.durability);
    let name = durability.map(|durability| durability.to_string()).unwrap_or_default();
    let synced = !matches!(durability, Some(Durability::None));
    let status = |failed: bool| if failed { "err" } else { "ok" };
    let snapshots = facts.place.replica.map(|replica| replica.snapshots()).unwrap_or_default();
    let (last, running) = (port.saves.last(), port.saves.running());
    let seconds = |time: Option<Duration>| time.map_or(-1, |time| time.as_secs().cast_signed());
    section(
        "Persistence",
        &[
            ("loading", &0),
            ("async_loading", &0),
            ("rdb_changes_since_last_save", &facts.keyspace.sequence.saturating_sub(last.sequence)),
            ("rdb_bgsave_in_progress", &u8::from(running.is_some())),
            ("rdb_last_save_time", &last.at_s),
            ("rdb_last_bgsave_status", &status(last.failed)),
            ("rdb_last_bgsave_time_sec", &seconds(last.took)),
            ("rdb_current_bgsave_time_sec", &seconds(running)),
            ("rdb_saves", &snapshots.built),
            ("aof_enabled", &u8::from(synced)),
            ("aof_rewrite_in_progress", &0),
            ("aof_rewrite_scheduled", &0),
            ("aof_last_rewrite_time_sec", &seconds(last.took)),
            ("aof_current_rewrite_time_sec", &-1),
            ("aof_last_bgrewrite_status", &status(last.failed)),
            ("aof_rewrites", &snapshots.built),
            ("aof_last_write_status", &status(facts.standing.failed.is_some())),
            ("aof_current_size", &snapshots.log_bytes),
            ("aof_base_size", &snapshots.bytes),
            ("durability", &name),
        ],
    )
}

fn stats(facts: &Facts<'_>) -> String {
    let stats = &facts.place.port.stats;
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let refused: Vec<String> = facts
        .place
        .port
        .limits
        .refused()
        .map(|(refusal, count)| format!("{}={count}", refusal.word()))
        .collect();
    let refused = refused.join(",");
    let [commands, input, output] = stats.rates();
    let kilobits = |bytes: u64| format!("{:.2}", bytes as f64 / 1024.0);
    section(
        "Stats",
        &[
            ("total_connections_received", &get(&stats.connections_received)),
            ("total_commands_processed", &get(&stats.commands_processed)),
            ("instantaneous_ops_per_sec", &commands),
            ("total_net_input_bytes", &get(&stats.input_bytes)),
            ("total_net_output_bytes", &get(&stats.output_bytes)),
            ("instantaneous_input_kbps", &kilobits(input)),
            ("instantaneous_output_kbps", &kilobits(output)),
            ("rejected_connections", &get(&stats.connections_rejected)),
            ("expired_keys", &facts.counts.expired),
            ("evicted_keys", &0),
            ("evicted_clients", &0),
            ("total_eviction_exceeded_time", &0),
            ("current_eviction_exceeded_time", &0),
            ("keyspace_hits", &facts.counts.hits),
            ("keyspace_misses", &facts.counts.misses),
            ("pubsub_channels", &0),
            ("pubsub_patterns", &0),
            ("pubsubshard_channels", &0),
            ("tracking_total_keys", &0),
            ("tracking_total_items", &0),
            ("tracking_total_prefixes", &0),
            ("total_error_replies", &get(&stats.error_replies)),
            ("total_reads_processed", &get(&stats.reads)),
            ("total_writes_processed", &get(&stats.writes)),
            ("unknown_outcomes", &get(&stats.unknown_outcomes)),
            ("client_query_buffer_limit_disconnections", &get(&stats.query_limit_disconnections)),
            ("client_output_buffer_limit_disconnections", &get(&stats.output_limit_disconnections)),
            ("clients_refused", &refused),
            ("failover_holds", &get(&stats.holds)),
        ],
    )
}

fn replication(facts: &Facts<'_>) -> String {
    let standing = &facts.standing;
    let replication_id = format!("{:040x}", standing.term);
    let none = "0".repeat(40);
    let mut text = "# Replication\r\n".to_owned();
    let mut field = |name: &str, value: &dyn std::fmt::Display| {
        write!(text, "{name}:{value}\r\n").expect("a String takes everything");
    };
    let mut offset = standing.committed;
    let view = facts.place.replica.map(|replica| (replica.view(), replica.id()));
    let shard = view.as_ref().and_then(|(view, me)| Some((view, *me, view.topology.replica(*me)?.0)));
    match shard {
        None => {
            field("role", &"master");
            field("connected_slaves", &0);
            field("min_slaves_good_slaves", &0);
        }
        Some((view, me, shard)) if view.master(shard).id == me => {
            let followers = others(view, shard, view.master(shard));
            field("role", &"master");
            field("connected_slaves", &followers.len());
            field("min_slaves_good_slaves", &followers.len());
            for (n, (other, host, port)) in followers.iter().enumerate() {
                let matched = standing.matched.get(&other.id.0).copied().unwrap_or(0);
                field(
                    &format!("slave{n}"),
                    &format_args!("ip={host},port={port},state=online,offset={matched},lag=0"),
                );
            }
        }
        Some((view, _, shard)) => {
            let master = view.master(shard);
            let (host, port) = view.topology.address(master.id).unwrap_or(("", 0));
            let up = standing.leader == Some(master.id.0);
            offset = standing.applied;
            field("role", &"slave");
            field("master_host", &host);
            field("master_port", &port);
            field("master_link_status", &if up { "up" } else { "down" });
            field("master_last_io_seconds_ago", &if up { 0 } else { -1 });
            field("master_sync_in_progress", &0);
            field("slave_read_repl_offset", &standing.last);
            field("slave_repl_offset", &standing.applied);
            field("slave_priority", &100);
            field("slave_read_only", &1);
            field("replica_announced", &1);
            field("connected_slaves", &0);
        }
    }
    field("master_failover_state", &"no-failover");
    field("master_replid", &replication_id);
    field("master_replid2", &none);
    field("master_repl_offset", &offset);
    field("second_repl_offset", &-1);
    // The log is the backlog; what was purged from it goes as a snapshot.
    let purged = facts.place.replica.and_then(|replica| replica.snapshots().purged).unwrap_or(0);
    field("repl_backlog_active", &u8::from(facts.place.replica.is_some()));
    field("repl_backlog_size", &standing.last.saturating_sub(purged));
    field("repl_backlog_first_byte_offset", &(purged + 1));
    field("repl_backlog_histlen", &standing.last.saturating_sub(purged));
    text
}

fn cpu(_: &Facts<'_>) -> String {
    let cpu = process::cpu_time();
    let (thread_user, thread_system) = process::thread_cpu_time();
    section(
        "CPU",
        &[
            ("used_cpu_sys", &format_args!("{:.6}", cpu.system)),
            ("used_cpu_user", &format_args!("{:.6}", cpu.user)),
            ("used_cpu_sys_children", &format_args!("{:.6}", cpu.system_children)),
            ("used_cpu_user_children", &format_args!("{:.6}", cpu.user_children)),
            ("used_cpu_sys_main_thread", &format_args!("{thread_system:.6}")),
            ("used_cpu_user_main_thread", &format_args!("{thread_user:.6}")),
        ],
    )
}

fn commandstats(facts: &Facts<'_>) -> String {
    let mut text = "# Commandstats\r\n".to_owned();
    for command in facts.place.port.stats.commands() {
        let per_call = command.micros as f64 / command.calls.max(1) as f64;
        let line = write!(
            text,
            "cmdstat_{}:calls={},usec={},usec_per_call={per_call:.2},rejected_calls={},failed_calls={}\r\n",
            command.name, command.calls, command.micros, command.rejected, command.failed,
        );
        line.expect("a String takes everything");
    }
    text
}

fn errorstats(facts: &Facts<'_>) -> String {
    let mut text = "# Errorstats\r\n".to_owned();
    for (code, count) in facts.place.port.stats.errors() {
        write!(text, "errorstat_{code}:count={count}\r\n").expect("a String takes everything");
    }
    text
}

/// How long the calls of each command took: reads run, writes wait for their majority, too.
fn latencystats(facts: &Facts<'_>) -> String {
    let port = facts.place.port;
    let percentiles = port.settings.latency_percentiles.read().clone();
    let mut text = "# Latencystats\r\n".to_owned();
    let latencies = port.stats.latencies().filter(|(_, distribution)| distribution.total() > 0);
    for (name, distribution) in latencies.filter(|_| !percentiles.is_empty()) {
        let figure = |percentile: &f64| {
            format!("p{percentile}={:.3}", distribution.percentile_ns(*percentile) as f64 / 1000.0)
        };
        let figures: Vec<String> = percentiles.iter().map(figure).collect();
        write!(text, "latency_percentiles_usec_{name}:{}\r\n", figures.join(","))
            .expect("a String takes everything");
    }
    text
}

fn cluster(facts: &Facts<'_>) -> String {
    section("Cluster", &[("cluster_enabled", &u8::from(facts.place.mode() == Mode::Cluster))])
}

fn keyspace(facts: &Facts<'_>) -> String {
    let mut text = "# Keyspace\r\n".to_owned();
    for (db, (keys, expiring)) in
        facts.keyspace.databases.iter().enumerate().filter(|(_, (keys, _))| *keys > 0)
    {
        write!(text, "db{db}:keys={keys},expires={expiring},avg_ttl=0\r\n")
            .expect("a String takes everything");
    }
    text
}

fn raft(facts: &Facts<'_>) -> String {
    let Some(replica) = facts.place.replica else { return "# Raft\r\nraft_role:none\r\n".to_owned() };
    let standing = &facts.standing;
    let view = replica.view();
    let shard = view.topology.replica(replica.id()).map(|(shard, _)| shard.id.0);
    let leader = standing.leader.and_then(|leader| {
        let (host, port) = view.topology.address(kvorum_cluster::ReplicaId(leader))?;
        Some(format!("{host}:{port}"))
    });
    let lag = standing.committed.saturating_sub(standing.applied);
    section(
        "Raft",
        &[
            ("raft_role", &standing.role),
            ("raft_serves", &u8::from(standing.serves)),
            ("raft_term", &standing.term),
            ("raft_leader", &leader.unwrap_or_else(|| "-".to_owned())),
            ("raft_last_log_index", &standing.last),
            ("raft_commit_index", &standing.committed),
            ("raft_applied_index", &standing.applied),
            ("raft_apply_lag_entries", &lag),
            ("raft_shard", &shard.map_or(-1, i32::from)),
            ("raft_replica", &replica.id()),
            ("raft_topology_version", &view.topology.version),
        ],
    )
}

/// Bytes as Redis shows them to people.
fn human(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")];
    match UNITS.iter().find(|(size, _)| bytes >= *size) {
        Some((size, unit)) => format!("{:.2}{unit}", bytes as f64 / *size as f64),
        None => format!("{bytes}B"),
    }
}
