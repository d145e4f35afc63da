//! The common suite against the in-memory twin, and what only the twin can show: injected faults.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, its helpers too"
)]

mod suite;

use std::time::Duration;

use bulkhead_store::{Candidate, Compare, Discontinuity, Loss, Outcome, StoreError, Twin, Txn, Update, WriteFault};
use suite::{Fixture, changes, put, snapshot, within};

fn fixture(twin: &Twin) -> Fixture {
    Fixture { store: twin.store(), other: twin.store(), lease_ttl: Duration::from_secs(1) }
}

#[tokio::test]
async fn suite_on_twin() {
    suite::run(&fixture(&Twin::new())).await;
}

#[tokio::test]
async fn outage_is_told_once_and_ends_with_a_snapshot() {
    let twin = Twin::new();
    let (store, other) = (twin.store(), twin.store());
    put(&other, "/a", "1").await;
    let mut watch = store.watch("/");
    assert_eq!(snapshot(&mut watch).await.entries.len(), 1);
    let faults = store.faults().unwrap();
    faults.unreachable(true);
    let update = within(watch.next()).await;
    assert!(matches!(update, Some(Update::Unreachable { .. })), "{update:?}");
    assert!(matches!(store.get("/a").await, Err(StoreError::Unreachable { .. })));
    put(&other, "/b", "1").await;
    other.commit(Txn::new().delete("/a")).await.unwrap().done().unwrap();
    faults.unreachable(false);
    let healed = snapshot(&mut watch).await;
    assert!(healed.get("/a").is_none() && healed.get("/b").is_some());
    assert_eq!(healed.discontinuity, None);
}

#[tokio::test]
async fn cut_and_compacted_watches_list_again() {
    let twin = Twin::new();
    let store = twin.store();
    let mut watch = store.watch("/");
    snapshot(&mut watch).await;
    store.faults().unwrap().cut_watches();
    put(&store, "/a", "1").await;
    twin.compact();
    loop {
        match within(watch.next()).await.unwrap() {
            Update::Snapshot(s) if s.get("/a").is_some() => break,
            Update::Snapshot(_) | Update::Changes(_) => {}
            other @ Update::Unreachable { .. } => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn restore_and_another_cluster_are_visible() {
    let twin = Twin::new();
    let store = twin.store();
    put(&store, "/a", "1").await;
    let saved = twin.checkpoint();
    put(&store, "/a", "2").await;
    let mut watch = store.watch("/");
    snapshot(&mut watch).await;
    let (seen, now) = (twin.revision(), twin.revision() - 1);
    twin.restore(&saved);
    let back = snapshot(&mut watch).await;
    assert_eq!(back.discontinuity, Some(Discontinuity::RevisionWentBack { seen, now }));
    assert_eq!(back.get("/a").unwrap().value, b"1");
    twin.set_cluster_id(7);
    let other = snapshot(&mut watch).await;
    assert!(matches!(other.discontinuity, Some(Discontinuity::ClusterChanged { now: 7, .. })));
    put(&store, "/a", "3").await;
    assert_eq!(changes(&mut watch).await.revision, twin.revision());
}

#[tokio::test]
async fn write_faults_say_what_is_known() {
    let store = Twin::new().store();
    let faults = store.faults().unwrap();
    let write = || store.commit(Txn::new().when(Compare::absent("/a")).put("/a", "1"));
    faults.fail_next_write(WriteFault::Unreachable);
    assert!(matches!(write().await, Err(StoreError::Unreachable { .. })));
    faults.fail_next_write(WriteFault::UnknownLost);
    assert!(matches!(write().await, Err(StoreError::OutcomeUnknown { .. })));
    assert_eq!(store.get("/a").await.unwrap(), None);
    faults.fail_next_write(WriteFault::UnknownApplied);
    assert!(matches!(write().await, Err(StoreError::OutcomeUnknown { .. })));
    assert!(store.get("/a").await.unwrap().is_some());
    assert!(matches!(write().await, Ok(Outcome::Conflict(_))));
}

#[tokio::test]
async fn campaign_survives_unknown_outcomes() {
    let store = Twin::new().store();
    store.faults().unwrap().fail_writes(WriteFault::UnknownApplied);
    let campaign = Candidate::campaign(&store, "/election", "a", Duration::from_secs(1));
    tokio::pin!(campaign);
    let early = tokio::time::timeout(Duration::from_millis(200), &mut campaign).await;
    assert!(early.is_err(), "led without a lease: {early:?}");
    let faults = store.faults().unwrap();
    faults.fail_writes(WriteFault::None);
    within(campaign).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn lost_keep_alives_end_leadership_by_the_clock() {
    let twin = Twin::new();
    let store = twin.store();
    let ttl = Duration::from_secs(3);
    let lead = Candidate::campaign(&store, "/election", "a", ttl).await.unwrap();
    tokio::time::sleep(ttl * 5).await;
    assert!(lead.is_held(), "keep-alives hold it");
    store.faults().unwrap().fail_keep_alives(true);
    let cut = tokio::time::Instant::now();
    assert_eq!(lead.lost().await, Loss::Expired);
    assert!(!lead.is_held() && cut.elapsed() <= ttl);
}

#[tokio::test]
async fn expired_lease_fences_the_old_leader_off() {
    let twin = Twin::new();
    let (store, other) = (twin.store(), twin.store());
    let ttl = Duration::from_mins(1);
    let lead = Candidate::campaign(&store, "/election", "a", ttl).await.unwrap();
    let fence = lead.fence();
    assert!(twin.expire_lease_of(fence.key()));
    let next = within(Candidate::campaign(&other, "/election", "b", ttl)).await.unwrap();
    assert!(next.fence().create_revision() > fence.create_revision());
    let late = store.commit(Txn::new().fenced(&fence).put("/x", "late"));
    match late.await.unwrap() {
        Outcome::Conflict(conflict) => assert!(conflict.fenced_off()),
        done @ Outcome::Done { .. } => panic!("{done:?}"),
    }
    let fenced = Txn::new().fenced(&next.fence()).put("/x", "new");
    assert!(other.commit(fenced).await.unwrap().done().is_some());
}
