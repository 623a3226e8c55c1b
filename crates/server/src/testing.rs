//! For the tests of this crate, and fuzzers: a port, and a replica that does as a test tells it, with a real keyspace.

#![allow(clippy::unwrap_used, reason = "a test or a fuzzer may fail by panicking")]
#![cfg_attr(not(test), allow(dead_code, reason = "fuzzers take a part of it"))]

use crate::control::Control;
use crate::engine::{Engine, Failure};
use crate::limits::{OutputLimits, Rules};
use crate::password::RequirePass;
use crate::port::{KeyspaceFacts, Port, Replica, Standing};
use crate::resp::RespSink;
use crate::settings::{OutputSettings, Settings};
use kvorum_cluster::{
    Durability, Layout, Leaders, Mode, ReplicaId, Server, ServerId, ShardId, Topology, View, place,
};
use kvorum_keyspace::{Keyspace, Run, Sink, Slot};
use kvorum_node::{Batch, HandoverError, ReadError, ReplySink, SnapshotStats};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// What becomes of a submitted batch.
pub(crate) enum Step {
    /// It runs.
    Run,
    /// It finds no leader.
    NotLeader,
    /// Its outcome stays unknown; it does not run.
    Unknown,
    /// A test decides later.
    Later(oneshot::Receiver<Step>),
}

/// A replica of shard 0 of a cluster of three servers and three shards.
#[derive(Clone)]
pub(crate) struct Scripted(Arc<Script>);

struct Script {
    me: ReplicaId,
    view: watch::Sender<Arc<View>>,
    keyspace: Mutex<Keyspace>,
    /// Fates of the batches to come; those after them run.
    steps: Mutex<VecDeque<Step>>,
    /// Fates of the reads to come; those after them run.
    reads: Mutex<VecDeque<ReadError>>,
    /// Whose batch it is: they run, or do not, in the order in which they were submitted.
    turn: tokio::sync::Mutex<()>,
    /// Commands run through the log, in order.
    log: Mutex<Vec<String>>,
    /// WAIT finds fewer replicas than it asks for.
    followers_are_late: AtomicBool,
}

impl Scripted {
    /// The replica on server 1. Leaders are unknown.
    pub(crate) fn new(mode: Mode) -> Scripted {
        let servers = [ServerId(1), ServerId(2), ServerId(3)];
        let shards = if mode == Mode::Cluster { 3 } else { 1 };
        let databases = if mode == Mode::Cluster { 1 } else { 16 };
        let layout = Layout {
            version: 1,
            cluster_id: "test".to_owned(),
            mode,
            durability: Durability::QuorumFsync,
            databases,
            hash_seed: [7; 16],
            servers: (1..)
                .zip(servers)
                .map(|(n, id)| {
                    let host = format!("10.0.0.{n}");
                    let (peer, hex, tenure) = (None, None, kvorum_cluster::Tenure::Settled);
                    (id, Server { id, host, base_port: 7000, peer, up: true, hex, tenure })
                })
                .collect(),
            shards: place(&servers, shards, 3, 1),
            last_replica: 0,
            last_server: 0,
            wanted_replicas: 0,
        };
        let topology = Arc::new(Topology::new(layout).unwrap());
        let shard = topology.shard(ShardId(0)).unwrap();
        let me = shard.replicas.iter().find(|replica| replica.server == ServerId(1)).unwrap().id;
        let settings = kvorum_keyspace::Settings { databases, hash_seed: [7; 16] };
        Scripted(Arc::new(Script {
            me,
            view: watch::Sender::new(Arc::new(View {
                topology,
                leaders: Leaders::default(),
                silent: Default::default(),
            })),
            keyspace: Mutex::new(Keyspace::new(settings)),
            steps: Mutex::default(),
            reads: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            log: Mutex::default(),
            followers_are_late: AtomicBool::new(false),
        }))
    }

    /// The same, and it leads; shards 1 and 2 are led on servers 2 and 3.
    pub(crate) fn leading(mode: Mode) -> Scripted {
        let replica = Scripted::new(mode);
        for (shard, server) in [(0, 1), (1, 2), (2, 3)] {
            replica.elect(shard, 1, server);
        }
        replica
    }

