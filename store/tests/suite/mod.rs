//! What both backends promise, as one suite of async functions; every backend's test file runs it.

#![allow(dead_code, reason = "each test binary uses its own part of the fixture")]

use std::collections::BTreeSet;
use std::time::Duration;

use bulkhead_store::{
    Candidate, Change, Changes, Compare, Loss, Outcome, Snapshot, Store, StoreError, Txn, TxnError, Update, Watch,
};

/// Two clients of one empty store.
pub struct Fixture {
    pub store: Store,
    pub other: Store,
    /// The shortest lease that the backend grants.
    pub lease_ttl: Duration,
}

/// Runs everything.
pub async fn run(f: &Fixture) {
    reads_and_writes(f).await;
    compares_and_conflicts(f).await;
    limits(f).await;
    listing(f).await;
    watching_whole_revisions(f).await;
    watching_many_prefixes(f).await;
    election_hands_over(f).await;
    dropped_candidate_withdraws(f).await;
    observing(f).await;
}

/// Fails the test if it takes longer than any healing may.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("deadline of 20 s")
}

pub async fn put(store: &Store, key: &str, value: &str) -> i64 {
    let outcome = store.commit(Txn::new().put(key, value)).await.unwrap();
    outcome.done().expect("no compare to fail")
}

/// The next update, which must be a snapshot.
pub async fn snapshot(watch: &mut Watch) -> Snapshot {
    match within(watch.next()).await {
        Some(Update::Snapshot(snapshot)) => snapshot,
        other => panic!("no snapshot: {other:?}"),
    }
}

/// The next update, which must be changes.
pub async fn changes(watch: &mut Watch) -> Changes {
    match within(watch.next()).await {
        Some(Update::Changes(changes)) => changes,
        other => panic!("no changes: {other:?}"),
    }
}

fn keys(changes: &Changes) -> BTreeSet<&str> {
    changes.changes.iter().map(Change::key).collect()
}

async fn reads_and_writes(f: &Fixture) {
    let s = &f.store;
    assert_eq!(s.get("/rw/a").await.unwrap(), None);
    let first = put(s, "/rw/a", "1").await;
    let second = put(s, "/rw/a", "2").await;
    assert_eq!(second, first + 1);
    let entry = f.other.get("/rw/a").await.unwrap().unwrap();
    assert_eq!((entry.create_revision, entry.mod_revision), (first, second));
    assert_eq!(entry.value, b"2");
    // Deleting nothing makes no revision.
    let gone = s.commit(Txn::new().delete("/rw/none")).await.unwrap();
    assert_eq!(gone.done(), Some(second));
    let deleted = s.commit(Txn::new().delete("/rw/a")).await.unwrap();
    assert_eq!(deleted.done(), Some(second + 1));
    assert_eq!(s.get("/rw/a").await.unwrap(), None);
    // Created anew, it has a new create revision.
    let third = put(s, "/rw/a", "3").await;
    let entry = s.get("/rw/a").await.unwrap().unwrap();
    assert_eq!(entry.create_revision, third);
}

async fn compares_and_conflicts(f: &Fixture) {
    let s = &f.store;
    let create = || Txn::new().when(Compare::absent("/cc/a")).put("/cc/a", "1").put("/cc/b", "1");
    let revision = s.commit(create()).await.unwrap().done().unwrap();
    let Outcome::Conflict(conflict) = s.commit(create()).await.unwrap() else {
        panic!("absent held twice");
    };
    assert_eq!(conflict.failed.len(), 1);
    assert_eq!(conflict.failed[0].key, "/cc/a");
    let current = conflict.failed[0].current.clone().unwrap();
    assert_eq!((current.mod_revision, current.value.as_slice()), (revision, b"1".as_slice()));
    assert!(!conflict.fenced_off());
    // Only the compare that failed is named; nothing is written.
    let mixed = Txn::new()
        .when(Compare::unchanged(&current))
        .when(Compare::mod_revision("/cc/b", revision - 1))
        .put("/cc/c", "1");
    let Outcome::Conflict(conflict) = s.commit(mixed).await.unwrap() else {
        panic!("stale revision held");
    };
    let failed: Vec<_> = conflict.failed.iter().map(|c| c.key.as_str()).collect();
    assert_eq!(failed, ["/cc/b"]);
    assert_eq!(s.get("/cc/c").await.unwrap(), None);
    let fresh =
        Txn::new().when(Compare::unchanged(&current)).when(Compare::create_revision("/cc/b", revision)).delete("/cc/a");
    assert!(s.commit(fresh).await.unwrap().done().is_some());
}

