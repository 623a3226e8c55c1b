//! The configuration of one server: a TOML file, overridden by the environment, overridden by flags.
//!
//! [`Config`] is what the rest of the program sees: every setting present and checked once, here. A setting is
//! written down in one place (the table below) and is called `base-port` in the file, `KVORUM_BASE_PORT` in the
//! environment and `--base-port` on the command line. Errors name the setting as the user wrote it, and for a
//! file also the line.
//!
//! Left out on purpose: whatever the cluster decides for all its servers (durability, mode, shards, slots). That
//! is held by the cluster itself, so that two servers can never disagree about it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::ValueEnum;
use kvorum::{Networks, OutputLimits, Password, Quota, Rules};
use serde::Deserialize;

/// The peer port of a server stands this far above its base port.
pub(crate) const PEER_PORT_OFFSET: u16 = 98;
/// The HTTP port of a server stands this far above its base port.
pub(crate) const HTTP_PORT_OFFSET: u16 = 99;
/// Client ports run from the base port upwards, one per shard, and end below the peer port.
pub(crate) const MAX_SHARDS: u16 = PEER_PORT_OFFSET;

/// Writes each setting once, and makes of the list [`Config`], its defaults, and [`Settings`], the same with
/// every field optional: what one file, one environment or one command line says.
macro_rules! settings {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $default:expr,)*) => {
        /// The whole configuration of one server, checked.
        #[derive(Clone, PartialEq, Debug)]
        pub(crate) struct Config { $($(#[$doc])* pub(crate) $name: $type,)* }

        /// The settings that one source gives; the others are `None`.
        #[derive(Clone, PartialEq, Debug, Default, Deserialize, clap::Args)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        #[command(next_help_heading = "Settings (also in the file, and as KVORUM_<NAME> in the environment)")]
        pub(crate) struct Settings { $($(#[$doc])* #[arg(long, value_name = "VALUE")] pub(crate) $name: Option<$type>,)* }

        impl Settings {
            /// These settings, and those of `below` where these say nothing.
            fn over(self, below: Settings) -> Settings {
                Settings { $($name: self.$name.or(below.$name),)* }
            }

            /// What the environment says. Variables that name no setting are left alone: service discovery
            /// of container platforms makes variables with our prefix too.
            fn from_env(env: &dyn Fn(&str) -> Option<String>) -> Result<Settings, ConfigError> {
                Ok(Settings { $($name: from_variable(env, stringify!($name))?,)* })
            }

            fn or_default(self) -> Config {
                Config { $($name: self.$name.unwrap_or_else(|| $default),)* }
            }
        }
    };
}

settings! {
    /// Host name or address under which clients reach this server [default: 127.0.0.1]
    announce_host: String = "127.0.0.1".to_owned(),
    /// First client port under which clients reach this server, where that is not base-port; 0 for base-port
    /// [default: 0]
    announce_port: u16 = 0,
    /// Host name or address under which the other servers reach this server; empty for announce-host [default: ]
    peer_host: String = String::new(),
    /// By which addresses this server reaches others, where they differ from what those announce: a table of
    /// "host:port" = "host:port", or host:port=host:port joined by commas [default: ]
    peer_addresses: PeerAddresses = PeerAddresses::default(),
    /// Address to listen on, for all ports [default: 127.0.0.1]
    bind: IpAddr = Ipv4Addr::LOCALHOST.into(),
    /// First client port: shard n is served on base-port + n, peers on + 98, HTTP on + 99 [default: 7100]
    base_port: u16 = 7100,
    /// Port for HTTP: /healthz, /readyz and /metrics; 0 for none [default: base-port + 99]
    http_port: HttpPort = HttpPort::default(),
    /// Address to listen on for HTTP [default: bind]
    http_bind: HttpBind = HttpBind::default(),
    /// Port for clients of Redis Sentinel, on every server; 0 for none [default: 26379, unless another program has it]
    sentinel_port: SentinelPort = SentinelPort::default(),
    /// Port under which clients of Redis Sentinel reach this server, where that is not sentinel-port; 0 for sentinel-port
    /// [default: 0]
    sentinel_announce_port: u16 = 0,
    /// What clients of Redis Sentinel call the shard, in a cluster of one shard; the same on every server [default: mymaster]
    sentinel_master_name: String = "mymaster".to_owned(),
    /// Directory of the data; in the file relative to the file's folder, which is also the default
    dir: PathBuf = PathBuf::new(),
    /// How a leader makes sure that a read is current: `lease` (no round trip) or `quorum` (one per batch of
    /// reads) [default: lease]
    read_mode: ReadMode = ReadMode::Lease,
    /// Time between two heartbeats of a leader, in milliseconds [default: 100]
    heartbeat_ms: u64 = 100,
    /// When a leader's lease is over and it is not heard, a follower waits for at least this long before it calls an election
    /// [default: 150]
    election_timeout_min_ms: u64 = 150,
    /// … and for at most this long; also the length of a leader's lease [default: 500]
    election_timeout_max_ms: u64 = 500,
    /// A write that no majority confirmed for this long is answered with -UNKNOWN, in milliseconds
    /// [default: 5000]
    write_timeout_ms: u64 = 5000,
    /// How long a client may be held while its shard elects a leader, in milliseconds, before it gets
    /// CLUSTERDOWN [default: 5000]
    failover_hold_ms: u64 = 5000,
    /// How old the data may be that a follower answers with after READONLY, in milliseconds, before it answers
    /// MASTERDOWN [default: 10000]
    stale_read_limit_ms: u64 = 10_000,
    /// How many seconds a server is down before its replicas are made anew on other servers, where there is room; 0 for never.
    /// Give all servers the same [default: 600]
    server_replace_after: u64 = 600,
    /// Whether leaderships return to the preferred leaders when all has been well for a while [default: true]
    leader_balance: bool = true,
    /// Bytes of a shard's log after which its state is written to disk and the log before it can go; more when the state
    /// is large [default: 67108864]
    snapshot_log_bytes: u64 = 64 << 20,
    /// Bytes of a snapshot written to disk in a second, so that others get at it; 0 for no limit [default: 67108864]
    snapshot_bytes_per_second: u64 = 64 << 20,
    /// Password that clients must give (AUTH, HELLO); better in the file or the environment, for everybody on the machine
    /// sees the command line; empty for none [default: ]
    requirepass: Password = Password::default(),
    /// Most client connections of one port at a time [default: 10000]
    maxclients: u32 = 10_000,
    /// Of maxclients, how many one address may have (the first 64 bits of it with IPv6): a number, a percentage, 0 for any
    /// number [default: 0]
    maxclients_per_address: Quota = Quota::None,
    /// Of maxclients, how many may have given themselves the same name (CLIENT SETNAME, HELLO SETNAME): a number, a
    /// percentage, 0 for any number [default: 90%]
    maxclients_per_name: Quota = Quota::Percent(90),
    /// Of maxclients, how many are for trusted addresses only; at most one in a hundred [default: 16]
    maxclients_reserve: u32 = 16,
    /// Addresses and networks of operators: the reserve is theirs, and neither maxclients-per-address nor the accept rates are
    /// for them [default: 127.0.0.1 ::1]
    trusted_addresses: Networks = Rules::default().trusted,
    /// New client connections of one port in a second; 0 for no limit [default: 0]
    accept_rate: u32 = 0,
    /// New client connections of one address to one port in a second; 0 for no limit [default: 0]
    accept_rate_per_address: u32 = 0,
    /// The largest argument of a request, in bytes [default: 536870912]
    proto_max_bulk_len: u64 = 512 << 20,
    /// The largest request, in bytes; a client that sends more is disconnected [default: 1073741824]
    client_query_buffer_limit: u64 = 1 << 30,
    /// How many bytes of replies may wait for a client before it is disconnected: class, hard limit, soft limit and for how many
    /// seconds, as in Redis; the class of all clients is normal [default: normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60]
    client_output_buffer_limit: OutputLimits = OutputLimits::default(),
    /// Close a client connection that was idle for this many seconds; 0 for never [default: 0]
    timeout: u64 = 0,
    /// How many seconds a client may be silent before TCP asks whether it is still there; 0 for never [default: 300]
    tcp_keepalive: u64 = 300,
    /// Commands that run for at least so many microseconds stand in the slow log; -1 for none [default: 10000]
    slowlog_log_slower_than: i64 = 10_000,
    /// Entries of a port's slow log [default: 128]
    slowlog_max_len: u64 = 128,
    /// What takes at least so many milliseconds is noted for LATENCY; 0 for nothing [default: 0]
    latency_monitor_threshold: u64 = 0,
    /// Whether the latencies of commands are counted, for LATENCY HISTOGRAM and INFO: true or false [default: true]
    latency_tracking: bool = true,
    /// Percentiles in INFO latencystats [default: 50 99 99.9]
    latency_tracking_info_percentiles: Percentiles = Percentiles(vec![50.0, 99.0, 99.9]),
    /// Who may use DEBUG: `no` for nobody, `local` for clients on this machine, `yes` for all [default: local]
    enable_debug_command: DebugCommand = DebugCommand::Local,
    /// Threads that serve clients; 0 for one per CPU [default: 0]
    client_threads: u16 = 0,
    /// Threads that run replication, apart from those of the clients; 0 for one per two CPUs
    /// [default: 0]
    raft_threads: u16 = 0,
    /// How log lines look: `human` or `json` [default: human]
    log_format: LogFormat = LogFormat::Human,
    /// What is logged: `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,kvorum_raft=debug`
    /// [default: info]
    log_level: String = "info".to_owned(),
}

/// Port for HTTP, if it is not the usual one.
#[derive(Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(transparent)]
pub(crate) struct HttpPort(pub(crate) Option<u16>);

impl fmt::Debug for HttpPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(port) => write!(f, "{port}"),
            None => write!(f, "base-port + {HTTP_PORT_OFFSET}"),
        }
    }
}

impl FromStr for HttpPort {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<HttpPort, Self::Err> {
        text.parse().map(|port| HttpPort(Some(port)))
    }
}

/// Port for clients of Redis Sentinel, if one was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(transparent)]
pub(crate) struct SentinelPort(pub(crate) Option<u16>);

impl SentinelPort {
    /// Redis Sentinel's.
    pub(crate) const USUAL: u16 = 26_379;
}

impl fmt::Debug for SentinelPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(port) => write!(f, "{port}"),
            None => write!(f, "{}, unless another program has it", SentinelPort::USUAL),
        }
    }
}

