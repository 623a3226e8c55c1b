//! Every request gets one reply that is RESP.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| drop(kvorum::fuzzing::converse(bytes)));
