use crate::support::{Rendered, replica, topology, view, with_down};
use kvorum_cluster::{Leaders, Mode, NodeId, ReplicaId, ShardId, View, describe};
use kvorum_keyspace::{SLOTS, Slot};
use proptest::prelude::*;
use std::{collections::BTreeSet, sync::Arc};

/// Each node id as `<shard>@<server>`.
fn named(view: &View, text: &str) -> String {
    view.topology.all_replicas().fold(text.to_owned(), |text, (shard, replica)| {
        text.replace(&replica.node_id.to_string(), &format!("{}@{}", shard.id, replica.server))
    })
}

fn nodes(view: &View, me: ReplicaId) -> String {
    named(view, &describe::nodes(view, me, 1795))
}

fn slots(view: &View) -> String {
    let mut out = Rendered::default();
    describe::slots(view, &mut out);
    named(view, &out.0.join(" "))
}

fn shards(view: &View) -> String {
    let mut out = Rendered::default();
    describe::shards(view, &|replica| replica.0 * 10, &mut out);
    named(view, &out.0.join(" "))
}

fn info(view: &View, me: ReplicaId) -> Vec<String> {
    let text = describe::info(view, me);
    assert!(text.ends_with("\r\n"));
    text.split_terminator("\r\n").map(str::to_owned).collect()
}

fn replicas(view: &View, of: &str) -> Result<String, String> {
    let mut out = Rendered::default();
    match describe::replicas(view, of.as_bytes(), replica(view, 0, 2), 1795, &mut out) {
        Ok(()) => Ok(named(view, &out.0.join(" "))),
        Err(error) => {
            assert_eq!(out, Rendered::default(), "an error is the only reply");
            Err(String::from_utf8(error.text().to_vec()).unwrap())
        }
    }
}

#[test]
fn a_healthy_cluster() {
    let view = view();
    let me = replica(&view, 1, 2);
    assert_eq!(
        nodes(&view, me),
        "0@1 127.0.0.1:7100@7198 master - 0 1795 1 connected 0-5460\n\
         0@2 127.0.0.1:7200@7298 slave 0@1 0 1795 1 connected\n\
         0@3 127.0.0.1:7300@7398 slave 0@1 0 1795 1 connected\n\
         1@2 127.0.0.1:7201@7298 myself,master - 0 1795 2 connected 5461-10922\n\
         1@3 127.0.0.1:7301@7398 slave 1@2 0 1795 2 connected\n\
         1@1 127.0.0.1:7101@7198 slave 1@2 0 1795 2 connected\n\
         2@3 127.0.0.1:7302@7398 master - 0 1795 3 connected 10923-16383\n\
         2@1 127.0.0.1:7102@7198 slave 2@3 0 1795 3 connected\n\
         2@2 127.0.0.1:7202@7298 slave 2@3 0 1795 3 connected\n"
    );
    assert_eq!(
        slots(&view),
        "*3 \
         *5 :0 :5460 *4 $127.0.0.1 :7100 $0@1 *0 *4 $127.0.0.1 :7200 $0@2 *0 *4 $127.0.0.1 :7300 $0@3 *0 \
         *5 :5461 :10922 *4 $127.0.0.1 :7201 $1@2 *0 *4 $127.0.0.1 :7301 $1@3 *0 *4 $127.0.0.1 :7101 $1@1 *0 \
         *5 :10923 :16383 *4 $127.0.0.1 :7302 $2@3 *0 *4 $127.0.0.1 :7102 $2@1 *0 *4 $127.0.0.1 :7202 $2@2 *0"
    );
    assert_eq!(
        info(&view, me),
        [
            "cluster_state:ok",
            "cluster_slots_assigned:16384",
            "cluster_slots_ok:16384",
            "cluster_slots_pfail:0",
            "cluster_slots_fail:0",
            "cluster_known_nodes:9",
            "cluster_size:3",
            "cluster_current_epoch:3",
            "cluster_my_epoch:2",
            "cluster_stats_messages_sent:0",
            "cluster_stats_messages_received:0",
            "total_cluster_links_buffer_limit_exceeded:0",
        ]
    );
    let node = |me: &str, role: &str, port: u16, offset: u64| {
        format!(
            "%7 $id ${me} $port :{port} $ip $127.0.0.1 $endpoint $127.0.0.1 $role ${role} \
             $replication-offset :{offset} $health $online"
        )
    };
    let shard =
        |slots: &str, nodes: [String; 3]| format!("%2 $slots *2 {slots} $nodes *3 {}", nodes.join(" "));
    assert_eq!(
        shards(&view),
        [
            "*3".to_owned(),
            shard(
                ":0 :5460",
                [
                    node("0@1", "master", 7100, 10),
                    node("0@2", "replica", 7200, 20),
                    node("0@3", "replica", 7300, 30)
                ]
            ),
            shard(
                ":5461 :10922",
                [
                    node("1@2", "master", 7201, 40),
                    node("1@3", "replica", 7301, 50),
                    node("1@1", "replica", 7101, 60)
                ]
            ),
            shard(
                ":10923 :16383",
                [
                    node("2@3", "master", 7302, 70),
                    node("2@1", "replica", 7102, 80),
                    node("2@2", "replica", 7202, 90)
                ]
            ),
        ]
        .join(" ")
    );
}

