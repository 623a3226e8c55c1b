//! What clients of Sentinel are told of failovers, as golden sequences: the events of Redis Sentinel 7.0.15 in its order, as far as
//! they have a meaning here.

use crate::support::{replica, topology, with_down};
use kvorum_cluster::{
    FailoverWatch, Leaders, MasterNames, Mode, Picture, SentinelId, ServerId, ShardId, View, quorum,
};
use std::collections::{BTreeMap, BTreeSet};

/// One shard on three servers at 127.0.0.1:7100, 7200 and 7300, and one server's memory of it.
struct Story {
    me: ServerId,
    view: View,
    suspects: BTreeSet<ServerId>,
    watch: FailoverWatch,
}

impl Story {
    /// Server 1 leads in term 1, and `me` was told so.
    fn at(me: u64) -> Story {
        let topology = topology(3, 1, Mode::Standalone);
        let view = View { topology, leaders: Leaders::default(), silent: BTreeSet::new() };
        let watch = FailoverWatch::default();
        let mut story = Story { me: ServerId(me), view, suspects: BTreeSet::new(), watch };
        assert_eq!(story.look(), "", "nobody knows who leads");
        story.elect(1, 1);
        assert!(story.look().starts_with("+monitor master mymaster 127.0.0.1 7100 quorum 2\n+slave slave "));
        assert_eq!(story.look(), "", "nothing happened");
        story
    }

    fn elect(&mut self, term: u64, server: u64) {
        let winner = replica(&self.view, 0, server);
        self.view.leaders.announce(ShardId(0), term, winner);
    }

    fn silence(&mut self, servers: &[u64]) {
        self.view.silent = servers.iter().copied().map(ServerId).collect();
        // Who is silent has been suspect for a while.
        self.suspects.clone_from(&self.view.silent);
    }

    fn suspect(&mut self, servers: &[u64]) {
        self.suspects = servers.iter().copied().map(ServerId).collect();
    }

    fn hear_from_meta_group(&mut self, down: &[u64]) {
        let silent = self.view.silent.clone();
        self.view = View { silent, ..with_down(&self.view, down) };
    }

    /// What happened since the last look, one event a line.
    fn look(&mut self) -> String {
        let sentinel = |id: u64| SentinelId { id: format!("id{id}"), port: 26378 + id as u16 };
        let sentinels: BTreeMap<ServerId, SentinelId> =
            (1..=3).map(|id| (ServerId(id), sentinel(id))).collect();
        let picture =
            Picture { view: &self.view, me: self.me, suspects: &self.suspects, sentinels: &sentinels };
        let events = self.watch.look(picture);
        assert!(events.iter().all(|event| !event.cause.is_empty() && event.master == "mymaster"));
        let lines: Vec<String> =
            events.iter().map(|event| format!("{} {}", event.name, event.payload)).collect();
        lines.join("\n")
    }
}

#[track_caller]
fn assert_story(told: &str, expected: &str) {
    let expected: Vec<&str> = expected.trim().lines().map(str::trim).collect();
    assert_eq!(told.lines().collect::<Vec<_>>(), expected);
}

const SWITCHED: &str = "+switch-master mymaster 127.0.0.1 7100 127.0.0.1 7200
    +slave slave 127.0.0.1:7300 127.0.0.1 7300 @ mymaster 127.0.0.1 7200
    +slave slave 127.0.0.1:7100 127.0.0.1 7100 @ mymaster 127.0.0.1 7200";

#[test]
fn a_killed_leader_as_an_observer_tells_it() {
    let mut story = Story::at(3);
    story.silence(&[1]);
    assert_story(
        &story.look(),
        "+sdown master mymaster 127.0.0.1 7100
         +sdown sentinel id1 127.0.0.1 26379 @ mymaster 127.0.0.1 7100",
    );
    story.elect(2, 2);
    assert_story(
        &story.look(),
        &format!(
            "+new-epoch 2
             +vote-for-leader id2 2
             +odown master mymaster 127.0.0.1 7100 #quorum 2/2
             -role-change slave 127.0.0.1:7200 127.0.0.1 7200 @ mymaster 127.0.0.1 7100 new reported role is master
             +config-update-from sentinel id2 127.0.0.1 26380 @ mymaster 127.0.0.1 7100
             {SWITCHED}
             +sdown slave 127.0.0.1:7100 127.0.0.1 7100 @ mymaster 127.0.0.1 7200"
        ),
    );
    story.hear_from_meta_group(&[1]);
    assert_eq!(story.look(), "", "that a follower is down is told by sdown alone");
}

