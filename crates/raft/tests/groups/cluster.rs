//! A cluster in this process: servers with a disk each that survives a restart, and a machine that writes down what it is
//! told.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use kvorum_raft::{
    Committed, Environment, Fatal, Group, GroupId, Host, HostConfig, Image, Local, LocalNetwork, Machine,
    Member, Role, SnapshotConfig, Status, Timing, Transport,
    disk::MemoryDisk,
    wal::{Wal, WalConfig},
};
use parking_lot::Mutex;

/// The group that tests with one group use.
pub(crate) const GROUP: GroupId = GroupId(1);

/// Longest wait for anything that should happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Writes down what is applied.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) entries: Mutex<Vec<(u64, Bytes)>>,
    pub(crate) locals: AtomicUsize,
    /// Snapshots it took its state from.
    pub(crate) restored: AtomicUsize,
    /// The highest term it was told that its replica votes in.
    pub(crate) voted: AtomicU64,
    /// An entry with this content is refused (`fail`) or makes it panic (`panic`).
    poison: Option<&'static str>,
}

impl Recorder {
    pub(crate) fn poisoned(content: &'static str) -> Recorder {
        Recorder { poison: Some(content), ..Recorder::default() }
    }

    pub(crate) fn contents(&self) -> Vec<Bytes> {
        self.entries.lock().iter().map(|(_, content)| content.clone()).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.lock().len()
    }
}

