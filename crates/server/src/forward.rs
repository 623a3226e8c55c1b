//! Runs what other servers forward for clients that are still connected to them (see [`Node::forward`]).

use crate::dispatch;
use crate::engine::{self, Failure};
use crate::resp::{Protocol, RespSink};
use futures::FutureExt;
use futures::future::BoxFuture;
use kvorum_node::{Batch, ForwardError, ForwardedReplies, Node, ReadError, RunsForwarded, Shard};
use std::sync::Arc;
use tokio::runtime::Handle;

/// Runs it where this server's own clients are served.
struct Host {
    clients: Handle,
}

/// From here on a node runs what is forwarded to it. To be called where clients are served.
pub(crate) fn run_forwarded(node: &Node) {
    node.run_forwarded(Arc::new(Host { clients: Handle::current() }));
}

impl RunsForwarded for Host {
    fn run(
        &self,
        shard: Shard,
        batch: Batch,
        protocol: u32,
    ) -> BoxFuture<'static, Result<ForwardedReplies, ForwardError>> {
        let protocol = if protocol == 3 { Protocol::Resp3 } else { Protocol::Resp2 };
        let running = self.clients.spawn(run(shard, batch, protocol));
        running.map(|ran| ran.unwrap_or(Err(ForwardError::Unknown))).boxed()
    }
}

async fn run(shard: Shard, batch: Batch, protocol: Protocol) -> Result<ForwardedReplies, ForwardError> {
    let mut out = Box::new(RespSink::new(protocol));
    let ran = if batch.writes() > 0 {
        engine::submit(shard, batch, out).await
    } else {
        match shard.read(&batch, &mut *out).await {
            Ok(()) => Ok(out),
            Err(ReadError::NotLeader | ReadError::TooStale) => Err(Failure::NotLeader(batch)),
        }
    };
    match ran {
        Ok(mut out) => {
            // A shard of a standalone cluster has all slots.
            out.resolve_unserved(|_| dispatch::NOT_SERVED.to_owned());
            Ok(out.take_for_another())
        }
        Err(Failure::NotLeader(batch)) => Err(ForwardError::NotLeader(batch)),
        Err(Failure::Unknown) => Err(ForwardError::Unknown),
        Err(Failure::Refused(text)) => Err(ForwardError::Refused(text.into_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvorum_keyspace::Sink;

    #[test]
    fn replies_arrive_as_they_were_written() {
        let mut written = RespSink::new(Protocol::Resp3);
        written.int(7);
        written.error(b"ERR no");
        written.array(2);
        written.bulk(b"a");
        written.error(b"WRONG inside");
        written.null();
        written.error(b"LAST one");
        let expected = [b"+OK\r\n", written.bytes()].concat();
        let mut out = RespSink::new(Protocol::Resp3);
        out.ok();
        out.replies_of_another(&written.take_for_another());
        assert_eq!(out.bytes(), expected);
        assert_eq!(out.replies(), 6);
        let errors: Vec<_> = out.errors().collect();
        assert_eq!(errors, [(2, &b"ERR no"[..]), (5, b"LAST one")]);
    }

    #[test]
    fn senseless_places_are_no_panic() {
        let replies = ForwardedReplies {
            encoded: b"-ERR\r\n"[..].into(),
            count: 1,
            errors: vec![(usize::MAX, usize::MAX), (0, 9)],
        };
        let mut out = RespSink::new(Protocol::Resp2);
        out.replies_of_another(&replies);
        assert_eq!(out.errors().count(), 2);
    }
}
