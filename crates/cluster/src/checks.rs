//! Which replica of a shard is wrong: the judgement over the notes they took of their checksums.
//!
//! Contract: a pure function of the notes and of who votes. A majority of the voters with one checksum is right, and every
//! replica with another is wrong, be it the leader, a follower or a learner. Without a majority nobody is called wrong, for
//! it may be those who seem to be right: then an operator decides. So by this judgement never more than a minority of the
//! voters is rebuilt.
//!
//! Left out: how notes travel, and what a wrong replica does.

use crate::{Note, ReplicaId};
use std::collections::{BTreeMap, BTreeSet};

/// What the notes at one index of the log say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Comparison {
    /// The index.
    pub index: u64,
    /// What they say.
    pub finding: Finding,
}

/// What a comparison finds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Finding {
    /// A majority of the voters has one checksum, and no replica is known to have another.
    Agreed,
    /// A majority of the voters has one checksum, and some replicas have others.
    Diverged {
        /// That of the majority.
        checksum: u64,
        /// Those that are wrong, with theirs.
        wrong: BTreeMap<ReplicaId, u64>,
    },
    /// Too few notes are known; more may come.
    Open,
    /// Whatever the others say, no checksum will have a majority: an operator has to decide.
    Split,
}

/// Compares what replicas noted, index by index, ascending. `notes` may hold replicas that do not vote (learners, and
/// those that left), and may lack some that do.
pub fn compare(
    voters: &BTreeSet<ReplicaId>,
    notes: &BTreeMap<ReplicaId, impl AsRef<[Note]>>,
) -> Vec<Comparison> {
    let mut by_index: BTreeMap<u64, BTreeMap<ReplicaId, u64>> = BTreeMap::new();
    for (&replica, notes) in notes {
        for note in notes.as_ref() {
            by_index.entry(note.index).or_default().insert(replica, note.checksum);
        }
    }
    let find = |(index, checksums)| Comparison { index, finding: find(voters, &checksums) };
    by_index.into_iter().map(find).collect()
}

