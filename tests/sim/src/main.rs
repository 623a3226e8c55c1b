//! Whole Kvorum clusters in one process, on simulated time, from one seed.
//!
//! Real nodes (identity, log, Raft, proposer, meta group, announcements) run on a simulated disk, network and clock, under
//! faults, beside clients that write down what they are told; `judge.rs` has the invariants. `run` does one seed, `check` many
//! (one process each, so that nothing one seed did can reach another), `gate` one seed twice and compares the traces.
//!
//! What it leaves out: the wire protocols (RESP, those of peers), the server crate, threads.

mod client;
mod clock;
mod entropy;
mod judge;
mod nemesis;
mod operator;
mod run;
mod server;
mod steady;
mod trace;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use kvorum_testkit::process::cpu_time;
use std::collections::BTreeMap;
use std::io::Read;
use std::process::{Command, ExitCode, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A simulation takes a second or so of a processor; one that takes this much of it hangs.
const LONGEST_RUN: Duration = Duration::from_secs(60);
/// One that waits for ever takes nothing. On a busy machine others may wait long, too.
const LONGEST_WAIT: Duration = Duration::from_secs(15 * 60);

/// Simulates whole clusters.
#[derive(Parser)]
enum Arguments {
    /// One seed
    Run {
        #[arg(long)]
        seed: u64,
        /// Print what happened
        #[arg(long)]
        trace: bool,
        /// Puts a known bug back (needs the feature `bugs`)
        #[arg(long)]
        bug: Option<String>,
    },
    /// The seeds from `first` on
    Check {
        #[arg(long, default_value_t = 1)]
        first: u64,
        #[arg(long, default_value_t = 200)]
        seeds: u64,
        /// Processes at a time
        #[arg(long, default_value_t = 2)]
        jobs: usize,
        #[arg(long)]
        bug: Option<String>,
        /// Stop at the first violation, which is what was looked for
        #[arg(long)]
        hunt: bool,
    },
    /// Clusters in which nobody is lost, which must elect nobody, then leaders that are
    Steady {
        #[arg(long, default_value_t = 1)]
        first: u64,
        #[arg(long, default_value_t = 10)]
        seeds: u64,
    },
    /// One seed twice, in two processes: the traces must be equal
    Gate {
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

#[expect(clippy::print_stdout, reason = "a program for people and for the test that runs it")]
fn main() -> Result<ExitCode> {
    match Arguments::parse() {
        Arguments::Run { seed, trace, bug } => {
            choose(bug.as_deref())?;
            if std::env::var_os("RUST_LOG").is_some() {
                tracing_subscriber::fmt()
                    .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
                    .without_time()
                    .with_writer(std::io::stderr)
                    .init();
            }
            let report = run::run(seed, trace);
            print!("{}", report.trace);
            println!(
                "seed {seed}: {}; trace {} lines, {:016x}",
                report.summary, report.digest.0, report.digest.1
            );
            if let Some(violation) = report.violation {
                println!("VIOLATION in seed {seed}: {violation}");
                return Ok(ExitCode::from(2));
            }
            Ok(ExitCode::SUCCESS)
        }
        Arguments::Check { first, seeds, jobs, bug, hunt } => check(first, seeds, jobs, bug.as_deref(), hunt),
        Arguments::Steady { first, seeds } => steady(first, seeds),
        Arguments::Gate { seed } => {
            let once = simulate(seed, None, true)?;
            let again = simulate(seed, None, true)?;
            let (once, again) = (String::from_utf8(once.stdout)?, String::from_utf8(again.stdout)?);
            ensure!(once.lines().count() > 1000, "the run was too short to prove anything");
            if let Some((n, (a, b))) = once.lines().zip(again.lines()).enumerate().find(|(_, (a, b))| a != b)
            {
                bail!("seed {seed}: the traces part at line {n}:\n  {a}\n  {b}");
            }
            ensure!(once == again, "seed {seed}: one trace is longer");
            println!("seed {seed}: twice the same {} lines", once.lines().count());
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Puts a bug back.
#[cfg(feature = "bugs")]
fn choose(bug: Option<&str>) -> Result<()> {
    if let Some(bug) = bug {
        ensure!(kvorum_bugs::choose(bug), "there is no bug '{bug}': {:?}", kvorum_bugs::BUGS);
    }
    Ok(())
}

#[cfg(not(feature = "bugs"))]
fn choose(bug: Option<&str>) -> Result<()> {
    ensure!(bug.is_none(), "this build has no bugs to choose from: build with --features bugs");
    Ok(())
}

fn simulate(seed: u64, bug: Option<&str>, trace: bool) -> Result<Output> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["run", "--seed", &seed.to_string()]);
    if trace {
        command.arg("--trace");
    }
    if let Some(bug) = bug {
        command.args(["--bug", bug]);
    }
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("starting a simulation")?;
    // Its output is read meanwhile, or a long trace would stop it.
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let out = std::thread::spawn(move || read_all(&mut stdout));
    let err = std::thread::spawn(move || read_all(&mut stderr));
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if cpu_time(child.id())? > LONGEST_RUN || began.elapsed() > LONGEST_WAIT {
            child.kill()?;
            child.wait()?;
            bail!("VIOLATION in seed {seed}: it does not end: simulated time has stopped");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let join = |thread: std::thread::JoinHandle<Vec<u8>>| thread.join().unwrap_or_default();
    Ok(Output { status, stdout: join(out), stderr: join(err) })
}

fn read_all(from: &mut Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        // What came before an error is all there is to show.
        let _ = from.read_to_end(&mut bytes);
    }
    bytes
}

/// Runs every trouble with every seed.
#[expect(clippy::print_stdout, reason = "a program for people and for the test that runs it")]
fn steady(first: u64, seeds: u64) -> Result<ExitCode> {
    let mut passed = true;
    for trouble in steady::TROUBLES {
        let mut gaps = Vec::new();
        for seed in first..first + seeds {
            match steady::run(seed, trouble) {
                Ok(more) => gaps.extend(more),
                Err(why) => {
                    println!("VIOLATION in seed {seed}, {trouble:?}: {why}");
                    passed = false;
                }
            }
        }
        gaps.sort_unstable();
        match (gaps.get(gaps.len() / 2), gaps.last()) {
            (Some(median), Some(worst)) => {
                println!(
                    "{trouble:?}: {} leaders killed, another after {median:?}, at most {worst:?}",
                    gaps.len()
                );
            }
            _ => println!("{trouble:?}: {seeds} clusters"),
        }
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

/// Runs many seeds, each in a process of its own.
#[expect(clippy::print_stdout, reason = "a program for people and for the test that runs it")]
fn check(first: u64, seeds: u64, jobs: usize, bug: Option<&str>, hunt: bool) -> Result<ExitCode> {
    let began = Instant::now();
    let (next, stop) = (AtomicU64::new(first), AtomicBool::new(false));
    let bad = parking_lot::Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        return;
                    }
                    let text = match simulate(seed, bug, false) {
                        Ok(output) if output.status.success() => continue,
                        Ok(output) => format!(
                            "{}{}",
                            String::from_utf8_lossy(&output.stdout),
                            String::from_utf8_lossy(&output.stderr)
                        ),
                        Err(error) => format!("{error:#}"),
                    };
                    bad.lock().insert(seed, text);
                    if hunt {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let bad = bad.into_inner();
    for text in bad.values() {
        println!("{text}");
    }
    let ran = next.load(Ordering::Relaxed).min(first + seeds) - first;
    println!(
        "{ran} seeds from {first} in {:.0} s: {} violations {:?}",
        began.elapsed().as_secs_f64(),
        bad.len(),
        bad.keys()
    );
    Ok(if bad.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) })
}
