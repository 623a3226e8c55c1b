//! Linearizability of registers.
//!
//! Registers are independent, so each key is judged for itself (linearizability is local: Herlihy and Wing). Per
//! key it is the search of Wing and Gong with Lowe's memory of (operations done, state) pairs: take any operation
//! that started before the first unfinished one ended, see whether the register allows it, go on, and come back
//! when stuck. Many keys with few operations each make this fast; one key with many unknown outcomes makes it
//! explode, and then the verdict is [`Verdict::Undecided`].
//!
//! Operations that certainly did not run are left out, and so are reads with unknown outcome. A write with unknown
//! outcome may take effect at any time after its start, or never; when no read returned its value it is left out too, since "never" or "after
//! everything" fits whatever the others do. This needs the values written to one key to differ, and that is checked.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::history::{Action, Ending, Operation};
use crate::random::Random;

/// Steps of the search that one key may take.
pub const BUDGET_PER_KEY: u64 = 5_000_000;

/// What the judge says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Every key has an order that explains all its operations.
    Linearizable,
    /// This key has none.
    Violated {
        /// The key.
        key: u64,
        /// The first operation that no order could reach, and what the register held in the longest order found.
        why: String,
    },
    /// The search of these keys was given up. This is no pass.
    Undecided {
        /// The keys.
        keys: Vec<u64>,
    },
}

/// Judges a history. All registers start without a value.
///
/// # Panics
/// When two writes to one key have the same value: such a history proves less than it seems to.
pub fn check(history: &[Operation]) -> Verdict {
    check_within(history, BUDGET_PER_KEY)
}

/// As [`check`], with another budget per key.
///
/// # Panics
/// As [`check`].
pub fn check_within(history: &[Operation], budget: u64) -> Verdict {
    let mut keys: BTreeMap<u64, Vec<&Operation>> = BTreeMap::new();
    for operation in history {
        keys.entry(operation.key).or_default().push(operation);
    }
    let mut undecided = Vec::new();
    for (key, operations) in keys {
        match Search::new(&relevant(key, &operations)).run(budget) {
            Found::Order => {}
            Found::NoOrder(why) => return Verdict::Violated { key, why },
            Found::Nothing => undecided.push(key),
        }
    }
    if undecided.is_empty() { Verdict::Linearizable } else { Verdict::Undecided { keys: undecided } }
}

/// Share of operations with unknown outcome, in percent.
pub fn unknown_percent(history: &[Operation]) -> f64 {
    let unknown = history.iter().filter(|operation| operation.ending == Ending::Info).count();
    100.0 * unknown as f64 / history.len().max(1) as f64
}

/// The same history with one read made stale: it returns a value that was certainly overwritten before the read
/// started. `None` when the history has no read that could be (then it would prove nothing).
pub fn with_a_stale_read(history: &[Operation], random: &mut Random) -> Option<(Vec<Operation>, usize)> {
    let candidates: Vec<(usize, u64)> = history
        .iter()
        .enumerate()
        .filter(|(_, read)| read.action == Action::Read && matches!(read.ending, Ending::Ok(Some(_))))
        .filter_map(|(at, read)| Some((at, certainly_overwritten(history, read)?)))
        .collect();
    if candidates.is_empty() {
        return None;
    }
    let (at, stale) = candidates[random.below(candidates.len() as u64) as usize];
    let mut changed = history.to_vec();
    changed[at].ending = Ending::Ok(Some(stale));
    Some((changed, at))
}

/// A value that a write set, which another write replaced wholly later, all before `read` started.
fn certainly_overwritten(history: &[Operation], read: &Operation) -> Option<u64> {
    let mut writes: Vec<&Operation> = history
        .iter()
        .filter(|w| w.key == read.key && w.end_ns < read.start_ns && matches!(w.ending, Ending::Ok(_)))
        .filter(|w| matches!(w.action, Action::Write(_)))
        .collect();
    writes.sort_by_key(|w| w.start_ns);
    let last = writes.last()?;
    let old = writes.iter().rev().find(|w| w.end_ns < last.start_ns)?;
    match old.action {
        Action::Write(value) => Some(value),
        Action::Read => None,
    }
}

