//! Counts replies without understanding them: it finds only where each ends, wherever the bytes are cut.

/// What a server must not answer here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// An error reply, without its `-`.
    Error(String),
    /// No RESP2.
    Malformed(String),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Error(text) => write!(f, "an error: {text}"),
            Fault::Malformed(why) => write!(f, "no RESP2: {why}"),
        }
    }
}

impl std::error::Error for Fault {}

/// The most of an error that is kept.
const ERROR_BYTES: usize = 300;
/// The most bytes or elements that a reply may announce.
const MOST: u64 = 1 << 30;

/// The replies of one connection.
#[derive(Debug)]
pub struct Frames {
    at: At,
    /// Frames that the current reply still needs: more than one inside of an array.
    wanted: u64,
    /// The number of the current line, and whether it is negative.
    number: u64,
    negative: bool,
    error: Vec<u8>,
}

/// Where in a frame the next byte lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    Type,
    /// In a line of which nothing matters.
    Text,
    Error,
    /// In a line with the length of what kind of reply.
    Length(u8),
    /// In a bulk string, so many bytes before its end.
    Bytes(u64),
}

impl Default for Frames {
    fn default() -> Frames {
        Frames { at: At::Type, wanted: 1, number: 0, negative: false, error: Vec::new() }
    }
}

impl Frames {
    /// Takes the bytes that came next; how many replies end in them.
    ///
    /// # Errors
    /// At the first error, nested ones included, or at what is no reply of RESP2.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<u64, Fault> {
        let (mut ended, mut next) = (0, 0);
        while let Some(&byte) = bytes.get(next) {
            next += 1;
            let frame_ends = match self.at {
                At::Type => {
                    self.at = match byte {
                        b'+' | b':' => At::Text,
                        b'-' => At::Error,
                        b'$' | b'*' => At::Length(byte),
                        _ => return Err(Fault::Malformed(format!("a reply begins with {:?}", byte as char))),
                    };
                    (self.number, self.negative) = (0, false);
                    false
                }
                At::Text => byte == b'\n',
                At::Error if byte == b'\n' => {
                    let text = String::from_utf8_lossy(&self.error);
                    return Err(Fault::Error(text.trim_end().to_owned()));
                }
                At::Error => {
                    if self.error.len() < ERROR_BYTES {
                        self.error.push(byte);
                    }
                    false
                }
                At::Length(kind) => self.length(kind, byte)?,
                At::Bytes(left) => {
                    let here = left.min((bytes.len() - next + 1) as u64);
                    next += here as usize - 1;
                    self.at = At::Bytes(left - here);
                    left == here
                }
            };
            if frame_ends {
                self.at = At::Type;
                self.wanted -= 1;
                if self.wanted == 0 {
                    self.wanted = 1;
                    ended += 1;
                }
            }
        }
        Ok(ended)
    }

    /// Takes a byte of the line with a length; whether the frame ends with it.
    fn length(&mut self, kind: u8, byte: u8) -> Result<bool, Fault> {
        match byte {
            b'-' => self.negative = true,
            b'0'..=b'9' => self.number = self.number * 10 + u64::from(byte - b'0'),
            b'\r' => {}
            b'\n' if self.negative => return Ok(true),
            b'\n' if kind == b'*' => {
                self.wanted += self.number;
                return Ok(true);
            }
            b'\n' => self.at = At::Bytes(self.number + 2),
            _ => return Err(Fault::Malformed(format!("a length holds {:?}", byte as char))),
        }
        match self.number {
            0..=MOST => Ok(false),
            _ => Err(Fault::Malformed("a reply is too long".to_owned())),
        }
    }

    /// Whether the last byte ended a reply.
    pub fn is_between(&self) -> bool {
        self.at == At::Type && self.wanted == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLIES: &[u8] = b"+OK\r\n$3\r\na\r\n\r\n$-1\r\n:42\r\n*2\r\n$0\r\n\r\n*3\r\n:-1\r\n+x\r\n*-1\r\n*0\r\n$4\r\n-ERR\r\n+PONG\r\n";

    #[test]
    fn replies_are_counted_wherever_they_are_cut() {
        assert_eq!(Frames::default().feed(REPLIES), Ok(8));
        for first in 0..=REPLIES.len() {
            for second in first..=REPLIES.len() {
                let mut frames = Frames::default();
                let parts = [&REPLIES[..first], &REPLIES[first..second], &REPLIES[second..]];
                let count: u64 = parts.iter().map(|part| frames.feed(part).unwrap()).sum();
                assert_eq!(count, 8, "cut at {first} and {second}");
                assert!(frames.is_between());
            }
        }
        let mut frames = Frames::default();
        let count: u64 = REPLIES.iter().map(|byte| frames.feed(&[*byte]).unwrap()).sum();
        assert_eq!(count, 8);
    }

    #[test]
    fn a_reply_ends_with_its_last_byte_and_not_before() {
        for reply in ["+OK\r\n", "$3\r\nabc\r\n", "*1\r\n*2\r\n:1\r\n$-1\r\n"] {
            let mut frames = Frames::default();
            assert_eq!(frames.feed(&reply.as_bytes()[..reply.len() - 1]), Ok(0));
            assert!(!frames.is_between());
            assert_eq!(frames.feed(b"\n"), Ok(1));
        }
    }

    #[test]
    fn errors_are_found_wherever_they_are() {
        for before in ["", "+OK\r\n", "*2\r\n:1\r\n"] {
            let bytes = format!("{before}-MOVED 3999 127.0.0.1:6381\r\n");
            for cut in 0..bytes.len() {
                let (head, tail) = bytes.as_bytes().split_at(cut);
                let mut frames = Frames::default();
                frames.feed(head).unwrap();
                let error = Fault::Error("MOVED 3999 127.0.0.1:6381".to_owned());
                assert_eq!(frames.feed(tail), Err(error));
            }
        }
    }

    #[test]
    fn what_is_no_reply_is_refused() {
        for bytes in ["OK\r\n", "$x\r\n", "%1\r\n", "*99999999999999999999\r\n"] {
            let fed = Frames::default().feed(bytes.as_bytes());
            assert!(matches!(fed, Err(Fault::Malformed(_))), "{bytes:?}: {fed:?}");
        }
    }
}
