//! LZF, the compression of strings in Redis's dumps.
//!
//! A stream is made of runs: a byte below 32 says that one byte more than that follows literally; any other begins a
//! reference, three bits of length, 13 of distance, and a byte of length between them when the three bits are full.
//! The compressor chooses as Redis's does, so that dumps are the same byte for byte.

const MAX_LITERAL: usize = 1 << 5;
const MAX_DISTANCE: usize = 1 << 13;
const MAX_LENGTH: usize = (1 << 8) + (1 << 3);
const HASH_BITS: u32 = 16;

/// Compresses, or says that the result would have more than `limit` bytes.
pub(super) fn compress(input: &[u8], limit: usize) -> Option<Vec<u8>> {
    if input.is_empty() || limit == 0 {
        return None;
    }
    let mut out = Runs { bytes: Vec::with_capacity(limit.min(input.len()) + 1), literals: 0 };
    out.bytes.push(0);
    // Where each hash of three bytes was seen last. Position 0 stands for nowhere.
    let mut seen = vec![0u32; 1 << HASH_BITS];
    let mut at = 0;
    while at + 2 < input.len() {
        let slot = &mut seen[slot_of(&input[at..])];
        let before = std::mem::replace(slot, at as u32) as usize;
        let distance = at - before;
        if before == 0 || distance > MAX_DISTANCE || input[before..before + 3] != input[at..at + 3] {
            if out.bytes.len() >= limit {
                return None;
            }
            out.literal(input[at]);
            at += 1;
            continue;
        }
        if out.bytes.len() - usize::from(out.literals == 0) + 4 >= limit {
            return None;
        }
        let len = match_len(&input[before..], &input[at..]);
        out.reference(distance - 1, len);
        at += len;
        if at + 2 >= input.len() {
            break;
        }
        // The last two positions inside of the match can be found again, too.
        for inside in at - 2..at {
            seen[slot_of(&input[inside..])] = inside as u32;
        }
    }
    // Redis gives up here when three bytes more than there is room for might come.
    if out.bytes.len() + 3 > limit {
        return None;
    }
    input[at..].iter().for_each(|byte| out.literal(*byte));
    Some(out.finish())
}

/// How long a match is, three bytes at least. It ends two bytes before the input does, or after three bytes, but Redis
/// looks at the first bytes of a long one without asking for the end, and at one more.
fn match_len(before: &[u8], here: &[u8]) -> usize {
    const UNASKED: usize = 19;
    let most = (here.len() - 2).min(MAX_LENGTH);
    let least = if most > UNASKED - 3 { UNASKED } else { 3 };
    let most = most.max(least);
    let same = before.iter().zip(&here[..most]).take_while(|(a, b)| a == b).count();
    same.max(3)
}

fn slot_of(bytes: &[u8]) -> usize {
    let hash = u32::from(bytes[0]) << 16 | u32::from(bytes[1]) << 8 | u32::from(bytes[2]);
    (hash >> (24 - HASH_BITS)).wrapping_sub(hash.wrapping_mul(5)) as usize & ((1 << HASH_BITS) - 1)
}

/// The stream so far. Its last run is one of literals and open: the byte before them is for their number.
struct Runs {
    bytes: Vec<u8>,
    literals: usize,
}

impl Runs {
    fn literal(&mut self, byte: u8) {
        self.bytes.push(byte);
        self.literals += 1;
        if self.literals == MAX_LITERAL {
            self.close();
            self.bytes.push(0);
        }
    }

    fn reference(&mut self, distance: usize, len: usize) {
        self.close();
        let (high, low) = ((distance >> 8) as u8, distance as u8);
        match len - 2 {
            short @ ..7 => self.bytes.push((short as u8) << 5 | high),
            long => self.bytes.extend([7 << 5 | high, (long - 7) as u8]),
        }
        self.bytes.extend([low, 0]);
    }

    /// Ends the run of literals; an empty one leaves nothing.
    fn close(&mut self) {
        if self.literals == 0 {
            self.bytes.pop();
        } else {
            let at = self.bytes.len() - self.literals - 1;
            self.bytes[at] = (self.literals - 1) as u8;
        }
        self.literals = 0;
    }

