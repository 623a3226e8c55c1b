//! The container image of the program under test.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::binary::{target_dir, workspace};
use crate::cluster::succeed;

/// What the static program is built for: glibc's own start and look-up code, all in one file.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the program as one static file, with a cargo profile, and says where it is.
///
/// # Errors
/// When cargo fails.
pub fn build_static(profile: &str) -> Result<PathBuf> {
    ensure!(cfg!(all(target_arch = "x86_64", target_os = "linux")), "images are built on {TARGET} only");
    // Other flags rebuild everything: a folder of its own, so that they do so once.
    let target = target_dir().join("static");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--package", "kvorum", "--bin", "kvorum", "--profile", profile, "--target", TARGET])
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .current_dir(workspace())
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "the static program does not build");
    let folder = if profile == "dev" { "debug" } else { profile };
    Ok(target.join(TARGET).join(folder).join("kvorum"))
}

/// Makes the image `tag` of a static program, on `base`.
///
/// # Errors
/// When the program is not static, or the engine fails.
pub fn make(program: &Path, tag: &str, base: &str) -> Result<()> {
    ensure!(
        is_static(program)?,
        "{} needs a dynamic loader, which the image does not have",
        program.display()
    );
    let context = tempfile::tempdir().context("making a directory")?;
    std::fs::create_dir(context.path().join("data"))?;
    // Without the line tables, which are most of it.
    succeed(
        Command::new("strip").arg("--strip-debug").arg("-o").arg(context.path().join("kvorum")).arg(program),
    )?;
    let mut build = Command::new("docker");
    build.args(["build", "--quiet", "--tag", tag, "--build-arg", &format!("BASE={base}"), "--file"]);
    build.arg(workspace().join("deploy/docker/Dockerfile")).arg(context.path());
    succeed(&mut build).map(drop)
}

/// Whether an ELF file names no program that has to load it.
fn is_static(program: &Path) -> Result<bool> {
    let headers = succeed(Command::new("readelf").arg("--program-headers").arg("--wide").arg(program))?;
    Ok(!headers.contains("INTERP"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_is_not_static() {
        assert!(!is_static(&std::env::current_exe().unwrap()).unwrap());
    }
}