#[test]
fn an_election_may_come_before_the_silence_is_noticed() {
    let mut story = Story::at(3);
    story.suspect(&[1]);
    assert_eq!(story.look(), "", "a suspicion alone is nothing to tell");
    story.elect(2, 2);
    let told = story.look();
    assert!(told.starts_with("+sdown master mymaster 127.0.0.1 7100\n+new-epoch 2\n"), "{told}");
    assert!(told.ends_with("+sdown slave 127.0.0.1:7100 127.0.0.1 7100 @ mymaster 127.0.0.1 7200"), "{told}");
    assert_eq!(story.look(), "");
    story.silence(&[1]);
    assert_eq!(story.look(), "", "it was told already");
}

#[test]
fn a_killed_leader_as_the_new_leader_tells_it() {
    let mut story = Story::at(2);
    story.silence(&[1]);
    story.elect(2, 2);
    assert_story(
        &story.look(),
        &format!(
            "+sdown master mymaster 127.0.0.1 7100
             +odown master mymaster 127.0.0.1 7100 #quorum 2/2
             {PROMOTED}
             {SWITCHED}
             +sdown slave 127.0.0.1:7100 127.0.0.1 7100 @ mymaster 127.0.0.1 7200"
        ),
    );
}

const PROMOTED: &str = "+new-epoch 2
    +try-failover master mymaster 127.0.0.1 7100
    +vote-for-leader id2 2
    +elected-leader master mymaster 127.0.0.1 7100
    +failover-state-select-slave master mymaster 127.0.0.1 7100
    +selected-slave slave 127.0.0.1:7200 127.0.0.1 7200 @ mymaster 127.0.0.1 7100
    +failover-state-send-slaveof-noone slave 127.0.0.1:7200 127.0.0.1 7200 @ mymaster 127.0.0.1 7100
    +failover-state-wait-promotion slave 127.0.0.1:7200 127.0.0.1 7200 @ mymaster 127.0.0.1 7100
    -role-change slave 127.0.0.1:7200 127.0.0.1 7200 @ mymaster 127.0.0.1 7100 new reported role is master
    +promoted-slave slave 127.0.0.1:7200 127.0.0.1 7200 @ mymaster 127.0.0.1 7100
    +failover-state-reconf-slaves master mymaster 127.0.0.1 7100
    +slave-reconf-sent slave 127.0.0.1:7300 127.0.0.1 7300 @ mymaster 127.0.0.1 7100
    +slave-reconf-inprog slave 127.0.0.1:7300 127.0.0.1 7300 @ mymaster 127.0.0.1 7100
    +slave-reconf-done slave 127.0.0.1:7300 127.0.0.1 7300 @ mymaster 127.0.0.1 7100
    +failover-end master mymaster 127.0.0.1 7100";

#[test]
fn a_planned_handover_downs_nobody() {
    let mut story = Story::at(2);
    story.elect(2, 2);
    assert_story(&story.look(), &format!("{PROMOTED}\n{SWITCHED}"));
    for observer in [1, 3] {
        let mut story = Story::at(observer);
        story.elect(2, 2);
        assert_story(
            &story.look(),
            &format!(
                "+new-epoch 2
                 -role-change slave 127.0.0.1:7200 127.0.0.1 7200 @ mymaster 127.0.0.1 7100 new reported role is master
                 +config-update-from sentinel id2 127.0.0.1 26380 @ mymaster 127.0.0.1 7100
                 {SWITCHED}"
            ),
        );
    }
}

