//! A [`Disk`] in memory that behaves like a bad day: for tests.
//!
//! Every file has the bytes a process sees and the bytes that survive a loss of power; so have the directories. A write
//! belongs to the first until a sync moves it to the second. [`MemoryDisk::power_cut`] decides by a seed, sector by sector,
//! which unsynced writes made it, and which prefix of the unsynced directory changes. What it leaves out: reads that fail,
//! bits that rot by themselves (flip them with [`MemoryDisk::update`]).

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;

use super::{Disk, DiskFile, disk_full};

/// The unit a torn write keeps or loses.
const SECTOR_BYTES: usize = 512;

/// Something that goes wrong later. Operations that change the disk (create, rename, remove, write, sync, length) are
/// counted; reads are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The machine loses power during the operation after the next `operations`: that one and all later ones fail. A write it
    /// hits counts as unsynced, so [`MemoryDisk::power_cut`] may keep a part of it.
    Halt {
        /// Operations that still succeed.
        operations: u64,
    },
    /// One `sync_data` fails after the next `syncs`. As on Linux, the data it covered stays visible and is never written:
    /// a later sync succeeds without it.
    SyncFails {
        /// `sync_data` calls that still succeed.
        syncs: u64,
    },
}

/// A file system in memory. Clones share it.
#[derive(Clone)]
pub struct MemoryDisk {
    state: Arc<Mutex<State>>,
}

struct State {
    files: Vec<Content>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    name_changes: Vec<NameChange>,
    capacity_bytes: u64,
    operations: u64,
    syncs: u64,
    halt_at: Option<u64>,
    fail_sync_at: Option<u64>,
    /// Shortest and longest delay, and what they are drawn from.
    delays: (Duration, Duration),
    dice: Dice,
}

#[derive(Clone, Default)]
struct Content {
    visible: Vec<u8>,
    durable: Vec<u8>,
    changes: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    SetLen(usize),
}

enum NameChange {
    Link(PathBuf, usize),
    Rename(PathBuf, PathBuf),
    Unlink(PathBuf),
}

struct MemoryFile {
    disk: MemoryDisk,
    inode: usize,
}

impl Default for MemoryDisk {
    fn default() -> MemoryDisk {
        MemoryDisk::with_capacity(u64::MAX)
    }
}

impl MemoryDisk {
    /// An empty disk that holds `bytes`, counted by the lengths of its files.
    pub fn with_capacity(bytes: u64) -> MemoryDisk {
        MemoryDisk {
            state: Arc::new(Mutex::new(State {
                files: Vec::new(),
                names: BTreeMap::new(),
                durable_names: BTreeMap::new(),
                name_changes: Vec::new(),
                capacity_bytes: bytes,
                operations: 0,
                syncs: 0,
                halt_at: None,
                fail_sync_at: None,
                delays: (Duration::ZERO, Duration::ZERO),
                dice: Dice { state: 0 },
            })),
        }
    }

    /// Plans a fault, counted from now.
    pub fn inject(&self, fault: Fault) {
        let mut state = self.state.lock();
        match fault {
            Fault::Halt { operations } => state.halt_at = Some(state.operations + operations),
            Fault::SyncFails { syncs } => state.fail_sync_at = Some(state.syncs + syncs),
        }
    }

    /// Lets a write with its sync take a time between these, drawn from a seed.
    pub fn set_delays(&self, shortest: Duration, longest: Duration, seed: u64) {
        let mut state = self.state.lock();
        state.delays = (shortest, longest);
        state.dice = Dice { state: seed };
    }

    /// Changes the size of the disk.
    pub fn set_capacity(&self, bytes: u64) {
        self.state.lock().capacity_bytes = bytes;
    }

    /// Operations that changed the disk so far.
    pub fn operations(&self) -> u64 {
        self.state.lock().operations
    }

    /// `sync_data` calls so far.
    pub fn syncs(&self) -> u64 {
        self.state.lock().syncs
    }

    /// Whether a [`Fault::Halt`] has not come true.
    pub fn has_power(&self) -> bool {
        self.state.lock().has_power()
    }

    /// Changes the bytes of a file, visible and durable, behind everybody's back. Nothing when there is no such file.
    pub fn update(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state.lock();
        if let Some(&inode) = state.names.get(path) {
            let content = &mut state.files[inode];
            change(&mut content.visible);
            content.durable.clone_from(&content.visible);
            content.changes.clear();
        }
    }

    /// What a process sees after every process was killed while the machine went on: nothing is lost.
    pub fn kill(&self) -> MemoryDisk {
        let state = self.state.lock();
        let files = state
            .files
            .iter()
            .map(|file| Content { visible: file.visible.clone(), ..file.clone() })
            .collect();
        state.reopened(files, state.names.clone())
    }

    /// What is left after a loss of power. `seed` decides the fate of what was not synced: 0 loses all of it, 1 keeps all of
    /// it, anything else decides sector by sector.
    pub fn power_cut(&self, seed: u64) -> MemoryDisk {
        let state = self.state.lock();
        let mut dice = Dice { state: seed };
        let files = state
            .files
            .iter()
            .map(|file| {
                let mut left = file.durable.clone();
                for change in &file.changes {
                    match change {
                        Change::SetLen(bytes) if dice.keeps(seed) => left.resize(*bytes, 0),
                        Change::SetLen(_) => {}
                        Change::Write { offset, bytes } => {
                            let mut at = 0;
                            while at < bytes.len() {
                                let sector_end = ((offset + at) / SECTOR_BYTES + 1) * SECTOR_BYTES - offset;
                                let end = sector_end.min(bytes.len());
                                if dice.keeps(seed) {
                                    overwrite(&mut left, offset + at, &bytes[at..end]);
                                }
                                at = end;
                            }
                        }
                    }
                }
                Content { visible: left.clone(), durable: left, changes: Vec::new() }
            })
            .collect();
        let mut names = state.durable_names.clone();
        // A journal keeps the order of directory changes: a prefix survives.
        for change in &state.name_changes {
            if !dice.keeps(seed) {
                break;
            }
            change.apply(&mut names);
        }
        state.reopened(files, names)
    }
}

