//! A session of the Sentinel port without a server, for tests and fuzzers.

use super::scene::{Scene, Tunables};
use super::session::{Session, Step, Surroundings};
use crate::password::Password;
use crate::port::Replica;
use crate::resp::RespSink;
use crate::testing::{Scripted, port};
use kvorum_cluster::{MasterNames, Mode, ReplicaId, SentinelId, ServerId, ShardId};
use kvorum_node::{HandoverError, Peer, TimelineEvent};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

/// What server 1 knows of the scripted cluster.
pub(super) fn scene(replica: &Scripted) -> Scene {
    let view = replica.view();
    let peers = view.topology.servers.keys().map(|id| {
        let sentinel = SentinelId { id: format!("{:040x}", id.0), port: 26_378 + id.0 as u16 };
        (*id, Peer { sentinel, heard: Some(Duration::from_millis(70)) })
    });
    Scene {
        names: MasterNames::default(),
        me: ServerId(1),
        peers: peers.collect(),
        offsets: BTreeMap::from([(ReplicaId(2), 850)]),
        led_for: BTreeMap::from([(ShardId(0), Duration::from_secs(5))]),
        handed_over: BTreeSet::new(),
        silent_after: Duration::from_millis(600),
        view,
    }
}

/// An event of the timeline.
pub(super) fn event(name: &str, payload: &str) -> TimelineEvent {
    TimelineEvent {
        id: 1,
        at_ms: 0,
        shard: 0,
        master: "mymaster".to_owned(),
        event: name.to_owned(),
        payload: payload.to_owned(),
        cause: "a test".to_owned(),
    }
}

/// What came out of some bytes.
#[derive(Default)]
pub(crate) struct Conversation {
    /// Replies, and at the end the events.
    pub(crate) said: Vec<u8>,
    /// What subscribers of the server would be told.
    pub(crate) told: Vec<String>,
    /// Whether a request was larger than it may be, which depends on when one looks.
    pub(crate) flooded: bool,
}

/// A client's side of a conversation: its bytes, in pieces as they arrive. In the end something happens, of which it is told if it
/// subscribed. Who waits for a handover or a shutdown waits in vain.
pub(crate) fn converse<'a>(
    mode: Mode,
    password: bool,
    pieces: impl Iterator<Item = &'a [u8]>,
) -> Conversation {
    let (replica, port) = (Scripted::leading(mode), port());
    if password {
        port.settings.requirepass.set(Password::from(&b"secret"[..]));
    }
    let loopback = |port| (Ipv4Addr::LOCALHOST, port).into();
    let client = port.clients.enter(loopback(50_000), loopback(26_379), 0);
    let mut session = Session::new(client, &port);
    let (scene, tunables) = (scene(&replica), Tunables::default());
    let told = RefCell::new(Vec::new());
    let around = Surroundings {
        port: &port,
        id: &"1".repeat(40),
        announced_port: None,
        tunables: &tunables,
        scene: &|| Some(scene.clone()),
        publish: &|_, event, payload| told.borrow_mut().push(format!("{event} {payload}")),
    };
    let (mut out, mut flooded) = (RespSink::default(), false);
    'conversation: for piece in pieces {
        session.input(piece.len()).extend_from_slice(piece);
        loop {
            match session.turn(&around, &mut out) {
                Step::Again => {}
                Step::Failover(_) => session.failed_over(Err::<(), _>(HandoverError::NoHeir), &mut out),
                Step::Shutdown => session.shutdown_withdrawn(&mut out),
                Step::Close => break 'conversation,
                Step::Read if session.is_flooded() => {
                    flooded = true;
                    break 'conversation;
                }
                Step::Read => break,
            }
        }
    }
    session.on_event(&event("+switch-master", "mymaster 10.0.0.1 7000 10.0.0.2 7000"), &mut out);
    Conversation { said: out.bytes().to_vec(), told: told.into_inner(), flooded }
}
