//! Hash slots, from the Redis Cluster specification: CRC16 (XMODEM) of the key, or of its hash tag, modulo 16384.

/// Number of hash slots.
pub const SLOTS: u16 = 16384;

/// The slot of a key.
pub fn slot_of(key: &[u8]) -> u16 {
    crc16(hashed_part(key)) % SLOTS
}

/// A key that starts with `prefix`, differs for each `n`, and lies in a slot that `wanted` accepts.
pub fn key_in(prefix: &str, n: u64, wanted: impl Fn(u16) -> bool) -> String {
    (0..)
        .map(|try_no: u32| format!("{prefix}:{n}:{try_no}"))
        .find(|key| wanted(slot_of(key.as_bytes())))
        .expect("some key of an endless row lies in each slot")
}

/// What is between the first `{` and the next `}`, when that is not empty; else the whole key.
fn hashed_part(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|&b| b == b'{') else { return key };
    match key[open + 1..].iter().position(|&b| b == b'}') {
        Some(length) if length > 0 => &key[open + 1..open + 1 + length],
        _ => key,
    }
}

fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, &byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
            if crc & 0x8000 != 0 { (crc << 1) ^ 0x1021 } else { crc << 1 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        assert_eq!(slot_of(b"foo"), 12182);
        assert_eq!(slot_of(b"{user1000}.following"), slot_of(b"user1000"));
        assert_eq!(slot_of(b"foo{}{bar}"), crc16(b"foo{}{bar}") % SLOTS);
        assert_eq!(slot_of(b"foo{{bar}}zap"), slot_of(b"{bar"));
    }

    #[test]
    fn keys_are_found_in_a_wanted_range() {
        let key = key_in("k", 3, |slot| slot < 100);
        assert!(key.starts_with("k:3:") && slot_of(key.as_bytes()) < 100);
    }
}
