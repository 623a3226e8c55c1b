//! What this server saw happen to the leaders of shards: the events that a Redis Sentinel would publish, as they happen and
//! the last of them with their time.

use crate::node::Node;
use kvorum_cluster::{FailoverEvent, FailoverWatch, MasterNames, Picture, SentinelId, ServerId, ShardId};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::broadcast;
use tracing::info;

/// Events that are kept.
pub const TIMELINE_LENGTH: usize = 1000;

/// Events that a listener may leave waiting; one that takes longer misses some, and is told so.
const FEED_LENGTH: usize = 4096;

/// How often the picture is looked at though nothing was heard: time alone makes suspicions.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Who gives a sign of life every 200 ms is not suspected before this.
const LEAST_SUSPICION: Duration = Duration::from_millis(400);

/// After a start, every server has this long to give its first sign of life.
const FIRST_SIGN: Duration = Duration::from_secs(2);

/// An event of the failover timeline. Its field names are for scripts and stay.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct TimelineEvent {
    /// Counts the events of this server since its start, from 1; 0 for what is told and not kept.
    pub id: u64,
    /// When this server saw it: milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// The shard.
    pub shard: u16,
    /// The shard's name for clients of Sentinel.
    pub master: String,
    /// Redis Sentinel's name of the event, such as `+switch-master`.
    pub event: String,
    /// What Redis Sentinel publishes.
    pub payload: String,
    /// Why, in words.
    pub cause: String,
}

/// The timeline of one server.
pub(crate) struct Timeline {
    kept: Mutex<VecDeque<Arc<TimelineEvent>>>,
    /// Since when each shard has the leader that was told of last, by the environment's clock.
    led_since: Mutex<BTreeMap<u16, Duration>>,
    feed: broadcast::Sender<Arc<TimelineEvent>>,
    /// How many events went into the feed.
    told: AtomicU64,
}

impl Default for Timeline {
    fn default() -> Timeline {
        Timeline {
            kept: Mutex::default(),
            led_since: Mutex::default(),
            feed: broadcast::Sender::new(FEED_LENGTH),
            told: AtomicU64::new(0),
        }
    }
}

impl Timeline {
    fn tell(&self, at_ms: u64, event: FailoverEvent) {
        let mut kept = self.kept.lock();
        let event = Arc::new(TimelineEvent {
            id: kept.back().map_or(0, |last| last.id) + 1,
            at_ms,
            shard: event.shard.0,
            master: event.master,
            event: event.name.to_owned(),
            payload: event.payload,
            cause: event.cause,
        });
        if kept.len() == TIMELINE_LENGTH {
            kept.pop_front();
        }
        kept.push_back(Arc::clone(&event));
        self.publish(event);
    }

    fn publish(&self, event: Arc<TimelineEvent>) {
        self.told.fetch_add(1, Ordering::Relaxed);
        // Without listeners there is nobody to tell.
        let _ = self.feed.send(event);
    }
}

/// What this server knows of another, or of itself, beside the topology.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// As a Sentinel: its identity and its port. What was not heard yet is made up: a number as identity, the own port.
    pub sentinel: SentinelId,
    /// How long ago it was heard; zero for this server, `None` for never.
    pub heard: Option<Duration>,
}

/// What servers tell of themselves with their signs of life.
#[derive(Default)]
pub(crate) struct Introductions {
    /// Where this server answers as a Sentinel; 0 for nowhere.
    own_port: AtomicU32,
    others: Mutex<BTreeMap<ServerId, Introduction>>,
}

#[derive(Clone, PartialEq, Eq)]
struct Introduction {
    server_hex: String,
    port: Option<u16>,
}

impl Introductions {
    pub(crate) fn own_port(&self) -> u32 {
        self.own_port.load(Ordering::Relaxed)
    }

    /// Another server told about itself.
    pub(crate) fn learn(&self, server: ServerId, server_hex: &str, port: Option<u32>) {
        let told = Introduction {
            server_hex: if is_hex(server_hex) { server_hex.to_owned() } else { String::new() },
            port: port.and_then(|port| u16::try_from(port).ok()),
        };
        let mut others = self.others.lock();
        if others.get(&server) != Some(&told) {
            others.insert(server, told);
        }
    }
}