impl Machine for Recorder {
    fn apply(&self, entry: Committed<'_>) -> Result<(), Fatal> {
        if self.poison.is_some_and(|poison| entry.data == poison) {
            assert!(entry.data != "panic", "told to panic");
            return Err(Fatal("told to fail".to_owned()));
        }
        let mut entries = self.entries.lock();
        if let Some((last, _)) = entries.last() {
            assert!(entry.index > *last, "entry {} after entry {last}", entry.index);
        }
        entries.push((entry.index, entry.data.clone()));
        if entry.local.is_some() {
            self.locals.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn blank(&self, _index: u64, _term: u64) {}

    fn voted(&self, term: u64) {
        self.voted.fetch_max(term, Ordering::Relaxed);
    }

    fn snapshot(&self) -> Box<dyn Image> {
        Box::new(Copied(self.entries.lock().clone()))
    }

    fn restore(&self, content: &mut dyn Read) -> Result<(), Fatal> {
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes).map_err(|error| Fatal(error.to_string()))?;
        let entries = read_entries(&bytes).ok_or_else(|| Fatal("no list of entries".to_owned()))?;
        *self.entries.lock() = entries;
        self.restored.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// What was applied up to some entry. As bytes: for each entry its index, its length, and its content.
struct Copied(Vec<(u64, Bytes)>);

impl Image for Copied {
    fn write(self: Box<Self>, out: &mut dyn Write) -> io::Result<()> {
        for (index, content) in &self.0 {
            out.write_all(&index.to_le_bytes())?;
            out.write_all(&(content.len() as u64).to_le_bytes())?;
            out.write_all(content)?;
        }
        Ok(())
    }
}

fn read_entries(mut bytes: &[u8]) -> Option<Vec<(u64, Bytes)>> {
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        let index = u64::from_le_bytes(*bytes.first_chunk()?);
        let length = usize::try_from(u64::from_le_bytes(*bytes.get(8..)?.first_chunk()?)).ok()?;
        let content = bytes.get(16..16_usize.checked_add(length)?)?;
        entries.push((index, Bytes::copy_from_slice(content)));
        bytes = &bytes[16 + length..];
    }
    Some(entries)
}

/// A server that runs.
pub(crate) struct Server {
    pub(crate) id: u64,
    pub(crate) host: Host,
    wal: Wal,
    pub(crate) groups: BTreeMap<GroupId, Replica>,
}

/// A replica that runs. Its id is that of its server.
pub(crate) struct Replica {
    pub(crate) group: Group,
    pub(crate) machine: Arc<Recorder>,
}

impl Server {
    /// Starts a server on a disk, with an empty or a kept log.
    pub(crate) fn start(id: u64, disk: &MemoryDisk, transport: Arc<dyn Transport>) -> Server {
        Server::start_with(id, disk, transport, snapshot_config())
    }

    pub(crate) fn start_with(
        id: u64,
        disk: &MemoryDisk,
        transport: Arc<dyn Transport>,
        snapshots: SnapshotConfig,
    ) -> Server {
        let (wal, _) = Wal::open(Arc::new(disk.clone()), PathBuf::from("/wal"), wal_config()).unwrap();
        let config =
            HostConfig { server: id, cluster: "test".to_owned(), timing: Timing::default(), snapshots };
        let host = Host::start(config, wal.clone(), transport, Environment::real()).unwrap();
        Server { id, host, wal, groups: BTreeMap::new() }
    }

    pub(crate) async fn open(&mut self, group: GroupId) -> &Replica {
        self.open_with(group, Recorder::default()).await
    }

    pub(crate) async fn open_with(&mut self, group: GroupId, machine: Recorder) -> &Replica {
        let machine = Arc::new(machine);
        let handle = self.host.open(group, self.id, machine.clone()).await.unwrap();
        self.groups.insert(group, Replica { group: handle, machine });
        &self.groups[&group]
    }

    pub(crate) fn group(&self) -> &Group {
        &self.groups[&GROUP].group
    }

    pub(crate) fn machine(&self) -> &Arc<Recorder> {
        &self.groups[&GROUP].machine
    }

    pub(crate) fn status(&self) -> Arc<Status> {
        self.group().status().borrow().clone()
    }

    pub(crate) async fn stop(self) {
        for replica in self.groups.values() {
            replica.group.shutdown().await;
        }
        self.host.shutdown().await;
        self.wal.close();
    }
}

/// Snapshots when a test asks for them, of small blocks; the log before them goes.
pub(crate) fn snapshot_config() -> SnapshotConfig {
    SnapshotConfig {
        dir: PathBuf::from("/snapshots"),
        keep_entries: 0,
        block_bytes: 4 << 10,
        bytes_per_second: 0,
        interval: Duration::from_millis(50),
        ..SnapshotConfig::default()
    }
}

fn wal_config() -> WalConfig {
    WalConfig { segment_bytes: 8 << 20, reserve_bytes: 0, ..WalConfig::default() }
}

/// Three servers in one process.
pub(crate) struct Cluster {
    pub(crate) network: LocalNetwork,
    pub(crate) disks: BTreeMap<u64, MemoryDisk>,
    pub(crate) servers: BTreeMap<u64, Server>,
}

impl Cluster {
    /// Servers 1 to 3, no group.
    pub(crate) fn new() -> Cluster {
        let network = LocalNetwork::new();
        let disks = (1..=3).map(|id| (id, MemoryDisk::default())).collect();
        let mut cluster = Cluster { network, disks, servers: BTreeMap::new() };
        for id in 1..=3 {
            cluster.start(id);
        }
        cluster
    }

    /// Servers 1 to 3 with a replica each of [`GROUP`], which has a leader.
    pub(crate) async fn with_group() -> Cluster {
        let mut cluster = Cluster::new();
        cluster.create(GROUP, 1).await;
        cluster.leader().await;
        cluster
    }

    pub(crate) fn start(&mut self, id: u64) -> &mut Server {
        let transport = Arc::new(self.network.transport(id));
        let server = Server::start(id, &self.disks[&id], transport);
        self.servers.insert(id, server);
        self.servers.get_mut(&id).unwrap()
    }

    pub(crate) fn start_with(&mut self, id: u64, snapshots: SnapshotConfig) -> &mut Server {
        let transport = Arc::new(self.network.transport(id));
        let server = Server::start_with(id, &self.disks[&id], transport, snapshots);
        self.servers.insert(id, server);
        self.servers.get_mut(&id).unwrap()
    }

    pub(crate) async fn stop(&mut self, id: u64) {
        self.servers.remove(&id).unwrap().stop().await;
    }

    /// Creates a group with a replica on each server.
    pub(crate) async fn create(&mut self, group: GroupId, first: u64) {
        for server in self.servers.values_mut() {
            server.open(group).await;
        }
        self.servers[&first].groups[&group].group.initialize(members(&[1, 2, 3])).await.unwrap();
    }

    /// The server that leads [`GROUP`] with the highest term and is ready.
    pub(crate) async fn leader(&self) -> u64 {
        self.leader_among(&[1, 2, 3]).await
    }

    pub(crate) async fn leader_among(&self, among: &[u64]) -> u64 {
        eventually("a leader that is ready", || {
            let leading = among.iter().filter_map(|id| {
                let status = self.servers.get(id)?.status();
                (status.role == Role::Leader && status.ready).then_some((status.term, *id))
            });
            leading.max().map(|(_, id)| id)
        })
        .await
    }

    pub(crate) fn server(&self, id: u64) -> &Server {
        &self.servers[&id]
    }

    pub(crate) fn others(&self, id: u64) -> Vec<u64> {
        self.servers.keys().copied().filter(|other| *other != id).collect()
    }

    /// Waits until every machine has applied `count` entries, and the same.
    pub(crate) async fn agree_on(&self, count: usize) {
        for server in self.servers.values() {
            eventually("all entries applied", || (server.machine().len() >= count).then_some(())).await;
        }
        let mut contents = self.servers.values().map(|server| server.machine().entries.lock().clone());
        let first = contents.next().unwrap();
        assert_eq!(first.len(), count);
        for other in contents {
            assert!(first == other, "replicas differ");
        }
    }
}

pub(crate) fn members(servers: &[u64]) -> BTreeMap<u64, Member> {
    servers.iter().map(|id| (*id, Member { server: *id, addr: format!("server-{id}:1") })).collect()
}

pub(crate) fn text(number: usize) -> Bytes {
    Bytes::from(format!("entry {number}"))
}

/// Proposes and waits until it is applied on the proposer.
pub(crate) async fn put(group: &Group, content: Bytes) {
    let proposal = group.propose(content, None).await.unwrap();
    tokio::time::timeout(PATIENCE, proposal).await.expect("no outcome").unwrap();
}

pub(crate) fn local(value: impl Send + Sync + 'static) -> Option<Local> {
    Some(Arc::new(value))
}

/// Asks again and again until there is an answer.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begin.elapsed() < PATIENCE, "never came: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