    fn finish(mut self) -> Vec<u8> {
        self.close();
        self.bytes
    }
}

/// Decompresses what gives exactly `len` bytes; `None` for everything else. Takes no more memory than `input` can
/// give.
pub(super) fn decompress(input: &[u8], len: u64) -> Option<Vec<u8>> {
    let len = usize::try_from(len).ok()?;
    // Three bytes give at most MAX_LENGTH.
    if len > input.len().checked_mul(MAX_LENGTH)? {
        return None;
    }
    // What is promised may not come: room is made as it does.
    let mut out = Vec::with_capacity(len.min(input.len().saturating_mul(4)));
    let mut rest = input;
    while let Some((&first, more)) = rest.split_first() {
        rest = more;
        if usize::from(first) < MAX_LITERAL {
            let (literals, more) = rest.split_at_checked(usize::from(first) + 1)?;
            if out.len() + literals.len() > len {
                return None;
            }
            out.extend_from_slice(literals);
            rest = more;
            continue;
        }
        let mut size = usize::from(first >> 5) + 2;
        if first >> 5 == 7 {
            let (&more_size, more) = rest.split_first()?;
            size += usize::from(more_size);
            rest = more;
        }
        let (&low, more) = rest.split_first()?;
        rest = more;
        let distance = (usize::from(first & 0x1f) << 8 | usize::from(low)) + 1;
        let from = out.len().checked_sub(distance)?;
        if out.len() + size > len {
            return None;
        }
        if distance >= size {
            out.extend_from_within(from..from + size);
        } else {
            // It repeats what it writes.
            (0..size).for_each(|n| out.push(out[from + n]));
        }
    }
    (out.len() == len).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    /// Texts with much to refer to: few letters, repeated parts.
    fn text() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            vec(0..3u8, 1..40),
            vec(any::<u8>(), 1..40),
            (any::<u8>(), 1..400usize).prop_map(|(byte, n)| vec![byte; n])
        ];
        vec(part, 1..12).prop_flat_map(|parts| {
            vec(0..parts.len(), 1..40)
                .prop_map(move |order| order.iter().flat_map(|n| parts[*n].clone()).collect())
        })
    }

    #[test]
    fn known_streams() {
        assert_eq!(compress(&[b'a'; 30], 26).unwrap(), [1, b'a', b'a', 0xe0, 17, 0, 1, b'a', b'a']);
        assert_eq!(compress(b"no two parts of it are alike", 24), None);
        assert_eq!(decompress(&[0, b'a', 0xe0, 0xff, 0], 265).unwrap(), [b'a'; 265]);
        for wrong in [
            &b""[..],
            &[0],
            &[0x20, 0],
            &[0, b'a', 0x20],
            &[0, b'a', 0x20, 1],
            &[0, b'a', 0xe0, 0],
            &[1, b'a'],
        ] {
            assert_eq!(decompress(wrong, 3), None, "{wrong:?}");
        }
        assert_eq!(decompress(&[0, b'a', 0xe0, 0xff, 0], 264), None);
        assert_eq!(decompress(&[0, b'a', 0xe0, 0xff, 0], 266), None);
        assert_eq!(decompress(&[0, b'a'], u64::MAX), None);
    }

    proptest! {
        #[test]
        fn what_was_compressed_comes_back(text in text()) {
            if let Some(small) = compress(&text, text.len().saturating_sub(4)) {
                prop_assert!(small.len() < text.len());
                prop_assert_eq!(decompress(&small, text.len() as u64), Some(text));
            }
        }

        #[test]
        fn any_bytes_decompress_or_not(input in vec(any::<u8>(), 0..60), len in 0..3000u64) {
            if let Some(out) = decompress(&input, len) {
                prop_assert_eq!(out.len() as u64, len);
            }
        }

        #[test]
        fn one_byte_wrong_never_panics(text in text(), at: prop::sample::Index, byte: u8) {
            if let Some(mut small) = compress(&text, text.len()) {
                let at = at.index(small.len());
                small[at] = byte;
                let _ = decompress(&small, text.len() as u64);
            }
        }
    }
}
