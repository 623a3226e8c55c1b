//! What ran here last, and whether its log can be trusted (`running.json`). See docs/data-on-disk.md, "Running".
//!
//! Two questions are answered from this file at a start. Whose log is it: a group's log belongs to one replica id, and when
//! the topology names another, the log is forgotten before that one is opened. And is it whole: a log that is synced late may
//! have lost its end when the machine went down under a server that ran. It went down when the kernel's boot id is another than
//! the last time. Such a log is in *doubt* until its replica is replaced or an operator says that it is to be trusted.
//!
//! Contract: everything is on disk before the call returns. The log of a replica is never opened before it is entered here, and a
//! doubt is entered before the log is written to for the first time. What it leaves out: logs that are synced before they are
//! acknowledged (the meta group's among them) are never in doubt, and votes are synced always.

use crate::identity::{read, write_durably};
use kvorum_cluster::ReplicaId;
use kvorum_raft::disk::Disk;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FILE: &str = "running.json";

/// Format of `running.json`; frozen, a new meaning takes a new number.
const FORMAT: u32 = 1;

/// Why a log is in doubt after a start.
const UNCLEAN: &str = "the machine went down while the server ran, and what was acknowledged within about the last second \
                       before may be missing from the log";

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunningError {
    /// Reading or writing failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not ours, of a newer version, or damaged.
    #[error("{path}: it cannot be told whether the logs here are to be trusted: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Owner of `running.json`.
pub(crate) struct Running {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct State {
    format: u32,
    /// The kernel's boot id under which the server ran.
    boot_id: String,
    /// The server stopped, and everything it wrote was synced.
    clean: bool,
    /// By Raft group.
    replicas: BTreeMap<u64, Tenant>,
}

/// The replica that a group's log belongs to.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tenant {
    pub(crate) replica: ReplicaId,
    /// Entries are acknowledged before they are synced.
    lazy: bool,
    /// Why the log cannot be trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) doubt: Option<String>,
    /// The replica left its shard: what is left of it is worth nothing, and it is never opened again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) gone: bool,
    /// Doubts that an operator has put aside.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    trusted: Vec<Trusted>,
}

/// An operator's decision.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Trusted {
    by: String,
    at_ms: u64,
    doubt: String,
}

