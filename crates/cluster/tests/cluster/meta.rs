use crate::support::{create, created};
use kvorum_cluster::{
    Create, Durability, MetaCommand, MetaError, MetaFault, MetaMachine, MetaRefusal, Mode, ReplicaId,
    ServerId, ShardId, Stage, Tenure, TopologyError,
};
use proptest::prelude::*;

fn refusal(meta: &mut MetaMachine, command: MetaCommand) -> MetaRefusal {
    let (index, before) = (meta.applied().map_or(0, |index| index + 1), meta.topology());
    let refused = match meta.apply(index, &command.encode()) {
        Err(MetaError::Refused(refused)) => refused,
        other => panic!("not refused: {other:?}"),
    };
    assert_eq!(meta.topology(), before, "a refusal changes nothing");
    assert_eq!(meta.applied(), Some(index), "a refused entry counts as applied");
    refused
}

fn up(server: u64, up: bool) -> MetaCommand {
    MetaCommand::ServerUp { server: ServerId(server), up }
}

#[test]
fn the_log_entry() {
    let command = MetaCommand::ServerUp { server: ServerId(2), up: false };
    assert_eq!(command.encode(), br#"{"format":1,"command":{"server_up":{"server":2,"up":false}}}"#);
    let command = MetaCommand::Create(create(1, 1, Mode::Standalone));
    assert_eq!(
        String::from_utf8(command.encode()).unwrap(),
        concat!(
            r#"{"format":1,"command":{"create":{"cluster_id":"test","mode":"standalone","durability":"quorum-fsync","#,
            r#""databases":16,"shards":1,"replicas":1,"hash_seed":"07070707070707070707070707070707","id_seed":42,"#,
            r#""servers":[{"id":1,"host":"127.0.0.1","base_port":7100}]}}}"#
        )
    );
    assert_eq!(MetaCommand::decode(&command.encode()), Ok(command));
}

#[test]
fn versions_increase_with_every_change_and_only_then() {
    let mut meta = created(create(3, 3, Mode::Cluster));
    let version = |meta: &MetaMachine| meta.topology().unwrap().version;
    assert_eq!(version(&meta), 1);
    meta.apply(2, &up(2, true).encode()).unwrap();
    assert_eq!(version(&meta), 1);
    meta.apply(3, &up(2, false).encode()).unwrap();
    assert_eq!(version(&meta), 2);
    assert!(!meta.topology().unwrap().server(ServerId(2)).unwrap().up);
    meta.advance(4).unwrap();
    let address = MetaCommand::ServerAddress {
        server: ServerId(2),
        host: "db2".to_owned(),
        base_port: 9000,
        peer: Some("inner-db2:7198".to_owned()),
    };
    meta.apply(5, &address.encode()).unwrap();
    let topology = meta.topology().unwrap();
    let server = topology.server(ServerId(2)).unwrap();
    assert_eq!(server.peer_addr(), "inner-db2:7198");
    assert_eq!((version(&meta), server.host.as_str(), server.base_port, server.up), (3, "db2", 9000, false));
}

#[test]
fn refusals() {
    let good = create(3, 3, Mode::Cluster);
    let with = |change: &dyn Fn(&mut Create)| {
        let mut create = good.clone();
        change(&mut create);
        refusal(&mut MetaMachine::new(), MetaCommand::Create(create))
    };
    for id in ["", "a b", "ä", &"x".repeat(65)] {
        assert_eq!(with(&|c| c.cluster_id = id.to_owned()), MetaRefusal::ClusterId(id.to_owned()));
    }
    assert_eq!(with(&|c| c.shards = 0), MetaRefusal::Shards(0));
    assert_eq!(with(&|c| c.shards = 99), MetaRefusal::Shards(99));
    for replicas in [0, 4] {
        assert_eq!(with(&|c| c.replicas = replicas), MetaRefusal::Replicas { replicas, servers: 3 });
    }
    assert_eq!(with(&|c| c.servers.clear()), TopologyError::NoServer.into());
    assert_eq!(with(&|c| c.servers[1].id = ServerId(1)), MetaRefusal::ServerTwice(ServerId(1)));
    assert_eq!(with(&|c| c.durability = Durability::None), TopologyError::DurabilityNone.into());
    assert_eq!(with(&|c| c.mode = Mode::Standalone), TopologyError::StandaloneShards.into());
    assert_eq!(with(&|c| c.databases = 0), TopologyError::NoDatabase.into());
    assert_eq!(
        with(&|c| c.servers[1].base_port = 7150),
        TopologyError::PortsOverlap(ServerId(1), ServerId(2)).into()
    );

    let mut meta = MetaMachine::new();
    assert_eq!(refusal(&mut meta, up(1, false)), MetaRefusal::NotCreated);
    let mut meta = created(good.clone());
    assert_eq!(refusal(&mut meta, MetaCommand::Create(good)), MetaRefusal::AlreadyCreated("test".to_owned()));
    assert_eq!(refusal(&mut meta, up(4, false)), MetaRefusal::UnknownServer(ServerId(4)));
    let onto_another = MetaCommand::ServerAddress {
        server: ServerId(2),
        host: "127.0.0.1".to_owned(),
        base_port: 7100,
        peer: None,
    };
    assert_eq!(
        refusal(&mut meta, onto_another),
        TopologyError::PortsOverlap(ServerId(1), ServerId(2)).into()
    );
}

#[test]
fn one_server_may_be_careless() {
    let mut one = create(1, 98, Mode::Cluster);
    one.durability = Durability::None;
    let topology = created(one).topology().unwrap();
    assert_eq!((topology.durability, topology.shards.len()), (Durability::None, 98));
}

/// What this version does not understand stops it: another version may do something with it.
#[test]
fn unknown_entries_are_faults() {
    let fault = |entry: &str| match MetaMachine::new().apply(0, entry.as_bytes()) {
        Err(MetaError::Fault(fault)) => fault,
        other => panic!("no fault: {other:?}"),
    };
    assert_eq!(fault(r#"{"format":4,"anything":[]}"#), MetaFault::UnknownFormat(4));
    for entry in [
        "",
        "{}",
        "[]",
        r#"{"format":1}"#,
        r#"{"format":-1,"command":{}}"#,
        r#"{"format":1,"command":{"server_up":{"server":1,"up":true,"why":"?"}}}"#,
        r#"{"format":1,"command":{"server_up":{"server":1}}}"#,
        r#"{"format":1,"command":{"server_gone":{"server":1}}}"#,
        r#"{"format":2,"command":{"server_up":{"server":1,"up":true}}}"#,
        r#"{"format":1,"command":{"replica_joined":{"shard":0,"replica":1}}}"#,
        r#"{"format":1,"command":{"server_up":{"server":1,"up":true}},"signed":true}"#,
        r#"{"format":1,"command":{"server_up":{"server":1,"up":true}}} x"#,
    ] {
        assert!(matches!(fault(entry), MetaFault::Malformed(_)), "{entry}");
    }
}

#[test]
fn entries_come_without_gaps() {
    let mut meta = created(create(3, 3, Mode::Cluster));
    for index in [0, 1, 3] {
        let gap = MetaFault::IndexGap { expected: 2, got: index };
        assert_eq!(meta.apply(index, &up(1, false).encode()), Err(gap.clone().into()));
        assert_eq!(meta.advance(index), Err(gap.into()));
    }
    meta.apply(2, &up(1, false).encode()).unwrap();
}

fn any_command() -> impl Strategy<Value = MetaCommand> {
    let server = (0u64..5).prop_map(ServerId);
    prop_oneof![
        (0u64..6, 0u16..5, 0u16..4, any::<u64>(), any::<bool>()).prop_map(
            |(servers, shards, replicas, seed, one)| {
                let mode = if one { Mode::Standalone } else { Mode::Cluster };
                MetaCommand::Create(Create { id_seed: seed, shards, replicas, ..create(servers, 1, mode) })
            }
        ),
        (0u16..3, 0u64..12, server.clone(), any::<u64>()).prop_map(|(shard, old, server, id_seed)| {
            MetaCommand::ReplaceReplica { shard: ShardId(shard), old: ReplicaId(old), server, id_seed }
        }),
        (0u16..3, 0u64..20).prop_map(|(shard, replica)| MetaCommand::ReplicaJoined {
            shard: ShardId(shard),
            replica: ReplicaId(replica)
        }),
        (0u16..3, 0u64..20, server.clone(), any::<u64>(), 0u8..6).prop_map(
            |(shard, replica, server, id_seed, which)| {
                let (shard, replica) = (ShardId(shard), ReplicaId(replica));
                match which {
                    0 => MetaCommand::MoveReplica { shard, old: replica, server, id_seed },
                    1 => MetaCommand::AddReplica { shard, server, id_seed },
                    2 => MetaCommand::RetireReplica { shard, replica },
                    3 => MetaCommand::DropReplica { shard, replica },
                    4 => MetaCommand::ReplicaLeft { shard, replica },
                    _ => MetaCommand::Prefer { shard, replica },
                }
            }
        ),
        (server.clone(), 0u8..4, any::<bool>()).prop_map(|(server, which, parting)| match which {
            0 => MetaCommand::RemoveServer { server },
            1 => MetaCommand::WantReplicas { replicas: 2 },
            2 => MetaCommand::AddServer {
                hex: format!("{:040x}", server.0),
                host: "b".to_owned(),
                base_port: 7000 + 100 * u16::try_from(server.0).unwrap(),
                peer: None,
                tenure: Tenure::Settling,
            },
            _ => {
                let tenure = if parting { Tenure::Leaving } else { Tenure::Settled };
                MetaCommand::SetTenure { server, tenure }
            }
        }),
        (server.clone(), any::<bool>()).prop_map(|(server, up)| MetaCommand::ServerUp { server, up }),
        (server, "[a-b ]{0,2}", prop_oneof![Just(0u16), 7000..7600u16]).prop_map(
            |(server, host, base_port)| {
                let peer = (base_port % 2 == 1).then(|| format!("{host}:7298"));
                MetaCommand::ServerAddress { server, host, base_port, peer }
            }
        ),
    ]
}

proptest! {
    /// Two servers that apply the same log agree after every entry, whatever it asks; versions never go back.
    #[test]
    fn invariant_servers_agree(log in prop::collection::vec(any_command(), 0..40)) {
        let (mut one, mut two) = (MetaMachine::new(), MetaMachine::new());
        let mut before = None;
        let mut given = std::collections::BTreeSet::new();
        let mut given_servers = std::collections::BTreeSet::new();
        for (index, command) in log.iter().enumerate() {
            let entry = command.encode();
            prop_assert_eq!(&MetaCommand::decode(&entry).unwrap(), command);
            let index = index as u64;
            let outcome = one.apply(index, &entry);
            prop_assert!(!matches!(outcome, Err(MetaError::Fault(_))));
            prop_assert_eq!(&outcome, &two.apply(index, &entry));
            prop_assert_eq!(&one, &two);
            let now = one.topology();
            let versions = (before.as_ref().map_or(0, |t: &std::sync::Arc<_>| version(t)), now.as_ref().map_or(0, version));
            prop_assert_eq!(versions.0 == versions.1, before == now);
            prop_assert!(versions.0 <= versions.1);
            // Ids of replicas that are gone never come back.
            let ids = |topology: &std::sync::Arc<kvorum_cluster::Topology>| {
                topology.all_replicas().map(|(_, replica)| replica.id).collect::<std::collections::BTreeSet<_>>()
            };
            let (was, is) = (before.as_ref().map(ids).unwrap_or_default(), now.as_ref().map(ids).unwrap_or_default());
            prop_assert!(is.difference(&was).all(|&id| given.insert(id)));
            let servers = |topology: &std::sync::Arc<kvorum_cluster::Topology>| {
                topology.servers.keys().copied().collect::<std::collections::BTreeSet<_>>()
            };
            let was = before.as_ref().map(servers).unwrap_or_default();
            let is = now.as_ref().map(servers).unwrap_or_default();
            prop_assert!(is.difference(&was).all(|&id| given_servers.insert(id)));
            before = now;
        }
    }

    #[test]
    fn any_bytes_are_a_command_or_a_fault(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = MetaMachine::new().apply(0, &bytes);
    }
}

fn version(topology: &std::sync::Arc<kvorum_cluster::Topology>) -> u64 {
    topology.version
}

#[test]
fn servers_are_placed_in_the_order_of_their_ids() {
    let mut shuffled = create(3, 3, Mode::Cluster);
    shuffled.servers.reverse();
    assert_eq!(created(shuffled).topology(), created(create(3, 3, Mode::Cluster)).topology());
}

fn replace(shard: u16, old: u64, server: u64) -> MetaCommand {
    MetaCommand::ReplaceReplica {
        shard: ShardId(shard),
        old: ReplicaId(old),
        server: ServerId(server),
        id_seed: old,
    }
}

fn joined(shard: u16, replica: u64) -> MetaCommand {
    MetaCommand::ReplicaJoined { shard: ShardId(shard), replica: ReplicaId(replica) }
}

/// Ids and stages of a shard's replicas.
fn stages(meta: &MetaMachine, shard: u16) -> Vec<(u64, Stage)> {
    let topology = meta.topology().unwrap();
    let replicas = &topology.shard(ShardId(shard)).unwrap().replicas;
    replicas.iter().map(|replica| (replica.id.0, replica.stage)).collect()
}

#[test]
fn a_replica_is_replaced_by_a_new_id_in_its_place() {
    use Stage::{Founder, Joining, Member};
    let mut meta = created(create(3, 2, Mode::Cluster));
    assert_eq!(stages(&meta, 0), [(1, Founder), (2, Founder), (3, Founder)]);
    let gone = meta.topology().unwrap().replica(ReplicaId(1)).unwrap().1.node_id;

    meta.apply(2, &replace(0, 1, 1).encode()).unwrap();
    assert_eq!(stages(&meta, 0), [(7, Joining), (2, Founder), (3, Founder)]);
    let topology = meta.topology().unwrap();
    assert_eq!(topology.version, 2);
    assert_eq!(topology.replica(ReplicaId(1)), None);
    let new = topology.replica(ReplicaId(7)).unwrap().1;
    assert_eq!(new.server, ServerId(1));
    assert_ne!(new.node_id, gone, "to clients it is another node");

    meta.apply(3, &joined(0, 7).encode()).unwrap();
    assert_eq!(stages(&meta, 0), [(7, Member), (2, Founder), (3, Founder)]);
    meta.apply(4, &joined(0, 7).encode()).unwrap();
    meta.apply(5, &joined(0, 2).encode()).unwrap();
    assert_eq!(meta.topology().unwrap().version, 3, "nothing new");

    // The highest id is gone again; it does not come back.
    meta.apply(6, &replace(0, 7, 1).encode()).unwrap();
    let server = meta.topology().unwrap().server_of(ReplicaId(4)).unwrap().id;
    let seven_again =
        MetaCommand::ReplaceReplica { shard: ShardId(1), old: ReplicaId(4), server, id_seed: 8 };
    meta.apply(7, &seven_again.encode()).unwrap();
    assert_eq!(stages(&meta, 0)[0], (8, Joining));
    assert!(stages(&meta, 1).contains(&(9, Joining)));
}

#[test]
fn never_more_than_a_minority_joins() {
    let mut meta = created(create(3, 1, Mode::Cluster));
    meta.apply(2, &replace(0, 2, 2).encode()).unwrap();
    let too_many = MetaRefusal::Topology(TopologyError::TooManyJoining(ShardId(0)));
    assert_eq!(refusal(&mut meta, replace(0, 3, 3)), too_many);
    // The one that joins may itself be lost again.
    meta.apply(4, &replace(0, 4, 2).encode()).unwrap();
    assert_eq!(refusal(&mut meta, replace(0, 3, 3)), too_many);
    meta.apply(6, &joined(0, 5).encode()).unwrap();
    meta.apply(7, &replace(0, 3, 3).encode()).unwrap();

    let mut alone = created(create(1, 1, Mode::Cluster));
    assert_eq!(refusal(&mut alone, replace(0, 1, 1)), too_many);
    let mut two = created(create(2, 1, Mode::Cluster));
    assert_eq!(refusal(&mut two, replace(0, 1, 1)), too_many);
}

#[test]
fn what_cannot_be_replaced() {
    let mut meta = created(create(4, 3, Mode::Cluster));
    assert_eq!(refusal(&mut meta, replace(9, 1, 1)), MetaRefusal::UnknownShard(ShardId(9)));
    assert_eq!(refusal(&mut meta, replace(1, 1, 1)), MetaRefusal::UnknownReplica(ShardId(1), ReplicaId(1)));
    assert_eq!(refusal(&mut meta, joined(0, 40)), MetaRefusal::UnknownReplica(ShardId(0), ReplicaId(40)));
    let elsewhere = stages(&meta, 0);
    assert_eq!(elsewhere.len(), 3);
    let taken = meta.topology().unwrap().server_of(ReplicaId(2)).unwrap().id;
    assert_eq!(
        refusal(&mut meta, replace(0, 1, taken.0)),
        TopologyError::SameServer(ShardId(0), taken).into()
    );
    assert!(matches!(
        refusal(&mut meta, replace(0, 1, 9)),
        MetaRefusal::Topology(TopologyError::UnknownServer(_, ServerId(9)))
    ));
    assert_eq!(refusal(&mut MetaMachine::new(), replace(0, 1, 1)), MetaRefusal::NotCreated);
}

#[test]
fn the_log_entry_of_a_replacement_is_of_a_format_of_its_own() {
    let text = r#"{"format":2,"command":{"replace_replica":{"shard":0,"old":1,"server":1,"id_seed":1}}}"#;
    assert_eq!(replace(0, 1, 1).encode(), text.as_bytes());
    assert_eq!(MetaCommand::decode(text.as_bytes()), Ok(replace(0, 1, 1)));
    let text = r#"{"format":2,"command":{"replica_joined":{"shard":0,"replica":7}}}"#;
    assert_eq!(joined(0, 7).encode(), text.as_bytes());
    // A cluster in which nothing was replaced looks as it did before there were replacements.
    let mut meta = created(create(3, 1, Mode::Cluster));
    let before = serde_json::to_string(&*meta.topology().unwrap()).unwrap();
    assert!(!before.contains("stage") && !before.contains("last_replica"), "{before}");
    meta.apply(2, &replace(0, 1, 1).encode()).unwrap();
    let after = serde_json::to_string(&*meta.topology().unwrap()).unwrap();
    assert!(after.contains(r#""stage":"joining""#) && after.contains(r#""last_replica":4"#), "{after}");
    let restored = MetaMachine::restore(&meta.snapshot()).unwrap();
    assert_eq!(restored, meta);
}

/// The form of the entries by which servers come and go.
#[test]
fn entries_of_servers_that_come_and_go() {
    let (shard, replica, server) = (ShardId(1), ReplicaId(4), ServerId(7));
    let id_seed = 9;
    let commands = [
        MetaCommand::AddServer {
            hex: "0a".to_owned(),
            host: "db7".to_owned(),
            base_port: 7100,
            peer: None,
            tenure: Tenure::Settling,
        },
        MetaCommand::SetTenure { server, tenure: Tenure::LeavingWithFewer },
        MetaCommand::RemoveServer { server },
        MetaCommand::MoveReplica { shard, old: replica, server, id_seed },
        MetaCommand::AddReplica { shard, server, id_seed },
        MetaCommand::RetireReplica { shard, replica },
        MetaCommand::DropReplica { shard, replica },
        MetaCommand::ReplicaLeft { shard, replica },
        MetaCommand::Prefer { shard, replica },
        MetaCommand::WantReplicas { replicas: 3 },
    ];
    let forms = [
        r#"{"add_server":{"hex":"0a","host":"db7","base_port":7100,"tenure":"settling"}}"#,
        r#"{"set_tenure":{"server":7,"tenure":"leaving-with-fewer"}}"#,
        r#"{"remove_server":{"server":7}}"#,
        r#"{"move_replica":{"shard":1,"old":4,"server":7,"id_seed":9}}"#,
        r#"{"add_replica":{"shard":1,"server":7,"id_seed":9}}"#,
        r#"{"retire_replica":{"shard":1,"replica":4}}"#,
        r#"{"drop_replica":{"shard":1,"replica":4}}"#,
        r#"{"replica_left":{"shard":1,"replica":4}}"#,
        r#"{"prefer":{"shard":1,"replica":4}}"#,
        r#"{"want_replicas":{"replicas":3}}"#,
    ];
    for (command, form) in commands.iter().zip(forms) {
        let entry = format!(r#"{{"format":3,"command":{form}}}"#);
        assert_eq!(String::from_utf8(command.encode()).unwrap(), entry);
        assert_eq!(&MetaCommand::decode(entry.as_bytes()).unwrap(), command);
    }
}