fn relevant(key: u64, operations: &[&Operation]) -> Vec<Operation> {
    let mut written = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for operation in operations {
        match (operation.action, operation.ending) {
            (Action::Write(value), _) => {
                assert!(written.insert(value), "key {key}: {value} was written twice")
            }
            (Action::Read, Ending::Ok(Some(value))) => {
                seen.insert(value);
            }
            (Action::Read, _) => {}
        }
    }
    let mut kept: Vec<Operation> = operations
        .iter()
        .filter(|operation| match (operation.action, operation.ending) {
            (_, Ending::Fail) | (Action::Read, Ending::Info) => false,
            (Action::Write(value), Ending::Info) => seen.contains(&value),
            (_, Ending::Ok(_)) => true,
        })
        .map(|&operation| operation.clone())
        .collect();
    kept.sort_by_key(|operation| operation.start_ns);
    kept
}

enum Found {
    Order,
    NoOrder(String),
    Nothing,
}

/// An event of the list that the search walks: an operation starts or ends.
struct Event {
    operation: usize,
    ends: bool,
    /// Where the operation's end stands in the list; only for starts.
    end_at: usize,
}

/// The search over the operations of one key. The events hang in a doubly linked list, from which the two events
/// of an operation are lifted while it counts as done.
struct Search<'a> {
    operations: &'a [Operation],
    events: Vec<Event>,
    /// The list; index `events.len()` is its head.
    next: Vec<usize>,
    previous: Vec<usize>,
    done: Vec<u64>,
    /// Operations that must be in the order and are not yet.
    missing: usize,
    state: Option<u64>,
}

