//! The tour in the README does what the README says, word for word.
//!
//! A fenced block after a line `<!-- tour -->` is a terminal: a line that starts with `$ ` is a command, the lines up
//! to the next one are its output. The ports are moved to free ones, and back in the output. Commands run in one
//! directory beside a fresh `kvorum dev`, with the program under test first in the path.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use kvorum_testkit::binary;
use kvorum_testkit::playground::Playground;
use kvorum_testkit::ports::PortBlock;

const DEFAULT_BASE: u16 = 7100;
const SERVERS: u16 = 3;

struct Step {
    line: usize,
    command: String,
    output: String,
}

fn steps(readme: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let (mut marked, mut inside) = (false, false);
    for (number, line) in readme.lines().enumerate() {
        if line.trim() == "<!-- tour -->" {
            marked = true;
        } else if line.starts_with("```") {
            inside = marked && !inside;
            marked = false;
        } else if !line.trim().is_empty() && !inside {
            marked = false;
        } else if inside {
            match (line.strip_prefix("$ "), steps.last_mut()) {
                (Some(command), _) => {
                    steps.push(Step { line: number + 1, command: command.to_owned(), output: String::new() })
                }
                (None, Some(step)) => {
                    step.output.push_str(line);
                    step.output.push('\n');
                }
                (None, None) => panic!("README line {}: output before any command", number + 1),
            }
        }
    }
    steps
}

/// Moves every number that is one of the playground's ports from one base to another.
fn moved(text: &str, from: u16, to: u16) -> String {
    let mut moved = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        moved.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number = &rest[..end];
        match number.parse::<u16>() {
            Ok(port) if (from..from + 100 * SERVERS).contains(&port) && number.len() >= 4 => {
                moved.push_str(&(port - from + to).to_string());
            }
            _ => moved.push_str(number),
        }
        rest = &rest[end..];
    }
    moved + rest
}

fn run(command: &str, dir: &Path) -> Result<String> {
    let program = binary::kvorum().parent().context("the program lies in a folder")?;
    // The Python of the tour is one that has redis-py.
    let python = binary::target_dir().join("python/bin");
    let path =
        format!("{}:{}:{}", program.display(), python.display(), std::env::var("PATH").unwrap_or_default());
    // On a colour terminal redis-cli colours its reports even into a pipe.
    let mut bash = Command::new("bash");
    let output =
        bash.args(["-c", command]).current_dir(dir).env("PATH", path).env("TERM", "dumb").output()?;
    Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn the_tour_in_the_readme_is_true() -> Result<()> {
    let readme = std::fs::read_to_string(binary::workspace().join("README.md")).context("README.md")?;
    let steps = steps(&readme);
    ensure!(steps.len() >= 5, "the README has a tour of {} commands only", steps.len());
    let (dir, ports) = (tempfile::tempdir()?, PortBlock::take()?);
    let base = ports.base();
    let sentinel = ports.sentinel();
    let flags = ["--base-port", &base.to_string(), "--sentinel-port", &sentinel.to_string()];
    let playground = Playground::start(dir.path(), &flags)?;
    for step in &steps {
        let said = run(&moved(&step.command, DEFAULT_BASE, base), dir.path())?;
        let said = moved(&said, base, DEFAULT_BASE);
        assert_eq!(
            said.trim_end(),
            step.output.trim_end(),
            "README.md line {}: $ {}",
            step.line,
            step.command
        );
    }
    assert_eq!(playground.interrupt()?.0.code(), Some(0));
    Ok(())
}

#[test]
fn blocks_without_the_mark_are_not_part_of_the_tour() {
    let readme = "```sh\n$ not this\n```\n<!-- tour -->\n```console\n$ echo 1\n1\n$ echo 7101 71010\n7101 71010\n```\n\
                  <!-- tour -->\ntext\n```\n$ nor this\n```\n";
    let found = steps(readme);
    let found: Vec<_> = found.iter().map(|s| (s.line, s.command.as_str(), s.output.as_str())).collect();
    assert_eq!(found, [(6, "echo 1", "1\n"), (8, "echo 7101 71010", "7101 71010\n")]);
    assert_eq!(moved("a7101: 71010 -> 127.0.0.1:7399", 7100, 20_000), "a20001: 71010 -> 127.0.0.1:20299");
}