#[test]
fn replicas_of_a_master() {
    let view = view();
    let id = |server| view.topology.replica(replica(&view, 0, server)).unwrap().1.node_id.to_string();
    assert_eq!(
        replicas(&view, &id(1)).unwrap(),
        "*2 $0@2 127.0.0.1:7200@7298 myself,slave 0@1 0 1795 1 connected \
         $0@3 127.0.0.1:7300@7398 slave 0@1 0 1795 1 connected"
    );
    assert_eq!(replicas(&view, &id(2)).unwrap_err(), "ERR The specified node is not a master");
    let upper = id(1).to_uppercase();
    assert_eq!(replicas(&view, &upper).unwrap_err(), format!("ERR Unknown node {upper}"));
    assert_eq!(replicas(&view, "x\r\ny").unwrap_err(), "ERR Unknown node x  y");
    let nobody = NodeId([1; 20]).to_string();
    assert_eq!(replicas(&view, &nobody).unwrap_err(), format!("ERR Unknown node {nobody}"));
}

/// Server 1 led shard 0 and died: first nobody but the meta group knows, then its followers elect.
#[test]
fn a_failover() {
    let me = replica(&view(), 1, 2);
    let line = |view: &View, n: usize| nodes(view, me).lines().nth(n).unwrap().to_owned();

    let mut view = with_down(&view(), &[1]);
    assert_eq!(line(&view, 0), "0@1 127.0.0.1:7100@7198 master,fail - 0 1795 1 disconnected 0-5460");
    assert_eq!(line(&view, 5), "1@1 127.0.0.1:7101@7198 slave,fail 1@2 0 1795 2 disconnected");
    assert!(!slots(&view).contains("$1@1"), "a failed replica is not offered to clients");
    assert!(shards(&view).contains("$role $master $replication-offset :10 $health $fail"));
    assert_eq!(
        info(&view, me)[..5],
        [
            "cluster_state:ok",
            "cluster_slots_assigned:16384",
            "cluster_slots_ok:10923",
            "cluster_slots_pfail:5461",
            "cluster_slots_fail:0"
        ]
    );

    view.leaders.depose(ShardId(0), 4);
    assert_eq!(line(&view, 0), "0@1 127.0.0.1:7100@7198 slave,fail 0@2 0 1795 1 disconnected");
    assert_eq!(line(&view, 1), "0@2 127.0.0.1:7200@7298 master - 0 1795 1 connected 0-5460");

    view.leaders.announce(ShardId(0), 5, replica(&view, 0, 3));
    assert_eq!(line(&view, 0), "0@1 127.0.0.1:7100@7198 slave,fail 0@3 0 1795 5 disconnected");
    assert_eq!(line(&view, 1), "0@2 127.0.0.1:7200@7298 slave 0@3 0 1795 5 connected");
    assert_eq!(line(&view, 2), "0@3 127.0.0.1:7300@7398 master - 0 1795 5 connected 0-5460");
    assert_eq!(info(&view, me)[7..9], ["cluster_current_epoch:5", "cluster_my_epoch:2"]);
}

#[test]
fn without_a_majority_slots_fail() {
    let view = with_down(&view(), &[1, 3]);
    assert_eq!(
        info(&view, replica(&view, 1, 2))[..5],
        [
            "cluster_state:fail",
            "cluster_slots_assigned:16384",
            "cluster_slots_ok:0",
            "cluster_slots_pfail:0",
            "cluster_slots_fail:16384"
        ]
    );
}

/// Between the creation of a cluster and its first elections clients see the preferred leaders.
#[test]
fn before_the_first_leader() {
    let view = View {
        topology: topology(3, 3, Mode::Cluster),
        leaders: Leaders::default(),
        silent: Default::default(),
    };
    assert!(
        nodes(&view, replica(&view, 0, 1))
            .contains("1@2 127.0.0.1:7201@7298 master - 0 1795 0 connected 5461-")
    );
    assert_eq!(
        info(&view, ReplicaId(1))[..4],
        [
            "cluster_state:ok",
            "cluster_slots_assigned:16384",
            "cluster_slots_ok:0",
            "cluster_slots_pfail:16384"
        ]
    );
}

#[test]
fn scattered_slots() {
    let mut layout = view().topology.layout().clone();
    let mut swap = |from: usize, to: usize, slot: u16| {
        let slot = Slot::new(slot).unwrap();
        layout.shards[from].slots = layout.shards[from].slots.iter().filter(|&other| other != slot).collect();
        layout.shards[to].slots.insert(slot..=slot);
    };
    swap(0, 2, 100);
    swap(1, 0, 6000);
    let view = View { topology: Arc::new(layout.try_into().unwrap()), ..view() };
    assert!(nodes(&view, ReplicaId(1)).contains(" connected 0-99 101-5460 6000\n"));
    let rendered = slots(&view);
    let starts: Vec<&str> =
        rendered.split("*5 :").skip(1).map(|range| range.split(' ').next().unwrap()).collect();
    assert_eq!(starts, ["0", "100", "101", "5461", "6000", "6001", "10923"]);
    assert!(shards(&view).contains("%2 $slots *6 :0 :99 :101 :5460 :6000 :6000 $nodes"));
}