impl FromStr for SentinelPort {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<SentinelPort, Self::Err> {
        text.parse().map(|port| SentinelPort(Some(port)))
    }
}

/// Address for HTTP, if it is not that of all ports.
#[derive(Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(transparent)]
pub(crate) struct HttpBind(pub(crate) Option<IpAddr>);

impl fmt::Debug for HttpBind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => write!(f, "{address}"),
            None => f.write_str("bind"),
        }
    }
}

impl FromStr for HttpBind {
    type Err = std::net::AddrParseError;
    fn from_str(text: &str) -> Result<HttpBind, Self::Err> {
        text.parse().map(|address| HttpBind(Some(address)))
    }
}

/// Percentiles, each between 0 and 100, with blanks between them.
#[derive(Clone, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Percentiles(pub(crate) Vec<f64>);

impl fmt::Debug for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.0.iter().map(f64::to_string).collect();
        f.write_str(&words.join(" "))
    }
}

impl FromStr for Percentiles {
    type Err = String;
    fn from_str(text: &str) -> Result<Percentiles, String> {
        let one = |word: &str| match word.parse::<f64>() {
            Ok(value) if (0.0..=100.0).contains(&value) => Ok(value),
            _ => Err(format!("{word:?} is no number from 0 to 100")),
        };
        text.split_ascii_whitespace().map(one).collect::<Result<_, String>>().map(Percentiles)
    }
}

