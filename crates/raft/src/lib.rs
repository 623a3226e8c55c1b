//! Raft groups of a server over opaque bytes: consensus, log, transport.
//!
//! A [`Host`] runs the groups of one server. It owns a write-ahead log ([`wal`]) that all groups share, a [`Transport`] to the
//! other servers, and an [`Environment`] that says what time it is. [`Host::open`] starts one replica of a group on a
//! [`Machine`] of the caller's and returns a [`Group`]: the handle to propose entries, to ask whether reads are
//! linearizable, to watch the [`Status`], and to hand over the leadership.
//!
//! ```text
//! Group::propose ─ openraft ─┬─ log_store ─ wal ─ disk          Machine::apply
//!                            ├─ network ─ Transport ─ peers          ▲
//!                            ├─ committed ───────────────────────────┤
//!                            └─ snapshot ─ disk, peers ──────────────┘
//! Group::lease ─ one load, one look at the clock
//! ```
//!
//! Contract: entries are applied in order, exactly once per start, on every replica; an entry whose [`Proposal`]
//! ended well is on the disks of a majority, as the group's durability asks; a read after [`Group::lease`] or
//! [`Group::read_index`] said yes is linearizable. Every rule that leases depend on stands in `lease.rs`. openraft does not
//! show through: its types stay in here.
//!
//! What it leaves out: what entries mean, and who the members should be.

pub mod disk;
pub mod meta_store;
pub mod metrics;
pub mod wal;

mod campaign;
mod clock;
mod group;
mod host;
mod lease;
mod log_store;
mod machine;
mod membership;
mod network;
mod runtime;
mod snapshot;
mod transport;
mod types;

pub use clock::{BootClock, Clock, Environment, TokioClock};
pub use group::{
    Group, GroupStats, InitializeError, Position, Proposal, ProposeError, ReadError, Role, Status,
    TransferError,
};
pub use host::{Host, HostConfig, HostError, Timing};
pub use lease::{LEASE_MARGIN_PERCENT, NotLeased};
pub use machine::{Committed, Fatal, Image, Machine};
pub use membership::MembershipError;
pub use runtime::give_way;
pub use snapshot::{SnapshotConfig, SnapshotError, SnapshotStats};
pub use transport::{
    Append, Connector, ENTRY_BYTES, FRAME_BYTES, Identity, Inbound, Link, LinkError, LocalNetwork,
    LocalTransport, NoteTaker, PeerIncoming, PeerService, PendingReply, TcpConfig, TcpTransport, Transport,
    Weather,
};
pub use types::Member;
pub use wal::{GroupId, Local, SyncMode};
