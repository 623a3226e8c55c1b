//! A command's arguments, and their packed form in batches and in the log.
//!
//! Packed command: `argc` then, for each argument, its length and its bytes; numbers are unsigned LEB128.
//! The form is persisted (it is what a log entry holds for each command) and frozen.

use smallvec::SmallVec;
use std::fmt;

/// The arguments of one command, borrowed from where they lie; `argv[0]` is the command's name.
pub type ArgVec<'a> = SmallVec<[&'a [u8]; 8]>;

/// Arguments as a command sees them: never empty, `args[0]` is the name as it was sent.
pub type Args<'a> = &'a [&'a [u8]];

/// Bytes that are no packed command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("malformed packed command")
    }
}

impl std::error::Error for Malformed {}

/// Appends one command to `out`.
pub fn pack<'a>(out: &mut Vec<u8>, argv: impl ExactSizeIterator<Item = &'a [u8]>) {
    put_varint(out, argv.len() as u64);
    for arg in argv {
        put_varint(out, arg.len() as u64);
        out.extend_from_slice(arg);
    }
}

/// Takes one command off the front of `packed`. On error `packed` is where the fault was found.
pub fn unpack<'a>(packed: &mut &'a [u8]) -> Result<ArgVec<'a>, Malformed> {
    let argc = take_varint(packed)?;
    // Each argument takes at least its length byte: a count beyond that cannot be true.
    if argc == 0 || argc > packed.len() as u64 {
        return Err(Malformed);
    }
    let mut argv = ArgVec::with_capacity(argc as usize);
    for _ in 0..argc {
        let len = usize::try_from(take_varint(packed)?).map_err(|_| Malformed)?;
        let (arg, rest) = packed.split_at_checked(len).ok_or(Malformed)?;
        argv.push(arg);
        *packed = rest;
    }
    Ok(argv)
}

/// Appends an unsigned LEB128 number.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Takes an unsigned LEB128 number off the front of `bytes`.
pub fn take_varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or(Malformed)?;
        *bytes = rest;
        let part = u64::from(byte & 0x7f);
        if shift == 63 && part > 1 {
            return Err(Malformed);
        }
        value |= part << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_commands_come_back_in_order() {
        let mut packed = Vec::new();
        let long = vec![7u8; 300];
        pack(&mut packed, [&b"SET"[..], b"", &long].into_iter());
        pack(&mut packed, [&b"GET"[..], b"k"].into_iter());
        let mut rest = &packed[..];
        assert_eq!(unpack(&mut rest).unwrap().as_slice(), [&b"SET"[..], b"", &long]);
        assert_eq!(unpack(&mut rest).unwrap().as_slice(), [&b"GET"[..], b"k"]);
        assert!(rest.is_empty());
    }

    #[test]
    fn cut_or_lying_bytes_are_malformed() {
        let mut packed = Vec::new();
        pack(&mut packed, [&b"SET"[..], b"key", b"value"].into_iter());
        for cut in 0..packed.len() {
            assert_eq!(unpack(&mut &packed[..cut]), Err(Malformed), "cut at {cut}");
        }
        assert_eq!(unpack(&mut &[0xff, 0xff, 0xff, 0xff, 0x7f, 1][..]), Err(Malformed));
        assert_eq!(unpack(&mut &[0][..]), Err(Malformed));
    }
}
