//! The write-ahead log through its public face: against a model, through crashes at every step, and over damaged files.

mod basics;
mod support;
