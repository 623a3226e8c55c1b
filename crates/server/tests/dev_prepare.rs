//! `kvorum dev --prepare`, and what `kvorum dev` and `kvorum server` refuse before they start anything: the real
//! program, its output and the files it leaves.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

fn kvorum(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvorum"));
    command.current_dir(dir).args(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The one line on standard error of a command that failed with exit code 1.
fn refusal(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    let line = text
        .strip_prefix("kvorum: ")
        .and_then(|line| line.strip_suffix('\n'))
        .unwrap_or_else(|| panic!("{text}"));
    assert!(!line.contains('\n'), "{text}");
    line.to_owned()
}

#[test]
fn prepare_writes_the_configurations_and_prints_the_commands() {
    let dir = tempfile::tempdir().unwrap();
    let args =
        ["dev", "--prepare", "--servers", "2", "--shards", "5", "--base-port", "21000", "--data", "play"];
    let text = stdout(&kvorum(dir.path(), &args));
    let program = env!("CARGO_BIN_EXE_kvorum");
    let expected = format!(
        "# 2 servers prepared in play. Start each:\n\
         {program} server --config play/server-1/kvorum.toml\n\
         {program} server --config play/server-2/kvorum.toml\n\
         # Then, once, make a cluster of them:\n\
         {program} cluster create --servers 127.0.0.1:21098,127.0.0.1:21198 --shards 5 \
         --durability quorum-fsync --mode cluster\n"
    );
    assert_eq!(text, expected);
    for (server, port) in [(1, 21_000), (2, 21_100)] {
        let file = dir.path().join(format!("play/server-{server}/kvorum.toml"));
        let config: toml::Table = std::fs::read_to_string(file).unwrap().parse().unwrap();
        assert_eq!(config["base-port"].as_integer(), Some(port));
        assert_eq!(config["announce-host"].as_str(), Some("127.0.0.1"));
    }
    let left: Vec<_> = std::fs::read_dir(dir.path().join("play/server-1")).unwrap().collect();
    assert_eq!(left.len(), 1, "nothing was started: {left:?}");
    // Once more, without flags: the directory knows its shape.
    assert_eq!(stdout(&kvorum(dir.path(), &["dev", "--prepare", "--data", "play"])), expected);
}

#[test]
fn a_contradicting_flag_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    stdout(&kvorum(dir.path(), &["dev", "--prepare"]));
    let error = refusal(&kvorum(dir.path(), &["dev", "--servers", "5"]));
    assert_eq!(
        error,
        "./kvorum-data was made with --servers 3 and cannot continue with --servers 5; leave the flag out, or name \
         another directory with --data"
    );
}

#[test]
fn a_busy_port_stops_everything_and_is_named_with_its_holder() {
    let dir = tempfile::tempdir().unwrap();
    // A listener on some free port, and a playground whose second server would want it for shard 1.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let base = (port - 101).to_string();
    let error = refusal(&kvorum(dir.path(), &["dev", "--base-port", &base, "--sentinel-port", "0"]));
    let me = std::process::id();
    assert!(error.contains(&format!("port {port} is in use by ")), "{error}");
    assert!(error.contains(&format!("(pid {me})")), "{error}");
    assert!(!dir.path().join("kvorum-data/server-1/pid").exists());
    assert!(!dir.path().join("kvorum-data/dev.toml").exists(), "the next try is free to name other ports");
}

#[test]
fn a_server_refuses_a_configuration_it_does_not_understand() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("kvorum.toml"), "base-port = 7100\nbase-prot = 7200\n").unwrap();
    let error = refusal(&kvorum(dir.path(), &["server", "--config", "kvorum.toml"]));
    assert!(error.starts_with("kvorum.toml:2: unknown setting `base-prot`, expected one of "), "{error}");
    let error = refusal(&kvorum(dir.path(), &["server", "--config", "absent.toml"]));
    assert_eq!(error, "absent.toml: No such file or directory (os error 2)");
}

#[test]
fn cluster_create_says_what_is_wrong_with_its_flags() {
    let dir = tempfile::tempdir().unwrap();
    let create = |args: &[&str]| refusal(&kvorum(dir.path(), &[&["cluster", "create"], args].concat()));
    assert_eq!(create(&["--servers", "localhost"]), "--servers: \"localhost\" is not HOST:PEERPORT");
    assert_eq!(create(&["--servers", "a:7198,a:7198"]), "--servers: a:7198 stands there twice");
    assert_eq!(
        create(&["--servers", "a:7198,b:7198", "--replicas", "3"]),
        "--replicas 3 needs as many servers, but there are 2"
    );
    let error = create(&["--servers", "a:7198,b:7198", "--durability", "none"]);
    assert!(error.starts_with("--durability none works with one server only"), "{error}");
    let error = create(&["--servers", "a:7198", "--mode", "standalone", "--shards", "2"]);
    assert!(error.starts_with("--mode standalone has exactly one shard"), "{error}");
}
