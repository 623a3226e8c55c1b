//! Node-local metadata that a server can rebuild from its peers: small keys and values behind a [`MetaStore`].
//!
//! [`SledMetaStore`] keeps them on disk, [`MemoryMetaStore`] does not. Never votes or log entries: a store that is
//! damaged is set aside and replaced by an empty one. What it leaves out: transactions, ordering between unflushed
//! changes. Unlike the WAL it does not go through [`Disk`](crate::disk::Disk), for sled opens its files itself.

use std::{
    any::Any,
    collections::BTreeMap,
    fs::{self, File},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// A map of bytes to bytes. Changes are visible at once and durable after [`MetaStore::flush`].
pub trait MetaStore: Send + Sync {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>>;

    /// Sets a key.
    fn put(&self, key: &[u8], value: &[u8]) -> io::Result<()>;

    /// Removes a key; fine when there is none.
    fn delete(&self, key: &[u8]) -> io::Result<()>;

    /// Keys that begin with `prefix` and their values, in order.
    fn scan(&self, prefix: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>>;

    /// Makes everything before it durable. Blocks on the disk.
    fn flush(&self) -> io::Result<()>;
}

/// Forgets everything with the process: for tests.
#[derive(Debug, Default)]
pub struct MemoryMetaStore {
    map: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl MetaStore for MemoryMetaStore {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.map.lock().get(key).cloned())
    }

    fn put(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.map.lock().insert(key.to_vec(), value.to_vec());
        Ok(())
    }

    fn delete(&self, key: &[u8]) -> io::Result<()> {
        self.map.lock().remove(key);
        Ok(())
    }

    fn scan(&self, prefix: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let map = self.map.lock();
        let found = map.range(prefix.to_vec()..).take_while(|(key, _)| key.starts_with(prefix));
        Ok(found.map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Name of the store in a data directory, and of the mark that it reported damage.
const STORE_NAME: &str = "meta.sled";
const DAMAGED_NAME: &str = "meta.damaged";
/// sled's cache; the store holds a few hundred keys.
const CACHE_BYTES: u64 = 8 << 20;
/// How long a start waits for files that are still locked. sled's own threads hold them for a moment after its last handle is gone.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// What sled says then.
const LOCKED: &str = "could not acquire lock";

/// A [`MetaStore`] on sled.
pub struct SledMetaStore {
    db: sled::Db,
    dir: PathBuf,
    /// What it replaces, when the store that was there was damaged.
    set_aside: Option<PathBuf>,
    flushing: Mutex<()>,
}

impl SledMetaStore {
    /// Opens the store in the data directory `dir`, which must exist. A damaged one is renamed and an empty one takes its place, with a
    /// warning; see [`SledMetaStore::set_aside`]. Blocks up to ten seconds while another handle holds the store.
    pub fn open(dir: &Path) -> io::Result<SledMetaStore> {
        SledMetaStore::open_within(dir, LOCK_PATIENCE)
    }

    fn open_within(dir: &Path, patience: Duration) -> io::Result<SledMetaStore> {
        let (store, mark) = (dir.join(STORE_NAME), dir.join(DAMAGED_NAME));
        let found = match mark.exists() {
            true => Err("it reported damage when it was used last".to_owned()),
            false => open_sled(&store, patience)?,
        };
        let (db, set_aside) = match found {
            Ok(db) => (db, None),
            Err(damage) => {
                let aside = free_name(dir)?;
                if store.exists() {
                    fs::rename(&store, &aside)?;
                }
                tracing::warn!(store = %store.display(), set_aside = %aside.display(), damage, "the metadata store was damaged and is rebuilt");
                let db = open_sled(&store, patience)?
                    .map_err(|damage| io::Error::other(format!("a new store: {damage}")))?;
                if mark.exists() {
                    fs::remove_file(&mark)?;
                }
                File::open(dir)?.sync_all()?;
                (db, Some(aside))
            }
        };
        Ok(SledMetaStore { db, dir: dir.to_owned(), set_aside, flushing: Mutex::new(()) })
    }

    /// Where the damaged store went that this one replaces: then it is empty and has to be filled again.
    pub fn set_aside(&self) -> Option<&Path> {
        self.set_aside.as_deref()
    }

    /// Runs an operation; damage is remembered, so that the next start rebuilds the store.
    fn run<T>(&self, operation: impl FnOnce(&sled::Db) -> sled::Result<T>) -> io::Result<T> {
        // sled panics where it meets some kinds of damage.
        let damage = match catch_unwind(AssertUnwindSafe(|| operation(&self.db))) {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(sled::Error::Io(error))) => return Err(error),
            Ok(Err(error)) => error.to_string(),
            Err(panic) => panic_text(&*panic),
        };
        let mark = self.dir.join(DAMAGED_NAME);
        if let Err(error) = fs::write(&mark, &damage) {
            tracing::warn!(%error, mark = %mark.display(), "cannot leave a mark that the metadata store is damaged");
        }
        let text = format!(
            "the metadata store in {} is damaged and is rebuilt at the next start: {damage}",
            self.dir.display()
        );
        Err(io::Error::new(io::ErrorKind::InvalidData, text))
    }
}

impl MetaStore for SledMetaStore {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.run(|db| Ok(db.get(key)?.map(|value| value.to_vec())))
    }

    fn put(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.run(|db| db.insert(key, value).map(drop))
    }

    fn delete(&self, key: &[u8]) -> io::Result<()> {
        self.run(|db| db.remove(key).map(drop))
    }

    fn scan(&self, prefix: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        self.run(|db| {
            let pairs = db.scan_prefix(prefix);
            pairs.map(|pair| pair.map(|(key, value)| (key.to_vec(), value.to_vec()))).collect()
        })
    }

    fn flush(&self) -> io::Result<()> {
        let _one_at_a_time = self.flushing.lock();
        self.run(|db| db.flush().map(drop))?;
        // sled ends with sync_file_range, which promises nothing about the disk's cache or the files' metadata.
        sync_tree(&self.dir.join(STORE_NAME))?;
        File::open(&self.dir)?.sync_all()
    }
}

/// Opens sled. The inner error is damage, the outer one anything else (a lock held for longer than `patience`, permissions, a full disk).
fn open_sled(path: &Path, patience: Duration) -> io::Result<Result<sled::Db, String>> {
    let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
    let deadline = Instant::now() + patience;
    loop {
        return match catch_unwind(AssertUnwindSafe(|| config.open())) {
            Ok(Ok(db)) => Ok(Ok(db)),
            Ok(Err(sled::Error::Io(error))) if is_locked(&error) && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(5));
                continue;
            }
            Ok(Err(sled::Error::Io(error))) if !is_damage(&error) => Err(error),
            Ok(Err(error)) => Ok(Err(error.to_string())),
            Err(panic) => Ok(Err(panic_text(&*panic))),
        };
    }
}

