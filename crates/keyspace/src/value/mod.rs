//! Values: what a key can hold. The data structures know nothing of commands, arguments or replies.

use crate::Error;
use triomphe::Arc;

/// A signed 64-bit integer in its one canonical form: no blanks, no plus, no leading zero, no `-0`.
pub(crate) fn integer(bytes: &[u8]) -> Option<i64> {
    let (negative, digits) = match bytes {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    match digits {
        [b'0'] if !negative => return Some(0),
        [b'1'..=b'9', ..] if digits.len() <= 19 => {}
        _ => return None,
    }
    let mut value = 0u64;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        // At most 19 digits: cannot overflow 64 bits.
        value = value * 10 + u64::from(digit - b'0');
    }
    if negative { 0i64.checked_sub_unsigned(value) } else { i64::try_from(value).ok() }
}

/// A big value. Clones share it; a change of one of two clones copies it first.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// A string of any bytes.
    String(Arc<Vec<u8>>),
}

impl Value {
    pub(crate) fn as_ref(&self) -> ValueRef<'_> {
        match self {
            Value::String(bytes) => ValueRef::String(bytes),
        }
    }
}

/// A value as a reader sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ValueRef<'a> {
    /// A string of any bytes.
    String(&'a [u8]),
}

impl<'a> ValueRef<'a> {
    /// The bytes of a string; other types are the wrong type.
    pub fn string(&self) -> Result<&'a [u8], Error> {
        match self {
            ValueRef::String(bytes) => Ok(bytes),
        }
    }

    /// Bytes the value counts for in the accounting of memory.
    pub(crate) fn size_bytes(&self) -> usize {
        match self {
            ValueRef::String(bytes) => bytes.len(),
        }
    }

    /// Redis's name of the way a value is kept that was stored as a whole.
    pub(crate) fn encoding(&self) -> &'static str {
        const EMBEDDED: usize = 44;
        match self {
            ValueRef::String(bytes) if integer(bytes).is_some() => "int",
            ValueRef::String(bytes) if bytes.len() <= EMBEDDED => "embstr",
            ValueRef::String(_) => "raw",
        }
    }

    /// Redis's name of the type, as TYPE answers it.
    pub fn type_name(&self) -> &'static str {
        match self {
            ValueRef::String(_) => "string",
        }
    }
}
