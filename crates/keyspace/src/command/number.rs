//! Numbers in arguments and values: Redis's strict rules.

use crate::Error;
pub(super) use crate::value::integer as parse;

/// [`parse`], as an argument or stored value of a command.
pub(super) fn integer(bytes: &[u8]) -> Result<i64, Error> {
    parse(bytes).ok_or(Error::NOT_AN_INTEGER)
}

/// A signed 32-bit integer: the number of a database, say.
pub(super) fn int(bytes: &[u8]) -> Result<i32, Error> {
    i32::try_from(integer(bytes)?)
        .map_err(|_| Error::new("ERR value is out of range, value must between -2147483648 and 2147483647"))
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
