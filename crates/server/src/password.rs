//! The password that clients of a port must give.
//!
//! Contract: it is never shown (`Debug` hides it), and comparing it with what a client sent takes a time that depends on
//! what was sent alone.

use parking_lot::RwLock;
use serde::Deserialize;
use std::convert::Infallible;
use std::fmt;
use std::hint::black_box;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

/// A password; an empty one is none.
#[derive(Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(from = "String")]
pub struct Password(Vec<u8>);

impl Password {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The password itself.
    #[must_use]
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }

    /// Whether `given` is the password.
    fn matches(&self, given: &[u8]) -> bool {
        let mut difference = self.0.len() ^ given.len();
        let mut own = self.0.iter().cycle();
        for &byte in given {
            difference |= usize::from(byte ^ own.next().copied().unwrap_or(0));
            difference = black_box(difference);
        }
        difference == 0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "\"\"" } else { "(hidden)" })
    }
}

impl From<&[u8]> for Password {
    fn from(bytes: &[u8]) -> Password {
        Password(bytes.to_vec())
    }
}

impl From<String> for Password {
    fn from(text: String) -> Password {
        Password(text.into_bytes())
    }
}

impl FromStr for Password {
    type Err = Infallible;
    fn from_str(text: &str) -> Result<Password, Infallible> {
        Ok(Password(text.as_bytes().to_vec()))
    }
}

/// `requirepass` of a port, as CONFIG SET changes it while clients come and go.
#[derive(Debug, Default)]
pub(crate) struct RequirePass {
    password: RwLock<Password>,
    /// The same without the lock: every request of a client that has not authenticated asks.
    is_set: AtomicBool,
}

impl RequirePass {
    pub(crate) fn new(password: Password) -> RequirePass {
        let is_set = AtomicBool::new(!password.is_empty());
        RequirePass { password: RwLock::new(password), is_set }
    }

    /// Whether clients must give a password.
    pub(crate) fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Acquire)
    }

    /// Whether `given` lets a client in: anything does while there is no password.
    pub(crate) fn admits(&self, given: &[u8]) -> bool {
        let password = self.password.read();
        password.is_empty() || password.matches(given)
    }

    /// The password as of now.
    pub(crate) fn get(&self) -> Password {
        self.password.read().clone()
    }

    /// Clients that come from now on must give this one; those that are in stay in, as in Redis.
    pub(crate) fn set(&self, password: Password) {
        let mut current = self.password.write();
        self.is_set.store(!password.is_empty(), Ordering::Release);
        *current = password;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_password_itself_is_admitted() {
        let required = RequirePass::new("secret".parse().unwrap());
        assert!(required.is_set());
        assert!(required.admits(b"secret"));
        for given in [&b""[..], b"s", b"Secret", b"secre", b"secrets", b"secretsecret", b"secret\0"] {
            assert!(!required.admits(given), "{given:?}");
        }
        required.set(Password::default());
        assert!(!required.is_set() && required.admits(b"anything"));
        required.set(Password::from(&b"\0\xff"[..]));
        assert!(required.admits(b"\0\xff") && !required.admits(b"\0"));
    }

    #[test]
    fn a_password_is_not_shown() {
        let required = RequirePass::new("secret".parse().unwrap());
        assert!(!format!("{required:?}").contains("secret"));
    }
}
