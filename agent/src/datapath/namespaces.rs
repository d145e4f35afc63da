//! Namespace indices and the two banks of `NetID`s.
//!
//! A VNI gets a node-local index, which the mark carries. A transaction of etcd is applied at once: its `NetID`s are
//! written into the idle bank, then the bank is switched by one word that each packet reads once. Indices are pinned
//! with the maps, so a restarted agent finds every VNI under the index that packets in flight carry; a freed one rests.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use aya::maps::{Array, HashMap, MapData};
use bulkhead_core::Namespace;

use super::abi::{NETID_NONE, NS_FIRST, NS_MAX, NS_NODE, NS_UNKNOWN, NamespaceValue, Origin, StateValue};
use super::{DatapathError, map_error, removed};

/// How long a freed index is not given to another VNI: far longer than any packet stays in a node's stack.
const REST: Duration = Duration::from_mins(5);

/// The VNI of pods whose own has become another namespace's: reserved, so that no node takes it for a namespace's.
pub const ORPHANS: u32 = 1;

/// The network of a VNI, as the programs judge it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// A `NetID`; 0 is global.
    Id(u32),
    /// Of a namespace that is gone: reaches `NetID` 0 only.
    None,
}

impl Network {
    const fn value(self) -> u32 {
        match self {
            Self::Id(id) => id,
            Self::None => NETID_NONE,
        }
    }
}

/// The maps `namespaces` and `vnis`, and what is in them.
pub struct Namespaces {
    values: Array<MapData, [u8; NamespaceValue::SIZE]>,
    by_vni: HashMap<MapData, u32, u32>,
    indices: BTreeMap<u32, u32>,
    written: BTreeMap<u32, NamespaceValue>,
    resting: VecDeque<(Instant, u32)>,
    next: u32,
    bank: u32,
    origin: Origin,
    as_adopted: bool,
    /// Indices that pods' entries mention: see [`Namespaces::hold`].
    held: BTreeSet<u32>,
    /// VNIs that the intent no longer has: out of every network by the next bank, forgotten by [`Namespaces::settle`].
    leaving: Vec<u32>,
    /// Whose each VNI is.
    owners: BTreeMap<u32, Namespace>,
}

impl Namespaces {
    /// Reads what the maps hold already.
    pub(super) fn adopt(
        values: Array<MapData, [u8; NamespaceValue::SIZE]>,
        by_vni: HashMap<MapData, u32, u32>,
        state: StateValue,
    ) -> Result<Self, DatapathError> {
        let mut adopted = Self {
            values,
            by_vni,
            indices: BTreeMap::new(),
            written: BTreeMap::new(),
            resting: VecDeque::new(),
            next: NS_FIRST,
            bank: state.bank,
            origin: state.origin,
            as_adopted: true,
            held: BTreeSet::new(),
            leaving: Vec::new(),
            owners: BTreeMap::new(),
        };
        for entry in &adopted.by_vni {
            let (vni, index) = entry.map_err(map_error("vnis", "read"))?;
            adopted.indices.insert(vni, index);
        }
        let now = Instant::now();
        for index in NS_NODE..NS_MAX {
            let bytes = adopted.values.get(&index, 0).map_err(map_error("namespaces", "read"))?;
            let value = NamespaceValue::from_bytes(bytes);
            if value == NamespaceValue::default() {
                continue;
            }
            adopted.written.insert(index, value);
            if index >= NS_FIRST {
                adopted.next = index + 1;
                if adopted.indices.get(&value.vni) != Some(&index) {
                    adopted.resting.push_back((now, index));
                }
            }
        }
        Ok(adopted)
    }

    /// The bank that holds.
    pub const fn bank(&self) -> u32 {
        self.bank
    }

    /// Which state of etcd they are of.
    pub const fn origin(&self) -> Origin {
        self.origin
    }

    /// They are of this state of etcd, and the state word says so.
    pub const fn brought_to(&mut self, origin: Origin) {
        self.origin = origin;
    }

    /// Whether they are as an earlier agent left them: no intent was written into them since.
    pub const fn are_as_adopted(&self) -> bool {
        self.as_adopted
    }

    /// Tells which indices pods' entries mention: each stays with its VNI, and none is given to another. A pod whose record is
    /// lost acts by its index alone.
    pub fn hold(&mut self, mentioned: BTreeSet<u32>) {
        self.held = mentioned;
    }

    /// The index of a VNI, if it has one.
    pub fn index(&self, vni: u32) -> Option<u32> {
        self.indices.get(&vni).copied()
    }

    /// The index under which a pod of `namespace` acts that got `vni` at its birth. One whose VNI is another namespace's now
    /// (the ledger was lost and made anew) is nobody's: it reaches `NetID` 0 only, and its VNI is [`ORPHANS`].
    pub fn index_of(&self, namespace: &Namespace, vni: u32) -> u32 {
        let own = self.owners.get(&vni).is_none_or(|owner| owner == namespace);
        self.index(if own { vni } else { ORPHANS }).unwrap_or(NS_UNKNOWN)
    }

    /// Whether `vni` has an index and is known as `namespace`'s.
    pub fn is_known(&self, namespace: &Namespace, vni: u32) -> bool {
        self.index(vni).is_some() && self.owners.get(&vni) == Some(namespace)
    }

    /// Says whose each VNI is from now on.
    pub fn set_owners(&mut self, owners: BTreeMap<u32, Namespace>) {
        self.owners = owners;
    }

