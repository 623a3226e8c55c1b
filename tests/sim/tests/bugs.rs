//! Does the simulation find what it was not written for? Each known bug is put back, and seeds run until one breaks an
//! invariant. `docs/testing.md` has the table of how fast.

use std::process::Command;

/// A bug that this many seeds do not show would not be found.
const SEEDS: u64 = 200;

fn hunt(bug: &str) -> Result<String, String> {
    let seeds = SEEDS.to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_kvorum-sim"))
        .args(["check", "--hunt", "--seeds", &seeds, "--bug", bug])
        .output()
        .map_err(|error| error.to_string())?;
    let out = String::from_utf8_lossy(&output.stdout);
    let found = out.lines().find(|line| line.starts_with("VIOLATION"));
    let summary = out.lines().last().unwrap_or_default();
    match found {
        Some(found) => Ok(format!("{bug}: {summary}: {found}")),
        None => Err(format!("{bug} was not found: {summary} {}", String::from_utf8_lossy(&output.stderr))),
    }
}

#[test]
fn each_bug_is_found_within_two_hundred_seeds() {
    let hunts: Vec<_> = kvorum_bugs::BUGS.iter().map(|(name, _)| hunt(name)).collect();
    for hunt in &hunts {
        match hunt {
            Ok(text) | Err(text) => eprintln!("{}", text.chars().take(400).collect::<String>()),
        }
    }
    let missed: Vec<_> = hunts.into_iter().filter_map(Result::err).collect();
    assert!(missed.is_empty(), "{missed:#?}");
}
