//! Administration over the peer port: forming a cluster, showing it, telling each other who leads.

use crate::config::{NodeConfig, PEER_PORT_OFFSET};
use crate::contact::{Answer, Call};
use crate::identity::{Membership, MetaMember, random_hex};
use crate::membership::LEFT;
use crate::node::Node;
use crate::timeline::TimelineEvent;
use kvorum_cluster::{
    Create, Durability, FEATURE_LEVEL, MetaCommand, MetaMachine, Mode, ReplicaId, ServerId, ShardId, Stage,
    Tenure, Topology,
};
use kvorum_proto::admin::admin_server::{Admin, AdminServer};
use kvorum_proto::admin::change_request::Change;
use kvorum_proto::admin::{self as rpc, admin_client};
use kvorum_raft::{Connector, Environment, Role};
use prost::Message;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};
use tracing::{debug, info, warn};

/// Every call to another server ends by then.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// A sign of life that takes longer than this is none.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_millis(400);

/// The layout of a new cluster, as `kvorum cluster create` asks for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CreateCluster {
    /// `host:port` of every server's peer listener; the first is server 1.
    pub servers: Vec<String>,
    /// Number of shards.
    pub shards: u16,
    /// Replicas per shard, at most the number of servers.
    pub replicas: u16,
    /// Whether clients see a Redis Cluster or a single Redis.
    pub mode: Mode,
    /// When a write counts as safe.
    pub durability: Durability,
    /// Number of databases (1 in a Redis Cluster).
    pub databases: u16,
}

/// What a server says of itself.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Description {
    /// Drawn at the server's first start, 40 hex digits.
    pub server_hex: String,
    /// `None` while the server belongs to no cluster.
    pub cluster_id: Option<String>,
    /// Its number in the cluster, 0 for none.
    pub server_id: u64,
    /// Host name or address that clients are told.
    pub host: String,
    /// Client port of shard 0 there.
    pub base_port: u16,
    /// `host:port` that the other servers are told.
    pub peer: String,
    /// Version of the program.
    pub version: String,
    /// The replicas it holds.
    pub replicas: Vec<ReplicaStatus>,
}

impl Description {
    /// The server as a member of a cluster.
    fn new_server(self, id: ServerId) -> kvorum_cluster::NewServer {
        let usual = format!("{}:{}", self.host, self.base_port.saturating_add(PEER_PORT_OFFSET));
        let peer = Some(self.peer).filter(|peer| *peer != usual);
        kvorum_cluster::NewServer { id, host: self.host, base_port: self.base_port, peer }
    }
}

/// One replica, as its server sees it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct ReplicaStatus {
    /// The shard.
    pub shard: u16,
    /// The replica's number.
    pub replica: u64,
    /// The server that holds it.
    pub server: u64,
    /// `leader`, `follower`, `candidate`, `learner`; `distrusted` when it is not opened because its log may have lost its end, or something is missing;
    /// `unreachable` when its server did not answer.
    pub role: String,
    /// Raft term.
    pub term: u64,
    /// Index of the last log entry.
    pub last: u64,
    /// Index of the last entry known to be committed.
    pub committed: u64,
    /// Index of the last applied entry.
    pub applied: u64,
    /// Why the replica stopped, or was not opened.
    pub failed: Option<String>,
}

/// The cluster as one server sees it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct ClusterStatus {
    /// The cluster's id.
    pub cluster_id: String,
    /// Version of the topology.
    pub topology_version: u64,
    /// What clients see.
    pub mode: Mode,
    /// When a write counts as safe.
    pub durability: Durability,
    /// All servers.
    pub servers: Vec<ServerStatus>,
    /// All shards.
    pub shards: Vec<ShardStatus>,
    /// What is on its way or still to be moved, as text.
    #[serde(default)]
    pub to_do: Vec<String>,
}

/// One server in a [`ClusterStatus`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct ServerStatus {
    /// Its number.
    pub id: u64,
    /// `host:port` of its peer listener.
    pub peer: String,
    /// Where clients reach it.
    pub host: String,
    /// Client port of shard 0 there.
    pub base_port: u16,
    /// Whether the meta group hears it.
    pub up: bool,
    /// Whether it comes, stays or goes.
    #[serde(default)]
    pub tenure: Tenure,
}

