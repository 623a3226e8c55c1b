//! The longest common subsequence of two strings, by the table of all prefixes.
//!
//! Where several are equally long it finds the one that Redis finds. Of the table only one bit for each pair of
//! prefixes is kept, the way back; the lengths themselves need two rows.

use std::ops::RangeInclusive;

/// What two strings have in common.
#[derive(Debug)]
pub(crate) struct Lcs {
    /// Length of the subsequence.
    pub(crate) len: usize,
    /// Its bytes; empty where they were not asked for.
    pub(crate) bytes: Vec<u8>,
    /// Its contiguous parts, the last one first.
    pub(crate) matches: Vec<Match>,
}

/// A part of both strings that is the same.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Match {
    /// Where in the first.
    pub(crate) a: RangeInclusive<usize>,
    /// Where in the second.
    pub(crate) b: RangeInclusive<usize>,
}

impl Match {
    pub(crate) fn len(&self) -> usize {
        self.a.end() - self.a.start() + 1
    }
}

/// Pairs of prefixes that are looked at, at most. Redis asks for 4 bytes for each and stops where there is no memory; this
/// is 1 GiB of it, and some half a second.
const MAX_CELLS: u64 = 1 << 28;

impl Lcs {
    /// Finds it; `None` when that would take too much. Without `whole` only the length.
    pub(crate) fn of(a: &[u8], b: &[u8], whole: bool) -> Option<Lcs> {
        let cells = (a.len() as u64 + 1).checked_mul(b.len() as u64 + 1)?;
        if cells > MAX_CELLS {
            return None;
        }
        let mut ways = Ways::new(if whole { a.len() } else { 0 }, b.len());
        let (mut above, mut row) = (vec![0u32; b.len() + 1], vec![0u32; b.len() + 1]);
        for (i, x) in a.iter().enumerate() {
            for (j, y) in b.iter().enumerate() {
                row[j + 1] = if x == y {
                    above[j] + 1
                } else {
                    let (up, left) = (above[j + 1], row[j]);
                    if whole && up > left {
                        ways.set_up(i, j);
                    }
                    up.max(left)
                };
            }
            std::mem::swap(&mut above, &mut row);
        }
        let len = above[b.len()] as usize;
        let (bytes, matches) = if whole { ways.back(a, b, len) } else { Default::default() };
        Some(Lcs { len, bytes, matches })
    }
}

/// For each pair of bytes that differ, whether the way back goes up (a byte of the first string is left out) or left.
struct Ways {
    width: usize,
    bits: Vec<u64>,
}

impl Ways {
    fn new(height: usize, width: usize) -> Ways {
        Ways { width, bits: vec![0; (height * width).div_ceil(64)] }
    }

    fn set_up(&mut self, i: usize, j: usize) {
        let at = i * self.width + j;
        self.bits[at / 64] |= 1 << (at % 64);
    }

    fn is_up(&self, i: usize, j: usize) -> bool {
        let at = i * self.width + j;
        self.bits[at / 64] >> (at % 64) & 1 == 1
    }

    /// The way from the end of both strings: the bytes that are common, and where.
    fn back(&self, a: &[u8], b: &[u8], len: usize) -> (Vec<u8>, Vec<Match>) {
        let mut bytes = Vec::with_capacity(len);
        let mut matches: Vec<Match> = Vec::new();
        let (mut i, mut j) = (a.len(), b.len());
        while i > 0 && j > 0 {
            if a[i - 1] == b[j - 1] {
                (i, j) = (i - 1, j - 1);
                bytes.push(a[i]);
                match matches.last_mut() {
                    Some(last) if *last.a.start() == i + 1 && *last.b.start() == j + 1 => {
                        last.a = i..=*last.a.end();
                        last.b = j..=*last.b.end();
                    }
                    _ => matches.push(Match { a: i..=i, b: j..=j }),
                }
            } else if self.is_up(i - 1, j - 1) {
                i -= 1;
            } else {
                j -= 1;
            }
        }
        bytes.reverse();
        (bytes, matches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_too_large_is_not_begun() {
        let long = vec![0; 1 << 14];
        assert!(Lcs::of(&long, &long, false).is_none());
        assert!(Lcs::of(&long, &long[..100], true).is_some());
    }

    fn is_subsequence(part: &[u8], of: &[u8]) -> bool {
        let mut rest = of.iter();
        part.iter().all(|byte| rest.any(|other| other == byte))
    }

    /// The length by its definition.
    fn length(a: &[u8], b: &[u8]) -> usize {
        match (a, b) {
            ([x, a @ ..], [y, b @ ..]) if x == y => 1 + length(a, b),
            ([_, less @ ..], [_, fewer @ ..]) => length(less, b).max(length(a, fewer)),
            _ => 0,
        }
    }

    proptest! {
        #[test]
        fn it_is_common_and_longest(a in "[ab]{0,9}", b in "[abc]{0,9}") {
            let (a, b) = (a.as_bytes(), b.as_bytes());
            let found = Lcs::of(a, b, true).unwrap();
            prop_assert_eq!(found.len, length(a, b));
            prop_assert_eq!(found.len, found.bytes.len());
            prop_assert_eq!(Lcs::of(a, b, false).unwrap().len, found.len);
            prop_assert!(is_subsequence(&found.bytes, a) && is_subsequence(&found.bytes, b));
            let mut parts = Vec::new();
            for found in found.matches.iter().rev() {
                prop_assert_eq!(&a[found.a.clone()], &b[found.b.clone()]);
                parts.extend_from_slice(&a[found.a.clone()]);
            }
            prop_assert_eq!(parts, found.bytes);
        }
    }
}
