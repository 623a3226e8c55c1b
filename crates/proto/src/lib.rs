//! Messages and services between servers, generated from the `.proto` files of this crate at build time.
//!
//! - [`raft`]: what consensus says, between peers and on disk;
//! - [`peer`]: the connections that carry it;
//! - [`admin`]: forming a cluster, showing it, moving leaders.
//!
//! Contract: proto3, so unknown fields are skipped and absent ones are zero; numbers are never reused. The meaning of
//! each message stands in the `.proto` files. What it leaves out: conversions, which belong to whoever uses a message, and
//! the content of entries, which is opaque here.

/// What consensus says, between peers and on disk (`raft.proto`).
pub mod raft {
    /// Version 1.
    #[allow(missing_docs, clippy::doc_markdown, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("kvorum.raft.v1");
    }
    pub use v1::*;
}

/// Consensus traffic between servers (`peer.proto`).
pub mod peer {
    /// Version 1.
    #[allow(missing_docs, clippy::doc_markdown, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("kvorum.peer.v1");
    }
    pub use v1::*;
}

/// Administration of a server and its cluster (`admin.proto`).
pub mod admin {
    /// Version 1.
    #[allow(missing_docs, clippy::doc_markdown, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("kvorum.admin.v1");
    }
    pub use v1::*;
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use prost::Message;

    #[test]
    fn entries_share_the_receive_buffer() {
        let request = raft::AppendRequest {
            entries: vec![raft::Entry { term: 1, index: 2, payload: Bytes::from_static(b"payload") }],
            ..Default::default()
        };
        let encoded = Bytes::from(request.encode_to_vec());
        let range = encoded.as_ptr_range();
        let decoded = raft::AppendRequest::decode(encoded.clone()).unwrap();
        assert_eq!(decoded, request);
        assert!(range.contains(&decoded.entries[0].payload.as_ptr()), "the payload was copied");
    }

    #[test]
    fn numbers_written_to_disk_are_frozen() {
        let log_id = raft::LogId { term: 3, index: 4 };
        assert_eq!(log_id.encode_to_vec(), [0x08, 3, 0x10, 4]);
        let vote = raft::Vote { term: 3, replica: 4, committed: true };
        assert_eq!(vote.encode_to_vec(), [0x08, 3, 0x10, 4, 0x18, 1]);
        let membership = raft::Membership {
            voters: vec![raft::Voters { replica: vec![1, 2] }],
            members: vec![raft::Member { replica: 1, server: 2, addr: "a:1".into() }],
        };
        let expected = [0x0a, 4, 0x0a, 2, 1, 2, 0x12, 9, 0x08, 1, 0x10, 2, 0x1a, 3, b'a', b':', b'1'];
        assert_eq!(membership.encode_to_vec(), expected);
    }
}
