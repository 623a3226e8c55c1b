//! What the Sentinel port says is RESP, and does not depend on how the bytes are cut.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| drop(kvorum::fuzzing::watch(bytes)));