/// One shard in a [`ClusterStatus`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct ShardStatus {
    /// Its number.
    pub id: u16,
    /// Its slots, as ranges.
    pub slots: String,
    /// The replica that leads, if known.
    pub leader: Option<u64>,
    /// The leader's term.
    pub term: u64,
    /// `host:port` where clients reach the leader.
    pub leader_address: Option<String>,
    /// All replicas.
    pub replicas: Vec<ReplicaStatus>,
}

/// Why an administrative call failed; the text is for the person at the terminal.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address is no `host:port`.
    #[error("{addr:?} is not host:port")]
    Address {
        /// As it was given.
        addr: String,
    },
    /// No answer.
    #[error("server {addr} does not answer: {reason}")]
    Unreachable {
        /// The server's peer address.
        addr: String,
        /// What the connection said.
        reason: String,
    },
    /// The server says no.
    #[error("server {addr}: {reason}")]
    Refused {
        /// The server's peer address.
        addr: String,
        /// Its words.
        reason: String,
    },
}

/// A connection to one server's administration.
pub struct AdminClient {
    addr: String,
    client: admin_client::AdminClient<Channel>,
}

pub(crate) fn endpoint(addr: &str) -> Result<Endpoint, AdminError> {
    let endpoint = Endpoint::from_shared(format!("http://{addr}"))
        .map_err(|_| AdminError::Address { addr: addr.to_owned() })?;
    Ok(endpoint.timeout(CALL_TIMEOUT))
}

impl AdminClient {
    /// Connects to a server's peer port, `host:port`.
    ///
    /// # Errors
    /// [`AdminError::Address`] and [`AdminError::Unreachable`].
    pub async fn connect(addr: &str) -> Result<AdminClient, AdminError> {
        AdminClient::connect_by(&Connector::new(CALL_TIMEOUT, BTreeMap::new()), addr).await
    }

    async fn connect_by(connector: &Connector, addr: &str) -> Result<AdminClient, AdminError> {
        let channel = endpoint(addr)?
            .connect_with_connector(connector.clone())
            .await
            .map_err(|error| AdminError::Unreachable { addr: addr.to_owned(), reason: root_cause(&error) })?;
        Ok(AdminClient { addr: addr.to_owned(), client: admin_client::AdminClient::new(channel) })
    }

    fn refused(&self, status: &Status) -> AdminError {
        AdminError::Refused { addr: self.addr.clone(), reason: status.message().to_owned() }
    }

    /// Who the server is.
    ///
    /// # Errors
    /// [`AdminError::Refused`].
    pub async fn describe(&mut self) -> Result<Description, AdminError> {
        let reply = self.client.describe(rpc::DescribeRequest {}).await;
        let reply = reply.map_err(|status| self.refused(&status))?.into_inner();
        let replicas = reply.shards.into_iter().map(|here| ReplicaStatus {
            shard: here.shard as u16,
            replica: here.replica,
            server: reply.server_id,
            role: here.role,
            term: here.term,
            last: here.last,
            committed: here.committed,
            applied: here.applied,
            failed: Some(here.failed).filter(|failed| !failed.is_empty()),
        });
        Ok(Description {
            server_hex: reply.server_hex,
            cluster_id: Some(reply.cluster_id).filter(|id| !id.is_empty()),
            server_id: reply.server_id,
            host: reply.host,
            base_port: reply.base_port as u16,
            peer: reply.peer,
            version: reply.version,
            replicas: replicas.collect(),
        })
    }

    /// Forms a cluster of virgin servers; this server must be one of them. Returns the cluster's id once all
    /// servers have taken their place; the shards elect their leaders after that.
    ///
    /// # Errors
    /// [`AdminError::Refused`] with the reason.
    pub async fn create_cluster(&mut self, create: &CreateCluster) -> Result<String, AdminError> {
        let servers =
            create.servers.iter().map(|addr| rpc::NewServer { addr: addr.clone(), ..Default::default() });
        let request = rpc::CreateRequest {
            servers: servers.collect(),
            shards: create.shards.into(),
            replicas: create.replicas.into(),
            mode: create.mode.to_string(),
            durability: create.durability.to_string(),
            databases: create.databases.into(),
        };
        let reply = self.client.create(request).await;
        Ok(reply.map_err(|status| self.refused(&status))?.into_inner().cluster_id)
    }

