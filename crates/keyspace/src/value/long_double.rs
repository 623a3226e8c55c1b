//! The `long double` of x86: 64 bits of mantissa, 15 of exponent. Redis adds with it in INCRBYFLOAT.
//!
//! Contract: reading, adding and writing round to nearest, ties to even, exactly as the processor and glibc do, so
//! results are those of a Redis on x86-64, digit for digit, and the same on every machine. (A Redis on ARM has 113 bits
//! of mantissa and shows other digits in rare cases; there is no one answer that equals both.)
//! Made of integers alone: no float of the machine takes part.

use std::cmp::Ordering;

/// A finite number `±mantissa · 2^exponent`, or an infinity. Never NaN when it was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LongDouble {
    negative: bool,
    size: Size,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Size {
    /// The mantissa has its highest bit set unless the exponent is the least one, or the number is zero.
    Finite {
        mantissa: u64,
        exponent: i32,
    },
    Infinite,
    /// The sum of two opposite infinities.
    NotANumber,
}

/// Longest text that Redis takes for a number.
const MAX_TEXT: usize = 5 * 1024 - 1;
/// Exponent of the last bit of the smallest numbers.
const MIN_EXPONENT: i32 = -16445;
/// Exponent of the last bit of the largest numbers.
const MAX_EXPONENT: i32 = 16383 - 63;
/// Digits behind the point that are shown.
const PLACES: usize = 17;

impl LongDouble {
    pub(crate) const ZERO: LongDouble =
        LongDouble { negative: false, size: Size::Finite { mantissa: 0, exponent: 0 } };

    /// Reads a number as C's `strtold` does, hexadecimal ones and infinities included. The text is a number from its first
    /// byte to its last, and one that there is: neither too large nor rounded to zero.
    pub(crate) fn parse(text: &[u8]) -> Option<LongDouble> {
        if text.is_empty() || text.len() > MAX_TEXT {
            return None;
        }
        let (negative, digits) = match text {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            _ => (false, text),
        };
        let lower = digits.to_ascii_lowercase();
        let size = match lower.as_slice() {
            b"inf" | b"infinity" => Size::Infinite,
            [b'0', b'x', hex @ ..] => hexadecimal(hex)?,
            decimal => self::decimal(decimal)?,
        };
        Some(LongDouble { negative, size })
    }

    /// The sum.
    pub(crate) fn add(self, other: LongDouble) -> LongDouble {
        let (a, b) = match (self.size, other.size) {
            (Size::NotANumber, _) | (_, Size::NotANumber) => {
                return LongDouble { size: Size::NotANumber, ..self };
            }
            (Size::Infinite, Size::Infinite) if self.negative != other.negative => {
                return LongDouble { size: Size::NotANumber, ..self };
            }
            (Size::Infinite, _) => return self,
            (_, Size::Infinite) => return other,
            (Size::Finite { mantissa: a, exponent: x }, Size::Finite { mantissa: b, exponent: y }) => {
                ((self.negative, a, x), (other.negative, b, y))
            }
        };
        if a.1 == 0 || b.1 == 0 {
            let zero = LongDouble { negative: a.0 && b.0, ..LongDouble::ZERO };
            return if b.1 != 0 {
                other
            } else if a.1 != 0 {
                self
            } else {
                zero
            };
        }
        // `high` is the one with the higher exponent; it is taken to the exponent of the other, as far as that matters.
        let (high, low) = if a.2 >= b.2 { (a, b) } else { (b, a) };
        const ROOM: u32 = 62;
        let apart = high.2.abs_diff(low.2);
        let shift = apart.min(ROOM);
        let exponent = high.2 - i32::try_from(shift).expect("small");
        let big = u128::from(high.1) << shift;
        // What falls off the end of the other is far below the last bit of the result: that there is something is enough.
        let drop = (apart - shift).min(127);
        let small = u128::from(low.1) >> drop;
        let lost = small << drop != u128::from(low.1);
        let (negative, sum, sticky) = if high.0 == low.0 {
            (high.0, big + small, lost)
        } else {
            match big.cmp(&small) {
                Ordering::Less => (low.0, small - big, false),
                // Borrows the part that fell off.
                Ordering::Equal | Ordering::Greater => (high.0, big - small - u128::from(lost), lost),
            }
        };
        if sum == 0 {
            return LongDouble::ZERO;
        }
        let bits = 128 - sum.leading_zeros();
        let (mantissa, exponent, sticky) = if bits <= 64 {
            (sum as u64, exponent, sticky)
        } else {
            // Two bits more than the mantissa has, and the rest as one.
            let drop = bits - 64;
            let rest = sum & ((1 << drop) - 1);
            let half = 1u128 << (drop - 1);
            let kept = (sum >> drop) as u64;
            let up = rest > half || rest == half && (sticky || kept & 1 == 1);
            let exponent = exponent + i32::try_from(drop).expect("small");
            match kept.checked_add(u64::from(up)) {
                Some(kept) => (kept, exponent, false),
                None => (1 << 63, exponent + 1, false),
            }
        };
        debug_assert!(!sticky, "what fell off is followed by more bits than a mantissa has");
        LongDouble { negative, size: normal(mantissa, exponent) }
    }