impl TryFrom<String> for Percentiles {
    type Error = String;
    fn try_from(text: String) -> Result<Percentiles, String> {
        text.parse()
    }
}

/// Addresses to use in place of announced ones.
#[derive(Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(transparent)]
pub(crate) struct PeerAddresses(pub(crate) BTreeMap<String, String>);

impl fmt::Debug for PeerAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs: Vec<String> = self.0.iter().map(|(from, to)| format!("{from}={to}")).collect();
        f.write_str(&pairs.join(","))
    }
}

impl FromStr for PeerAddresses {
    type Err = String;
    fn from_str(text: &str) -> Result<PeerAddresses, String> {
        let pairs = text.split(',').filter(|pair| !pair.trim().is_empty());
        let pair = |pair: &str| {
            let (announced, used) = pair.split_once('=').ok_or("expected host:port=host:port,…")?;
            Ok((announced.trim().to_owned(), used.trim().to_owned()))
        };
        pairs.map(pair).collect::<Result<_, String>>().map(PeerAddresses)
    }
}

/// How a leader makes sure that a read is current.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ReadMode {
    /// By a lease that the followers' heartbeat replies prolong.
    Lease,
    /// By asking a majority, once per batch of reads.
    Quorum,
}

/// Who may use DEBUG.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DebugCommand {
    /// Nobody.
    No,
    /// Clients on this machine.
    Local,
    /// All clients.
    Yes,
}

