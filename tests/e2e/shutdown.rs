//! A server is stopped, by a client or by a signal: it ends in order, clients have all their replies, and everything acknowledged is there
//! afterwards. Settings that were changed at run time are there, too, once they are written to its file.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use kvorum_testkit::{Cluster, Connection, Shape, Value};

/// How a client asks.
const WAYS: [&[&str]; 5] = [&[], &["NOSAVE"], &["SAVE"], &["NOW", "FORCE"], &["NOSAVE", "NOW", "FORCE"]];

/// Sends SHUTDOWN, which has no reply, and waits until the connection and the process have ended.
async fn shut_down(
    cluster: &mut Cluster,
    number: u16,
    connection: &mut Connection,
    way: &[&str],
) -> Result<()> {
    let command: Vec<&str> = ["SHUTDOWN"].into_iter().chain(way.iter().copied()).collect();
    match connection.call_within(Duration::from_secs(20), &command).await {
        Err(e) if e.kind() != std::io::ErrorKind::TimedOut => {}
        other => bail!("{command:?} is answered with {other:?}"),
    }
    let status = cluster.exit_of(number).await?;
    ensure!(status.code() == Some(0), "{command:?} ends the server with {status}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_stops_a_single_server_and_nothing_is_lost() -> Result<()> {
    let mut cluster = Cluster::start(Shape::standalone(1, "none")).await?;
    for (round, way) in (1..).zip(WAYS) {
        let mut connection = cluster.connect(1, 0).await?;
        let writes: Vec<Vec<Bytes>> = (0..500)
            .map(|n| ["SET".into(), format!("{round}:{n}").into(), "v".repeat(100).into()].to_vec())
            .collect();
        let replies = connection.pipeline(&writes).await?;
        ensure!(replies.iter().all(|reply| *reply == Value::ok()), "SETs");
        shut_down(&mut cluster, 1, &mut connection, way).await?;
        cluster.spawn(1)?;
        cluster.ready().await?;
        let size = cluster.connect(1, 0).await?.call(&["DBSIZE"]).await?;
        assert_eq!(size, Value::Integer(500 * round), "after SHUTDOWN {way:?}");
    }
    // What is no way to ask stops nothing.
    let mut connection = cluster.connect(1, 0).await?;
    for (command, error) in [
        (&["SHUTDOWN", "SAVE", "NOSAVE"][..], "ERR syntax error"),
        (&["SHUTDOWN", "LATER"], "ERR syntax error"),
        (&["SHUTDOWN", "ABORT", "NOW"], "ERR syntax error"),
        (&["SHUTDOWN", "ABORT"], "ERR No shutdown in progress."),
    ] {
        assert_eq!(connection.call(command).await?, Value::Error(error.to_owned()), "{command:?}");
    }
    assert_eq!(connection.call(&["PING"]).await?, Value::Status("PONG".to_owned()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_stops_the_leader_and_another_one_goes_on() -> Result<()> {
    let mut cluster = Cluster::start(Shape::standalone(3, "quorum-fsync")).await?;
    let (leader, mut written) = (cluster.leader(0).await?, 0);
    let number = cluster.server_of(&leader);
    let mut connection = Connection::open(&leader).await?;
    for n in 0..200 {
        assert_eq!(connection.call(&["SET", &format!("k:{n}"), "v"]).await?, Value::ok());
        written += 1;
    }
    shut_down(&mut cluster, number, &mut connection, &["NOW"]).await?;
    cluster.ready().await?;
    let next = cluster.leader(0).await?;
    ensure!(next != leader, "a server that has ended leads");
    let size = Connection::open(&next).await?.call(&["DBSIZE"]).await?;
    assert_eq!(size, Value::Integer(written));
    cluster.spawn(number)?;
    cluster.ready().await?;
    cluster.caught_up().await?;
    let size = Connection::open(&leader).await?.call(&["DBSIZE"]).await?;
    assert_eq!(size, Value::Integer(written), "it has everything, too");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_that_waits_is_called_off() -> Result<()> {
    let mut cluster = Cluster::start(Shape::standalone(3, "quorum-memory")).await?;
    let leader = cluster.leader(0).await?;
    let number = cluster.server_of(&leader);
    let others: Vec<u16> = cluster.numbers().filter(|other| *other != number).collect();
    let mut asking = Connection::open(&leader).await?;
    let mut other = Connection::open(&leader).await?;
    assert_eq!(other.call(&["SET", "k", "v"]).await?, Value::ok());
    // Nobody is there to lead instead.
    for other in &others {
        cluster.freeze(*other)?;
    }
    asking.send(&["SHUTDOWN"]).await?;
    let mut called_off = false;
    for _ in 0..500 {
        let reply = other.call_within(Duration::from_secs(5), &["SHUTDOWN", "ABORT"]).await?;
        called_off = reply == Value::ok();
        if called_off {
            break;
        }
        assert_eq!(reply, Value::Error("ERR No shutdown in progress.".to_owned()));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for other in &others {
        cluster.thaw(*other)?;
    }
    ensure!(called_off, "the shutdown cannot be called off");
    // Who asked for it hears of it, and goes on.
    let told =
        tokio::time::timeout(Duration::from_secs(10), asking.receive()).await.context("no reply")??;
    assert_eq!(told, Value::Error("ERR Errors trying to SHUTDOWN. Check logs.".to_owned()));
    assert_eq!(asking.call(&["PING"]).await?, Value::Status("PONG".to_owned()));
    let again = other.call(&["SHUTDOWN", "ABORT"]).await?;
    assert_eq!(again, Value::Error("ERR No shutdown in progress.".to_owned()));
    cluster.ready().await?;
    // It serves as before, whoever leads now.
    let client = &mut cluster.client();
    assert_eq!(client.call(&["SET", "k", "w"]).await.expect_ok(), Value::ok());
    ensure!(cluster.running().contains(&number), "it has ended");
    assert_eq!(Connection::open(&leader).await?.call(&["PING"]).await?, Value::Status("PONG".to_owned()));
    Ok(())
}

/// Sends this many INCRs of one counter in one piece, has the server stop after the first reply, and reads the rest.
async fn pipeline_through_a_stop(
    cluster: &mut Cluster,
    number: u16,
    addr: &str,
    commands: usize,
) -> Result<Vec<Value>> {
    let mut connection = Connection::open(addr).await?;
    let request = kvorum_testkit::resp::encode(&["INCR", "counter"]);
    connection.send_raw(&request.repeat(commands)).await?;
    let mut replies = vec![connection.receive().await?];
    let stopping = cluster.stop(number);
    let reading = async {
        while replies.len() < commands {
            match tokio::time::timeout(Duration::from_secs(20), connection.receive()).await {
                Ok(Ok(reply)) => replies.push(reply),
                Ok(Err(e)) => bail!("after {} of {commands} replies: {e}", replies.len()),
                Err(_) => bail!("no more than {} of {commands} replies come", replies.len()),
            }
        }
        Ok(())
    };
    let (status, read) = tokio::join!(stopping, reading);
    ensure!(status?.code() == Some(0), "SIGTERM ends the server in order");
    read?;
    Ok(replies)
}

/// Replies by what they say.
fn told(replies: &[Value]) -> BTreeMap<String, usize> {
    let mut told = BTreeMap::new();
    for reply in replies {
        let word = match reply {
            Value::Integer(_) => "done",
            Value::Error(text) => text.split(' ').next().unwrap_or_default(),
            _ => "else",
        };
        *told.entry(word.to_owned()).or_default() += 1;
    }
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_in_flight_gets_all_its_replies() -> Result<()> {
    const COMMANDS: usize = 3_000;
    let mut cluster = Cluster::start(Shape::standalone(1, "quorum-fsync")).await?;
    let addr = cluster.addr(1, 0);
    let replies = pipeline_through_a_stop(&mut cluster, 1, &addr, COMMANDS).await?;
    let told = told(&replies);
    let done = told.get("done").copied().unwrap_or(0);
    eprintln!("a single server: {told:?}");
    // What was done was done in order and once, and what was not is said.
    let counts: Vec<Value> = (1..).map(Value::Integer).take(done).collect();
    assert_eq!(replies[..done], counts, "in order");
    ensure!(!told.contains_key("UNKNOWN") && !told.contains_key("else"), "{told:?}");
    cluster.spawn(1)?;
    cluster.ready().await?;
    let counter = cluster.connect(1, 0).await?.call(&["GET", "counter"]).await?;
    assert_eq!(counter, Value::bulk(done.to_string()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_in_flight_on_a_leader_gets_all_its_replies() -> Result<()> {
    const COMMANDS: usize = 3_000;
    let mut cluster = Cluster::start(Shape::standalone(3, "quorum-fsync")).await?;
    let leader = cluster.leader(0).await?;
    let number = cluster.server_of(&leader);
    let replies = pipeline_through_a_stop(&mut cluster, number, &leader, COMMANDS).await?;
    let told = told(&replies);
    let done = told.get("done").copied().unwrap_or(0);
    eprintln!("a leader of three: {told:?}");
    // What had not begun when the lead was handed over, the next leader ran.
    ensure!(done == COMMANDS, "{told:?}");
    ensure!(replies.iter().zip(1..).all(|(reply, n)| *reply == Value::Integer(n)), "in order and once");
    cluster.ready().await?;
    let next = cluster.leader(0).await?;
    let counter = Connection::open(&next).await?.call(&["GET", "counter"]).await?;
    assert_eq!(counter, Value::bulk(done.to_string()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_are_there_after_a_restart() -> Result<()> {
    let settings = ["# Not too many.", "maxclients = 500  # for now", "", "# The end."];
    let shape = Shape { settings: settings.map(str::to_owned).to_vec(), ..Shape::standalone(1, "none") };
    let mut cluster = Cluster::start(shape).await?;
    let file = cluster.server_dir(1).join("kvorum.toml");
    let before = std::fs::read_to_string(&file)?;
    let changes = [
        ("maxclients", "600"),
        ("timeout", "300"),
        ("slowlog-log-slower-than", "-1"),
        (
            "client-output-buffer-limit",
            "normal 1048576 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60",
        ),
        ("maxclients-per-name", "50%"),
        ("latency-tracking-info-percentiles", "50 99.9"),
        ("latency-tracking", "no"),
    ];
    let shown = async |cluster: &Cluster| {
        let names: Vec<&str> = changes.iter().map(|(name, _)| *name).collect();
        let command: Vec<&str> = ["CONFIG", "GET"].into_iter().chain(names).collect();
        let reply = cluster.connect(1, 0).await?.call(&command).await?;
        let words: Vec<String> = reply.items().context("pairs")?.iter().filter_map(Value::text).collect();
        Ok::<_, anyhow::Error>(words)
    };
    let mut connection = cluster.connect(1, 0).await?;
    let words: Vec<&str> = ["CONFIG", "SET"]
        .into_iter()
        .chain(changes.iter().flat_map(|(name, value)| [*name, *value]))
        .collect();
    assert_eq!(connection.call(&words).await?, Value::ok());
    let changed = shown(&cluster).await?;

    // What is not written is forgotten.
    ensure!(cluster.stop(1).await?.success(), "it ends in order");
    cluster.spawn(1)?;
    cluster.ready().await?;
    ensure!(shown(&cluster).await? != changed, "settings stay that nobody wrote");

    let mut connection = cluster.connect(1, 0).await?;
    assert_eq!(connection.call(&words).await?, Value::ok());
    assert_eq!(connection.call(&["CONFIG", "REWRITE"]).await?, Value::ok());
    let after = std::fs::read_to_string(&file)?;
    for line in before.lines().filter(|line| line.starts_with('#')) {
        ensure!(after.lines().any(|other| other == line), "{line:?} is gone from\n{after}");
    }
    ensure!(after.contains("maxclients = 600  # for now"), "{after}");
    for (name, _) in &changes {
        let lines = after.lines().filter(|line| line.split([' ', '=']).next() == Some(name)).count();
        ensure!(lines == 1, "{name} stands {lines} times in\n{after}");
    }
    ensure!(!after.contains("tcp-keepalive"), "what is the default and was not there stays away:\n{after}");
    ensure!(cluster.stop(1).await?.success(), "it ends in order");
    cluster.spawn(1)?;
    cluster.ready().await?;
    assert_eq!(shown(&cluster).await?, changed);

    // All of them, and the server starts with that, too.
    let mut connection = cluster.connect(1, 0).await?;
    assert_eq!(connection.call(&["DEBUG", "CONFIG-REWRITE-FORCE-ALL"]).await?, Value::ok());
    ensure!(std::fs::read_to_string(&file)?.contains("tcp-keepalive = "), "all settings are written");
    ensure!(cluster.stop(1).await?.success(), "it ends in order");
    cluster.spawn(1)?;
    cluster.ready().await?;
    assert_eq!(shown(&cluster).await?, changed);
    Ok(())
}
