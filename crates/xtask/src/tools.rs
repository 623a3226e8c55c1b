//! What the tests need besides Rust and a C compiler.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use kvorum_testkit::binary::{build, target_dir, workspace};

/// Which program is measured.
#[derive(Debug, clap::Args)]
pub(crate) struct Program {
    /// Cargo profile to build the program with
    #[arg(long, default_value = "release")]
    profile: String,
    /// Take this program instead of building one
    #[arg(long, value_name = "FILE")]
    bin: Option<PathBuf>,
}

impl Program {
    /// Builds it if need be.
    pub(crate) fn get(&self) -> Result<PathBuf> {
        match &self.bin {
            Some(program) => program.canonicalize().with_context(|| format!("{}", program.display())),
            None => build(&self.profile),
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.bin {
            Some(program) => write!(f, "program {}", program.display()),
            None => write!(f, "profile {}", self.profile),
        }
    }
}

const PROGRAMS: [&str; 3] = ["redis-server", "redis-cli", "redis-benchmark"];
const PACKAGES: [&str; 3] = ["redis-server", "redis-tools", "python3-venv"];

/// Makes sure that Redis's programs and a Python with redis-py are there. As root on a Debian, what is missing is
/// installed; elsewhere the command to install it is part of the error. Returns that Python.
pub(crate) fn prepare() -> Result<PathBuf> {
    let missing = missing();
    if !missing.is_empty() {
        let install = format!("apt-get update && apt-get install -y {}", PACKAGES.join(" "));
        let may_install = rustix::process::geteuid().is_root() && on_path("apt-get");
        ensure!(may_install, "missing: {}. As root on Debian or Ubuntu: {install}", missing.join(", "));
        println!("installing {}", PACKAGES.join(", "));
        // Debian would start a redis-server at once; nobody here wants that one.
        let install = Command::new("bash")
            .args(["-ec", &install])
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("RUNLEVEL", "1")
            .stdout(Stdio::null())
            .status()?;
        ensure!(install.success(), "apt-get failed");
        let missing = self::missing();
        ensure!(missing.is_empty(), "still missing after apt-get: {}", missing.join(", "));
    }
    python_with_redis()
}

fn missing() -> Vec<&'static str> {
    let mut missing: Vec<_> = PROGRAMS.into_iter().filter(|program| !on_path(program)).collect();
    let venv = succeeds(Command::new("python3").args(["-c", "import venv, ensurepip"]));
    if !venv {
        missing.push("python3 with venv");
    }
    missing
}

/// A virtual environment below `target/` with the pinned clients.
fn python_with_redis() -> Result<PathBuf> {
    let venv = target_dir().join("python");
    let python = venv.join("bin/python");
    let wanted = workspace().join("tests/compat/requirements.txt");
    let stamp = venv.join("requirements.txt");
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    if python.exists() && read(&stamp).is_some() && read(&stamp) == read(&wanted) {
        return Ok(python);
    }
    println!("making a Python environment with redis-py in {}", venv.display());
    let made = Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv).status()?;
    ensure!(made.success(), "python3 -m venv failed");
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
    let installed = Command::new(&python).args(pip).arg(&wanted).status()?;
    ensure!(installed.success(), "pip install -r {} failed", wanted.display());
    std::fs::copy(&wanted, &stamp).context("noting what was installed")?;
    Ok(python)
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}