    /// With 17 digits behind the point, zeros at the end left out. `None` for what is not finite.
    pub(crate) fn decimal(self) -> Option<String> {
        let Size::Finite { mantissa, exponent } = self.size else { return None };
        let scaled = u128::from(mantissa) * 10u128.pow(PLACES as u32);
        let digits = match u32::try_from(exponent) {
            Ok(shift) => Big::from(scaled).shifted(shift).decimal(),
            Err(_) => shifted_right(scaled, exponent.unsigned_abs()).to_string(),
        };
        let digits = format!("{digits:0>width$}", width = PLACES + 1);
        let (whole, places) = digits.split_at(digits.len() - PLACES);
        let places = places.trim_end_matches('0');
        let point = if places.is_empty() { "" } else { "." };
        let zero = whole == "0" && places.is_empty();
        let sign = if self.negative && !zero { "-" } else { "" };
        Some(format!("{sign}{whole}{point}{places}"))
    }
}

/// Divides by a power of two and rounds to nearest, ties to even.
fn shifted_right(number: u128, shift: u32) -> u128 {
    // The number has at most 121 bits.
    if shift > 122 {
        return 0;
    }
    let kept = number >> shift;
    let rest = number & ((1 << shift) - 1);
    let half = (1u128 << shift) >> 1;
    kept + u128::from(rest > half || rest == half && rest != 0 && kept & 1 == 1)
}

/// Brings the highest bit of a mantissa to its place.
fn normal(mantissa: u64, exponent: i32) -> Size {
    if mantissa == 0 {
        return Size::Finite { mantissa, exponent: 0 };
    }
    let room = u32::try_from(exponent - MIN_EXPONENT).unwrap_or(0);
    let shift = mantissa.leading_zeros().min(room);
    let exponent = exponent - i32::try_from(shift).expect("at most 63");
    if exponent > MAX_EXPONENT {
        return Size::Infinite;
    }
    Size::Finite { mantissa: mantissa << shift, exponent }
}

/// `digits · 2^exponent` and something less than one digit more (`sticky`), rounded. `None` when there is no such
/// number but infinity, or zero for what is not.
fn rounded(digits: &Big, exponent: i64, sticky: bool) -> Option<Size> {
    let bits = i64::try_from(digits.bits()).ok()?;
    if bits == 0 {
        return (!sticky).then_some(Size::Finite { mantissa: 0, exponent: 0 });
    }
    // The last bit that the result can have.
    let last = (exponent + bits - 64).max(i64::from(MIN_EXPONENT));
    let drop = last - exponent;
    let (mantissa, up) = if drop <= 0 {
        let mantissa = digits.shifted(u32::try_from(-drop).ok()?).low();
        (mantissa, false)
    } else {
        let drop = usize::try_from(drop).ok()?;
        let mantissa = digits.bits_from(drop);
        let half = digits.bit(drop - 1);
        let more = sticky || digits.any_below(drop - 1);
        (mantissa, half && (more || mantissa & 1 == 1))
    };
    let (mantissa, last) = match mantissa.checked_add(u64::from(up)) {
        Some(mantissa) => (mantissa, last),
        None => (1 << 63, last + 1),
    };
    match normal(mantissa, i32::try_from(last).ok()?) {
        Size::Finite { mantissa: 0, .. } | Size::Infinite => None,
        finite => Some(finite),
    }
}

