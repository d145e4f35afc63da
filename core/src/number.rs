//! Which number comes next: the allocator of VNIs and fresh `NetID`s.
//!
//! Numbers are given out in rising order from a mark, wrapping at 2^24. A released number is not used again before the
//! whole space has passed by: behind the mark that is so by itself; ahead of it the number rests until the mark has
//! gone over it once.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::vni::{FIRST, SPACE, Vni};

/// How many numbers there are to give out.
pub const USABLE: u32 = SPACE - FIRST;

/// How many rises at once make it jump at the most: half the space.
const MOST_JUMPS: u64 = 8;

/// How far the mark jumps at each rise of the epoch.
pub const JUMP: u32 = 1 << 20;

/// Every number is in use or rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("every VNI from 10 to 16777215 is in use")]
pub struct Exhausted;

/// The allocator's state, as the ledger keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Numbers {
    /// The number given out last; the search starts behind it.
    mark: u32,
    /// Numbers ahead of the mark that were released and are skipped once.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    resting: BTreeSet<u32>,
    /// Whether records that are in no ledger are being read as an import: set while the ledger is built anew from them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    importing: bool,
    /// What the last rises of the epoch passed by, until all who live have been born again: the mark before them, and the
    /// one after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    passed: Option<(u32, u32)>,
    /// Whether the epoch rose a moment ago: who had something before comes first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    settling: bool,
}

impl Default for Numbers {
    fn default() -> Self {
        Self { mark: FIRST - 1, resting: BTreeSet::new(), importing: false, passed: None, settling: false }
    }
}

/// The number behind this one, wrapping from 2^24 - 1 to 10.
const fn after(number: u32) -> u32 {
    if number < FIRST || number >= SPACE - 1 { FIRST } else { number + 1 }
}

/// How many numbers come before `number` when counting up from behind `mark`.
const fn ahead(mark: u32, number: u32) -> u32 {
    let next = after(mark);
    if number >= next { number - next } else { number + USABLE - next }
}

impl Numbers {
    /// The next number that is neither in use nor resting.
    pub fn take(&mut self, in_use: impl Fn(u32) -> bool) -> Result<Vni, Exhausted> {
        for _ in 0..USABLE {
            self.mark = after(self.mark);
            if !self.resting.remove(&self.mark) && !in_use(self.mark) {
                return Vni::namespace(self.mark).map_err(|_| Exhausted);
            }
        }
        Err(Exhausted)
    }

    /// Jumps once for each of these rises of the epoch, by half the space at the most.
    pub fn rise(&mut self, rises: u64) {
        if rises == 0 {
            return;
        }
        // Rises with nothing given out between them are one, up to half the space.
        let behind = match self.passed {
            Some((behind, to)) if to == self.mark && ahead(behind, to) < USABLE / 2 => behind,
            _ => self.mark,
        };
        // Sixteen jumps are nearly the whole space, and would end where they began.
        for _ in 0..rises.min(MOST_JUMPS) {
            self.jump(JUMP);
        }
        self.passed = Some((behind, self.mark));
        self.settling = true;
    }

    /// Whether the epoch rose and nobody has said since that all had their time to come back.
    pub const fn is_settling(&self) -> bool {
        self.settling
    }

    /// Says that who had something before the last rise had their time to come back.
    #[must_use]
    pub fn settled(self) -> Self {
        Self { settling: false, ..self }
    }

    /// Whether the last rises passed `number` by: what lives may have it, given out by a ledger that is lost.
    pub fn was_passed_by(&self, number: u32) -> bool {
        let inside = |(behind, to)| ahead(behind, number) <= ahead(behind, to);
        (FIRST..SPACE).contains(&number) && self.passed.is_some_and(inside)
    }

    /// Whether who lives may still have numbers that a rise passed by and that no ledger has.
    pub const fn may_be_reborn(&self) -> bool {
        self.passed.is_some()
    }

    /// Says that a ledger is lost that these numbers outlived: who lives may have any that was given out.
    pub fn outlive_ledger(&mut self) {
        if self.mark >= FIRST {
            self.passed = Some((FIRST - 1, self.mark));
        }
    }

    /// Says that all who live have their numbers again: nothing counts as passed by any more.
    #[must_use]
    pub fn all_reborn(self) -> Self {
        Self { passed: None, ..self }
    }

    /// Says that nobody uses `number` any more.
    pub fn release(&mut self, number: u32) {
        // Behind the mark it has nearly the whole space before its next turn; ahead of it, that turn is skipped.
        if (FIRST..SPACE).contains(&number) && ahead(self.mark, number) < USABLE / 2 {
            self.resting.insert(number);
        }
    }

    /// Moves the mark to `number` if it is behind it: numbers up to there may have been given out.
    pub fn pass(&mut self, number: u32) {
        self.mark = self.mark.max(number.min(SPACE - 1));
    }

    /// Whether an import goes on that began when there were numbers already.
    pub const fn is_importing(&self) -> bool {
        self.importing
    }

    /// The same numbers, at the beginning or behind the end of such an import.
    #[must_use]
    pub fn with_import(self, importing: bool) -> Self {
        Self { importing, ..self }
    }

    /// The number given out last, or passed by: the next one is beyond it.
    pub const fn mark(&self) -> u32 {
        self.mark
    }

