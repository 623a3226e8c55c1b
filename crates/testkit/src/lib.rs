//! What Kvorum's end-to-end tests and measurements are made of.
//!
//! | module | what |
//! |---|---|
//! | [`binary`] | finds or builds the `kvorum` program under test |
//! | [`cluster`] | real server processes in a temporary directory: start, kill, freeze, restart, wait |
//! | [`map`] | where servers are, and what they say about the cluster |
//! | [`nemesis`] | what can go wrong, for all that a cluster may run on |
//! | [`proxy`], [`namespaces`] | networks that can be cut: without privilege, and as root |
//! | [`compose`], [`image`] | the cluster in containers |
//! | [`playground`] | `kvorum dev` as a user runs it |
//! | [`resp`] | one connection that speaks RESP |
//! | [`reply`], [`plain`] | replies with their exact types, and a blocking connection that reads them |
//! | [`oracle`] | a real redis-server |
//! | [`http`] | a client of HTTP ports, and Prometheus's text format |
//! | [`script`] | golden scripts |
//! | [`storm`] | very many connections |
//! | [`differential`] | random commands on two servers |
//! | [`client`] | a cluster-aware client that says of every command: done, refused, or unknown |
//! | [`workload`] | concurrent writers and register clients |
//! | [`flood`] | writes as fast as they are taken |
//! | [`generator`] | load for measurements: closed and open loops, times in buckets |
//! | [`process`] | what a process takes of the machine |
//! | [`load`], [`trial`] | some of everything at once, and what must hold while something goes wrong |
//! | [`history`] | who asked what when, and what came back |
//! | [`check`] | judges of what was recorded, each shown to catch the anomaly it is for |
//! | [`random`] | a seeded generator, and the seed of a run |
//! | [`wal`] | the frames of a write-ahead log, for tests that damage one |
//!
//! It depends on no crate of the product on purpose: hash slots, reply classes and the frames of the log are written
//! down here a second time, from their descriptions, so that one misunderstanding cannot hide in both.

pub mod binary;
pub mod check;
pub mod client;
pub mod cluster;
pub mod compose;
pub mod differential;
pub mod flood;
pub mod generator;
pub mod history;
pub mod http;
pub mod image;
pub mod load;
pub mod map;
pub mod namespaces;
pub mod nemesis;
pub mod oracle;
pub mod plain;
pub mod playground;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod random;
pub mod reply;
pub mod resp;
pub mod script;
pub mod slots;
pub mod storm;
pub mod trial;
pub mod wal;
pub mod workload;

pub use client::{Client, Outcome};
pub use cluster::{Cluster, Network, Shape};
pub use nemesis::{Fault, Nemesis};
pub use resp::{Connection, Value};
