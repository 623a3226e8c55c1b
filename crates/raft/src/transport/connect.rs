//! How a connection to another server is made: by which address, looked up how, and by when.
//!
//! Addresses are `host:port`, as servers announce them. A host name is looked up anew for every connection, for a container that
//! comes back may have another address. The system's look-up blocks a thread, for as long as a name server pleases: nobody here
//! waits for it longer than the deadline, and there is never more than one look-up of a name under way, so that a name server that hangs costs
//! one thread a name and not one an attempt. While it hangs, the addresses that it gave last are tried: whoever answers there is asked who
//! it is before anything counts (see `PeerService::check`).

use std::{
    collections::{BTreeMap, HashMap},
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{net::TcpStream, time::Instant};
use tonic::transport::Uri;

/// Connects to servers by their announced addresses. Clones share what they know.
#[derive(Clone)]
pub struct Connector(Arc<Inner>);

struct Inner {
    timeout: Duration,
    /// The address to use in place of an announced one.
    addresses: BTreeMap<String, String>,
    lookup: Box<Lookup>,
    names: Mutex<HashMap<String, Name>>,
}

type Lookup = dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync;
type Answer = Shared<BoxFuture<'static, Result<Vec<SocketAddr>, Arc<str>>>>;

/// What is known of a name.
#[derive(Default)]
struct Name {
    under_way: Option<Answer>,
    last: Vec<SocketAddr>,
}

impl Connector {
    /// Connects within `timeout`, look-up included. Where `addresses` has an announced address, it has the one to use instead.
    pub fn new(timeout: Duration, addresses: BTreeMap<String, String>) -> Connector {
        let lookup = |addr: String| async move { Ok(tokio::net::lookup_host(addr).await?.collect()) }.boxed();
        Connector::with_lookup(timeout, addresses, lookup)
    }

    /// The same with another way to look up `host:port`.
    pub(crate) fn with_lookup(
        timeout: Duration,
        addresses: BTreeMap<String, String>,
        lookup: impl Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync + 'static,
    ) -> Connector {
        Connector(Arc::new(Inner { timeout, addresses, lookup: Box::new(lookup), names: Mutex::default() }))
    }

    /// Connects to the server that announces `addr`.
    ///
    /// # Errors
    /// What the look-up or the last address tried said, or that time ran out.
    pub async fn connect(&self, addr: &str) -> io::Result<TcpStream> {
        let addr = self.0.addresses.get(addr).map_or(addr, String::as_str);
        let deadline = Instant::now() + self.0.timeout;
        let addresses = self.resolve(addr).await?;
        let mut failure = io::Error::new(io::ErrorKind::NotFound, format!("{addr} has no address"));
        for (at, address) in addresses.iter().enumerate() {
            // One that does not answer leaves time for the others.
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(addresses.len() - at).unwrap_or(u32::MAX);
            match tokio::time::timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    stream.set_nodelay(true)?;
                    return Ok(stream);
                }
                Ok(Err(error)) => failure = io::Error::new(error.kind(), format!("{address}: {error}")),
                Err(_) => {
                    failure = io::Error::new(io::ErrorKind::TimedOut, format!("{address} does not answer"));
                }
            }
        }
        Err(failure)
    }

    async fn resolve(&self, addr: &str) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = addr.parse() {
            return Ok(vec![address]);
        }
        let answer = {
            let mut names = self.0.names.lock();
            let name = names.entry(addr.to_owned()).or_default();
            name.under_way.get_or_insert_with(|| self.look_up(addr)).clone()
        };
        // Half of the time, so that the other half is left to connect.
        let answered = tokio::time::timeout(self.0.timeout / 2, answer.clone()).await;
        let mut names = self.0.names.lock();
        let name = names.entry(addr.to_owned()).or_default();
        if answered.is_ok() && name.under_way.as_ref().is_some_and(|under_way| under_way.ptr_eq(&answer)) {
            name.under_way = None;
        }
        let (kind, reason) = match answered {
            Ok(Ok(addresses)) => {
                name.last.clone_from(&addresses);
                return Ok(addresses);
            }
            Ok(Err(reason)) => (io::ErrorKind::NotFound, reason),
            Err(_) => (io::ErrorKind::TimedOut, "the look-up takes too long".into()),
        };
        if name.last.is_empty() {
            return Err(io::Error::new(kind, format!("looking up {addr}: {reason}")));
        }
        tracing::debug!(addr, %reason, "look-up failed; trying the last addresses");
        Ok(name.last.clone())
    }

    fn look_up(&self, addr: &str) -> Answer {
        let looking_up = (self.0.lookup)(addr.to_owned());
        looking_up.map(|answer| answer.map_err(|error| error.to_string().into())).boxed().shared()
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("timeout", &self.0.timeout).finish_non_exhaustive()
    }
}

