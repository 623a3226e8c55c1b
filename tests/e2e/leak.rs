//! A client opens connections and forgets them: it is refused before it has taken everything, others go on, and the tool says who it is.
//! What that costs an established client is measured by `cargo xtask bench leak`.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kvorum_testkit::cluster::{info_fields, succeed};
use kvorum_testkit::storm::{Established, leak, many_files};
use kvorum_testkit::{Cluster, Connection, Shape, Value, binary};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

const MAXCLIENTS: usize = 300;

async fn start(settings: &[&str]) -> Result<Cluster> {
    many_files()?;
    let lines = [format!("maxclients = {MAXCLIENTS}")];
    let settings = lines.into_iter().chain(settings.iter().map(|line| (*line).to_owned())).collect();
    Cluster::start(Shape { settings, ..Shape::standalone(1, "none") }).await
}

/// A client that works, and a connection that is there as long.
async fn establish(addr: &str) -> Result<(Established, Connection)> {
    let established = Established::start(addr)?;
    let mut connection = Connection::open(addr).await?;
    while connection.call(&["EXISTS", "established"]).await? != Value::Integer(1) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok((established, connection))
}

/// A connection from another address of this machine; with what it was told, if it was refused.
async fn connect_from(host: &str, addr: &str) -> Result<Result<TcpStream, String>> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(format!("{host}:0").parse()?)?;
    let mut stream = socket.connect(addr.parse::<SocketAddr>()?).await?;
    // Who is refused may be told so before it asks.
    let _ = stream.write_all(b"PING\r\n").await;
    let mut reply = [0; 256];
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut reply)).await;
    let text = String::from_utf8_lossy(&reply[..read.context("no reply")??]).into_owned();
    Ok(if text == "+PONG\r\n" { Ok(stream) } else { Err(text) })
}

/// Connections from an address until one is refused, and why.
async fn leak_from(host: &str, addr: &str) -> Result<(Vec<TcpStream>, String)> {
    let mut connections = Vec::new();
    while connections.len() <= MAXCLIENTS {
        match connect_from(host, addr).await? {
            Ok(stream) => connections.push(stream),
            Err(why) => return Ok((connections, why)),
        }
    }
    bail!("{host} may have any number of connections")
}

/// What `kvorum clients` finds.
fn findings(addr: &str) -> Result<Vec<serde_json::Value>> {
    let mut command = Command::new(binary::kvorum());
    command.args(["clients", "--json", "--measure-ms", "100", "--connect", addr]);
    let report: serde_json::Value = serde_json::from_str(&succeed(&mut command)?)?;
    Ok(report["findings"].as_array().context("findings")?.clone())
}

