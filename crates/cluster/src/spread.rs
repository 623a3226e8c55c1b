//! What is to be done next so that every replica is where it should be: when servers come, leave, or are lost.
//!
//! Contract: pure functions of the topology, which says what is wanted (the [`Tenure`] of each server, how many replicas a shard shall
//! have) and how far it is. Whoever drives takes the first step that is possible, has it entered in the meta log, and asks again; so
//! it does not matter who drives, nor who did before. Applied one after the other, the steps come to an end, and then nobody is on
//! its way, no server that leaves has a replica that could be elsewhere, and where a server settles in, no server has two replicas, or two
//! preferred leaders, more than another.
//!
//! Left out: whether a step is safe at this moment (does somebody lead the shard without the replica that is lost?), and how much it has to
//! copy: all replicas count alike.

use crate::{MetaCommand, Replica, ReplicaId, ServerId, Shard, ShardId, Stage, Tenure, Topology};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Voting members that the meta group has at most.
pub const META_VOTERS_MAX: usize = 5;

/// One change of the topology.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// A replica that is lost is made anew on a server.
    Replace {
        /// The shard.
        shard: ShardId,
        /// The replica that is lost.
        old: ReplicaId,
        /// Where the new one goes.
        server: ServerId,
    },
    /// A replica that is lost is given up.
    Drop {
        /// The shard.
        shard: ShardId,
        /// The replica that is lost.
        replica: ReplicaId,
    },
    /// A replica moves to another server.
    Move {
        /// The shard.
        shard: ShardId,
        /// The replica that goes.
        old: ReplicaId,
        /// Where the new one goes.
        server: ServerId,
    },
    /// A shard gets one replica more.
    Add {
        /// The shard.
        shard: ShardId,
        /// Where it goes.
        server: ServerId,
    },
    /// A shard gets one replica less.
    Retire {
        /// The shard.
        shard: ShardId,
        /// The replica that goes.
        replica: ReplicaId,
    },
    /// A replica becomes the preferred leader of its shard.
    Prefer {
        /// The shard.
        shard: ShardId,
        /// The replica.
        replica: ReplicaId,
    },
    /// A server has its share.
    Settle(ServerId),
    /// A server that is on its way out has nothing any more.
    Remove(ServerId),
}

impl Step {
    /// The entry of the meta log; a new node id is drawn from `id_seed`.
    pub fn command(self, id_seed: u64) -> MetaCommand {
        match self {
            Step::Replace { shard, old, server } => {
                MetaCommand::ReplaceReplica { shard, old, server, id_seed }
            }
            Step::Drop { shard, replica } => MetaCommand::DropReplica { shard, replica },
            Step::Move { shard, old, server } => MetaCommand::MoveReplica { shard, old, server, id_seed },
            Step::Add { shard, server } => MetaCommand::AddReplica { shard, server, id_seed },
            Step::Retire { shard, replica } => MetaCommand::RetireReplica { shard, replica },
            Step::Prefer { shard, replica } => MetaCommand::Prefer { shard, replica },
            Step::Settle(server) => MetaCommand::SetTenure { server, tenure: Tenure::Settled },
            Step::Remove(server) => MetaCommand::RemoveServer { server },
        }
    }

    /// The shard that has to be led for it, and by another replica than this one if there is one.
    pub fn needs_leader(self) -> Option<(ShardId, Option<ReplicaId>)> {
        match self {
            Step::Replace { shard, old, .. } => Some((shard, Some(old))),
            Step::Drop { shard, replica } => Some((shard, Some(replica))),
            Step::Move { shard, .. } | Step::Add { shard, .. } | Step::Retire { shard, .. } => {
                Some((shard, None))
            }
            Step::Prefer { .. } | Step::Settle(_) | Step::Remove(_) => None,
        }
    }
}