    /// The cluster as the server sees it.
    ///
    /// # Errors
    /// [`AdminError::Refused`], also while the server belongs to no cluster.
    pub async fn status(&mut self) -> Result<ClusterStatus, AdminError> {
        let reply = self.client.status(rpc::StatusRequest {}).await;
        let json = reply.map_err(|status| self.refused(&status))?.into_inner().json;
        serde_json::from_str(&json)
            .map_err(|error| AdminError::Refused { addr: self.addr.clone(), reason: error.to_string() })
    }

    /// Hands a shard's leadership to another of its replicas; asked of the leader's server.
    ///
    /// # Errors
    /// [`AdminError::Refused`] with the reason.
    pub async fn transfer(&mut self, shard: ShardId, to: ReplicaId) -> Result<(), AdminError> {
        let request = rpc::TransferRequest { shard: shard.0.into(), to_replica: to.0, ..Default::default() };
        let reply = self.client.transfer(request).await;
        reply.map(|_| ()).map_err(|status| self.refused(&status))
    }

    /// What happened to the leaders of the shards as the server saw it, the oldest first.
    ///
    /// # Errors
    /// [`AdminError::Refused`].
    pub async fn failover_events(&mut self) -> Result<Vec<TimelineEvent>, AdminError> {
        let reply = self.client.failover_events(rpc::FailoverEventsRequest {}).await;
        let json = reply.map_err(|status| self.refused(&status))?.into_inner().json;
        serde_json::from_str(&json)
            .map_err(|error| AdminError::Refused { addr: self.addr.clone(), reason: error.to_string() })
    }

    /// Opens the replicas of this server whose logs are in doubt, of one shard or of all, with the logs they have: what was
    /// acknowledged and is not in them may be lost. `by` is who decided that. Returns the shards.
    ///
    /// # Errors
    /// [`AdminError::Refused`] when nothing is in doubt.
    pub async fn trust_log(&mut self, shard: Option<ShardId>, by: &str) -> Result<Vec<ShardId>, AdminError> {
        let request = rpc::TrustLogRequest { shard: shard.map(|shard| shard.0.into()), by: by.to_owned() };
        let reply = self.client.trust_log(request).await.map_err(|status| self.refused(&status))?;
        Ok(reply.into_inner().shards.into_iter().map(|shard| ShardId(shard as u16)).collect())
    }

    /// Takes a virgin server into the cluster; returns the id that it was given. Asked of any server of the cluster. Replicas move to it
    /// after that, if it shall have its share.
    ///
    /// # Errors
    /// [`AdminError::Refused`] with the reason.
    pub async fn join(&mut self, new: &str, rebalance: bool) -> Result<ServerId, AdminError> {
        let request = rpc::JoinRequest { addr: new.to_owned(), rebalance };
        let reply = self.client.join(request).await.map_err(|status| self.refused(&status))?;
        Ok(ServerId(reply.into_inner().server))
    }

    /// Lets a server that is up leave the cluster: its replicas move to others, which takes a while. With `fewer_replicas` those without
    /// another place are given up.
    ///
    /// # Errors
    /// [`AdminError::Refused`] with the reason.
    pub async fn leave(&mut self, server: ServerId, fewer_replicas: bool) -> Result<(), AdminError> {
        self.change(Change::Leave(rpc::Leave { server: server.0, fewer_replicas })).await
    }

    /// Gives up a server that is down for good: its replicas are made anew on others, as far as there are any.
    ///
    /// # Errors
    /// [`AdminError::Refused`] with the reason.
    pub async fn remove(&mut self, server: ServerId) -> Result<(), AdminError> {
        self.change(Change::Remove(rpc::Remove { server: server.0 })).await
    }

    /// Makes a replica the preferred leader of its shard.
    ///
    /// # Errors
    /// [`AdminError::Refused`] with the reason.
    pub async fn prefer(&mut self, shard: ShardId, replica: ReplicaId) -> Result<(), AdminError> {
        self.change(Change::Prefer(rpc::Prefer { shard: shard.0.into(), replica: replica.0 })).await
    }

    /// Spreads replicas and preferred leaders evenly over the servers.
    ///
    /// # Errors
    /// [`AdminError::Refused`] with the reason.
    pub async fn rebalance(&mut self) -> Result<(), AdminError> {
        self.change(Change::Rebalance(rpc::Rebalance {})).await
    }

    /// How many replicas each shard shall have, as far as there are servers; 0 for as many as it has.
    ///
    /// # Errors
    /// [`AdminError::Refused`] with the reason.
    pub async fn want_replicas(&mut self, replicas: u16) -> Result<(), AdminError> {
        self.change(Change::Want(rpc::WantReplicas { replicas: replicas.into() })).await
    }

