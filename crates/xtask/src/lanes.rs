//! `ci` and `test`: lanes one after the other, each with a limit and its minutes.
//!
//! A lane is a cargo command. All lanes run even when one fails, so that one look shows everything; a lane that
//! ran no test has failed. Tests of a lane run one at a time: a lane starts whole clusters and measures time.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write, pipe};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kvorum_testkit::binary::{self, workspace};
use kvorum_testkit::image;
use rustix::process::{Pid, Signal};

use crate::tools;

/// The end-to-end lanes: test targets of `kvorum-tests`, in the order in which they run.
pub(crate) const END_TO_END: [&str; 26] = [
    "first_slice",
    "standalone",
    "sentinel",
    "metrics",
    "shutdown",
    "leak",
    "dev_command",
    "readme_tour",
    "clients",
    "scripts",
    "handshakes",
    "differential",
    "burst",
    "handover",
    "leader_kill",
    "large_values",
    "torn_and_flipped",
    "linearizable",
    "crash_loop",
    "power_loss",
    "membership",
    "catch_up",
    "partition",
    "namespaces",
    "client_failover",
    "compose",
];
/// The lanes of the simulation, which needs an optimised build: its own arguments of `cargo test`.
const SIMULATED: [(&str, &[&str]); 2] = [
    ("simulation", &["--bins", "--test", "simulation"]),
    ("bugs", &["--features", "bugs", "--test", "bugs"]),
];
/// The most that one lane may take.
const LANE_LIMIT: Duration = Duration::from_secs(20 * 60);

/// Arguments of `cargo xtask test`.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Only these lanes: `unit`, `doctest`, or an end-to-end lane
    lanes: Vec<String>,
    /// Test this program instead of building one
    #[arg(long, value_name = "FILE")]
    bin: Option<PathBuf>,
}

/// Everything that has to pass.
pub(crate) fn ci() -> Result<()> {
    let mut report = Report::default();
    report.run("format", cargo(&["fmt", "--all", "--check"]), false);
    let clippy = ["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"];
    report.run("clippy", cargo(&clippy), false);
    let mut docs = cargo(&["doc", "--locked", "--workspace", "--no-deps"]);
    docs.env("RUSTDOCFLAGS", "-D warnings");
    report.run("docs", docs, false);
    // A workspace of its own, whose lock file nobody else looks at.
    let fuzz = cargo(&["fetch", "--locked", "--manifest-path", "fuzz/Cargo.toml"]);
    report.run("fuzz lock", fuzz, false);
    run_tests(&Args::default(), &mut report)?;
    report.close()
}

/// Everything that tests.
pub(crate) fn test(args: &Args) -> Result<()> {
    let names = names();
    if let Some(unknown) = args.lanes.iter().find(|lane| !names.contains(&lane.as_str())) {
        bail!("there is no lane {unknown}; there are {}", names.join(", "));
    }
    let mut report = Report::default();
    run_tests(args, &mut report)?;
    report.close()
}

/// All lanes, in the order in which they run.
fn names() -> Vec<&'static str> {
    ["unit", "doctest"].into_iter().chain(SIMULATED.map(|(lane, _)| lane)).chain(END_TO_END).collect()
}

fn run_tests(args: &Args, report: &mut Report) -> Result<()> {
    let wanted = |lane: &str| args.lanes.is_empty() || args.lanes.iter().any(|wanted| wanted == lane);
    let began = Instant::now();
    let lanes: Vec<&str> = END_TO_END.into_iter().filter(|lane| wanted(lane)).collect();
    let python = tools::prepare(&lanes)?;
    report.note("prepare", began, Ok(()));

    if wanted("unit") {
        let packages = ["--workspace", "--exclude", "kvorum-tests", "--exclude", "kvorum-sim"];
        let arguments = [&packages[..], &["--lib", "--bins", "--tests"]].concat();
        report.run("unit", cargo(&[&["test", "--locked", "--no-fail-fast"], &arguments[..]].concat()), true);
    }
    if wanted("doctest") {
        let arguments =
            ["test", "--locked", "--no-fail-fast", "--workspace", "--exclude", "kvorum-tests", "--doc"];
        // Crates need not have examples; those that are there must pass.
        report.run("doctest", cargo(&arguments), false);
    }
    for (lane, arguments) in SIMULATED {
        if wanted(lane) {
            let test = ["test", "--locked", "--profile", "e2e", "--package", "kvorum-sim"];
            let tail = ["--", "--test-threads", "1", "--nocapture"];
            report.run(lane, cargo(&[&test[..], arguments, &tail[..]].concat()), true);
        }
    }
    if lanes.is_empty() {
        return Ok(());
    }
    let began = Instant::now();
    let program = match &args.bin {
        Some(program) => program.canonicalize().with_context(|| format!("{}", program.display())),
        None => binary::build("e2e"),
    };
    report.note("build", began, program.as_ref().map(drop).map_err(|e| format!("{e:#}")));
    let Ok(program) = program else { return Ok(()) };
    let static_program = if lanes.contains(&"compose") {
        let began = Instant::now();
        let program = image::build_static("e2e");
        report.note("build static", began, program.as_ref().map(drop).map_err(|e| format!("{e:#}")));
        program.ok()
    } else {
        None
    };
    for lane in lanes {
        let mut command = cargo(&["test", "--locked", "--package", "kvorum-tests", "--test", lane]);
        command.args(["--", "--test-threads", "1", "--nocapture"]);
        command.env("KVORUM_BIN", &program).env("KVORUM_PYTHON", &python);
        if let Some(program) = &static_program {
            command.env("KVORUM_STATIC_BIN", program);
        }
        report.run(lane, command, true);
    }
    Ok(())
}

