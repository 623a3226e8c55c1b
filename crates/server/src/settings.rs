//! What CONFIG GET shows, CONFIG SET changes and CONFIG REWRITE writes down.
//!
//! Names, units and error texts are Redis's where Redis has the setting. Every value shown is true of this server; settings
//! of Redis that have no meaning here are not shown. Settings are the server's: its ports share them, for they share a file.

use crate::limits::{OutputLimit, OutputLimits, Rules};
use crate::password::{Password, RequirePass};
use crate::port::Place;
use crate::rewrite::{self, Line};
use crate::serve::ServeConfig;
use kvorum_cluster::{Durability, Mode};
use kvorum_keyspace::{Args, Error, Outcome, Sink, glob};
use kvorum_node::NodeConfig;
use parking_lot::RwLock;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;
use tracing::warn;

/// Settings of a server. Those that CONFIG SET changes can change at any time; the others stay as the server started with them.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Address the ports listen on.
    pub(crate) bind: String,
    /// Folder of the server's data.
    pub(crate) dir: String,
    /// The server's configuration file, if it has one.
    pub(crate) file: Option<PathBuf>,
    /// Who may use DEBUG.
    pub(crate) debug_command: DebugCommand,
    /// What clients must give before they may do anything else.
    pub(crate) requirepass: RequirePass,
    /// Close a connection that was idle for this many seconds; 0 for never.
    pub(crate) timeout_s: AtomicU64,
    /// Most connections of a port at a time.
    pub(crate) maxclients: AtomicU64,
    /// Seconds of silence before TCP asks whether a client is still there; 0 for never.
    pub(crate) tcp_keepalive_s: AtomicU64,
    /// The largest argument of a request.
    pub(crate) proto_max_bulk_len: AtomicU64,
    /// The largest request.
    pub(crate) query_buffer_limit: AtomicU64,
    /// How many bytes may wait for a client.
    pub(crate) output_limits: OutputSettings,
    /// Who is let in, besides `maxclients`.
    pub(crate) rules: RwLock<Rules>,
    /// How long a client may be held while its shard has no leader.
    pub(crate) failover_hold_ms: AtomicU64,
    /// Longest election timeout.
    pub(crate) election_timeout_ms: u64,
    /// A write without an outcome after this long is answered `-UNKNOWN`.
    pub(crate) write_timeout_ms: u64,
    /// `lease` or `quorum`.
    pub(crate) read_mode: &'static str,
    /// What is measured and remembered.
    pub(crate) slowlog_log_slower_than_us: AtomicI64,
    /// Entries of a port's slow log.
    pub(crate) slowlog_max_len: AtomicU64,
    /// What takes at least this long is a latency event; 0 for no such thing.
    pub(crate) latency_monitor_threshold_ms: AtomicU64,
    /// Whether latencies of commands are counted.
    pub(crate) latency_tracking: AtomicBool,
    /// Percentiles of INFO latencystats.
    pub(crate) latency_percentiles: RwLock<Vec<f64>>,
}

impl Default for Settings {
    /// What a configuration that says nothing means.
    fn default() -> Settings {
        crate::serve::settings(&ServeConfig::default(), &NodeConfig::new(PathBuf::new(), "", 0))
    }
}

impl Settings {
    /// How long a connection may be idle.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        match self.timeout_s.load(Ordering::Relaxed) {
            0 => None,
            seconds => Some(Duration::from_secs(seconds)),
        }
    }

    /// How long a client may be held.
    pub(crate) fn failover_hold(&self) -> Duration {
        Duration::from_millis(self.failover_hold_ms.load(Ordering::Relaxed))
    }

    /// Commands that run for at least this long stand in the slow log.
    pub(crate) fn slowlog_slower_than(&self) -> Option<Duration> {
        let us = self.slowlog_log_slower_than_us.load(Ordering::Relaxed);
        u64::try_from(us).ok().map(Duration::from_micros)
    }

    /// Most entries of a slow log.
    pub(crate) fn slowlog_max_len(&self) -> usize {
        usize::try_from(self.slowlog_max_len.load(Ordering::Relaxed)).unwrap_or(usize::MAX)
    }

    /// What takes at least this long is a latency event.
    pub(crate) fn latency_monitor_threshold(&self) -> Option<Duration> {
        match self.latency_monitor_threshold_ms.load(Ordering::Relaxed) {
            0 => None,
            ms => Some(Duration::from_millis(ms)),
        }
    }

    /// Somebody wants to hear of commands that run for at least this long.
    pub(crate) fn slow_after(&self) -> Option<Duration> {
        [self.slowlog_slower_than(), self.latency_monitor_threshold()].into_iter().flatten().min()
    }
}

