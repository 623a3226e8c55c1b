//! Groups through the crate's boundary: hosts on in-memory disks, connected in process or over TCP.

#![allow(clippy::unwrap_used, reason = "helpers beside the test functions unwrap as well")]

mod cluster;
mod election;
mod grpc;
mod membership;
mod replication;
mod restart;
mod snapshots;
mod throughput;
mod transfer;