    async fn change(&mut self, change: Change) -> Result<(), AdminError> {
        let request = rpc::ChangeRequest { change: Some(change), ..Default::default() };
        let reply = self.client.change(request).await;
        reply.map(|_| ()).map_err(|status| self.refused(&status))
    }

    async fn adopt(&mut self, request: rpc::AdoptRequest) -> Result<(), AdminError> {
        let reply = self.client.adopt(request).await;
        reply.map(|_| ()).map_err(|status| self.refused(&status))
    }
}

fn hash_seed(environment: &Environment) -> [u8; 16] {
    let mut seed = [0; 16];
    seed[..8].copy_from_slice(&environment.draw().to_le_bytes());
    seed[8..].copy_from_slice(&environment.draw().to_le_bytes());
    seed
}

/// The innermost reason of a chain of errors: "connection refused" rather than "transport error".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// The service on the peer port.
pub(crate) struct AdminService {
    node: Node,
}

impl AdminService {
    pub(crate) fn new(node: Node) -> AdminService {
        AdminService { node }
    }

    pub(crate) fn into_server(self) -> AdminServer<AdminService> {
        AdminServer::new(self)
    }

    /// How this server reaches others.
    fn connector(&self) -> Connector {
        Connector::new(CALL_TIMEOUT, self.node.config().peer_addresses.clone())
    }

    async fn form_cluster(&self, request: rpc::CreateRequest) -> Result<String, String> {
        let mode: Mode =
            request.mode.parse().map_err(|error: kvorum_cluster::ParseModeError| error.to_string())?;
        let durability: Durability = request
            .durability
            .parse()
            .map_err(|error: kvorum_cluster::ParseDurabilityError| error.to_string())?;
        if request.servers.is_empty() {
            return Err("a cluster needs at least one server".to_owned());
        }
        let cluster_id = random_hex::<16>(self.node.environment());
        let connector = self.connector();
        let mut clients = Vec::new();
        let mut servers = Vec::new();
        let mut meta_members = Vec::new();
        let mut seen = Vec::new();
        for (n, server) in (1..).zip(&request.servers) {
            let mut client =
                AdminClient::connect_by(&connector, &server.addr).await.map_err(|error| error.to_string())?;
            let description = client.describe().await.map_err(|error| error.to_string())?;
            if let Some(other) = description.cluster_id {
                return Err(format!("server {} already belongs to cluster {other}", server.addr));
            }
            if seen.contains(&description.server_hex) {
                return Err(format!("server {} is named twice", server.addr));
            }
            seen.push(description.server_hex.clone());
            meta_members.push(rpc::MetaMember { replica: n, server: n, addr: description.peer.clone() });
            servers.push(description.new_server(ServerId(n)));
            clients.push(client);
        }
        if !seen.contains(&self.node.server().server_hex) {
            return Err("the server that is asked must be one of the new cluster's".to_owned());
        }
        let create = MetaCommand::Create(Create {
            cluster_id: cluster_id.clone(),
            servers,
            shards: small(request.shards, "shards")?,
            replicas: small(request.replicas, "replicas")?,
            mode,
            durability,
            databases: small(request.databases, "databases")?,
            hash_seed: hash_seed(self.node.environment()),
            id_seed: self.node.environment().draw(),
        });
        // What every server would refuse is refused before any server is changed.
        MetaMachine::new().apply(0, &create.encode()).map_err(|refusal| refusal.to_string())?;
        let create = serde_json::to_vec(&create).map_err(|error| error.to_string())?;
        for (n, client) in (1..).zip(&mut clients) {
            let request = rpc::AdoptRequest {
                cluster_id: cluster_id.clone(),
                server_id: n,
                meta_members: meta_members.clone(),
                create: create.clone().into(),
                joins: false,
            };
            client.adopt(request).await.map_err(|error| error.to_string())?;
        }
        info!(cluster_id, servers = clients.len(), "cluster formed");
        Ok(cluster_id)
    }