/// Whether it is an identity: what clients are shown comes from another server.
fn is_hex(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

impl Node {
    /// The last events of the failover timeline, the oldest first.
    pub fn timeline(&self) -> Vec<Arc<TimelineEvent>> {
        self.0.timeline.kept.lock().iter().cloned().collect()
    }

    /// The same as a list in JSON.
    pub fn timeline_json(&self) -> String {
        let events = self.timeline();
        let events: Vec<&TimelineEvent> = events.iter().map(|event| &**event).collect();
        serde_json::to_string(&events).expect("numbers and texts have a JSON form")
    }

    /// How long a shard has had the leader that it has, as far as this server saw it.
    pub fn led_for(&self, shard: ShardId) -> Duration {
        let since = self.0.timeline.led_since.lock().get(&shard.0).copied();
        since.map_or(Duration::ZERO, |since| self.now().saturating_sub(since))
    }

    /// Events of the failover timeline as they happen.
    pub fn timeline_feed(&self) -> broadcast::Receiver<Arc<TimelineEvent>> {
        self.0.timeline.feed.subscribe()
    }

    /// Tells listeners of the feed what a client did, and nobody else. It is not kept: what clients do at will must not push out of the
    /// timeline what happened to leaders.
    pub fn tell_listeners(&self, shard: ShardId, master: String, event: &str, payload: String) {
        self.0.timeline.publish(Arc::new(TimelineEvent {
            id: 0,
            at_ms: self.wall_ms(),
            shard: shard.0,
            master,
            event: event.to_owned(),
            payload,
            cause: "a client asked for it".to_owned(),
        }));
    }

    /// How many events [`timeline_feed`](Node::timeline_feed) has carried since the start.
    pub fn events_told(&self) -> u64 {
        self.0.timeline.told.load(Ordering::Relaxed)
    }

    /// This server answers Sentinel's commands at this port, and tells the others; 0 for nowhere.
    pub fn announce_sentinel(&self, port: u16) {
        self.0.introductions.own_port.store(port.into(), Ordering::Relaxed);
    }

    /// All servers of the topology, this one included.
    pub fn peers(&self) -> BTreeMap<ServerId, Peer> {
        let Some(view) = self.view() else { return BTreeMap::new() };
        let identity = self.server();
        let own_port = u16::try_from(self.0.introductions.own_port()).unwrap_or(0);
        let others = self.0.introductions.others.lock();
        let peer = |id: ServerId| {
            if identity.server_id == Some(id) {
                let sentinel = SentinelId { id: identity.server_hex.clone(), port: own_port };
                return Peer { sentinel, heard: Some(Duration::ZERO) };
            }
            let told = others.get(&id);
            let hex = told.map(|told| told.server_hex.clone()).filter(|hex| !hex.is_empty());
            let sentinel = SentinelId {
                id: hex.unwrap_or_else(|| format!("{:040x}", id.0)),
                port: told.and_then(|told| told.port).unwrap_or(own_port),
            };
            Peer { sentinel, heard: self.since_heard(id) }
        };
        view.topology.servers.keys().map(|id| (*id, peer(*id))).collect()
    }

    /// Watches what happens, for as long as the node lives.
    pub(crate) async fn watch_failovers(self, me: ServerId) {
        // A leader keeps its lease this long after it was heard last, so an election that took the lead from it is later still.
        let lease = Duration::from_millis(self.config().timing.election_max_ms);
        let suspicion = LEAST_SUSPICION.max(lease * 2 / 3);
        let mut watch = FailoverWatch::new(MasterNames::new(&self.config().master_name));
        let mut views = self.views();
        let began = self.now();
        let mut turn = tokio::time::interval(LOOK_INTERVAL);
        turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = turn.tick() => {}
                changed = views.changed() => if changed.is_err() { return },
            }
            let Some(mut view) = views.borrow_and_update().clone() else { continue };
            let peers = self.peers();
            // Who was never heard by a server that has just come has not fallen silent, nor is it suspect. And one may have been
            // heard since the view was made.
            let is_young = self.now().saturating_sub(began) < FIRST_SIGN;
            let is_quiet_for =
                |peer: &Peer, long: Duration| peer.heard.map_or(!is_young, |heard| heard >= long);
            if !view.silent.is_empty() {
                let silent = &mut Arc::make_mut(&mut view).silent;
                silent.retain(|id| peers.get(id).is_some_and(|peer| is_quiet_for(peer, lease)));
            }
            let is_suspect = |peer: &Peer| is_quiet_for(peer, suspicion);
            let suspects: BTreeSet<ServerId> =
                peers.iter().filter(|(_, peer)| is_suspect(peer)).map(|(id, _)| *id).collect();
            let sentinels = peers.into_iter().map(|(id, peer)| (id, peer.sentinel)).collect();
            let picture = Picture { view: &view, me, suspects: &suspects, sentinels: &sentinels };
            for event in watch.look(picture) {
                if event.name == "+switch-master" {
                    info!(
                        shard = event.shard.0,
                        payload = event.payload,
                        cause = event.cause,
                        "leader changed"
                    );
                }
                if ["+monitor", "+switch-master"].contains(&event.name) {
                    self.0.timeline.led_since.lock().insert(event.shard.0, self.now());
                }
                self.0.timeline.tell(self.wall_ms(), event);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(payload: &str) -> FailoverEvent {
        FailoverEvent {
            shard: ShardId(0),
            master: "mymaster".to_owned(),
            name: "+new-epoch",
            payload: payload.to_owned(),
            cause: "because".to_owned(),
        }
    }

    #[test]
    fn the_last_thousand_are_kept_and_numbered() {
        let timeline = Timeline::default();
        let mut feed = timeline.feed.subscribe();
        for n in 1..=TIMELINE_LENGTH + 5 {
            timeline.tell(7, event(&n.to_string()));
        }
        let kept = timeline.kept.lock();
        assert_eq!(kept.len(), TIMELINE_LENGTH);
        let (first, last) = (kept.front().unwrap(), kept.back().unwrap());
        assert_eq!((first.id, first.payload.as_str()), (6, "6"));
        assert_eq!((last.id, last.payload.as_str(), last.at_ms), (1005, "1005", 7));
        assert_eq!(feed.try_recv().unwrap().payload, "1");
        assert_eq!(timeline.told.load(Ordering::Relaxed), 1005);
    }

    #[test]
    fn what_others_tell_is_shown_only_if_it_looks_like_it() {
        let introductions = Introductions::default();
        let (server, hex) = (ServerId(2), "0123456789abcdef0123456789abcdef01234567");
        for (told, port, kept) in [(hex, Some(26379), hex), ("a b", Some(70_000), ""), ("", None, "")] {
            introductions.learn(server, told, port);
            let others = introductions.others.lock();
            assert_eq!(others[&server].server_hex, kept);
            assert_eq!(others[&server].port, port.filter(|port| *port < 65_536).map(|port| port as u16));
        }
    }
}
