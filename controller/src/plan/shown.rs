//! What Kubernetes' objects show of numbers and subnets, and what of it is believed when the ledger has lost them.
//!
//! The controller writes it (see [`report`](crate::kubernetes::report)); behind a restore of etcd it is all that is left of
//! namespaces and nodes younger than the snapshot. It is a wish: what somebody has in the ledger, or two objects show, is
//! given to nobody for it. A number is believed only if a rise of the epoch passed it by, and only of who is there at that
//! rise: whoever comes later may show what somebody else had and gave back.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_core::cluster::Networks;
use bulkhead_core::network::NodeSubnets;
use bulkhead_core::{Namespace, NodeName, Numbers, Vni};

use super::nodes;
use crate::state::State;

/// The longest annotation of a node that is looked at, in bytes: two subnets take less.
const LONGEST: usize = 120;

/// What a Node should show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The Node's UID, so that it is not shown by another one.
    pub uid: String,
    /// Its subnets.
    pub text: String,
}

/// What the Nodes that have subnets should show.
pub fn subnets(state: &State) -> BTreeMap<NodeName, Shown> {
    let Some(objects) = state.source.objects() else { return BTreeMap::new() };
    let mut shown = BTreeMap::new();
    for (_, node) in state.nodes() {
        let Some(uid) = node.uid.as_ref().filter(|uid| objects.nodes.get(&node.host).is_some_and(|o| o.uid == **uid))
        else {
            continue;
        };
        let text = node.subnets.iter().map(|subnet| subnet.to_string()).collect::<Vec<_>>().join(",");
        shown.insert(node.host.clone(), Shown { uid: uid.clone(), text });
    }
    shown
}

/// The VNIs that namespaces show, believed or not.
pub(super) fn all_vnis(state: &State) -> BTreeMap<Namespace, u32> {
    let Some(objects) = state.source.objects() else { return BTreeMap::new() };
    let shown = objects.namespaces.iter().filter_map(|(name, object)| {
        let number = object.shown_vni.as_ref()?.parse().ok()?;
        Some((name.clone(), Vni::namespace(number).ok()?.get()))
    });
    shown.collect()
}

/// The VNIs that namespaces show; not those that two of them show.
pub(super) fn undisputed_vnis(state: &State) -> BTreeMap<Namespace, Vni> {
    let all = all_vnis(state).into_iter().filter_map(|(name, number)| Some((name, Vni::namespace(number).ok()?)));
    undisputed(all.collect())
}

/// Those of them that were passed by.
pub(super) fn vnis(state: &State, numbers: &Numbers) -> BTreeMap<Namespace, Vni> {
    let mut shown = undisputed_vnis(state);
    shown.retain(|_, vni| numbers.was_passed_by(vni.get()));
    shown
}

/// The blocks that Nodes show; those that two of them show, or that are in `elsewhere`, are nobody's. The second of the
/// pair are all that are shown, disputed or not.
pub(super) fn blocks(
    state: &State,
    networks: &Networks,
    elsewhere: &BTreeSet<u32>,
) -> (BTreeMap<NodeName, u32>, BTreeSet<u32>) {
    let Some(objects) = state.source.objects() else { return Default::default() };
    let shown = objects.nodes.iter().filter_map(|(name, object)| {
        let text = object.shown_subnet.as_ref().filter(|text| text.len() <= LONGEST)?;
        let subnets: NodeSubnets = nodes::parse_subnets(text, networks).ok()?;
        Some((name.clone(), networks.block_of(subnets).ok()?))
    });
    let shown: Vec<(NodeName, u32)> = shown.collect();
    let all = shown.iter().map(|(_, block)| *block).collect();
    let mut undisputed = undisputed(shown);
    undisputed.retain(|_, block| !elsewhere.contains(block));
    (undisputed, all)
}

fn undisputed<K: Ord, V: Ord + Copy>(shown: Vec<(K, V)>) -> BTreeMap<K, V> {
    let mut counts = BTreeMap::<V, usize>::new();
    for (_, value) in &shown {
        *counts.entry(*value).or_default() += 1;
    }
    shown.into_iter().filter(|(_, value)| counts.get(value) == Some(&1)).collect()
}
