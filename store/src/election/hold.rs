//! A lease that is kept alive in the background, and the judgement of how long it can be relied on.
//!
//! The lease is relied on until its TTL has passed since the last acknowledged keep-alive was *sent*: etcd counts from
//! the moment it receives one, which is later. A keep-alive stream that ends early is no loss by itself: keep-alives go
//! on over the other endpoints until that moment.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::error::StoreError;
use crate::store::Store;

/// Why leadership ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// etcd says that the lease does not exist any more.
    LeaseGone,
    /// No keep-alive was acknowledged within the TTL.
    Expired,
    /// It was resigned or dropped.
    Resigned,
}

/// The lease, held. Dropping it revokes it in the background.
#[derive(Debug)]
pub(super) struct Hold {
    store: Store,
    lease: i64,
    until: watch::Receiver<Result<Instant, Loss>>,
    task: JoinHandle<()>,
    released: bool,
}

impl Hold {
    pub(super) async fn acquire(store: &Store, ttl: Duration) -> Result<Self, StoreError> {
        let whole = Duration::from_secs(ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0));
        let sent = Instant::now();
        let granted = store.grant(whole.max(Duration::from_secs(1))).await?;
        let (publish, until) = watch::channel(Ok(sent + granted.ttl));
        let task = tokio::spawn(keep(store.clone(), granted.id, granted.ttl, sent, publish));
        Ok(Self { store: store.clone(), lease: granted.id, until, task, released: false })
    }

    pub(super) fn lease(&self) -> i64 {
        self.lease
    }

    pub(super) fn is_held(&self) -> bool {
        self.until.borrow().is_ok_and(|until| Instant::now() < until)
    }

    pub(super) fn lost(&self) -> impl Future<Output = Loss> + Send + 'static + use<> {
        let mut until = self.until.clone();
        async move {
            loop {
                let deadline = match *until.borrow_and_update() {
                    Ok(deadline) => deadline,
                    Err(loss) => return loss,
                };
                // Judged here too, so that nobody waits for the keeping task to be scheduled.
                tokio::select! {
                    changed = until.changed() => if changed.is_err() {
                        return until.borrow().err().unwrap_or(Loss::Resigned);
                    },
                    () = tokio::time::sleep_until(deadline) => return Loss::Expired,
                }
            }
        }
    }

    pub(super) async fn release(mut self) -> Result<(), StoreError> {
        self.task.abort();
        let outcome = self.store.revoke(self.lease).await;
        self.released = outcome.is_ok();
        outcome
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.task.abort();
        if self.released {
            return;
        }
        let (store, lease) = (self.store.clone(), self.lease);
        // Without a runtime, or if this fails, the lease runs out by itself.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = store.revoke(lease).await {
                    tracing::info!(error = error.chain(), "lease not revoked, it will run out");
                }
            });
        }
    }
}

/// Keeps the lease alive until it is lost.
async fn keep(
    store: Store,
    lease: i64,
    ttl: Duration,
    granted: Instant,
    publish: watch::Sender<Result<Instant, Loss>>,
) {
    let mut until = granted + ttl;
    let mut pause = ttl / 3;
    let loss = loop {
        tokio::time::sleep_until(until.min(Instant::now() + pause)).await;
        let sent = Instant::now();
        if sent >= until {
            break Loss::Expired;
        }
        match tokio::time::timeout_at(until, store.keep_alive(lease, ttl / 4)).await {
            Err(_) => break Loss::Expired,
            Ok(Ok(())) => {
                until = sent + ttl;
                pause = ttl / 3;
                let _previous = publish.send_replace(Ok(until));
            }
            Ok(Err(StoreError::LeaseLost { .. })) => break Loss::LeaseGone,
            Ok(Err(error)) => {
                tracing::info!(error = error.chain(), "keep-alive failed, trying again");
                pause = ttl / 20;
            }
        }
    };
    tracing::warn!(?loss, lease = format_args!("{lease:x}"), "lease lost");
    let _previous = publish.send_replace(Err(loss));
}
