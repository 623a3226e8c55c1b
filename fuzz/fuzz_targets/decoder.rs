//! Requests do not depend on how their bytes are cut.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kvorum::fuzzing::decode(bytes));
