//! What the tests need besides Rust and a C compiler.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use kvorum_testkit::binary::{build, target_dir, workspace};
use kvorum_testkit::{compose, namespaces};

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

    /// The same for documents, with the commit of this working tree. Of a program that was there before nobody knows
    /// which commit it is of, nor does it matter where it lies.
    pub(crate) fn at_commit(&self, commit: &str) -> String {
        match &self.bin {
            Some(program) => {
                let name = program.file_name().unwrap_or(program.as_os_str());
                format!("program `{}` as given, measured by commit {commit}", name.display())
            }
            None => format!("commit {commit}, {self}"),
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

/// What some tests need beside Rust and a C compiler, and the Debian packages that have it.
struct Need {
    is_missing: fn() -> Vec<&'static str>,
    packages: &'static [&'static str],
}

/// For every lane.
const ALWAYS: Need = Need {
    is_missing: || {
        let mut missing = not_on_path(&["redis-server", "redis-cli", "redis-benchmark"]);
        if !succeeds(Command::new("python3").args(["-c", "import venv, ensurepip"])) {
            missing.push("python3 with venv");
        }
        missing
    },
    packages: &["redis-server", "redis-tools", "python3-venv"],
};
const NAMESPACES: Need =
    Need { is_missing: || not_on_path(&namespaces::PROGRAMS), packages: &["iproute2", "iptables"] };
const HIREDIS: Need = Need {
    is_missing: || {
        let includes = ["-fsyntax-only", "-include", "hiredis/hiredis.h", "-x", "c", "/dev/null"];
        if succeeds(Command::new("cc").args(includes)) { Vec::new() } else { vec!["hiredis for C"] }
    },
    packages: &["libhiredis-dev"],
};
const COMPOSE: Need = Need {
    is_missing: || {
        let mut missing = not_on_path(&compose::PROGRAMS);
        let version = |program: &str, argument: Option<&str>| {
            succeeds(Command::new(program).args(argument).arg("version"))
        };
        if !version("docker", Some("compose")) && !version("docker-compose", None) {
            missing.push("docker-compose, or docker's plugin compose");
        }
        missing
    },
    packages: &["docker.io", "docker-compose", "iptables", "util-linux"],
};

/// Makes sure that everything is there that `lanes` need. As root on a Debian, what is missing is installed; elsewhere the command to
/// install it is part of the error. Returns a Python with redis-py.
pub(crate) fn prepare(lanes: &[&str]) -> Result<PathBuf> {
    let mut needs = vec![ALWAYS];
    let needs_namespaces = ["namespaces", "client_failover"].iter().any(|lane| lanes.contains(lane));
    needs.extend(needs_namespaces.then_some(NAMESPACES));
    needs.extend(lanes.contains(&"client_failover").then_some(HIREDIS));
    needs.extend(lanes.contains(&"compose").then_some(COMPOSE));
    let missing = || needs.iter().flat_map(|need| (need.is_missing)()).collect::<Vec<_>>();
    let packages = || {
        let wanted = needs.iter().filter(|need| !(need.is_missing)().is_empty());
        wanted.flat_map(|need| need.packages).copied().collect::<Vec<_>>().join(" ")
    };
    if !missing().is_empty() {
        let packages = packages();
        let install = format!("apt-get update && apt-get install -y {packages}");
        let may_install = rustix::process::geteuid().is_root() && on_path("apt-get");
        ensure!(may_install, "missing: {}. As root on Debian or Ubuntu: {install}", missing().join(", "));
        println!("installing {packages}");
        // Debian would start a redis-server at once; nobody here wants that one.
        let install = Command::new("bash")
            .args(["-ec", &install])
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("RUNLEVEL", "1")
            .stdout(Stdio::null())
            .status()?;
        ensure!(install.success(), "apt-get failed");
        let missing = missing();
        ensure!(missing.is_empty(), "still missing after apt-get: {}", missing.join(", "));
    }
    python_with_redis()
}

fn not_on_path(programs: &[&'static str]) -> Vec<&'static str> {
    programs.iter().copied().filter(|program| !on_path(program)).collect()
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
    // Where root's programs are, which not every shell has in its path.
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).any(|dir| dir.join(program).is_file())
}

fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}
