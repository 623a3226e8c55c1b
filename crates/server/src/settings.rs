//! What CONFIG GET shows and CONFIG SET changes.
//!
//! Names are Redis's where Redis has the setting. Every value shown is true of this server; settings of Redis
//! that have no meaning here are not shown.

use crate::password::{Password, RequirePass};
use crate::port::Place;
use crate::resp::MAX_BULK_BYTES;
use kvorum_cluster::{Durability, Mode};
use kvorum_keyspace::{Args, Error, Outcome, Sink, glob};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Settings of a port. Those that CONFIG SET changes are atomics; the others stay as the server started with them.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Address the port listens on.
    pub(crate) bind: String,
    /// Folder of the server's data.
    pub(crate) dir: String,
    /// What clients must give before they may do anything else.
    pub(crate) requirepass: RequirePass,
    /// Close a connection that was idle for this many seconds; 0 for never.
    pub(crate) timeout_s: AtomicU64,
    /// Most connections at a time.
    pub(crate) maxclients: AtomicU64,
    /// Seconds of silence before TCP asks whether a client is still there; 0 for never.
    pub(crate) tcp_keepalive_s: AtomicU64,
    /// How long a client may be held while its shard has no leader.
    pub(crate) failover_hold_ms: AtomicU64,
    /// Longest election timeout.
    pub(crate) election_timeout_ms: u64,
    /// A write without an outcome after this long is answered `-UNKNOWN`.
    pub(crate) write_timeout_ms: u64,
    /// `lease` or `quorum`.
    pub(crate) read_mode: &'static str,
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
}

/// The rules of a setting that CONFIG SET changes.
struct Changeable {
    name: &'static str,
    least: u64,
    most: u64,
    value: fn(&Settings) -> &AtomicU64,
}

const CHANGEABLE: [Changeable; 4] = [
    Changeable { name: "timeout", least: 0, most: 2_147_483_647, value: |settings| &settings.timeout_s },
    Changeable { name: "maxclients", least: 1, most: 4_294_967_295, value: |settings| &settings.maxclients },
    Changeable {
        name: "tcp-keepalive",
        least: 0,
        most: 2_147_483_647,
        value: |settings| &settings.tcp_keepalive_s,
    },
    Changeable {
        name: "failover-hold-ms",
        least: 0,
        most: 600_000,
        value: |settings| &settings.failover_hold_ms,
    },
];

/// CONFIG GET: names and values of the settings that match one of the patterns.
pub(crate) fn get(place: Place<'_>, patterns: &[&[u8]], out: &mut dyn Sink) {
    let settings: Vec<(&str, Vec<u8>)> = table(place)
        .into_iter()
        .filter(|(name, _)| patterns.iter().any(|pattern| glob::matches(pattern, name.as_bytes(), true)))
        .collect();
    out.map(settings.len());
    for (name, value) in settings {
        out.bulk(name.as_bytes());
        out.bulk(&value);
    }
}

/// CONFIG SET: all of the settings or none.
pub(crate) fn set(place: Place<'_>, pairs: Args<'_>) -> Outcome {
    let mut changes: Vec<(&Changeable, u64)> = Vec::new();
    let mut password = None;
    let mut seen: Vec<String> = Vec::new();
    for pair in pairs.chunks(2) {
        let name = String::from_utf8_lossy(pair[0]).to_lowercase();
        let refuse = |why: &str| {
            let text = format!("ERR CONFIG SET failed (possibly related to argument '{name}') - {why}");
            Err(Error::one_line(text))
        };
        let known = table(place).into_iter().find(|(known, _)| *known == name);
        let (Some(value), Some((_, current))) = (pair.get(1), known) else {
            return Err(Error::one_line(format!(
                "ERR Unknown option or number of arguments for CONFIG SET - '{}'",
                String::from_utf8_lossy(pair[0])
            )));
        };
        if seen.contains(&name) {
            return refuse("duplicate parameter");
        }
        let Some(rule) = CHANGEABLE.iter().find(|rule| rule.name == name) else {
            if name == "requirepass" {
                password = Some(Password::from(*value));
                seen.push(name);
                continue;
            }
            if current == *value {
                // What is so already can be wished for.
                continue;
            }
            return refuse("can't set immutable config");
        };
        match std::str::from_utf8(value).ok().and_then(|text| text.parse::<i128>().ok()) {
            None => return refuse("argument couldn't be parsed into an integer"),
            Some(number) => match u64::try_from(number) {
                Ok(number) if (rule.least..=rule.most).contains(&number) => changes.push((rule, number)),
                _ => {
                    let (least, most) = (rule.least, rule.most);
                    return refuse(&format!("argument must be between {least} and {most} inclusive"));
                }
            },
        }
        seen.push(name);
    }
    for (rule, value) in changes {
        (rule.value)(&place.port.settings).store(value, Ordering::Relaxed);
    }
    if let Some(password) = password {
        place.port.settings.requirepass.set(password);
    }
    Ok(())
}

/// All settings with their values.
fn table(place: Place<'_>) -> Vec<(&'static str, Vec<u8>)> {
    let settings = &place.port.settings;
    let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let durability = place.replica.map(|replica| replica.view().topology.durability);
    let replicas = place.replica.map_or(0, |replica| {
        replica.view().topology.replica(replica.id()).map_or(0, |(shard, _)| shard.replicas.len())
    });
    let mut table = vec![
        ("port", place.port.number.to_string()),
        ("bind", settings.bind.clone()),
        ("dir", settings.dir.clone()),
        ("databases", place.databases().to_string()),
        ("maxmemory", "0".to_owned()),
        ("maxmemory-policy", "noeviction".to_owned()),
        ("save", String::new()),
        ("appendonly", "yes".to_owned()),
        (
            "appendfsync",
            match durability {
                Some(Durability::QuorumMemory) => "everysec",
                Some(Durability::None) => "no",
                Some(Durability::QuorumFsync) | None => "always",
            }
            .to_owned(),
        ),
        ("masterauth", String::new()),
        ("slave-read-only", yes_no(true)),
        ("replica-read-only", yes_no(true)),
        ("slave-serve-stale-data", yes_no(false)),
        ("replica-serve-stale-data", yes_no(false)),
        ("min-replicas-to-write", (replicas / 2).to_string()),
        ("cluster-enabled", yes_no(place.mode() == Mode::Cluster)),
        ("cluster-node-timeout", settings.election_timeout_ms.to_string()),
        ("cluster-require-full-coverage", yes_no(false)),
        ("cluster-allow-replica-migration", yes_no(false)),
        ("proto-max-bulk-len", MAX_BULK_BYTES.to_string()),
        ("write-timeout-ms", settings.write_timeout_ms.to_string()),
        ("read-mode", settings.read_mode.to_owned()),
    ];
    table.extend(
        CHANGEABLE.iter().map(|rule| (rule.name, (rule.value)(settings).load(Ordering::Relaxed).to_string())),
    );
    if let Some(durability) = durability {
        table.push(("durability", durability.to_string()));
    }
    let mut table: Vec<_> = table.into_iter().map(|(name, value)| (name, value.into_bytes())).collect();
    table.push(("requirepass", settings.requirepass.get().reveal().to_vec()));
    table
}