/// Digits, a point among them, and where the exponent begins.
fn split(text: &[u8], is_digit: fn(&u8) -> bool, exponent: u8) -> Option<(Vec<u8>, i64, i64)> {
    let mut digits = Vec::new();
    let mut places = 0i64;
    let mut point = false;
    let mut rest = text;
    while let [byte, more @ ..] = rest {
        match byte {
            b'.' if !point => point = true,
            digit if is_digit(digit) => {
                digits.push(*digit);
                places += i64::from(point);
            }
            _ => break,
        }
        rest = more;
    }
    if digits.is_empty() {
        return None;
    }
    let exponent = match rest {
        [] => 0,
        [letter, rest @ ..] if *letter == exponent => power(rest)?,
        _ => return None,
    };
    Some((digits, places, exponent))
}

/// A decimal exponent. One with very many digits stays very large.
fn power(text: &[u8]) -> Option<i64> {
    const VERY_LARGE: i64 = 1 << 40;
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let size = digits.iter().fold(0i64, |size, digit| (size * 10 + i64::from(digit - b'0')).min(VERY_LARGE));
    Some(if negative { -size } else { size })
}

fn decimal(text: &[u8]) -> Option<Size> {
    let (digits, places, power) = split(text, u8::is_ascii_digit, b'e')?;
    let first = digits.iter().position(|digit| *digit != b'0');
    let Some(first) = first else { return Some(Size::Finite { mantissa: 0, exponent: 0 }) };
    let last = digits.iter().rposition(|digit| *digit != b'0').unwrap_or(first);
    let power = power - places + i64::try_from(digits.len() - 1 - last).ok()?;
    let digits = &digits[first..=last];
    // Beyond these it is certain, and the work is bounded by the length of the text.
    let magnitude = i64::try_from(digits.len()).ok()? + power;
    if !(-5000..=5000).contains(&magnitude) {
        return None;
    }
    let mut number = Big::default();
    for chunk in digits.chunks(9) {
        let value = chunk.iter().fold(0, |value, digit| value * 10 + u32::from(digit - b'0'));
        number.multiply_add(10u32.pow(u32::try_from(chunk.len()).ok()?), value);
    }
    if power >= 0 {
        number.multiply_power_of_five(usize::try_from(power).ok()?);
        return rounded(&number, power, false);
    }
    // Enough bits above the divisor for a whole mantissa and more.
    let mut divisor = Big::from(1);
    divisor.multiply_power_of_five(usize::try_from(-power).ok()?);
    let shift = (divisor.bits() + 66).saturating_sub(number.bits());
    let (quotient, remainder) = number.shifted(u32::try_from(shift).ok()?).divided_by(&divisor);
    rounded(&quotient, power - i64::try_from(shift).ok()?, remainder)
}

fn hexadecimal(text: &[u8]) -> Option<Size> {
    let (digits, places, power) = split(text, u8::is_ascii_hexdigit, b'p')?;
    let mut number = Big::default();
    for digit in &digits {
        number.multiply_add(16, char::from(*digit).to_digit(16)?);
    }
    rounded(&number, power - 4 * places, false)
}

/// A natural number of any size: 32 bits a digit, the lowest first, the highest not zero.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct Big(Vec<u32>);

impl From<u128> for Big {
    fn from(number: u128) -> Big {
        Big((0..4).map(|n| (number >> (32 * n)) as u32).collect()).trimmed()
    }
}

impl Big {
    fn trimmed(mut self) -> Big {
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
        self
    }

    fn bits(&self) -> usize {
        self.0.last().map_or(0, |last| self.0.len() * 32 - last.leading_zeros() as usize)
    }

    fn bit(&self, at: usize) -> bool {
        self.0.get(at / 32).is_some_and(|digit| digit >> (at % 32) & 1 == 1)
    }

    fn any_below(&self, at: usize) -> bool {
        let (whole, rest) = (at / 32, at % 32);
        self.0.iter().take(whole).any(|digit| *digit != 0)
            || self.0.get(whole).is_some_and(|digit| digit & ((1 << rest) - 1) != 0)
    }

