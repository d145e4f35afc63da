//! The common suite against a real etcd, and what one real member can show: compaction, fragments, size.

mod suite;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bulkhead_store::process::Cluster;
use bulkhead_store::{Change, Settings, Store, StoreError, Timeouts, Txn, Update};
use suite::{Fixture, changes, put, snapshot, within};

async fn connect(cluster: &Cluster) -> Store {
    let settings = Settings::new(&cluster.endpoints(), None, None, Timeouts::default()).unwrap();
    Store::connect(settings).await.unwrap()
}

#[tokio::test]
async fn suite_on_etcd() {
    let cluster = Cluster::start(1).unwrap();
    suite::run(&Fixture {
        store: connect(&cluster).await,
        other: connect(&cluster).await,
        lease_ttl: Duration::from_secs(2),
    })
    .await;
}
