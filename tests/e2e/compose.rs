//! `deploy/docker/docker-compose.yml` as a user starts it: clients outside of the containers are served, and kill, pause and partition of
//! a container pass the same trials as everything else. Needs a container engine, compose, and root for the faults.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kvorum_testkit::cluster::succeed;
use kvorum_testkit::compose::Compose;
use kvorum_testkit::map::wait;
use kvorum_testkit::random::Random;
use kvorum_testkit::trial::{Promises, cut_off, harm};
use kvorum_testkit::{Connection, Fault, Nemesis, Value, binary, image};

/// With the default settings: a hold of five seconds.
const PROMISES: Promises = Promises {
    lease: Duration::from_millis(600),
    hold: Duration::from_secs(5),
    serves_within: Duration::from_secs(2),
    lasts: Duration::from_secs(14),
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn up_serve_survive_down() -> Result<()> {
    let (mut random, _) = Random::for_run("compose");
    let program = match std::env::var_os("KVORUM_STATIC_BIN") {
        Some(program) => binary::workspace().join(program),
        None => image::build_static("e2e")?,
    };
    let began = Instant::now();
    let mut compose = Compose::up(&program)?;
    let map = compose.map().clone();
    map.ready().await?;
    eprintln!("compose: image made, containers up and serving after {:?}", began.elapsed());
    wait("all containers are healthy", async || {
        for number in map.numbers() {
            let health = compose.inspect(&Compose::service(number), "{{.State.Health.Status}}")?;
            ensure!(health == "healthy", "server {number} is {health}");
        }
        Ok(())
    })
    .await?;
    the_image_is_lean(&compose)?;
    sentinels().await?;
    redis_py()?;

    // A second `up` finds everything as it is.
    compose.compose(&["up", "--detach"])?;
    wait("init has run again", async || {
        let init = compose.inspect("init", "{{.State.Status}} {{.State.ExitCode}}")?;
        ensure!(init == "exited 0", "init: {init}");
        Ok(())
    })
    .await?;
    ensure!(compose.compose(&["logs", "init"])?.contains("exists already"), "init did not find its cluster");

    cut_off(&mut compose, "compose_partition", |map, n| Fault::split(map, &[n]), PROMISES, &mut random)
        .await?;
    let faults: [fn(&_, u16) -> Fault; 2] =
        [|_, victim| Fault::Kill(victim), |_, victim| Fault::Freeze(victim)];
    harm(&mut compose, "compose_harm", &faults, Duration::from_secs(2), &mut random).await?;

    // The data is in the volumes: everything goes and comes back.
    let written = map.client().call(&["SET", "kept", "through down and up"]).await.expect_ok();
    ensure!(written.error().is_none(), "{written}");
    compose.compose(&["down"])?;
    compose.compose(&["up", "--detach"])?;
    map.ready().await?;
    let read = map.client().call(&["GET", "kept"]).await.expect_ok();
    ensure!(read.text().as_deref() == Some("through down and up"), "{read}");

    let volumes = || succeed(Command::new("docker").args(["volume", "ls", "--quiet"]));
    let (project, before) = (compose.project().to_owned(), volumes()?);
    ensure!(before.matches(&project).count() == 3, "three servers have other volumes than three: {before}");
    drop(compose);
    let left = volumes()?;
    ensure!(!left.contains(&project), "left behind: {left}");
    Ok(())
}

/// From outside of the containers, every server is a Sentinel that names the others, and masters that can be reached.
async fn sentinels() -> Result<()> {
    const PORTS: [&str; 3] = ["26379", "26380", "26381"];
    for port in PORTS {
        wait("a Sentinel names the masters and the other Sentinels", async || {
            let mut sentinel = Connection::open(&format!("127.0.0.1:{port}")).await?;
            for shard in 0..3 {
                let name = format!("shard-{shard}");
                let told = texts(&sentinel.call(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", &name]).await?);
                ensure!(told.len() == 2, "{port} knows no master of {name}: {told:?}");
                let role = Connection::open(&told.join(":")).await?.call(&["ROLE"]).await?;
                ensure!(texts(&role).first().is_some_and(|role| role == "master"), "{told:?} is {role}");
            }
            let others = sentinel.call(&["SENTINEL", "SENTINELS", "shard-0"]).await?;
            let others: Vec<Vec<String>> = others.items().unwrap_or_default().iter().map(texts).collect();
            for other in PORTS.into_iter().filter(|other| *other != port) {
                let is_named = others
                    .iter()
                    .any(|fields| fields[2..6] == ["ip", "127.0.0.1", "port", other].map(str::to_owned));
                ensure!(is_named, "{port} does not name {other}: {others:?}");
            }
            Ok(())
        })
        .await?;
    }
    Ok(())
}

fn texts(reply: &Value) -> Vec<String> {
    reply.items().unwrap_or_default().iter().filter_map(Value::text).collect()
}

/// No shell, no root, little of anything.
fn the_image_is_lean(compose: &Compose) -> Result<()> {
    let user = compose.inspect("kvorum-1", "{{.Config.User}}")?;
    ensure!(user == "10001:10001", "the server runs as {user:?}");
    let container = compose.container("kvorum-1")?;
    let files = succeed(Command::new("sh").args(["-c", &format!("docker export {container} | tar -t")]))?;
    let ours = ["kvorum", "data/"];
    // What the engine itself puts into every container.
    let engines = ["dev/", "etc/", "proc/", "sys/", ".dockerenv"];
    let odd = files.lines().find(|file| !ours.contains(file) && !engines.iter().any(|e| file.starts_with(e)));
    ensure!(odd.is_none(), "the image holds {odd:?}");
    Ok(())
}

/// redis-py's `RedisCluster`, outside of the containers.
fn redis_py() -> Result<()> {
    let python = match std::env::var_os("KVORUM_PYTHON") {
        Some(path) => path.into(),
        None => binary::target_dir().join("python/bin/python"),
    };
    ensure!(python.exists(), "{} is not there: run `cargo xtask prepare` first", python.display());
    let script = binary::workspace().join("tests/compat/redis_py.py");
    let said = succeed(Command::new(python).arg(&script).args(["127.0.0.1", "7100"])).context("redis-py")?;
    eprint!("{said}");
    ensure!(said.ends_with(": ok\n"), "{said}");
    Ok(())
}