/// `client-output-buffer-limit`, as connections look at it once a turn: without a lock.
#[derive(Debug)]
pub(crate) struct OutputSettings {
    all: RwLock<OutputLimits>,
    hard_bytes: AtomicU64,
    soft_bytes: AtomicU64,
    soft_seconds: AtomicU64,
}

impl OutputSettings {
    pub(crate) fn new(limits: OutputLimits) -> OutputSettings {
        let normal = limits.normal();
        OutputSettings {
            all: RwLock::new(limits),
            hard_bytes: normal.hard_bytes.into(),
            soft_bytes: normal.soft_bytes.into(),
            soft_seconds: normal.soft_seconds.into(),
        }
    }

    /// Those of clients that subscribed.
    pub(crate) fn pubsub(&self) -> OutputLimit {
        self.all.read().pubsub()
    }

    /// Those of all other clients.
    pub(crate) fn normal(&self) -> OutputLimit {
        OutputLimit {
            hard_bytes: self.hard_bytes.load(Ordering::Relaxed),
            soft_bytes: self.soft_bytes.load(Ordering::Relaxed),
            soft_seconds: self.soft_seconds.load(Ordering::Relaxed),
        }
    }

    fn set(&self, limits: OutputLimits) {
        let mut all = self.all.write();
        let normal = limits.normal();
        self.hard_bytes.store(normal.hard_bytes, Ordering::Relaxed);
        self.soft_bytes.store(normal.soft_bytes, Ordering::Relaxed);
        self.soft_seconds.store(normal.soft_seconds, Ordering::Relaxed);
        *all = limits;
    }
}

/// Who may use DEBUG.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DebugCommand {
    /// Nobody.
    No,
    /// Clients on this machine.
    #[default]
    Local,
    /// All clients.
    Yes,
}

impl DebugCommand {
    fn name(self) -> &'static str {
        match self {
            DebugCommand::No => "no",
            DebugCommand::Local => "local",
            DebugCommand::Yes => "yes",
        }
    }

    /// Whether a client of this address may.
    pub(crate) fn allows(self, client: IpAddr) -> bool {
        match self {
            DebugCommand::No => false,
            DebugCommand::Local => client.to_canonical().is_loopback(),
            DebugCommand::Yes => true,
        }
    }
}

/// A setting.
struct Row {
    name: &'static str,
    kind: Kind,
}

