//! How servers talk to each other beside Raft: small questions with an answer, behind the trait [`Contact`].
//!
//! [`GrpcContact`] asks over the peer port's admin service; a simulation asks the other [`Node`](crate::Node) itself, through
//! whatever network it has. A call is made at most once; an error says nothing about whether it arrived.

use futures::FutureExt;
use futures::future::BoxFuture;
use kvorum_cluster::ServerId;
use kvorum_proto::admin::{self as rpc, admin_client};
use kvorum_raft::Connector;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;

/// What one server asks another.
#[derive(Clone, PartialEq, Debug)]
pub enum Call {
    /// Gives a virgin server its place in a cluster.
    Adopt(rpc::AdoptRequest),
    /// Asks the leader of the meta group for a new replica in the place of one.
    Replace(rpc::ReplaceRequest),
    /// Tells the leader of the meta group that a replica has joined.
    Joined(rpc::JoinedRequest),
    /// Asks the leader of the meta group to change who is in the cluster, or what lives where.
    Change(rpc::ChangeRequest),
    /// Asks the server of a shard's leader to hand it over.
    Transfer(rpc::TransferRequest),
    /// Asks the server of a shard's leader to run commands of a client.
    Forward(rpc::ForwardRequest),
}

/// The answer to the [`Call`] of the same name.
#[derive(Clone, PartialEq, Debug)]
pub enum Answer {
    /// To [`Call::Adopt`].
    Adopt(rpc::AdoptReply),
    /// To [`Call::Replace`].
    Replace(rpc::ReplaceReply),
    /// To [`Call::Joined`].
    Joined(rpc::JoinedReply),
    /// To [`Call::Change`].
    Change(rpc::ChangeReply),
    /// To [`Call::Transfer`].
    Transfer(rpc::TransferReply),
    /// To [`Call::Forward`].
    Forward(rpc::ForwardReply),
}

/// Reaches other servers. Addresses are peer addresses, `host:port`.
pub trait Contact: Send + Sync + 'static {
    /// Asks `to` at `addr`; an error after `timeout` at the latest.
    fn call(
        &self,
        to: ServerId,
        addr: &str,
        call: Call,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Answer, String>>;
}

/// Asks over gRPC; one connection to each server, looked up again whenever it is made anew.
pub(crate) struct GrpcContact {
    connector: Connector,
    channels: Arc<Mutex<BTreeMap<ServerId, (String, Channel)>>>,
}

impl GrpcContact {
    pub(crate) fn new(connector: Connector) -> GrpcContact {
        GrpcContact { connector, channels: Arc::default() }
    }

    fn channel(&self, to: ServerId, addr: &str) -> Result<Channel, String> {
        let mut channels = self.channels.lock();
        if let Some((known, channel)) = channels.get(&to)
            && known == addr
        {
            return Ok(channel.clone());
        }
        let endpoint = crate::admin::endpoint(addr).map_err(|error| error.to_string())?;
        let channel = endpoint.connect_with_connector_lazy(self.connector.clone());
        channels.insert(to, (addr.to_owned(), channel.clone()));
        Ok(channel)
    }
}

impl Contact for GrpcContact {
    fn call(
        &self,
        to: ServerId,
        addr: &str,
        call: Call,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Answer, String>> {
        let channel = self.channel(to, addr);
        let channels = Arc::clone(&self.channels);
        let asking = async move {
            let mut client = admin_client::AdminClient::new(channel?);
            let answer = match call {
                Call::Adopt(request) => {
                    client.adopt(request).await.map(|reply| Answer::Adopt(reply.into_inner()))
                }
                Call::Replace(request) => {
                    client.replace(request).await.map(|reply| Answer::Replace(reply.into_inner()))
                }
                Call::Joined(request) => {
                    client.joined(request).await.map(|reply| Answer::Joined(reply.into_inner()))
                }
                Call::Change(request) => {
                    client.change(request).await.map(|reply| Answer::Change(reply.into_inner()))
                }
                Call::Transfer(request) => {
                    client.transfer(request).await.map(|reply| Answer::Transfer(reply.into_inner()))
                }
                Call::Forward(request) => {
                    // Replies are as large as values are.
                    let mut client = client.max_decoding_message_size(usize::MAX);
                    match client.forward(request).await {
                        Ok(reply) => Ok(Answer::Forward(reply.into_inner())),
                        // A version before this: nothing ran.
                        Err(status) if status.code() == tonic::Code::Unimplemented => {
                            Ok(Answer::Forward(rpc::ForwardReply::default()))
                        }
                        Err(status) => Err(status),
                    }
                }
            };
            answer.map_err(|status| status.message().to_owned())
        };
        let asking = tokio::time::timeout(timeout, asking);
        asking
            .map(move |outcome| {
                outcome.unwrap_or_else(|_| {
                    // The connection may be dead without anybody having been told: the next call makes another.
                    channels.lock().remove(&to);
                    Err("no answer in time".to_owned())
                })
            })
            .boxed()
    }
}
