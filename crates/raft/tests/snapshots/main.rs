//! Snapshots under loss of power at every operation on the disk, in simulated time; their format; and the metadata store under damage at
//! every place.

#![allow(clippy::unwrap_used, reason = "helpers beside the test functions unwrap as well")]

mod alone;
mod format;
mod metadata;
mod pauses;
mod received;
mod support;
