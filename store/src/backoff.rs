//! Waiting times between attempts: 50 ms to 5 s, doubling, with full jitter so that many clients spread out.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(50);
const LAST: Duration = Duration::from_secs(5);

/// The state of one series of attempts.
#[derive(Debug)]
pub struct Backoff {
    ceiling: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

impl Backoff {
    /// Starts a series.
    pub const fn new() -> Self {
        Self { ceiling: FIRST }
    }

    /// The next waiting time: between half the ceiling and the ceiling, which then doubles.
    pub fn pause(&mut self) -> Duration {
        let ceiling = self.ceiling;
        self.ceiling = (ceiling * 2).min(LAST);
        ceiling / 2 + jitter(ceiling / 2)
    }

    /// Waits for the next time.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.pause()).await;
    }
}

/// A random duration in `0..=limit`.
fn jitter(limit: Duration) -> Duration {
    let limit = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX - 1);
    Duration::from_micros(random() % (limit + 1))
}

/// A random number: the standard library seeds its hashers from the kernel and counts them up.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_from_first_to_last_and_jitters() {
        let mut backoff = Backoff::new();
        let first = backoff.pause();
        assert!((FIRST / 2..=FIRST).contains(&first), "{first:?}");
        for _ in 0..20 {
            assert!(backoff.pause() <= LAST);
        }
        let waits: Vec<_> = (0..8).map(|_| backoff.pause()).collect();
        assert!(waits.iter().all(|w| (LAST / 2..=LAST).contains(w)));
        assert!(waits.iter().any(|w| *w != waits[0]), "no jitter: {waits:?}");
    }
}
