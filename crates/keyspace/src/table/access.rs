//! When a key was last used: 24 bits of seconds.
//!
//! No state: each replica has its own, reads write it under the shared lock, and nothing that a command does depends on
//! it. A reader may see a mix of two uses while another thread writes the second; the answer is wrong by some minutes
//! then, once, which is why nothing may depend on it.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// The time of a key's last use.
#[derive(Default, Debug)]
pub struct AccessClock([AtomicU8; 3]);

const BITS: u64 = 0x00ff_ffff;

impl AccessClock {
    /// Used at this time, milliseconds since the epoch.
    pub(crate) fn at(now_ms: u64) -> AccessClock {
        let clock = AccessClock::default();
        clock.touch(now_ms);
        clock
    }

    /// Used now. A key that is used many times in a second is written once: readers do not take each other's cache
    /// line away.
    pub(crate) fn touch(&self, now_ms: u64) {
        for (byte, new) in self.0.iter().zip(AccessClock::seconds(now_ms).to_le_bytes()) {
            if byte.load(Relaxed) != new {
                byte.store(new, Relaxed);
            }
        }
    }

    /// The clock as Redis shows it: seconds since the epoch, modulo 2^24.
    pub(crate) fn value(&self) -> u32 {
        let [a, b, c] = &self.0;
        u32::from_le_bytes([a.load(Relaxed), b.load(Relaxed), c.load(Relaxed), 0])
    }

    /// Seconds since the last use, up to half a year. A use that seems to lie ahead, by another clock, is now.
    pub(crate) fn idle_seconds(&self, now_ms: u64) -> u32 {
        const AHEAD: u32 = 24 * 3600;
        let idle = AccessClock::seconds(now_ms).wrapping_sub(self.value()) & BITS as u32;
        if idle > BITS as u32 - AHEAD { 0 } else { idle }
    }

    fn seconds(now_ms: u64) -> u32 {
        ((now_ms / 1000) & BITS) as u32
    }
}

impl Clone for AccessClock {
    fn clone(&self) -> AccessClock {
        AccessClock(std::array::from_fn(|n| AtomicU8::new(self.0[n].load(Relaxed))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_survives_the_end_of_24_bits() {
        let last = (BITS + 1) * 1000 - 1;
        let clock = AccessClock::at(last);
        assert_eq!(clock.value(), 0x00ff_ffff);
        assert_eq!(clock.idle_seconds(last), 0);
        assert_eq!(clock.idle_seconds(last + 7_000), 7);
        clock.touch(last + 7_000);
        assert_eq!((clock.value(), clock.idle_seconds(last + 7_000)), (6, 0));
        assert_eq!(clock.idle_seconds(last), 0, "used ahead of this clock");
        assert_eq!(clock.idle_seconds(last + 7_000 + 100 * 86_400_000), 100 * 86_400);
    }

    #[test]
    fn it_takes_three_bytes() {
        assert_eq!(size_of::<AccessClock>(), 3);
    }
}
