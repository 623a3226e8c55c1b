//! Names of things. Numbers are given once and never reused.

use crate::hex;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A server process; chosen when it is set up, kept in its data directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ServerId(pub u64);

/// A replica of a shard: one voter of its Raft group. Given by the meta machine, from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReplicaId(pub u64);

/// A shard, from 0. It is also the distance of its client port from a server's base port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShardId(pub u16);

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What clients know a replica by: the id of a Redis Cluster node, 40 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(#[serde(with = "hex")] pub [u8; 20]);

impl NodeId {
    /// Reads an id as a client sent it: exactly 40 lower-case hex digits.
    pub fn parse(text: &[u8]) -> Result<NodeId, ParseNodeIdError> {
        hex::decode(text).map(NodeId).ok_or(ParseNodeIdError)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex::encode(&self.0))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for NodeId {
    type Err = ParseNodeIdError;

    fn from_str(text: &str) -> Result<NodeId, ParseNodeIdError> {
        NodeId::parse(text.as_bytes())
    }
}

/// Text that is no node id.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a node id has 40 lower-case hex digits")]
pub struct ParseNodeIdError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ids_have_one_spelling() {
        let text = "f068a5693179bb5e89070fa137a67b402bf1c161";
        let id: NodeId = text.parse().unwrap();
        assert_eq!(id.to_string(), text);
        assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{text}\""));
        assert_eq!(serde_json::from_str::<NodeId>(&format!("\"{text}\"")).unwrap(), id);
        for wrong in
            ["", "f068", &text.to_uppercase(), &text[1..], &format!("{text}00"), &text.replace('f', "g")]
        {
            assert_eq!(wrong.parse::<NodeId>(), Err(ParseNodeIdError), "{wrong}");
        }
    }
}