impl Running {
    /// Reads the file in `dir`, finds out which logs are in doubt, and enters that the server runs from now on. `boot_id` is the
    /// kernel's; an empty one is unknown and equal to none.
    pub(crate) fn load(disk: Arc<dyn Disk>, dir: &Path, boot_id: &str) -> Result<Running, RunningError> {
        let path = dir.join(FILE);
        let damaged = |reason: String| RunningError::Damaged { path: path.clone(), reason };
        let before = match read(&*disk, &path) {
            Ok(bytes) => {
                let state: State =
                    serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
                if state.format != FORMAT {
                    return Err(damaged(format!("format {} is not {FORMAT}", state.format)));
                }
                Some(state)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(RunningError::Io { path, source }),
        };
        let mut state =
            State { format: FORMAT, boot_id: boot_id.to_owned(), clean: false, replicas: BTreeMap::new() };
        if let Some(before) = before {
            let went_down = !before.clean && (boot_id.is_empty() || before.boot_id != boot_id);
            state.replicas = before.replicas;
            for tenant in
                state.replicas.values_mut().filter(|tenant| went_down && tenant.lazy && !tenant.gone)
            {
                tenant.doubt.get_or_insert_with(|| UNCLEAN.to_owned());
            }
        }
        let running = Running { disk, path, state: Mutex::new(state) };
        running.save(&running.state.lock())?;
        Ok(running)
    }

    /// The replica that the log of a group belongs to.
    pub(crate) fn tenant(&self, group: u64) -> Option<Tenant> {
        self.state.lock().replicas.get(&group).cloned()
    }

    /// The log of a group, which is empty or this replica's, belongs to it from now on.
    pub(crate) fn occupy(&self, group: u64, replica: ReplicaId, lazy: bool) -> Result<(), RunningError> {
        let tenant = Tenant { replica, lazy, doubt: None, gone: false, trusted: Vec::new() };
        self.change(|state| state.replicas.insert(group, tenant)).map(|_| ())
    }

    /// The replica that the log of a group belongs to has left its shard.
    pub(crate) fn vacate(&self, group: u64) -> Result<(), RunningError> {
        self.change(|state| {
            if let Some(tenant) = state.replicas.get_mut(&group) {
                (tenant.gone, tenant.doubt) = (true, None);
            }
        })
    }

    /// An operator puts the doubt about a group's log aside.
    pub(crate) fn trust(&self, group: u64, by: &str, at_ms: u64) -> Result<(), RunningError> {
        self.change(|state| {
            if let Some(tenant) = state.replicas.get_mut(&group)
                && let Some(doubt) = tenant.doubt.take()
            {
                tenant.trusted.push(Trusted { by: by.to_owned(), at_ms, doubt });
            }
        })
    }

    /// The server has stopped, and everything it wrote is on disk.
    pub(crate) fn stopped(&self) -> Result<(), RunningError> {
        self.change(|state| state.clean = true)
    }

    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> Result<R, RunningError> {
        let mut state = self.state.lock();
        let mut next = state.clone();
        let result = change(&mut next);
        if next != *state {
            self.save(&next)?;
            *state = next;
        }
        Ok(result)
    }

    fn save(&self, state: &State) -> Result<(), RunningError> {
        let bytes = serde_json::to_vec_pretty(state).expect("this is plain data");
        write_durably(&*self.disk, &self.path, &bytes)
            .map_err(|source| RunningError::Io { path: self.path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvorum_raft::disk::MemoryDisk;

    fn load(disk: &MemoryDisk, boot_id: &str) -> Running {
        Running::load(Arc::new(disk.clone()), Path::new("/data"), boot_id).unwrap()
    }

    fn doubted(running: &Running) -> Vec<u64> {
        let state = running.state.lock();
        let doubted = state.replicas.iter().filter(|(_, tenant)| tenant.doubt.is_some());
        doubted.map(|(group, _)| *group).collect()
    }

    /// A server with a log that is synced late (group 1) and one that is not (group 2).
    fn ran(disk: &MemoryDisk) -> Running {
        let running = load(disk, "a");
        running.occupy(1, ReplicaId(1), true).unwrap();
        running.occupy(2, ReplicaId(4), false).unwrap();
        running
    }

    #[test]
    fn a_late_log_is_in_doubt_when_the_machine_went_down_under_a_server_that_ran() {
        for (boot_id, clean, expected) in [
            ("a", false, &[][..]),
            ("b", false, &[1][..]),
            ("", false, &[1][..]),
            ("a", true, &[][..]),
            ("b", true, &[][..]),
            ("", true, &[][..]),
        ] {
            let disk = MemoryDisk::default();
            let running = ran(&disk);
            if clean {
                running.stopped().unwrap();
            }
            // All that was confirmed is on disk, whatever else is lost.
            let disk = disk.power_cut(0);
            assert_eq!(doubted(&load(&disk, boot_id)), expected, "{boot_id:?} {clean}");
        }
    }

    #[test]
    fn a_doubt_stays_until_the_replica_is_another_or_an_operator_decides() {
        let disk = MemoryDisk::default();
        ran(&disk);
        assert_eq!(doubted(&load(&disk, "b")), [1]);
        // The next run ends cleanly, or is killed; neither makes the log whole.
        load(&disk, "b").stopped().unwrap();
        let running = load(&disk, "b");
        assert_eq!(doubted(&running), [1]);
        running.trust(2, "nobody doubted that one", 1).unwrap();
        running.trust(1, "ann", 7).unwrap();
        let running = load(&disk, "b");
        assert_eq!(doubted(&running), [0; 0]);
        assert_eq!(running.tenant(1).unwrap().replica, ReplicaId(1));
        let trusted = Trusted { by: "ann".into(), at_ms: 7, doubt: UNCLEAN.into() };
        assert_eq!(running.tenant(1).unwrap().trusted, [trusted]);

        assert_eq!(doubted(&load(&disk, "c")), [1]);
        let running = load(&disk, "c");
        running.occupy(1, ReplicaId(9), true).unwrap();
        assert_eq!(doubted(&running), [0; 0]);
        assert_eq!(doubted(&load(&disk, "d")), [1], "the new one is no better than the old one");
    }

    #[test]
    fn a_replica_that_left_is_remembered_and_not_doubted() {
        let disk = MemoryDisk::default();
        let running = ran(&disk);
        running.vacate(1).unwrap();
        running.vacate(9).unwrap();
        let running = load(&disk.power_cut(0), "b");
        let tenant = running.tenant(1).unwrap();
        assert_eq!((tenant.replica, tenant.gone, tenant.doubt), (ReplicaId(1), true, None));
        assert!(running.tenant(9).is_none() && !running.tenant(2).unwrap().gone);
        running.occupy(1, ReplicaId(8), true).unwrap();
        assert!(!running.tenant(1).unwrap().gone);
    }

    #[test]
    fn a_file_that_is_not_understood_is_refused() {
        for content in ["", "{}", r#"{"format":2,"boot_id":"","clean":true,"replicas":{}}"#] {
            let disk = MemoryDisk::default();
            write_durably(&disk, Path::new("/data/running.json"), content.as_bytes()).unwrap();
            let refused = Running::load(Arc::new(disk), Path::new("/data"), "a").err().unwrap();
            assert!(refused.to_string().contains("running.json"), "{refused}");
        }
    }

    #[test]
    fn the_persisted_form() {
        let disk = MemoryDisk::default();
        ran(&disk);
        let bytes = read(&disk, Path::new("/data/running.json")).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let expected = serde_json::json!({
            "format": 1, "boot_id": "a", "clean": false,
            "replicas": {"1": {"replica": 1, "lazy": true}, "2": {"replica": 4, "lazy": false}},
        });
        assert_eq!(json, expected);
    }
}
