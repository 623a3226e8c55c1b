//! Who this server is: a small file of its own (`identity.json`), written before anything else of the server
//! and never derived from its log. See docs/data-on-disk.md, "Identity".

use kvorum_raft::Environment;
use kvorum_raft::disk::Disk;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

const FILE: &str = "identity.json";

/// Format of `identity.json`; frozen, a new meaning takes a new number.
const FORMAT: u32 = 1;

/// Format of the identity of a server that came to a running cluster: a version that does not know it would found a group.
const FORMAT_JOINED: u32 = 2;

/// The content of `identity.json`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub(crate) struct Identity {
    format: u32,
    /// 40 hex digits drawn at the first start; the log's folder carries the same (see [`Identity::load`]).
    pub(crate) server_hex: String,
    /// The cluster this server was adopted into; `None` while it is virgin.
    pub(crate) cluster: Option<Membership>,
}

/// A server's place in its cluster.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub(crate) struct Membership {
    pub(crate) cluster_id: String,
    /// Number of this server, from 1.
    pub(crate) server_id: u64,
    /// Members of the meta group at the cluster's creation.
    pub(crate) meta_members: Vec<MetaMember>,
    /// The cluster's first meta entry. Whoever leads the meta group first proposes it; later it is history.
    pub(crate) create: serde_json::Value,
    /// The server came to a running cluster: it founds nothing, and learns everything from the others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) joined: bool,
}

/// One member of the meta group.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub(crate) struct MetaMember {
    pub(crate) server: u64,
    /// `host:port` of its peer listener.
    pub(crate) addr: String,
}

/// Why the identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Reading or writing failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not ours or damaged.
    #[error("{path}: not a usable identity: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The log that belongs to this identity is gone: a vote could have been forgotten.
    #[error(
        "{path}: the log of server {server_hex} is not here any more; a server that lost its log must not \
         vote again: restore the folder, or remove the whole data directory and join as a new server"
    )]
    LogGone {
        /// The folder that should hold the log.
        path: PathBuf,
        /// The server's identity.
        server_hex: String,
    },
}

impl Identity {
    /// Reads the identity in `dir`, or makes a new virgin one. `wal_dir` carries the identity too, in a file
    /// named `owner`: when the identity is older than its log, the log was lost.
    pub(crate) fn load(
        disk: &dyn Disk,
        dir: &Path,
        wal_dir: &Path,
        environment: &Environment,
    ) -> Result<Identity, IdentityError> {
        let path = dir.join(FILE);
        let owner_path = wal_dir.join("owner");
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| IdentityError::Io { path, source }
        };
        match read(disk, &path) {
            Ok(bytes) => {
                let damaged = |reason: String| IdentityError::Damaged { path: path.clone(), reason };
                let identity: Identity =
                    serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
                let joined = identity.cluster.as_ref().is_some_and(|cluster| cluster.joined);
                let expected = if joined { FORMAT_JOINED } else { FORMAT };
                if identity.format != expected {
                    return Err(damaged(format!("format {} is not {expected}", identity.format)));
                }
                match read(disk, &owner_path) {
                    Ok(owner) if owner == identity.server_hex.as_bytes() => Ok(identity),
                    Ok(owner) => Err(IdentityError::Damaged {
                        path: owner_path,
                        reason: format!(
                            "the log belongs to server {}, not {}",
                            String::from_utf8_lossy(&owner),
                            identity.server_hex
                        ),
                    }),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Err(IdentityError::LogGone {
                        path: wal_dir.to_owned(),
                        server_hex: identity.server_hex,
                    }),
                    Err(error) => Err(io(&owner_path)(error)),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                disk.create_dir_all(wal_dir).map_err(io(wal_dir))?;
                let identity =
                    Identity { format: FORMAT, server_hex: random_hex::<20>(environment), cluster: None };
                // The owner file first: an identity without its log's mark would read as a lost log.
                write_durably(disk, &owner_path, identity.server_hex.as_bytes()).map_err(io(&owner_path))?;
                identity.save(disk, dir)?;
                Ok(identity)
            }
            Err(error) => Err(io(&path)(error)),
        }
    }

    /// The same server with a place in a cluster.
    pub(crate) fn with(&self, membership: Membership) -> Identity {
        let format = if membership.joined { FORMAT_JOINED } else { FORMAT };
        Identity { format, server_hex: self.server_hex.clone(), cluster: Some(membership) }
    }

    /// Replaces the file in `dir`, atomically and durably.
    pub(crate) fn save(&self, disk: &dyn Disk, dir: &Path) -> Result<(), IdentityError> {
        let path = dir.join(FILE);
        let bytes = serde_json::to_vec_pretty(self).expect("an identity is plain data");
        write_durably(disk, &path, &bytes).map_err(|source| IdentityError::Io { path, source })
    }
}

/// An id of `BYTES` random bytes, in hex.
pub(crate) fn random_hex<const BYTES: usize>(environment: &Environment) -> String {
    let bytes: [u8; BYTES] = std::array::from_fn(|_| environment.draw() as u8);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes beside, syncs, renames over, syncs the folder. The disk may take its time.
pub(crate) fn write_durably(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    kvorum_raft::give_way(|| write_beside(disk, path, bytes))
}

fn write_beside(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("tmp");
    match disk.remove(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = disk.create(&beside)?;
    file.write_at(bytes, 0)?;
    file.sync_data()?;
    disk.rename(&beside, path)?;
    path.parent().map_or(Ok(()), |folder| disk.sync_dir(folder))
}

pub(crate) fn read(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path)?;
    let mut bytes = vec![0; usize::try_from(file.len()?).map_err(io::Error::other)?];
    let read = file.read_at(&mut bytes, 0)?;
    bytes.truncate(read);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvorum_raft::disk::StdDisk;
    use std::fs;

    fn load(dir: &Path, wal_dir: &Path) -> Result<Identity, IdentityError> {
        Identity::load(&StdDisk, dir, wal_dir, &Environment::real())
    }

    #[test]
    fn an_identity_comes_back_and_keeps_its_cluster() {
        for joined in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let wal = dir.path().join("wal");
            let identity = load(dir.path(), &wal).unwrap().with(Membership {
                cluster_id: "c".into(),
                server_id: 2,
                meta_members: vec![MetaMember { server: 1, addr: "h:1".into() }],
                create: serde_json::json!({"a": 1}),
                joined,
            });
            identity.save(&StdDisk, dir.path()).unwrap();
            assert_eq!(load(dir.path(), &wal).unwrap(), identity);
            let text = fs::read_to_string(dir.path().join(FILE)).unwrap();
            assert_eq!(text.contains("joined"), joined);
            // A format says which of the two it is.
            let other = text.replace(&format!("\"format\": {}", 1 + u32::from(joined)), "\"format\": 3");
            fs::write(dir.path().join(FILE), other).unwrap();
            assert!(load(dir.path(), &wal).is_err());
        }
    }

    #[test]
    fn a_server_that_lost_its_log_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let wal = dir.path().join("wal");
        load(dir.path(), &wal).unwrap();
        fs::remove_dir_all(&wal).unwrap();
        assert!(matches!(load(dir.path(), &wal), Err(IdentityError::LogGone { .. })));
    }

    #[test]
    fn a_damaged_identity_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), b"{").unwrap();
        let error = load(dir.path(), &dir.path().join("wal")).unwrap_err();
        assert!(error.to_string().contains("identity.json"), "{error}");
    }
}
