//! Judges of what was recorded.
//!
//! Each says what it found, and each has tests in which an anomaly is put into a correct history and must be found. A
//! judge that cannot decide has not passed anything: "unknown" fails a test.

pub mod counter;
pub mod ledger;
pub mod register;
pub mod set;