/// How a setting is read and changed.
enum Kind {
    /// As the server started; Redis does not change it while it runs, either.
    Fixed(fn(Place<'_>) -> String),
    /// Redis can change it; here there is one value, which can be wished for.
    Only(Form, fn(Place<'_>) -> String),
    /// A number.
    Number { least: u64, most: u64, value: fn(&Settings) -> &AtomicU64 },
    /// A number of bytes.
    Bytes { least: u64, most: u64, value: fn(&Settings) -> &AtomicU64 },
    /// Something with a form of its own: how it is written, and how it is read and changed.
    Own { value: fn(&Settings) -> String, parse: fn(&Settings, &str) -> Result<Change, String> },
    /// A number that may be negative.
    Signed { least: i64, most: i64, value: fn(&Settings) -> &AtomicI64 },
    /// `yes` or `no`.
    Flag(fn(&Settings) -> &AtomicBool),
    /// Numbers with blanks between them.
    Percentiles,
    /// Any bytes, and nobody's business.
    Password(fn(&Settings) -> &RequirePass),
}

/// What a value of a setting looks like.
enum Form {
    Number,
    Bytes,
    Flag,
    OneOf(&'static [&'static str]),
    Text,
}

/// A value that was understood.
enum Value {
    /// The value it has.
    Same,
    Number(u64),
    Signed(i64),
    Flag(bool),
    Percentiles(Vec<f64>),
    Password(Password),
    Own(Change),
}

/// A change that was understood.
type Change = Box<dyn FnOnce(&Settings)>;

const INT_MAX: u64 = 2_147_483_647;
const LONG_MAX: u64 = 9_223_372_036_854_775_807;

const fn only(name: &'static str, form: Form, value: fn(Place<'_>) -> String) -> Row {
    Row { name, kind: Kind::Only(form, value) }
}

const fn fixed(name: &'static str, value: fn(Place<'_>) -> String) -> Row {
    Row { name, kind: Kind::Fixed(value) }
}

const fn number(name: &'static str, least: u64, most: u64, value: fn(&Settings) -> &AtomicU64) -> Row {
    Row { name, kind: Kind::Number { least, most, value } }
}

const fn bytes(name: &'static str, least: u64, most: u64, value: fn(&Settings) -> &AtomicU64) -> Row {
    Row { name, kind: Kind::Bytes { least, most, value } }
}

const fn own(
    name: &'static str,
    value: fn(&Settings) -> String,
    parse: fn(&Settings, &str) -> Result<Change, String>,
) -> Row {
    Row { name, kind: Kind::Own { value, parse } }
}

/// A change of one of the rules of who is let in.
fn rule<T: FromStr<Err = String> + 'static>(
    text: &str,
    change: impl FnOnce(&mut Rules, T) + 'static,
) -> Result<Change, String> {
    let value = text.parse()?;
    Ok(Box::new(move |settings| change(&mut settings.rules.write(), value)))
}

/// The same for a number.
fn number_rule(text: &str, change: impl FnOnce(&mut Rules, u64) + 'static) -> Result<Change, String> {
    const MOST: u64 = 4_294_967_295;
    let number = u64::try_from(parse_number(text)?).ok().filter(|number| *number <= MOST);
    let value = number.ok_or_else(|| out_of_range(0, MOST))?;
    Ok(Box::new(move |settings| change(&mut settings.rules.write(), value)))
}

const EVICTION: &[&str] = &[
    "volatile-lru",
    "volatile-lfu",
    "volatile-random",
    "volatile-ttl",
    "allkeys-lru",
    "allkeys-lfu",
    "allkeys-random",
    "noeviction",
];

