//! A result with the conditions it was measured under: on the terminal, and in docs/performance.md when asked for.

use std::fmt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use kvorum_testkit::binary::{target_dir, workspace};
use kvorum_testkit::cluster::succeed;

use super::Run;
use super::figures::Spread;

/// Where and with what was measured.
#[derive(Debug)]
pub(super) struct Conditions {
    commit: String,
    redis: String,
    machine: String,
    syncs: Vec<f64>,
}

impl Conditions {
    /// What can be told before.
    pub(super) fn now() -> Result<Conditions> {
        let mut git = Command::new("git");
        git.args(["describe", "--always", "--dirty"]).current_dir(workspace());
        let commit = succeed(&mut git).unwrap_or_else(|_| "unknown".to_owned()).trim().to_owned();
        let redis = succeed(Command::new("redis-server").arg("--version"))?;
        let redis = redis.split(' ').find_map(|word| word.strip_prefix("v=")).unwrap_or("?").to_owned();
        let cpus = std::thread::available_parallelism()?;
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let machine = format!("{cpus} CPUs ({})", model.map_or("unknown", |model| model.1));
        Ok(Conditions { commit, redis, machine, syncs: Vec::new() })
    }

    /// Measures the disk: the median time of a 4 KiB write with `fdatasync`, over blocks that exist.
    pub(super) fn measure_disk(&mut self, dir: &Path) -> Result<()> {
        let file = tempfile::tempfile_in(dir)?;
        file.write_all_at(&[1; 256 * 1024], 0)?;
        file.sync_all()?;
        let mut micros = Vec::new();
        for n in 0..200u64 {
            let began = Instant::now();
            file.write_all_at(&[2; 4096], n % 64 * 4096)?;
            file.sync_data()?;
            micros.push(began.elapsed().as_secs_f64() * 1e6);
        }
        self.syncs.push(Spread::of(&micros).middle);
        Ok(())
    }

    fn text(&self, run: &Run) -> String {
        let mut text =
            format!("{}; redis-server {}; {}", run.program.at_commit(&self.commit), self.redis, self.machine);
        if !self.syncs.is_empty() {
            let Spread { low, middle, high } = Spread::of(&self.syncs);
            text.push_str(&format!(
                "; 4 KiB write + fdatasync on this disk: {middle:.0} µs ({low:.0}–{high:.0})"
            ));
        }
        text
    }
}

/// A table in Markdown.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Table {
    text: String,
}

impl Table {
    pub(super) fn new<C: AsRef<str>>(columns: impl IntoIterator<Item = C>) -> Table {
        let columns: Vec<C> = columns.into_iter().collect();
        let mut table = Table { text: String::new() };
        table.row(&columns);
        table.text.push_str(&format!("|{}\n", "---|".repeat(columns.len())));
        table
    }

    pub(super) fn row<C: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = C>) {
        self.text.push('|');
        for cell in cells {
            match cell.as_ref() {
                "" => self.text.push_str(" |"),
                cell => self.text.push_str(&format!(" {cell} |")),
            }
        }
        self.text.push('\n');
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A result.
pub(super) struct Report<'a> {
    /// `cluster`, `latency` …
    pub(super) name: &'a str,
    pub(super) run: &'a Run,
    pub(super) conditions: Conditions,
    /// What the table holds, in which units.
    pub(super) legend: String,
    pub(super) table: Table,
    /// What else there is to say, in paragraphs.
    pub(super) notes: Vec<String>,
    /// The picture, as SVG.
    pub(super) plot: String,
}

impl Report<'_> {
    /// Prints it and writes the plot; with `--append` it goes to the documents, too.
    pub(super) fn publish(&self) -> Result<()> {
        let body = self.body();
        println!("\n{body}");
        let date = succeed(Command::new("date").args(["-u", "+%F"]))?.trim().to_owned();
        if !self.run.append {
            let plots = target_dir().join("plots");
            std::fs::create_dir_all(&plots).with_context(|| format!("{}", plots.display()))?;
            let plot = plots.join(format!("{}.svg", self.name));
            std::fs::write(&plot, &self.plot).with_context(|| format!("{}", plot.display()))?;
            println!("plot: {}", plot.display());
            return Ok(());
        }
        let docs = workspace().join("docs");
        let plots = docs.join("plots");
        std::fs::create_dir_all(&plots)?;
        let name = format!("{date}-{}-{}", self.name, self.conditions.commit);
        let plot = free_name(&name, |plot| plots.join(plot).exists());
        std::fs::write(plots.join(&plot), &self.plot)?;
        let page = docs.join("performance.md");
        let text = std::fs::read_to_string(&page).with_context(|| format!("{}", page.display()))?;
        let command = command_line(std::env::args().skip(1));
        let section = format!("\n### {date}, `{command}`\n\n{body}\n![{}](plots/{plot})\n", self.caption());
        std::fs::write(&page, text.trim_end().to_owned() + "\n" + &section)?;
        println!("appended to {}", page.display());
        Ok(())
    }

    fn body(&self) -> String {
        let mut body = format!("{}\n\n{}\n\n{}", self.conditions.text(self.run), self.legend, self.table);
        for note in &self.notes {
            body.push_str(&format!("\n{note}\n"));
        }
        body
    }

    fn caption(&self) -> String {
        format!("bench {}, commit {}", self.name, self.conditions.commit)
    }
}

/// A file of this name, with a number when an earlier run of the same day and commit has it already.
fn free_name(name: &str, exists: impl Fn(&str) -> bool) -> String {
    let numbered = (2..).map(|n| format!("{name}-{n}.svg"));
    let mut names = [format!("{name}.svg")].into_iter().chain(numbered);
    names.find(|name| !exists(name)).expect("some number is free")
}

/// The command as somebody else would write it: where a file lies on this machine does not matter, nor that its
/// outcome was kept.
fn command_line(arguments: impl Iterator<Item = String>) -> String {
    let words =
        arguments.filter(|argument| argument != "--append").map(|argument| match argument.rsplit_once('/') {
            Some((_, name)) => match argument.split_once('=') {
                Some((flag, _)) => format!("{flag}={name}"),
                None => name.to_owned(),
            },
            None => argument,
        });
    ["cargo".to_owned(), "xtask".to_owned()].into_iter().chain(words).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_markdown() {
        let mut table = Table::new(["", "Redis"]);
        table.row(["SET P1", "1.0 k"]);
        assert_eq!(table.text, "| | Redis |\n|---|---|\n| SET P1 | 1.0 k |\n");
    }

    #[test]
    fn plots_of_earlier_runs_stay() {
        let there = ["a.svg", "a-2.svg"];
        assert_eq!(free_name("a", |name| there.contains(&name)), "a-3.svg");
        assert_eq!(free_name("b", |name| there.contains(&name)), "b.svg");
    }

    #[test]
    fn the_command_without_what_belongs_to_this_machine() {
        let words =
            ["bench", "cluster", "--append", "--bin", "/a/b/kvorum", "--bin=/a/kvorum", "--rounds", "5"];
        let line = command_line(words.into_iter().map(str::to_owned));
        assert_eq!(line, "cargo xtask bench cluster --bin kvorum --bin=kvorum --rounds 5");
    }
}
