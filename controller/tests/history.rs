//! What is remembered of etcd, with both places that keep it: a restore is noticed by the same rules from either.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, its helpers too"
)]

mod api;

use api::Api;
use bulkhead_controller::history::History;
use bulkhead_controller::memory::Memory;
use bulkhead_controller::memory::place::{Place, PlaceError};
use bulkhead_core::{ClusterName, Keys};
use bulkhead_store::{Change, Changes, Entry, Snapshot};
use serde_json::json;
use tempfile::TempDir;

const KEY: &str = "/cluster";

/// Both places, and what they are in.
struct Places {
    folder: TempDir,
    api: Api,
    both: [Place; 2],
}

impl Places {
    async fn start() -> Self {
        let (folder, api) = (tempfile::tempdir().unwrap(), Api::start().await);
        let file = Place::file(&folder.path().join("state"), &keys("c"));
        let config_map = Place::config_map(&api.client(), "bulkhead-system");
        Self { folder, api, both: [file, config_map] }
    }

    /// Puts in both what no memory is.
    fn spoil(&self) {
        let Place::File(file) = &self.both[0] else { panic!("the first is a file") };
        std::fs::write(file, "{").unwrap();
        self.api.put("configmaps", "bulkhead-epoch", json!({"data": {"epoch": "three"}}));
    }
}

fn keys(cluster: &str) -> Keys {
    Keys::new("/p", &ClusterName::new(cluster).unwrap()).unwrap()
}

fn entry(epoch: u64) -> Entry {
    let value = format!(
        r#"{{"epoch":{epoch},"network":["172.11.0.0/16"],"hostSubnetLength":10,"serviceNetwork":[],"mode":"multitenant"}}"#
    );
    Entry { key: KEY.into(), value: value.into(), create_revision: 1, mod_revision: 1 }
}

/// A list with a ledger of this epoch; with none for 0.
fn list(cluster_id: u64, revision: i64, epoch: u64) -> Snapshot {
    let entries = (epoch > 0).then(|| entry(epoch)).into_iter().collect();
    Snapshot { cluster_id, revision, entries, discontinuity: None }
}

fn memory(cluster_id: u64, revision: i64, epoch: u64, owed: Option<u64>) -> Memory {
    Memory { cluster_id, revision, epoch, owed }
}

#[tokio::test]
async fn either_place_gives_back_what_was_written_last() {
    let places = Places::start().await;
    for place in &places.both {
        assert_eq!(place.read().await.unwrap(), None, "{place:?}");
        for kept in [memory(u64::MAX, 12, 3, Some(3)), memory(u64::MAX, i64::MAX, 4, None)] {
            place.write(&kept).await.unwrap();
            assert_eq!(place.read().await.unwrap(), Some(kept), "{place:?}");
        }
    }
    places.spoil();
    for place in &places.both {
        assert!(matches!(place.read().await, Err(PlaceError::Form)), "{place:?}");
        place.write(&memory(1, 1, 1, None)).await.unwrap();
        assert_eq!(place.read().await.unwrap(), Some(memory(1, 1, 1, None)), "written anew: {place:?}");
    }
    // What cannot be read is not nothing.
    let beneath = Place::file(&places.folder.path().join("state/history.p.c.json"), &keys("c"));
    assert!(matches!(beneath.read().await, Err(PlaceError::File { .. })), "{beneath:?}");
    assert!(matches!(beneath.write(&memory(1, 1, 1, None)).await, Err(PlaceError::File { .. })));
}