/// All settings.
static ROWS: &[Row] = &[
    // The server.
    fixed("port", |place| place.port.number.to_string()),
    fixed("bind", |place| place.port.settings.bind.clone()),
    only("dir", Form::Text, |place| place.port.settings.dir.clone()),
    fixed("databases", |place| place.databases().to_string()),
    fixed("daemonize", |_| no()),
    fixed("supervised", |_| no()),
    fixed("enable-debug-command", |place| place.port.settings.debug_command.name().to_owned()),
    fixed("enable-module-command", |_| no()),
    only("protected-mode", Form::Flag, |_| no()),
    only("tls-port", Form::Number, |_| "0".to_owned()),
    fixed("unixsocket", |_| String::new()),
    only("hz", Form::Number, |_| "10".to_owned()),
    // Clients.
    number("timeout", 0, INT_MAX, |settings| &settings.timeout_s),
    number("maxclients", 1, 4_294_967_295, |settings| &settings.maxclients),
    number("tcp-keepalive", 0, INT_MAX, |settings| &settings.tcp_keepalive_s),
    bytes("proto-max-bulk-len", 1 << 20, LONG_MAX, |settings| &settings.proto_max_bulk_len),
    bytes("client-query-buffer-limit", 1 << 20, LONG_MAX, |settings| &settings.query_buffer_limit),
    own(
        "client-output-buffer-limit",
        |settings| settings.output_limits.all.read().to_string(),
        |settings, text| {
            let limits = settings.output_limits.all.read().changed(text)?;
            Ok(Box::new(move |settings| settings.output_limits.set(limits)))
        },
    ),
    own(
        "maxclients-per-address",
        |settings| settings.rules.read().per_address.to_string(),
        |_, text| rule(text, |rules, quota| rules.per_address = quota),
    ),
    own(
        "maxclients-per-name",
        |settings| settings.rules.read().per_name.to_string(),
        |_, text| rule(text, |rules, quota| rules.per_name = quota),
    ),
    own(
        "maxclients-reserve",
        |settings| settings.rules.read().reserve.to_string(),
        |_, text| number_rule(text, |rules, reserve| rules.reserve = reserve),
    ),
    own(
        "trusted-addresses",
        |settings| settings.rules.read().trusted.to_string(),
        |_, text| rule(text, |rules, trusted| rules.trusted = trusted),
    ),
    own(
        "accept-rate",
        |settings| settings.rules.read().accept_rate.to_string(),
        |_, text| number_rule(text, |rules, rate| rules.accept_rate = rate),
    ),
    own(
        "accept-rate-per-address",
        |settings| settings.rules.read().accept_rate_per_address.to_string(),
        |_, text| number_rule(text, |rules, rate| rules.accept_rate_per_address = rate),
    ),
    // Data.
    only("maxmemory", Form::Bytes, |_| "0".to_owned()),
    only("maxmemory-policy", Form::OneOf(EVICTION), |_| "noeviction".to_owned()),
    only("notify-keyspace-events", Form::Text, |_| String::new()),
    only("lazyfree-lazy-user-del", Form::Flag, |_| yes()),
    only("lazyfree-lazy-user-flush", Form::Flag, |_| yes()),
    only("lazyfree-lazy-expire", Form::Flag, |_| yes()),
    only("lazyfree-lazy-server-del", Form::Flag, |_| yes()),
    // On disk.
    only("save", Form::Text, |_| String::new()),
    only("appendonly", Form::Flag, |_| yes()),
    only("appendfsync", Form::OneOf(&["everysec", "always", "no"]), |place| {
        match durability(place) {
            Some(Durability::QuorumMemory) => "everysec",
            Some(Durability::None) => "no",
            Some(Durability::QuorumFsync) | None => "always",
        }
        .to_owned()
    }),
    only("no-appendfsync-on-rewrite", Form::Flag, |_| no()),
    only("stop-writes-on-bgsave-error", Form::Flag, |_| no()),
    fixed("durability", |place| {
        durability(place).map_or_else(String::new, |durability| durability.to_string())
    }),
    // Replication and the cluster.
    Row { name: "requirepass", kind: Kind::Password(|settings| &settings.requirepass) },
    only("masterauth", Form::Text, |_| String::new()),
    only("slave-read-only", Form::Flag, |_| yes()),
    only("replica-read-only", Form::Flag, |_| yes()),
    only("slave-serve-stale-data", Form::Flag, |_| no()),
    only("replica-serve-stale-data", Form::Flag, |_| no()),
    only("slave-priority", Form::Number, |_| "100".to_owned()),
    only("replica-priority", Form::Number, |_| "100".to_owned()),
    only("min-slaves-to-write", Form::Number, |place| (replicas(place) / 2).to_string()),
    only("min-replicas-to-write", Form::Number, |place| (replicas(place) / 2).to_string()),
    fixed("cluster-enabled", |place| if place.mode() == Mode::Cluster { yes() } else { no() }),
    only("cluster-node-timeout", Form::Number, |place| place.port.settings.election_timeout_ms.to_string()),
    only("cluster-require-full-coverage", Form::Flag, |_| no()),
    only("cluster-allow-replica-migration", Form::Flag, |_| no()),
    only("cluster-allow-reads-when-down", Form::Flag, |_| no()),
    fixed("write-timeout-ms", |place| place.port.settings.write_timeout_ms.to_string()),
    fixed("read-mode", |place| place.port.settings.read_mode.to_owned()),
    number("failover-hold-ms", 0, 600_000, |settings| &settings.failover_hold_ms),
    // What is measured.
    Row {
        name: "slowlog-log-slower-than",
        kind: Kind::Signed {
            least: -1,
            most: i64::MAX,
            value: |settings| &settings.slowlog_log_slower_than_us,
        },
    },
    number("slowlog-max-len", 0, LONG_MAX, |settings| &settings.slowlog_max_len),
    number("latency-monitor-threshold", 0, LONG_MAX, |settings| &settings.latency_monitor_threshold_ms),
    Row { name: "latency-tracking", kind: Kind::Flag(|settings| &settings.latency_tracking) },
    Row { name: "latency-tracking-info-percentiles", kind: Kind::Percentiles },
];