    /// Every step can be repeated: the topology knows the server by what its data directory calls itself.
    async fn take_in(&self, request: rpc::JoinRequest) -> Result<ServerId, String> {
        let view = self.node.view().ok_or("this server belongs to no cluster")?;
        let cluster_id = view.topology.cluster_id.clone();
        let mut client = AdminClient::connect_by(&self.connector(), &request.addr)
            .await
            .map_err(|error| error.to_string())?;
        let new = client.describe().await.map_err(|error| error.to_string())?;
        match &new.cluster_id {
            Some(other) if *other != cluster_id => {
                return Err(format!("server {} already belongs to cluster {other}", request.addr));
            }
            Some(_) if view.topology.server(ServerId(new.server_id)).is_none() => {
                return Err(format!(
                    "server {} was server {} of this cluster and has left it; to come again it needs an empty data directory",
                    request.addr, new.server_id
                ));
            }
            Some(_) => return Ok(ServerId(new.server_id)),
            None => {}
        }
        let server_hex = new.server_hex.clone();
        let kvorum_cluster::NewServer { host, base_port, peer, .. } = new.new_server(ServerId(0));
        let add = rpc::AddServer {
            server_hex,
            host,
            base_port: base_port.into(),
            peer: peer.unwrap_or_default(),
            rebalance: request.rebalance,
        };
        let server_id = self.node.change(Change::Add(add)).await?.server;
        let adopt = rpc::AdoptRequest { cluster_id, server_id, joins: true, ..Default::default() };
        client.adopt(adopt).await.map_err(|error| error.to_string())?;
        info!(server = server_id, addr = request.addr, "server taken into the cluster");
        Ok(ServerId(server_id))
    }

    async fn cluster_status(&self) -> Result<ClusterStatus, Status> {
        let view = self
            .node
            .view()
            .ok_or_else(|| Status::failed_precondition("this server belongs to no cluster"))?;
        let topology = &view.topology;
        let me = self.node.server().server_id;
        let connector = self.connector();
        let described = futures::future::join_all(topology.servers.values().map(|server| {
            let (addr, connector) = (server.peer_addr(), &connector);
            async move {
                if Some(server.id) == me {
                    return Some(self.node.describe());
                }
                let asked = async { AdminClient::connect_by(connector, &addr).await?.describe().await };
                tokio::time::timeout(Duration::from_secs(1), asked).await.ok()?.ok()
            }
        }))
        .await;
        let found: Vec<ReplicaStatus> =
            described.into_iter().flatten().flat_map(|description| description.replicas).collect();
        let servers = topology.servers.values().map(|server| ServerStatus {
            id: server.id.0,
            peer: server.peer_addr(),
            host: server.host.clone(),
            base_port: server.base_port,
            up: server.up,
            tenure: server.tenure,
        });
        let shards = topology.shards.iter().map(|shard| {
            let leader = view.leaders.leader(shard.id);
            let replicas = shard.replicas.iter().map(|replica| {
                let known = found.iter().find(|status| status.replica == replica.id.0);
                known.cloned().unwrap_or_else(|| ReplicaStatus {
                    shard: shard.id.0,
                    replica: replica.id.0,
                    server: replica.server.0,
                    role: "unreachable".to_owned(),
                    term: 0,
                    last: 0,
                    committed: 0,
                    applied: 0,
                    failed: None,
                })
            });
            ShardStatus {
                id: shard.id.0,
                slots: shard.slots.to_string(),
                leader: leader.map(|leader| leader.replica.0),
                term: view.leaders.term(shard.id),
                leader_address: leader
                    .and_then(|leader| topology.address(leader.replica))
                    .map(|(host, port)| format!("{host}:{port}")),
                replicas: replicas.collect(),
            }
        });
        Ok(ClusterStatus {
            cluster_id: topology.cluster_id.clone(),
            topology_version: topology.version,
            mode: topology.mode,
            durability: topology.durability,
            servers: servers.collect(),
            shards: shards.collect(),
            to_do: to_do(topology),
        })
    }
}

/// What is on its way, and what is still to be moved.
fn to_do(topology: &Topology) -> Vec<String> {
    let on_the_way = topology.all_replicas().filter_map(|(shard, replica)| {
        let (id, server, shard) = (replica.id, replica.server, shard.id);
        Some(match replica.stage {
            Stage::Joining | Stage::Incoming => {
                format!("replica {id} of shard {shard} comes to server {server}")
            }
            Stage::Outgoing => format!("replica {id} of shard {shard} leaves server {server}"),
            Stage::Founder | Stage::Member => {
                let tenure = topology.server(server).map(|server| server.tenure)?;
                let moves = tenure.is_parting() || tenure == Tenure::Away;
                moves.then(|| format!("replica {id} of shard {shard} is still to leave server {server}"))?
            }
        })
    });
    on_the_way.collect()
}