proptest! {
    /// Whatever was heard and whoever is down: one master a shard, one role an address, and every node says the same.
    #[test]
    fn invariant_every_node_shows_the_same_canonical_cluster(
        down in prop::collection::vec(1u64..=4, 0..4),
        heard in prop::collection::vec((0u16..4, 0u64..6, prop::option::of(1u64..=13)), 0..12),
    ) {
        let mut view = View { topology: topology(4, 4, Mode::Cluster), leaders: Leaders::default(), silent: Default::default() };
        for (shard, term, replica) in heard {
            match replica {
                Some(replica) => view.leaders.announce(ShardId(shard), term, ReplicaId(replica)),
                None => view.leaders.depose(ShardId(shard), term),
            };
        }
        let view = with_down(&view, &down);
        let anonymous = nodes(&view, ReplicaId(99));
        for (_, replica) in view.topology.all_replicas() {
            let mine = nodes(&view, replica.id);
            prop_assert_eq!(mine.matches("myself,").count(), 1);
            prop_assert_eq!(&mine.replace("myself,", ""), &anonymous);
        }
        let mut addresses = BTreeSet::new();
        let mut masters = BTreeSet::new();
        let mut covered = 0;
        for line in anonymous.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            prop_assert!(addresses.insert(fields[1]), "{} stands twice", fields[1]);
            let shard = fields[0].split('@').next().unwrap();
            if fields[2].starts_with("master") {
                prop_assert!(masters.insert(shard), "two masters of shard {shard}");
                prop_assert_eq!(fields[3], "-");
                let (first, last) = fields[8].split_once('-').unwrap();
                covered += last.parse::<u32>().unwrap() - first.parse::<u32>().unwrap() + 1;
            } else {
                prop_assert_eq!(fields.len(), 8, "only masters show slots");
                let of = format!("{} ", fields[3]);
                let of = anonymous.lines().find(|line| line.starts_with(&of)).unwrap();
                prop_assert!(of.contains(" master") && fields[3].starts_with(shard));
            }
        }
        prop_assert_eq!((masters.len(), covered), (4, u32::from(SLOTS)));
        // SLOTS and SHARDS name the same masters.
        for (shard, replica) in view.topology.all_replicas() {
            let name = format!("{}@{}", shard.id, replica.server);
            let is_master = anonymous.lines().any(|line| line.starts_with(&format!("{name} ")) && line.contains(" master"));
            let port = view.topology.address(replica.id).unwrap().1;
            let first_in_slots = shard.slots.ranges().all(|range| {
                let (first, last) = (range.start(), range.end());
                slots(&view).contains(&format!(":{first} :{last} *4 $127.0.0.1 :{port} ${name} "))
            });
            prop_assert_eq!(is_master, first_in_slots, "{}", name);
            let in_shards = shards(&view)
                .contains(&format!("${name} $port :{port} $ip $127.0.0.1 $endpoint $127.0.0.1 $role $master"));
            prop_assert_eq!(is_master, in_shards);
        }
        let counts: Vec<usize> = info(&view, ReplicaId(1))[2..5].iter().map(|l| l.split_once(':').unwrap().1.parse().unwrap()).collect();
        prop_assert_eq!(counts.iter().sum::<usize>(), usize::from(SLOTS));
    }
}

/// To clients a replica that joins is a node that is still without data.
#[test]
fn a_replica_that_joins() {
    let before = view();
    let old = replica(&before, 0, 1);
    let command = kvorum_cluster::MetaCommand::ReplaceReplica {
        shard: ShardId(0),
        old,
        server: kvorum_cluster::ServerId(1),
        id_seed: 77,
    };
    let topology = command.applied_to(&before.topology).unwrap().unwrap();
    let view =
        View { topology: Arc::new(topology), leaders: before.leaders.clone(), silent: Default::default() };
    let me = replica(&view, 1, 2);
    assert!(
        nodes(&view, me).starts_with(
            "0@1 127.0.0.1:7100@7198 slave 0@2 0 1795 1 disconnected\n\
             0@2 127.0.0.1:7200@7298 master - 0 1795 1 connected 0-5460\n"
        ),
        "{}",
        nodes(&view, me)
    );
    assert!(!slots(&view).contains("0@1"), "{}", slots(&view));
    assert!(
        shards(&view).contains("$id $0@1 $port :7100 $ip $127.0.0.1 $endpoint $127.0.0.1 $role $replica $replication-offset :100 $health $loading"),
        "{}",
        shards(&view)
    );
}
