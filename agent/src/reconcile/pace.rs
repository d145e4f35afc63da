//! When the next turn is due: at each resync, and soon again after a turn that failed. Pure: the caller brings the time.

use std::time::{Duration, Instant};

/// How soon a turn that failed is tried again at first.
const SOON: Duration = Duration::from_secs(1);
/// The longest time between two tries.
const LATE: Duration = Duration::from_secs(30);

/// A turn, and how much it looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scope {
    /// The intent's changes.
    Changes,
    /// All that somebody else might have changed, too.
    Resync,
}

#[derive(Debug, Clone, Copy)]
struct Retry {
    at: Instant,
    pause: Duration,
    scope: Scope,
}

/// The turns to come, beside those that a change of the intent asks for.
#[derive(Debug)]
pub(super) struct Pace {
    every: Duration,
    resync: Instant,
    retry: Option<Retry>,
}

impl Pace {
    /// With a resync at each `every`, the first one after it.
    pub fn new(every: Duration, now: Instant) -> Self {
        Self { every, resync: now + every, retry: None }
    }

    /// Until then nothing is due.
    pub fn next(&self) -> Instant {
        self.retry.map_or(self.resync, |retry| retry.at.min(self.resync))
    }

    /// The turn that is due, if one is.
    pub fn due(&self, now: Instant) -> Option<Scope> {
        let resync = (now >= self.resync).then_some(Scope::Resync);
        resync.max(self.retry.filter(|retry| now >= retry.at).map(|retry| retry.scope))
    }

    /// A turn was made; whether something of it could not be applied.
    pub fn made(&mut self, scope: Scope, failed: bool, now: Instant) {
        if scope == Scope::Resync {
            self.resync = now + self.every;
        }
        let before = self.retry;
        if failed {
            let pause = match before {
                None => SOON,
                Some(retry) if now >= retry.at => (retry.pause * 2).min(LATE),
                // A change came in between: that says nothing of how long to wait.
                Some(retry) => retry.pause,
            };
            let scope = before.map_or(scope, |retry| retry.scope.max(scope));
            self.retry = Some(Retry { at: now + pause, pause, scope });
        } else if before.is_some_and(|retry| retry.scope <= scope) {
            self.retry = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn what_failed_is_tried_again_soon_then_ever_later() {
        let start = Instant::now();
        let mut pace = Pace::new(seconds(3600), start);
        assert_eq!(pace.due(start), None);
        let mut now = start;
        let mut pauses = Vec::new();
        pace.made(Scope::Changes, true, now);
        for _ in 0..7 {
            pauses.push(pace.next().duration_since(now).as_secs());
            now = pace.next();
            assert_eq!(pace.due(now), Some(Scope::Changes));
            pace.made(Scope::Changes, true, now);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        pace.made(Scope::Changes, false, pace.next());
        assert_eq!(pace.next(), start + seconds(3600), "all is well");
        pace.made(Scope::Changes, true, now);
        assert_eq!(pace.next(), now + seconds(1), "from the beginning");
    }

    #[test]
    fn a_resync_that_failed_is_made_again_as_one() {
        let start = Instant::now();
        let mut pace = Pace::new(seconds(30), start);
        let now = start + seconds(30);
        assert_eq!((pace.next(), pace.due(now)), (now, Some(Scope::Resync)));
        pace.made(Scope::Resync, true, now);
        assert_eq!(pace.due(now), None);
        // A change is applied meanwhile: that repaired nothing.
        pace.made(Scope::Changes, false, now);
        assert_eq!(pace.due(now + seconds(1)), Some(Scope::Resync));
        pace.made(Scope::Resync, false, now + seconds(1));
        assert_eq!(pace.next(), now + seconds(31));
    }

    #[test]
    fn changes_that_fail_do_not_put_the_next_try_off() {
        let start = Instant::now();
        let mut pace = Pace::new(seconds(30), start);
        for _ in 0..20 {
            pace.made(Scope::Changes, true, start);
        }
        assert_eq!(pace.next(), start + seconds(1));
    }
}