    /// Moves the mark ahead, past numbers that a lost ledger may have given out (design, section 2: etcd restored).
    pub fn jump(&mut self, steps: u32) {
        self.mark = FIRST + (after(self.mark) - FIRST + steps % USABLE) % USABLE;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_rise_skip_what_is_used_and_wrap() {
        let mut numbers = Numbers::default();
        assert_eq!(numbers.take(|n| n == 10).unwrap().get(), 11);
        assert_eq!(numbers.take(|_| false).unwrap().get(), 12);
        numbers.mark = SPACE - 1;
        assert_eq!(numbers.take(|_| false).unwrap().get(), 10);
        assert_eq!(Numbers::default().take(|_| true), Err(Exhausted));
    }

    #[test]
    fn a_number_taken_by_hand_ahead_of_the_mark_rests_after_its_release() {
        let mut numbers = Numbers::default();
        numbers.release(11);
        assert_eq!(numbers.take(|_| false).unwrap().get(), 10);
        assert_eq!(numbers.take(|_| false).unwrap().get(), 12);
        assert!(numbers.resting.is_empty());
    }

    #[test]
    fn a_jump_wraps() {
        let mut numbers = Numbers { mark: SPACE - 2, ..Numbers::default() };
        numbers.jump(1 << 20);
        assert!((FIRST..SPACE).contains(&numbers.mark));
        assert_eq!(numbers.mark, FIRST + (1 << 20) - 1);
    }

    #[test]
    fn each_rise_of_the_epoch_is_a_jump() {
        let mut numbers = Numbers::default();
        numbers.rise(0);
        assert_eq!(numbers, Numbers::default());
        let mut jumped = numbers.clone();
        jumped.jump(JUMP);
        numbers.rise(1);
        assert_eq!(numbers.mark(), jumped.mark());
        numbers.rise(2);
        assert!(numbers.mark() >= 3 * JUMP, "{}", numbers.mark());
        numbers.rise(u64::MAX);
        assert!((FIRST..SPACE).contains(&numbers.mark()));
    }

    #[test]
    fn what_a_rise_passed_by_is_known_and_nothing_else() {
        let mut numbers = Numbers::default();
        assert_eq!(numbers.take(|_| false).unwrap().get(), 10);
        assert!(![10, 11].iter().any(|number| numbers.was_passed_by(*number)), "nothing was lost");
        numbers.rise(1);
        let first = numbers.mark();
        assert!(numbers.was_passed_by(11) && numbers.was_passed_by(first));
        assert!(![0, 9, 10, first + 1, SPACE - 1, SPACE, u32::MAX].iter().any(|number| numbers.was_passed_by(*number)));
        numbers.rise(1);
        assert!(numbers.was_passed_by(11) && numbers.was_passed_by(first + 1), "nothing was given out between");
        let given = numbers.take(|_| false).unwrap().get();
        numbers.rise(1);
        assert!(!numbers.was_passed_by(11) && !numbers.was_passed_by(given) && numbers.was_passed_by(given + 1));
        let text = serde_json::to_string(&numbers).unwrap();
        assert_eq!(serde_json::from_str::<Numbers>(&text).unwrap(), numbers);
        numbers.outlive_ledger();
        assert!(
            numbers.was_passed_by(10) && numbers.was_passed_by(given) && !numbers.was_passed_by(numbers.mark() + 1)
        );
        let mut blank = Numbers::default();
        blank.outlive_ledger();
        assert!(!blank.may_be_reborn(), "nothing was given out");
        let reborn = numbers.clone().all_reborn();
        assert!(numbers.may_be_reborn() && !reborn.may_be_reborn() && !reborn.was_passed_by(given + 1));
        assert_eq!(reborn.mark(), numbers.mark());
        assert!(numbers.is_settling() && !numbers.settled().is_settling() && !Numbers::default().is_settling());
    }

    proptest! {
        /// However often the epoch rises and wherever the mark is: passed by is what lies between.
        #[test]
        fn what_was_passed_by_lies_between_the_marks(start in FIRST - 1..SPACE, rises in 1..12u64, number in FIRST..SPACE) {
            let mut numbers = Numbers { mark: start, ..Numbers::default() };
            numbers.rise(rises);
            let distance = (u64::from(number) + u64::from(USABLE) - u64::from(after(start))) % u64::from(USABLE);
            prop_assert_eq!(numbers.was_passed_by(number), distance < rises.min(MOST_JUMPS) * u64::from(JUMP));
        }

        /// Against a naive model: a queue of all numbers in order of their last release.
        #[test]
        fn a_released_number_is_not_given_again_soon(start in FIRST - 1..SPACE, steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..200)) {
            let mut numbers = Numbers { mark: start, ..Numbers::default() };
            let (mut used, mut released) = (BTreeSet::new(), BTreeSet::new());
            for (give, index) in steps {
                if give || used.is_empty() {
                    let number = numbers.take(|n| used.contains(&n)).unwrap().get();
                    prop_assert!((FIRST..SPACE).contains(&number));
                    prop_assert!(!released.contains(&number), "{} came back at once", number);
                    prop_assert!(used.insert(number));
                } else {
                    let number = *index.get(&used.iter().copied().collect::<Vec<_>>());
                    used.remove(&number);
                    released.insert(number);
                    numbers.release(number);
                }
            }
        }
    }
}