fn yes() -> String {
    "yes".to_owned()
}

fn no() -> String {
    "no".to_owned()
}

fn durability(place: Place<'_>) -> Option<Durability> {
    place.replica.map(|replica| replica.view().topology.durability)
}

/// Replicas of the shard behind the port.
fn replicas(place: Place<'_>) -> usize {
    place.replica.map_or(0, |replica| {
        replica.view().topology.replica(replica.id()).map_or(0, |(shard, _)| shard.replicas.len())
    })
}

impl Row {
    fn value(&self, place: Place<'_>) -> Vec<u8> {
        let settings = &place.port.settings;
        let text = match &self.kind {
            Kind::Password(value) => return value(settings).get().reveal().to_vec(),
            Kind::Fixed(value) | Kind::Only(_, value) => value(place),
            Kind::Number { value, .. } | Kind::Bytes { value, .. } => {
                value(settings).load(Ordering::Relaxed).to_string()
            }
            Kind::Own { value, .. } => value(settings),
            Kind::Signed { value, .. } => value(settings).load(Ordering::Relaxed).to_string(),
            Kind::Flag(value) => {
                if value(settings).load(Ordering::Relaxed) {
                    yes()
                } else {
                    no()
                }
            }
            Kind::Percentiles => format_percentiles(&settings.latency_percentiles.read()),
        };
        text.into_bytes()
    }

    /// Understands a value, or says in Redis's words why not.
    fn parse(&self, value: &[u8], place: Place<'_>) -> Result<Value, String> {
        let text = String::from_utf8_lossy(value);
        let text = &*text;
        match &self.kind {
            Kind::Password(_) => Ok(Value::Password(Password::from(value))),
            Kind::Fixed(_) => Err(IMMUTABLE.to_owned()),
            Kind::Only(form, value) => {
                let current = value(place);
                let same = match form {
                    Form::Number => parse_number(text)? == parse_number(&current)?,
                    Form::Bytes => parse_bytes(text)? == parse_bytes(&current)?,
                    Form::Flag => parse_flag(text)? == parse_flag(&current)?,
                    Form::OneOf(options)
                        if !options.iter().any(|option| option.eq_ignore_ascii_case(text)) =>
                    {
                        return Err(format!(
                            "argument(s) must be one of the following: {}",
                            options.join(", ")
                        ));
                    }
                    Form::OneOf(_) => text.eq_ignore_ascii_case(&current),
                    Form::Text => text == current,
                };
                if same { Ok(Value::Same) } else { Err(IMMUTABLE.to_owned()) }
            }
            Kind::Number { least, most, .. } => {
                let number = parse_number(text)?;
                let fitting = u64::try_from(number).ok().filter(|number| (least..=most).contains(&number));
                fitting.map(Value::Number).ok_or_else(|| out_of_range(least, most))
            }
            Kind::Bytes { least, most, .. } => {
                let number = Some(parse_bytes(text)?).filter(|number| (least..=most).contains(&number));
                number.map(Value::Number).ok_or_else(|| out_of_range(least, most))
            }
            Kind::Own { parse, .. } => parse(&place.port.settings, text).map(Value::Own),
            Kind::Signed { least, most, .. } => {
                let number = parse_number(text)?;
                if !(*least..=*most).contains(&number) {
                    return Err(out_of_range(least, most));
                }
                Ok(Value::Signed(number))
            }
            Kind::Flag(_) => parse_flag(text).map(Value::Flag),
            Kind::Percentiles => parse_percentiles(text).map(Value::Percentiles),
        }
    }