impl State {
    fn reopened(&self, files: Vec<Content>, names: BTreeMap<PathBuf, usize>) -> MemoryDisk {
        let disk = MemoryDisk::with_capacity(self.capacity_bytes);
        {
            let mut state = disk.state.lock();
            state.delays = self.delays;
            state.dice = Dice { state: self.dice.state };
            state.files = files;
            state.durable_names = names.clone();
            state.names = names;
        }
        disk
    }

    fn has_power(&self) -> bool {
        self.halt_at.is_none_or(|at| self.operations < at)
    }

    /// Counts an operation; `Err` when the power is gone.
    fn operate(&mut self) -> io::Result<()> {
        if !self.has_power() {
            return Err(io::Error::other("the machine lost power"));
        }
        self.operations += 1;
        Ok(())
    }

    fn rename_all(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.name_changes.push(change);
    }

    fn used_bytes(&self) -> u64 {
        self.names.values().map(|&inode| self.files[inode].visible.len() as u64).sum()
    }

    fn make_room(&self, inode: usize, len: u64) -> io::Result<()> {
        let grows = len.saturating_sub(self.files[inode].visible.len() as u64);
        if grows > self.capacity_bytes.saturating_sub(self.used_bytes()) {
            return Err(disk_full("the disk in memory is full".to_owned()));
        }
        Ok(())
    }

    fn inode(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).copied().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            NameChange::Link(path, inode) => {
                names.insert(path.clone(), *inode);
            }
            NameChange::Rename(from, to) => {
                if let Some(inode) = names.remove(from) {
                    names.insert(to.clone(), inode);
                }
            }
            NameChange::Unlink(path) => {
                names.remove(path);
            }
        }
    }
}

impl Disk for MemoryDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        if state.names.contains_key(path) {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        state.operate()?;
        let inode = state.files.len();
        state.files.push(Content::default());
        state.rename_all(NameChange::Link(path.to_owned(), inode));
        Ok(Arc::new(MemoryFile { disk: self.clone(), inode }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let inode = self.state.lock().inode(path)?;
        Ok(Arc::new(MemoryFile { disk: self.clone(), inode }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.inode(from)?;
        state.operate()?;
        state.rename_all(NameChange::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.inode(path)?;
        state.operate()?;
        state.rename_all(NameChange::Unlink(path.to_owned()));
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state.lock();
        let inside = state.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect())
    }

    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let _one_directory = dir;
        let mut state = self.state.lock();
        state.operate()?;
        let State { durable_names, name_changes, .. } = &mut *state;
        name_changes.drain(..).for_each(|change| change.apply(durable_names));
        Ok(())
    }

    fn available_bytes(&self, _dir: &Path) -> io::Result<u64> {
        let state = self.state.lock();
        Ok(state.capacity_bytes.saturating_sub(state.used_bytes()))
    }

    fn delay(&self) -> Duration {
        let mut state = self.state.lock();
        let (shortest, longest) = state.delays;
        let span = u64::try_from((longest - shortest).as_micros()).unwrap_or(u64::MAX);
        if span == 0 { shortest } else { shortest + Duration::from_micros(state.dice.roll() % span) }
    }
}

impl DiskFile for MemoryFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.disk.state.lock();
        let visible = &state.files[self.inode].visible;
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(visible.len());
        let bytes = buf.len().min(visible.len() - from);
        buf[..bytes].copy_from_slice(&visible[from..from + bytes]);
        Ok(bytes)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        let result = state.operate();
        if result.is_ok() {
            state.make_room(self.inode, offset + buf.len() as u64)?;
        }
        let content = &mut state.files[self.inode];
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        content.changes.push(Change::Write { offset, bytes: buf.to_vec() });
        if result.is_ok() {
            overwrite(&mut content.visible, offset, buf);
        }
        result
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        state.operate()?;
        let number = state.syncs;
        state.syncs += 1;
        let fails = state.fail_sync_at == Some(number);
        let Content { durable, changes, .. } = &mut state.files[self.inode];
        if fails {
            changes.clear();
            return Err(io::Error::other("the disk reported a failed sync"));
        }
        for change in changes.drain(..) {
            match change {
                Change::Write { offset, bytes } => overwrite(durable, offset, &bytes),
                Change::SetLen(bytes) => durable.resize(bytes, 0),
            }
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state.lock().files[self.inode].visible.len() as u64)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        state.operate()?;
        state.make_room(self.inode, bytes)?;
        let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
        let content = &mut state.files[self.inode];
        content.visible.resize(bytes, 0);
        content.changes.push(Change::SetLen(bytes));
        Ok(())
    }

    fn preallocate(&self, bytes: u64) -> io::Result<()> {
        if self.len()? < bytes { self.set_len(bytes) } else { Ok(()) }
    }
}

fn overwrite(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(bytes);
}

/// SplitMix64: small, fixed, and good enough to toss coins.
struct Dice {
    state: u64,
}

impl Dice {
    fn keeps(&mut self, seed: u64) -> bool {
        match seed {
            0 => false,
            1 => true,
            _ => self.roll() & 1 == 1,
        }
    }

    fn roll(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
