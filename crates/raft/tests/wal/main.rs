//! The write-ahead log through its public face: against a model, through crashes at every step, and over damaged files.

#![allow(clippy::unwrap_used, reason = "helpers beside the test functions unwrap as well")]

mod basics;
mod crashes;
mod damage;
mod failures;
mod format;
mod histories;
mod model;
mod support;
