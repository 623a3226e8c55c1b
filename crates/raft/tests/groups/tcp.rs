//! The same over TCP.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use kvorum_proto::peer::{
    ControlRequest, Frame, Open, Opened, SnapshotRequest, open::Lane, peer_client::PeerClient,
};
use kvorum_raft::{Member, TcpConfig, TcpTransport, disk::MemoryDisk};
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
};
use tonic::{Code, Request, transport::Server as TonicServer};

use crate::cluster::{GROUP, Server, eventually, put, text};

struct Served {
    server: Server,
    /// Runs the listener and its connections, which die with it as they would with the process.
    listening: Listening,
}

struct Listening(Option<Runtime>);

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Starts a server that listens at `addr`.
async fn serve(id: u64, disk: &MemoryDisk, addr: SocketAddr) -> Served {
    let server = Server::start(id, disk, Arc::new(TcpTransport::new(TcpConfig::default())));
    let service = server.host.peer_service();
    let listening = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = std::net::TcpListener::bind(addr).unwrap();
    listener.set_nonblocking(true).unwrap();
    let incoming = {
        let _on_it = listening.enter();
        server.host.peer_incoming(TcpListener::from_std(listener).unwrap()).into_stream()
    };
    listening.spawn(TonicServer::builder().add_service(service).serve_with_incoming(incoming));
    Served { server, listening: Listening(Some(listening)) }
}

impl Served {
    async fn stop(self) {
        drop(self.listening);
        self.server.stop().await;
    }
}

async fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

