//! Values: what a key can hold. The data structures know nothing of commands, arguments or replies.

pub(crate) mod lcs;
mod long_double;
mod lzf;
pub(crate) mod rdb;

use crate::Error;
pub(crate) use long_double::LongDouble;
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

/// A value on its way into a table.
#[derive(Debug)]
pub(crate) enum NewValue<'a> {
    /// To be copied.
    Bytes(&'a [u8]),
    /// To be taken over. A string of this kind is too long to be packed.
    Big(Value),
}

impl<'a> NewValue<'a> {
    /// A string; a long one is taken over, not copied, and leaves nothing behind.
    pub(crate) fn taken(bytes: &'a mut Vec<u8>) -> NewValue<'a> {
        if bytes.len() <= MAX_PACKED {
            NewValue::Bytes(bytes)
        } else {
            NewValue::Big(Value::String(Arc::new(std::mem::take(bytes))))
        }
    }

    pub(crate) fn as_ref(&self) -> ValueRef<'_> {
        match self {
            NewValue::Bytes(bytes) => ValueRef::String(bytes),
            NewValue::Big(value) => value.as_ref(),
        }
    }
}

/// Longest string: Redis's default `proto-max-bulk-len`. What a command does may not depend on a setting of one server.
pub(crate) const MAX_STRING_BYTES: usize = 512 << 20;

/// Longest string that is packed with its key.
pub(crate) const MAX_PACKED: usize = u8::MAX as usize;

/// What OBJECT ENCODING knows of a string beyond its bytes. The numbers are persisted and frozen.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(u8)]
pub enum Form {
    /// It was stored as a whole: its bytes decide.
    #[default]
    Whole = 0,
    /// It was changed in place (APPEND, SETRANGE): Redis keeps it `raw` whatever it is.
    Edited = 1,
    /// It is the result of float arithmetic: text, though it may look like an integer.
    Text = 2,
    /// It was stored as a whole under another key, and copied: an integer that Redis does not share with others.
    Copied = 3,
}

impl Form {
    /// The form of a copy.
    pub(crate) fn copied(self, value: ValueRef<'_>) -> Form {
        match self {
            Form::Whole if value.is_shared() => Form::Copied,
            other => other,
        }
    }

    pub(crate) fn from_number(number: u8) -> Option<Form> {
        [Form::Whole, Form::Edited, Form::Text, Form::Copied].into_iter().find(|form| *form as u8 == number)
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

    /// Whether Redis has one object for all such values: small integers.
    pub(crate) fn is_shared(&self) -> bool {
        let ValueRef::String(bytes) = self;
        integer(bytes).is_some_and(|number| (0..10_000).contains(&number))
    }

    /// Redis's name of the way the value is kept.
    pub(crate) fn encoding(&self, form: Form) -> &'static str {
        const EMBEDDED: usize = 44;
        let ValueRef::String(bytes) = self;
        match form {
            Form::Whole | Form::Copied if integer(bytes).is_some() => "int",
            Form::Whole | Form::Copied | Form::Text if bytes.len() <= EMBEDDED => "embstr",
            _ => "raw",
        }
    }

    /// Redis's name of the type, as TYPE answers it.
    pub fn type_name(&self) -> &'static str {
        match self {
            ValueRef::String(_) => "string",
        }
    }
}
