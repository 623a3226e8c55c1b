//! Servers in simulated time on disks that say which operation power failed at.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use kvorum_raft::{
    Committed, Environment, Fatal, Group, GroupId, Host, HostConfig, HostError, Image, LocalNetwork, Machine,
    Member, SnapshotConfig, Timing, TokioClock,
    disk::{Disk, DiskFile, MemoryDisk},
    wal::{Wal, WalConfig, WalError},
};
use parking_lot::Mutex;

/// The only group.
pub(crate) const GROUP: GroupId = GroupId(1);

/// Its snapshots.
pub(crate) const DIR: &str = "/snapshots/group-0000000000000001";

/// Longest wait, in simulated time.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs something on simulated time.
pub(crate) fn simulate<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(future)
}

/// A list of what was applied.
#[derive(Default)]
pub(crate) struct List(Mutex<Vec<Bytes>>);

impl List {
    pub(crate) fn contents(&self) -> Vec<Bytes> {
        self.0.lock().clone()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().len()
    }
}

struct Copied(Vec<Bytes>);

impl Image for Copied {
    fn write(self: Box<Self>, out: &mut dyn Write) -> io::Result<()> {
        for content in &self.0 {
            out.write_all(&(content.len() as u64).to_le_bytes())?;
            out.write_all(content)?;
        }
        Ok(())
    }
}

impl Machine for List {
    fn apply(&self, entry: Committed<'_>) -> Result<(), Fatal> {
        self.0.lock().push(entry.data.clone());
        Ok(())
    }

    fn blank(&self, _: u64, _: u64) {}

    fn snapshot(&self) -> Box<dyn Image> {
        Box::new(Copied(self.contents()))
    }

    fn restore(&self, content: &mut dyn Read) -> Result<(), Fatal> {
        let fatal = |error: io::Error| Fatal(error.to_string());
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes).map_err(fatal)?;
        let mut entries = Vec::new();
        let mut rest = &bytes[..];
        while let Some((length, more)) = rest.split_first_chunk() {
            let length = usize::try_from(u64::from_le_bytes(*length)).unwrap();
            let entry = more.get(..length).ok_or_else(|| Fatal("it ends within an entry".to_owned()))?;
            entries.push(Bytes::copy_from_slice(entry));
            rest = &more[length..];
        }
        *self.0.lock() = entries;
        Ok(())
    }
}

/// A disk in memory that remembers the first operation that failed.
#[derive(Clone)]
pub(crate) struct Watched {
    pub(crate) disk: MemoryDisk,
    failed: Arc<Mutex<Option<&'static str>>>,
}