fn small(number: u32, what: &str) -> Result<u16, String> {
    u16::try_from(number).map_err(|_| format!("{number} {what} are too many"))
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Leader => "leader",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Learner => "learner",
    }
}

impl Node {
    /// Who this server is and what it holds.
    pub fn describe(&self) -> Description {
        let identity = self.server();
        let NodeConfig { host, announced_port, .. } = self.config().clone();
        let server_id = identity.server_id.map_or(0, |id| id.0);
        let shards = self.shards().borrow().clone();
        let open = shards.values().map(|shard| {
            let status = shard.status();
            ReplicaStatus {
                shard: shard.id().0,
                replica: shard.replica().0,
                server: server_id,
                role: role_name(status.role).to_owned(),
                term: status.term,
                last: status.last,
                committed: status.committed,
                applied: status.applied,
                failed: shard.wrong().or_else(|| status.failed.clone()),
            }
        });
        let unopened = self.unopened().into_iter().map(|unopened| ReplicaStatus {
            shard: unopened.shard.0,
            replica: unopened.replica.0,
            server: server_id,
            role: "distrusted".to_owned(),
            term: 0,
            last: 0,
            committed: 0,
            applied: 0,
            failed: Some(unopened.why),
        });
        Description {
            server_hex: identity.server_hex,
            cluster_id: identity.cluster_id,
            server_id,
            host,
            base_port: announced_port,
            peer: self.config().peer_addr(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            replicas: open.chain(unopened).collect(),
        }
    }

    fn leaders(&self) -> Vec<rpc::ShardLeader> {
        let led = self.led().into_iter();
        led.map(|shard| {
            let status = shard.status();
            // What is applied now is no older than the lease that is looked at after it.
            let index = shard.group().lease().is_ok().then_some(status.applied);
            let (term, replica) = (status.term, shard.replica().0);
            rpc::ShardLeader { shard: shard.id().0.into(), term, replica, index }
        })
        .collect()
    }

    /// Learns who leads from another server. `asked`: when the question left that this is the answer to.
    fn learn_leaders(&self, leaders: &[rpc::ShardLeader], asked: Option<Duration>) {
        for leader in leaders {
            let Ok(shard) = u16::try_from(leader.shard) else { continue };
            let id = ShardId(shard);
            self.0.views.learn_leader(id, leader.term, ReplicaId(leader.replica));
            if leader.index.is_some() {
                self.learn_serving(id, ReplicaId(leader.replica));
            }
            if let (Some(asked), Some(index), Some(shard)) = (asked, leader.index, self.shard(id)) {
                shard.leader_had(asked, index);
            }
        }
    }

    /// Answers what another server asks through its [`Contact`](crate::Contact).
    ///
    /// # Errors
    /// The reason for the other server's log.
    pub async fn answer(&self, call: Call) -> Result<Answer, String> {
        match call {
            Call::Adopt(request) => self.answer_adopt(request).await.map(Answer::Adopt),
            Call::Replace(request) => self.answer_replace(request).await.map(Answer::Replace),
            Call::Joined(request) => self.answer_joined(request).await.map(Answer::Joined),
            Call::Change(request) => self.answer_change(request).await.map(Answer::Change),
            Call::Transfer(request) => {
                self.answer_transfer(request).await.map(Answer::Transfer).map_err(|error| error.to_string())
            }
            Call::Forward(request) => self.answer_forward(request).await.map(Answer::Forward),
        }
    }

    async fn answer_adopt(&self, request: rpc::AdoptRequest) -> Result<rpc::AdoptReply, String> {
        let create = if request.joins {
            serde_json::Value::Null
        } else {
            serde_json::from_slice(&request.create)
                .map_err(|error| format!("no usable first entry: {error}"))?
        };
        let members = request.meta_members.into_iter();
        let membership = Membership {
            cluster_id: request.cluster_id,
            server_id: request.server_id,
            meta_members: members
                .map(|member| MetaMember { server: member.server, addr: member.addr })
                .collect(),
            create,
            joined: request.joins,
        };
        self.adopt(membership).await.map_err(|error| error.to_string())?;
        Ok(rpc::AdoptReply {})
    }

    /// Answers the announcements of other servers from now on.
    pub(crate) fn take_announcements(&self) {
        let node = Arc::downgrade(&self.0);
        self.0.host.take_notes(Arc::new(move |note| {
            let node = Node(node.upgrade().ok_or("stopped")?);
            let request = rpc::AnnounceRequest::decode(note).map_err(|error| error.to_string())?;
            node.answer_announce(&request).map(|reply| reply.encode_to_vec().into())
        }));
    }

    fn answer_announce(&self, request: &rpc::AnnounceRequest) -> Result<rpc::AnnounceReply, String> {
        if self.cluster_id().as_deref() != Some(&*request.cluster_id) {
            return Err("another cluster".to_owned());
        }
        let from = ServerId(request.from_server);
        let left = |topology: &Topology| topology.server(from).is_none() && from <= topology.last_server();
        if self.view().is_some_and(|view| left(&view.topology)) {
            return Err(LEFT.to_owned());
        }
        self.hear(from);
        self.learn_leaders(&request.leaders, None);
        self.learn_notes(ServerId(request.from_server), request.feature_level, &request.notes);
        let introductions = &self.0.introductions;
        introductions.learn(ServerId(request.from_server), &request.server_hex, request.sentinel_port);
        Ok(rpc::AnnounceReply {
            leaders: self.leaders(),
            feature_level: FEATURE_LEVEL.into(),
            notes: self.notes(),
            sentinel_port: Some(introductions.own_port()),
            server_hex: self.server().server_hex,
        })
    }

    fn cluster_id(&self) -> Option<String> {
        self.server().cluster_id
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn describe(
        &self,
        _: Request<rpc::DescribeRequest>,
    ) -> Result<Response<rpc::DescribeReply>, Status> {
        let description = self.node.describe();
        let shards = description.replicas.into_iter().map(|replica| rpc::ShardHere {
            shard: replica.shard.into(),
            replica: replica.replica,
            role: replica.role,
            term: replica.term,
            last: replica.last,
            committed: replica.committed,
            applied: replica.applied,
            failed: replica.failed.unwrap_or_default(),
            ..Default::default()
        });
        Ok(Response::new(rpc::DescribeReply {
            server_hex: description.server_hex,
            cluster_id: description.cluster_id.unwrap_or_default(),
            server_id: description.server_id,
            host: description.host,
            base_port: description.base_port.into(),
            peer: description.peer,
            version: description.version,
            shards: shards.collect(),
        }))
    }

    async fn create(
        &self,
        request: Request<rpc::CreateRequest>,
    ) -> Result<Response<rpc::CreateReply>, Status> {
        let cluster_id =
            self.form_cluster(request.into_inner()).await.map_err(Status::failed_precondition)?;
        Ok(Response::new(rpc::CreateReply { cluster_id }))
    }

    async fn adopt(&self, request: Request<rpc::AdoptRequest>) -> Result<Response<rpc::AdoptReply>, Status> {
        let reply = self.node.answer_adopt(request.into_inner()).await;
        Ok(Response::new(reply.map_err(Status::failed_precondition)?))
    }

    async fn status(&self, _: Request<rpc::StatusRequest>) -> Result<Response<rpc::StatusReply>, Status> {
        let status = self.cluster_status().await?;
        let json = serde_json::to_string(&status).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(rpc::StatusReply { json }))
    }

    async fn transfer(
        &self,
        request: Request<rpc::TransferRequest>,
    ) -> Result<Response<rpc::TransferReply>, Status> {
        let reply = self.node.answer_transfer(request.into_inner()).await;
        Ok(Response::new(reply.map_err(|error| Status::failed_precondition(error.to_string()))?))
    }

    async fn forward(
        &self,
        request: Request<rpc::ForwardRequest>,
    ) -> Result<Response<rpc::ForwardReply>, Status> {
        let reply = self.node.answer_forward(request.into_inner()).await;
        Ok(Response::new(reply.map_err(Status::failed_precondition)?))
    }

    async fn replace(
        &self,
        request: Request<rpc::ReplaceRequest>,
    ) -> Result<Response<rpc::ReplaceReply>, Status> {
        let reply = self.node.answer_replace(request.into_inner()).await;
        Ok(Response::new(reply.map_err(Status::failed_precondition)?))
    }

    async fn joined(
        &self,
        request: Request<rpc::JoinedRequest>,
    ) -> Result<Response<rpc::JoinedReply>, Status> {
        let reply = self.node.answer_joined(request.into_inner()).await;
        Ok(Response::new(reply.map_err(Status::failed_precondition)?))
    }

    async fn trust_log(
        &self,
        request: Request<rpc::TrustLogRequest>,
    ) -> Result<Response<rpc::TrustLogReply>, Status> {
        let rpc::TrustLogRequest { shard, by } = request.into_inner();
        let shard = shard.map(u16::try_from).transpose();
        let shard = shard.map_err(|_| Status::invalid_argument("there is no such shard"))?.map(ShardId);
        let trusted = self.node.trust_logs(shard, &by).map_err(Status::failed_precondition)?;
        Ok(Response::new(rpc::TrustLogReply { shards: trusted.iter().map(|shard| shard.0.into()).collect() }))
    }

    async fn change(
        &self,
        request: Request<rpc::ChangeRequest>,
    ) -> Result<Response<rpc::ChangeReply>, Status> {
        let request = request.into_inner();
        let reply = match request.change {
            // An operator may ask anybody.
            Some(change) if request.from_server == 0 => self.node.change(change).await,
            _ => self.node.answer_change(request).await,
        };
        Ok(Response::new(reply.map_err(Status::failed_precondition)?))
    }

    async fn join(&self, request: Request<rpc::JoinRequest>) -> Result<Response<rpc::JoinReply>, Status> {
        let server = self.take_in(request.into_inner()).await.map_err(Status::failed_precondition)?;
        Ok(Response::new(rpc::JoinReply { server: server.0 }))
    }

    async fn failover_events(
        &self,
        _: Request<rpc::FailoverEventsRequest>,
    ) -> Result<Response<rpc::FailoverEventsReply>, Status> {
        Ok(Response::new(rpc::FailoverEventsReply { json: self.node.timeline_json() }))
    }
}

/// Tells one other server which shards this one leads, one call at a time.
pub(crate) struct Announcer {
    addr: watch::Sender<String>,
    wanted: Arc<Notify>,
}

impl Announcer {
    /// Starts the task on the current runtime; it ends with the announcer.
    pub(crate) fn start(node: Node, me: ServerId, to: ServerId, addr: String) -> Announcer {
        let (addr, addrs) = watch::channel(addr);
        let wanted = Arc::new(Notify::new());
        let environment = node.environment().clone();
        environment.spawn(Announcer::run(node, (me, to), addrs, Arc::clone(&wanted)));
        Announcer { addr, wanted }
    }

