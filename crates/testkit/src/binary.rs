//! The `kvorum` program under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

/// The root of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("this crate lies two folders below the root")
}

/// The folder of build results, shared with cargo.
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => workspace().join(dir),
        None => workspace().join("target"),
    }
}

/// The program: what `KVORUM_BIN` names, or else built now, with the profile `e2e`.
///
/// # Panics
/// When it cannot be built: no test can go on.
pub fn kvorum() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| match std::env::var_os("KVORUM_BIN") {
        Some(path) => {
            let path = workspace().join(path);
            assert!(path.is_file(), "KVORUM_BIN names {}, which is no file", path.display());
            path
        }
        None => build("e2e").expect("the program under test must build"),
    })
}

/// Builds the program with a cargo profile and says where it is.
///
/// # Errors
/// When cargo fails.
pub fn build(profile: &str) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--package", "kvorum", "--bin", "kvorum", "--profile", profile])
        .current_dir(workspace())
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "cargo build --package kvorum --profile {profile} failed");
    // Cargo's one exception: what the profile `dev` makes goes to `debug`.
    let folder = if profile == "dev" { "debug" } else { profile };
    Ok(target_dir().join(folder).join("kvorum"))
}

/// A Python that has redis-py: `KVORUM_PYTHON`, or the environment that `cargo xtask prepare` makes.
///
/// # Errors
/// When it is not there.
pub fn python() -> Result<PathBuf> {
    let path = match std::env::var_os("KVORUM_PYTHON") {
        Some(path) => path.into(),
        None => target_dir().join("python/bin/python"),
    };
    ensure!(path.exists(), "{} is not there: run `cargo xtask prepare` first", path.display());
    Ok(path)
}