/// The steps that are due, each possible on its own, the most urgent first. No more than `at_a_time` replicas are on their way in the
/// cluster, and one in each shard, but those that have to be replaced once more.
pub fn due(topology: &Topology, at_a_time: usize) -> Vec<Step> {
    let load = Load::of(topology);
    let mut steps = lost(topology, &load);
    let under_way = topology.all_replicas().filter(|(_, replica)| !replica.stage.is_settled()).count();
    // One that moves is two: the one that comes and the one that goes.
    if under_way < 2 * at_a_time {
        steps.extend(parting(topology, &load));
        steps.extend(counted(topology, &load));
        let settling = topology.servers.values().filter(|server| server.tenure == Tenure::Settling);
        let settling: Vec<ServerId> = settling.filter(|server| server.up).map(|server| server.id).collect();
        if !settling.is_empty() && steps.is_empty() {
            match levelling(topology, &load).or_else(|| preferring(topology)) {
                Some(step) => steps.push(step),
                None if under_way == 0 => steps.extend(settling.into_iter().map(Step::Settle)),
                None => {}
            }
        }
    }
    let gone = topology.servers.values().filter(|server| server.tenure.is_parting());
    let empty = gone.filter(|server| topology.replicas_on(server.id).next().is_none());
    steps.extend(empty.map(|server| Step::Remove(server.id)));
    steps
}

/// Why a server cannot leave, if it cannot: what it has would be without a place.
pub fn cannot_leave(topology: &Topology, server: ServerId, with_fewer: bool) -> Option<String> {
    let others =
        topology.servers.values().filter(|other| other.id != server && other.tenure.takes_replicas());
    let others: Vec<ServerId> = others.map(|other| other.id).collect();
    if others.is_empty() {
        return Some("it is the last server".to_owned());
    }
    let goes = |replica: &&Replica| {
        let tenure = tenure(topology, replica);
        replica.server == server || matches!(tenure, Tenure::Leaving | Tenure::LeavingWithFewer)
    };
    let mut homeless = topology.shards.iter().filter(|shard| {
        // Others may be on their way to the same places, and to this server.
        let rooms = others.iter().filter(|&&other| shard.replica_on(other).is_none()).count();
        let needed = shard.members().filter(goes).count();
        let gives_up = with_fewer && shard.replica_on(server).is_some() && shard.members().count() > 1;
        rooms < needed && !gives_up
    });
    homeless.next().map(|shard| {
        let replicas = shard.members().count();
        format!("every other server has one of the {replicas} replicas of shard {} already", shard.id)
    })
}

/// Why a server that is down cannot be given up, if it cannot: what is left would not be a majority, or nothing.
pub fn cannot_remove(topology: &Topology, server: ServerId) -> Option<String> {
    let mut short =
        topology.shards.iter().filter(|shard| shard.replica_on(server).is_some()).filter(|shard| {
            let is_up = |replica: &&Replica| topology.server(replica.server).is_some_and(|server| server.up);
            let voters = shard.replicas.iter().filter(|replica| replica.stage != Stage::Incoming);
            let (voters, there): (Vec<_>, Vec<_>) = (
                voters.clone().collect(),
                voters
                    .filter(|replica| replica.server != server && replica.stage.has_arrived())
                    .filter(is_up)
                    .collect(),
            );
            there.len() <= voters.len() / 2
        });
    short.next().map(|shard| format!("without it shard {} has no majority of its replicas", shard.id))
}

/// The servers that shall vote in the meta group, given who votes now: an odd number (but for two), at most
/// [`META_VOTERS_MAX`]. Who votes stays, unless it is on its way out, or away while there is another.
pub fn meta_voters(topology: &Topology, now: &BTreeSet<ServerId>) -> BTreeSet<ServerId> {
    let stays = |id: &ServerId| topology.server(*id).filter(|server| !server.tenure.is_parting());
    let away = |id: &ServerId| stays(id).is_some_and(|server| server.tenure == Tenure::Away);
    let present = now.iter().copied().filter(|id| stays(id).is_some() && !away(id));
    let others = topology.servers.values().filter(|server| !now.contains(&server.id));
    let others = others.filter(|server| server.up && server.tenure.takes_replicas()).map(|server| server.id);
    let mut candidates: Vec<ServerId> =
        present.chain(others).chain(now.iter().copied().filter(away)).collect();
    candidates.truncate(META_VOTERS_MAX);
    if candidates.len() > 2 && candidates.len().is_multiple_of(2) {
        candidates.pop();
    }
    if candidates.is_empty() { now.clone() } else { candidates.into_iter().collect() }
}