    /// Asks for one more announcement, soon.
    pub(crate) fn announce(&self, addr: &str) {
        self.addr.send_if_modified(|current| {
            let moved = current != addr;
            if moved {
                addr.clone_into(current);
            }
            moved
        });
        self.wanted.notify_one();
    }

    async fn run(
        node: Node,
        (me, to): (ServerId, ServerId),
        addrs: watch::Receiver<String>,
        wanted: Arc<Notify>,
    ) {
        let mut told = false;
        loop {
            wanted.notified().await;
            if addrs.has_changed().is_err() {
                return;
            }
            let addr = addrs.borrow().clone();
            let Some(cluster_id) = node.cluster_id() else { continue };
            let request = rpc::AnnounceRequest {
                leaders: node.leaders(),
                from_server: me.0,
                cluster_id,
                feature_level: FEATURE_LEVEL.into(),
                notes: node.notes(),
                sentinel_port: Some(node.0.introductions.own_port()),
                server_hex: node.server().server_hex,
            };
            let asked = node.now();
            let note = node.0.host.note(to.0, &addr, request.encode_to_vec().into(), ANNOUNCE_TIMEOUT).await;
            let reply = note.and_then(|note| {
                rpc::AnnounceReply::decode(note).map_err(|error| format!("malformed: {error}"))
            });
            match reply {
                Ok(reply) => {
                    node.hear(to);
                    node.learn_leaders(&reply.leaders, Some(asked));
                    node.learn_notes(to, reply.feature_level, &reply.notes);
                    node.0.introductions.learn(to, &reply.server_hex, reply.sentinel_port);
                }
                Err(error) if error == LEFT && !told => {
                    told = true;
                    warn!(
                        server = me.0,
                        by = to.0,
                        "this server was taken out of the cluster; to come again it needs an empty data directory"
                    );
                }
                Err(error) => debug!(to = to.0, error, "announcement not answered"),
            }
        }
    }
}

impl Drop for Announcer {
    /// Wakes the task, which finds that its addresses come from nowhere any more.
    fn drop(&mut self) {
        self.wanted.notify_one();
    }
}
