//! `kvorum healthcheck`: asks the server on this machine whether it works; the exit code is the answer.
//!
//! For whoever restarts or waits for servers and has no client at hand: container engines, init systems. It asks the peer port who the
//! server is, and each client port that has a replica for a `PONG`; a port that asks for a password answers, too. A server that waits to be taken into a cluster is well. Whether the
//! *cluster* serves is another question, which no restart of this server answers: `kvorum cluster status`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kvorum_node::{AdminClient, Description};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config::{Config, PEER_PORT_OFFSET, Settings};

/// Arguments of `kvorum healthcheck`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The server's configuration file; the environment counts as it does for the server
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The server's base port [default: as configured]
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Where the server listens [default: as configured]
    #[arg(long, value_name = "ADDRESS")]
    bind: Option<IpAddr>,
    /// For how long to wait for all answers together, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 2000)]
    timeout_ms: u64,
}

/// Asks, and fails when the server is not well.
pub(crate) fn run(args: &Args) -> Result<()> {
    let env = |name: &str| std::env::var(name).ok();
    // No data is looked at, so none need be named.
    let dir = args.config.is_none().then(|| PathBuf::from("."));
    let flags = Settings { base_port: args.port, bind: args.bind, dir, ..Settings::default() };
    let config = Config::load(args.config.as_deref(), &env, flags)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting tokio")?;
    let limit = Duration::from_millis(args.timeout_ms);
    let checked = runtime.block_on(async { tokio::time::timeout(limit, check(&config)).await });
    // A look-up that hangs must not hold the answer.
    runtime.shutdown_background();
    checked.with_context(|| format!("no answer within {limit:?}"))?
}

async fn check(config: &Config) -> Result<()> {
    let host = match config.bind {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let peer = std::net::SocketAddr::new(host, config.base_port + PEER_PORT_OFFSET);
    let server = AdminClient::connect(&peer.to_string()).await?.describe().await?;
    for port in ports(&server, config.base_port)? {
        ping(host, port).await.with_context(|| format!("port {port}"))?;
    }
    Ok(())
}

/// The client ports that must answer.
fn ports(server: &Description, base_port: u16) -> Result<Vec<u16>> {
    if server.cluster_id.is_none() {
        return Ok(vec![base_port]);
    }
    for replica in &server.replicas {
        if let Some(why) = &replica.failed {
            bail!("the replica of shard {} stopped: {why}", replica.shard);
        }
    }
    Ok(server.replicas.iter().map(|replica| base_port + replica.shard).collect())
}

async fn ping(host: IpAddr, port: u16) -> Result<()> {
    const PONG: &[u8] = b"+PONG\r\n";
    const NO_AUTH: &[u8] = b"-NOAUTH Authentication required.\r\n";
    let mut stream = TcpStream::connect((host, port)).await.context("connecting")?;
    stream.write_all(b"PING\r\n").await.context("sending")?;
    let mut reply = Vec::new();
    while !reply.ends_with(b"\n") && reply.len() < 1024 {
        ensure!(stream.read_buf(&mut reply).await.context("reading")? > 0, "closed without an answer");
    }
    ensure!(
        [PONG, NO_AUTH].contains(&reply.as_slice()),
        "PING is answered with {:?}",
        String::from_utf8_lossy(&reply).trim_end()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvorum_node::ReplicaStatus;
    use tokio::net::TcpListener;

    fn description(cluster: bool, failed: Option<&str>) -> Description {
        let replica = |shard| ReplicaStatus {
            shard,
            replica: 1,
            server: 1,
            role: "follower".to_owned(),
            term: 1,
            last: 1,
            committed: 1,
            applied: 1,
            failed: failed.map(str::to_owned),
        };
        Description {
            server_hex: String::new(),
            cluster_id: cluster.then(|| "c".to_owned()),
            server_id: 1,
            host: "announced".to_owned(),
            base_port: 17100,
            peer: "inner:7198".to_owned(),
            version: String::new(),
            replicas: if cluster { vec![replica(0), replica(2)] } else { Vec::new() },
        }
    }

    #[test]
    fn a_member_answers_for_its_replicas_and_a_new_server_on_its_base_port() {
        assert_eq!(ports(&description(false, None), 7100).unwrap(), [7100]);
        assert_eq!(ports(&description(true, None), 7100).unwrap(), [7100, 7102]);
        let error = ports(&description(true, Some("disk full")), 7100).unwrap_err();
        assert_eq!(error.to_string(), "the replica of shard 0 stopped: disk full");
    }

    /// Answers one PING with `reply`.
    async fn answering(reply: &'static [u8]) -> Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let server = async {
            let (mut stream, _) = listener.accept().await?;
            let mut ping = [0; 6];
            stream.read_exact(&mut ping).await?;
            stream.write_all(reply).await
        };
        let (pinged, served) = tokio::join!(ping(Ipv4Addr::LOCALHOST.into(), port), server);
        served?;
        pinged
    }

    #[tokio::test]
    async fn only_a_pong_or_a_question_for_the_password_is_well() {
        answering(b"+PONG\r\n").await.unwrap();
        answering(b"-NOAUTH Authentication required.\r\n").await.unwrap();
        for reply in [&b"-LOADING wait\r\n"[..], b"-ERR max number of clients reached\r\n", b"+PO"] {
            assert!(answering(reply).await.is_err(), "{}", String::from_utf8_lossy(reply));
        }
    }
}