#[tokio::test]
async fn a_controller_that_starts_after_a_restore_notices_it_by_either_place() {
    let places = Places::start().await;
    let cases = [
        // Cluster id, revision and epoch that are found, and what is owed then.
        ((1, 10, 3), None),
        ((1, 40, 3), None),
        ((1, 40, 4), None),
        ((1, 9, 3), Some(3)),
        ((2, 40, 3), Some(3)),
        ((1, 40, 2), Some(3)),
        ((1, 40, 0), Some(3)),
        ((2, 1, 0), Some(3)),
        // Somebody has dealt with it.
        ((2, 1, 4), None),
    ];
    for place in &places.both {
        place.write(&memory(1, 10, 3, None)).await.unwrap();
        let kept = place.read().await.unwrap().unwrap();
        for ((cluster_id, revision, epoch), owed) in cases {
            let found = (epoch > 0).then_some(epoch);
            let text = format!("{place:?}: {cluster_id} {revision} {epoch}");
            // Known before the first list, as a file is; or learnt after it, as from Kubernetes.
            let mut before = History::knowing(Some(kept.clone()));
            before.listed(&mut list(cluster_id, revision, epoch), KEY);
            let mut after = History::default();
            after.recall(&kept, None);
            assert_eq!((after.owed(), after.memory()), (None, None), "nothing was listed yet");
            after.listed(&mut list(cluster_id, revision, epoch), KEY);
            after.recall(&kept, found);
            for history in [&mut before, &mut after] {
                assert_eq!((history.owed(), history.epoch()), (owed, epoch.max(3)), "{text}");
                // Owed across another restart, too.
                place.write(history.memory().unwrap()).await.unwrap();
                let mut next = History::knowing(place.read().await.unwrap());
                next.listed(&mut list(cluster_id, revision + 1, epoch), KEY);
                assert_eq!(next.owed(), owed, "{text}");
                history.reached(revision + 1, Some(4));
                history.recall(&kept, Some(4));
                assert_eq!(history.owed(), None, "settled: {text}");
            }
        }
    }
}

#[test]
fn a_restore_owes_an_epoch_above_the_highest_seen_until_somebody_raises_it() {
    let mut history = History::default();
    for (cluster_id, revision) in [(1, 10), (1, 10), (1, 12)] {
        history.listed(&mut list(cluster_id, revision, 3), KEY);
        assert_eq!(history.owed(), None);
    }
    for (cluster_id, revision) in [(1, 11), (2, 40)] {
        let mut restored = list(cluster_id, revision, 1);
        history.listed(&mut restored, KEY);
        assert!(restored.discontinuity.is_some());
        assert_eq!(history.owed(), Some(3));
    }
    // Once for that break: a list that leads on does not forget it either.
    history.listed(&mut list(2, 41, 1), KEY);
    assert_eq!(history.owed(), Some(3));
    history.changed(&Changes { revision: 42, changes: vec![Change::Put(entry(3))] }, KEY);
    assert_eq!(history.owed(), Some(3), "agents saw 3");
    history.changed(&Changes { revision: 43, changes: vec![Change::Put(entry(4))] }, KEY);
    assert_eq!(history.owed(), None);
    // One that has passed the revision that was seen.
    history.listed(&mut list(2, 90, 2), KEY);
    assert_eq!(history.owed(), Some(4));
}

#[test]
fn what_is_no_restore_owes_nothing() {
    let mut history = History::default();
    history.listed(&mut list(1, 10, 1), KEY);
    // Another leader has dealt with it.
    history.listed(&mut list(1, 9, 2), KEY);
    assert_eq!(history.owed(), None);
    // The entry was deleted while this process looked on: it is put back.
    history.listed(&mut list(1, 12, 0), KEY);
    assert_eq!((history.owed(), history.epoch()), (None, 2));
}

#[tokio::test]
async fn a_controller_keeps_a_file_of_its_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let load = |cluster: &str| {
        let (folder, keys) = (folder.path().to_owned(), keys(cluster));
        async move { History::load(Some(&folder), &keys).await }
    };
    let mut history = load("c").await;
    history.listed(&mut list(1, 10, 3), KEY);
    history.worth_saving().await;
    history.save().await;
    let mut next = load("c").await;
    assert_eq!((next.epoch(), next.owed()), (3, None));
    next.listed(&mut list(1, 9, 1), KEY);
    assert_eq!(next.owed(), Some(3));
    next.save().await;
    assert_eq!(load("c").await.owed(), Some(3), "owed across a restart");
    assert_eq!(load("d").await.epoch(), 0, "of another cluster");
    let file = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    // As earlier controllers wrote it.
    std::fs::write(&file, r#"{"etcd":[1,10],"epoch":3,"owed":2,"recalled":true}"#).unwrap();
    assert_eq!((load("c").await.epoch(), load("c").await.owed()), (3, Some(2)));
    std::fs::write(&file, "{").unwrap();
    assert_eq!(load("c").await.epoch(), 0);
}
