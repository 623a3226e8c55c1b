//! `kvorum dev` as a user runs it: one process that starts the others.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal};

use crate::binary;

const LIMIT: Duration = Duration::from_secs(60);
/// The last thing `kvorum dev` says before it only shows logs.
const UP: &str = " is up.";

/// A running `kvorum dev`. Killed when dropped; its servers end with it.
#[derive(Debug)]
pub struct Playground {
    process: Child,
    output: PathBuf,
}

impl Playground {
    /// Starts `kvorum dev` with `arguments` in the directory `dir`, and waits until it says that it is up.
    ///
    /// # Errors
    /// When it ends before that, or takes longer than a minute; with what it said.
    pub fn start(dir: &Path, arguments: &[&str]) -> Result<Playground> {
        let output = dir.join("dev-output");
        let file = File::create(&output).with_context(|| format!("{}", output.display()))?;
        let mut command = Command::new(binary::kvorum());
        command.arg("dev").args(arguments).current_dir(dir);
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let process = command.spawn().context("starting kvorum dev")?;
        let mut playground = Playground { process, output };
        let deadline = Instant::now() + LIMIT;
        while !playground.said().contains(UP) {
            if let Some(status) = playground.process.try_wait()? {
                bail!("kvorum dev {arguments:?} ended ({status}):\n{}", playground.said());
            }
            ensure!(
                Instant::now() < deadline,
                "kvorum dev is not up after {LIMIT:?}:\n{}",
                playground.said()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(playground)
    }

    /// Everything it and its servers have printed so far.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.output).unwrap_or_default()).into_owned()
    }

    /// Does what Ctrl-C does, and waits for the end.
    ///
    /// # Errors
    /// When it is not gone after a minute.
    pub fn interrupt(mut self) -> Result<(ExitStatus, String)> {
        let pid = self.process.id().try_into().ok().and_then(Pid::from_raw).context("a process id")?;
        rustix::process::kill_process(pid, Signal::INT).context("interrupting kvorum dev")?;
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.process.try_wait()? {
                return Ok((status, self.said()));
            }
            ensure!(Instant::now() < deadline, "kvorum dev does not stop:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Playground {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("--- kvorum dev said:\n{}", self.said());
        }
    }
}

/// Runs `kvorum` with `arguments` to its end; returns its exit code, and what it said on both outputs.
///
/// # Errors
/// When it cannot be started, or was killed.
pub fn kvorum(dir: &Path, arguments: &[&str]) -> Result<(i32, String)> {
    let output =
        Command::new(binary::kvorum()).args(arguments).current_dir(dir).stdin(Stdio::null()).output()?;
    let said = [output.stdout, output.stderr].concat();
    let code = output.status.code().context("kvorum was killed")?;
    Ok((code, String::from_utf8_lossy(&said).into_owned()))
}