/// What a file is, for the name of an operation.
fn kind(path: &Path, names: [&'static str; 5]) -> &'static str {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
    let at = match () {
        () if name.ends_with(".wal") => 0,
        () if name.ends_with(".tmp") => 1,
        () if name.ends_with(".part") => 2,
        () if name.ends_with(".kvs") => 3,
        () => 4,
    };
    names[at]
}

impl Watched {
    pub(crate) fn new(disk: MemoryDisk) -> Watched {
        Watched { disk, failed: Arc::default() }
    }

    /// The operation that power failed at.
    pub(crate) fn failed(&self) -> Option<&'static str> {
        *self.failed.lock()
    }

    fn note<T>(&self, operation: &'static str, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result
            && error.to_string().contains("lost power")
        {
            self.failed.lock().get_or_insert(operation);
        }
        result
    }

    fn file(&self, path: &Path, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(WatchedFile { disk: self.clone(), path: path.to_owned(), file })
    }
}

impl Disk for Watched {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let names = ["create segment", "create build", "create incoming", "create snapshot", "create other"];
        let file = self.note(kind(path, names), self.disk.create(path))?;
        Ok(self.file(path, file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(path, self.disk.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let names = ["rename segment", "rename build", "rename incoming", "rename snapshot", "rename other"];
        self.note(kind(from, names), self.disk.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let names = ["remove segment", "remove build", "remove incoming", "remove snapshot", "remove other"];
        self.note(kind(path, names), self.disk.remove(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.disk.create_dir_all(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let operation = match dir.to_str() {
            Some("/wal") => "sync log directory",
            _ => "sync snapshot directory",
        };
        self.note(operation, self.disk.sync_dir(dir))
    }

    fn available_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.disk.available_bytes(dir)
    }

    fn delay(&self) -> Duration {
        self.disk.delay()
    }
}

struct WatchedFile {
    disk: Watched,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
}

impl DiskFile for WatchedFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let names = ["write segment", "write build", "write incoming", "write snapshot", "write other"];
        self.disk.note(kind(&self.path, names), self.file.write_at(buf, offset))
    }

    fn sync_data(&self) -> io::Result<()> {
        let names = ["sync segment", "sync build", "sync incoming", "sync snapshot", "sync other"];
        self.disk.note(kind(&self.path, names), self.file.sync_data())
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let names = ["cut segment", "cut build", "cut incoming", "cut snapshot", "cut other"];
        self.disk.note(kind(&self.path, names), self.file.set_len(bytes))
    }

    fn preallocate(&self, bytes: u64) -> io::Result<()> {
        let names =
            ["reserve segment", "reserve build", "reserve incoming", "reserve snapshot", "reserve other"];
        self.disk.note(kind(&self.path, names), self.file.preallocate(bytes))
    }
}

/// A server with a replica of the group; its id is the replica's, too.
pub(crate) struct Server {
    pub(crate) group: Group,
    pub(crate) list: Arc<List>,
    host: Host,
    wal: Wal,
    environment: Environment,
}

/// What differs between runs.
#[derive(Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) keep_entries: u64,
    pub(crate) block_bytes: usize,
}

/// Why a server did not start.
#[derive(Debug)]
#[expect(dead_code, reason = "shown when a test fails")]
pub(crate) enum NotStarted {
    Log(WalError),
    Group(HostError),
}

impl Server {
    pub(crate) async fn start(
        id: u64,
        disk: &Watched,
        network: &LocalNetwork,
        settings: Settings,
    ) -> Result<Server, NotStarted> {
        Server::start_with(id, disk, network, settings, Timing::default()).await
    }

    /// One that is so slow to campaign that it never leads.
    pub(crate) async fn start_humbly(
        id: u64,
        disk: &Watched,
        network: &LocalNetwork,
        settings: Settings,
    ) -> Result<Server, NotStarted> {
        let (election_min_ms, election_max_ms) = (300_000, 600_000);
        let timing = Timing {
            election_min_ms,
            election_max_ms,
            quorum_loss_probe_ms: 2 * election_max_ms,
            ..Timing::default()
        };
        Server::start_with(id, disk, network, settings, timing).await
    }

    async fn start_with(
        id: u64,
        disk: &Watched,
        network: &LocalNetwork,
        settings: Settings,
        timing: Timing,
    ) -> Result<Server, NotStarted> {
        let environment = Environment::simulated(Arc::new(TokioClock::new()), 7 + id);
        let config = WalConfig {
            segment_bytes: 8 << 10,
            tail_bytes: 2 << 10,
            batch_bytes: 4 << 10,
            reserve_bytes: 0,
            ..WalConfig::default()
        };
        let opened = Wal::open_in(&environment, Arc::new(disk.clone()), PathBuf::from("/wal"), config);
        let (wal, _) = opened.map_err(NotStarted::Log)?;
        let snapshots = SnapshotConfig {
            dir: PathBuf::from("/snapshots"),
            block_bytes: settings.block_bytes,
            keep_entries: settings.keep_entries,
            ..SnapshotConfig::default()
        };
        let config = HostConfig { server: id, timing, snapshots, ..HostConfig::default() };
        let transport = Arc::new(network.transport(id));
        let host = Host::start(config, wal.clone(), transport, environment.clone());
        let host = host.map_err(NotStarted::Group)?;
        let list = Arc::new(List::default());
        let group = host.open(GROUP, id, list.clone()).await.map_err(NotStarted::Group)?;
        Ok(Server { group, list, host, wal, environment })
    }

    /// Proposes and waits; `false` when the outcome is unknown or it was not taken.
    pub(crate) async fn put(&self, content: Bytes) -> bool {
        let Ok(proposal) = self.group.propose(content, None).await else { return false };
        matches!(tokio::time::timeout(PATIENCE, proposal).await, Ok(Ok(_)))
    }

    pub(crate) fn failed(&self) -> bool {
        self.group.status().borrow().failed.is_some()
    }

    /// Whether it comes to lead and be ready.
    pub(crate) async fn leads(&self) -> bool {
        let mut status = self.group.status();
        let ready = status.wait_for(|status| status.ready || status.failed.is_some());
        matches!(tokio::time::timeout(PATIENCE, ready).await, Ok(Ok(status)) if status.ready)
    }

    /// The process ends, in order.
    pub(crate) async fn stop(self, network: &LocalNetwork, id: u64) {
        self.group.shutdown().await;
        self.host.shutdown().await;
        self.wal.close();
        // Its tasks see that.
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.kill(network, id);
    }

    /// The process is gone.
    pub(crate) fn kill(self, network: &LocalNetwork, id: u64) {
        network.disconnect(id);
        self.environment.kill();
    }
}

pub(crate) fn members(ids: &[u64]) -> BTreeMap<u64, Member> {
    ids.iter().map(|id| (*id, Member { server: *id, addr: format!("server-{id}:1") })).collect()
}

/// Entry `number`, of some bytes.
pub(crate) fn entry(number: usize, bytes: usize) -> Bytes {
    let mut content = format!("entry {number} ").into_bytes();
    content.resize(bytes.max(content.len()), b'.');
    Bytes::from(content)
}

/// Waits in simulated time.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..PATIENCE.as_millis() / 5 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never came: {what}");
}

/// Names in the group's directory.
pub(crate) fn files(disk: &MemoryDisk) -> Vec<String> {
    let mut names = disk.list(Path::new(DIR)).unwrap();
    names.sort();
    names
}

/// What power may leave of the disk: nothing that was not synced, all of it, or parts; or all that was written, when only the process
/// died.
pub(crate) fn remains(disk: &MemoryDisk, at: u64) -> [(&'static str, MemoryDisk); 5] {
    [
        ("the process died", disk.kill()),
        ("nothing unsynced is left", disk.power_cut(0)),
        ("all is left", disk.power_cut(1)),
        ("parts are left", disk.power_cut(2 + at)),
        ("other parts are left", disk.power_cut(2 + at * 31)),
    ]
}

/// Counts crash points by what power failed at.
#[derive(Default)]
pub(crate) struct Points(BTreeMap<&'static str, u32>);

impl Points {
    pub(crate) fn add(&mut self, operation: &'static str) {
        *self.0.entry(operation).or_default() += 1;
    }

    #[expect(clippy::print_stdout, reason = "the figures are what a reader of the test wants")]
    pub(crate) fn report(&self, what: &str) -> u32 {
        let all = self.0.values().sum();
        println!("{what}: {all} places, each with 5 outcomes");
        self.0.iter().for_each(|(operation, count)| println!("{count:6} {operation}"));
        all
    }

    /// Whether power failed at this operation at least once.
    pub(crate) fn has(&self, operation: &str) -> bool {
        self.0.contains_key(operation)
    }
}
