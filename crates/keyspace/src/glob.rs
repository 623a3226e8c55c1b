//! Redis's glob patterns, as KEYS, SCAN MATCH and CONFIG GET use them.
//!
//! `*` any bytes, `?` one byte, `[a-z]` and `[^a-z]` classes, `\x` the byte itself. As in Redis, a class that is
//! not closed ends with the pattern, and a reversed range is read the other way round.
//! Left out: Redis's recursion, whose time is exponential in the number of stars. The last star alone needs
//! another try, so a match takes at most pattern length times text length steps.

/// Whether `text` as a whole matches `pattern`. With `fold_case`, ASCII letters match in either case.
pub fn matches(pattern: &[u8], text: &[u8], fold_case: bool) -> bool {
    // As in Redis, where only `*` alone, which its commands ask for before they look, fits what is empty.
    if text.is_empty() {
        return pattern.is_empty() || pattern == b"*";
    }
    let fold = |byte: u8| if fold_case { byte.to_ascii_lowercase() } else { byte };
    let (mut p, mut t) = (0, 0);
    // Where to go on when the bytes after the last star did not fit: the pattern after it, the text it takes.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        if p < pattern.len() && pattern[p] == b'*' {
            while p < pattern.len() && pattern[p] == b'*' {
                p += 1;
            }
            if p == pattern.len() {
                return true;
            }
            retry = Some((p, t));
            continue;
        }
        if t == text.len() && p == pattern.len() {
            return true;
        }
        let step = if t < text.len() && p < pattern.len() { one(&pattern[p..], text[t], fold) } else { None };
        match (step, retry) {
            (Some(used), _) => {
                p += used;
                t += 1;
            }
            (None, Some((after_star, taken))) if taken < text.len() => {
                p = after_star;
                t = taken + 1;
                retry = Some((p, t));
            }
            (None, _) => return false,
        }
    }
}

/// Matches one byte against the element that starts the pattern; how many bytes of the pattern it took.
fn one(pattern: &[u8], byte: u8, fold: impl Fn(u8) -> u8) -> Option<usize> {
    match pattern[0] {
        b'?' => Some(1),
        b'[' => {
            let (found, used) = class(pattern, byte, fold);
            found.then_some(used)
        }
        b'\\' if pattern.len() >= 2 => (fold(pattern[1]) == fold(byte)).then_some(2),
        literal => (fold(literal) == fold(byte)).then_some(1),
    }
}

fn class(pattern: &[u8], byte: u8, fold: impl Fn(u8) -> u8) -> (bool, usize) {
    let mut at = 1;
    let negated = pattern.get(at) == Some(&b'^');
    if negated {
        at += 1;
    }
    let mut found = false;
    loop {
        match pattern[at..] {
            [] => break,
            [b'\\', literal, ..] => {
                found |= literal == byte;
                at += 2;
            }
            [b']', ..] => {
                at += 1;
                break;
            }
            [from, b'-', to, ..] => {
                let (from, to, byte) = (fold(from.min(to)), fold(from.max(to)), fold(byte));
                found |= from <= byte && byte <= to;
                at += 3;
            }
            [literal, ..] => {
                found |= fold(literal) == fold(byte);
                at += 1;
            }
        }
    }
    (found != negated, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_redis() {
        let yes = [
            ("*", ""),
            ("*", "abc"),
            ("", ""),
            ("a*c", "abbbc"),
            ("a?c", "abc"),
            ("h[ae]llo", "hello"),
            ("h[^e]llo", "hallo"),
            ("h[a-c]llo", "hbllo"),
            ("h[c-a]llo", "hbllo"),
            (r"a\*c", "a*c"),
            ("**a", "a"),
            ("*a*b", "xaxxb"),
            ("[abc", "a"),
            (r"[\]]", "]"),
            ("a[^x]*", "abc"),
            (r"\", r"\"),
        ];
        for (pattern, text) in yes {
            assert!(matches(pattern.as_bytes(), text.as_bytes(), false), "{pattern} {text}");
        }
        let no = [
            ("", "a"),
            ("a", ""),
            ("?", ""),
            ("a*c", "abb"),
            ("h[^e]llo", "hello"),
            (r"a\*c", "abc"),
            ("A", "a"),
            ("[a-c]", "d"),
            ("[]", "]"),
            ("a", "ab"),
        ];
        for (pattern, text) in no {
            assert!(!matches(pattern.as_bytes(), text.as_bytes(), false), "{pattern} {text}");
        }
        assert!(matches(b"A[B-C]*", b"abz", true));
    }

    #[test]
    fn many_stars_stay_cheap() {
        let pattern = b"a*".repeat(500);
        let text = b"a".repeat(20_000);
        assert!(!matches(&[&pattern[..], b"b"].concat(), &text, false));
    }
}