/// What tonic asks whenever it needs a connection.
impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<TcpStream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            let addr = uri.authority().map_or("", |authority| authority.as_str());
            connector.connect(addr).await.map(TokioIo::new)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::net::TcpListener;

    const TIMEOUT: Duration = Duration::from_millis(400);

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// A connector for which every name has the addresses in the returned cell; empty: the look-up never ends.
    fn connector() -> (Connector, Arc<Mutex<Vec<SocketAddr>>>, Arc<AtomicUsize>) {
        let (addresses, asked) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
        let (known, count) = (Arc::clone(&addresses), Arc::clone(&asked));
        let lookup = move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            let answer: Vec<SocketAddr> = known.lock().clone();
            if answer.is_empty() { futures::future::pending().boxed() } else { async { Ok(answer) }.boxed() }
        };
        (Connector::with_lookup(TIMEOUT, BTreeMap::new(), lookup), addresses, asked)
    }

    #[tokio::test]
    async fn a_name_is_looked_up_again_for_every_connection() {
        let ((_first, first), (_second, second)) = (listener().await, listener().await);
        let (connector, addresses, asked) = connector();
        for (turn, address) in [first, second, first].into_iter().enumerate() {
            *addresses.lock() = vec![address];
            assert_eq!(connector.connect("name:1").await.unwrap().peer_addr().unwrap(), address);
            assert_eq!(asked.load(Ordering::SeqCst), turn + 1);
        }
    }

    #[tokio::test]
    async fn a_look_up_that_hangs_holds_nobody_and_is_not_repeated() {
        let (connector, addresses, asked) = connector();
        let began = Instant::now();
        for _ in 0..3 {
            let error = connector.connect("name:1").await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        }
        assert!(began.elapsed() < 3 * TIMEOUT, "{:?}", began.elapsed());
        assert_eq!(asked.load(Ordering::SeqCst), 1, "each attempt took another thread");
        // Another name is not held up by it.
        let (_listener, address) = listener().await;
        addresses.lock().push(address);
        connector.connect("other:1").await.unwrap();
    }

    #[tokio::test]
    async fn while_the_look_up_hangs_the_last_addresses_are_tried() {
        let (_listener, address) = listener().await;
        let (connector, addresses, _) = connector();
        *addresses.lock() = vec![address];
        connector.connect("name:1").await.unwrap();
        addresses.lock().clear();
        let stream = connector.connect("name:1").await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), address);
    }

    #[tokio::test]
    async fn every_address_of_a_name_is_tried() {
        let (gone, closed) = listener().await;
        drop(gone);
        let (_listener, address) = listener().await;
        let (connector, addresses, _) = connector();
        *addresses.lock() = vec![closed, address];
        assert_eq!(connector.connect("name:1").await.unwrap().peer_addr().unwrap(), address);
    }

    #[tokio::test]
    async fn an_address_in_the_table_is_used_in_place_of_the_announced_one() {
        let (_listener, address) = listener().await;
        let addresses = BTreeMap::from([("announced:7198".to_owned(), address.to_string())]);
        let connector = Connector::new(TIMEOUT, addresses);
        assert_eq!(connector.connect("announced:7198").await.unwrap().peer_addr().unwrap(), address);
    }

    #[tokio::test]
    async fn the_system_knows_localhost_and_not_everything() {
        let (_listener, address) = listener().await;
        let connector = Connector::new(Duration::from_secs(5), BTreeMap::new());
        connector.connect(&format!("localhost:{}", address.port())).await.unwrap();
        assert!(connector.connect("no-such-name.invalid:1").await.is_err());
    }
}
