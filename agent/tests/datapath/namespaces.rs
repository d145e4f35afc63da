//! Namespace indices: stable, never shared, and rested before reuse.

use std::collections::{BTreeMap, BTreeSet};

use super::node::{GEOMETRY, on_bpf_fs};
use bulkhead_agent::datapath::abi::{NS_FIRST, NS_NODE, StateValue};
use bulkhead_agent::datapath::{Datapath, Network};
use bulkhead_agent::live::locked;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// Prepares and switches as the agent does.
fn apply(datapath: &Datapath, vnis: &[u32], keep: &[u32]) {
    let intent: BTreeMap<u32, Network> = vnis.iter().map(|vni| (*vni, Network::Id(*vni))).collect();
    let keep: BTreeSet<u32> = keep.iter().copied().collect();
    let mut namespaces = locked(&datapath.namespaces);
    if let Some(bank) = namespaces.prepare(&intent, Network::None, Network::Id(0), &keep).unwrap() {
        datapath.set_state(StateValue { bank, overlay_ifindex: 1, ..StateValue::default() }).unwrap();
        namespaces.switched(bank);
    }
    namespaces.settle().unwrap();
}

fn index(datapath: &Datapath, vni: u32) -> Option<u32> {
    locked(&datapath.namespaces).index(vni)
}

fn load(bpf_dir: &std::path::Path) -> Datapath {
    Datapath::load(bpf_dir, &GEOMETRY).expect("cannot load the datapath: this test needs root (CAP_BPF)")
}

#[test]
fn an_agent_that_adopts_finds_every_index_where_it_was() {
    on_bpf_fs(|bpf_dir| {
        let first = load(bpf_dir);
        apply(&first, &[10, 20, 30, 16_777_215], &[40]);
        let known = [0, 10, 20, 30, 40, 16_777_215];
        let indices: BTreeSet<u32> = known.iter().map(|vni| index(&first, *vni).unwrap()).collect();
        assert_eq!(indices.len(), known.len(), "no index is shared");
        assert_eq!(index(&first, 0), Some(NS_NODE));
        assert!(indices.iter().all(|index| *index == NS_NODE || *index >= NS_FIRST));
        assert_eq!(index(&first, 50), None, "an unknown VNI has none of its own");
        let bank = locked(&first.namespaces).bank();

        let second = load(bpf_dir);
        assert_eq!(locked(&second.namespaces).bank(), bank);
        for vni in known {
            assert_eq!(index(&second, vni), index(&first, vni), "VNI {vni}");
        }
        let listed: BTreeSet<u32> = locked(&second.namespaces).vnis().collect();
        assert_eq!(listed, known[1..].iter().copied().collect());
        apply(&second, &[30, 20, 10, 16_777_215, 60], &[40]);
        for vni in known {
            assert_eq!(index(&second, vni), index(&first, vni), "VNI {vni}");
        }
        assert!(!indices.contains(&index(&second, 60).unwrap()));
    });
}

#[test]
fn an_index_that_was_freed_rests() {
    on_bpf_fs(|bpf_dir| {
        let first = load(bpf_dir);
        apply(&first, &[10, 20], &[]);
        let freed = index(&first, 20).unwrap();
        apply(&first, &[10], &[]);
        assert_eq!(index(&first, 20), None);
        let more: Vec<u32> = (10..200).filter(|vni| *vni != 20).collect();
        apply(&first, &more, &[]);
        assert!(more.iter().all(|vni| index(&first, *vni) != Some(freed)));
        // The VNI itself gets another, too: packets that carry the old one are nobody's.
        apply(&first, &[&more[..], &[20]].concat(), &[]);
        assert_ne!(index(&first, 20), Some(freed));
        // The next agent does not know since when it rests: from now.
        let second = load(bpf_dir);
        apply(&second, &(10..400).collect::<Vec<_>>(), &[]);
        assert!((10..400).all(|vni| index(&second, vni) != Some(freed)));
    });
}

#[test]
fn what_is_kept_holds_its_index_until_it_is_let_go() {
    on_bpf_fs(|bpf_dir| {
        let datapath = load(bpf_dir);
        apply(&datapath, &[10, 20], &[]);
        let held = index(&datapath, 20);
        apply(&datapath, &[10], &[20]);
        assert_eq!(index(&datapath, 20), held, "its pods still run");
        apply(&datapath, &[10, 20], &[20]);
        assert_eq!(index(&datapath, 20), held, "it came back");
        apply(&datapath, &[10], &[]);
        assert_eq!(index(&datapath, 20), None);
    });
}

/// Against a naive model: a map from VNI to index, and the set of indices ever used.
#[test]
fn any_history_keeps_indices_apart() {
    on_bpf_fs(|bpf_dir| {
        let mut datapath = load(bpf_dir);
        let step =
            (prop::collection::btree_set(10..30u32, 0..12), prop::collection::btree_set(10..30u32, 0..3), 0..20u8);
        let config = Config { cases: 12, failure_persistence: None, ..Config::default() };
        let steps = prop::collection::vec(step, 1..12);
        // One datapath through all cases: histories go on.
        let mut model: BTreeMap<u32, u32> = BTreeMap::new();
        let mut used = BTreeSet::new();
        let state = std::cell::RefCell::new((&mut datapath, &mut model, &mut used));
        TestRunner::new(config)
            .run(&steps, |steps| {
                let (datapath, model, used) = &mut *state.borrow_mut();
                for (vnis, keep, restart) in steps {
                    if restart == 0 {
                        **datapath = load(bpf_dir);
                    }
                    let list = |set: &BTreeSet<u32>| set.iter().copied().collect::<Vec<_>>();
                    apply(datapath, &list(&vnis), &list(&keep));
                    model.retain(|vni, _| vnis.contains(vni) || keep.contains(vni));
                    for vni in vnis.union(&keep) {
                        let now = index(datapath, *vni).expect("what is wanted has an index");
                        if let Some(before) = model.insert(*vni, now) {
                            prop_assert_eq!(before, now, "VNI {} moved", vni);
                        } else {
                            prop_assert!(used.insert(now), "index {} of VNI {} did not rest", now, vni);
                        }
                    }
                    let listed: BTreeSet<u32> = locked(&datapath.namespaces).vnis().collect();
                    prop_assert_eq!(listed, model.keys().copied().collect::<BTreeSet<_>>());
                }
                Ok(())
            })
            .unwrap();
    });
}