    /// The 64 bits from one on, of which there are no more.
    fn bits_from(&self, at: usize) -> u64 {
        let digit = |n: usize| u128::from(self.0.get(at / 32 + n).copied().unwrap_or(0));
        ((digit(0) | digit(1) << 32 | digit(2) << 64) >> (at % 32)) as u64
    }

    fn low(&self) -> u64 {
        self.bits_from(0)
    }

    fn multiply_add(&mut self, by: u32, more: u32) {
        let mut carry = u64::from(more);
        for digit in &mut self.0 {
            let product = u64::from(*digit) * u64::from(by) + carry;
            *digit = product as u32;
            carry = product >> 32;
        }
        if carry > 0 {
            self.0.push(carry as u32);
        }
    }

    fn multiply_power_of_five(&mut self, power: usize) {
        const STEP: usize = 13;
        for _ in 0..power / STEP {
            self.multiply_add(5u32.pow(STEP as u32), 0);
        }
        self.multiply_add(5u32.pow((power % STEP) as u32), 0);
    }

    fn shifted(&self, by: u32) -> Big {
        let (whole, rest) = ((by / 32) as usize, by % 32);
        let mut digits = vec![0; whole];
        let mut carry = 0u64;
        for digit in &self.0 {
            let wide = u64::from(*digit) << rest | carry;
            digits.push(wide as u32);
            carry = wide >> 32;
        }
        digits.push(carry as u32);
        Big(digits).trimmed()
    }

    /// The quotient, which has a few digits, and whether something remains.
    fn divided_by(&self, divisor: &Big) -> (Big, bool) {
        // Bit by bit: the quotient has some 67 bits, and a step is one comparison and one subtraction.
        let mut rest = self.clone();
        let mut quotient = Big::default();
        let top = self.bits().saturating_sub(divisor.bits());
        for shift in (0..=top).rev() {
            quotient = quotient.shifted(1);
            let part = divisor.shifted(shift as u32);
            if rest.at_least(&part) {
                rest.subtract(&part);
                quotient.multiply_add(1, 1);
            }
        }
        (quotient, !rest.0.is_empty())
    }

    fn at_least(&self, other: &Big) -> bool {
        self.0.len().cmp(&other.0.len()).then_with(|| self.0.iter().rev().cmp(other.0.iter().rev())).is_ge()
    }

    /// Takes off a number that is not larger.
    fn subtract(&mut self, other: &Big) {
        let mut borrow = 0;
        for (n, digit) in self.0.iter_mut().enumerate() {
            let less = i64::from(*digit) - i64::from(other.0.get(n).copied().unwrap_or(0)) - borrow;
            *digit = less as u32;
            borrow = i64::from(less < 0);
        }
        *self = std::mem::take(self).trimmed();
    }