impl FromStr for DebugCommand {
    type Err = String;
    fn from_str(text: &str) -> Result<DebugCommand, String> {
        variant(text)
    }
}

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogFormat {
    /// One line of text for people.
    Human,
    /// One JSON object a line.
    Json,
}

impl FromStr for ReadMode {
    type Err = String;
    fn from_str(text: &str) -> Result<ReadMode, String> {
        variant(text)
    }
}

impl FromStr for LogFormat {
    type Err = String;
    fn from_str(text: &str) -> Result<LogFormat, String> {
        variant(text)
    }
}

fn variant<T: ValueEnum>(text: &str) -> Result<T, String> {
    T::from_str(text, false).map_err(|_| {
        let names: Vec<String> = T::value_variants()
            .iter()
            .filter_map(|v| Some(format!("`{}`", v.to_possible_value()?.get_name())))
            .collect();
        format!("expected {}", names.join(" or "))
    })
}

/// What is wrong with a configuration, in words that name the place and the setting.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// The configuration that `file`, then `env` (a look-up of environment variables), then `flags` give.
    pub(crate) fn load(
        file: Option<&Path>,
        env: &dyn Fn(&str) -> Option<String>,
        flags: Settings,
    ) -> Result<Config, ConfigError> {
        let from_file = match file {
            Some(path) => read_file(path)?,
            None => Settings::default(),
        };
        flags.over(Settings::from_env(env)?).over(from_file).or_default().checked()
    }

    /// First client port under which clients reach this server.
    pub(crate) fn announced_port(&self) -> u16 {
        if self.announce_port == 0 { self.base_port } else { self.announce_port }
    }

    /// Host under which the other servers reach this server.
    pub(crate) fn peer_host(&self) -> &str {
        if self.peer_host.is_empty() { &self.announce_host } else { &self.peer_host }
    }

    /// The port on which the other servers and the administration client reach this server.
    pub(crate) fn peer_port(&self) -> u16 {
        self.base_port + PEER_PORT_OFFSET
    }

    /// Where HTTP is answered, if anywhere.
    pub(crate) fn http(&self) -> Option<SocketAddr> {
        let port = self.http_port.0.unwrap_or(self.base_port + HTTP_PORT_OFFSET);
        (port > 0).then(|| SocketAddr::new(self.http_bind.0.unwrap_or(self.bind), port))
    }

    /// Where clients of Redis Sentinel are answered, if anywhere.
    pub(crate) fn sentinel(&self) -> Option<SocketAddr> {
        let port = self.sentinel_port.0.unwrap_or(SentinelPort::USUAL);
        (port > 0).then(|| SocketAddr::new(self.bind, port))
    }

    /// Port under which clients of Redis Sentinel reach this server, if it is another one than they find here.
    pub(crate) fn announced_sentinel_port(&self) -> Option<u16> {
        (self.sentinel_announce_port > 0).then_some(self.sentinel_announce_port)
    }

    /// Checks every setting for itself and against the others.
    fn checked(self) -> Result<Config, ConfigError> {
        let refuse = |key: &str, why: String| Err(ConfigError(format!("{key}: {why}")));
        for (key, host) in [("announce-host", self.announce_host.as_str()), ("peer-host", self.peer_host())] {
            if let Err(why) = check_host(host) {
                return refuse(key, why);
            }
        }
        let highest = u16::MAX - HTTP_PORT_OFFSET;
        for (key, port) in [("base-port", self.base_port), ("announce-port", self.announced_port())] {
            if port == 0 || port > highest {
                return refuse(key, format!("{port} is not in 1..={highest}"));
            }
        }
        if let Some(http) = self.http()
            && (self.base_port..=self.peer_port()).contains(&http.port())
        {
            let why = format!("{} is one of the ports for clients and peers", http.port());
            return refuse("http-port", why);
        }
        if let Some(port) = self.sentinel_port.0.filter(|port| *port > 0) {
            let taken = (self.base_port..=self.peer_port()).contains(&port)
                || self.http().is_some_and(|http| http.port() == port);
            if taken {
                return refuse(
                    "sentinel-port",
                    format!("{port} is one of the ports for clients, peers and HTTP"),
                );
            }
        }
        if self.sentinel().is_none() && self.sentinel_announce_port > 0 {
            return refuse(
                "sentinel-announce-port",
                "sentinel-port is 0, so there is nothing to announce".to_owned(),
            );
        }
        let name = &self.sentinel_master_name;
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        if name.is_empty() || name.len() > 64 || !name.chars().all(plain) || name.starts_with("shard-") {
            let why =
                format!("{name:?} is not up to 64 letters, digits, '.', '-' and '_', or begins with shard-");
            return refuse("sentinel-master-name", why);
        }
        for (announced, used) in &self.peer_addresses.0 {
            if let Some(odd) = [announced, used].into_iter().find(|addr| !is_host_and_port(addr)) {
                return refuse("peer-addresses", format!("{odd:?} is not host:port"));
            }
        }
        if self.dir.as_os_str().is_empty() {
            return refuse("dir", "without a configuration file the data directory must be named".to_owned());
        }
        if !(10..=10_000).contains(&self.heartbeat_ms) {
            return refuse("heartbeat-ms", format!("{} is not in 10..=10000", self.heartbeat_ms));
        }
        let least = self.heartbeat_ms * 3 / 2;
        if self.election_timeout_min_ms < least || self.election_timeout_min_ms > 60_000 {
            let why = format!(
                "{} is not in {least}..=60000 (at least one and a half heartbeats)",
                self.election_timeout_min_ms
            );
            return refuse("election-timeout-min-ms", why);
        }
        if self.election_timeout_max_ms <= self.election_timeout_min_ms
            || self.election_timeout_max_ms > 120_000
        {
            let why = format!(
                "{} is not above election-timeout-min-ms ({}) and at most 120000",
                self.election_timeout_max_ms, self.election_timeout_min_ms
            );
            return refuse("election-timeout-max-ms", why);
        }
        if !(100..=600_000).contains(&self.write_timeout_ms) {
            return refuse("write-timeout-ms", format!("{} is not in 100..=600000", self.write_timeout_ms));
        }
        if self.failover_hold_ms > 600_000 {
            return refuse("failover-hold-ms", format!("{} is above 600000", self.failover_hold_ms));
        }
        if self.stale_read_limit_ms < self.election_timeout_max_ms {
            let why = format!(
                "{} is below election-timeout-max-ms ({}): every failover would stop stale reads",
                self.stale_read_limit_ms, self.election_timeout_max_ms
            );
            return refuse("stale-read-limit-ms", why);
        }
        if self.server_replace_after != 0 && !(5..=31_536_000).contains(&self.server_replace_after) {
            let why = format!("{} is neither 0 nor in 5..=31536000", self.server_replace_after);
            return refuse("server-replace-after", why);
        }
        if !(1 << 20..=1 << 40).contains(&self.snapshot_log_bytes) {
            let why = format!("{} is not in {}..={}", self.snapshot_log_bytes, 1 << 20, 1u64 << 40);
            return refuse("snapshot-log-bytes", why);
        }
        for (key, bytes) in [
            ("proto-max-bulk-len", self.proto_max_bulk_len),
            ("client-query-buffer-limit", self.client_query_buffer_limit),
        ] {
            if bytes < 1 << 20 {
                return refuse(key, format!("{bytes} is below {}", 1 << 20));
            }
        }
        if self.maxclients == 0 {
            return refuse("maxclients", "must be at least 1".to_owned());
        }
        if self.slowlog_log_slower_than < -1 {
            return refuse(
                "slowlog-log-slower-than",
                format!("{} is below -1", self.slowlog_log_slower_than),
            );
        }
        for (key, threads) in [("client-threads", self.client_threads), ("raft-threads", self.raft_threads)] {
            if threads > 1024 {
                return refuse(key, format!("{threads} is above 1024"));
            }
        }
        if let Err(why) = log_filter(&self.log_level) {
            return refuse("log-level", why);
        }
        Ok(self)
    }
}

