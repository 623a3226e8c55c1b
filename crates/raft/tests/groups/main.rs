//! Groups through the crate's boundary: hosts on in-memory disks, connected in process or over TCP.

#![allow(clippy::unwrap_used, reason = "helpers beside the test functions unwrap as well")]

mod cluster;
mod election;
mod membership;
mod replication;
mod restart;
mod snapshots;
mod tcp;
mod throughput;
mod transfer;
