//! What this server knows of the cluster: the topology (from the meta group) and who leads (from its own
//! replicas and from what others announce), published as one immutable [`View`].

use kvorum_cluster::{Leaders, ReplicaId, ServerId, ShardId, Topology, View};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::watch;

/// Owner of this server's [`View`].
pub(crate) struct Views {
    state: Mutex<State>,
    published: watch::Sender<Option<Arc<View>>>,
}

#[derive(Default)]
struct State {
    topology: Option<Arc<Topology>>,
    leaders: Leaders,
    /// Servers that were not heard lately. Clients are not sent to a leader there: they are held until it is
    /// heard again or another leads.
    silent: BTreeSet<ServerId>,
}

impl Views {
    pub(crate) fn new() -> Arc<Views> {
        Arc::new(Views { state: Mutex::default(), published: watch::Sender::new(None) })
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<Arc<View>>> {
        self.published.subscribe()
    }

    pub(crate) fn current(&self) -> Option<Arc<View>> {
        self.published.borrow().clone()
    }

    /// A topology was learned. Older ones than the current are ignored.
    pub(crate) fn learn_topology(&self, topology: Arc<Topology>) {
        let mut state = self.state.lock();
        let newer = state.topology.as_ref().is_none_or(|current| current.version < topology.version);
        if newer {
            state.topology = Some(topology);
            self.publish(&state);
        }
    }

    /// A replica leads its shard in this term.
    pub(crate) fn learn_leader(&self, shard: ShardId, term: u64, replica: ReplicaId) {
        let mut state = self.state.lock();
        if state.leaders.announce(shard, term, replica) {
            self.publish(&state);
        }
    }

    /// The shard has moved on to this term, and who leads it is not known.
    pub(crate) fn learn_vacancy(&self, shard: ShardId, term: u64) {
        let mut state = self.state.lock();
        if state.leaders.depose(shard, term) {
            self.publish(&state);
        }
    }

    /// These servers, and no others, were not heard lately.
    pub(crate) fn learn_silence(&self, silent: BTreeSet<ServerId>) {
        let mut state = self.state.lock();
        if state.silent != silent {
            state.silent = silent;
            self.publish(&state);
        }
    }

    fn publish(&self, state: &State) {
        let Some(topology) = &state.topology else { return };
        let mut leaders = state.leaders.clone();
        for shard in &topology.shards {
            let Some(leader) = leaders.leader(shard.id) else { continue };
            let server = topology.server_of(leader.replica).map(|server| server.id);
            if server.is_some_and(|server| state.silent.contains(&server)) {
                // In the published copy alone: when the server is heard again, it leads as before.
                leaders.depose(shard.id, leader.term + 1);
            }
        }
        let view = View { topology: Arc::clone(topology), leaders, silent: state.silent.clone() };
        self.published.send_replace(Some(Arc::new(view)));
    }
}