    /// As the configuration file has it, where CONFIG SET can change it.
    fn in_file(&self, settings: &Settings) -> Option<toml_edit::Value> {
        let value = match &self.kind {
            Kind::Fixed(_) | Kind::Only(..) => return None,
            Kind::Number { value, .. } | Kind::Bytes { value, .. } => {
                value(settings).load(Ordering::Relaxed).cast_signed().into()
            }
            Kind::Own { value, .. } => {
                let text = value(settings);
                text.parse::<i64>().map_or_else(|_| text.into(), Into::into)
            }
            Kind::Signed { value, .. } => value(settings).load(Ordering::Relaxed).into(),
            Kind::Flag(value) => value(settings).load(Ordering::Relaxed).into(),
            Kind::Percentiles => format_percentiles(&settings.latency_percentiles.read()).into(),
            Kind::Password(value) => String::from_utf8_lossy(value(settings).get().reveal()).as_ref().into(),
        };
        Some(value)
    }

    fn store(&self, settings: &Settings, value: Value) {
        match (&self.kind, value) {
            (Kind::Number { value, .. } | Kind::Bytes { value, .. }, Value::Number(new)) => {
                value(settings).store(new, Ordering::Relaxed);
            }
            (Kind::Own { .. }, Value::Own(change)) => change(settings),
            (Kind::Signed { value, .. }, Value::Signed(new)) => value(settings).store(new, Ordering::Relaxed),
            (Kind::Flag(value), Value::Flag(new)) => value(settings).store(new, Ordering::Relaxed),
            (Kind::Password(value), Value::Password(new)) => value(settings).set(new),
            (Kind::Percentiles, Value::Percentiles(new)) => *settings.latency_percentiles.write() = new,
            _ => {}
        }
    }
}

const IMMUTABLE: &str = "can't set immutable config";

fn out_of_range(least: impl std::fmt::Display, most: impl std::fmt::Display) -> String {
    format!("argument must be between {least} and {most} inclusive")
}

fn parse_number(text: &str) -> Result<i64, String> {
    super::session::integer(text.as_bytes())
        .map_err(|_| "argument couldn't be parsed into an integer".to_owned())
}

/// A number of bytes: `100`, `64k`, `64kb`, `1gb`, …; kilobytes are 1,000 bytes with a `k` and 1,024 with `kb`.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" => 1_000,
        "kb" => 1 << 10,
        "m" => 1_000_000,
        "mb" => 1 << 20,
        "g" => 1_000_000_000,
        "gb" => 1 << 30,
        _ => 0,
    };
    number
        .parse::<u64>()
        .ok()
        .filter(|_| factor > 0)
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(|| "argument must be a memory value".to_owned())
}

fn parse_flag(text: &str) -> Result<bool, String> {
    if text.eq_ignore_ascii_case("yes") {
        Ok(true)
    } else if text.eq_ignore_ascii_case("no") {
        Ok(false)
    } else {
        Err("argument must be 'yes' or 'no'".to_owned())
    }
}

/// Percentiles with blanks between them; none for no latencystats.
pub(crate) fn parse_percentiles(text: &str) -> Result<Vec<f64>, String> {
    const NAME: &str = "latency-tracking-info-percentiles";
    let one = |word: &str| {
        let value: f64 = word.parse().map_err(|_| format!("Invalid {NAME} parameters"))?;
        if (0.0..=100.0).contains(&value) {
            Ok(value)
        } else {
            Err(format!("{NAME} parameters should sit between [0.0,100.0]"))
        }
    };
    text.split_ascii_whitespace().map(one).collect()
}

fn format_percentiles(percentiles: &[f64]) -> String {
    let words: Vec<String> = percentiles.iter().map(f64::to_string).collect();
    words.join(" ")
}

fn find(name: &[u8]) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.name.as_bytes().eq_ignore_ascii_case(name))
}

