//! Servers that come and go: what the leader of the meta group does so that the cluster becomes what the topology says it shall be.
//!
//! An operator, or a server's long absence, changes the topology (who joins, leaves, is away or gone: [`Tenure`]). What follows from that is
//! a row of steps ([`spread::due`]), each an entry of the meta log, each taken only when it is safe at this moment and the ones before are done. So whoever
//! leads the meta group next goes on, and nothing is remembered but in the log.
//!
//! The members of the meta group follow the topology in the same way: every server is one, an odd number of up to five vote
//! ([`spread::meta_voters`]).
//!
//! Contract: a replica that is lost is given up only while another leads its shard and serves. One that goes while its server is up votes
//! until the one that comes has arrived. No more than [`AT_A_TIME`] replicas of the cluster, and one of a shard, are on their way.

use super::{STEP_PATIENCE, TURN, named};
use crate::contact::{Answer, Call};
use crate::node::{DOWN_AFTER, Node};
use kvorum_cluster::spread::{self, Step};
use kvorum_cluster::{MetaCommand, ServerId, Tenure, Topology};
use kvorum_proto::admin as rpc;
use kvorum_proto::admin::change_request::Change;
use kvorum_raft::{Group, Member};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tracing::{debug, info, warn};

/// Replicas that are on their way in the cluster at one time.
const AT_A_TIME: usize = 2;

/// What a server is told that is none of the cluster any more.
pub(crate) const LEFT: &str = "this server has left the cluster";

impl Node {
    /// Drives the servers that come and go, while this server leads the meta group.
    pub(crate) async fn drive_servers(self, group: Group, me: ServerId) {
        let mut turn = tokio::time::interval(TURN);
        turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut down_since = BTreeMap::new();
        let mut told = None;
        loop {
            turn.tick().await;
            let Some(view) = self.view().filter(|_| group.status().borrow().ready) else {
                // How long somebody was away is known to who has led all the time.
                down_since.clear();
                continue;
            };
            let topology = &view.topology;
            let outcome = async {
                self.note_absences(topology, &mut down_since).await?;
                self.drive_meta_members(&group, topology, me).await?;
                self.take_step(&group, topology, me).await
            };
            match outcome.await {
                Ok(()) => told = None,
                Err(reason) if told.as_ref() == Some(&reason) => {}
                Err(reason) => {
                    info!(reason, "servers are not as the topology has them yet");
                    told = Some(reason);
                }
            }
        }
    }

    /// Servers that are down for long are away, and those that are back settle in again.
    async fn note_absences(
        &self,
        topology: &Topology,
        down_since: &mut BTreeMap<ServerId, Duration>,
    ) -> Result<(), String> {
        let (now, patience) = (self.now(), self.config().server_replace_after);
        down_since.retain(|server, _| topology.server(*server).is_some_and(|server| !server.up));
        for server in topology.servers.values() {
            let tenure = if server.up {
                (server.tenure == Tenure::Away).then_some(Tenure::Settled)
            } else {
                let since = *down_since.entry(server.id).or_insert(now);
                let long = !patience.is_zero() && now.saturating_sub(since) >= patience;
                (long && server.tenure.takes_replicas()).then_some(Tenure::Away)
            };
            let Some(tenure) = tenure else { continue };
            match tenure {
                Tenure::Away => warn!(
                    server = server.id.0,
                    "server is away for long: its replicas are made anew where there is room"
                ),
                _ => info!(server = server.id.0, "server is back"),
            }
            return self
                .change_topology(topology, &MetaCommand::SetTenure { server: server.id, tenure })
                .await;
        }
        Ok(())
    }

