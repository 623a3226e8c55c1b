//! Whether a server can take its part: for whoever sends clients to it, or waits with the next server of a rolling restart.

use crate::node::Node;
use crate::shard::Shard;
use std::time::Duration;

/// A leader that heard no majority for this long cannot serve.
const QUORUM_PATIENCE: Duration = Duration::from_secs(2);

/// Entries that a majority has and this replica has not applied, beyond which it is not level with the others.
const LAG_ENTRIES: u64 = 1024;

impl Node {
    /// Why this server is not ready; empty when it is: it belongs to a cluster, and every replica that it should have is open,
    /// knows its leader and is about level with it.
    pub fn unready(&self) -> Vec<String> {
        if let Some(reason) = self.wal_failure() {
            return vec![format!("the log failed: {reason}")];
        }
        let (Some(me), Some(view)) = (self.server().server_id, self.view()) else {
            return vec!["the server belongs to no cluster".to_owned()];
        };
        let shards = self.shards().borrow().clone();
        let mut reasons = Vec::new();
        for spec in &view.topology.shards {
            let Some(replica) = spec.replicas.iter().find(|replica| replica.server == me) else { continue };
            let why = match shards.get(&spec.id).filter(|shard| shard.replica() == replica.id) {
                Some(shard) => shard.unready(),
                None => Some("its replica is not open".to_owned()),
            };
            reasons.extend(why.map(|why| format!("shard {}: {why}", spec.id.0)));
        }
        reasons
    }
}

impl Shard {
    /// Why this replica is not ready, if it is not.
    fn unready(&self) -> Option<String> {
        let status = self.status();
        if let Some(reason) = self.wrong().or_else(|| status.failed.clone()) {
            return Some(format!("its replica has stopped: {reason}"));
        }
        if status.leader.is_none() {
            return Some("no leader is known".to_owned());
        }
        if !status.voters.contains(&self.replica().0) {
            return Some("its replica is not a voter yet".to_owned());
        }
        if !status.recovered || !self.is_configured() {
            return Some("its replica has not applied its log yet".to_owned());
        }
        let lag = status.committed.saturating_sub(status.applied);
        if lag > LAG_ENTRIES {
            return Some(format!("its replica lags by {lag} entries"));
        }
        let leads = status.leader == Some(self.replica().0);
        if leads && self.group().quorum_age().is_some_and(|age| age > QUORUM_PATIENCE) {
            return Some("its replica leads and does not hear a majority".to_owned());
        }
        if !leads && self.is_stale() {
            return Some("its replica has not heard its leader for too long".to_owned());
        }
        None
    }
}