/// CONFIG GET: names and values of the settings that are named or match one of the patterns. A name is shown as it was asked for.
pub(crate) fn get(place: Place<'_>, patterns: &[&[u8]], out: &mut dyn Sink) {
    let mut shown: Vec<(&[u8], &Row)> = Vec::new();
    let mut seen = BTreeSet::new();
    for pattern in patterns {
        if !pattern.iter().any(|byte| b"[*?".contains(byte)) {
            if let Some(row) = find(pattern)
                && seen.insert(row.name)
            {
                shown.push((pattern, row));
            }
            continue;
        }
        let matching = ROWS.iter().filter(|row| glob::matches(pattern, row.name.as_bytes(), true));
        shown.extend(matching.filter(|row| seen.insert(row.name)).map(|row| (row.name.as_bytes(), row)));
    }
    out.map(shown.len());
    for (name, row) in shown {
        out.bulk(name);
        out.bulk(&row.value(place));
    }
}

/// CONFIG SET: all of the settings or none.
pub(crate) fn set(place: Place<'_>, pairs: Args<'_>) -> Outcome {
    if !pairs.len().is_multiple_of(2) {
        return Err(Error::SYNTAX);
    }
    let mut rows: Vec<(&Row, &[u8])> = Vec::new();
    for pair in pairs.chunks(2) {
        let Some(row) = find(pair[0]) else {
            let what = "ERR Unknown option or number of arguments for CONFIG SET - '";
            return Err(Error::quoting(what, pair[0], "'"));
        };
        if matches!(row.kind, Kind::Fixed(_)) {
            return refuse(pair[0], IMMUTABLE);
        }
        if rows.iter().any(|(other, _)| other.name == row.name) {
            return refuse(pair[0], "duplicate parameter");
        }
        rows.push((row, pair[1]));
    }
    let mut changes = Vec::new();
    for (row, value) in rows {
        match row.parse(value, place) {
            Ok(value) => changes.push((row, value)),
            Err(why) => return refuse(row.name.as_bytes(), &why),
        }
    }
    changes.into_iter().for_each(|(row, value)| row.store(&place.port.settings, value));
    Ok(())
}

/// What CONFIG REWRITE writes of the settings that CONFIG SET can change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Extent {
    /// Those that the file names, and those that are not the default.
    Changed,
    /// All.
    Everything,
}

/// CONFIG REWRITE: what CONFIG SET can change goes into the server's file, under the same names.
pub(crate) fn rewrite(place: Place<'_>, extent: Extent) -> Outcome {
    let settings = &place.port.settings;
    let Some(path) = &settings.file else {
        return Err(Error::new("ERR The server is running without a config file"));
    };
    let fresh = Settings::default();
    let lines = ROWS.iter().filter_map(|row| {
        let value = row.in_file(settings)?;
        let is_default = extent == Extent::Changed
            && row.in_file(&fresh).is_some_and(|default| default.to_string() == value.to_string());
        Some(Line { name: row.name, value, is_default })
    });
    rewrite::rewrite(path, lines.collect()).map_err(|error| {
        warn!(path = %path.display(), %error, "cannot rewrite the configuration file");
        Error::one_line(format!("ERR Rewriting config file: {error}"))
    })
}

/// The words of a refusal. Redis names a setting as the client did, but where it does not like the value.
fn refuse(name: &[u8], why: &str) -> Outcome {
    Err(Error::quoting("ERR CONFIG SET failed (possibly related to argument '", name, &format!("') - {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units() {
        let cases =
            [("0", 0), ("12b", 12), ("1k", 1_000), ("1KB", 1_024), ("3mb", 3 << 20), ("2g", 2_000_000_000)];
        for (text, bytes) in cases {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "-1", "1.5gb", "gb", "1foo", "99999999999999999999", "99999999999999gb"] {
            assert_eq!(parse_bytes(text), Err("argument must be a memory value".to_owned()), "{text}");
        }
    }

    #[test]
    fn names_stand_once() {
        let names: BTreeSet<&str> = ROWS.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), ROWS.len());
    }
}
