//! The addresses of this node's subnet, as host parts: which are free, which rest.
//!
//! Taken in turn, so that a freed address is the last to come back; beside that it rests for a while, unless under 5 % of
//! the pool is free. Pure: the records are the truth, this is rebuilt from them, and the caller brings the time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use thiserror::Error;

/// No address is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "all {0} addresses of this node's subnet are in use; delete pods, or give nodes larger subnets (HostSubnetLength)"
)]
pub struct PoolFull(pub u32);

/// The host parts that pods may have: all but the network's, the gateway's and the last.
#[derive(Debug, Clone)]
pub struct Pool {
    size: u32,
    rest: Duration,
    used: BTreeSet<u32>,
    /// Freed, and when (since boot).
    resting: BTreeMap<u32, Duration>,
    next: u32,
}

/// The first host part a pod may have: 0 is the network, 1 the gateway.
const FIRST: u32 = 2;

impl Pool {
    /// A pool over a subnet of `host_bits` (2 to 16).
    pub fn new(host_bits: u8, rest: Duration) -> Self {
        Self { size: (1 << host_bits) - 1, rest, used: BTreeSet::new(), resting: BTreeMap::new(), next: FIRST }
    }

    /// Starts elsewhere than at the first address: after a boot, what the last boot gave out comes late.
    pub fn start_at(&mut self, seed: u64) {
        let capacity = u64::from(self.capacity().max(1));
        self.next = FIRST + u32::try_from(seed % capacity).unwrap_or(0);
    }

    /// How many addresses pods may have.
    pub const fn capacity(&self) -> u32 {
        self.size - FIRST
    }

    /// How many are not in use, those that rest included.
    pub fn free(&self) -> u32 {
        self.capacity() - u32::try_from(self.used.len()).unwrap_or(u32::MAX).min(self.capacity())
    }

    /// Whether pods may have it: one of an earlier, larger subnet is nothing to this pool.
    const fn has(&self, host: u32) -> bool {
        host >= FIRST && host < self.size
    }

    /// An address is in use, says a record.
    pub fn occupy(&mut self, host: u32) {
        if !self.has(host) {
            return;
        }
        self.used.insert(host);
        self.resting.remove(&host);
        if host >= self.next {
            self.next = host + 1;
        }
    }

    /// An address was freed at `when`, says a record.
    pub fn freed(&mut self, host: u32, when: Duration) {
        if !self.has(host) {
            return;
        }
        self.used.remove(&host);
        self.resting.insert(host, when);
    }

    /// The next address. `now` is the time since boot.
    pub fn take(&mut self, now: Duration) -> Result<u32, PoolFull> {
        self.resting.retain(|_, since| since.saturating_add(self.rest) > now);
        let awake = self.free().saturating_sub(u32::try_from(self.resting.len()).unwrap_or(u32::MAX));
        if awake > 0 {
            for step in 0..self.capacity() {
                let host = FIRST + (self.next.saturating_sub(FIRST) + step) % self.capacity();
                if !self.used.contains(&host) && !self.resting.contains_key(&host) {
                    self.next = host + 1;
                    self.used.insert(host);
                    return Ok(host);
                }
            }
        }
        // Too few to be patient: the one that has rested longest. Above 5 % of rest the pool cannot be without one awake
        // unless the churn is faster than the rest allows, which a pod should not fail for.
        let longest = self.resting.iter().min_by_key(|(_, since)| **since).map(|(host, _)| *host);
        let host = longest.ok_or(PoolFull(self.capacity()))?;
        self.resting.remove(&host);
        self.used.insert(host);
        Ok(host)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REST: Duration = Duration::from_mins(1);

    #[test]
    fn a_freed_address_rests_and_a_full_pool_says_so() {
        let mut pool = Pool::new(3, REST);
        let all: BTreeSet<u32> = (0..5).map(|_| pool.take(Duration::ZERO).unwrap()).collect();
        assert_eq!(all, (2..7).collect());
        assert_eq!(pool.take(Duration::ZERO), Err(PoolFull(5)));
        pool.freed(3, Duration::from_secs(1));
        pool.freed(5, Duration::from_secs(0));
        assert_eq!(pool.take(Duration::from_secs(2)), Ok(5), "none is awake: the longest rested");
        assert_eq!(pool.take(Duration::from_secs(100)), Ok(3));
    }

    #[test]
    fn the_next_address_is_the_one_not_used_for_longest() {
        let mut pool = Pool::new(8, REST);
        assert_eq!(pool.take(Duration::ZERO), Ok(2));
        pool.freed(2, Duration::ZERO);
        assert_eq!(pool.take(REST * 2), Ok(3));
        let mut rebuilt = Pool::new(8, REST);
        rebuilt.occupy(3);
        assert_eq!(rebuilt.take(REST * 2), Ok(4));
    }

    #[test]
    fn addresses_of_a_larger_subnet_are_neither_counted_nor_given_out() {
        let mut pool = Pool::new(3, REST);
        for outside in [0, 1, 7, 8, 200] {
            pool.occupy(outside);
        }
        assert_eq!(pool.free(), 5);
        for outside in [0, 1, 7, 8, 200] {
            pool.freed(outside, Duration::ZERO);
        }
        let all: BTreeSet<u32> = (0..5).map(|_| pool.take(Duration::ZERO).unwrap()).collect();
        assert_eq!(all, (2..7).collect());
        assert_eq!(pool.take(REST * 2), Err(PoolFull(5)));
    }

    proptest! {
        /// Against a naive model: the set of addresses in use and when each was freed.
        #[test]
        fn no_address_is_given_twice_nor_before_its_rest(bits in 2u8..6, steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>(), 0u64..40), 1..200)) {
            let mut pool = Pool::new(bits, REST);
            let (mut used, mut freed): (BTreeSet<u32>, BTreeMap<u32, Duration>) = Default::default();
            let mut now = Duration::ZERO;
            for (take, index, seconds) in steps {
                now += Duration::from_secs(seconds);
                if take {
                    let Ok(host) = pool.take(now) else {
                        prop_assert_eq!(used.len(), (1 << bits) - 3);
                        continue;
                    };
                    prop_assert!((2..(1 << bits) - 1).contains(&host));
                    prop_assert!(used.insert(host), "given twice");
                    if freed.get(&host).is_some_and(|when| now < *when + REST) {
                        let awake = (2..(1u32 << bits) - 1).filter(|h| !used.contains(h)
                            && freed.get(h).is_none_or(|when| now >= *when + REST)).count();
                        prop_assert_eq!(awake, 0, "one was awake");
                    }
                } else if !used.is_empty() {
                    let host = *index.get(&used.iter().copied().collect::<Vec<_>>());
                    used.remove(&host);
                    freed.insert(host, now);
                    pool.freed(host, now);
                }
                prop_assert_eq!(pool.free() as usize, (1 << bits) - 3 - used.len());
            }
        }
    }
}