async fn refused(addr: &str, reason: &str) -> Result<f64> {
    let (host, port) = addr.rsplit_once(':').context("an address")?;
    let http = format!("{host}:{}", port.parse::<u16>()? + 99);
    let body = kvorum_testkit::http::get(&http, "/metrics").await?.body;
    let scrape = kvorum_testkit::http::Exposition::parse(&body)?;
    Ok(scrape.value("kvorum_client_connections_refused_total", &[("reason", reason)]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_name_has_so_many_connections() -> Result<()> {
    let cluster = start(&["maxclients-per-name = \"40%\""]).await?;
    let addr = cluster.addr(1, 0);
    let (established, _operator) = establish(&addr).await?;
    let leaked = leak(&addr, "web", MAXCLIENTS).await?;
    assert_eq!(leaked.connections.len(), MAXCLIENTS * 40 / 100);
    assert_eq!(leaked.refusal, "ERR max number of clients of this name reached (maxclients-per-name)");
    // Again and again is no way around it, and neither is HELLO.
    for command in [&["CLIENT", "SETNAME", "web"][..], &["HELLO", "3", "SETNAME", "web"]] {
        let mut connection = Connection::open(&addr).await?;
        let reply = connection.call(command).await?;
        ensure!(reply.error().is_some_and(|error| error.contains("maxclients-per-name")), "{reply}");
        ensure!(connection.receive().await.is_err(), "who is refused stays");
    }
    assert_eq!(refused(&addr, "name").await?, 3.0);
    // Others come, by another name or none.
    let mut other = Connection::open(&addr).await?;
    assert_eq!(other.call(&["CLIENT", "SETNAME", "job"]).await?, Value::ok());
    let mut nameless = Connection::open(&addr).await?;
    assert_eq!(nameless.call(&["SET", "k", "v"]).await?, Value::ok());
    // The leak has a name.
    let found = findings(&addr)?;
    let leak = found.iter().find(|finding| finding["kind"] == "leak").context("no leak is found")?;
    ensure!(leak["name"] == "web" && leak["address"] == "127.0.0.1", "{leak}");
    ensure!(leak["text"].as_str().is_some_and(|text| text.contains("'web'")), "{leak}");
    // Those that were let in work as before.
    let mut connections = leaked.connections;
    for connection in &mut connections {
        assert_eq!(connection.call(&["GET", "k"]).await?, Value::bulk("v"));
    }
    established.p99_ms().await?;
    // Once it lets go it may come again.
    connections.truncate(10);
    let mut again = Err(anyhow::anyhow!("never tried"));
    for _ in 0..200 {
        let mut connection = Connection::open(&addr).await?;
        let reply = connection.call(&["CLIENT", "SETNAME", "web"]).await?;
        again = if reply == Value::ok() { Ok(()) } else { Err(anyhow::anyhow!("{reply}")) };
        if again.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    again.context("after the connections were closed")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_has_so_many_connections() -> Result<()> {
    let cluster = start(&["maxclients-per-address = 100", "trusted-addresses = \"127.0.0.1\""]).await?;
    let addr = cluster.addr(1, 0);
    let (established, mut operator) = establish(&addr).await?;
    let (leaked, why) = leak_from("127.0.0.2", &addr).await?;
    assert_eq!(leaked.len(), 100);
    assert_eq!(why, "-ERR max number of clients of this address reached (maxclients-per-address)\r\n");
    assert_eq!(refused(&addr, "address").await?, 1.0);
    ensure!(connect_from("127.0.0.3", &addr).await?.is_ok(), "another address is refused, too");
    let found = findings(&addr)?;
    let leak = found.iter().find(|finding| finding["kind"] == "leak").context("no leak is found")?;
    ensure!(leak["address"] == "127.0.0.2", "{leak}");
    // An operator may change the rule while it hurts.
    assert_eq!(operator.call(&["CONFIG", "SET", "maxclients-per-address", "110"]).await?, Value::ok());
    let (more, _) = leak_from("127.0.0.2", &addr).await?;
    assert_eq!(more.len(), 10);
    // Or end it.
    let mut ended = 0;
    let list = operator.call(&["CLIENT", "LIST"]).await?.text().context("a list")?;
    for line in list.lines().filter(|line| line.contains(" addr=127.0.0.2:")) {
        let id = line.split(' ').find_map(|field| field.strip_prefix("id=")).context("an id")?;
        assert_eq!(operator.call(&["CLIENT", "KILL", "ID", id]).await?, Value::Integer(1));
        ended += 1;
    }
    assert_eq!(ended, 110);
    for mut stream in leaked.into_iter().chain(more) {
        let end = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut [0; 16])).await?;
        ensure!(!matches!(end, Ok(1..)), "an ended connection says something");
    }
    established.p99_ms().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_connections_are_taken_but_for_those_of_operators() -> Result<()> {
    let cluster = start(&["trusted-addresses = \"127.0.0.1\""]).await?;
    let addr = cluster.addr(1, 0);
    let (established, _operator) = establish(&addr).await?;
    let (leaked, why) = leak_from("127.0.0.2", &addr).await?;
    assert_eq!(why, "-ERR max number of clients reached\r\n");
    let mut another = Connection::open(&addr).await?;
    let info = info_fields(&another.call(&["INFO"]).await?);
    let field =
        |name: &str| info.get(name).and_then(|text| text.parse::<usize>().ok()).context(name.to_owned());
    // The leak, the established client and the operator take all but the hundredth that is reserved.
    assert_eq!(field("connected_clients")?, leaked.len() + 3);
    assert_eq!(leaked.len() + 2, MAXCLIENTS - MAXCLIENTS / 100);
    ensure!(field("rejected_connections")? >= 1, "nobody was refused");
    assert_eq!(refused(&addr, "maxclients").await?, 1.0);
    let found = findings(&addr)?;
    ensure!(
        found.iter().any(|finding| finding["kind"] == "leak" && finding["address"] == "127.0.0.2"),
        "{found:?}"
    );
    established.p99_ms().await?;
    // The leak ends, and everybody comes in again.
    drop(leaked);
    for _ in 0..500 {
        if connect_from("127.0.0.3", &addr).await?.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bail!("there is no room after the leak has ended")
}