fn ready(servers: &BTreeMap<u64, Served>) -> Option<u64> {
    let leading = servers.iter().filter(|(_, served)| served.server.status().ready);
    leading.map(|(id, served)| (served.server.status().term, *id)).max().map(|(_, id)| id)
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_all_sizes_over_tcp_through_a_restart() {
    let mut addresses = BTreeMap::new();
    let mut servers = BTreeMap::new();
    let disks: BTreeMap<u64, MemoryDisk> = (1..=3).map(|id| (id, MemoryDisk::default())).collect();
    for id in 1..=3 {
        let addr = free_address().await;
        addresses.insert(id, addr);
        let mut served = serve(id, &disks[&id], addr).await;
        served.server.open(GROUP).await;
        servers.insert(id, served);
    }
    let members: BTreeMap<u64, Member> =
        addresses.iter().map(|(id, addr)| (*id, Member { server: *id, addr: addr.to_string() })).collect();
    servers[&1].server.group().initialize(members).await.unwrap();
    let leader = eventually("a leader", || ready(&servers)).await;
    let group = servers[&leader].server.group();
    let sizes = [1, 1000, 256 << 10, (256 << 10) - 100, 1 << 20, 5 << 20, 3];
    for (number, bytes) in sizes.into_iter().enumerate() {
        put(group, Bytes::from(vec![u8::try_from(number).unwrap(); bytes])).await;
    }
    for number in 0..1000 {
        let last = group.propose(text(number), None).await.unwrap();
        if number % 100 == 99 {
            last.await.unwrap();
        }
    }

    // A server goes away, misses entries, comes back at the same address.
    let away = *addresses.keys().find(|id| **id != leader).unwrap();
    servers.remove(&away).unwrap().stop().await;
    for number in 1000..1200 {
        put(servers[&leader].server.group(), text(number)).await;
    }
    // What it misses is in a snapshot only, larger than one chunk.
    let index = servers[&leader].server.group().snapshot().await.unwrap();
    eventually("purged", || {
        (servers[&leader].server.group().snapshot_stats().purged == Some(index)).then_some(())
    })
    .await;
    let mut back = serve(away, &disks[&away], addresses[&away]).await;
    back.server.open(GROUP).await;
    servers.insert(away, back);

    let total = sizes.len() + 1200;
    for (id, served) in &servers {
        eventually("all applied", || (served.server.machine().len() >= total).then_some(())).await;
        let contents = served.server.machine().contents();
        assert_eq!(contents.len(), total);
        assert!(contents == servers[&leader].server.machine().contents(), "server {id} differs");
        assert_eq!(contents.iter().take(sizes.len()).map(Bytes::len).collect::<Vec<_>>(), sizes);
    }

    let received = eventually("installed", || {
        let received = servers[&away].server.group().snapshot_stats();
        (received.installed == 1).then_some(received)
    })
    .await;
    assert_eq!(received.received_bytes, received.bytes);

    // The leader goes away; the others go on.
    servers.remove(&leader).unwrap().stop().await;
    let next = eventually("another leader", || ready(&servers)).await;
    put(servers[&next].server.group(), text(0)).await;
    eventually("a lease", || servers[&next].server.group().lease().ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_for_another_server_or_cluster_are_refused() {
    let addr = free_address().await;
    let served = serve(1, &MemoryDisk::default(), addr).await;
    let ask = |cluster: &str, to: u64| {
        let mut request = Request::new(SnapshotRequest { group: 1, to: 1, request: None });
        request.metadata_mut().insert("kvorum-cluster", cluster.parse().unwrap());
        request.metadata_mut().insert("kvorum-to", to.into());
        request
    };
    let mut client = PeerClient::connect(format!("http://{addr}")).await.unwrap();
    for (cluster, to) in [("test", 2), ("other", 1)] {
        let refused = client.snapshot(ask(cluster, to)).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        let opened = greet(addr, Lane::Control, cluster, to).await;
        assert!(opened.refused.contains("server 1 of cluster test, not"), "{}", opened.refused);
    }
    client.snapshot(ask("test", 1)).await.unwrap();
    assert_eq!(greet(addr, Lane::Append, "test", 1).await.refused, "");
    assert_ne!(greet(addr, Lane::Unspecified, "test", 1).await.refused, "");
    served.stop().await;
}

/// Opens a byte stream as any program could; returns the answer.
async fn greet(addr: SocketAddr, lane: Lane, cluster: &str, to: u64) -> Opened {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let open = Open { lane: lane.into(), cluster: cluster.to_owned(), from: 9, to };
    stream.write_all(b"KVORUM\0\x01").await.unwrap();
    stream.write_all(&message(&open)).await.unwrap();
    let mut answer = vec![0; stream.read_u32_le().await.unwrap() as usize];
    stream.read_exact(&mut answer).await.unwrap();
    Opened::decode(&answer[..]).unwrap()
}

fn message(content: &impl Message) -> Vec<u8> {
    let content = content.encode_to_vec();
    [&u32::try_from(content.len()).unwrap().to_le_bytes()[..], &content].concat()
}

/// Whatever is said to the peer port: the connection ends, nothing else does.
#[tokio::test(flavor = "multi_thread")]
async fn nonsense_ends_its_own_connection_only() {
    let addr = free_address().await;
    let served = serve(1, &MemoryDisk::default(), addr).await;
    let open = Open { lane: Lane::Append.into(), ..Open::default() };
    let begin = [&b"KVORUM\0\x01"[..], &message(&open)].concat();
    let no_content = Frame { group: 1, to: 1, stream: 1, request: 1, content: None };
    let nonsense = [
        b"KVORUM\0\x02 and more".to_vec(),
        b"K".repeat(100),
        [&b"KVORUM\0\x01"[..], &[255; 4]].concat(),
        [&begin[..], &[255; 4]].concat(),
        [&begin[..], &[3, 0, 0, 0, 255, 255, 255]].concat(),
        [&begin[..], &message(&no_content)].concat(),
    ];
    for bytes in nonsense {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let mut rest = Vec::new();
        let reading = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut rest));
        // Closed, or reset for what was not read.
        let _ = reading.await.expect("the connection goes on");
    }
    assert_eq!(greet(addr, Lane::Append, "test", 1).await.refused, "");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_fails_fast_while_the_peer_is_down_and_works_once_it_is_up() {
    use kvorum_raft::Transport;
    let addr = free_address().await;
    let transport = TcpTransport::new(TcpConfig::default());
    let link = transport.link(1, &addr.to_string());
    let request = ControlRequest { group: 1, to: 1, request: None };
    assert!(link.control(request.clone(), Duration::from_millis(500)).await.is_err());
    let served = serve(1, &MemoryDisk::default(), addr).await;
    let reply = eventually("an answer", || {
        let asking = link.control(request.clone(), Duration::from_millis(500));
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(asking)).ok()
    })
    .await;
    assert!(reply.reply.is_some());
    served.stop().await;
}