    /// The replica of `shard` on `server` has won the election of `term`.
    pub(crate) fn elect(&self, shard: u16, term: u64, server: u64) {
        self.0.view.send_modify(|view| {
            let mut leaders = view.leaders.clone();
            let Some(spec) = view.topology.shard(ShardId(shard)) else { return };
            let winner = spec.replicas.iter().find(|replica| replica.server == ServerId(server)).unwrap();
            leaders.announce(ShardId(shard), term, winner.id);
            *view =
                Arc::new(View { topology: Arc::clone(&view.topology), leaders, silent: Default::default() });
        });
    }

    /// `shard` has moved on to `term`, and nobody knows who leads it.
    pub(crate) fn depose(&self, shard: u16, term: u64) {
        self.0.view.send_modify(|view| {
            let mut leaders = view.leaders.clone();
            leaders.depose(ShardId(shard), term);
            *view =
                Arc::new(View { topology: Arc::clone(&view.topology), leaders, silent: Default::default() });
        });
    }

    /// These servers are not heard any more.
    pub(crate) fn silence(&self, servers: &[u64]) {
        self.0.view.send_modify(|view| {
            let silent = servers.iter().copied().map(ServerId).collect();
            *view = Arc::new(View { silent, ..View::clone(view) });
        });
    }

    /// What becomes of the batches to come.
    pub(crate) fn expect(&self, steps: impl IntoIterator<Item = Step>) {
        self.0.steps.lock().extend(steps);
    }

    /// The next batch waits for the test's decision.
    pub(crate) fn expect_later(&self) -> oneshot::Sender<Step> {
        let (decide, decision) = oneshot::channel();
        self.expect([Step::Later(decision)]);
        decide
    }

    /// The next reads fail.
    pub(crate) fn fail_reads(&self, errors: impl IntoIterator<Item = ReadError>) {
        self.0.reads.lock().extend(errors);
    }

    /// From now on the followers do not catch up.
    pub(crate) fn wait_for_ever(&self) {
        self.0.followers_are_late.store(true, Ordering::Relaxed);
    }

    /// Commands run through the log so far, each as its words with blanks between.
    pub(crate) fn log(&self) -> Vec<String> {
        self.0.log.lock().clone()
    }

    /// Runs a batch at once.
    pub(crate) fn run(&self, batch: &Batch, out: &mut RespSink) {
        const NOW_MS: u64 = 1_700_000_000_000;
        let mut keyspace = self.0.keyspace.lock();
        for (command, args) in batch.commands() {
            let outcome = match command.run {
                Run::Read(run) => run(&keyspace.reader(0, NOW_MS, NOW_MS), &args, out),
                Run::Write(run) => run(&mut keyspace.writer(0, NOW_MS, 1), &args, out),
                Run::Server => panic!("no command of the keyspace"),
            };
            if let Err(error) = outcome {
                out.error(error.text());
            }
            if out.is_full() {
                break;
            }
        }
    }
}

impl Replica for Scripted {
    fn view(&self) -> Arc<View> {
        self.0.view.borrow().clone()
    }

    fn id(&self) -> ReplicaId {
        self.0.me
    }

    fn standing(&self) -> Standing {
        let view = self.view();
        let shard = view.topology.shard(ShardId(0)).unwrap();
        let leader = view.leader(shard).map(|leader| leader.id.0);
        let leads = leader == Some(self.0.me.0);
        Standing {
            role: if leads { "leader" } else { "follower" },
            term: view.leaders.term(ShardId(0)),
            serves: leads,
            leader,
            last: 12,
            committed: 11,
            applied: 10,
            ..Standing::default()
        }
    }

    fn count_in_slot(&self, db: u16, slot: Slot) -> usize {
        self.0.keyspace.lock().count_in_slot(db, slot)
    }

    fn keys_in_slot(&self, db: u16, slot: Slot, limit: usize) -> Vec<Vec<u8>> {
        self.0.keyspace.lock().keys_in_slot(db, slot, limit)
    }

    fn keyspace(&self) -> KeyspaceFacts {
        let keyspace = self.0.keyspace.lock();
        KeyspaceFacts {
            databases: (0..keyspace.databases())
                .map(|db| (keyspace.len(db), keyspace.expiring(db)))
                .collect(),
            used_bytes: keyspace.used_memory(),
            sequence: keyspace.sequence(),
            ..KeyspaceFacts::default()
        }
    }

    fn snapshots(&self) -> SnapshotStats {
        SnapshotStats::default()
    }

    fn set_active_expire(&self, _: bool) {}
}

