use crate::support::topology;
use kvorum_cluster::{
    Durability, Layout, Mode, NodeId, ReplicaId, ServerId, ShardId, SlotSet, Topology, TopologyError,
};
use kvorum_keyspace::{SLOTS, Slot};

#[test]
fn look_ups() {
    let topology = topology(5, 4, Mode::Cluster);
    for slot in (0..SLOTS).filter_map(Slot::new) {
        let shard = topology.shard_of_slot(slot).unwrap();
        assert!(shard.slots.contains(slot));
    }
    for (shard, replica) in topology.all_replicas() {
        assert_eq!(topology.shard(shard.id).unwrap(), shard);
        assert_eq!(topology.replica(replica.id).unwrap(), (shard, replica));
        assert_eq!(topology.replica_by_node_id(replica.node_id).unwrap(), (shard, replica));
        assert_eq!(shard.replica_on(replica.server).unwrap(), replica);
        let server = topology.server_of(replica.id).unwrap();
        assert_eq!(server.id, replica.server);
        assert_eq!(topology.address(replica.id).unwrap(), ("127.0.0.1", server.base_port + shard.id.0));
        assert!(topology.replicas_on(server.id).any(|found| found == (shard, replica)));
    }
    assert_eq!(topology.replica(ReplicaId(0)), None);
    assert_eq!(topology.server(ServerId(6)), None);
    assert_eq!(topology.shard(ShardId(4)), None);
    assert_eq!(topology.replica_by_node_id(NodeId([0; 20])), None);
    let server = topology.server(ServerId(2)).unwrap();
    assert_eq!((server.client_port(ShardId(3)), server.peer_port(), server.http_port()), (7203, 7298, 7299));
}

/// The form in caches and messages, which must not change under running servers.
#[test]
fn json() {
    let topology = topology(1, 1, Mode::Standalone);
    let json = serde_json::to_string(&*topology).unwrap();
    assert_eq!(
        json,
        concat!(
            r#"{"version":1,"cluster_id":"test","mode":"standalone","durability":"quorum-fsync","databases":16,"#,
            r#""hash_seed":"07070707070707070707070707070707","#,
            r#""servers":{"1":{"id":1,"host":"127.0.0.1","base_port":7100,"up":true}},"#,
            r#""shards":[{"id":0,"group":1,"slots":["0-16383"],"#,
            r#""replicas":[{"id":1,"server":1,"node_id":"bdd732262feb6e9528efe333b266f10347526757"}]}]}"#
        )
    );
    assert_eq!(serde_json::from_str::<Topology>(&json).unwrap(), *topology);
}

