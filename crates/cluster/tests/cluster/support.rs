//! Clusters to test with, and a sink that renders replies.

use kvorum_cluster::{
    Create, Durability, Leaders, MetaCommand, MetaMachine, Mode, NewServer, ReplicaId, ServerId, ShardId,
    Topology, View,
};
use kvorum_keyspace::{Sink, argv};
use std::sync::Arc;

/// Servers 1 to `servers` on 127.0.0.1 from port 7100 on, each shard with a replica on each of up to three.
pub(crate) fn create(servers: u64, shards: u16, mode: Mode) -> Create {
    Create {
        cluster_id: "test".to_owned(),
        mode,
        durability: Durability::QuorumFsync,
        databases: if mode == Mode::Standalone { 16 } else { 1 },
        shards,
        replicas: u16::try_from(servers.min(3)).unwrap(),
        hash_seed: [7; 16],
        id_seed: 42,
        servers: (1..=servers)
            .map(|id| NewServer {
                id: ServerId(id),
                host: "127.0.0.1".to_owned(),
                base_port: 7000 + 100 * u16::try_from(id).unwrap(),
                peer: None,
            })
            .collect(),
    }
}

pub(crate) fn created(create: Create) -> MetaMachine {
    let mut meta = MetaMachine::new();
    meta.advance(0).unwrap();
    meta.apply(1, &MetaCommand::Create(create).encode()).unwrap();
    meta
}

pub(crate) fn topology(servers: u64, shards: u16, mode: Mode) -> Arc<Topology> {
    created(create(servers, shards, mode)).topology().unwrap()
}

/// Three servers and three shards, whose preferred leaders lead in terms 1, 2 and 3.
pub(crate) fn view() -> View {
    let topology = topology(3, 3, Mode::Cluster);
    let mut leaders = Leaders::default();
    for shard in &topology.shards {
        leaders.announce(shard.id, u64::from(shard.id.0) + 1, shard.replicas[0].id);
    }
    View { topology, leaders, silent: Default::default() }
}

/// The view after servers went down.
pub(crate) fn with_down(view: &View, down: &[u64]) -> View {
    let mut layout = view.topology.layout().clone();
    for id in down {
        layout.servers.get_mut(&ServerId(*id)).unwrap().up = false;
    }
    View {
        topology: Arc::new(Topology::new(layout).unwrap()),
        leaders: view.leaders.clone(),
        silent: Default::default(),
    }
}

/// The replica of a shard on a server.
pub(crate) fn replica(view: &View, shard: u16, server: u64) -> ReplicaId {
    view.topology.shard(ShardId(shard)).unwrap().replica_on(ServerId(server)).unwrap().id
}

pub(crate) fn pack(words: &str) -> Vec<u8> {
    let words: Vec<&[u8]> = words.split(' ').map(str::as_bytes).collect();
    let mut packed = Vec::new();
    argv::pack(&mut packed, words.into_iter());
    packed
}

/// Renders replies in the manner of RESP3, one line for each.
#[derive(Default, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rendered(pub(crate) Vec<String>);

impl Rendered {
    fn line(&mut self, kind: char, text: impl std::fmt::Display) {
        self.0.push(format!("{kind}{text}"));
    }
}

impl Sink for Rendered {
    fn simple(&mut self, text: &str) {
        self.line('+', text);
    }
    fn error(&mut self, text: &[u8]) {
        self.line('-', String::from_utf8_lossy(text));
    }
    fn int(&mut self, value: i64) {
        self.line(':', value);
    }
    fn bulk(&mut self, bytes: &[u8]) {
        self.line('$', bytes.escape_ascii());
    }
    fn null(&mut self) {
        self.line('_', "");
    }
    fn null_array(&mut self) {
        self.line('_', "");
    }
    fn array(&mut self, len: usize) {
        self.line('*', len);
    }
    fn map(&mut self, len: usize) {
        self.line('%', len);
    }
    fn set(&mut self, len: usize) {
        self.line('~', len);
    }
    fn double(&mut self, value: f64) {
        self.line(',', value);
    }
    fn boolean(&mut self, value: bool) {
        self.line('#', value);
    }
    fn verbatim(&mut self, _: &str, text: &[u8]) {
        self.line('=', text.escape_ascii());
    }
}
