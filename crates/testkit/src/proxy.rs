//! A network between servers that are processes of one machine, without any privilege: a TCP proxy for every ordered pair.
//!
//! Server *a* reaches server *b* through a listener that nobody else uses (the setting `peer-addresses` tells it so), so the proxy knows
//! who talks to whom. A connection that *a* opened carries bytes of both: each direction obeys what holds for its sender and
//! receiver. A cut holds bytes back, and delivers them when it heals, as TCP does; a connection that is opened meanwhile is accepted
//! and leads nowhere until both directions work, as a lost SYN does.
//!
//! The proxies have a thread of their own, so that a busy test does not slow the network down.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::map::Map;
use crate::nemesis::{Fault, pairs};

/// The most that is read at once, and how many such pieces may be on their way in one direction of a connection.
const PIECE_BYTES: usize = 16 << 10;
const PIECES: usize = 64;

/// What holds for one direction between two servers.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Weather {
    cut: bool,
    delay: Duration,
    /// Rises when connections are to break.
    resets: u64,
}

/// The proxies of a cluster. They end when this is dropped.
#[derive(Debug)]
pub struct Proxies {
    /// For each ordered pair of servers the direction from the first to the second.
    directions: BTreeMap<(u16, u16), watch::Sender<Weather>>,
    listeners: BTreeMap<(u16, u16), SocketAddr>,
    runtime: Option<Runtime>,
}

impl Proxies {
    /// Starts a proxy in front of each server's peer port for each other server.
    ///
    /// # Errors
    /// What the system says.
    pub fn start(map: &Map) -> Result<Proxies> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("proxies")
            .enable_all()
            .build()
            .context("starting the proxies")?;
        let directions: BTreeMap<(u16, u16), watch::Sender<Weather>> =
            pairs(map).map(|pair| (pair, watch::Sender::new(Weather::default()))).collect();
        let mut listeners = BTreeMap::new();
        for (from, to) in pairs(map) {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").context("listening")?;
            listener.set_nonblocking(true)?;
            listeners.insert((from, to), listener.local_addr()?);
            let (there, back) = (directions[&(from, to)].subscribe(), directions[&(to, from)].subscribe());
            let target = map.peer_addr(to);
            runtime.spawn(async move {
                let listener = TcpListener::from_std(listener).expect("a listener that works");
                while let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(relay(client, target.clone(), there.clone(), back.clone()));
                }
            });
        }
        Ok(Proxies { directions, listeners, runtime: Some(runtime) })
    }

    /// The address by which `from` reaches each other server.
    pub fn from(&self, from: u16) -> impl Iterator<Item = (u16, SocketAddr)> {
        self.listeners.iter().filter(move |((a, _), _)| *a == from).map(|((_, to), addr)| (*to, *addr))
    }

    /// Makes something go wrong between servers.
    ///
    /// # Errors
    /// When proxies have no such fault.
    pub fn inflict(&mut self, fault: &Fault) -> Result<()> {
        match fault {
            Fault::Cut(pairs) => {
                for pair in pairs {
                    let direction =
                        self.directions.get(pair).with_context(|| format!("no servers {pair:?}"))?;
                    direction.send_modify(|weather| weather.cut = true);
                }
            }
            Fault::Delay(delay) => self.all(|weather| weather.delay = *delay),
            Fault::Reset => self.all(|weather| weather.resets += 1),
            other => bail!("proxies cannot do {other:?}"),
        }
        Ok(())
    }

    /// Ends all faults.
    pub fn heal(&mut self) {
        self.all(|weather| *weather = Weather { resets: weather.resets, ..Weather::default() });
    }

    fn all(&self, change: impl Fn(&mut Weather)) {
        self.directions.values().for_each(|direction| direction.send_modify(&change));
    }
}

