//! The operating system's entropy, replaced: hash maps of std and generators of tokio draw their keys from it, and their order
//! must be the same in every process that runs the same seed.

#![expect(unsafe_code, reason = "the symbol of the C library is defined here, with its signature")]

use std::sync::atomic::{AtomicU64, Ordering};

static DRAWN: AtomicU64 = AtomicU64::new(0);

/// In place of the C library's: fills the buffer from a fixed sequence (SplitMix64).
///
/// # Safety
/// As the original: `buffer` has room for `bytes`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn getrandom(buffer: *mut u8, bytes: usize, _flags: u32) -> isize {
    for n in 0..bytes {
        let drawn = DRAWN.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let mixed = (drawn ^ (drawn >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        // SAFETY: `n` is less than `bytes`, for which the caller has made room.
        unsafe { buffer.add(n).write((mixed >> 32) as u8) };
    }
    isize::try_from(bytes).unwrap_or(isize::MAX)
}
