//! The descriptions of masters, replicas and Sentinels: Redis Sentinel's fields, in its order.

use super::scene::{Master, Scene, Tunables, millis};
use crate::resp::RespSink;
use kvorum_cluster::{Replica, ServerId};
use kvorum_keyspace::Sink;
use kvorum_node::Peer;
use std::fmt::{Display, Write};

const DEFAULT_FAILOVER_TIMEOUT_MS: u64 = 180_000;
const DEFAULT_PARALLEL_SYNCS: u64 = 1;

/// Fields and their values, collected first: a map says its length before its parts.
#[derive(Default)]
struct Fields(Vec<(&'static str, String)>);

impl Fields {
    fn add(&mut self, name: &'static str, value: impl Display) {
        self.0.push((name, value.to_string()));
    }

    fn write(self, out: &mut RespSink) {
        out.map(self.0.len());
        for (name, value) in self.0 {
            out.bulk(name.as_bytes());
            out.bulk(value.as_bytes());
        }
    }
}

/// What every instance has first.
struct Head<'a> {
    name: String,
    address: (&'a str, u16),
    id: String,
    flags: Vec<&'static str>,
    links: usize,
    server: ServerId,
    subjectively_down: bool,
    objectively_down: bool,
    down_after_ms: u64,
}

impl Head<'_> {
    fn fields(self, scene: &Scene) -> Fields {
        let heard_ms = scene.heard_ms(self.server);
        let mut flags = Vec::new();
        if self.subjectively_down {
            flags.push("s_down");
        }
        if self.objectively_down {
            flags.push("o_down");
        }
        flags.extend(self.flags);
        if scene.is_silent(self.server) {
            flags.push("disconnected");
        }
        let mut fields = Fields::default();
        fields.add("name", self.name);
        fields.add("ip", self.address.0);
        fields.add("port", self.address.1);
        fields.add("runid", self.id);
        fields.add("flags", flags.join(","));
        fields.add("link-pending-commands", 0);
        fields.add("link-refcount", self.links);
        fields.add("last-ping-sent", if self.subjectively_down { heard_ms } else { 0 });
        fields.add("last-ok-ping-reply", heard_ms);
        fields.add("last-ping-reply", heard_ms);
        let down_ms = heard_ms.saturating_sub(millis(scene.silent_after));
        if self.subjectively_down {
            fields.add("s-down-time", down_ms);
        }
        if self.objectively_down {
            fields.add("o-down-time", down_ms);
        }
        fields.add("down-after-milliseconds", self.down_after_ms);
        fields
    }
}

/// SENTINEL MASTER.
pub(super) fn master(master: Master<'_>, tunables: &Tunables, out: &mut RespSink) {
    let scene = master.scene;
    let tuned = tunables.of(master.shard.id);
    let mut flags = vec!["master"];
    let handed_over = scene.handed_over.contains(&master.shard.id);
    if handed_over {
        flags.push("failover_in_progress");
    }
    let server = master.replica.server;
    let head = Head {
        name: master.name(),
        address: master.address(),
        id: master.replica.node_id.to_string(),
        flags,
        links: 1,
        server,
        subjectively_down: master.is_subjectively_down(),
        objectively_down: master.is_objectively_down(),
        down_after_ms: tuned.down_after_ms.unwrap_or(millis(scene.silent_after)),
    };
    let mut fields = head.fields(scene);
    if handed_over {
        // Where it stands in Redis's description.
        let at = fields.0.iter().position(|(name, _)| *name == "last-ping-sent").unwrap_or(0);
        fields.0.insert(at, ("failover-state", "wait_promotion".to_owned()));
    }
    fields.add("info-refresh", scene.heard_ms(server));
    fields.add("role-reported", "master");
    fields.add("role-reported-time", led_for_ms(master));
    fields.add("config-epoch", master.term);
    fields.add("num-slaves", master.slaves().count());
    fields.add("num-other-sentinels", scene.other_sentinels().count());
    fields.add("quorum", scene.quorum());
    fields.add("failover-timeout", tuned.failover_timeout_ms.unwrap_or(DEFAULT_FAILOVER_TIMEOUT_MS));
    fields.add("parallel-syncs", tuned.parallel_syncs.unwrap_or(DEFAULT_PARALLEL_SYNCS));
    fields.write(out);
}

fn led_for_ms(master: Master<'_>) -> u64 {
    master.scene.led_for.get(&master.shard.id).copied().map_or(0, millis)
}

/// One of SENTINEL REPLICAS.
pub(super) fn replica(master: Master<'_>, replica: &Replica, tunables: &Tunables, out: &mut RespSink) {
    let scene = master.scene;
    let address = scene.address(replica);
    let is_silent = scene.is_silent(replica.server);
    let tuned = tunables.of(master.shard.id);
    let head = Head {
        name: format!("{}:{}", address.0, address.1),
        address,
        id: replica.node_id.to_string(),
        flags: vec!["slave"],
        links: 1,
        server: replica.server,
        subjectively_down: is_silent,
        objectively_down: false,
        down_after_ms: tuned.down_after_ms.unwrap_or(millis(scene.silent_after)),
    };
    let mut fields = head.fields(scene);
    // A follower follows as long as it and a leader are heard.
    let follows = !is_silent && master.is_led();
    fields.add("info-refresh", scene.heard_ms(replica.server));
    fields.add("role-reported", "slave");
    fields.add("role-reported-time", led_for_ms(master));
    let down_ms = if follows { 0 } else { scene.heard_ms(replica.server) };
    fields.add("master-link-down-time", down_ms);
    fields.add("master-link-status", if follows { "ok" } else { "err" });
    fields.add("master-host", master.address().0);
    fields.add("master-port", master.address().1);
    fields.add("slave-priority", 100);
    fields.add("slave-repl-offset", scene.offsets.get(&replica.id).copied().unwrap_or(0));
    fields.add("replica-announced", 1);
    fields.write(out);
}

/// One of SENTINEL SENTINELS.
pub(super) fn sentinel(
    master: Master<'_>,
    server: ServerId,
    peer: &Peer,
    tunables: &Tunables,
    out: &mut RespSink,
) {
    let scene = master.scene;
    let host = scene.topology().server(server).map_or("", |server| &server.host);
    let head = Head {
        name: peer.sentinel.id.clone(),
        address: (host, peer.sentinel.port),
        id: peer.sentinel.id.clone(),
        flags: vec!["sentinel"],
        links: scene.topology().shards.len(),
        server,
        subjectively_down: scene.is_silent(server),
        objectively_down: false,
        down_after_ms: tunables.of(master.shard.id).down_after_ms.unwrap_or(millis(scene.silent_after)),
    };
    let mut fields = head.fields(scene);
    fields.add("last-hello-message", scene.heard_ms(server));
    // Votes are Raft's, and it keeps them to itself.
    fields.add("voted-leader", "?");
    fields.add("voted-leader-epoch", 0);
    fields.write(out);
}

/// The fields of INFO's section.
pub(super) fn info(scene: Option<&Scene>) -> String {
    let masters: Vec<Master<'_>> = scene.map(|scene| scene.masters().collect()).unwrap_or_default();
    let mut text = format!(
        "sentinel_masters:{}\r\nsentinel_tilt:0\r\nsentinel_tilt_since_seconds:-1\r\nsentinel_running_scripts:0\r\n\
         sentinel_scripts_queue_length:0\r\nsentinel_simulate_failure_flags:0\r\n",
        masters.len()
    );
    for (n, master) in masters.iter().enumerate() {
        let status = if master.is_objectively_down() {
            "odown"
        } else if master.is_subjectively_down() {
            "sdown"
        } else {
            "ok"
        };
        let (host, port) = master.address();
        let sentinels = master.scene.other_sentinels().count() + 1;
        let _ = write!(
            text,
            "master{n}:name={},status={status},address={host}:{port},slaves={},sentinels={sentinels}\r\n",
            master.name(),
            master.slaves().count(),
        );
    }
    text
}
