//! The cluster as pure data and functions: who is there ([`Topology`]), who leads ([`Leaders`]), where a command
//! goes ([`route()`]), what a cluster shows to its clients ([`describe`]), and the two state machines that Raft
//! drives: [`MetaMachine`] decides the topology, [`ShardMachine`] holds the data of one shard. [`checks`] says which
//! replica of a shard is wrong, [`FailoverWatch`] what happens to the leaders.
//!
//! Contract: no clock, no entropy, no task, no IO. Same state and same entry give the same bytes on every replica,
//! for ever; time and randomness arrive inside entries.
//!
//! A shard's own log is the only authority on the slots it owns, checked beside the data by [`ShardMachine`];
//! the topology is for routing and may lag behind it.
//!
//! [`spread`] says what is to be done next so that replicas are where they should be.
//!
//! Left out: moving slots, zones; they come with the migration of slots.

pub mod checks;
pub mod describe;
pub mod entry;
mod failover;
mod hex;
mod ids;
mod leaders;
mod meta;
mod place;
mod random;
mod route;
mod shard;
mod slots;
pub mod spread;
mod topology;

pub use entry::{
    BASE_LEVEL, CHECK_LEVEL, CHUNK_LEVEL, CHUNKED_BYTES_MAX, Configure, Entry, EntryBuilder, EntryError,
    FAMILIES_LEVEL, FEATURE_LEVEL, Header, Part, SERVERS_LEVEL,
};
pub use failover::{FailoverEvent, FailoverWatch, MasterNames, Picture, SentinelId, quorum};
pub use ids::{NodeId, ParseNodeIdError, ReplicaId, ServerId, ShardId};
pub use leaders::{Leader, Leaders, View};
pub use meta::{Create, MetaCommand, MetaError, MetaFault, MetaMachine, MetaRefusal, NewServer};
pub use place::{MAX_SHARDS, place, slots_of_shard};
pub use random::SplitMix64;
pub use route::{Footing, Intent, Route, route};
pub use shard::{Note, Refusal, RestoreError, ShardMachine, ShardSnapshot, Unwitnessed, Witness};
pub use slots::{ParseSlotsError, SlotSet};
pub use topology::{
    Durability, Layout, Mode, ParseDurabilityError, ParseModeError, Replica, Server, Shard, Stage, Tenure,
    Topology, TopologyError,
};