/// One lane with other numbers, which it takes from its environment.
pub(crate) fn soak(lane: &str, numbers: &[(&str, u64)]) -> Result<()> {
    let python = tools::prepare(&[lane])?;
    let program = binary::build("e2e")?;
    let mut command = cargo(&["test", "--locked", "--package", "kvorum-tests", "--test", lane]);
    command.args(["--", "--test-threads", "1", "--nocapture"]);
    command.env("KVORUM_BIN", program).env("KVORUM_PYTHON", python);
    for (name, number) in numbers {
        command.env(name, number.to_string());
    }
    ensure!(command.status().context("starting cargo")?.success(), "{lane} failed");
    Ok(())
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(workspace());
    command
}

/// What came of the lanes so far.
#[derive(Default)]
struct Report {
    lanes: Vec<Lane>,
}

struct Lane {
    name: String,
    took: Duration,
    tests: Tests,
    printed: Excerpt,
    failure: Option<String>,
}

/// What the closing lines of `cargo test` add up to.
#[derive(Clone, Copy, Default)]
struct Tests {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Report {
    fn run(&mut self, name: &str, command: Command, has_tests: bool) {
        println!("\n=== {name}");
        let began = Instant::now();
        let mut printed = Excerpt::default();
        let (tests, ended) = watch(command, &mut printed);
        let ended = ended.map_err(|e| format!("{e:#}")).and_then(|()| match tests {
            Tests { passed: 0, .. } if has_tests => Err("ran no test".to_owned()),
            Tests { ignored: 1.., .. } => Err("ignored a test".to_owned()),
            _ => Ok(()),
        });
        self.note(name, began, ended);
        if let Some(lane) = self.lanes.last_mut() {
            lane.tests = tests;
            lane.printed = printed;
        }
    }

    fn note(&mut self, name: &str, began: Instant, ended: Result<(), String>) {
        let took = began.elapsed();
        match &ended {
            Ok(()) => println!("=== {name}: ok, {}", minutes(took)),
            Err(why) => println!("=== {name}: FAILED, {}: {why}", minutes(took)),
        }
        let (name, failure) = (name.to_owned(), ended.err());
        let (tests, printed) = (Tests::default(), Excerpt::default());
        self.lanes.push(Lane { name, took, tests, printed, failure });
    }

    fn close(self) -> Result<()> {
        for lane in self.lanes.iter().filter(|lane| lane.failure.is_some()) {
            println!("\n=== of {}, which failed:", lane.name);
            for line in lane.printed.lines() {
                println!("{line}");
            }
        }
        println!("\n{:<18} {:>9}  {:>7}  result", "lane", "minutes", "tests");
        let mut sum = (Duration::ZERO, Tests::default());
        for lane in &self.lanes {
            let result = lane.failure.as_deref().map_or("ok".to_owned(), |why| format!("FAILED: {why}"));
            let minutes = lane.took.as_secs_f64() / 60.0;
            println!("{:<18} {minutes:>9.1}  {:>7}  {result}", lane.name, lane.tests.passed);
            sum.0 += lane.took;
            sum.1.passed += lane.tests.passed;
            sum.1.failed += lane.tests.failed;
        }
        println!("{:<18} {:>9.1}", "all", sum.0.as_secs_f64() / 60.0);
        println!("\n{} passed, {} failed", sum.1.passed, sum.1.failed);
        let failed: Vec<&str> =
            self.lanes.iter().filter(|l| l.failure.is_some()).map(|l| l.name.as_str()).collect();
        ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
        Ok(())
    }
}

fn minutes(took: Duration) -> String {
    format!("{:.1} min", took.as_secs_f64() / 60.0)
}

/// What is shown again at the end of a lane that failed: its panics and errors, and its last lines.
#[derive(Default)]
struct Excerpt {
    faults: Vec<String>,
    /// So many lines more belong to the fault before.
    more: usize,
    last: VecDeque<String>,
}

impl Excerpt {
    /// Lines shown of one fault, of all faults, and of the end.
    const OF_ONE: usize = 12;
    const OF_ALL: usize = 120;
    const OF_THE_END: usize = 20;
    /// Characters of a line.
    const WIDTH: usize = 400;

