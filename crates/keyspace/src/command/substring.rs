//! Parts of strings: SETRANGE, GETRANGE, SUBSTR, and what two strings have in common, LCS.

use super::{Argument, Command, FAMILIES_LEVEL, Flags, Keys, Run, number, string::STRING_TOO_LONG};
use crate::{
    Args, Error, Outcome, Reader, Sink, Writer,
    value::{
        MAX_STRING_BYTES,
        lcs::{Lcs, Match},
    },
};

pub(super) static COMMANDS: &[Command] = &[SETRANGE, GETRANGE, SUBSTR, LCS];

const SETRANGE: Command = Command {
    name: "setrange",
    arity: 4,
    flags: Flags::WRITE.and(Flags::DENYOOM),
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["RW", "update"],
    run: Run::Write(setrange),
    level: FAMILIES_LEVEL,
    group: "string",
    since: "2.2.0",
    summary: "Overwrite part of a string at key starting at the specified offset",
    complexity: "O(1), not counting the time taken to copy the new string in place. Usually, this string is very small so the amortized complexity is O(1). Otherwise, complexity is O(M) with M being the length of the value argument.",
    categories: &["@string"],
    arguments: &[Argument::key("key"), Argument::integer("offset"), Argument::string("value")],
    ..Command::ROW
};

fn setrange(writer: &mut Writer<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let offset = number::integer(args[2])?;
    let offset = u64::try_from(offset).map_err(|_| Error::new("ERR offset is out of range"))?;
    let value = args[3];
    let key = writer.key(args[1]);
    let len = match writer.get(key) {
        Some(record) => record.value.string()?.len(),
        None => 0,
    };
    if value.is_empty() {
        out.count(len);
        return Ok(());
    }
    let end = offset.checked_add(value.len() as u64).and_then(|end| usize::try_from(end).ok());
    let end = end.filter(|end| *end <= MAX_STRING_BYTES).ok_or(STRING_TOO_LONG)?;
    writer.overwrite(key, end - value.len(), value);
    out.count(end.max(len));
    Ok(())
}

const GETRANGE: Command = Command { name: "getrange", since: "2.4.0", ..RANGE };

const SUBSTR: Command =
    Command { name: "substr", since: "1.0.0", deprecated: Some(("2.0.0", "`GETRANGE`")), ..RANGE };

const RANGE: Command = Command {
    arity: 4,
    flags: Flags::READONLY,
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    access: &["RO", "access"],
    run: Run::Read(getrange),
    group: "string",
    summary: "Get a substring of the string stored at a key",
    complexity: "O(N) where N is the length of the returned string. The complexity is ultimately determined by the returned length, but because creating a substring from an existing string is very cheap, it can be considered O(1) for small strings.",
    categories: &["@string"],
    arguments: &[Argument::key("key"), Argument::integer("start"), Argument::integer("end")],
    ..Command::ROW
};

fn getrange(reader: &Reader<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let (start, end) = (number::integer(args[2])?, number::integer(args[3])?);
    let value = match reader.get(args[1]) {
        Some(record) => record.value.string()?,
        None => b"",
    };
    out.bulk(part(value, start, end));
    Ok(())
}

/// The bytes from `start` to `end`, both included; negative ones count from the end of the string.
fn part(value: &[u8], start: i64, end: i64) -> &[u8] {
    // Two ends in the wrong order stay so, whatever is cut off.
    if start < 0 && end < 0 && start > end {
        return b"";
    }
    let from_end =
        |index: i64| usize::try_from(index.unsigned_abs()).map_or(0, |back| value.len().saturating_sub(back));
    let position = |index: i64| match usize::try_from(index) {
        Ok(index) => index.min(value.len()),
        Err(_) => from_end(index),
    };
    value.get(position(start)..position(end).saturating_add(1).min(value.len())).unwrap_or(b"")
}