async fn limits(f: &Fixture) {
    let s = &f.store;
    let of = |n: usize| {
        (0..n).fold(Txn::new(), |txn, i| {
            let key = format!("/limit/{i}");
            txn.when(Compare::absent(&key)).put(&key, "v")
        })
    };
    assert!(s.commit(of(128)).await.unwrap().done().is_some());
    let error = s.commit(of(129)).await.unwrap_err();
    assert!(matches!(error, StoreError::Txn(TxnError::TooManyOperations { count: 129 })));
    // Just inside the limit etcd takes it, beyond it is refused here.
    let value = vec![b'x'; 1_572_864 - 200];
    let outcome = s.commit(Txn::new().put("/limit/large", value)).await;
    assert!(outcome.unwrap().done().is_some());
    let error = s.commit(Txn::new().put("/limit/large", vec![0; 1_572_864]));
    let error = error.await.unwrap_err();
    assert!(matches!(error, StoreError::Txn(TxnError::TooLarge { .. })), "{error:?}");
}

async fn listing(f: &Fixture) {
    let s = &f.store;
    for chunk in 0..10 {
        let txn = (0..120).fold(Txn::new(), |txn, i| txn.put(format!("/list/{chunk:02}/{i:03}"), "v"));
        s.commit(txn).await.unwrap().done().unwrap();
    }
    put(s, "/lisu", "outside").await;
    let all = s.list("/list/").await.unwrap();
    assert_eq!(all.entries.len(), 1200);
    assert!(all.entries.is_sorted_by(|a, b| a.key < b.key));
    assert!(all.get("/list/09/119").is_some() && all.get("/lisu").is_none());
    assert_ne!(all.cluster_id, 0);
    let revision = put(s, "/list/new", "v").await;
    let again = s.list("/list/").await.unwrap();
    assert_eq!((again.revision, again.entries.len()), (revision, 1201));
    assert_eq!(s.list("/list/none").await.unwrap().entries, []);
    assert!(s.list("").await.unwrap().entries.len() > 1201);
}

async fn watching_whole_revisions(f: &Fixture) {
    put(&f.store, "/w/old", "1").await;
    let mut watch = f.other.watch("/w/");
    let first = snapshot(&mut watch).await;
    assert_eq!(first.entries.len(), 1);
    put(&f.store, "/outside", "1").await;
    let txn = Txn::new().put("/w/a", "1").put("/w/b", "1").delete("/w/old").put("/outside", "2");
    let revision = f.store.commit(txn).await.unwrap().done().unwrap();
    let whole = changes(&mut watch).await;
    assert_eq!(whole.revision, revision);
    assert_eq!(keys(&whole), BTreeSet::from(["/w/a", "/w/b", "/w/old"]));
    for i in 0..50 {
        put(&f.store, "/w/a", &i.to_string()).await;
    }
    for i in 0..50 {
        let next = changes(&mut watch).await;
        let [Change::Put(entry)] = next.changes.as_slice() else {
            panic!("{next:?}");
        };
        assert_eq!(entry.value, i.to_string().into_bytes());
        assert_eq!(entry.mod_revision, next.revision);
    }
}