    fn add(&mut self, line: &str) {
        let line: String = line.chars().take(Excerpt::WIDTH).collect();
        if line.contains(" panicked at ") || line.starts_with("error") {
            self.more = Excerpt::OF_ONE;
        }
        if self.more > 0 && self.faults.len() < Excerpt::OF_ALL {
            self.more -= 1;
            self.faults.push(line.clone());
        }
        if self.last.len() == Excerpt::OF_THE_END {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    fn lines(&self) -> impl Iterator<Item = &str> {
        self.faults.iter().map(String::as_str).chain(["…"]).chain(self.last.iter().map(String::as_str))
    }
}

/// Runs a command, passes its output on, keeps the part that `printed` wants, and counts the tests it speaks of.
fn watch(mut command: Command, printed: &mut Excerpt) -> (Tests, Result<()>) {
    let mut tests = Tests::default();
    let spawned = pipe().and_then(|(output, input)| {
        // Both into one pipe, for a panic's text comes by the other one. A group of its own, so that a lane out of time is
        // ended with all it started.
        command.stdin(Stdio::null()).stdout(input.try_clone()?).stderr(input).process_group(0);
        Ok((output, command.spawn()?))
    });
    let started = spawned.with_context(|| format!("starting {command:?}"));
    // The command holds the pipe's other end, which must close with the child.
    drop(command);
    let (output, mut child) = match started {
        Ok(started) => started,
        Err(e) => return (tests, Err(e)),
    };
    let Some(group) = group_of(&child) else {
        return (tests, Err(anyhow::anyhow!("a child without a number")));
    };
    let (done, ended) = std::sync::mpsc::channel::<()>();
    let guard = std::thread::spawn(move || {
        let in_time = ended.recv_timeout(LANE_LIMIT) != Err(std::sync::mpsc::RecvTimeoutError::Timeout);
        if !in_time {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        in_time
    });
    for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        if let Some(counts) = line.strip_prefix("test result: ") {
            count(counts, &mut tests);
        }
        printed.add(&line);
        println!("{line}");
        let _ = std::io::stdout().flush();
    }
    let status = child.wait();
    drop(done);
    let in_time = guard.join().unwrap_or(false);
    let ended = match status {
        _ if !in_time => Err(anyhow::anyhow!("stopped after {}", minutes(LANE_LIMIT))),
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(anyhow::anyhow!("{status}")),
        Err(e) => Err(e.into()),
    };
    (tests, ended)
}

fn group_of(child: &Child) -> Option<Pid> {
    Pid::from_raw(child.id().try_into().ok()?)
}

/// Adds the counts of `ok. 3 passed; 0 failed; 0 ignored; …`.
fn count(line: &str, tests: &mut Tests) {
    for part in line.split([';', '.']) {
        let mut words = part.split_whitespace();
        if let (Some(Ok(n)), Some(what)) = (words.next().map(str::parse::<u64>), words.next()) {
            match what {
                "passed" => tests.passed += n,
                "failed" => tests.failed += n,
                "ignored" => tests.ignored += n,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_counted() {
        let mut tests = Tests::default();
        count("ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s", &mut tests);
        count(
            "FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
            &mut tests,
        );
        assert_eq!((tests.passed, tests.failed, tests.ignored), (7, 2, 1));
    }

    #[test]
    fn a_fault_in_the_middle_is_shown_again_with_the_end() {
        let mut printed = Excerpt::default();
        let lines = (0..1000).map(|n| match n {
            300 => "thread 'that' (7) panicked at src/this.rs:1:2:".to_owned(),
            301 => "it is so".to_owned(),
            n => format!("line {n}"),
        });
        lines.for_each(|line| printed.add(&line));
        let shown: Vec<&str> = printed.lines().collect();
        assert!(shown[0].contains("panicked at") && shown[1] == "it is so");
        assert_eq!(shown.len(), Excerpt::OF_ONE + 1 + Excerpt::OF_THE_END);
        assert_eq!(shown.last(), Some(&"line 999"));
    }

    #[test]
    fn every_lane_is_a_test_target_and_every_test_target_is_a_lane() {
        let manifest = std::fs::read_to_string(workspace().join("tests/Cargo.toml")).unwrap();
        let named = |line: &str| Some(line.strip_prefix("name = \"")?.strip_suffix('"')?.to_owned());
        let mut targets: Vec<String> =
            manifest.split("[[test]]").skip(1).filter_map(|t| t.lines().find_map(named)).collect();
        let mut lanes: Vec<String> = END_TO_END.map(str::to_owned).to_vec();
        targets.sort();
        lanes.sort();
        assert_eq!(targets, lanes);
    }
}