fn check_host(host: &str) -> Result<(), String> {
    if host.is_empty()
        || host.len() > 253
        || host.contains(|c: char| c.is_whitespace() || ",@/\"".contains(c))
    {
        return Err(format!("{host:?} is no host name and no address"));
    }
    if host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified()) {
        return Err(format!("{host} means \"any address\"; others cannot connect to it"));
    }
    Ok(())
}

fn is_host_and_port(addr: &str) -> bool {
    addr.rsplit_once(':')
        .is_some_and(|(host, port)| check_host(host).is_ok() && port.parse().is_ok_and(|port: u16| port > 0))
}

/// The filter that `log-level` means. A plain level is for our own lines; from libraries only warnings come, and
/// from openraft only errors: a peer that does not answer is what we report ourselves, once. Its handle's complaint
/// that the core has stopped is about every orderly stop.
pub(crate) fn log_filter(level: &str) -> Result<tracing_subscriber::EnvFilter, String> {
    const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];
    let directives = match level {
        "error" => "error".to_owned(),
        plain if LEVELS.contains(&plain) => format!("warn,openraft=error,openraft::raft=off,kvorum={plain}"),
        filter if filter.trim().is_empty() => return Err(format!("expected one of {}", LEVELS.join(", "))),
        filter => filter.to_owned(),
    };
    tracing_subscriber::EnvFilter::try_new(directives)
        .map_err(|e| format!("{level:?}: {e}; expected one of {}, or a filter", LEVELS.join(", ")))
}

