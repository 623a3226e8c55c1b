//! Values: what a key can hold. The data structures know nothing of commands, arguments or replies.

use crate::Error;

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

    /// Redis's name of the type, as TYPE answers it.
    pub fn type_name(&self) -> &'static str {
        match self {
            ValueRef::String(_) => "string",
        }
    }
}
