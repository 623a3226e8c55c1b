//! The server processes of a playground: started, watched, stopped.
//!
//! They are children of this process and do not outlive it, however it ends: each is told to watch its parent.
//! None is ever restarted here, for a playground is where one looks at what a dead server does. Their log lines
//! come together on standard output, each with its server in front; when that output is too slow, lines are
//! dropped and counted, because a server must never wait for a terminal.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Command;
use tokio::sync::mpsc;

use super::plan::PlannedServer;

/// How long the servers may take to stop before they are killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// Lines that wait for the terminal.
const WAITING_LINES: usize = 10_000;
/// Settings that differ between the servers of one machine: an environment variable must not set them for all.
const PER_SERVER: [&str; 4] = ["KVORUM_ANNOUNCE_HOST", "KVORUM_BIND", "KVORUM_BASE_PORT", "KVORUM_DIR"];

/// A server process ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Which server, from 1.
    pub(crate) server: u16,
    /// How, in words: `exited with code 1`, `was killed by signal 9`.
    pub(crate) how: String,
}

/// The server processes that run.
#[derive(Debug)]
pub(crate) struct Children {
    running: Vec<(u16, Pid)>,
    ended: mpsc::Receiver<(u16, io::Result<ExitStatus>)>,
}

impl Children {
    /// Starts every server with this same program. Must be called from the main thread: the children watch the
    /// thread that started them.
    pub(crate) fn start(servers: &[PlannedServer], output: &Output) -> Result<Children> {
        let program = std::env::current_exe().context("finding this program's file")?;
        let (report, ended) = mpsc::channel(servers.len());
        let mut children = Children { running: Vec::new(), ended };
        for server in servers {
            let child = command(&program, server)
                .spawn()
                .with_context(|| format!("starting {} for server {}", program.display(), server.number));
            let mut child = match child {
                Ok(child) => child,
                Err(e) => {
                    children.signal_all(Signal::KILL);
                    return Err(e);
                }
            };
            let pid = child.id().and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
            children.running.push((server.number, pid.context("a server ended while it was started")?));
            let label = Arc::new(output.label(server.number));
            let lines = [
                child.stdout.take().map(|pipe| tokio::spawn(forward(pipe, label.clone(), output.clone()))),
                child.stderr.take().map(|pipe| tokio::spawn(forward(pipe, label, output.clone()))),
            ];
            let (number, report) = (server.number, report.clone());
            tokio::spawn(async move {
                let status = child.wait().await;
                // Its last words come before the news of its end.
                for lines in lines.into_iter().flatten() {
                    let _ = tokio::time::timeout(Duration::from_secs(1), lines).await;
                }
                let _ = report.send((number, status)).await;
            });
        }
        Ok(children)
    }

    /// The servers that run, as number and process id.
    pub(crate) fn running(&self) -> impl Iterator<Item = (u16, i32)> {
        self.running.iter().map(|(number, pid)| (*number, pid.as_raw_nonzero().get()))
    }

    /// Whether none runs any more.
    pub(crate) fn all_ended(&self) -> bool {
        self.running.is_empty()
    }

    /// Waits until a server ends; for ever when none runs. Cancel-safe.
    pub(crate) async fn next_end(&mut self) -> Ended {
        match self.ended.recv().await {
            Some((server, status)) => {
                self.running.retain(|(number, _)| *number != server);
                Ended { server, how: describe(status) }
            }
            None => std::future::pending().await,
        }
    }

    /// Asks all servers to stop and waits for them, kills those that take too long or all when `hurry` resolves.
    /// Returns the servers that did not stop cleanly.
    pub(crate) async fn stop(mut self, hurry: impl Future<Output = ()>) -> Vec<Ended> {
        let mut unclean = Vec::new();
        self.signal_all(Signal::TERM);
        let deadline = tokio::time::sleep(STOP_TIMEOUT);
        tokio::pin!(deadline, hurry);
        let mut killed = false;
        while !self.all_ended() {
            tokio::select! {
                ended = self.next_end() => {
                    if ended.how != CLEAN {
                        unclean.push(ended);
                    }
                }
                () = &mut deadline, if !killed => killed = true,
                () = &mut hurry, if !killed => killed = true,
            }
            if killed {
                self.signal_all(Signal::KILL);
            }
        }
        unclean
    }

    fn signal_all(&self, signal: Signal) {
        for (_, pid) in &self.running {
            // The process may have ended just now; its end is then on its way to us.
            let _ = rustix::process::kill_process(*pid, signal);
        }
    }
}

fn command(program: &Path, server: &PlannedServer) -> Command {
    let mut command = Command::new(program);
    command.arg("server").arg("--config").arg(&server.config);
    command.arg("--exit-with-parent").arg(std::process::id().to_string());
    for name in PER_SERVER {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    // A group of its own, so that Ctrl-C reaches this process alone, which then stops the servers in order.
    command.process_group(0);
    command
}

const CLEAN: &str = "exited with code 0";

fn describe(status: io::Result<ExitStatus>) -> String {
    use std::os::unix::process::ExitStatusExt;
    match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("exited with code {code}"),
            (None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None) => format!("ended: {status}"),
        },
        Err(e) => format!("cannot be watched any more: {e}"),
    }
}

async fn forward(pipe: impl AsyncRead + Unpin, label: Arc<String>, output: Output) {
    let mut pipe = BufReader::new(pipe);
    let mut line = Vec::new();
    while matches!(pipe.read_until(b'\n', &mut line).await, Ok(n) if n > 0) {
        let text = String::from_utf8_lossy(&line);
        output.log(format!("{label} {}\n", text.trim_end()));
        line.clear();
    }
}

/// Standard output, written by a thread of its own.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    lines: SyncSender<String>,
    dropped: Arc<AtomicU64>,
    colored: bool,
}

/// Resolves when everything that was printed has been written.
pub(crate) struct OutputEnd(Receiver<()>);

impl Output {
    /// Starts the thread.
    pub(crate) fn start() -> Result<(Output, OutputEnd)> {
        let (lines, waiting) = sync_channel::<String>(WAITING_LINES);
        let (finished, end) = sync_channel(1);
        let dropped = Arc::new(AtomicU64::new(0));
        let colored = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let missing = dropped.clone();
        std::thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || {
                let mut stdout = io::stdout().lock();
                for line in waiting {
                    // When nobody reads any more, the servers go on all the same.
                    let _ = stdout.write_all(line.as_bytes());
                    let lost = missing.swap(0, Ordering::Relaxed);
                    if lost > 0 {
                        let _ = writeln!(stdout, "… {lost} log lines were dropped: the output is too slow …");
                    }
                    let _ = stdout.flush();
                }
                let _ = finished.send(());
            })
            .context("starting the output thread")?;
        Ok((Output { lines, dropped, colored }, OutputEnd(end)))
    }

    /// Prints text of our own; waits for the terminal if it must.
    pub(crate) fn print(&self, text: impl Into<String>) {
        let _ = self.lines.send(text.into());
    }

    /// Prints a log line of a server, or drops it when the terminal does not keep up.
    fn log(&self, line: String) {
        if self.lines.try_send(line).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What stands in front of a server's lines.
    fn label(&self, server: u16) -> String {
        if self.colored {
            format!("\x1b[3{}mserver-{server} |\x1b[0m", 1 + (server + 4) % 6)
        } else {
            format!("server-{server} |")
        }
    }
}

impl OutputEnd {
    /// Waits until all is written, but not for a terminal that stands still.
    pub(crate) fn wait(self) {
        let _ = self.0.recv_timeout(Duration::from_secs(2));
    }
}