fn from_variable<T>(env: &dyn Fn(&str) -> Option<String>, field: &str) -> Result<Option<T>, ConfigError>
where
    T: FromStr<Err: fmt::Display>,
{
    let name = format!("KVORUM_{}", field.to_ascii_uppercase());
    match env(&name) {
        Some(text) => match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(e) => Err(ConfigError(format!("{name}={text:?}: {e}"))),
        },
        None => Ok(None),
    }
}

/// Reads the settings of a file and makes its paths relative to the file's folder.
fn read_file(path: &Path) -> Result<Settings, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|e| ConfigError(format!("{}: {e}", path.display())))?;
    let mut settings =
        parse(&text).map_err(|ConfigError(e)| ConfigError(format!("{}:{e}", path.display())))?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let dir = settings.dir.as_deref().map_or(folder.to_owned(), |dir| folder.join(dir));
    // Without the `/.` of a `dir = "."`: the path is shown to people.
    settings.dir = Some(dir.components().collect());
    Ok(settings)
}

/// Parses TOML; an error reads `<line>: <key>: <what>`.
fn parse(text: &str) -> Result<Settings, ConfigError> {
    toml::from_str(text).map_err(|e| {
        let message = e.message().replace("unknown field", "unknown setting").replace('\n', "; ");
        let start = e.span().map_or(0, |span| span.start.min(text.len()));
        let line = text.as_bytes()[..start].iter().filter(|&&b| b == b'\n').count();
        let key = text.lines().nth(line).and_then(|l| l.split_once('=')).map(|(key, _)| key.trim());
        match key {
            Some(key) if !message.contains(key) => ConfigError(format!("{}: {key}: {message}", line + 1)),
            _ => ConfigError(format!("{}: {message}", line + 1)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_env(_: &str) -> Option<String> {
        None
    }

    fn in_file(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kvorum.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(Some(&path), &no_env, Settings::default())
            .map_err(|e| e.to_string().replace(&dir.path().display().to_string(), "DIR"))
    }

    #[test]
    fn an_empty_file_gives_the_documented_defaults() {
        let config = in_file("").unwrap();
        assert_eq!((config.base_port, config.peer_port()), (7100, 7198));
        assert_eq!(config.http(), Some("127.0.0.1:7199".parse().unwrap()));
        assert_eq!(config.read_mode, ReadMode::Lease);
        let timing = (config.heartbeat_ms, config.election_timeout_min_ms, config.election_timeout_max_ms);
        assert_eq!(timing, (100, 150, 500));
    }

    #[test]
    fn http_has_a_port_and_an_address_of_its_own_or_none() {
        let http = |text: &str| in_file(text).map(|config| config.http().map(|address| address.to_string()));
        assert_eq!(http("base-port = 7000"), Ok(Some("127.0.0.1:7099".to_owned())));
        assert_eq!(http("http-port = 9000\nhttp-bind = \"::1\""), Ok(Some("[::1]:9000".to_owned())));
        assert_eq!(http("http-port = 0"), Ok(None));
        assert!(http("http-port = 7198").is_err_and(|error| error.to_string().contains("http-port")));
    }

    #[test]
    fn sentinel_has_the_usual_port_another_one_or_none() {
        let port = |text: &str| in_file(text).unwrap().sentinel().map(|address| address.to_string());
        assert_eq!(port(""), Some("127.0.0.1:26379".to_owned()));
        assert_eq!(in_file("").unwrap().sentinel_port.0, None, "nobody asked for it");
        assert_eq!(port("sentinel-port = 5000"), Some("127.0.0.1:5000".to_owned()));
        assert_eq!(port("sentinel-port = 0"), None);
    }

    #[test]
    fn the_documented_default_is_the_one_in_force() {
        let command = <Settings as clap::Args>::augment_args(clap::Command::new("server"));
        let shown = format!("{:?}", in_file("").unwrap());
        for arg in command.get_arguments().filter(|a| a.get_id() != "dir") {
            let help = arg.get_help().unwrap().to_string();
            let (_, default) =
                help.rsplit_once("[default: ").unwrap_or_else(|| panic!("{}: {help}", arg.get_id()));
            let default = default.trim_end_matches(']');
            let field = format!("{}: ", arg.get_id());
            let (_, value) = shown.split_once(&field).unwrap();
            assert!(
                value.to_lowercase().trim_start_matches('"').starts_with(default),
                "{field}{default} but {value}"
            );
        }
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kvorum.toml");
        std::fs::write(&path, "base-port = 1000\nmaxclients = 7\ntimeout = 3\n").unwrap();
        let env = |name: &str| match name {
            "KVORUM_BASE_PORT" => Some("2000".to_owned()),
            "KVORUM_MAXCLIENTS" => Some("8".to_owned()),
            _ => None,
        };
        let flags = Settings { base_port: Some(3000), ..Settings::default() };
        let config = Config::load(Some(&path), &env, flags).unwrap();
        assert_eq!((config.base_port, config.maxclients, config.timeout), (3000, 8, 3));
    }

    #[test]
    fn paths_in_the_file_are_relative_to_its_folder() {
        assert!(in_file("").unwrap().dir.is_absolute());
        assert!(in_file("dir = \"data\"").unwrap().dir.ends_with("data"));
        assert_eq!(in_file("dir = \"/srv/kvorum\"").unwrap().dir, Path::new("/srv/kvorum"));
        let none = Config::load(None, &no_env, Settings::default()).unwrap_err();
        assert_eq!(none.to_string(), "dir: without a configuration file the data directory must be named");
    }

    #[test]
    fn clients_and_servers_may_be_told_different_addresses() {
        let config = in_file("announce-host = \"db.example\"").unwrap();
        assert_eq!((config.announced_port(), config.peer_host()), (7100, "db.example"));
        let split = "announce-host = \"db.example\"\nannounce-port = 17100\npeer-host = \"inner\"\n\
                     [peer-addresses]\n\"inner-2:7198\" = \"127.0.0.1:9000\"\n";
        let config = in_file(split).unwrap();
        assert_eq!((config.announced_port(), config.peer_host()), (17100, "inner"));
        assert_eq!(config.peer_addresses.0["inner-2:7198"], "127.0.0.1:9000");
        assert_eq!(config.peer_addresses, "inner-2:7198 = 127.0.0.1:9000,".parse().unwrap());
        assert_eq!(config.announced_sentinel_port(), None);
        let mapped = in_file("sentinel-announce-port = 36379").unwrap();
        assert_eq!(
            (mapped.announced_sentinel_port(), mapped.sentinel().unwrap().port()),
            (Some(36_379), 26_379)
        );
        for (wrong, why) in [
            ("peer-host = \"0.0.0.0\"", "peer-host: 0.0.0.0 means"),
            ("announce-port = 65500", "announce-port: 65500 is not in"),
            ("[peer-addresses]\n\"inner\" = \"a:1\"", "peer-addresses: \"inner\" is not host:port"),
        ] {
            let error = in_file(wrong).unwrap_err();
            assert!(error.starts_with(why), "{error}");
        }
        assert!("inner-2:7198".parse::<PeerAddresses>().is_err());
    }

    #[test]
    fn an_unknown_setting_is_an_error_with_its_line() {
        let error = in_file("# ports\nbase-port = 7100\nbase-prot = 7200\n").unwrap_err();
        assert!(
            error.starts_with("DIR/kvorum.toml:3: unknown setting `base-prot`, expected one of"),
            "{error}"
        );
        assert!(error.contains("`base-port`"), "{error}");
    }

    #[test]
    fn a_value_of_the_wrong_kind_names_line_and_setting() {
        let error = in_file("\nread-mode = \"leas\"\n").unwrap_err();
        assert_eq!(
            error,
            "DIR/kvorum.toml:2: read-mode: unknown variant `leas`, expected `lease` or `quorum`"
        );
        let error = in_file("base-port = 70000\n").unwrap_err();
        assert!(error.starts_with("DIR/kvorum.toml:1: base-port: invalid value: integer `70000`"), "{error}");
        let error = in_file("bind = \"localhos\"\n").unwrap_err();
        assert!(error.starts_with("DIR/kvorum.toml:1: bind: "), "{error}");
    }

    #[test]
    fn text_that_is_no_toml_names_the_line() {
        let error = in_file("base-port = 7100\nbind 127.0.0.1\n").unwrap_err();
        assert!(error.starts_with("DIR/kvorum.toml:2: "), "{error}");
    }

    #[test]
    fn a_bad_environment_variable_is_named() {
        let env = |name: &str| (name == "KVORUM_READ_MODE").then(|| "fast".to_owned());
        let error = Config::load(None, &env, Settings::default()).unwrap_err();
        assert_eq!(error.to_string(), "KVORUM_READ_MODE=\"fast\": expected `lease` or `quorum`");
        let env = |name: &str| (name == "KVORUM_BASE_PORT").then(|| "x".to_owned());
        let error = Config::load(None, &env, Settings::default()).unwrap_err();
        assert_eq!(error.to_string(), "KVORUM_BASE_PORT=\"x\": invalid digit found in string");
    }

    #[test]
    fn values_that_cannot_work_are_refused_by_name() {
        for (text, start) in [
            ("announce-host = \"\"", "announce-host: "),
            ("announce-host = \"a b\"", "announce-host: "),
            ("announce-host = \"0.0.0.0\"", "announce-host: 0.0.0.0 means"),
            ("announce-host = \"::\"", "announce-host: :: means"),
            ("base-port = 0", "base-port: 0 is not in 1..=65436"),
            ("base-port = 65437", "base-port: 65437 is not in"),
            ("sentinel-port = 7100", "sentinel-port: 7100 is one of the ports for clients, peers and HTTP"),
            ("sentinel-port = 7199", "sentinel-port: 7199 is one of the ports"),
            ("sentinel-port = 0\nsentinel-announce-port = 1", "sentinel-announce-port: sentinel-port is 0"),
            ("sentinel-master-name = \"shard-0\"", "sentinel-master-name: \"shard-0\" is not up to 64"),
            ("sentinel-master-name = \"a b\"", "sentinel-master-name: \"a b\" is not up to 64"),
            ("heartbeat-ms = 9", "heartbeat-ms: 9 is not in 10..=10000"),
            ("election-timeout-min-ms = 149", "election-timeout-min-ms: 149 is not in 150..=60000"),
            ("election-timeout-max-ms = 150", "election-timeout-max-ms: 150 is not above"),
            ("write-timeout-ms = 99", "write-timeout-ms: 99 is not in"),
            ("failover-hold-ms = 600001", "failover-hold-ms: 600001 is above"),
            ("stale-read-limit-ms = 499", "stale-read-limit-ms: 499 is below election-timeout-max-ms (500)"),
            ("server-replace-after = 4", "server-replace-after: 4 is neither 0 nor in 5..=31536000"),
            ("maxclients = 0", "maxclients: must be at least 1"),
            ("client-threads = 2000", "client-threads: 2000 is above 1024"),
            ("raft-threads = 2000", "raft-threads: 2000 is above 1024"),
            ("log-level = \"\"", "log-level: expected one of error, warn"),
            ("log-level = \"kvorum=loud\"", "log-level: \"kvorum=loud\": "),
        ] {
            let error = in_file(text).unwrap_err();
            assert!(error.starts_with(start), "{text}: {error}");
        }
    }
}