/// What servers that may be given replicas have.
struct Load(BTreeMap<ServerId, usize>);

impl Load {
    fn of(topology: &Topology) -> Load {
        let open = topology.servers.values().filter(|server| server.up && server.tenure.takes_replicas());
        let mut load: BTreeMap<ServerId, usize> = open.map(|server| (server.id, 0)).collect();
        for replica in topology.shards.iter().flat_map(Shard::members) {
            if let Some(count) = load.get_mut(&replica.server) {
                *count += 1;
            }
        }
        Load(load)
    }

    /// Where another replica of a shard goes: to the server with the fewest that has none of the shard.
    fn place_for(&self, shard: &Shard) -> Option<ServerId> {
        let free = self.0.iter().filter(|(server, _)| shard.replica_on(**server).is_none());
        free.min_by_key(|(server, count)| (**count, **server)).map(|(server, _)| *server)
    }
}

fn tenure(topology: &Topology, replica: &Replica) -> Tenure {
    topology.server(replica.server).map_or(Tenure::Settled, |server| server.tenure)
}

/// Whether nobody of a shard is on the way.
fn is_quiet(shard: &Shard) -> bool {
    shard.replicas.iter().all(|replica| replica.stage.is_settled())
}

/// Replicas on servers that are not there any more.
fn lost(topology: &Topology, load: &Load) -> Vec<Step> {
    let mut steps = Vec::new();
    for shard in &topology.shards {
        let on_lost = |replica: &&Replica| match tenure(topology, replica) {
            Tenure::Away | Tenure::Gone => true,
            Tenure::Settled | Tenure::Settling | Tenure::Leaving | Tenure::LeavingWithFewer => false,
        };
        for replica in shard.replicas.iter().filter(on_lost) {
            let others_settled =
                shard.replicas.iter().all(|other| other.id == replica.id || other.stage.is_settled());
            let (shard_id, old) = (shard.id, replica.id);
            match (replica.stage, load.place_for(shard)) {
                (Stage::Outgoing, _) => steps.push(Step::Drop { shard: shard_id, replica: old }),
                (_, Some(server)) if others_settled || !replica.stage.has_arrived() => {
                    steps.push(Step::Replace { shard: shard_id, old, server });
                }
                (_, None) if tenure(topology, replica) == Tenure::Gone && shard.members().count() > 1 => {
                    steps.push(Step::Drop { shard: shard_id, replica: old });
                }
                _ => {}
            }
        }
    }
    steps
}

/// Replicas on servers that leave.
fn parting(topology: &Topology, load: &Load) -> Vec<Step> {
    let mut steps = Vec::new();
    for shard in topology.shards.iter().filter(|shard| is_quiet(shard)) {
        let leaving = shard.replicas.iter().find_map(|replica| match tenure(topology, replica) {
            Tenure::Leaving => Some((replica, false)),
            Tenure::LeavingWithFewer => Some((replica, true)),
            Tenure::Settled | Tenure::Settling | Tenure::Away | Tenure::Gone => None,
        });
        let Some((replica, with_fewer)) = leaving else { continue };
        match load.place_for(shard) {
            Some(server) => steps.push(Step::Move { shard: shard.id, old: replica.id, server }),
            None if with_fewer && shard.replicas.len() > 1 => {
                steps.push(Step::Retire { shard: shard.id, replica: replica.id });
            }
            None => {}
        }
    }
    steps
}