    /// The VNIs that have an index, the nodes' own aside.
    pub fn vnis(&self) -> impl Iterator<Item = u32> + '_ {
        self.indices.keys().copied().filter(|vni| *vni != 0)
    }

    fn free_index(&mut self) -> Result<u32, DatapathError> {
        let longest = self.resting.iter().position(|(_, index)| !self.held.contains(index));
        let rested = longest.and_then(|at| self.resting.get(at)).is_some_and(|(since, _)| since.elapsed() >= REST);
        if !rested && self.next < NS_MAX {
            self.next += 1;
            return Ok(self.next - 1);
        }
        let freed = longest.and_then(|at| self.resting.remove(at));
        freed.map(|(_, index)| index).ok_or(DatapathError::TooManyNamespaces)
    }

    fn write(&mut self, index: u32, value: NamespaceValue) -> Result<(), DatapathError> {
        if self.written.get(&index) != Some(&value) {
            self.values.set(index, value.to_bytes(), 0).map_err(map_error("namespaces", "written"))?;
            self.written.insert(index, value);
        }
        Ok(())
    }

    /// Writes the whole of `intent` (VNI to network) into the idle bank and returns the bank to switch to, or none if
    /// nothing changed. `unknown` is what a VNI outside the intent counts as. New VNIs get their index here, with the
    /// network in both banks, before anything can carry it. VNIs of `keep`, and those whose index is held, keep it though the
    /// intent lacks them, and count as `unknown`.
    pub fn prepare(
        &mut self,
        intent: &BTreeMap<u32, Network>,
        unknown: Network,
        node: Network,
        keep: &BTreeSet<u32>,
    ) -> Result<Option<u32>, DatapathError> {
        self.as_adopted = false;
        let gone = |vni: &u32| !intent.contains_key(vni);
        let kept: BTreeSet<u32> = self.vnis().chain(keep.iter().copied()).filter(gone).collect();
        let is_held =
            |vni: &u32| keep.contains(vni) || self.index(*vni).is_some_and(|index| self.held.contains(&index));
        self.leaving = kept.iter().copied().filter(|vni| !is_held(vni)).collect();
        let idle = 1 - self.bank;
        let mut switch = false;
        switch |= self.put(NS_NODE, 0, node, idle)?;
        switch |= self.put(NS_UNKNOWN, u32::MAX, unknown, idle)?;
        self.publish(0, NS_NODE)?;
        for (vni, network) in intent.iter().map(|(v, n)| (*v, *n)).chain(kept.into_iter().map(|v| (v, unknown))) {
            if let Some(index) = self.index(vni) {
                switch |= self.put(index, vni, network, idle)?;
            } else {
                let index = self.free_index()?;
                let net_id = [network.value(); 2];
                self.write(index, NamespaceValue { vni, net_id, assigned: true })?;
                self.publish(vni, index)?;
            }
        }
        Ok(switch.then_some(idle))
    }

    /// Writes one network into the idle bank; says whether it differs from the bank that holds.
    fn put(&mut self, index: u32, vni: u32, network: Network, idle: u32) -> Result<bool, DatapathError> {
        let network = network.value();
        let Some(mut value) = self.written.get(&index).copied().filter(|value| value.assigned && value.vni == vni)
        else {
            self.write(index, NamespaceValue { vni, net_id: [network; 2], assigned: true })?;
            return Ok(false);
        };
        value.net_id[idle as usize & 1] = network;
        self.write(index, value)?;
        Ok(value.net_id[0] != value.net_id[1])
    }

    fn publish(&mut self, vni: u32, index: u32) -> Result<(), DatapathError> {
        if self.index(vni) != Some(index) {
            self.by_vni.insert(vni, index, 0).map_err(map_error("vnis", "written"))?;
            self.indices.insert(vni, index);
        }
        Ok(())
    }

    /// Frees a VNI's index: it is unassigned at once and rests before another VNI gets it.
    fn forget(&mut self, vni: u32) -> Result<(), DatapathError> {
        let Some(index) = self.index(vni) else { return Ok(()) };
        removed(self.by_vni.remove(&vni)).map_err(map_error("vnis", "cleared"))?;
        self.write(index, NamespaceValue { vni, net_id: [NETID_NONE; 2], assigned: false })?;
        self.indices.remove(&vni);
        self.resting.push_back((Instant::now(), index));
        Ok(())
    }

    /// Frees the indices of what the last [`Namespaces::prepare`] found gone: to be called once its bank holds.
    pub fn settle(&mut self) -> Result<(), DatapathError> {
        for vni in std::mem::take(&mut self.leaving) {
            self.forget(vni)?;
        }
        Ok(())
    }

    /// Compares both maps with what was written into them and writes again what something else changed. Returns how many
    /// entries that were.
    pub fn repair(&mut self) -> Result<usize, DatapathError> {
        let mut repaired = 0;
        for index in 0..self.next {
            let wanted = self.written.get(&index).copied().unwrap_or_default().to_bytes();
            if self.values.get(&index, 0).map_err(map_error("namespaces", "read"))? != wanted {
                self.values.set(index, wanted, 0).map_err(map_error("namespaces", "written"))?;
                repaired += 1;
            }
        }
        let held: BTreeMap<u32, u32> =
            self.by_vni.iter().collect::<Result<_, _>>().map_err(map_error("vnis", "read"))?;
        for (&vni, &index) in self.indices.iter().filter(|(vni, index)| held.get(vni) != Some(index)) {
            self.by_vni.insert(vni, index, 0).map_err(map_error("vnis", "written"))?;
            repaired += 1;
        }
        for vni in held.keys().filter(|vni| !self.indices.contains_key(vni)) {
            removed(self.by_vni.remove(vni)).map_err(map_error("vnis", "cleared"))?;
            repaired += 1;
        }
        Ok(repaired)
    }

    /// The bank was switched.
    pub const fn switched(&mut self, bank: u32) {
        self.bank = bank;
    }
}
