//! Values in the form of Redis's RDB files, as DUMP gives and RESTORE takes them.
//!
//! A dump is the type (one byte), the value, the version of RDB (two bytes, little-endian) and a CRC-64 of all that (eight,
//! little-endian). Contract: dumps equal those of Redis 7.0; any bytes give a value or an error, and take memory in
//! proportion to what they can give.

use super::{MAX_STRING_BYTES, ValueRef, integer, lzf};

/// The version of Redis 7.0. Newer ones are refused, as there.
const VERSION: u16 = 10;
const FOOTER_BYTES: usize = 10;

const STRING: u8 = 0;

const LEN_14: u8 = 0x40;
const LEN_32: u8 = 0x80;
const LEN_64: u8 = 0x81;
const ENCODED: u8 = 0xc0;
const INT_8: u64 = 0;
const INT_16: u64 = 1;
const INT_32: u64 = 2;
const LZF: u64 = 3;

/// Why bytes are no dump of a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DumpError {
    /// Too short, of a newer version, or not what was written.
    Footer,
    /// No value, or none of a type there is.
    Value,
}

/// A dump.
pub(crate) fn dump(value: ValueRef<'_>) -> Vec<u8> {
    let mut out = vec![STRING];
    write(value, &mut out);
    out.extend_from_slice(&VERSION.to_le_bytes());
    let crc = crc64(0, &out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

/// Length of the value in a dump, without type, version and CRC.
pub(crate) fn dumped_len(value: ValueRef<'_>) -> usize {
    let mut out = Vec::new();
    write(value, &mut out);
    out.len()
}

fn write(ValueRef::String(text): ValueRef<'_>, out: &mut Vec<u8>) {
    const LONGEST_INT: usize = 11;
    const SHORTEST_COMPRESSED: usize = 21;
    let small = (text.len() <= LONGEST_INT).then(|| integer(text)).flatten();
    if let Some(number) = small.and_then(|number| i32::try_from(number).ok()) {
        if let Ok(number) = i8::try_from(number) {
            out.push(ENCODED | INT_8 as u8);
            out.extend_from_slice(&number.to_le_bytes());
        } else if let Ok(number) = i16::try_from(number) {
            out.push(ENCODED | INT_16 as u8);
            out.extend_from_slice(&number.to_le_bytes());
        } else {
            out.push(ENCODED | INT_32 as u8);
            out.extend_from_slice(&number.to_le_bytes());
        }
        return;
    }
    if text.len() >= SHORTEST_COMPRESSED
        && let Some(compressed) = lzf::compress(text, text.len() - 4)
    {
        out.push(ENCODED | LZF as u8);
        write_len(compressed.len(), out);
        write_len(text.len(), out);
        out.extend_from_slice(&compressed);
        return;
    }
    write_len(text.len(), out);
    out.extend_from_slice(text);
}

fn write_len(len: usize, out: &mut Vec<u8>) {
    match len {
        0..=0x3f => out.push(len as u8),
        0x40..=0x3fff => out.extend([LEN_14 | (len >> 8) as u8, len as u8]),
        _ => match u32::try_from(len) {
            Ok(len) => {
                out.push(LEN_32);
                out.extend_from_slice(&len.to_be_bytes());
            }
            Err(_) => {
                out.push(LEN_64);
                out.extend_from_slice(&(len as u64).to_be_bytes());
            }
        },
    }
}

/// The string of a dump.
pub(crate) fn restore(dump: &[u8]) -> Result<Vec<u8>, DumpError> {
    let (body, footer) = dump.split_last_chunk::<FOOTER_BYTES>().ok_or(DumpError::Footer)?;
    let (version, crc) = footer.split_first_chunk::<2>().ok_or(DumpError::Footer)?;
    let crc = u64::from_le_bytes(crc.try_into().map_err(|_| DumpError::Footer)?);
    if u16::from_le_bytes(*version) > VERSION || crc64(0, &dump[..body.len() + 2]) != crc {
        return Err(DumpError::Footer);
    }
    // As in Redis, the value may run into the footer, and nobody minds what follows it.
    read(dump).ok_or(DumpError::Value)
}

fn read(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut rest = bytes.strip_prefix(&[STRING])?;
    let decimal = |number: i64| Some(number.to_string().into_bytes());
    match read_len(&mut rest)? {
        Len::Plain(len) => take(&mut rest, len).map(<[u8]>::to_vec),
        Len::Encoded(INT_8) => decimal(i8::from_le_bytes(array(&mut rest)?).into()),
        Len::Encoded(INT_16) => decimal(i16::from_le_bytes(array(&mut rest)?).into()),
        Len::Encoded(INT_32) => decimal(i32::from_le_bytes(array(&mut rest)?).into()),
        Len::Encoded(LZF) => {
            // Redis reads these two lengths without asking whether they are lengths.
            let compressed = read_len(&mut rest)?.number();
            let len = read_len(&mut rest)?.number();
            let compressed = take(&mut rest, compressed)?;
            match len {
                // Redis takes any failure for a result of no bytes: then nothing was promised, and nothing came.
                0 => Some(Vec::new()),
                // A few megabytes could become a string that no other command could have made.
                _ if len > MAX_STRING_BYTES as u64 => None,
                _ => lzf::decompress(compressed, len),
            }
        }
        Len::Encoded(_) => None,
    }
}

/// A length, or in its place how the value is encoded.
enum Len {
    Plain(u64),
    Encoded(u64),
}

impl Len {
    fn number(self) -> u64 {
        let (Len::Plain(number) | Len::Encoded(number)) = self;
        number
    }
}

fn read_len(rest: &mut &[u8]) -> Option<Len> {
    let [first] = array(rest)?;
    let low = u64::from(first & 0x3f);
    Some(match first & 0xc0 {
        0 => Len::Plain(low),
        LEN_14 => {
            let [second] = array(rest)?;
            Len::Plain(low << 8 | u64::from(second))
        }
        ENCODED => Len::Encoded(low),
        _ => match first {
            LEN_32 => Len::Plain(u32::from_be_bytes(array(rest)?).into()),
            LEN_64 => Len::Plain(u64::from_be_bytes(array(rest)?)),
            _ => return None,
        },
    })
}

fn take<'a>(rest: &mut &'a [u8], len: u64) -> Option<&'a [u8]> {
    let (taken, more) = rest.split_at_checked(usize::try_from(len).ok()?)?;
    *rest = more;
    Some(taken)
}

