//! The pure cluster through its public boundary: what the node and the server see.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which the lint does not take for tests")]

mod describe;
mod determinism;
mod entry;
mod failover;
mod meta;
mod route;
mod shard;
mod snapshot;
mod support;
mod topology;
