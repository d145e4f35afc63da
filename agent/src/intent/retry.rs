//! Something that has to be done, tried until it succeeds: ever later, and each machine at a time of its own.

use std::time::Instant;

use bulkhead_store::Backoff;

/// One such thing; nothing is to be done at first.
#[derive(Debug, Default)]
pub(super) struct Retry {
    due: Option<Instant>,
    backoff: Backoff,
}

impl Retry {
    /// It is to be done at once, unless it is waiting for its time already.
    pub fn want(&mut self) {
        self.due.get_or_insert_with(Instant::now);
    }

    /// It was tried in vain.
    pub fn failed(&mut self) {
        self.due = Some(Instant::now() + self.backoff.pause());
    }

    /// It is done, or need not be done any more.
    pub fn done(&mut self) {
        *self = Self::default();
    }

    /// Waits until it is due; forever if there is nothing to do. Cancel-safe.
    pub async fn wait(&self) {
        match self.due {
            Some(due) => tokio::time::sleep_until(due.into()).await,
            None => std::future::pending().await,
        }
    }
}