fn array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, more) = rest.split_first_chunk()?;
    *rest = more;
    Some(*taken)
}

/// CRC-64 with the polynomial of Jones, reflected, as RDB has it.
fn crc64(mut crc: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        let word = crc ^ u64::from_le_bytes(*word);
        crc = (0..8).fold(0, |crc, n| crc ^ CRC_TABLES[7 - n][(word >> (8 * n)) as usize & 0xff]);
    }
    rest.iter().fold(crc, |crc, byte| CRC_TABLES[0][(crc as u8 ^ byte) as usize] ^ crc >> 8)
}

/// `CRC_TABLES[n][byte]` is the CRC of a byte that `n` bytes follow.
static CRC_TABLES: [[u64; 256]; 8] = {
    const POLYNOMIAL: u64 = 0xad93_d235_94c9_35a9_u64.reverse_bits();
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u64;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut n = 1;
    while n < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[n - 1][byte];
            tables[n][byte] = before >> 8 ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        n += 1;
    }
    tables
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    #[test]
    fn the_crc_is_that_of_redis() {
        assert_eq!(crc64(0, b"123456789"), 0xe9c6_d914_c4b8_d9ca);
        let long: Vec<u8> = (0..=255).collect();
        for cut in 0..long.len() {
            assert_eq!(crc64(crc64(0, &long[..cut]), &long[cut..]), crc64(0, &long));
        }
    }

    fn signed(body: &[u8]) -> Vec<u8> {
        let mut dump = body.to_vec();
        dump.extend_from_slice(&VERSION.to_le_bytes());
        let crc = crc64(0, &dump);
        dump.extend_from_slice(&crc.to_le_bytes());
        dump
    }

    #[test]
    fn integers_and_lengths_of_all_sizes() {
        for number in
            [0i64, -1, 127, 128, -128, -129, 32767, 32768, -32769, 2147483647, 2147483648, -2147483649]
        {
            let text = number.to_string().into_bytes();
            assert_eq!(restore(&dump(ValueRef::String(&text))).unwrap(), text);
        }
        for len in [0, 63, 64, 16383, 16384, 100_000] {
            let text: Vec<u8> = (0..len).map(|n: u64| (n * n % 251) as u8).collect();
            assert_eq!(restore(&dump(ValueRef::String(&text))).unwrap(), text);
        }
        assert_eq!(restore(&signed(b"\0\x80\0\0\0\x02ab")).unwrap(), b"ab");
        assert_eq!(restore(&signed(b"\0\x81\0\0\0\0\0\0\0\x02ab")).unwrap(), b"ab");
    }

    /// `a`, and again and again 264 more of them: 88 bytes for each byte.
    fn bomb(references: usize) -> Vec<u8> {
        let mut compressed = vec![0, b'a'];
        (0..references).for_each(|_| compressed.extend([0xe0, 0xff, 0]));
        let mut body = vec![STRING, ENCODED | LZF as u8];
        write_len(compressed.len(), &mut body);
        write_len(1 + 264 * references, &mut body);
        body.extend(compressed);
        signed(&body)
    }

    #[test]
    fn no_string_is_longer_than_others_may_be() {
        assert_eq!(restore(&bomb(1000)).unwrap(), vec![b'a'; 264_001]);
        assert_eq!(restore(&bomb(MAX_STRING_BYTES / 264 + 1)), Err(DumpError::Value));
    }

    #[test]
    fn what_is_no_dump() {
        assert_eq!(restore(b""), Err(DumpError::Footer));
        assert_eq!(restore(&[0; 9]), Err(DumpError::Footer));
        let mut newer = dump(ValueRef::String(b"a"));
        newer[3] = 11;
        assert_eq!(restore(&newer), Err(DumpError::Footer));
        for body in [
            &b""[..],
            b"\x01\x01a",
            b"\0\xc4",
            b"\0\x82",
            b"\0\x7f\xffa",
            b"\0\x81\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\0\xc3\x01\x81\xff\xff\xff\xff\xff\xff\xff\xffa",
        ] {
            assert_eq!(restore(&signed(body)), Err(DumpError::Value), "{body:?}");
        }
    }

    proptest! {
        #[test]
        fn dumps_come_back(text in vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(restore(&dump(ValueRef::String(&text))), Ok(text));
        }

        #[test]
        fn any_signed_bytes_are_a_string_or_not(body in vec(any::<u8>(), 0..40), kind in prop::sample::select(vec![0u8, 0x3f, 0x40, 0x80, 0x81, 0xc0, 0xc1, 0xc2, 0xc3])) {
            let _ = restore(&signed(&[&[STRING, kind], body.as_slice()].concat()));
            let _ = restore(&body);
        }
    }
}
