//! What Kubernetes remembers of etcd, read when a controller begins.
//!
//! It outlives etcd's restore and every controller, so one that was started afterwards notices the restore, too.

use std::time::Duration;

use kube::Client;
use tracing::{debug, warn};

use crate::memory::Memory;
use crate::memory::place::{CONFIG_MAP, Place, PlaceError};

/// The shortest and longest wait for an API server that cannot be read.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Reads it once the API server answers; none if there is none, or it may not be read.
pub(super) async fn recall(client: &Client, namespace: &str) -> Option<Memory> {
    let place = Place::config_map(client, namespace);
    let mut retry = RETRY.0;
    loop {
        match place.read().await {
            Ok(found) => return found,
            Err(error @ PlaceError::Form) => {
                warn!(namespace, name = CONFIG_MAP, %error, "the ConfigMap is no epoch: a restore of etcd from before this start is not noticed");
                return None;
            }
            Err(PlaceError::Api(kube::Error::Api(answer))) if answer.code == 403 => {
                warn!(namespace, name = CONFIG_MAP, %answer, "the ConfigMap may not be read: a restore of etcd from before this start is not noticed");
                return None;
            }
            Err(error) if retry == RETRY.0 => {
                warn!(namespace, name = CONFIG_MAP, %error, "the ConfigMap cannot be read: nothing of Kubernetes is followed until it can");
            }
            Err(error) => debug!(%error, "the ConfigMap cannot be read"),
        }
        tokio::time::sleep(retry).await;
        retry = (retry * 2).min(RETRY.1);
    }
}
