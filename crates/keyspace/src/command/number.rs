//! Numbers in arguments and values: Redis's strict rules.

use crate::Error;

/// A signed 64-bit integer in its one canonical form: no blanks, no plus, no leading zero, no `-0`.
pub(super) fn parse(bytes: &[u8]) -> Option<i64> {
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

/// The same, as an argument or stored value of a command.
pub(super) fn integer(bytes: &[u8]) -> Result<i64, Error> {
    parse(bytes).ok_or(Error::NOT_AN_INTEGER)
}

/// Calls `f` with the decimal form.
pub(super) fn with_decimal<T>(value: i64, f: impl FnOnce(&[u8]) -> T) -> T {
    let mut buffer = [0u8; 20];
    let mut at = buffer.len();
    let mut rest = value.unsigned_abs();
    loop {
        at -= 1;
        buffer[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        at -= 1;
        buffer[at] = b'-';
    }
    f(&buffer[at..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_form_is_a_number() {
        for good in ["0", "1", "-1", "9223372036854775807", "-9223372036854775808"] {
            assert_eq!(parse(good.as_bytes()), good.parse().ok(), "{good}");
        }
        for bad in [
            "",
            "-",
            "-0",
            "00",
            "01",
            "+1",
            " 1",
            "1 ",
            "1.0",
            "9223372036854775808",
            "-9223372036854775809",
            "99999999999999999999",
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn decimals_read_back() {
        for value in [0, 7, -7, i64::MAX, i64::MIN] {
            with_decimal(value, |text| assert_eq!(text, value.to_string().as_bytes()));
        }
    }
}