    fn decimal(&self) -> String {
        const BASE: u64 = 1_000_000_000;
        let mut digits = self.0.clone();
        let mut parts = Vec::new();
        while !digits.is_empty() {
            let mut rest = 0;
            for digit in digits.iter_mut().rev() {
                let wide = rest << 32 | u64::from(*digit);
                *digit = (wide / BASE) as u32;
                rest = wide % BASE;
            }
            parts.push(rest);
            digits = Big(digits).trimmed().0;
        }
        let mut text = parts.pop().unwrap_or(0).to_string();
        parts.iter().rev().for_each(|part| text.push_str(&format!("{part:09}")));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sum(a: &str, b: &str) -> Option<String> {
        LongDouble::parse(a.as_bytes())?.add(LongDouble::parse(b.as_bytes())?).decimal()
    }

    /// What Redis 7.0 answers on x86-64.
    #[test]
    fn sums_of_redis() {
        for (a, b, expected) in [
            ("3", "1.1", "4.1"),
            ("0.1", "0.2", "0.3"),
            ("10.5", "0.1", "10.6"),
            ("5.0e3", "200", "5200"),
            ("1", "-1.1", "-0.1"),
            ("-0", "-0", "0"),
            ("0x1p3", "0", "8"),
            ("17179869184", "1.5", "17179869185.5"),
            ("1e17", "0.1", "100000000000000000.1015625"),
            ("1e-17", "0", "0.00000000000000001"),
            ("4e-18", "0", "0"),
        ] {
            assert_eq!(sum(a, b).as_deref(), Some(expected), "{a} + {b}");
        }
        assert_eq!(sum("inf", "-inf"), None);
        assert_eq!(sum("inf", "1"), None);
        assert_eq!(sum("1.1e4932", "1.1e4932"), None);
    }

    #[test]
    fn what_is_a_number() {
        for good in [
            "1",
            "+1",
            "-1",
            ".5",
            "5.",
            "1e5",
            "1E+5",
            "1e-5",
            "0x.8",
            "0X1P-3",
            "Infinity",
            "-INF",
            "1e4932",
            "3.7e-4951",
        ] {
            assert!(LongDouble::parse(good.as_bytes()).is_some(), "{good}");
        }
        for bad in [
            "",
            " 1",
            "1 ",
            "e5",
            "1e",
            "1e+",
            "0x",
            "0xp1",
            "1p3",
            "nan",
            "infin",
            "1.2.3",
            "--1",
            ".",
            "+",
            "1e4933",
            "1e-4960",
            "1e99999999999999999999999",
            "0x1p99999",
            "1_0",
            "1,0",
            "0x1.8e1z",
        ] {
            assert!(LongDouble::parse(bad.as_bytes()).is_none(), "{bad}");
        }
        assert!(LongDouble::parse(&[b'1'; 6000]).is_none());
        assert_eq!(LongDouble::parse(b"0e99999999999"), Some(LongDouble::ZERO));
    }

    proptest! {
        /// Whole numbers and halves below 2^62 are exact.
        #[test]
        fn small_sums_are_exact(a in -(1i64 << 61)..1 << 61, b in -(1i64 << 61)..1 << 61) {
            let halves = |n: i64| format!("{}{}{}", if n < 0 { "-" } else { "" }, n.unsigned_abs() / 2, if n % 2 == 0 { "" } else { ".5" });
            prop_assert_eq!(sum(&halves(a), &halves(b)), Some(halves(a + b)));
        }

        #[test]
        fn doubles_read_exactly(value in any::<f64>().prop_filter("finite", |value| value.is_finite() && *value != 0.0)) {
            let read = LongDouble::parse(format!("{value:e}").as_bytes()).unwrap();
            let bits = value.abs().to_bits();
            let raw = i32::try_from(bits >> 52).unwrap();
            let (mantissa, exponent) = match raw {
                0 => (bits, -1074),
                _ => (bits & ((1 << 52) - 1) | 1 << 52, raw - 1075),
            };
            // The shortest text of a double is not the double itself, but rounds to it.
            let Size::Finite { mantissa: found, exponent: at } = read.size else { panic!("finite") };
            let Size::Finite { mantissa: expected, exponent: same } = normal(mantissa, exponent) else { panic!("finite") };
            prop_assert!(read.negative == value.is_sign_negative());
            let (found, expected) = (u128::from(found) << 1, u128::from(expected) << 1);
            prop_assert!((at - same).abs() <= 1);
            let (found, expected) = if at > same { (found << 1, expected) } else if at < same { (found, expected << 1) } else { (found, expected) };
            // Half of the last bit of 53 is bit 10 of 64.
            let slack = if raw == 0 { u128::MAX } else { 1 << 12 };
            prop_assert!(found.abs_diff(expected) <= slack);
        }

        #[test]
        fn any_bytes_are_a_number_or_not(a in "[-+0-9.eExXpP]{0,40}", b in "[-+0-9.]{1,20}") {
            if let (Some(a), Some(b)) = (LongDouble::parse(a.as_bytes()), LongDouble::parse(b.as_bytes())) {
                prop_assert_eq!(a.add(b), b.add(a));
                prop_assert_eq!(a.add(LongDouble::ZERO), a);
                // What is shown is a number again, and shows itself.
                if let Some(text) = a.decimal() {
                    let again = LongDouble::parse(text.as_bytes()).unwrap();
                    prop_assert_eq!(again.decimal(), Some(text));
                }
            }
        }
    }
}
