//! Replicas that are replaced: the replicas on this server follow the topology, the members of a group follow it too, and
//! a replica whose log or data cannot be trusted asks to be replaced.
//!
//! The meta group decides that a new replica id stands in the place of an old one; each of these drivers then does its part,
//! again and again until it is done, and is safe to be interrupted anywhere:
//!
//! - *here*: the server that the new one lives on stops the old one, forgets its log and snapshots, enters the new id in
//!   `running.json` and opens it, empty ([`Node::settle_replicas`]). The old log is never opened again under any id;
//! - *on the leader of the shard*: new replicas are added as learners, and once they have the log one joint change makes them
//!   voters while the replaced ones leave ([`Node::drive_members`]). Then the meta group hears that the new one has joined;
//! - *where a replica cannot be trusted*: the leader of the meta group is asked for a new one until the topology has it
//!   ([`Node::drive_requests`]). It agrees only while another replica leads the shard, so that the last copies of
//!   something are never given up; and the topology allows no more than a minority to join at a time.
//!
//! Contract: a new replica never founds a group and never votes before a membership in its group's log makes it a voter. An
//! id that was replaced never becomes a member again.
//!
//! Replicas also come and go with servers ([`servers`]): the topology then names those that come beside those that go, and the same drivers
//! do the rest. A replica that goes votes until the one that comes has arrived, and is forgotten when the group has agreed that it is out
//! ([`Node::vacate`]).

mod servers;

pub(crate) use servers::LEFT;

use crate::contact::{Answer, Call};
use crate::meta;
use crate::node::Node;
use crate::running::RunningError;
use crate::shard::Shard;
use kvorum_cluster::{Durability, MetaCommand, ReplicaId, ServerId, ShardId, Stage, Topology};
use kvorum_proto::admin as rpc;
use kvorum_raft::{GroupId, HostError, Member, MembershipError};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tracing::{debug, error, info, warn};

/// How often the drivers look whether there is something to do.
const TURN: Duration = Duration::from_millis(200);

/// Between two requests to replace the same replica.
const REQUEST_PAUSE: Duration = Duration::from_millis(500);

/// A question to the meta group is answered by then, beside the time that it takes to see whether a leader is there; or asked
/// again: to ask twice is harmless, to wait is not.
const ASK_PATIENCE: Duration = Duration::from_secs(1);

/// A step of a change of members is committed by then, or tried again.
const STEP_PATIENCE: Duration = Duration::from_secs(2);

/// Pause after a replica could not be opened.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);

/// The replicas here that are to be replaced.
#[derive(Default)]
pub(crate) struct Requests {
    wanted: Mutex<BTreeMap<ShardId, Request>>,
    /// A doubt was put aside.
    changed: Notify,
    /// Groups whose replica here has left, and of which nothing is left on this server.
    forgotten: Mutex<BTreeSet<u64>>,
    /// Who said last that it leads a shard and holds its lease, and when, by the environment's clock.
    serving: Mutex<BTreeMap<ShardId, (ReplicaId, Duration)>>,
}

#[derive(Clone)]
struct Request {
    replica: ReplicaId,
    why: String,
    /// What was answered last.
    refusal: Option<String>,
}

/// A replica that is not opened: its log is in doubt, or it has lost something.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Unopened {
    pub(crate) shard: ShardId,
    pub(crate) replica: ReplicaId,
    /// Why, and why it is not replaced yet.
    pub(crate) why: String,
}

/// Why a replica could not be opened.
#[derive(Debug, thiserror::Error)]
enum SettleError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Running(#[from] RunningError),
}

/// The members that the topology gives a shard's group.
pub(crate) fn members(topology: &Topology, shard: &kvorum_cluster::Shard) -> BTreeMap<u64, Member> {
    let members = shard.members().filter_map(|replica| {
        let server = topology.server(replica.server)?;
        Some((replica.id.0, Member { server: server.id.0, addr: server.peer_addr() }))
    });
    members.collect()
}

impl Node {
    /// Starts the drivers.
    pub(crate) fn follow_members(&self, me: ServerId) {
        self.spawn(self.clone().settle_replicas(me));
        self.spawn(self.clone().drive_members());
        self.spawn(self.clone().drive_requests(me));
    }