impl<'a> Search<'a> {
    fn new(operations: &'a [Operation]) -> Search<'a> {
        let mut order: Vec<(u64, bool, usize)> = Vec::new();
        for (at, operation) in operations.iter().enumerate() {
            let end = if operation.ending == Ending::Info { u64::MAX } else { operation.end_ns };
            order.push((operation.start_ns, false, at));
            order.push((end, true, at));
        }
        // At equal times starts come first: operations that touch may be concurrent.
        order.sort_unstable();
        let mut ends = vec![0; operations.len()];
        for (place, (_, is_end, at)) in order.iter().enumerate() {
            if *is_end {
                ends[*at] = place;
            }
        }
        let events: Vec<Event> = order
            .iter()
            .map(|&(_, is_end, at)| Event { operation: at, ends: is_end, end_at: ends[at] })
            .collect();
        let head = events.len();
        let mut next: Vec<usize> = (1..=head).collect();
        next.push(0);
        let mut previous = vec![head];
        previous.extend(0..head);
        Search {
            operations,
            next,
            previous,
            done: vec![0; operations.len().div_ceil(64)],
            missing: operations.iter().filter(|operation| operation.ending != Ending::Info).count(),
            state: None,
            events,
        }
    }

    fn run(mut self, budget: u64) -> Found {
        let head = self.events.len();
        let mut been = HashSet::new();
        let mut taken: Vec<(usize, Option<u64>)> = Vec::new();
        let mut furthest = (0, 0, None);
        let mut at = self.next[head];
        for _ in 0..budget {
            if self.missing == 0 {
                return Found::Order;
            }
            if at != head && !self.events[at].ends {
                let operation = self.events[at].operation;
                if let Some(state) = allowed(self.state, &self.operations[operation]) {
                    self.mark(operation);
                    if been.insert((self.done.clone(), state)) {
                        taken.push((at, self.state));
                        self.state = state;
                        self.lift(at);
                        at = self.next[head];
                        continue;
                    }
                    self.unmark(operation);
                }
                at = self.next[at];
                continue;
            }
            // The operation that ends here could not be put before its end.
            if at != head && taken.len() >= furthest.0 {
                furthest = (taken.len(), self.events[at].operation, self.state);
            }
            let Some((back, state)) = taken.pop() else {
                let (_, operation, state) = furthest;
                let stuck = &self.operations[operation];
                return Found::NoOrder(format!(
                    "{stuck:?} fits no order; the longest order leaves the register at {state:?}"
                ));
            };
            self.state = state;
            self.unmark(self.events[back].operation);
            self.put_back(back);
            at = self.next[back];
        }
        Found::Nothing
    }

    fn mark(&mut self, operation: usize) {
        self.done[operation / 64] |= 1 << (operation % 64);
        self.missing -= usize::from(self.operations[operation].ending != Ending::Info);
    }

    fn unmark(&mut self, operation: usize) {
        self.done[operation / 64] &= !(1 << (operation % 64));
        self.missing += usize::from(self.operations[operation].ending != Ending::Info);
    }

    fn lift(&mut self, start: usize) {
        for event in [start, self.events[start].end_at] {
            let (before, after) = (self.previous[event], self.next[event]);
            self.next[before] = after;
            self.previous[after] = before;
        }
    }

    fn put_back(&mut self, start: usize) {
        for event in [self.events[start].end_at, start] {
            let (before, after) = (self.previous[event], self.next[event]);
            self.next[before] = event;
            self.previous[after] = event;
        }
    }
}

/// The register after the operation, if it may happen now.
fn allowed(state: Option<u64>, operation: &Operation) -> Option<Option<u64>> {
    match (operation.action, operation.ending) {
        (Action::Write(value), _) => Some(Some(value)),
        (Action::Read, Ending::Ok(seen)) => (seen == state).then_some(state),
        (Action::Read, _) => Some(state),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(client: u32, action: Action, start_ns: u64, end_ns: u64, ending: Ending) -> Operation {
        Operation { client, key: 1, action, start_ns, end_ns, ending }
    }

    fn write(value: u64, start: u64, end: u64) -> Operation {
        op(0, Action::Write(value), start, end, Ending::Ok(None))
    }

    fn maybe(value: u64, start: u64, end: u64) -> Operation {
        op(0, Action::Write(value), start, end, Ending::Info)
    }

    fn read(seen: Option<u64>, start: u64, end: u64) -> Operation {
        op(1, Action::Read, start, end, Ending::Ok(seen))
    }

    fn fine(history: &[Operation]) -> bool {
        match check(history) {
            Verdict::Linearizable => true,
            Verdict::Violated { .. } => false,
            Verdict::Undecided { .. } => panic!("undecided"),
        }
    }

    /// A correct concurrent history: operations take effect at a random moment between start and end.
    fn correct(count: usize, clients: usize, keys: u64, unknown_percent: u64, seed: u64) -> Vec<Operation> {
        let mut random = Random::new(seed);
        let mut free = vec![0; clients];
        let mut planned = Vec::new();
        for value in 0..count as u64 {
            let client = (0..clients).min_by_key(|&c| free[c]).unwrap();
            let start = free[client] + 1 + random.below(20);
            let effect = start + 1 + random.below(50);
            let end = effect + 1 + random.below(50);
            free[client] = end;
            let action = if random.chance(60) { Action::Read } else { Action::Write(value) };
            planned.push((effect, client, random.below(keys), action, start, end));
        }
        planned.sort_unstable_by_key(|p| p.0);
        let mut registers = BTreeMap::new();
        let mut history = Vec::new();
        for (_, client, key, action, start_ns, end_ns) in planned {
            let unknown = random.chance(unknown_percent);
            let ending = match action {
                Action::Read => Ending::Ok(registers.get(&key).copied()),
                Action::Write(value) => {
                    if !unknown || random.chance(50) {
                        registers.insert(key, value);
                    }
                    Ending::Ok(None)
                }
            };
            let ending = if unknown { Ending::Info } else { ending };
            history.push(Operation { client: client as u32, key, action, start_ns, end_ns, ending });
        }
        history
    }

    #[test]
    fn reads_may_return_either_value_of_an_overlapping_write() {
        assert!(fine(&[write(1, 0, 10), read(None, 5, 6)]));
        assert!(fine(&[write(1, 0, 10), read(Some(1), 5, 6)]));
        assert!(fine(&[write(1, 0, 10), read(None, 5, 6), read(Some(1), 7, 8)]));
    }

    #[test]
    fn a_stale_read_is_caught() {
        assert!(!fine(&[write(1, 0, 1), write(2, 2, 3), read(Some(1), 4, 5)]));
        assert!(!fine(&[write(1, 0, 1), read(None, 2, 3)]));
    }

    #[test]
    fn a_read_that_goes_back_is_caught_even_while_the_write_is_open() {
        assert!(!fine(&[write(1, 0, 10), read(Some(1), 2, 3), read(None, 4, 5)]));
    }

    #[test]
    fn a_value_from_nowhere_is_caught() {
        assert!(!fine(&[write(1, 0, 1), read(Some(9), 2, 3)]));
    }

    #[test]
    fn a_refused_write_that_is_seen_is_caught() {
        assert!(!fine(&[op(0, Action::Write(1), 0, 1, Ending::Fail), read(Some(1), 2, 3)]));
    }

    #[test]
    fn an_unknown_write_may_happen_late_or_never_but_only_once() {
        assert!(fine(&[maybe(1, 0, 1), read(None, 2, 3)]));
        assert!(fine(&[maybe(1, 0, 1), read(None, 2, 3), read(Some(1), 4, 5), read(Some(1), 6, 7)]));
        assert!(!fine(&[maybe(1, 0, 1), read(Some(1), 2, 3), read(None, 4, 5)]));
        assert!(!fine(&[maybe(1, 0, 1), read(Some(1), 2, 3), write(2, 4, 5), read(Some(1), 6, 7)]));
    }

    #[test]
    fn a_lost_acknowledged_write_is_caught() {
        assert!(!fine(&[write(1, 0, 1), write(2, 2, 3), read(Some(2), 4, 5), read(Some(1), 6, 7)]));
    }

    #[test]
    fn split_brain_is_caught() {
        // Two leaders at once: each client sees its own writes alone.
        let history =
            [write(1, 0, 1), write(2, 0, 1), read(Some(1), 2, 3), read(Some(2), 2, 3), read(Some(1), 4, 5)];
        assert!(!fine(&history));
    }

    #[test]
    fn a_search_without_budget_is_undecided() {
        let history = correct(200, 10, 1, 0, 1);
        assert_eq!(check_within(&history, 10), Verdict::Undecided { keys: vec![0] });
    }

    #[test]
    fn correct_histories_pass_and_injected_stale_reads_do_not() {
        for seed in 0..10 {
            let history = correct(5000, 12, 100, 1, seed);
            assert_eq!(check(&history), Verdict::Linearizable, "seed {seed}");
            let (stale, at) = with_a_stale_read(&history, &mut Random::new(seed)).unwrap();
            assert!(matches!(check(&stale), Verdict::Violated { .. }), "seed {seed}: {:?}", stale[at]);
        }
    }

    /// The search against plain enumeration of all orders, on histories small enough for that.
    #[test]
    fn the_search_agrees_with_trying_every_order() {
        fn explained(state: Option<u64>, rest: &[Operation]) -> bool {
            if rest.iter().all(|o| o.ending == Ending::Info) {
                return true;
            }
            let first_end =
                rest.iter().filter(|o| o.ending != Ending::Info).map(|o| o.end_ns).min().unwrap_or(u64::MAX);
            (0..rest.len()).filter(|&i| rest[i].start_ns <= first_end).any(|i| {
                allowed(state, &rest[i]).is_some_and(|state| {
                    let mut rest = rest.to_vec();
                    rest.remove(i);
                    explained(state, &rest)
                })
            })
        }
        let (mut good, mut bad) = (0, 0);
        for seed in 0..3000 {
            let mut random = Random::new(seed);
            let mut history = correct(7, 3, 1, 10, seed);
            for operation in &mut history {
                operation.key = 1;
                if operation.action == Action::Read
                    && matches!(operation.ending, Ending::Ok(_))
                    && random.chance(30)
                {
                    operation.ending = Ending::Ok(random.chance(80).then(|| random.below(7)));
                }
            }
            let kept: Vec<Operation> = history
                .iter()
                .filter(|o| !(o.action == Action::Read && o.ending == Ending::Info))
                .cloned()
                .collect();
            let expected = explained(None, &kept);
            assert_eq!(fine(&history), expected, "seed {seed}: {history:#?}");
            if expected { good += 1 } else { bad += 1 }
        }
        assert!(good > 200 && bad > 200, "{good} good, {bad} bad");
    }
}
