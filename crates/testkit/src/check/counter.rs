//! Does a counter count each increment once?
//!
//! With `n` acknowledged and `m` unknown increments of one, the value lies between `n` and `n + m`. More can be said
//! of the replies: no two increments return the same number, and one that started after another had returned
//! returns a greater one. A command that ran twice, a reply that went to the wrong client and a counter that went
//! back break one of these.

use std::collections::BTreeMap;

/// An acknowledged increment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Increment {
    /// When it was sent.
    pub start_ns: u64,
    /// When its reply came.
    pub end_ns: u64,
    /// The reply.
    pub value: u64,
}

/// Judges a counter that started at 0 and was read as `last` after everything else had ended.
///
/// # Errors
/// What is wrong, in words.
pub fn check(acknowledged: &[Increment], unknown: u64, last: u64) -> Result<(), String> {
    let count = acknowledged.len() as u64;
    if last < count {
        return Err(format!(
            "{count} increments were acknowledged, but the counter is {last}: some are lost"
        ));
    }
    if last > count + unknown {
        return Err(format!("the counter is {last}, but only {count} + {unknown} increments were sent"));
    }
    let mut values = BTreeMap::new();
    for increment in acknowledged {
        if let Some(other) = values.insert(increment.value, increment) {
            return Err(format!("two increments returned {}: {other:?} and {increment:?}", increment.value));
        }
        if increment.value == 0 || increment.value > last {
            return Err(format!("{increment:?} is not in 1..={last}"));
        }
    }
    // By value; each must have started before every later one had ended.
    let mut latest_start: Option<&Increment> = None;
    for increment in values.into_values() {
        if let Some(before) = latest_start.filter(|before| increment.end_ns < before.start_ns) {
            return Err(format!("{before:?} started after {increment:?} had returned a greater number"));
        }
        if latest_start.is_none_or(|before| before.start_ns < increment.start_ns) {
            latest_start = Some(increment);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start_ns: u64, end_ns: u64, value: u64) -> Increment {
        Increment { start_ns, end_ns, value }
    }

    #[test]
    fn counting_right_is_right() {
        check(&[at(0, 9, 2), at(1, 5, 1), at(10, 12, 3)], 0, 3).unwrap();
        check(&[at(0, 9, 1), at(10, 12, 3)], 1, 3).unwrap();
        check(&[at(0, 9, 1)], 1, 1).unwrap();
        check(&[], 0, 0).unwrap();
    }

    #[test]
    fn a_lost_increment_is_caught() {
        assert!(check(&[at(0, 1, 1), at(2, 3, 2)], 0, 1).unwrap_err().contains("lost"));
    }

    #[test]
    fn an_increment_that_ran_twice_is_caught() {
        assert!(check(&[at(0, 1, 1), at(2, 3, 3)], 0, 3).unwrap_err().contains("only 2"));
    }

    #[test]
    fn the_same_number_twice_is_caught() {
        assert!(check(&[at(0, 1, 1), at(2, 3, 1)], 0, 2).unwrap_err().contains("two increments"));
    }

    #[test]
    fn a_counter_that_went_back_is_caught() {
        let error = check(&[at(0, 1, 2), at(2, 3, 1)], 0, 2).unwrap_err();
        assert!(error.contains("greater number"), "{error}");
    }
}