/// Each rule, broken alone, is found by the constructor and when a topology is read.
#[test]
fn invariant_a_topology_keeps_its_rules() {
    let good = topology(3, 3, Mode::Cluster).layout().clone();
    let broken = |change: &dyn Fn(&mut Layout)| {
        let mut layout = good.clone();
        change(&mut layout);
        let json = serde_json::to_string(&layout).unwrap();
        let error = Topology::new(layout).unwrap_err();
        let read = serde_json::from_str::<Topology>(&json).unwrap_err().to_string();
        assert!(read.starts_with(&error.to_string()), "{read}");
        error
    };
    let server = |layout: &mut Layout, id: u64| layout.servers.remove(&ServerId(id)).unwrap();
    use TopologyError::*;
    assert_eq!(broken(&|l| l.databases = 0), NoDatabase);
    assert_eq!(broken(&|l| l.servers.clear()), NoServer);
    assert_eq!(broken(&|l| l.shards.clear()), ShardCount(0));
    assert_eq!(broken(&|l| l.mode = Mode::Standalone), StandaloneShards);
    assert_eq!(broken(&|l| l.durability = Durability::None), DurabilityNone);
    assert_eq!(
        broken(&|l| {
            let one = server(l, 1);
            l.servers.insert(ServerId(9), one);
        }),
        ServerFiledWrong(ServerId(9))
    );
    for peer in ["", "7198", ":7198", "a", "a:", "a:0", "a:65536", "a b:7198"] {
        assert_eq!(
            broken(&|l| l.servers.get_mut(&ServerId(2)).unwrap().peer = Some(peer.to_owned())),
            Peer(ServerId(2), peer.to_owned())
        );
    }
    assert_eq!(
        broken(&|l| l.servers.get_mut(&ServerId(2)).unwrap().peer = Some("127.0.0.1:7198".to_owned())),
        PeerTwice(ServerId(1), ServerId(2))
    );
    for host in ["", "a b", "a,b", "a@b", "a\nb", &"x".repeat(256)] {
        assert_eq!(
            broken(&|l| l.servers.get_mut(&ServerId(2)).unwrap().host = host.to_owned()),
            Host(ServerId(2), host.to_owned())
        );
    }
    for port in [0, 65437, 65535] {
        assert_eq!(
            broken(&|l| l.servers.get_mut(&ServerId(2)).unwrap().base_port = port),
            BasePort(ServerId(2), port)
        );
    }
    for port in [7001, 7100, 7199] {
        assert_eq!(
            broken(&|l| l.servers.get_mut(&ServerId(2)).unwrap().base_port = port),
            PortsOverlap(ServerId(1), ServerId(2)),
            "{port}"
        );
    }
    assert_eq!(broken(&|l| l.shards.swap(0, 1)), ShardOrder(ShardId(0)));
    assert_eq!(broken(&|l| l.shards[1].id = ShardId(0)), ShardOrder(ShardId(0)));
    assert_eq!(broken(&|l| l.shards[2].id = ShardId(98)), ShardOrder(ShardId(98)));
    assert_eq!(broken(&|l| l.shards[1].group = 0), GroupTaken(ShardId(1), 0));
    assert_eq!(broken(&|l| l.shards[1].group = 1), GroupTaken(ShardId(1), 1));
    assert_eq!(broken(&|l| l.shards[1].slots = SlotSet::all()), SlotTaken(Slot::new(0).unwrap()));
    assert_eq!(broken(&|l| l.shards[1].replicas.clear()), NoReplica(ShardId(1)));
    assert_eq!(
        broken(&|l| l.shards[1].replicas[1].server = ServerId(2)),
        SameServer(ShardId(1), ServerId(2))
    );
    assert_eq!(
        broken(&|l| l.shards[1].replicas[0].server = ServerId(7)),
        UnknownServer(ReplicaId(4), ServerId(7))
    );
    assert_eq!(broken(&|l| l.shards[1].replicas[0].id = ReplicaId(1)), ReplicaTwice(ReplicaId(1)));
    let id = good.shards[0].replicas[0].node_id;
    assert_eq!(broken(&|l| l.shards[1].replicas[0].node_id = id), NodeIdTwice(id));
}

#[test]
fn a_port_range_of_another_host_or_just_beside_is_free() {
    let mut layout = topology(3, 3, Mode::Cluster).layout().clone();
    layout.servers.get_mut(&ServerId(2)).unwrap().host = "127.0.0.2".to_owned();
    layout.servers.get_mut(&ServerId(2)).unwrap().base_port = 7100;
    layout.servers.get_mut(&ServerId(3)).unwrap().base_port = 7000;
    Topology::new(layout).unwrap();
}

#[test]
fn names() {
    for mode in [Mode::Cluster, Mode::Standalone] {
        assert_eq!(mode.to_string().parse(), Ok(mode));
        assert_eq!(serde_json::to_string(&mode).unwrap(), format!("\"{mode}\""));
    }
    for durability in [Durability::QuorumFsync, Durability::QuorumMemory, Durability::None] {
        assert_eq!(durability.to_string().parse(), Ok(durability));
        assert_eq!(serde_json::to_string(&durability).unwrap(), format!("\"{durability}\""));
    }
    assert!("Cluster".parse::<Mode>().is_err() && "fsync".parse::<Durability>().is_err());
}