const LCS: Command = Command {
    name: "lcs",
    arity: -3,
    flags: Flags::READONLY,
    keys: Keys::Range { first: 1, last: 2, step: 1 },
    access: &["RO", "access"],
    run: Run::Read(lcs),
    group: "string",
    since: "7.0.0",
    summary: "Find longest common substring",
    complexity: "O(N*M) where N and M are the lengths of s1 and s2, respectively",
    categories: &["@string"],
    arguments: &[
        Argument::key("key1"),
        Argument::key("key2"),
        Argument::pure_token("len", "LEN").optional(),
        Argument::pure_token("idx", "IDX").optional(),
        Argument::integer("len").token("MINMATCHLEN").optional(),
        Argument::pure_token("withmatchlen", "WITHMATCHLEN").optional(),
    ],
    ..Command::ROW
};

fn lcs(reader: &Reader<'_>, args: Args<'_>, out: &mut dyn Sink) -> Outcome {
    let string = |key: &[u8]| match reader.get(key) {
        Some(record) => {
            record.value.string().map_err(|_| Error::new("ERR The specified keys must contain string values"))
        }
        None => Ok(&b""[..]),
    };
    let (a, b) = (string(args[1])?, string(args[2])?);
    let options = LcsOptions::parse(&args[3..])?;
    let common = Lcs::of(a, b, !options.len)
        .ok_or(Error::new("ERR Insufficient memory, failed allocating transient memory for LCS"))?;
    if options.idx {
        let matches: Vec<&Match> =
            common.matches.iter().filter(|found| found.len() >= options.least).collect();
        out.map(2);
        out.bulk(b"matches");
        out.array(matches.len());
        for found in matches {
            out.array(if options.with_len { 3 } else { 2 });
            for range in [&found.a, &found.b] {
                out.array(2);
                out.count(*range.start());
                out.count(*range.end());
            }
            if options.with_len {
                out.count(found.len());
            }
        }
        out.bulk(b"len");
        out.count(common.len);
    } else if options.len {
        out.count(common.len);
    } else {
        out.bulk(&common.bytes);
    }
    Ok(())
}

#[derive(Default)]
struct LcsOptions {
    len: bool,
    idx: bool,
    with_len: bool,
    least: usize,
}

impl LcsOptions {
    fn parse(mut options: Args<'_>) -> Result<LcsOptions, Error> {
        let mut parsed = LcsOptions::default();
        while let [option, rest @ ..] = options {
            options = rest;
            match (option.to_ascii_lowercase().as_slice(), rest) {
                (b"len", _) => parsed.len = true,
                (b"idx", _) => parsed.idx = true,
                (b"withmatchlen", _) => parsed.with_len = true,
                (b"minmatchlen", [least, rest @ ..]) => {
                    // A negative one asks for nothing, like zero.
                    parsed.least = usize::try_from(number::integer(least)?).unwrap_or(0);
                    options = rest;
                }
                _ => return Err(Error::SYNTAX),
            }
        }
        if parsed.len && parsed.idx {
            return Err(Error::new("ERR If you want both the length and indexes, please just use IDX."));
        }
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::part;

    #[test]
    fn ends_of_parts() {
        let value = b"hello";
        for (start, end, expected) in [
            (0, -1, "hello"),
            (1, 3, "ell"),
            (-3, -1, "llo"),
            (-100, 100, "hello"),
            (3, 1, ""),
            (-1, -3, ""),
            (-6, -7, ""),
            (5, 10, ""),
            (4, i64::MAX, "o"),
            (i64::MIN, i64::MIN, "h"),
            (i64::MIN, i64::MAX, "hello"),
            (i64::MAX, i64::MAX, ""),
        ] {
            assert_eq!(part(value, start, end), expected.as_bytes(), "{start} {end}");
        }
        assert_eq!(part(b"", 0, -1), b"");
        assert_eq!(part(b"", -5, -3), b"");
    }
}