impl Engine for Scripted {
    async fn read(&self, batch: &Batch, out: &mut RespSink) -> Result<(), ReadError> {
        let fate = self.0.reads.lock().pop_front();
        match fate {
            Some(error) => {
                // As the real one: some replies were there and are taken back.
                let mark = out.mark();
                out.int(1);
                out.rewind(mark);
                Err(error)
            }
            None => {
                self.run(batch, out);
                Ok(())
            }
        }
    }

    async fn read_stale(&self, batch: &Batch, out: &mut RespSink) -> Result<(), ReadError> {
        self.read(batch, out).await
    }

    fn submit(
        &self,
        batch: Batch,
        mut out: Box<RespSink>,
    ) -> impl Future<Output = Result<Box<RespSink>, Failure>> + Send + 'static {
        let replica = self.clone();
        async move {
            let step = replica.0.steps.lock().pop_front().unwrap_or(Step::Run);
            let _turn = replica.0.turn.lock().await;
            let step = match step {
                Step::Later(decision) => decision.await.unwrap_or(Step::Unknown),
                step => step,
            };
            match step {
                Step::NotLeader => Err(Failure::NotLeader(batch)),
                Step::Unknown | Step::Later(_) => Err(Failure::Unknown),
                Step::Run => {
                    replica.run(&batch, &mut out);
                    let words = batch
                        .commands()
                        .map(|(_, args)| String::from_utf8(args.join(&b' ')).expect("tests send text"));
                    replica.0.log.lock().extend(words);
                    Ok(out)
                }
            }
        }
    }

    /// The leader is another one with the same keyspace, whose log says so.
    fn forward(
        &self,
        db: u16,
        batch: Batch,
        out: Box<RespSink>,
    ) -> impl Future<Output = Result<Box<RespSink>, Failure>> + Send + 'static {
        let (replica, running) = (self.clone(), self.submit(batch, out));
        async move {
            let ran = running.await?;
            replica.0.log.lock().push(format!("forwarded to database {db}"));
            Ok(ran)
        }
    }

    fn wait_replicas(
        &self,
        replicas: usize,
        patience: Option<Duration>,
    ) -> impl Future<Output = usize> + Send + 'static {
        let late = self.0.followers_are_late.load(Ordering::Relaxed);
        async move {
            match (late, patience) {
                (false, _) => {}
                (true, Some(patience)) => tokio::time::sleep(patience).await,
                (true, None) => std::future::pending().await,
            }
            replicas.min(2)
        }
    }

    fn wait_on_disk(
        &self,
        local: bool,
        replicas: usize,
        patience: Option<Duration>,
    ) -> impl Future<Output = (bool, usize)> + Send + 'static {
        let others = self.wait_replicas(replicas, patience);
        async move { (local, others.await) }
    }

    fn save(&self) -> impl Future<Output = Result<(), String>> + Send + 'static {
        std::future::ready(Ok(()))
    }

    fn hand_over(
        &self,
        to: Option<ReplicaId>,
    ) -> impl Future<Output = Result<(), HandoverError>> + Send + 'static {
        let heir = to.map_or(2, |to| to.0);
        self.0.log.lock().push(format!("hand over to {heir}"));
        std::future::ready(if heir == 2 { Ok(()) } else { Err(HandoverError::NotReady) })
    }

    fn leadership_changes(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut view = self.0.view.subscribe();
        async move {
            let _ = view.changed().await;
        }
    }
}

/// A port with ordinary settings, number 7000.
pub(crate) fn port() -> Port {
    let settings = Settings {
        bind: "127.0.0.1".to_owned(),
        dir: "/data".to_owned(),
        file: None,
        debug_command: crate::settings::DebugCommand::Local,
        requirepass: RequirePass::default(),
        timeout_s: 0.into(),
        maxclients: 10_000.into(),
        tcp_keepalive_s: 300.into(),
        proto_max_bulk_len: (512 << 20).into(),
        query_buffer_limit: (1 << 30).into(),
        output_limits: OutputSettings::new(OutputLimits::default()),
        rules: Rules::default().into(),
        failover_hold_ms: 3_000.into(),
        election_timeout_ms: 600,
        write_timeout_ms: 5_000,
        read_mode: "lease",
        slowlog_log_slower_than_us: 10_000.into(),
        slowlog_max_len: 128.into(),
        latency_monitor_threshold_ms: 0.into(),
        latency_tracking: true.into(),
        latency_percentiles: vec![50.0, 99.0, 99.9].into(),
    };
    Port::new(7000, 7098, "f".repeat(40), settings.into(), Control::default())
}
