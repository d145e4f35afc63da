//! The common suite against a real etcd, and what one real member can show: compaction, fragments, size.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, its helpers too"
)]

mod suite;

use std::time::Duration;

use bulkhead_store::process::Cluster;
use bulkhead_store::{Discontinuity, Settings, Store, StoreError, Timeouts, Txn, Update, Watch};
use suite::{Fixture, changes, put, snapshot, within};

async fn connect(cluster: &Cluster) -> Store {
    let settings = Settings::new(&cluster.endpoints(), None, None, Timeouts::default()).unwrap();
    Store::connect(settings).await.unwrap()
}

/// The client itself, for what the store does not offer.
async fn raw(cluster: &Cluster) -> etcd_client::Client {
    let endpoints = cluster.endpoints();
    etcd_client::Client::connect(endpoints, None).await.unwrap()
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

/// Writes `count` revisions of two keys each, 3 kB apiece, eight at a time.
async fn write_pairs(store: &Store, count: usize) {
    let writer = |first: usize| {
        let store = store.clone();
        async move {
            for at in (first..count).step_by(8) {
                let (a, b) = (format!("/pair/a/{at:05}"), format!("/pair/b/{at:05}"));
                let value = vec![b'x'; 3000];
                let txn = Txn::new().put(a, value.clone()).put(b, value);
                store.commit(txn).await.unwrap().done().unwrap();
            }
        }
    };
    futures::future::join_all((0..8).map(writer)).await;
}

#[tokio::test]
async fn slow_receiver_gets_every_revision_whole() {
    let cluster = Cluster::start(1).unwrap();
    let store = connect(&cluster).await;
    let mut watch = store.watch_many(&["/pair/a/", "/pair/b/"]);
    let mut revision = snapshot(&mut watch).await.revision;
    // Nobody reads: etcd falls back to batches of up to 1000 revisions, 6 MB, in fragments.
    write_pairs(&store, 3000).await;
    for _ in 0..3000 {
        let whole = changes(&mut watch).await;
        assert_eq!((whole.revision, whole.changes.len()), (revision + 1, 2));
        revision = whole.revision;
    }
}

/// Reads until the state holds `key`; true if a snapshot brought it.
async fn heals_to(watch: &mut Watch, key: &str) -> bool {
    loop {
        match within(watch.next()).await.unwrap() {
            Update::Snapshot(snapshot) if snapshot.get(key).is_some() => return true,
            Update::Changes(changes) if changes.changes.iter().any(|c| c.key() == key) => {
                return false;
            }
            Update::Snapshot(_) | Update::Changes(_) | Update::Unreachable { .. } => {}
        }
    }
}

#[tokio::test]
async fn compaction_under_a_slow_watch_heals_by_a_snapshot() {
    let cluster = Cluster::start(1).unwrap();
    let store = connect(&cluster).await;
    let mut watch = store.watch("/pair/");
    snapshot(&mut watch).await;
    write_pairs(&store, 3000).await;
    let head = put(&store, "/pair/last", "1").await;
    raw(&cluster).await.compact(head, None).await.unwrap();
    assert!(heals_to(&mut watch, "/pair/last").await, "not compacted");
    let next = put(&store, "/pair/next", "1").await;
    assert_eq!(changes(&mut watch).await.revision, next);
}

#[tokio::test]
async fn restart_under_a_watch_heals() {
    let mut cluster = Cluster::start(1).unwrap();
    let store = connect(&cluster).await;
    put(&store, "/a", "1").await;
    let mut watch = store.watch("/");
    snapshot(&mut watch).await;
    cluster.kill(0);
    let told = within(watch.next()).await;
    assert!(matches!(told, Some(Update::Unreachable { error: StoreError::Unreachable { .. }, .. })), "{told:?}");
    let refused = store.commit(Txn::new().put("/b", "1")).await;
    let refused = refused.unwrap_err();
    assert!(matches!(refused, StoreError::Unreachable { .. }), "{refused:?}");
    cluster.restart(0).unwrap();
    let healed = snapshot(&mut watch).await;
    assert_eq!(healed.discontinuity, None);
    assert!(healed.get("/a").is_some() && healed.get("/b").is_none());
}

#[tokio::test]
async fn ten_thousand_keys_are_listed_at_one_revision_under_writes_and_compactions() {
    let cluster = Cluster::start(1).unwrap();
    let store = connect(&cluster).await;
    // Each transaction rewrites one chunk, so a list is at one revision exactly if all of a chunk's values are equal.
    let chunk_of = |chunk: usize, value: String| {
        (0..100).fold(Txn::new(), |txn, i| txn.put(format!("/big/{i:02}/{chunk:02}"), value.repeat(100)))
    };
    for chunk in 0..100 {
        let outcome = store.commit(chunk_of(chunk, "000000".into())).await;
        outcome.unwrap().done().unwrap();
    }
    let writer = async {
        let mut raw = raw(&cluster).await;
        for round in 1..=60 {
            let txn = chunk_of(round % 100, format!("{round:06}"));
            let revision = store.commit(txn).await.unwrap().done().unwrap();
            if round % 20 == 0 {
                raw.compact(revision, None).await.unwrap();
            }
        }
    };
    let reader = async {
        for _ in 0..5 {
            let list = store.list("/big/").await.unwrap();
            assert_eq!(list.entries.len(), 10_000);
            for chunk in 0..100 {
                let values = list.entries.iter().skip(chunk).step_by(100);
                let mut values = values.map(|e| (&e.value, e.mod_revision));
                let first = values.next().unwrap();
                assert!(values.all(|value| value == first), "torn list");
            }
        }
    };
    futures::join!(writer, reader);
    let mut watch = store.watch("/big/");
    assert_eq!(snapshot(&mut watch).await.entries.len(), 10_000);
    let outcome = store.commit(chunk_of(7, "last".into())).await.unwrap();
    let whole = changes(&mut watch).await;
    assert_eq!(Some(whole.revision), outcome.done());
    assert_eq!(whole.changes.len(), 100);
}

#[tokio::test]
async fn etcd_that_went_back_is_visible() {
    let mut cluster = Cluster::start(1).unwrap();
    let store = connect(&cluster).await;
    put(&store, "/a", "1").await;
    let mut watch = store.watch("/");
    let before = snapshot(&mut watch).await;
    cluster.wipe().unwrap();
    cluster.restart(0).unwrap();
    let after = loop {
        match within(watch.next()).await.unwrap() {
            Update::Snapshot(snapshot) => break snapshot,
            Update::Unreachable { .. } => {}
            Update::Changes(changes) => panic!("{changes:?}"),
        }
    };
    assert_eq!(after.entries, []);
    let went_back = Discontinuity::RevisionWentBack { seen: before.revision, now: after.revision };
    assert_eq!(after.discontinuity, Some(went_back));
    let revision = put(&store, "/b", "1").await;
    assert_eq!(changes(&mut watch).await.revision, revision);
}

/// Whoever may write keys may write large ones: 50 of them are more than one answer holds, and lists go on.
#[tokio::test]
async fn values_as_large_as_etcd_takes_do_not_stop_a_list() {
    const LARGEST: usize = 1_500_000;
    let cluster = Cluster::start(1).unwrap();
    let store = connect(&cluster).await;
    for at in 0..50 {
        let value = vec![b'x'; LARGEST];
        store.commit(Txn::new().put(format!("/large/{at:02}"), value)).await.unwrap().done().unwrap();
    }
    let last = put(&store, "/small", "1").await;
    let list = store.list("/").await.unwrap();
    assert_eq!((list.revision, list.entries.len()), (last, 51));
    assert!(list.entries[..50].iter().all(|entry| entry.value.len() == LARGEST));
    assert!(list.entries.is_sorted_by(|one, other| one.key < other.key));
    let mut watch = store.watch("/");
    assert_eq!(snapshot(&mut watch).await.entries, list.entries);
}
