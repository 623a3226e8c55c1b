//! The rolling checksum: one number for everything that was ever done to a keyspace.
//!
//! Contract: replicas that applied the same changes in the same order have the same checksum, and replicas that did
//! not have different ones, but for a chance of 2^-64. Every method of [`Writer`](crate::Writer) that changes something,
//! and every expiry, goes through here exactly once, with the whole effect it had. What a change is made of and how
//! it is hashed is persisted and frozen: `docs/data-on-disk.md`, "Checksum".
//!
//! Left out: what changes the state without a command, such as a flipped bit in memory. It shows when a later change
//! depends on it.

use crate::value::ValueRef;
use twox_hash::XxHash3_64;

/// The checksum after the changes so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Checksum(u64);

/// One change, with everything that it depends on and that the key has afterwards.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mutation<'a> {
    /// The key has this value and this deadline.
    Put { key: &'a [u8], value: ValueRef<'a>, deadline_ms: Option<u64> },
    /// The string under the key ends with these bytes and has this length; its deadline is as before.
    Append { key: &'a [u8], more: &'a [u8], len: usize },
    /// The key has this deadline; its value is as before.
    SetDeadline { key: &'a [u8], deadline_ms: Option<u64> },
    /// The key is gone.
    Remove { key: &'a [u8] },
    /// The key is gone because its deadline had passed.
    Expire { key: &'a [u8] },
    /// All keys of the database are gone.
    Flush,
    /// The string under the key has these bytes from an offset on and this length; its deadline is as before.
    Overwrite { key: &'a [u8], offset: usize, bytes: &'a [u8], len: usize },
    /// Another key, of this database or another, has what this key has: value and deadline.
    Copy { key: &'a [u8], to_db: u16, to: &'a [u8] },
    /// The same, and this key is gone.
    Move { key: &'a [u8], to_db: u16, to: &'a [u8] },
    /// The database and another have changed places.
    Swap { with: u16 },
}

const PUT_STRING: u8 = 1;
const APPEND: u8 = 2;
const SET_DEADLINE: u8 = 3;
const REMOVE: u8 = 4;
const EXPIRE: u8 = 5;
const FLUSH: u8 = 6;
const OVERWRITE: u8 = 7;
const COPY: u8 = 8;
const MOVE: u8 = 9;
const SWAP: u8 = 10;

impl Checksum {
    pub(crate) fn restored(value: u64) -> Checksum {
        Checksum(value)
    }

    pub(crate) fn value(self) -> u64 {
        self.0
    }

    /// The checksum and these numbers in one.
    pub(crate) fn with(mut self, numbers: &[u64]) -> u64 {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.take(&bytes);
        self.0
    }

    /// Takes in a change that a database went through at a change sequence.
    #[inline]
    pub(crate) fn note(&mut self, db: u16, sequence: u64, mutation: Mutation<'_>) {
        let nothing: &[u8] = &[];
        let (kind, number, key, bytes) = match mutation {
            Mutation::Put { key, value: ValueRef::String(value), deadline_ms } => {
                (PUT_STRING, deadline_ms, key, value)
            }
            Mutation::Append { key, more, len } => (APPEND, Some(len as u64), key, more),
            Mutation::SetDeadline { key, deadline_ms } => (SET_DEADLINE, deadline_ms, key, nothing),
            Mutation::Remove { key } => (REMOVE, None, key, nothing),
            Mutation::Expire { key } => (EXPIRE, None, key, nothing),
            Mutation::Flush => (FLUSH, None, nothing, nothing),
            Mutation::Overwrite { key, offset, bytes, len } => {
                (OVERWRITE, Some((len as u64) << 32 | offset as u64), key, bytes)
            }
            Mutation::Copy { key, to_db, to } => (COPY, Some(to_db.into()), key, to),
            Mutation::Move { key, to_db, to } => (MOVE, Some(to_db.into()), key, to),
            Mutation::Swap { with } => (SWAP, Some(with.into()), nothing, nothing),
        };
        let mut head = [0; 20];
        head[0] = kind;
        head[1] = u8::from(number.is_some());
        head[2..4].copy_from_slice(&db.to_le_bytes());
        head[4..12].copy_from_slice(&sequence.to_le_bytes());
        head[12..20].copy_from_slice(&number.unwrap_or(0).to_le_bytes());
        self.take(&head);
        self.take(key);
        self.take(bytes);
    }

    fn take(&mut self, bytes: &[u8]) {
        self.0 = XxHash3_64::oneshot_with_seed(self.0, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are frozen: a change of one of them would make replicas of two versions call each other wrong.
    #[test]
    fn known_checksums() {
        let value = ValueRef::String(b"value");
        let long = [7; 300];
        let mut checksum = Checksum::default();
        let mut seen = Vec::new();
        for mutation in [
            Mutation::Put { key: b"key", value, deadline_ms: None },
            Mutation::Put {
                key: b"key",
                value: ValueRef::String(&long),
                deadline_ms: Some(1_700_000_000_000),
            },
            Mutation::Append { key: b"key", more: b"more", len: 304 },
            Mutation::SetDeadline { key: b"key", deadline_ms: None },
            Mutation::Remove { key: b"key" },
            Mutation::Expire { key: b"" },
            Mutation::Flush,
            Mutation::Overwrite { key: b"key", offset: 5, bytes: b"more", len: 304 },
            Mutation::Copy { key: b"key", to_db: 2, to: b"other" },
            Mutation::Move { key: b"key", to_db: 2, to: b"other" },
            Mutation::Swap { with: 2 },
        ] {
            checksum.note(3, 77, mutation);
            seen.push(checksum.value());
        }
        assert_eq!(
            seen,
            [
                7587401945494921277,
                12203991878503854955,
                5182255016236327075,
                5347931564631376368,
                7518765639405616088,
                2014454485586047949,
                589969180582288931,
                11340087690042705709,
                16103538896627067121,
                8677554331134055220,
                13767304976739933662,
            ]
        );
        assert_eq!(checksum.with(&[1, 2, 3]), 17159059316590778269);
    }
}
