//! Were acknowledged writes kept?
//!
//! A [`Ledger`] remembers what one writer per key was told: versions 1, 2, 3 … of a key, one after the other. After
//! the first unknown outcome a key is not written again, so at the end exactly two answers are right: the last
//! acknowledged version, or the one unknown version after it. Older, or nothing, is a lost write; anything else was
//! never asked for or was refused, and yet happened.

use std::collections::BTreeMap;
use std::fmt;

use crate::client::Outcome;

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Account {
    acknowledged: u64,
    unknown: Option<u64>,
}

/// What writers were told.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Ledger {
    accounts: BTreeMap<String, Account>,
    acknowledged: u64,
    refused: u64,
    unknown: u64,
}

impl Ledger {
    /// Notes the outcome of writing `version` (greater than all before) to `key`.
    ///
    /// # Panics
    /// When the key has an unknown write or the version is not new: the ledger could not tell the truth then.
    pub fn note(&mut self, key: &str, version: u64, outcome: &Outcome) {
        let account = self.accounts.entry(key.to_owned()).or_default();
        assert!(account.unknown.is_none(), "{key} was written after an unknown outcome");
        assert!(version > account.acknowledged, "{key}: version {version} is not new");
        match outcome {
            Outcome::Ok(value) if value.error().is_none() => {
                account.acknowledged = version;
                self.acknowledged += 1;
            }
            Outcome::Ok(_) | Outcome::Refused(_) => self.refused += 1,
            Outcome::Unknown(_) => {
                account.unknown = Some(version);
                self.unknown += 1;
            }
        }
    }

    /// Whether the key may be written again.
    pub fn is_open(&self, key: &str) -> bool {
        self.accounts.get(key).is_none_or(|account| account.unknown.is_none())
    }

    /// Takes over the keys of another ledger; no key may be in both.
    pub fn absorb(&mut self, other: Ledger) {
        for (key, account) in other.accounts {
            let old = self.accounts.insert(key, account);
            assert!(old.is_none(), "a key has two writers");
        }
        self.acknowledged += other.acknowledged;
        self.refused += other.refused;
        self.unknown += other.unknown;
    }

    /// The keys written to.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.accounts.keys().map(String::as_str)
    }

    /// Number of acknowledged writes.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Number of writes with unknown outcome.
    pub fn unknown(&self) -> u64 {
        self.unknown
    }

    /// Number of writes that were refused.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Compares with what is there now: the version of each key, `None` for no such key.
    pub fn audit(&self, found: &BTreeMap<String, Option<u64>>) -> Audit {
        let mut audit = Audit { keys: self.accounts.len(), ..Audit::default() };
        for (key, account) in &self.accounts {
            let Some(found) = found.get(key) else {
                audit.unread.push(key.clone());
                continue;
            };
            let version = found.unwrap_or(0);
            if version == account.acknowledged || Some(version) == account.unknown {
                continue;
            }
            let line = format!(
                "{key}: found {found:?}, acknowledged {}, unknown {:?}",
                account.acknowledged, account.unknown
            );
            if version < account.acknowledged { audit.lost.push(line) } else { audit.invented.push(line) }
        }
        audit
    }
}

/// What an audit found.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Audit {
    /// Keys looked at.
    pub keys: usize,
    /// Keys whose last acknowledged write is gone.
    pub lost: Vec<String>,
    /// Keys that hold what was refused or never asked for.
    pub invented: Vec<String>,
    /// Keys nobody read: no pass.
    pub unread: Vec<String>,
}

impl Audit {
    /// Whether everything is as it should be.
    pub fn is_clean(&self) -> bool {
        self.lost.is_empty() && self.invented.is_empty() && self.unread.is_empty()
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} keys, {} lost, {} invented, {} unread",
            self.keys,
            self.lost.len(),
            self.invented.len(),
            self.unread.len()
        )?;
        for line in self.lost.iter().chain(&self.invented).chain(&self.unread).take(10) {
            write!(f, "\n  {line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::Value;

    fn ok() -> Outcome {
        Outcome::Ok(Value::ok())
    }

    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.note("a", 1, &ok());
        ledger.note("a", 2, &ok());
        ledger.note("b", 1, &ok());
        ledger.note("b", 2, &Outcome::Unknown(String::new()));
        ledger.note("c", 1, &Outcome::Refused(String::new()));
        ledger
    }

    fn audit(a: Option<u64>, b: Option<u64>, c: Option<u64>) -> Audit {
        ledger().audit(&[("a", a), ("b", b), ("c", c)].map(|(k, v)| (k.to_owned(), v)).into())
    }

    #[test]
    fn acknowledged_or_unknown_versions_are_right() {
        assert!(audit(Some(2), Some(1), None).is_clean());
        assert!(audit(Some(2), Some(2), None).is_clean());
    }

    #[test]
    fn a_lost_write_is_caught() {
        assert_eq!(audit(None, Some(1), None).lost.len(), 1);
        assert_eq!(audit(Some(1), Some(1), None).lost.len(), 1);
        assert_eq!(audit(Some(2), None, None).lost.len(), 1);
    }

    #[test]
    fn a_refused_write_that_happened_and_a_version_from_nowhere_are_caught() {
        assert_eq!(audit(Some(2), Some(1), Some(1)).invented.len(), 1);
        assert_eq!(audit(Some(3), Some(1), None).invented.len(), 1);
    }

    #[test]
    fn a_key_nobody_read_is_no_pass() {
        assert!(!ledger().audit(&BTreeMap::new()).is_clean());
    }

    #[test]
    #[should_panic(expected = "after an unknown outcome")]
    fn a_key_is_not_written_after_an_unknown_outcome() {
        ledger().note("b", 3, &ok());
    }
}