/// Shards that have fewer replicas than they should, or more.
fn counted(topology: &Topology, load: &Load) -> Vec<Step> {
    let wanted = usize::from(topology.wanted_replicas);
    let mut steps = Vec::new();
    for shard in topology.shards.iter().filter(|shard| wanted > 0 && is_quiet(shard)) {
        let has = shard.replicas.len();
        if has < wanted {
            let server = load.place_for(shard);
            steps.extend(server.map(|server| Step::Add { shard: shard.id, server }));
        } else if has > wanted {
            // The preferred leader stays, and of the others whoever is where most is.
            let others = shard.replicas.iter().skip(1);
            let fullest = others.max_by_key(|replica| (load.0.get(&replica.server), replica.id));
            steps.extend(fullest.map(|replica| Step::Retire { shard: shard.id, replica: replica.id }));
        }
    }
    steps
}

/// A replica that goes from a server with more to one with fewer.
fn levelling(topology: &Topology, load: &Load) -> Option<Step> {
    let leads = leads(topology);
    let lead_count = |server: ServerId| leads.get(&server).copied().unwrap_or(0);
    let mut full: Vec<(ServerId, usize)> = load.0.iter().map(|(server, count)| (*server, *count)).collect();
    full.sort_by_key(|&(server, count)| (std::cmp::Reverse(count), server));
    let mut empty = full.clone();
    empty.sort_by_key(|&(server, count)| (count, server));
    for &(from, most) in &full {
        for &(to, least) in empty.iter().filter(|(_, least)| least + 2 <= most) {
            let _ = least;
            let movable =
                topology.shards.iter().filter(|shard| is_quiet(shard) && shard.replica_on(to).is_none());
            let movable = movable.filter_map(|shard| {
                let at = shard.replicas.iter().position(|replica| replica.server == from)?;
                Some((shard, at))
            });
            // The preferred leader goes along when that evens out, too.
            let wants_lead = lead_count(from) > lead_count(to);
            if let Some((shard, at)) = movable.min_by_key(|(shard, at)| ((*at == 0) != wants_lead, shard.id))
            {
                return Some(Step::Move { shard: shard.id, old: shard.replicas[at].id, server: to });
            }
        }
    }
    None
}

/// How many shards each server that may be given replicas is the preferred leader of.
fn leads(topology: &Topology) -> BTreeMap<ServerId, usize> {
    let mut leads: BTreeMap<ServerId, usize> =
        Load::of(topology).0.into_keys().map(|server| (server, 0)).collect();
    for shard in &topology.shards {
        if let Some(count) = leads.get_mut(&shard.replicas[0].server) {
            *count += 1;
        }
    }
    leads
}

/// A preferred leader that goes from a server with more to one with fewer; over others, when the two share no shard.
fn preferring(topology: &Topology) -> Option<Step> {
    let leads = leads(topology);
    let mut shortest: Option<Vec<(ShardId, ReplicaId)>> = None;
    for (&from, &most) in &leads {
        // Breadth first: by which shards does a lead get from server to server?
        let mut way: BTreeMap<ServerId, Option<(ServerId, ShardId, ReplicaId)>> =
            BTreeMap::from([(from, None)]);
        let mut queue = VecDeque::from([from]);
        while let Some(at) = queue.pop_front() {
            if leads[&at] + 2 <= most {
                let mut path = Vec::new();
                let mut end = at;
                while let Some((before, shard, replica)) = way[&end] {
                    path.push((shard, replica));
                    end = before;
                }
                if shortest.as_ref().is_none_or(|shortest| path.len() < shortest.len()) {
                    shortest = Some(path);
                }
                break;
            }
            for shard in topology.shards.iter().filter(|shard| shard.replicas[0].server == at) {
                for replica in shard.replicas.iter().skip(1).filter(|replica| replica.stage.is_settled()) {
                    if leads.contains_key(&replica.server) && !way.contains_key(&replica.server) {
                        way.insert(replica.server, Some((at, shard.id, replica.id)));
                        queue.push_back(replica.server);
                    }
                }
            }
        }
    }
    // The last first: then nobody has more on the way than it had.
    let (shard, replica) = *shortest?.first()?;
    Some(Step::Prefer { shard, replica })
}

#[cfg(test)]
mod tests;