async fn watching_many_prefixes(f: &Fixture) {
    put(&f.store, "/m/x/1", "1").await;
    put(&f.store, "/m/y", "1").await;
    put(&f.store, "/m/zz", "1").await;
    let mut watch = f.other.watch_many(&["/m/z", "/m/x/", "/m/x/1"]);
    let first = snapshot(&mut watch).await;
    let listed: Vec<_> = first.entries.iter().map(|e| e.key.as_str()).collect();
    assert_eq!(listed, ["/m/x/1", "/m/zz"]);
    put(&f.store, "/m/y", "2").await;
    let txn = Txn::new().put("/m/x/2", "1").put("/m/z", "1").put("/m/y", "3");
    let revision = f.store.commit(txn).await.unwrap().done().unwrap();
    let whole = changes(&mut watch).await;
    assert_eq!(whole.revision, revision);
    assert_eq!(keys(&whole), BTreeSet::from(["/m/x/2", "/m/z"]));
}

async fn election_hands_over(f: &Fixture) {
    let ttl = f.lease_ttl;
    let first = within(Candidate::campaign(&f.store, "/el/hand", "one", ttl)).await.unwrap();
    let leader = Candidate::leader(&f.other, "/el/hand").await.unwrap();
    let leader = leader.unwrap();
    assert_eq!((leader.identity.as_str(), leader.fence), ("one", first.fence()));
    let second = Candidate::campaign(&f.other, "/el/hand", "two", ttl);
    tokio::pin!(second);
    let early = tokio::time::timeout(ttl * 2, &mut second).await;
    assert!(early.is_err(), "two leaders");
    assert!(first.is_held(), "kept alive past its ttl");
    let fenced = Txn::new().fenced(&first.fence()).put("/el/data", "one");
    assert!(f.store.commit(fenced).await.unwrap().done().is_some());
    let (stale, lost) = (first.fence(), first.lost());
    first.resign().await.unwrap();
    assert_eq!(within(lost).await, Loss::Resigned);
    let second = within(second).await.unwrap();
    assert!(second.fence().create_revision() > stale.create_revision());
    let late = Txn::new().fenced(&stale).put("/el/data", "late");
    let Outcome::Conflict(conflict) = f.store.commit(late).await.unwrap() else {
        panic!("a resigned leader wrote");
    };
    assert!(conflict.fenced_off());
    second.resign().await.unwrap();
}

async fn dropped_candidate_withdraws(f: &Fixture) {
    // A long lease: only the withdrawal can free the place in time.
    let ttl = Duration::from_mins(2);
    let lead = within(Candidate::campaign(&f.store, "/el/drop", "lead", ttl)).await.unwrap();
    {
        let waiting = Candidate::campaign(&f.other, "/el/drop", "waiting", ttl);
        tokio::pin!(waiting);
        let mut watch = f.store.watch("/el/drop/");
        let mut candidates = snapshot(&mut watch).await.entries.len();
        while candidates < 2 {
            tokio::select! {
                _ = &mut waiting => panic!("two leaders"),
                update = within(watch.next()) => match update {
                    Some(Update::Changes(changes)) => candidates += changes.changes.len(),
                    other => panic!("{other:?}"),
                }
            }
        }
    }
    // The dropped one is gone and the dropped leader too, so a third leads at once.
    drop(lead);
    let third = within(Candidate::campaign(&f.store, "/el/drop", "third", ttl)).await.unwrap();
    third.resign().await.unwrap();
}

async fn observing(f: &Fixture) {
    let mut observer = Candidate::observe(&f.other, "/el/see");
    assert_eq!(within(observer.next()).await, Some(None));
    let lead = within(Candidate::campaign(&f.store, "/el/see", "seen", f.lease_ttl)).await.unwrap();
    let leader = within(observer.next()).await.unwrap().unwrap();
    assert_eq!((leader.identity.as_str(), leader.fence), ("seen", lead.fence()));
    lead.resign().await.unwrap();
    assert_eq!(within(observer.next()).await, Some(None));
}