fn find(voters: &BTreeSet<ReplicaId>, checksums: &BTreeMap<ReplicaId, u64>) -> Finding {
    let mut votes: BTreeMap<u64, usize> = BTreeMap::new();
    for (_, &checksum) in checksums.iter().filter(|(replica, _)| voters.contains(replica)) {
        *votes.entry(checksum).or_default() += 1;
    }
    let majority = voters.len() / 2 + 1;
    let silent = voters.len() - votes.values().sum::<usize>();
    match votes.into_iter().max_by_key(|&(_, count)| count) {
        Some((checksum, count)) if count >= majority => {
            let wrong: BTreeMap<_, _> = checksums
                .iter()
                .map(|(&replica, &is)| (replica, is))
                .filter(|&(_, is)| is != checksum)
                .collect();
            if wrong.is_empty() { Finding::Agreed } else { Finding::Diverged { checksum, wrong } }
        }
        Some((_, count)) if count + silent < majority => Finding::Split,
        _ => Finding::Open,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Notes at index 10 as `replica: checksum`.
    fn at_ten(voters: &[u64], checksums: &[(u64, u64)]) -> Finding {
        let voters = voters.iter().copied().map(ReplicaId).collect();
        let notes = checksums
            .iter()
            .map(|&(replica, checksum)| (ReplicaId(replica), vec![Note { index: 10, checksum }]))
            .collect();
        let mut compared = compare(&voters, &notes);
        let only = compared.pop().unwrap();
        assert!(only.index == 10 && compared.is_empty());
        only.finding
    }

    fn diverged(checksum: u64, wrong: &[(u64, u64)]) -> Finding {
        let wrong = wrong.iter().map(|&(replica, checksum)| (ReplicaId(replica), checksum)).collect();
        Finding::Diverged { checksum, wrong }
    }

    #[test]
    fn a_majority_of_the_voters_decides() {
        assert_eq!(at_ten(&[1, 2, 3], &[(1, 7), (2, 7), (3, 7)]), Finding::Agreed);
        assert_eq!(at_ten(&[1, 2, 3], &[(1, 7), (2, 7), (3, 8)]), diverged(7, &[(3, 8)]));
        assert_eq!(
            at_ten(&[1, 2, 3, 4, 5], &[(1, 9), (2, 7), (3, 8), (4, 7), (5, 7)]),
            diverged(7, &[(1, 9), (3, 8)])
        );
        assert_eq!(at_ten(&[1], &[(1, 7)]), Finding::Agreed);
    }

    /// Nothing says who leads: a leader in the minority is as wrong as anybody.
    #[test]
    fn a_leader_in_the_minority_is_wrong() {
        assert_eq!(at_ten(&[1, 2, 3], &[(1, 6), (2, 7), (3, 7)]), diverged(7, &[(1, 6)]));
    }

    #[test]
    fn half_is_no_majority() {
        assert_eq!(at_ten(&[1, 2], &[(1, 7), (2, 8)]), Finding::Split);
        assert_eq!(at_ten(&[1, 2, 3, 4], &[(1, 7), (2, 7), (3, 8), (4, 8)]), Finding::Split);
        assert_eq!(at_ten(&[1, 2, 3], &[(1, 6), (2, 7), (3, 8)]), Finding::Split);
        // Three of four are one.
        assert_eq!(at_ten(&[1, 2, 3, 4], &[(1, 7), (2, 7), (3, 7), (4, 8)]), diverged(7, &[(4, 8)]));
    }

    #[test]
    fn missing_notes_leave_it_open_until_they_cannot_matter() {
        assert_eq!(at_ten(&[1, 2, 3], &[(1, 7)]), Finding::Open);
        assert_eq!(at_ten(&[1, 2, 3], &[(1, 7), (2, 8)]), Finding::Open);
        assert_eq!(at_ten(&[1, 2, 3], &[(1, 7), (2, 7)]), Finding::Agreed);
        assert_eq!(at_ten(&[1, 2, 3, 4, 5], &[(1, 7), (2, 8), (3, 9), (4, 6)]), Finding::Split);
        assert_eq!(at_ten(&[1, 2, 3, 4, 5], &[(1, 7), (2, 8), (3, 7)]), Finding::Open);
    }

    #[test]
    fn learners_are_judged_and_do_not_judge() {
        assert_eq!(at_ten(&[1, 2, 3], &[(1, 7), (2, 7), (9, 8)]), diverged(7, &[(9, 8)]));
        assert_eq!(at_ten(&[1, 2, 3], &[(1, 7), (8, 7), (9, 7)]), Finding::Open);
        assert_eq!(at_ten(&[1, 2, 3], &[(1, 7), (2, 8), (3, 9), (8, 7), (9, 7)]), Finding::Split);
        assert_eq!(at_ten(&[], &[(9, 7)]), Finding::Open);
    }

    #[test]
    fn each_index_is_judged_for_itself() {
        let note = |index, checksum| Note { index, checksum };
        let notes = BTreeMap::from([
            (ReplicaId(1), vec![note(10, 1), note(20, 2), note(30, 3)]),
            (ReplicaId(2), vec![note(20, 2), note(30, 4)]),
            (ReplicaId(3), vec![note(10, 1), note(30, 3)]),
        ]);
        let voters = BTreeSet::from([1, 2, 3].map(ReplicaId));
        let found: Vec<_> = compare(&voters, &notes).into_iter().map(|at| (at.index, at.finding)).collect();
        assert_eq!(found, [(10, Finding::Agreed), (20, Finding::Agreed), (30, diverged(3, &[(2, 4)]))]);
        assert_eq!(compare(&voters, &BTreeMap::<ReplicaId, Vec<Note>>::new()), []);
    }
}
