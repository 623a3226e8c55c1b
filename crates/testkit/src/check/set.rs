//! Is everything there that was put in, and nothing else?
//!
//! [`Elements`] remembers of unique elements whether they were added and, of some, whether they were removed again. Afterwards the whole set
//! is read. An acknowledged element that nobody asked to remove is there, once; one whose removal was acknowledged is not. An element
//! whose addition or removal has an unknown outcome may be there or not.

use std::collections::BTreeMap;
use std::fmt;

use crate::client::Outcome;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Told {
    Done,
    Refused,
    Unknown,
}

impl Told {
    fn by(outcome: &Outcome) -> Told {
        match outcome {
            Outcome::Ok(value) if value.error().is_none() => Told::Done,
            Outcome::Ok(_) | Outcome::Refused(_) => Told::Refused,
            Outcome::Unknown(_) => Told::Unknown,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Element {
    added: Told,
    removed: Option<Told>,
}

/// What was asked for, and what was answered.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Elements {
    elements: BTreeMap<String, Element>,
}

impl Elements {
    /// Notes the outcome of adding an element.
    ///
    /// # Panics
    /// When it was added before: elements are unique.
    pub fn note_added(&mut self, element: &str, outcome: &Outcome) {
        let element_now = Element { added: Told::by(outcome), removed: None };
        let before = self.elements.insert(element.to_owned(), element_now);
        assert!(before.is_none(), "{element} was added twice");
    }

    /// Notes the outcome of removing an element.
    ///
    /// # Panics
    /// When its addition was not acknowledged, or it was removed before: nothing could be said about it then.
    pub fn note_removed(&mut self, element: &str, outcome: &Outcome) {
        let known = self.elements.get_mut(element).filter(|known| known.added == Told::Done);
        let known = known.unwrap_or_else(|| panic!("{element} was not there to be removed"));
        assert!(known.removed.is_none(), "{element} was removed twice");
        known.removed = Some(Told::by(outcome));
    }

    /// Takes over the elements of another; none may be in both.
    ///
    /// # Panics
    /// When one is.
    pub fn absorb(&mut self, other: Elements) {
        for (name, element) in other.elements {
            assert!(self.elements.insert(name, element).is_none(), "an element has two owners");
        }
    }

    /// Number of elements whose addition was acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.elements.values().filter(|element| element.added == Told::Done).count()
    }

    /// Judges the whole set as it was read at the end, an element as often as it was found.
    pub fn judge<'a>(&self, found: impl IntoIterator<Item = &'a str>) -> Judgement {
        let mut times: BTreeMap<&str, u32> = BTreeMap::new();
        found.into_iter().for_each(|element| *times.entry(element).or_default() += 1);
        let mut judgement = Judgement { elements: self.elements.len(), ..Judgement::default() };
        for (name, element) in &self.elements {
            let is_there = times.contains_key(name.as_str());
            match (element.added, element.removed) {
                (Told::Done, None | Some(Told::Refused)) if !is_there => judgement.lost.push(name.clone()),
                (Told::Done, Some(Told::Done)) if is_there => judgement.resurrected.push(name.clone()),
                (Told::Refused, _) if is_there => judgement.invented.push(name.clone()),
                _ => {}
            }
        }
        for (name, times) in times {
            if !self.elements.contains_key(name) {
                judgement.invented.push(name.to_owned());
            }
            if times > 1 {
                judgement.doubled.push(name.to_owned());
            }
        }
        judgement
    }
}

/// What is wrong with a set.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Judgement {
    /// Elements looked at.
    pub elements: usize,
    /// Acknowledged, not removed, and gone.
    pub lost: Vec<String>,
    /// Removed, which was acknowledged, and there.
    pub resurrected: Vec<String>,
    /// There, though refused or never asked for.
    pub invented: Vec<String>,
    /// There more than once.
    pub doubled: Vec<String>,
}

impl Judgement {
    /// Whether everything is as it should be.
    pub fn is_clean(&self) -> bool {
        [&self.lost, &self.resurrected, &self.invented, &self.doubled].iter().all(|wrong| wrong.is_empty())
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Judgement { elements, lost, resurrected, invented, doubled } = self;
        write!(f, "{elements} elements")?;
        for (what, which) in
            [("lost", lost), ("resurrected", resurrected), ("invented", invented), ("doubled", doubled)]
        {
            write!(f, ", {} {what}", which.len())?;
            if !which.is_empty() {
                write!(f, " ({})", which[..which.len().min(5)].join(", "))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::Value;

    /// Acknowledged: kept, gone (removed), maybe-gone, still (removal refused). Unknown: perhaps. Refused: never.
    fn elements() -> Elements {
        let (ok, refused) = (Outcome::Ok(Value::ok()), Outcome::Refused(String::new()));
        let unknown = Outcome::Unknown(String::new());
        let mut elements = Elements::default();
        for name in ["kept", "gone", "maybe-gone", "still"] {
            elements.note_added(name, &ok);
        }
        elements.note_added("perhaps", &unknown);
        elements.note_added("never", &refused);
        elements.note_removed("gone", &ok);
        elements.note_removed("maybe-gone", &unknown);
        elements.note_removed("still", &refused);
        elements
    }

    #[test]
    fn unknown_outcomes_may_be_there_or_not() {
        for found in [
            &["kept", "still"][..],
            &["kept", "still", "maybe-gone"],
            &["kept", "still", "perhaps"],
            &["perhaps", "still", "maybe-gone", "kept"],
        ] {
            let judgement = elements().judge(found.iter().copied());
            assert!(judgement.is_clean(), "{judgement}");
        }
    }

    #[test]
    fn a_lost_element_is_caught() {
        assert_eq!(elements().judge(["still"]).lost, ["kept"]);
        assert_eq!(elements().judge(["kept"]).lost, ["still"], "its removal was refused");
    }

    #[test]
    fn a_removed_element_that_is_back_is_caught() {
        assert_eq!(elements().judge(["kept", "still", "gone"]).resurrected, ["gone"]);
    }

    #[test]
    fn a_refused_element_and_one_from_nowhere_are_caught() {
        assert_eq!(elements().judge(["kept", "still", "never"]).invented, ["never"]);
        assert_eq!(elements().judge(["kept", "still", "stranger"]).invented, ["stranger"]);
    }

    #[test]
    fn an_element_that_is_there_twice_is_caught() {
        assert_eq!(elements().judge(["kept", "still", "kept"]).doubled, ["kept"]);
    }

    #[test]
    #[should_panic(expected = "not there to be removed")]
    fn only_what_is_certainly_there_is_removed() {
        let unknown = Outcome::Unknown(String::new());
        elements().note_removed("perhaps", &unknown);
    }
}