    /// Opens a replica for every shard that the topology puts on this server, in the place of an older one.
    async fn settle_replicas(self, me: ServerId) {
        let mut views = self.views();
        loop {
            let view = views.borrow_and_update().clone();
            let mut failed = false;
            for shard in view.iter().flat_map(|view| &view.topology.shards) {
                let topology = &view.as_ref().expect("its shards are looked at").topology;
                if let Err(error) = self.settle_replica(topology, shard, me).await {
                    error!(shard = shard.id.0, %error, "cannot open a replica");
                    failed = true;
                }
            }
            let again = async {
                if failed {
                    tokio::time::sleep(FAILURE_PAUSE).await;
                } else {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                changed = views.changed() => if changed.is_err() { return },
                () = self.0.requests.changed.notified() => {}
                () = again => {}
            }
        }
    }

    async fn settle_replica(
        &self,
        topology: &Arc<Topology>,
        shard: &kvorum_cluster::Shard,
        me: ServerId,
    ) -> Result<(), SettleError> {
        let Some(named) = shard.replica_on(me) else { return self.vacate(topology, shard).await };
        if let Some(open) = self.shard(shard.id) {
            // Ids only grow: a lower one is from an older topology.
            if open.replica() >= named.id {
                return Ok(());
            }
            self.close_replica(open).await;
        }
        let tenant = self.0.running.tenant(shard.group);
        match &tenant {
            // A cached topology may be old, and the meta group's log tells the whole story once more after a start.
            Some(tenant) if tenant.replica > named.id => return Ok(()),
            // It left, and this topology does not know it yet.
            Some(tenant) if tenant.replica == named.id && tenant.gone => return Ok(()),
            Some(tenant) if tenant.replica == named.id => {
                if let Some(doubt) = &tenant.doubt {
                    self.request(shard.id, named.id, doubt.clone());
                    return Ok(());
                }
            }
            _ => {
                // A founder's log may be older than `running.json`. Anything else that lies here is another replica's.
                if tenant.is_some() || named.stage != Stage::Founder {
                    // Noted first: an old topology must not open the old one once more, without what it had.
                    self.0.running.vacate(shard.group)?;
                    self.0.host.forget(GroupId(shard.group)).await?;
                }
                let lazy = topology.durability == Durability::QuorumMemory;
                self.0.running.occupy(shard.group, named.id, lazy)?;
                self.0.requests.forgotten.lock().remove(&shard.group);
            }
        }
        match self.open_replica(topology, shard, named.id).await {
            Ok(()) => Ok(()),
            Err(error @ HostError::Lost { .. }) => {
                self.request(shard.id, named.id, error.to_string());
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// No replica of a shard is to be here. One that was has left, by an agreement of its group, or was replaced by one elsewhere while
    /// its server was away: it is closed and forgotten. Its id stays in `running.json`, so that no old topology opens it again.
    async fn vacate(&self, topology: &Topology, shard: &kvorum_cluster::Shard) -> Result<(), SettleError> {
        // One with a higher id is from a newer topology.
        let is_known = |replica: ReplicaId| replica <= topology.last_replica();
        if let Some(open) = self.shard(shard.id).filter(|open| is_known(open.replica())) {
            self.close_replica(open).await;
        }
        let tenant = self.0.running.tenant(shard.group).filter(|tenant| is_known(tenant.replica));
        let Some(tenant) = tenant else { return Ok(()) };
        if self.0.requests.forgotten.lock().contains(&shard.group) {
            return Ok(());
        }
        // The note first: without its log a replica that is not known to be gone would begin anew.
        self.0.running.vacate(shard.group)?;
        self.0.host.forget(GroupId(shard.group)).await?;
        self.0.requests.forgotten.lock().insert(shard.group);
        self.0.requests.wanted.lock().remove(&shard.id);
        info!(shard = shard.id.0, replica = tenant.replica.0, "replica forgotten: it has left its shard");
        Ok(())
    }

    async fn close_replica(&self, shard: Shard) {
        self.0.shards.send_modify(|shards| {
            shards.remove(&shard.id());
        });
        self.hand_over_shard(&shard).await;
        shard.group().shutdown().await;
        info!(
            shard = shard.id().0,
            replica = shard.replica().0,
            "replica closed: it has no place here any more"
        );
    }

    /// Brings the members of the groups that are led here in line with the topology.
    async fn drive_members(self) {
        let mut turn = tokio::time::interval(TURN);
        turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut told = BTreeMap::new();
        loop {
            turn.tick().await;
            let Some(view) = self.view() else { continue };
            let led = self.led();
            told.retain(|id, _| led.iter().any(|shard| shard.id() == *id));
            let outcomes = led.iter().map(|shard| self.drive_group(&view.topology, shard));
            let outcomes = futures::future::join_all(outcomes).await;
            for (shard, outcome) in led.iter().map(Shard::id).zip(outcomes) {
                match outcome {
                    Ok(()) => _ = told.remove(&shard),
                    // Said once.
                    Err(reason) if told.get(&shard) == Some(&reason) => {}
                    Err(reason) => {
                        info!(shard = shard.0, reason, "members are not as the topology has them yet");
                        told.insert(shard, reason);
                    }
                }
            }
        }
    }

    async fn drive_group(&self, topology: &Topology, shard: &Shard) -> Result<(), String> {
        let Some(placed) = topology.shard(shard.id()) else { return Ok(()) };
        let me = shard.replica();
        let mut target = members(topology, placed);
        let known = shard.status().members.clone();
        let highest = known.keys().next_back().copied();
        // Ids only grow. Whoever does not know of a member that the group has, or would bring one back, has an old topology.
        let old = highest > Some(topology.last_replica().0)
            || target.keys().any(|replica| !known.contains_key(replica) && Some(*replica) < highest);
        // A leader that is on its way out stays a voter until another leads.
        let leaves =
            placed.replicas.iter().find(|replica| replica.id == me && replica.stage == Stage::Outgoing);
        if let Some(leaver) = leaves {
            let server = topology.server(leaver.server).ok_or("it is on no server")?;
            target.insert(me.0, Member { server: server.id.0, addr: server.peer_addr() });
        }
        if old || !target.contains_key(&me.0) {
            return Ok(());
        }
        match shard.group().set_members(&target, STEP_PATIENCE).await {
            Ok(()) => {}
            // Somebody else's turn, or the next.
            Err(MembershipError::NotLeader { .. } | MembershipError::InProgress) => return Ok(()),
            Err(MembershipError::Lagging { replica, .. }) => {
                return Err(format!("replica {replica} does not have all data yet"));
            }
            Err(error) => return Err(error.to_string()),
        }
        if leaves.is_some() {
            return self.hand_on(placed, shard).await;
        }
        let from_server = self.server().server_id.map_or(0, |id| id.0);
        let (cluster_id, id) = (topology.cluster_id.clone(), u32::from(placed.id.0));
        for replica in &placed.replicas {
            let call = match replica.stage {
                Stage::Founder | Stage::Member => continue,
                Stage::Joining | Stage::Incoming => {
                    info!(shard = id, replica = replica.id.0, "replica has all data and votes");
                    let (cluster_id, replica) = (cluster_id.clone(), replica.id.0);
                    Call::Joined(rpc::JoinedRequest { cluster_id, from_server, shard: id, replica })
                }
                Stage::Outgoing => {
                    info!(shard = id, replica = replica.id.0, "replica votes no more");
                    let left = rpc::ReplicaLeft { shard: id, replica: replica.id.0 };
                    let change = Some(rpc::change_request::Change::Left(left));
                    Call::Change(rpc::ChangeRequest { cluster_id: cluster_id.clone(), from_server, change })
                }
            };
            self.ask_meta(topology, call).await?;
        }
        Ok(())
    }

    /// A leader that is on its way out hands over: to the preferred leader, if that is there.
    async fn hand_on(&self, placed: &kvorum_cluster::Shard, shard: &Shard) -> Result<(), String> {
        let silence = self.silence();
        let mut heirs = placed.members().filter(|replica| self.heard_within(replica.server, silence));
        let heir = heirs.next().ok_or("nobody is there to lead in the place of one that leaves")?.id;
        shard.group().transfer_leader(heir.0).await.map_err(|error| error.to_string())?;
        info!(shard = placed.id.0, heir = heir.0, "leadership handed on by a replica that leaves");
        Ok(())
    }

    /// Has a replica of this server replaced by a new one, as soon as that is possible. It is for the caller to see to it that the
    /// replica serves nobody until then.
    pub(crate) fn request_replacement(&self, shard: &Shard, why: String) {
        self.request(shard.id(), shard.replica(), why);
    }

    fn request(&self, shard: ShardId, replica: ReplicaId, why: String) {
        {
            let mut wanted = self.0.requests.wanted.lock();
            if wanted.get(&shard).is_some_and(|known| known.replica >= replica) {
                return;
            }
            wanted.insert(shard, Request { replica, why: why.clone(), refusal: None });
        }
        warn!(shard = shard.0, replica = replica.0, why, "a new replica is wanted in the place of this one");
    }

    /// The replicas here that cannot be opened.
    pub(crate) fn unopened(&self) -> Vec<Unopened> {
        let wanted = self.0.requests.wanted.lock();
        let unopened = wanted.iter().filter(|(shard, request)| {
            self.shard(**shard).is_none_or(|open| open.replica() != request.replica)
        });
        unopened
            .map(|(&shard, Request { replica, why, refusal })| Unopened {
                shard,
                replica: *replica,
                why: match refusal {
                    None => why.clone(),
                    Some(refusal) => format!("{why}; not replaced yet: {refusal}"),
                },
            })
            .collect()
    }

    /// Puts the doubts about logs on this server aside; their replicas are opened with what is there.
    pub(crate) fn trust_logs(&self, shard: Option<ShardId>, by: &str) -> Result<Vec<ShardId>, String> {
        let view = self.view().ok_or("this server belongs to no cluster")?;
        let mut trusted = Vec::new();
        for doubtful in self.unopened() {
            let placed = view
                .topology
                .shard(doubtful.shard)
                .filter(|_| shard.is_none_or(|shard| shard == doubtful.shard));
            let Some(group) = placed.map(|placed| placed.group) else { continue };
            let tenant = self.0.running.tenant(group);
            if tenant.is_none_or(|tenant| tenant.replica != doubtful.replica || tenant.doubt.is_none()) {
                continue;
            }
            self.0.running.trust(group, by, self.wall_ms()).map_err(|error| error.to_string())?;
            self.0.requests.wanted.lock().remove(&doubtful.shard);
            warn!(
                shard = doubtful.shard.0,
                replica = doubtful.replica.0,
                by,
                doubt = doubtful.why,
                "an operator trusts a log that may have lost acknowledged writes"
            );
            trusted.push(doubtful.shard);
        }
        if trusted.is_empty() {
            return Err(match shard {
                Some(shard) => format!("no log of shard {shard} is in doubt on this server"),
                None => "no log is in doubt on this server".to_owned(),
            });
        }
        self.0.requests.changed.notify_one();
        Ok(trusted)
    }

    /// Asks the leader of the meta group for what is wanted until the topology has it.
    async fn drive_requests(self, me: ServerId) {
        let mut turn = tokio::time::interval(REQUEST_PAUSE);
        turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            turn.tick().await;
            let Some(view) = self.view() else { continue };
            let wanted = self.0.requests.wanted.lock().clone();
            for (id, request) in wanted {
                let named = view.topology.shard(id).and_then(|shard| shard.replica_on(me));
                let refusal = if named.is_none_or(|named| named.id > request.replica) {
                    None
                } else {
                    let ask = rpc::ReplaceRequest {
                        cluster_id: view.topology.cluster_id.clone(),
                        from_server: me.0,
                        shard: id.0.into(),
                        replica: request.replica.0,
                        why: request.why.clone(),
                    };
                    match self.ask_meta(&view.topology, Call::Replace(ask)).await {
                        // The topology that says so is on its way.
                        Ok(_) => continue,
                        Err(refusal) => Some(refusal),
                    }
                };
                let mut wanted = self.0.requests.wanted.lock();
                let Some(known) = wanted.get_mut(&id).filter(|known| known.replica == request.replica) else {
                    continue;
                };
                match refusal {
                    None => _ = wanted.remove(&id),
                    Some(refusal) if known.refusal.as_ref() == Some(&refusal) => {}
                    Some(refusal) => {
                        warn!(shard = id.0, replica = request.replica.0, refusal, "not replaced yet");
                        known.refusal = Some(refusal);
                    }
                }
            }
        }
    }

    pub(crate) async fn ask_meta(&self, topology: &Topology, call: Call) -> Result<Answer, String> {
        let leader = self.meta_group().and_then(|group| group.status().borrow().leader);
        let leader = ServerId(leader.ok_or("the meta group has no leader")?);
        let patience = self.second_look() + ASK_PATIENCE;
        if self.server().server_id == Some(leader) {
            let answer = tokio::time::timeout(patience, self.answer(call)).await;
            return answer.map_err(|_| "no majority of the meta group answered in time")?;
        }
        let server = topology.server(leader).ok_or_else(|| format!("there is no server {leader}"))?;
        self.contact().call(leader, &server.peer_addr(), call, patience).await
    }

    /// A server said that its replica leads a shard and holds the lease.
    pub(crate) fn learn_serving(&self, shard: ShardId, replica: ReplicaId) {
        self.0.requests.serving.lock().insert(shard, (replica, self.now()));
    }

    /// The replica that leads a shard and serves, as of very lately.
    fn serving(&self, shard: ShardId) -> Option<ReplicaId> {
        if let Some(here) = self.shard(shard).filter(|here| here.serves_for_sure()) {
            return Some(here.replica());
        }
        let (replica, heard) = self.0.requests.serving.lock().get(&shard).copied()?;
        (self.now().saturating_sub(heard) <= self.silence()).then_some(replica)
    }

    /// Whether another replica leads the shard and serves, now and after all that a leader that has just gone is still taken for one.
    async fn is_led_without(&self, shard: ShardId, replica: ReplicaId) -> bool {
        for pause in [Duration::ZERO, self.second_look()] {
            tokio::time::sleep(pause).await;
            if self.serving(shard).is_none_or(|leader| leader == replica) {
                return false;
            }
        }
        true
    }

    /// Whoever was not heard for this long is not there.
    pub(crate) fn silence(&self) -> Duration {
        Duration::from_millis(self.config().timing.election_max_ms)
    }

    /// A leader that has just gone is not heard any more after this.
    fn second_look(&self) -> Duration {
        self.silence() + 2 * TURN
    }

    /// On the leader of the meta group: puts a new replica in the place of one.
    pub(crate) async fn answer_replace(
        &self,
        request: rpc::ReplaceRequest,
    ) -> Result<rpc::ReplaceReply, String> {
        let (shard, replica) = named(request.shard, request.replica)?;
        let from = ServerId(request.from_server);
        let view = self.view_of(&request.cluster_id)?;
        let placed = view.topology.shard(shard).ok_or_else(|| format!("there is no shard {shard}"))?;
        if placed.replica_on(from).is_some_and(|there| there.id > replica) {
            return Ok(rpc::ReplaceReply {});
        }
        if placed.replica_on(from).is_none_or(|there| there.id != replica) {
            return Err(format!("replica {replica} of shard {shard} is not on server {from}"));
        }
        if placed.replicas.len() == 1 {
            return Err("the shard has no other replica".to_owned());
        }
        // Whoever replaces a replica gives its log up for good. Without a leader nobody knows that it is not needed. A leader
        // that died at the same moment is not heard any more by the second look.
        if !self.is_led_without(shard, replica).await {
            return Err("the shard has no leader without it".to_owned());
        }
        let view = self.view_of(&request.cluster_id)?;
        let command = MetaCommand::ReplaceReplica {
            shard,
            old: replica,
            server: from,
            id_seed: self.environment().draw(),
        };
        info!(
            shard = shard.0,
            replica = replica.0,
            server = from.0,
            why = request.why,
            "asked to replace a replica"
        );
        self.change_topology(&view.topology, &command).await?;
        Ok(rpc::ReplaceReply {})
    }

    /// On the leader of the meta group: a replica has joined.
    pub(crate) async fn answer_joined(
        &self,
        request: rpc::JoinedRequest,
    ) -> Result<rpc::JoinedReply, String> {
        let (shard, replica) = named(request.shard, request.replica)?;
        let view = self.view_of(&request.cluster_id)?;
        self.change_topology(&view.topology, &MetaCommand::ReplicaJoined { shard, replica }).await?;
        Ok(rpc::JoinedReply {})
    }

    fn view_of(&self, cluster_id: &str) -> Result<Arc<kvorum_cluster::View>, String> {
        self.view().filter(|view| view.topology.cluster_id == cluster_id).ok_or("another cluster".to_owned())
    }

    async fn change_topology(&self, topology: &Topology, command: &MetaCommand) -> Result<(), String> {
        let group = self.meta_group().filter(|group| group.status().borrow().ready);
        let group = group.ok_or("this server does not lead the meta group")?;
        if command.applied_to(topology).map_err(|refusal| refusal.to_string())?.is_none() {
            return Ok(());
        }
        if let Some(why) = self.0.checks.too_early_for(topology, command.feature_level()) {
            return Err(why);
        }
        meta::propose(&group, command).await.map_err(|error| error.to_string())?;
        debug!(command = meta::name(command), "proposed");
        Ok(())
    }
}

fn named(shard: u32, replica: u64) -> Result<(ShardId, ReplicaId), String> {
    let shard = u16::try_from(shard).map_err(|_| format!("there is no shard {shard}"))?;
    Ok((ShardId(shard), ReplicaId(replica)))
}

#[cfg(test)]
mod tests;
