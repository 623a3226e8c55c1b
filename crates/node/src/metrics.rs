//! What a server counts below its client ports: the log, its replicas of shards and its member of the meta group.

use crate::node::Node;
use kvorum_raft::Group;
use kvorum_raft::metrics::{self, Metrics};
use std::time::Duration;

impl Node {
    /// The longest time that a sync of the log took since this was asked last.
    pub fn longest_sync(&self) -> Duration {
        self.0.wal.longest_sync()
    }

    /// All figures as of now. The label `shard` is the shard's number, or `meta` for the meta group.
    pub fn metrics(&self, out: &mut dyn Metrics) {
        metrics::wal(&self.0.wal.stats(), out);
        if let Some(view) = self.view() {
            let version = view.topology.version;
            out.gauge(
                "kvorum_topology_version",
                "Version of the topology that the server knows.",
                &[],
                version as f64,
            );
        }
        let shards = self.shards().borrow().clone();
        for (id, shard) in shards {
            let id = id.0.to_string();
            let labels = [("shard", id.as_str())];
            group(&labels, shard.group(), out);
            let serves = f64::from(u8::from(shard.serves_for_sure()));
            out.gauge(
                "kvorum_shard_serves",
                "1 while the replica leads and serves its shard, with a majority behind it.",
                &labels,
                serves,
            );
            if let Some(age) = shard.data_age() {
                out.gauge(
                    "kvorum_replica_data_age_seconds",
                    "How long ago the leader had what the replica has; on the leader, how long it has been without a lease.",
                    &labels,
                    age.as_secs_f64(),
                );
            }
        }
        if let Some(meta) = self.meta_group() {
            group(&[("shard", "meta")], &meta, out);
        }
    }
}

fn group(labels: &[(&'static str, &str)], group: &Group, out: &mut dyn Metrics) {
    let status = group.status().borrow().clone();
    metrics::replica(labels, &status, group.stats(), group.snapshot_stats(), out);
}
