//! Values: what a key can hold. The data structures know nothing of commands, arguments or replies.

use crate::Error;
use triomphe::Arc;

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

    /// Redis's name of the type, as TYPE answers it.
    pub fn type_name(&self) -> &'static str {
        match self {
            ValueRef::String(_) => "string",
        }
    }
}
