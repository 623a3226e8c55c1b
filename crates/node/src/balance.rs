//! Leaderships return to the preferred leaders, one after the other, once all has been well in the cluster for a while.
//!
//! Every server looks at its view of the cluster; who leads the first shard that is out of place
//! ([`View::out_of_place`](kvorum_cluster::View::out_of_place)) hands it over, as an operator would. Servers that have heard the same agree on
//! which one that is, and every change of a leader begins the calm anew: so there is one transfer in the cluster at a time. Two servers that have
//! not heard the same may each move one at a time, which is no harm.
//!
//! Nothing moves while a server with replicas is down or silent, a replica comes or goes, a shard has no leader, or a member of the
//! shard lags. What it leaves out: who should be preferred.

use crate::node::Node;
use crate::shard::Shard;
use kvorum_cluster::{ReplicaId, View};
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};

/// How often it looks.
const TURN: Duration = Duration::from_millis(500);

/// A member that lacks more entries than this lags: nothing moves then. Under load some are always on their way.
const LAG_ENTRIES: u64 = 128;

impl Node {
    pub(crate) async fn balance_leaders(self) {
        let Some(calm) = self.config().leader_balance else { return };
        let mut turn = tokio::time::interval(TURN);
        turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut seen: Option<Arc<View>> = None;
        let mut since = self.now();
        loop {
            turn.tick().await;
            let Some(view) = self.view() else { continue };
            let news = seen.as_ref().is_none_or(|seen| **seen != *view);
            if news || !self.all_are_heard(&view) {
                (seen, since) = (Some(view), self.now());
                continue;
            }
            if self.now().saturating_sub(since) < calm {
                continue;
            }
            let Some((placed, preferred)) = view.out_of_place() else { continue };
            let Some(shard) = self.shard(placed.id).filter(Shard::serves_for_sure) else { continue };
            if shard.lags_behind() {
                continue;
            }
            self.return_leadership(&shard, preferred.id).await;
            since = self.now();
        }
    }

    /// Whether every server with replicas gave a sign of life lately.
    fn all_are_heard(&self, view: &View) -> bool {
        let me = self.server().server_id;
        let bound = self.silence();
        let mut replicas = view.topology.all_replicas();
        replicas.all(|(_, replica)| Some(replica.server) == me || self.heard_within(replica.server, bound))
    }

    async fn return_leadership(&self, shard: &Shard, preferred: ReplicaId) {
        let (id, to) = (shard.id().0, preferred.0);
        match shard.group().transfer_leader(to).await {
            Ok(()) => info!(shard = id, to, "leadership returned to the preferred leader"),
            Err(error) => {
                warn!(shard = id, to, %error, "cannot return the leadership to the preferred leader")
            }
        }
    }
}

impl Shard {
    /// On the leader: whether a member lacks more than what is on its way.
    fn lags_behind(&self) -> bool {
        let status = self.status();
        let others = status.members.keys().filter(|replica| **replica != self.replica().0);
        let matched = |replica: &u64| status.matched.get(replica).copied().unwrap_or(0);
        others.map(matched).any(|matched| status.last.saturating_sub(matched) > LAG_ENTRIES)
    }
}
