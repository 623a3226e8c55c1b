//! Requests as bytes in which only the numbers of the keys change.

use crate::resp::encode;

/// Digits of the number that ends a key, as redis-benchmark writes it.
const DIGITS: usize = 12;
/// Of these, how many change: keys have numbers below a million.
const CHANGING: usize = 6;
/// One more than the largest number of a key.
pub const MOST_KEYS: u32 = 1_000_000;

/// An argument of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Arg {
    /// As it is.
    Text(&'static str),
    /// This prefix, and a number of twelve digits.
    Key(&'static str),
    /// So many times the letter x.
    Value(usize),
}

/// A request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Template {
    bytes: Vec<u8>,
    /// Where the digits that change begin, for each key.
    holes: Vec<usize>,
}

impl Template {
    /// A request with these arguments.
    pub fn new(args: &[Arg]) -> Template {
        let argv: Vec<Vec<u8>> = args
            .iter()
            .map(|arg| match arg {
                Arg::Text(text) => text.as_bytes().to_vec(),
                Arg::Key(prefix) => key(prefix, 0).into_bytes(),
                Arg::Value(length) => vec![b'x'; *length],
            })
            .collect();
        let mut holes = Vec::new();
        for (n, arg) in args.iter().enumerate() {
            if let Arg::Key(_) = arg {
                // The bytes up to this argument are the same in a shorter request, but for its number of arguments.
                let shorter = encode(&argv[..=n]).len() + digits(args.len()) - digits(n + 1);
                holes.push(shorter - b"\r\n".len() - CHANGING);
            }
        }
        Template { bytes: encode(&argv), holes }
    }

    /// `SET key value`.
    pub fn set(prefix: &'static str, value_bytes: usize) -> Template {
        Template::new(&[Arg::Text("SET"), Arg::Key(prefix), Arg::Value(value_bytes)])
    }

    /// `GET key`.
    pub fn get(prefix: &'static str) -> Template {
        Template::new(&[Arg::Text("GET"), Arg::Key(prefix)])
    }

    /// A request of these very bytes, without keys.
    pub fn raw(bytes: &[u8]) -> Template {
        Template { bytes: bytes.to_vec(), holes: Vec::new() }
    }

    /// How many keys it has.
    pub fn keys(&self) -> usize {
        self.holes.len()
    }

    /// The request `depth` times in a row, as one row of bytes.
    pub fn repeat(&self, depth: usize) -> Pipeline {
        let starts = (0..depth).map(|n| n * self.bytes.len());
        Pipeline {
            bytes: self.bytes.repeat(depth),
            holes: starts.flat_map(|start| self.holes.iter().map(move |hole| start + hole)).collect(),
            request_bytes: self.bytes.len(),
            keys_per_request: self.holes.len(),
        }
    }
}

fn digits(number: usize) -> usize {
    number.to_string().len()
}

/// The key with this number.
pub fn key(prefix: &str, number: u32) -> String {
    format!("{prefix}{number:0DIGITS$}")
}

/// Requests that are sent together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pipeline {
    bytes: Vec<u8>,
    holes: Vec<usize>,
    request_bytes: usize,
    keys_per_request: usize,
}

impl Pipeline {
    /// The first `requests` requests, with the next numbers in their keys.
    pub fn fill(&mut self, requests: usize, mut number: impl FnMut() -> u32) -> &[u8] {
        for &hole in &self.holes[..requests * self.keys_per_request] {
            write_digits(&mut self.bytes[hole..hole + CHANGING], number());
        }
        &self.bytes[..requests * self.request_bytes]
    }
}

fn write_digits(place: &mut [u8], mut number: u32) {
    debug_assert!(number < MOST_KEYS);
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_where_they_belong() {
        let mut pipeline = Template::set("key:", 3).repeat(2);
        let mut numbers = [7, 999_999].into_iter();
        let expected =
            [encode(&["SET", "key:000000000007", "xxx"]), encode(&["SET", "key:000000999999", "xxx"])];
        assert_eq!(pipeline.fill(2, || numbers.next().unwrap()), expected.concat());
        // Nothing is left of the numbers before.
        assert_eq!(pipeline.fill(1, || 10), encode(&["SET", &key("key:", 10), "xxx"]));
    }

    #[test]
    fn several_keys_and_none() {
        let mut args = vec![Arg::Text("MSET")];
        for _ in 0..10 {
            args.extend([Arg::Key("key:"), Arg::Value(1)]);
        }
        let template = Template::new(&args);
        assert_eq!(template.keys(), 10);
        let mut number = 122_999;
        let filled = template
            .repeat(1)
            .fill(1, || {
                number += 1;
                number
            })
            .to_vec();
        let mut expected = vec!["MSET".to_owned()];
        for n in 123_000..123_010 {
            expected.extend([key("key:", n), "x".to_owned()]);
        }
        assert_eq!(filled, encode(&expected));
        assert_eq!(Template::raw(b"PING\r\n").repeat(3).fill(3, || 0), b"PING\r\nPING\r\nPING\r\n");
    }
}
