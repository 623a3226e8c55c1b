//! Times in arguments: in seconds or milliseconds, from now or from the epoch.

use super::number;
use crate::Error;

/// How an argument names a deadline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Expiry {
    seconds: bool,
    relative: bool,
}

impl Expiry {
    /// EX, SETEX, EXPIRE.
    pub(super) const SECONDS: Expiry = Expiry { seconds: true, relative: true };
    /// PX, PSETEX, PEXPIRE.
    pub(super) const MILLISECONDS: Expiry = Expiry { seconds: false, relative: true };
    /// EXAT, EXPIREAT.
    pub(super) const AT_SECONDS: Expiry = Expiry { seconds: true, relative: false };
    /// PXAT, PEXPIREAT.
    pub(super) const AT_MILLISECONDS: Expiry = Expiry { seconds: false, relative: false };

    /// What an option of SET or GETEX stands for.
    pub(super) fn of_option(name: &[u8]) -> Option<Expiry> {
        let is = |option: &str| name.eq_ignore_ascii_case(option.as_bytes());
        if is("ex") {
            Some(Expiry::SECONDS)
        } else if is("px") {
            Some(Expiry::MILLISECONDS)
        } else if is("exat") {
            Some(Expiry::AT_SECONDS)
        } else if is("pxat") {
            Some(Expiry::AT_MILLISECONDS)
        } else {
            None
        }
    }

    /// The deadline in milliseconds since the epoch, negative ones included (EXPIRE accepts the past).
    pub(super) fn deadline(self, time: &[u8], now_ms: u64, command: &str) -> Result<i64, Error> {
        let time = number::integer(time)?;
        self.of_number(time, now_ms).ok_or_else(|| Error::invalid_expire_time(command))
    }

    /// The deadline where the time must be positive (SET and its kin).
    pub(super) fn positive_deadline(self, time: &[u8], now_ms: u64, command: &str) -> Result<u64, Error> {
        let time = number::integer(time)?;
        Some(time)
            .filter(|time| *time > 0)
            .and_then(|time| self.of_number(time, now_ms))
            .and_then(|deadline| u64::try_from(deadline).ok())
            .ok_or_else(|| Error::invalid_expire_time(command))
    }

    fn of_number(self, time: i64, now_ms: u64) -> Option<i64> {
        let time = if self.seconds { time.checked_mul(1000)? } else { time };
        if self.relative { time.checked_add_unsigned(now_ms) } else { Some(time) }
    }
}
