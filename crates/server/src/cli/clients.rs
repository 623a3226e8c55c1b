//! `kvorum clients`: who is connected to a cluster, and who seems to leak connections.
//!
//! Asks every node for CLIENT LIST, twice, a moment apart; what it makes of the answers is [`report`]'s, which knows nothing of
//! sockets. A real Redis is asked in the same words.

mod report;

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::future::join_all;
use tokio::time::timeout;

use self::report::{Limits, Node, Report};
use super::resp::{Reply, RespClient};

/// Arguments of `kvorum clients`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Nodes to ask, by host and client port; the other nodes of their cluster are asked, too
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', default_value = "127.0.0.1:7100")]
    connect: Vec<String>,
    /// The password of the nodes [default: KVORUM_REQUIREPASS or REDISCLI_AUTH in the environment]
    #[arg(long, value_name = "PASSWORD")]
    pass: Option<String>,
    /// Ask the named nodes only
    #[arg(long)]
    only: bool,
    /// For how long to measure rates, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    measure_ms: u64,
    /// How long a node may take to answer, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 5000)]
    timeout_ms: u64,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// Asks, prints, and fails when some node did not answer.
pub(crate) fn run(args: &Args) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting tokio")?;
    let password = args.pass.clone().or_else(|| {
        ["KVORUM_REQUIREPASS", "REDISCLI_AUTH"].into_iter().find_map(|name| std::env::var(name).ok())
    });
    let report =
        runtime.block_on(ask_all(args, password.as_deref().filter(|password| !password.is_empty())))?;
    let text = if args.json { serde_json::to_string_pretty(&report)? + "\n" } else { report.text() };
    std::io::stdout().write_all(text.as_bytes()).context("writing to standard output")?;
    match report.silent() {
        0 => Ok(()),
        silent => bail!("{silent} of {} nodes did not answer", report.nodes()),
    }
}

async fn ask_all(args: &Args, password: Option<&str>) -> Result<Report> {
    let patience = Duration::from_millis(args.timeout_ms);
    let addresses =
        if args.only { args.connect.clone() } else { members(&args.connect, password, patience).await? };
    let measure = Duration::from_millis(args.measure_ms);
    let asked = addresses.iter().map(|address| async move {
        let answer = ask(address, password, measure, patience).await;
        (address.clone(), answer.map_err(|error| format!("{error:#}")))
    });
    Ok(Report::new(join_all(asked).await))
}

/// The nodes of the clusters that these nodes belong to.
async fn members(named: &[String], password: Option<&str>, patience: Duration) -> Result<Vec<String>> {
    let mut addresses: Vec<String> = Vec::new();
    let mut last = None;
    for address in named {
        let asked = timeout(patience, async {
            RespClient::connect(address, password).await?.ask(&["CLUSTER", "NODES"]).await
        });
        let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
        let found = match asked.await {
            Ok(Ok(Reply::Text(nodes))) => report::addresses(&nodes, host),
            // No cluster: the node is one.
            Ok(Ok(Reply::Error(error))) if error.contains("cluster support disabled") => {
                vec![address.clone()]
            }
            Ok(Ok(Reply::Error(error))) => {
                last = Some(format!("CLUSTER NODES is answered with {error}"));
                continue;
            }
            Ok(Ok(other)) => {
                last = Some(format!("CLUSTER NODES is answered with {other:?}"));
                continue;
            }
            Ok(Err(error)) => {
                last = Some(format!("{error:#}"));
                continue;
            }
            Err(_) => {
                last = Some(format!("no answer within {patience:?}"));
                continue;
            }
        };
        for address in found {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    match last {
        Some(why) if addresses.is_empty() => bail!("{}: {why}", named.join(", ")),
        _ => Ok(addresses),
    }
}

async fn ask(address: &str, password: Option<&str>, measure: Duration, patience: Duration) -> Result<Node> {
    let late = || format!("no answer within {patience:?}");
    let connected = timeout(patience, RespClient::connect(address, password));
    let mut client = connected.await.with_context(late)??;
    let limits = ["CONFIG", "GET", "maxclients", "maxclients-per-name", "maxclients-per-address"];
    let limits = match timeout(patience, client.ask(&limits)).await.with_context(late)?? {
        Reply::Array(pairs) => Limits::from(&pairs),
        _ => Limits::default(),
    };
    let list = ["CLIENT", "LIST"];
    let start = Instant::now();
    let before = timeout(patience, client.text(&list)).await.with_context(late)??;
    tokio::time::sleep(measure).await;
    let now = timeout(patience, client.text(&list)).await.with_context(late)??;
    let me = timeout(patience, client.text(&["CLIENT", "ID"])).await.with_context(late)??;
    Ok(Node::new(limits, &before, &now, start.elapsed(), me.parse().unwrap_or(0)))
}
