//! `kvorum dev`: the second start continues with the data, Ctrl-C stops everything, and what cannot work is refused
//! before anything starts, in words that help.

use std::collections::BTreeSet;
use std::net::TcpListener;

use anyhow::{Context, Result};
use kvorum_testkit::playground::{Playground, kvorum};
use kvorum_testkit::ports::PortBlock;
use kvorum_testkit::{Client, Outcome, Value};

struct Place {
    dir: tempfile::TempDir,
    ports: PortBlock,
}

impl Place {
    fn new() -> Result<Place> {
        Ok(Place { dir: tempfile::tempdir()?, ports: PortBlock::take()? })
    }

    fn base(&self) -> u16 {
        self.ports.base()
    }

    fn start(&self, more: &[&str]) -> Result<Playground> {
        let [base, sentinel] = [self.base(), self.ports.sentinel()].map(|port| port.to_string());
        let ports = ["--data", "data", "--base-port", &base, "--sentinel-port", &sentinel];
        Playground::start(self.dir.path(), &[&ports, more].concat())
    }

    /// A start that must be refused; what it said.
    fn refused(&self, arguments: &[&str]) -> Result<String> {
        let (code, said) = kvorum(self.dir.path(), &[&["dev"], arguments].concat())?;
        assert_eq!(code, 1, "{said}");
        assert!(said.starts_with("kvorum: "), "{said}");
        Ok(said)
    }

    fn client(&self) -> Client {
        Client::new((0..3).map(|n| format!("127.0.0.1:{}", self.base() + 100 * n)))
    }

    fn server_pids(&self) -> Result<BTreeSet<u32>> {
        let mut pids = BTreeSet::new();
        for n in 1..=3 {
            let file = self.dir.path().join(format!("data/server-{n}/pid"));
            let text = std::fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
            pids.insert(text.trim().parse()?);
        }
        Ok(pids)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_start_continues_with_the_data() -> Result<()> {
    let place = Place::new()?;
    let mut pids = BTreeSet::new();
    for round in 0..3u32 {
        // After the first start no flag is needed but the directory.
        let playground = if round == 0 {
            place.start(&[])?
        } else {
            Playground::start(place.dir.path(), &["--data", "data"])?
        };
        let said = playground.said();
        for expected in ["3 servers, 3 shards, quorum-fsync", &format!("redis-cli -c -p {}", place.base())] {
            assert!(said.contains(expected), "{expected:?} is not in:\n{said}");
        }
        let mut client = place.client();
        for n in 0..100u32 {
            let key = format!("key:{n}");
            let expected = if round == 0 { Value::Null } else { Value::bulk((round - 1).to_string()) };
            assert_eq!(client.call(&["GET", &key]).await, Outcome::Ok(expected), "round {round}, {key}");
            assert_eq!(client.call(&["SET", &key, &round.to_string()]).await, Outcome::Ok(Value::ok()));
        }
        pids = place.server_pids()?;
        assert_eq!(pids.len(), 3);
        let (status, said) = playground.interrupt()?;
        assert_eq!(status.code(), Some(0), "{said}");
        assert!(!said.contains("was killed") && !said.contains("panicked"), "{said}");
        for pid in &pids {
            assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "server process {pid} is left");
        }
    }
    assert!(!pids.is_empty());
    Ok(())
}

#[test]
fn a_busy_port_is_named_with_its_holder() -> Result<()> {
    let place = Place::new()?;
    let busy = place.base() + 101;
    let _holder = TcpListener::bind(("127.0.0.1", busy))?;
    let base = place.base().to_string();
    let said = place.refused(&["--data", "data", "--base-port", &base, "--sentinel-port", "0"])?;
    assert!(said.contains(&format!("port {busy} is in use by ")), "{said}");
    assert!(said.contains(&format!("(pid {})", std::process::id())), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_playground_is_not_started_twice() -> Result<()> {
    let place = Place::new()?;
    let running = place.start(&["--servers", "1", "--shards", "1"])?;
    let said = place.refused(&["--data", "data"])?;
    assert!(said.contains("in use by a running"), "{said}");
    assert_eq!(running.interrupt()?.0.code(), Some(0));
    Ok(())
}

#[test]
fn flags_that_contradict_the_directory_or_each_other_are_refused() -> Result<()> {
    let place = Place::new()?;
    let base = place.base().to_string();
    let (code, said) =
        kvorum(place.dir.path(), &["dev", "--prepare", "--data", "data", "--base-port", &base])?;
    assert_eq!(code, 0, "{said}");
    for n in 1..=3 {
        assert!(place.dir.path().join(format!("data/server-{n}/kvorum.toml")).is_file());
        assert!(said.contains(&format!("server --config data/server-{n}/kvorum.toml")), "{said}");
    }
    assert!(said.contains("cluster create --servers "), "{said}");
    for (flag, value) in [
        ("--servers", "5"),
        ("--shards", "4"),
        ("--base-port", "7100"),
        ("--sentinel-port", "7"),
        ("--durability", "quorum-memory"),
        ("--mode", "standalone"),
    ] {
        let said = place.refused(&["--data", "data", flag, value])?;
        assert!(said.contains(&format!("cannot continue with {flag} {value}")), "{said}");
    }
    let first = std::fs::read_to_string(place.dir.path().join("data/server-1/kvorum.toml"))?;
    let third = std::fs::read_to_string(place.dir.path().join("data/server-3/kvorum.toml"))?;
    assert!(first.contains("sentinel-port = 26379\n") && third.contains("sentinel-port = 26381\n"));
    let said = place.refused(&["--data", "other", "--durability", "none"])?;
    assert!(said.contains("--servers 1"), "{said}");
    let said = place.refused(&["--data", "other", "--mode", "standalone", "--shards", "3"])?;
    assert!(said.contains("exactly one shard"), "{said}");
    assert!(!place.dir.path().join("other/dev.toml").exists(), "what is refused leaves nothing behind");
    Ok(())
}
