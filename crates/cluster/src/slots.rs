//! Sets of hash slots.

use kvorum_keyspace::{SLOTS, Slot};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::{fmt, ops::RangeInclusive, str::FromStr};

/// A set of hash slots as ascending ranges that neither touch nor overlap; equal sets have equal ranges.
///
/// Shown as CLUSTER NODES shows it (`0-6827 10923`), in JSON a list of ranges (`["0-6827", "10923"]`).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SlotSet {
    ranges: Vec<(u16, u16)>,
}

impl SlotSet {
    /// No slot.
    pub const EMPTY: SlotSet = SlotSet { ranges: Vec::new() };

    /// All 16384 slots.
    pub fn all() -> SlotSet {
        SlotSet { ranges: vec![(0, SLOTS - 1)] }
    }

    /// Adds the slots from `range.start()` to `range.end()`; nothing when the start is beyond the end.
    pub fn insert(&mut self, range: RangeInclusive<Slot>) {
        if range.start() > range.end() {
            return;
        }
        let (mut first, mut last) = (range.start().number(), range.end().number());
        // Ranges that touch the new one become part of it.
        let from = self.ranges.partition_point(|&(_, end)| end + 1 < first);
        let to = self.ranges.partition_point(|&(start, _)| start <= last + 1);
        if from < to {
            first = first.min(self.ranges[from].0);
            last = last.max(self.ranges[to - 1].1);
        }
        self.ranges.splice(from..to, [(first, last)]);
    }

    /// Whether the slot is in the set.
    pub fn contains(&self, slot: Slot) -> bool {
        let after = self.ranges.partition_point(|&(start, _)| start <= slot.number());
        after > 0 && slot.number() <= self.ranges[after - 1].1
    }

    /// Number of slots.
    pub fn len(&self) -> usize {
        self.ranges.iter().map(|&(first, last)| usize::from(last - first) + 1).sum()
    }

    /// Whether there is no slot.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The ranges, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = RangeInclusive<Slot>> + '_ {
        self.ranges.iter().map(|&(first, last)| slot(first)..=slot(last))
    }

    /// The slots, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Slot> + '_ {
        self.ranges.iter().flat_map(|&(first, last)| (first..=last).map(slot))
    }
}

fn slot(number: u16) -> Slot {
    Slot::new(number).expect("a set is made of slots")
}

impl From<RangeInclusive<Slot>> for SlotSet {
    fn from(range: RangeInclusive<Slot>) -> SlotSet {
        let mut set = SlotSet::EMPTY;
        set.insert(range);
        set
    }
}

impl FromIterator<Slot> for SlotSet {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> SlotSet {
        let mut set = SlotSet::EMPTY;
        slots.into_iter().for_each(|slot| set.insert(slot..=slot));
        set
    }
}

impl fmt::Display for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, &(first, last)) in self.ranges.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            if first == last { write!(f, "{space}{first}")? } else { write!(f, "{space}{first}-{last}")? }
        }
        Ok(())
    }
}

/// Text that is no set of slots.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("'{0}' is no range of slots between 0 and 16383")]
pub struct ParseSlotsError(String);

impl FromStr for SlotSet {
    type Err = ParseSlotsError;

    /// Ranges (`0-5460`) and single slots, separated by blanks, in any order.
    fn from_str(text: &str) -> Result<SlotSet, ParseSlotsError> {
        let mut set = SlotSet::EMPTY;
        for range in text.split_ascii_whitespace() {
            set.insert(parse_range(range).ok_or_else(|| ParseSlotsError(range.to_owned()))?);
        }
        Ok(set)
    }
}

fn parse_range(text: &str) -> Option<RangeInclusive<Slot>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (Slot::new(first.parse().ok()?)?, Slot::new(last.parse().ok()?)?);
    (first <= last).then_some(first..=last)
}

impl Serialize for SlotSet {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.to_string().split_ascii_whitespace())
    }
}

impl<'de> Deserialize<'de> for SlotSet {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<SlotSet, D::Error> {
        let mut set = SlotSet::EMPTY;
        for range in Vec::<String>::deserialize(from)? {
            set.insert(parse_range(&range).ok_or_else(|| D::Error::custom(ParseSlotsError(range)))?);
        }
        Ok(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn text_and_json() {
        let set: SlotSet = "10923-12288 5 0-4 7 16383".parse().unwrap();
        assert_eq!(set.to_string(), "0-5 7 10923-12288 16383");
        assert_eq!(serde_json::to_string(&set).unwrap(), r#"["0-5","7","10923-12288","16383"]"#);
        assert_eq!(SlotSet::all().to_string(), "0-16383");
        for wrong in ["16384", "5-4", "-1", "a", "1-", "0-16384", "1-2-3"] {
            assert!(wrong.parse::<SlotSet>().is_err(), "{wrong}");
            assert!(serde_json::from_str::<SlotSet>(&format!("[\"{wrong}\"]")).is_err(), "{wrong}");
        }
    }

    proptest! {
        /// Whatever is inserted in whatever order, the set behaves like a set of numbers, and is canonical.
        #[test]
        fn behaves_like_a_set(ranges in prop::collection::vec((0u16..SLOTS, 0u16..40), 0..30)) {
            let mut set = SlotSet::EMPTY;
            let mut model = BTreeSet::new();
            for (first, more) in ranges {
                let last = (first + more).min(SLOTS - 1);
                set.insert(slot(first)..=slot(last));
                model.extend(first..=last);
            }
            prop_assert_eq!(set.len(), model.len());
            prop_assert_eq!(set.iter().map(Slot::number).collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            for number in 0..SLOTS {
                prop_assert_eq!(set.contains(slot(number)), model.contains(&number));
            }
            prop_assert_eq!(&model.iter().map(|&number| slot(number)).collect::<SlotSet>(), &set);
            prop_assert_eq!(&set.to_string().parse::<SlotSet>().unwrap(), &set);
            prop_assert_eq!(&serde_json::from_str::<SlotSet>(&serde_json::to_string(&set).unwrap()).unwrap(), &set);
        }
    }
}