#[test]
fn an_old_leader_comes_back_as_a_follower() {
    let mut story = Story::at(3);
    story.silence(&[1]);
    story.elect(2, 2);
    story.look();
    story.silence(&[]);
    assert_story(
        &story.look(),
        "-sdown slave 127.0.0.1:7100 127.0.0.1 7100 @ mymaster 127.0.0.1 7200
         -sdown sentinel id1 127.0.0.1 26379 @ mymaster 127.0.0.1 7200
         +role-change slave 127.0.0.1:7100 127.0.0.1 7100 @ mymaster 127.0.0.1 7200 new reported role is slave",
    );
    story.silence(&[1]);
    story.look();
    story.silence(&[]);
    assert!(!story.look().contains("role-change"), "it was a follower before");
}

#[test]
fn a_paused_leader_returns_without_an_election() {
    let mut story = Story::at(3);
    story.silence(&[1]);
    story.look();
    // Its silence is what others see of it; that it leads, they still know when it is back.
    story.silence(&[]);
    assert_story(
        &story.look(),
        "-sdown master mymaster 127.0.0.1 7100
         -sdown sentinel id1 127.0.0.1 26379 @ mymaster 127.0.0.1 7100",
    );
}

#[test]
fn a_leader_that_nobody_can_replace_is_objectively_down_when_the_meta_group_says_so() {
    let mut story = Story::at(3);
    story.silence(&[1]);
    story.look();
    story.hear_from_meta_group(&[1]);
    assert_story(&story.look(), "+odown master mymaster 127.0.0.1 7100 #quorum 2/2");
    // The meta group may hear of it later than this server does.
    story.silence(&[]);
    let told = story.look();
    assert!(told.starts_with("-sdown master mymaster 127.0.0.1 7100\n"), "{told}");
    assert!(told.ends_with("-odown master mymaster 127.0.0.1 7100"), "{told}");
    assert_eq!(story.look(), "");
}

#[test]
fn a_follower_that_is_silent_for_a_while() {
    let mut story = Story::at(3);
    story.silence(&[2]);
    assert_story(
        &story.look(),
        "+sdown slave 127.0.0.1:7200 127.0.0.1 7200 @ mymaster 127.0.0.1 7100
         +sdown sentinel id2 127.0.0.1 26380 @ mymaster 127.0.0.1 7100",
    );
    story.silence(&[]);
    assert!(story.look().starts_with("-sdown slave 127.0.0.1:7200"));
}

#[test]
fn a_leader_at_another_address_is_another_master_to_clients() {
    let mut story = Story::at(3);
    let mut layout = story.view.topology.layout().clone();
    layout.servers.get_mut(&ServerId(1)).unwrap().base_port = 9000;
    story.view.topology = std::sync::Arc::new(layout.try_into().unwrap());
    assert_story(&story.look(), "+switch-master mymaster 127.0.0.1 7100 127.0.0.1 9000");
}

#[test]
fn names_of_masters() {
    let names = MasterNames::new("cache");
    let one = topology(3, 1, Mode::Standalone);
    assert_eq!(names.of(&one, ShardId(0)), "cache");
    for name in ["cache", "shard-0"] {
        assert_eq!(names.find(&one, name.as_bytes()).unwrap().id, ShardId(0));
    }
    let three = topology(3, 3, Mode::Cluster);
    assert_eq!(names.of(&three, ShardId(2)), "shard-2");
    assert_eq!(names.find(&three, b"shard-2").unwrap().id, ShardId(2));
    for name in ["cache", "mymaster", "shard-3", "shard-02", "shard-+2", "shard-", "", "shard-\u{ff}"] {
        assert!(names.find(&three, name.as_bytes()).is_none(), "{name}");
    }
    assert_eq!(quorum(&three), 2);
}

#[test]
fn who_hears_less_than_a_quorum_is_cut_off() {
    let mut story = Story::at(3);
    assert!(!story.view.is_cut_off());
    story.silence(&[1]);
    assert!(!story.view.is_cut_off());
    story.silence(&[1, 2]);
    assert!(story.view.is_cut_off());
}
