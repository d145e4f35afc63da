//! Leases. All three requests may be repeated: a grant whose answer got lost leaves a lease that runs out unused.

use std::time::Duration;

use super::{Etcd, Repeat};
use crate::error::StoreError;
use crate::store::Granted;

impl Etcd {
    pub(crate) async fn grant(&self, ttl: Duration) -> Result<Granted, StoreError> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let send = |client: etcd_client::Client| async move { client.lease_client().grant(seconds, None).await };
        let granted = self.call("granting a lease", self.read(), send).await?;
        let ttl = u64::try_from(granted.ttl()).unwrap_or_default();
        Ok(Granted { id: granted.id(), ttl: Duration::from_secs(ttl) })
    }

    pub(crate) async fn keep_alive(&self, id: i64, patience: Duration) -> Result<(), StoreError> {
        // A stream of one message each time: it needs no watching, and any endpoint will do for the next.
        let send = |client: etcd_client::Client| async move { client.lease_client().keep_alive(id).await.map(drop) };
        let repeat = Repeat::After(patience);
        let answer = self.call("keeping a lease alive", repeat, send).await;
        answer.map_err(|error| name_lease(error, id))
    }

    pub(crate) async fn revoke(&self, id: i64) -> Result<(), StoreError> {
        let send = |client: etcd_client::Client| async move { client.lease_client().revoke(id).await.map(drop) };
        match self.call("revoking a lease", self.read(), send).await {
            // Revoked by an attempt whose answer got lost, or run out.
            Err(StoreError::LeaseLost { .. }) => Ok(()),
            result => result,
        }
    }
}

fn name_lease(error: StoreError, id: i64) -> StoreError {
    match error {
        StoreError::LeaseLost { .. } => StoreError::LeaseLost { lease: id },
        other => other,
    }
}