    /// Brings the members of the meta group in line with the topology.
    async fn drive_meta_members(
        &self,
        group: &Group,
        topology: &Topology,
        me: ServerId,
    ) -> Result<(), String> {
        let status = group.status().borrow().clone();
        let now: BTreeSet<ServerId> = status.voters.iter().copied().map(ServerId).collect();
        let voters = spread::meta_voters(topology, &now);
        let member =
            |server: &kvorum_cluster::Server| Member { server: server.id.0, addr: server.peer_addr() };
        let mut target: BTreeMap<u64, Member> =
            topology.servers.values().map(|server| (server.id.0, member(server))).collect();
        // A server that left is to hear of that.
        for (id, member) in status.members.iter().filter(|(id, _)| topology.server(ServerId(**id)).is_none())
        {
            let has_all = status.matched.get(id).is_some_and(|&matched| matched >= status.last);
            if *id == me.0 || !has_all && self.heard_within(ServerId(*id), DOWN_AFTER) {
                target.insert(*id, member.clone());
            }
        }
        // Who leads votes until another leads.
        let leaves = !voters.contains(&me);
        let voting: BTreeSet<u64> =
            voters.iter().copied().chain(leaves.then_some(me)).map(|server| server.0).collect();
        if status.members.keys().ne(target.keys()) || *status.voters != voting {
            group
                .set_voters(&target, &voting, STEP_PATIENCE)
                .await
                .map_err(|error| format!("meta group: {error}"))?;
            debug!(?voting, members = target.len(), "members of the meta group are as the topology has them");
        }
        if leaves {
            let heir = voters.iter().find(|server| self.heard_within(**server, self.silence()));
            let heir =
                heir.ok_or("nobody is there to lead the meta group in the place of one that leaves")?;
            group.transfer_leader(heir.0).await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Takes the first step that is due and safe.
    async fn take_step(&self, group: &Group, topology: &Topology, me: ServerId) -> Result<(), String> {
        for step in spread::due(topology, AT_A_TIME) {
            if !self.is_safe(group, step, me).await {
                continue;
            }
            // It took a while to see that, and the step may be due no more.
            let Some(view) = self.view() else { return Ok(()) };
            if view.topology.version != topology.version {
                return Ok(());
            }
            info!(?step, "servers come or go: next step");
            return self.change_topology(topology, &step.command(self.environment().draw())).await;
        }
        Ok(())
    }

    async fn is_safe(&self, group: &Group, step: Step, me: ServerId) -> bool {
        if let Step::Remove(server) = step {
            return server != me && !group.status().borrow().voters.contains(&server.0);
        }
        match step.needs_leader() {
            None => true,
            Some((shard, None)) => self.serving(shard).is_some(),
            // Its log is given up for good: without a leader nobody knows that it is not needed.
            Some((shard, Some(lost))) => self.is_led_without(shard, lost).await,
        }
    }

    /// Has the leader of the meta group change who is in the cluster, or what lives where.
    ///
    /// # Errors
    /// The reason for the person who asked.
    pub async fn change(&self, change: Change) -> Result<rpc::ChangeReply, String> {
        let view = self.view().ok_or("this server belongs to no cluster")?;
        let from_server = self.server().server_id.map_or(0, |id| id.0);
        let cluster_id = view.topology.cluster_id.clone();
        let request = rpc::ChangeRequest { cluster_id, from_server, change: Some(change) };
        match self.ask_meta(&view.topology, Call::Change(request)).await? {
            Answer::Change(reply) => Ok(reply),
            other => Err(format!("an answer to another question: {other:?}")),
        }
    }

    /// On the leader of the meta group: changes who is in the cluster, or what lives where.
    pub(crate) async fn answer_change(
        &self,
        request: rpc::ChangeRequest,
    ) -> Result<rpc::ChangeReply, String> {
        let view = self.view_of(&request.cluster_id)?;
        let topology = &view.topology;
        let change = request.change.ok_or("nothing is to be changed")?;
        // Just after a start, and an operator need not know that.
        let all_told = async {
            while !self.0.checks.all_told(topology) {
                tokio::time::sleep(TURN).await;
            }
        };
        let _ = tokio::time::timeout(DOWN_AFTER, all_told).await;
        if let Change::Rebalance(_) = change {
            for server in topology.servers.values().filter(|server| server.tenure == Tenure::Settled) {
                let command = MetaCommand::SetTenure { server: server.id, tenure: Tenure::Settling };
                self.change_topology(topology, &command).await?;
            }
            return Ok(rpc::ChangeReply::default());
        }
        let command = command_for(topology, change, |server| self.heard_within(server, DOWN_AFTER))?;
        let command = match command {
            Asked::Command(command) => command,
            Asked::KnownAs(server) => return Ok(rpc::ChangeReply { server: server.0 }),
        };
        self.change_topology(topology, &command).await?;
        let MetaCommand::AddServer { hex, .. } = command else { return Ok(rpc::ChangeReply::default()) };
        let added = self.view().and_then(|view| {
            let mut servers = view.topology.servers.values();
            servers.find(|server| server.hex.as_ref() == Some(&hex)).map(|server| server.id.0)
        });
        let server = added.ok_or("the server was not added: the topology has changed meanwhile")?;
        Ok(rpc::ChangeReply { server })
    }
}

/// What a request comes to.
enum Asked {
    Command(MetaCommand),
    /// The server is in already.
    KnownAs(ServerId),
}

/// What is asked for as an entry of the meta log; the reason, if it makes no sense now.
fn command_for(
    topology: &Topology,
    change: Change,
    is_heard: impl Fn(ServerId) -> bool,
) -> Result<Asked, String> {
    let known = |id: u64| topology.server(ServerId(id)).ok_or_else(|| format!("there is no server {id}"));
    let command = match change {
        Change::Add(new) => return added(topology, new),
        Change::Leave(rpc::Leave { server, fewer_replicas }) => {
            let server = known(server)?;
            if !server.up {
                return Err(format!(
                    "server {} is down: it cannot hand anything over; see remove",
                    server.id
                ));
            }
            if let Some(why) = spread::cannot_leave(topology, server.id, fewer_replicas) {
                return Err(format!("server {} cannot leave: {why}", server.id));
            }
            let tenure = if fewer_replicas { Tenure::LeavingWithFewer } else { Tenure::Leaving };
            MetaCommand::SetTenure { server: server.id, tenure }
        }
        Change::Remove(rpc::Remove { server }) => {
            let server = known(server)?;
            if server.up || is_heard(server.id) {
                return Err(format!("server {} is up: let it leave", server.id));
            }
            if let Some(why) = spread::cannot_remove(topology, server.id) {
                return Err(format!("server {} cannot be removed: {why}", server.id));
            }
            MetaCommand::SetTenure { server: server.id, tenure: Tenure::Gone }
        }
        Change::Prefer(rpc::Prefer { shard, replica }) => {
            let (shard, replica) = named(shard, replica)?;
            MetaCommand::Prefer { shard, replica }
        }
        Change::Want(rpc::WantReplicas { replicas }) => {
            let replicas =
                u16::try_from(replicas).map_err(|_| format!("{replicas} replicas are too many"))?;
            MetaCommand::WantReplicas { replicas }
        }
        Change::Left(rpc::ReplicaLeft { shard, replica }) => {
            let (shard, replica) = named(shard, replica)?;
            MetaCommand::ReplicaLeft { shard, replica }
        }
        Change::Rebalance(_) => return Err("it is no single entry".to_owned()),
    };
    Ok(Asked::Command(command))
}

fn added(topology: &Topology, new: rpc::AddServer) -> Result<Asked, String> {
    let rpc::AddServer { server_hex, host, base_port, peer, rebalance } = new;
    let base_port = u16::try_from(base_port).map_err(|_| format!("{base_port} is no port"))?;
    let mut servers = topology.servers.values();
    if let Some(known) = servers.clone().find(|server| server.hex.as_ref() == Some(&server_hex)) {
        return Ok(Asked::KnownAs(known.id));
    }
    if let Some(there) = servers.find(|server| server.host == host && server.base_port == base_port) {
        #[cfg(feature = "bugs")]
        if kvorum_bugs::has(kvorum_bugs::Bug::WipedServerVotes) {
            return Ok(Asked::KnownAs(there.id));
        }
        return Err(format!(
            "server {} is at that address, and this is not it any more: it lost its data directory, or another took its \
             place. When server {} is gone for good, remove it first",
            there.id, there.id
        ));
    }
    let tenure = if rebalance { Tenure::Settling } else { Tenure::Settled };
    let peer = Some(peer).filter(|peer| !peer.is_empty());
    Ok(Asked::Command(MetaCommand::AddServer { hex: server_hex, host, base_port, peer, tenure }))
}