fn is_locked(error: &io::Error) -> bool {
    error.to_string().contains(LOCKED)
}

/// sled reports some damage as an I/O error of these kinds.
fn is_damage(error: &io::Error) -> bool {
    !is_locked(error)
        && matches!(
            error.kind(),
            io::ErrorKind::Other | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
        )
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "it panicked".to_owned())
}

fn free_name(dir: &Path) -> io::Result<PathBuf> {
    let names = (1..1000_u32).map(|number| dir.join(format!("{STORE_NAME}.damaged-{number}")));
    let mut free = names.filter(|name| !name.exists());
    free.next().ok_or_else(|| io::Error::other("too many damaged metadata stores were set aside"))
}

/// Syncs every file below a directory, then the directory.
fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let result = match entry.file_type()?.is_dir() {
            true => sync_tree(&entry.path()),
            false => File::open(entry.path()).and_then(|file| file.sync_data()),
        };
        match result {
            // sled removes old files (`snap.*`) on its own.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
    }
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn exercise(store: &dyn MetaStore) {
        store.put(b"topology", b"7").unwrap();
        store.put(b"server/1", b"a").unwrap();
        store.put(b"server/2", b"b").unwrap();
        store.put(b"server/2", b"c").unwrap();
        store.delete(b"server/1").unwrap();
        store.delete(b"never there").unwrap();
        store.flush().unwrap();
        assert_eq!(store.get(b"topology").unwrap().as_deref(), Some(&b"7"[..]));
        assert_eq!(store.get(b"server/1").unwrap(), None);
        assert_eq!(store.scan(b"server/").unwrap(), [(b"server/2".to_vec(), b"c".to_vec())]);
    }

    #[test]
    fn memory_and_sled_behave_the_same() {
        exercise(&MemoryMetaStore::default());
        let dir = tempfile::tempdir().unwrap();
        exercise(&SledMetaStore::open(dir.path()).unwrap());
        let again = SledMetaStore::open(dir.path()).unwrap();
        assert_eq!(again.set_aside(), None);
        assert_eq!(again.get(b"topology").unwrap().as_deref(), Some(&b"7"[..]));
    }

    #[test]
    fn a_store_that_is_open_elsewhere_is_not_taken_for_a_damaged_one() {
        let dir = tempfile::tempdir().unwrap();
        let _first = SledMetaStore::open(dir.path()).unwrap();
        assert!(SledMetaStore::open_within(dir.path(), Duration::ZERO).is_err());
        assert!(!dir.path().join("meta.sled.damaged-1").exists());
    }

    #[test]
    fn a_store_that_is_still_being_closed_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let first = SledMetaStore::open(dir.path()).unwrap();
        first.put(b"topology", b"7").unwrap();
        let closing = thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            drop(first);
        });
        let second = SledMetaStore::open(dir.path()).unwrap();
        assert_eq!(second.get(b"topology").unwrap().as_deref(), Some(&b"7"[..]));
        closing.join().unwrap();
    }

    #[test]
    fn a_damaged_store_is_set_aside_and_rebuilt_empty() {
        for (damage, file) in [(&b"garbage, long enough to be read"[..], "conf"), (&[0xff; 4096][..], "db")] {
            let dir = tempfile::tempdir().unwrap();
            exercise(&SledMetaStore::open(dir.path()).unwrap());
            fs::write(dir.path().join("meta.sled").join(file), damage).unwrap();
            let store = SledMetaStore::open(dir.path()).unwrap();
            // sled recovers from some damage by itself, by forgetting: also fine for what can be rebuilt.
            assert_eq!(store.get(b"topology").unwrap(), None, "{file}");
            exercise(&store);
            if file == "conf" {
                assert_eq!(store.set_aside(), Some(&*dir.path().join("meta.sled.damaged-1")));
                assert!(dir.path().join("meta.sled.damaged-1/db").exists());
            }
        }
    }

    #[test]
    fn damage_met_in_use_is_repaired_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        exercise(&SledMetaStore::open(dir.path()).unwrap());
        fs::write(dir.path().join("meta.damaged"), "found a bad page").unwrap();
        let store = SledMetaStore::open(dir.path()).unwrap();
        assert!(store.set_aside().is_some());
        assert_eq!(store.get(b"topology").unwrap(), None);
        drop(store);
        assert_eq!(SledMetaStore::open(dir.path()).unwrap().set_aside(), None);
    }
}
