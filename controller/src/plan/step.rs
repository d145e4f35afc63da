//! One transaction of the leader, before it is fenced and sent.
//!
//! Promises: what is read is compared, what is written is written once, and nothing grows beyond what etcd takes.

use std::collections::BTreeMap;

use bulkhead_store::{Compare, Fence, Txn};

use super::note::Note;

/// Compares that a step may hold: etcd takes 128, one of which is the fence.
pub const MAX_COMPARES: usize = 127;
/// Writes that a step may hold.
pub const MAX_WRITES: usize = 128;
/// Bytes of keys and values that a step may hold; etcd takes 1.5 MiB with everything around them.
pub const MAX_BYTES: usize = 1 << 20;

/// A transaction: what must still be as it was read, and what is then written.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Step {
    /// Mod revisions by key; 0 means absent.
    compares: BTreeMap<String, i64>,
    /// Values by key; none deletes it.
    writes: BTreeMap<String, Option<Vec<u8>>>,
    notes: Vec<Note>,
}

impl Step {
    /// The key must still have this mod revision; 0 means that it must be absent.
    pub fn expect(&mut self, key: impl Into<String>, revision: i64) {
        self.compares.insert(key.into(), revision);
    }

    /// Writes a key.
    pub fn put(&mut self, key: impl Into<String>, value: Vec<u8>) {
        self.writes.insert(key.into(), Some(value));
    }

    /// Deletes a key.
    pub fn delete(&mut self, key: impl Into<String>) {
        self.writes.insert(key.into(), None);
    }

    /// Adds what is to be logged once it is done.
    pub fn note(&mut self, note: Note) {
        self.notes.push(note);
    }

    /// Whether it writes nothing.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// What it writes.
    pub const fn writes(&self) -> &BTreeMap<String, Option<Vec<u8>>> {
        &self.writes
    }

    /// The keys that it compares.
    pub fn compared(&self) -> impl Iterator<Item = &str> {
        self.compares.keys().map(String::as_str)
    }

    /// What is to be logged.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// Takes `later` in, which was planned on the state that this step leaves; gives false and changes nothing if the
    /// two do not fit one transaction.
    pub fn absorb(&mut self, later: &Self) -> bool {
        let compares = self.compares.len() + count_new(&self.compares, &later.compares);
        let writes = self.writes.len() + count_new(&self.writes, &later.writes);
        let fits = compares <= MAX_COMPARES && writes <= MAX_WRITES && self.bytes() + later.bytes() <= MAX_BYTES;
        // One that is too large by itself must still be tried, or it would block all others for ever.
        if !fits && !self.is_empty() {
            return false;
        }
        for (key, revision) in &later.compares {
            self.compares.entry(key.clone()).or_insert(*revision);
        }
        self.writes.extend(later.writes.clone());
        self.notes.extend(later.notes.iter().cloned());
        true
    }

    fn bytes(&self) -> usize {
        let writes = self.writes.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len));
        let compares = self.compares.keys().map(String::len);
        writes.sum::<usize>() + 2 * compares.sum::<usize>()
    }

    /// The transaction, guarded by the leader's fence.
    pub fn txn(&self, fence: &Fence) -> Txn {
        self.unfenced().fenced(fence)
    }

    fn unfenced(&self) -> Txn {
        let compares = self.compares.iter().map(|(key, revision)| Compare::mod_revision(key, *revision));
        let txn = compares.fold(Txn::new(), Txn::when);
        self.writes.iter().fold(txn, |txn, (key, value)| match value {
            Some(value) => txn.put(key, value.clone()),
            None => txn.delete(key),
        })
    }

    /// The step if it writes anything.
    pub fn some(self) -> Option<Self> {
        (!self.is_empty()).then_some(self)
    }

    /// The same step without the compare of `key`: for tests that show what that compare prevents.
    #[cfg(test)]
    pub(crate) fn without(&self, key: &str) -> Self {
        let mut step = self.clone();
        assert!(step.compares.remove(key).is_some(), "{key} is not compared: {:?}", self.compares);
        step
    }

    /// The transaction without a fence, for tests of the other compares.
    #[cfg(test)]
    pub(crate) fn txn_unfenced(&self) -> Txn {
        self.unfenced()
    }
}

fn count_new<V>(held: &BTreeMap<String, V>, more: &BTreeMap<String, V>) -> usize {
    more.keys().filter(|key| !held.contains_key(*key)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(n: usize) -> Step {
        let mut step = Step::default();
        step.expect(format!("record{n}"), 1);
        step.expect(format!("ledger{n}"), 1);
        step.expect("numbers", 7);
        step.put(format!("ledger{n}"), vec![]);
        step
    }

    #[test]
    fn a_step_takes_what_etcd_takes() {
        let mut step = Step::default();
        let taken = (0..200).take_while(|n| step.absorb(&item(*n))).count();
        assert_eq!(taken, 63);
        assert_eq!(step.txn_unfenced().check(), Ok(()));
    }

    #[test]
    fn large_values_make_smaller_steps() {
        let large = |n: usize| {
            let mut step = item(n);
            step.put(format!("record{n}"), vec![b' '; 64 << 10]);
            step
        };
        let mut step = Step::default();
        let taken = (0..200).take_while(|n| step.absorb(&large(*n))).count();
        assert_eq!(taken, 15);
        assert_eq!(step.txn_unfenced().check(), Ok(()));
    }

    #[test]
    fn the_state_before_the_first_is_compared_and_the_state_after_the_last_is_written() {
        let mut later = Step::default();
        later.expect("record0", 99);
        later.put("ledger0", b"later".to_vec());
        let mut step = item(0);
        assert!(step.absorb(&later));
        assert_eq!(step.compares["record0"], 1);
        assert_eq!(step.writes["ledger0"], Some(b"later".to_vec()));
    }
}
