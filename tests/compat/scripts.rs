//! Every golden script over TCP, in RESP2 and RESP3, on a cluster and on a real Redis.
//!
//! | scripts | Kvorum | Redis |
//! |---|---|---|
//! | `crates/keyspace/tests/scripts` | the leader of three servers in standalone mode (and the bare keyspace, by that crate's tests) | a single one |
//! | `tests/scripts/connection`, `tests/scripts/server` | the same | the same |
//! | `tests/scripts/cluster` | the leader of the first of two shards | the first of two nodes of a cluster |
//!
//! In RESP2 each side has to say what the script says; in RESP3 Kvorum has to say what Redis says, with the same types.
//! `KVORUM_SCRIPT=part-of-a-name` plays only some. `UPDATE_SCRIPTS=1` writes what Redis says into the scripts below
//! `tests/scripts`, except for replies that differ.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use kvorum_testkit::binary::workspace;
use kvorum_testkit::oracle::Redis;
use kvorum_testkit::plain::Plain;
use kvorum_testkit::script::{Clients, Script, words};
use kvorum_testkit::{Cluster, Shape};

/// The scripts below a folder of the workspace.
fn scripts(folder: &str) -> Result<Vec<(PathBuf, Script)>> {
    let root = workspace().join(folder);
    let wanted = std::env::var("KVORUM_SCRIPT").unwrap_or_default();
    let named = |script: Script| (root.join(&script.name), script);
    let all = Script::all(&root)?;
    Ok(all.into_iter().map(named).filter(|(path, _)| path.to_string_lossy().contains(&wanted)).collect())
}

/// Plays a script on both; returns what does not hold.
fn compare(path: &Path, script: &Script, ours: &str, redis: &str) -> Result<Vec<String>> {
    let clean = |addr: &str, resp3: bool| -> Result<Clients> {
        // What a script left behind that did not get to its end.
        let mut broom = Plain::open(addr)?;
        for command in ["AUTH secret", "CLIENT UNPAUSE", "CONFIG SET requirepass \"\"", "FLUSHALL"] {
            broom.call(&words(command)?)?;
        }
        Ok(Clients::new(addr, resp3))
    };
    let label = |who: &'static str| move |fault: String| format!("{who}: {fault}");
    let mut faults = Vec::new();
    let played = script.play(&mut clean(redis, false)?, true);
    if std::env::var_os("UPDATE_SCRIPTS").is_some() {
        std::fs::write(path, &played.updated)?;
        eprintln!("{}", played.faults.join("\n"));
        return Ok(faults);
    }
    faults.extend(played.faults.into_iter().map(label("Redis, RESP2")));
    let in_resp2 = script.play(&mut clean(ours, false)?, false).faults;
    faults.extend(in_resp2.iter().cloned().map(label("RESP2")));
    if !script.is_resp2_only() {
        let theirs = script.play(&mut clean(redis, true)?, true);
        let played = script.play(&mut clean(ours, true)?, false);
        faults.extend(played.differences(script, &theirs).into_iter().map(label("RESP3")));
        // What only Kvorum says is in the script alone; the text is the same in both protocols.
        let new: Vec<String> = played.faults.into_iter().filter(|fault| !in_resp2.contains(fault)).collect();
        faults.extend(new.into_iter().map(label("RESP3")));
    }
    Ok(faults)
}

fn play(folders: &[&str], ours: &str, redis: &str) -> Result<()> {
    let (mut played, mut faults) = (0, Vec::new());
    for folder in folders {
        for (path, script) in scripts(folder)? {
            let held = compare(&path, &script, ours, redis).with_context(|| script.name.clone());
            faults.extend(held.unwrap_or_else(|why| vec![format!("{why:#}")]));
            played += 1;
        }
    }
    eprintln!("{played} scripts, {} faults", faults.len());
    ensure!(faults.is_empty(), "{} faults\n{}", faults.len(), faults.join("\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_hold_on_three_servers_that_look_like_one_redis() -> Result<()> {
    let cluster = Cluster::start(Shape::standalone(3, "quorum-fsync")).await?;
    let redis = Redis::start(&[])?;
    let folders = ["crates/keyspace/tests/scripts", "tests/scripts/connection", "tests/scripts/server"];
    play(&folders, &cluster.leader(0).await?, &redis.addr())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_hold_on_a_cluster() -> Result<()> {
    let cluster = Cluster::start(Shape { shards: 2, ..Shape::default() }).await?;
    let nodes = Redis::cluster()?;
    play(&["tests/scripts/cluster"], &cluster.leader(0).await?, &nodes[0].addr())
}