impl Drop for Proxies {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// One connection: bytes of the client go `there`, bytes of the server `back`.
async fn relay(
    client: TcpStream,
    target: String,
    mut there: watch::Receiver<Weather>,
    mut back: watch::Receiver<Weather>,
) {
    let resets = (there.borrow().resets, back.borrow().resets);
    let reset = {
        let (mut there, mut back) = (there.clone(), back.clone());
        async move {
            tokio::select! {
                _ = there.wait_for(|weather| weather.resets != resets.0) => {}
                _ = back.wait_for(|weather| weather.resets != resets.1) => {}
            }
        }
    };
    let relayed = async {
        loop {
            if there.wait_for(|weather| !weather.cut).await.is_err() {
                return;
            }
            let Ok(weather) = back.wait_for(|weather| !weather.cut).await.map(|weather| *weather) else {
                return;
            };
            let clear = !there.borrow().cut;
            if clear {
                tokio::time::sleep(weather.delay).await;
                break;
            }
        }
        let Ok(server) = TcpStream::connect(&target).await else { return };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (client_reads, client_writes) = client.into_split();
        let (server_reads, server_writes) = server.into_split();
        let forth = carry(client_reads, server_writes, there);
        let back = carry(server_reads, client_writes, back);
        tokio::join!(forth, back);
    };
    tokio::select! {
        () = relayed => {}
        () = reset => {}
    }
}

/// Carries bytes in one direction until its source ends, then ends its target.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, weather: watch::Receiver<Weather>) {
    let (pieces, mut waiting) = mpsc::channel::<(Instant, Bytes)>(PIECES);
    let arrivals = weather.clone();
    let reads = async move {
        let mut buffer = vec![0; PIECE_BYTES];
        while let Ok(count) = from.read(&mut buffer).await {
            let due = Instant::now() + arrivals.borrow().delay;
            // An empty piece is the end, which takes its time, too.
            let piece = Bytes::copy_from_slice(&buffer[..count]);
            if pieces.send((due, piece)).await.is_err() || count == 0 {
                return;
            }
        }
    };
    let mut gate = weather;
    let writes = async move {
        while let Some((due, piece)) = waiting.recv().await {
            tokio::time::sleep_until(due).await;
            if gate.wait_for(|weather| !weather.cut).await.is_err() || piece.is_empty() {
                break;
            }
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    // When the target does not take any more, the source hears of it by the end of the connection.
    tokio::select! {
        () = writes => {}
        () = async { reads.await; std::future::pending::<()>().await } => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(100);

    /// Two servers, of which the second answers every byte with the next one.
    async fn network() -> (Proxies, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        // The map has the peer port 98 above a base of 100 more than the first server's.
        let port = listener.local_addr().unwrap().port();
        let map = Map::new(vec!["127.0.0.1".to_owned(); 2], 1, false, port - 198);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    while let Ok(byte) = stream.read_u8().await {
                        let _ = stream.write_u8(byte + 1).await;
                    }
                });
            }
        });
        let proxies = Proxies::start(&map).unwrap();
        let address = proxies.from(1).find(|(to, _)| *to == 2).unwrap().1;
        (proxies, address)
    }

    async fn ask(stream: &mut TcpStream, byte: u8) -> Option<u8> {
        stream.write_u8(byte).await.ok()?;
        tokio::time::timeout(SOON, stream.read_u8()).await.ok()?.ok()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn bytes_pass_in_both_directions_and_so_does_the_end() {
        let (_proxies, address) = network().await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        assert_eq!(ask(&mut stream, 1).await, Some(2));
        stream.shutdown().await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_cut_holds_back_one_direction_and_delivers_when_it_heals() {
        let (mut proxies, address) = network().await;
        for direction in [(1, 2), (2, 1)] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            assert_eq!(ask(&mut stream, 1).await, Some(2));
            proxies.inflict(&Fault::Cut(vec![direction])).unwrap();
            assert_eq!(ask(&mut stream, 3).await, None, "{direction:?}");
            // Nothing gets through on a new connection either.
            let mut second = TcpStream::connect(address).await.unwrap();
            assert_eq!(ask(&mut second, 5).await, None, "{direction:?}");
            proxies.heal();
            assert_eq!(stream.read_u8().await.unwrap(), 4);
            assert_eq!(second.read_u8().await.unwrap(), 6);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn delays_count_per_direction_and_keep_the_order() {
        let (mut proxies, address) = network().await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        assert_eq!(ask(&mut stream, 1).await, Some(2));
        proxies.inflict(&Fault::Delay(Duration::from_millis(30))).unwrap();
        let began = Instant::now();
        stream.write_all(&[10, 20, 30]).await.unwrap();
        for byte in [11, 21, 31] {
            assert_eq!(stream.read_u8().await.unwrap(), byte);
        }
        assert!(began.elapsed() >= Duration::from_millis(60), "{:?}", began.elapsed());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_reset_breaks_what_is_open_and_nothing_else() {
        let (mut proxies, address) = network().await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        assert_eq!(ask(&mut stream, 1).await, Some(2));
        proxies.inflict(&Fault::Reset).unwrap();
        assert!(!matches!(stream.read(&mut [0]).await, Ok(1..)));
        let mut again = TcpStream::connect(address).await.unwrap();
        assert_eq!(ask(&mut again, 1).await, Some(2));
    }
}
