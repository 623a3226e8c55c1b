//! Very many connections, and what an established client notices of them.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::sync::{Barrier, Semaphore};
use tokio::task::JoinSet;

use crate::resp::{Connection, Value};

/// How often an established client asks.
const PACE: Duration = Duration::from_millis(2);
/// Addresses of the loopback that connections come from: one has too few ports for those that linger after their end.
const SOURCES: u64 = 100;
/// Connections that are being made at a time.
const IN_FLIGHT: usize = 512;

/// Lets this process open as many files as the system allows it.
///
/// # Errors
/// What the system says.
pub fn many_files() -> Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(1 << 20);
    setrlimit(Resource::Nofile, Rlimit { current: Some(hard), maximum: limit.maximum })
        .context("raising the limit of open files")?;
    Ok(hard)
}

/// An established client that asks at a steady pace, a read and a write in turns. It has a thread of its own: what it waits for is the
/// server, not the others' tasks in this process.
#[derive(Debug)]
pub struct Established {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Result<Vec<f64>>>,
}

impl Established {
    /// Connects and begins.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub fn start(addr: &str) -> Result<Established> {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, addr) = (Arc::clone(&stop), addr.to_owned());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new()
            .name("established".to_owned())
            .spawn(move || runtime.block_on(ask(&addr, &stopped)))?;
        Ok(Established { stop, thread })
    }

    /// Ends; the p99 in milliseconds.
    ///
    /// # Errors
    /// When it could not connect, or a command of it failed.
    pub async fn p99_ms(self) -> Result<f64> {
        Ok(p99(&mut self.times_ms().await?))
    }

    /// Ends; what every command took, in milliseconds.
    ///
    /// # Errors
    /// When it could not connect, or a command of it failed.
    pub async fn times_ms(self) -> Result<Vec<f64>> {
        self.stop.store(true, Ordering::Relaxed);
        let times = tokio::task::spawn_blocking(|| self.thread.join()).await?;
        let times = times.map_err(|_| anyhow::anyhow!("the established client panicked"))??;
        ensure!(times.len() >= 20, "the established client got only {} replies", times.len());
        Ok(times)
    }
}

/// What ninety-nine of a hundred stay below; 0 for none.
pub fn p99(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() * 99 / 100).copied().unwrap_or_default()
}

/// Milliseconds of each command until it is told to stop.
async fn ask(addr: &str, stopped: &AtomicBool) -> Result<Vec<f64>> {
    let mut connection = Connection::open(addr).await?;
    let mut times = Vec::new();
    let mut n = 0u64;
    while !stopped.load(Ordering::Relaxed) {
        n += 1;
        let began = Instant::now();
        let reply = match n % 2 {
            0 => connection.call(&["GET", "established"]).await?,
            _ => connection.call(&["SET", "established", &n.to_string()]).await?,
        };
        ensure!(reply.error().is_none(), "the established client got {reply}");
        times.push(began.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(PACE).await;
    }
    Ok(times)
}

/// Opens `clients` connections, then sends `commands` commands on each, all at once. Returns how long it took until every reply was there.
///
/// # Errors
/// When a connection is refused or breaks, or a reply is not the right one: each client counts a counter of its own.
pub async fn burst(addr: &str, name: &str, clients: usize, commands: usize) -> Result<Duration> {
    let barrier = Arc::new(Barrier::new(clients + 1));
    let mut tasks = JoinSet::new();
    for n in 0..clients {
        let mut connection = Connection::open(addr).await.with_context(|| format!("connection {n}"))?;
        let (barrier, key) = (Arc::clone(&barrier), Bytes::from(format!("{name}:{n}")));
        tasks.spawn(async move {
            let requests = vec![vec![Bytes::from_static(b"INCR"), key]; commands];
            barrier.wait().await;
            let replies = connection.pipeline(&requests).await?;
            let right: Vec<Value> = (1..).take(commands).map(Value::Integer).collect();
            ensure!(replies == right, "client {n}: {replies:?}");
            Ok(())
        });
    }
    barrier.wait().await;
    let began = Instant::now();
    while let Some(done) = tasks.join_next().await {
        done.context("a client panicked")??;
    }
    Ok(began.elapsed())
}

/// What became of connections that were made at a rate.
#[derive(Clone, Copy, Debug)]
pub struct Arrivals {
    /// Connections that were made, asked, were answered, and closed.
    pub served: u64,
    /// How many came in a second.
    pub per_second: f64,
}

/// Makes `per_second` connections a second, or as many as this machine can, for some time; each sends a PING, reads the reply, and goes.
///
/// # Errors
/// When one is refused, breaks, or gets another reply.
pub async fn arrivals(addr: &str, per_second: u64, length: Duration) -> Result<Arrivals> {
    let addr: SocketAddr = addr.parse()?;
    let (served, room) = (Arc::new(AtomicU64::new(0)), Arc::new(Semaphore::new(IN_FLIGHT)));
    let mut tasks = JoinSet::new();
    let began = Instant::now();
    let mut started = 0u64;
    while began.elapsed() < length {
        let due = (began.elapsed().as_secs_f64() * per_second as f64) as u64;
        while started < due && began.elapsed() < length {
            started += 1;
            let permit = Arc::clone(&room).acquire_owned().await?;
            let served = Arc::clone(&served);
            let source = Ipv4Addr::new(127, 0, 1, (1 + started % SOURCES) as u8);
            tasks.spawn(async move {
                let socket = TcpSocket::new_v4()?;
                // It goes with a reset: a hundred thousand that linger would fill the tables of the machine's firewall.
                socket.set_zero_linger()?;
                socket.bind((source, 0).into())?;
                let mut stream = socket.connect(addr).await.context("connecting")?;
                stream.write_all(b"PING\r\n").await?;
                let mut reply = [0; 7];
                stream.read_exact(&mut reply).await.context("reading PONG")?;
                ensure!(reply == *b"+PONG\r\n", "{}", reply.escape_ascii());
                served.fetch_add(1, Ordering::Relaxed);
                drop(permit);
                Ok(())
            });
        }
        while let Some(done) = tasks.try_join_next() {
            done.context("a client panicked")??;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    while let Some(done) = tasks.join_next().await {
        done.context("a client panicked")??;
    }
    let took = began.elapsed().as_secs_f64();
    let served = served.load(Ordering::Relaxed);
    ensure!(served == started, "{started} connections, {served} served");
    Ok(Arrivals { served, per_second: served as f64 / took })
}

/// Connections that somebody opened and forgot.
#[derive(Debug)]
pub struct Leaked {
    /// They stay open as long as this lives.
    pub connections: Vec<Connection>,
    /// What the last one was told.
    pub refusal: String,
}

/// Opens connections that call themselves `name` until one is refused.
///
/// # Errors
/// When none of `most` is, or the refusal says nothing.
pub async fn leak(addr: &str, name: &str, most: usize) -> Result<Leaked> {
    let mut connections = Vec::new();
    while connections.len() < most {
        let mut connection = Connection::open(addr).await?;
        match connection.call_within(Duration::from_secs(10), &["CLIENT", "SETNAME", name]).await {
            Ok(Value::Error(refusal)) => return Ok(Leaked { connections, refusal }),
            Ok(_) => connections.push(connection),
            Err(e) => anyhow::bail!("connection {} was closed without a word: {e}", connections.len() + 1),
        }
    }
    anyhow::bail!("{most} connections of one name were let in")
}
