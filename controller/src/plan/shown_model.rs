//! Behind restores of etcd, whatever happened before: nobody who lives renumbers, and no number has two owners, ever.

use std::collections::BTreeMap;

use bulkhead_core::number::JUMP;
use bulkhead_core::record::{ConfigRecord, Record};
use proptest::prelude::*;

use super::shown_tests::{SMALL, cluster, cluster_of, objects, restored, settle, snapshot, subnet};
use crate::objects::NamespaceObject;

/// What happens to a cluster in Kubernetes.
#[derive(Debug, Clone)]
enum Event {
    Born(u8),
    Gone(u8),
    Joined(u8),
    Left(u8),
    Snapshot,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..12u8).prop_map(Event::Born),
        2 => (0..12u8).prop_map(Event::Gone),
        4 => (0..8u8).prop_map(Event::Joined),
        2 => (0..8u8).prop_map(Event::Left),
        1 => Just(Event::Snapshot),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever happened since the snapshot: behind the restore everybody who lives has what they had.
    #[test]
    fn nobody_renumbers(events in prop::collection::vec(event(), 1..40), small: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut scene = cluster_of(if small { SMALL } else { ConfigRecord::EXAMPLE }).await;
            let mut before = snapshot(&scene).await;
            for (number, event) in events.into_iter().enumerate() {
                match event {
                    Event::Born(name) if scene.numbers(&format!("ns{name}")).is_none() => {
                        scene.appears(&format!("ns{name}"), &format!("u{number}"));
                    }
                    Event::Gone(name) => scene.vanishes(&format!("ns{name}")),
                    Event::Joined(host) if subnet(&scene, &format!("n{host}")).is_empty() => {
                        scene.node(&format!("n{host}"), &format!("u{number}"), &[&format!("10.0.0.{}", host + 1)]);
                    }
                    Event::Left(host) => {
                        scene.node_leaves(&format!("n{host}"));
                        scene.state.expire([format!("10.0.0.{}", host + 1).parse().unwrap()].into());
                    }
                    Event::Snapshot => before = snapshot(&scene).await,
                    Event::Born(_) | Event::Joined(_) => {}
                }
                settle(&mut scene).await;
                scene.state.expire([].into());
            }
            let had: Vec<_> = scene.state.tenants().iter().map(|(name, tenant)| (name.clone(), tenant.clone())).collect();
            let nodes: Vec<_> = scene.state.nodes().map(|(address, node)| (address, node.clone())).collect();
            let mut after = restored(&before, objects(&scene), Some(1)).await;
            settle(&mut after).await;
            let has: Vec<_> = after.state.tenants().iter().map(|(name, tenant)| (name.clone(), tenant.clone())).collect();
            assert_eq!(has, had);
            for (address, node) in nodes {
                let entry = after.state.nodes().find(|(there, _)| *there == address).map(|(_, entry)| entry.clone());
                assert_eq!(entry, Some(node));
            }
        });
    }

    /// However often etcd goes back, and whatever newcomers show: everybody keeps their number, and none is another's later.
    #[test]
    fn a_number_is_of_one_namespace_for_ever(events in prop::collection::vec((event(), any::<prop::sample::Index>()), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut scene = cluster().await;
            let mut before = snapshot(&scene).await;
            // The model: every number that was ever given out, and to whom.
            let mut given = BTreeMap::<u32, String>::new();
            let mut restores = 0;
            for (number, (event, index)) in events.into_iter().enumerate() {
                match event {
                    // Half of the newcomers show a number that somebody has or had.
                    Event::Born(name) if scene.numbers(&format!("ns{name}")).is_none() => {
                        let known: Vec<u32> = given.keys().copied().chain([0, 9, 4711, 2 * JUMP]).collect();
                        let shown = (number % 2 == 0).then(|| index.get(&known).to_string());
                        let uid = format!("u{number}");
                        scene.object(&format!("ns{name}"), NamespaceObject { uid, shown_vni: shown, ..Default::default() });
                    }
                    Event::Gone(name) => scene.vanishes(&format!("ns{name}")),
                    Event::Snapshot => before = snapshot(&scene).await,
                    // No more than the space has room for.
                    Event::Left(_) if restores < 4 => {
                        restores += 1;
                        let (had, owed) = (scene.state.tenants().clone(), scene.state.epoch());
                        scene = restored(&before, objects(&scene), owed).await;
                        settle(&mut scene).await;
                        assert_eq!(*scene.state.tenants(), had);
                    }
                    _ => {}
                }
                settle(&mut scene).await;
                for (_, tenant) in scene.state.tenants().iter() {
                    let uid = tenant.uid.clone().unwrap();
                    assert_eq!(*given.entry(tenant.vni.get()).or_insert_with(|| uid.clone()), uid, "VNI {}", tenant.vni);
                }
            }
        });
    }
}
