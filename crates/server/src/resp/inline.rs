//! Inline commands: a line of words, with Redis's rules of quoting, for people with telnet.

/// A quote that is not closed, or that is followed by anything but space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Unbalanced;

/// The words of a line (without its line break).
pub(super) fn split(line: &[u8]) -> Result<Vec<Vec<u8>>, Unbalanced> {
    let mut words = Vec::new();
    let mut rest = line;
    loop {
        rest = rest.trim_ascii_start();
        // Redis reads lines as C strings.
        if rest.is_empty() || rest[0] == 0 {
            return Ok(words);
        }
        let mut word = Vec::new();
        rest = take_word(rest, &mut word)?;
        words.push(word);
    }
}

/// Moves one word into `word`; a word may be made of quoted and bare parts. Returns what follows it.
fn take_word<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Result<&'a [u8], Unbalanced> {
    loop {
        match rest {
            [] | [0 | b' ' | b'\n' | b'\r' | b'\t', ..] => return Ok(rest),
            [b'"', quoted @ ..] => return take_double_quoted(quoted, word),
            [b'\'', quoted @ ..] => return take_single_quoted(quoted, word),
            [byte, after @ ..] => {
                word.push(*byte);
                rest = after;
            }
        }
    }
}

fn take_double_quoted<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Result<&'a [u8], Unbalanced> {
    loop {
        let (byte, after) = match rest {
            [b'\\', b'x', high, low, after @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                (hex(*high) << 4 | hex(*low), after)
            }
            [b'\\', escaped, after @ ..] => (unescaped(*escaped), after),
            [b'"', after @ ..] => return closed(after),
            [] | [0, ..] => return Err(Unbalanced),
            [byte, after @ ..] => (*byte, after),
        };
        word.push(byte);
        rest = after;
    }
}

fn take_single_quoted<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Result<&'a [u8], Unbalanced> {
    loop {
        let (byte, after) = match rest {
            [b'\\', b'\'', after @ ..] => (b'\'', after),
            [b'\'', after @ ..] => return closed(after),
            [] | [0, ..] => return Err(Unbalanced),
            [byte, after @ ..] => (*byte, after),
        };
        word.push(byte);
        rest = after;
    }
}

/// After a closing quote the word is over: `"a"b` is an error.
fn closed(after: &[u8]) -> Result<&[u8], Unbalanced> {
    match after {
        [] | [0 | b' ' | b'\t'..=b'\r', ..] => Ok(after),
        _ => Err(Unbalanced),
    }
}

fn unescaped(byte: u8) -> u8 {
    match byte {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 8,
        b'a' => 7,
        other => other,
    }
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        other => (other | 0x20) - b'a' + 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Result<Vec<String>, Unbalanced> {
        Ok(split(line.as_bytes())?.into_iter().map(|word| String::from_utf8(word).unwrap()).collect())
    }

    #[test]
    fn words_and_quotes() {
        assert_eq!(words("  SET  a\tb  ").unwrap(), ["SET", "a", "b"]);
        assert_eq!(words(r#"ECHO "a b" 'c d' """#).unwrap(), ["ECHO", "a b", "c d", ""]);
        assert_eq!(words(r#""\x41\n\"\q\xZZ""#).unwrap(), ["A\n\"qxZZ"]);
        assert_eq!(words(r#"'a\'b\n'"#).unwrap(), [r"a'b\n"]);
        assert_eq!(words(r#"a"b c""#).unwrap(), ["ab c"]);
        assert_eq!(words("").unwrap(), [""; 0]);
    }

    #[test]
    fn open_quotes_and_text_right_after_quotes_are_refused() {
        for line in [r#"PING "a"#, r#"PING "a"b"#, "PING 'a", "PING 'a'b", r#""\""#] {
            assert_eq!(words(line), Err(Unbalanced), "{line}");
        }
    }
}
