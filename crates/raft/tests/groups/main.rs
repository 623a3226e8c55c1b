//! Groups through the crate's boundary: hosts on in-memory disks, connected in process or over TCP.

mod cluster;
mod election;
mod grpc;
mod replication;
mod restart;
mod throughput;
mod transfer;
