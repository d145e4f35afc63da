//! Namespaces and nodes: the intent's part that is maps and routes only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use bulkhead_core::cluster::Networks;
use bulkhead_core::{Mode, Namespace};

use crate::datapath::abi::{Origin, Peer, StateValue};
use crate::datapath::{DatapathError, Geometry, Namespaces, Network, ORPHANS};
use crate::intent::{Intent, Shared};
use crate::kernel::Netlink;
use crate::live::{Live, locked};
use crate::pods::Record;
use crate::sys;

/// VNI to network, as the intent has it; in a flat network every `NetID` reads as 0.
fn networks(intent: &Intent) -> (BTreeMap<u32, Network>, Network) {
    let flat = intent.cluster.as_ref().is_some_and(|cluster| cluster.mode == Mode::Flat);
    let of = |net_id: u32| Network::Id(if flat { 0 } else { net_id });
    let known = intent.namespaces.values().map(|tenant| (tenant.vni.get(), of(tenant.net_id.get()))).collect();
    (known, if flat { Network::Id(0) } else { Network::None })
}

/// Whose each VNI is.
fn owners(intent: &Intent) -> BTreeMap<u32, Namespace> {
    intent.namespaces.iter().map(|(namespace, tenant)| (tenant.vni.get(), namespace.clone())).collect()
}

/// The pods whose VNI is not their namespace's: those whose VNI the intent gives to another one, for the ledger was lost and
/// made anew; and those whose VNI is nobody's.
fn strays<'a>(records: &'a [Record], intent: &Intent) -> (Vec<&'a Record>, Vec<&'a Record>) {
    let own = |record: &Record| intent.namespaces.get(&record.namespace).map(|tenant| tenant.vni.get());
    let stray: Vec<&Record> = records.iter().filter(|record| own(record) != Some(record.vni)).collect();
    if stray.is_empty() {
        return Default::default();
    }
    let given: BTreeSet<u32> = intent.namespaces.values().map(|tenant| tenant.vni.get()).collect();
    stray.into_iter().partition(|record| given.contains(&record.vni))
}

/// A problem of these pods, for a person; none if there are none.
fn told(problem: &str, pods: &[&Record]) -> Option<String> {
    let names: Vec<String> = pods.iter().map(|record| format!("{}/{}", record.namespace, record.pod)).collect();
    (!names.is_empty())
        .then(|| format!("{problem}; they reach global namespaces and nodes only; delete them: {}", names.join(", ")))
}

/// The pods that have another VNI than their namespace, for a person. One whose namespace is gone is left to its end.
pub(super) fn misplaced(records: &[Record], intent: &Intent) -> impl Iterator<Item = String> {
    let (orphans, mut outlived) = strays(records, intent);
    // Attached before this node knew of the new namespace, they have the former one's.
    outlived.retain(|record| intent.namespaces.contains_key(&record.namespace));
    let orphans = told("the VNIs of these pods are other namespaces' since the ledger was made anew", &orphans);
    let outlived = told("the namespaces of these pods were made anew since they were attached", &outlived);
    orphans.into_iter().chain(outlived)
}

/// Whether an intent is a cached one that may lack what the maps hold.
pub(super) fn is_outdated(intent: &Intent, namespaces: &Namespaces) -> bool {
    intent.cached && namespaces.origin().is_ahead_of(Origin::new(intent.cluster_id, intent.revision))
}

/// Brings the namespaces' maps in line, by one switch of the bank. Also called by an ADD whose namespace has just become
/// known, so that the pod need not wait for the reconciler. A cached intent that is older than the maps changes nothing: the
/// agent before this one had seen more of etcd than it had time to save.
pub fn apply_namespaces(live: &Live, shared: &Shared) -> Result<(), DatapathError> {
    let mut namespaces = locked(&live.datapath.namespaces);
    let records = live.records.all();
    let read = shared.read(|intent, _| {
        let outdated = is_outdated(intent, &namespaces);
        let origin = Origin::new(intent.cluster_id, intent.revision);
        let orphans = || strays(&records, intent).0.into_iter().cloned().collect::<Vec<_>>();
        (!outdated).then(|| (networks(intent), owners(intent), orphans(), origin))
    });
    let Some(((known, unknown), owners, orphans, origin)) = read else { return Ok(()) };
    namespaces.hold(locked(&live.datapath.endpoints).namespaces());
    let mut keep: BTreeSet<u32> = records.iter().map(|record| record.vni).collect();
    if !orphans.is_empty() {
        keep.insert(ORPHANS);
    }
    namespaces.set_owners(owners);
    let switch = namespaces.prepare(&known, unknown, Network::Id(0), &keep)?;
    // Before their VNI's new network holds.
    for record in &orphans {
        live.republish(record, namespaces.index_of(&record.namespace, record.vni))?;
    }
    if switch.is_some() || namespaces.origin() != origin {
        let bank = switch.unwrap_or(namespaces.bank());
        live.datapath.set_state(StateValue { bank, overlay_ifindex: live.overlay(), origin })?;
        namespaces.brought_to(origin);
    }
    if let Some(bank) = switch {
        namespaces.switched(bank);
        // A program that read the old bank's number may still be running; the bank is written again only after it ended.
        sys::wait_for_running_programs();
    }
    namespaces.settle()
}

/// The other nodes, as the intent has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Nodes {
    pub blocks: BTreeMap<u32, Peer>,
    pub addresses: BTreeMap<IpAddr, Peer>,
    /// Entries that cannot be used, in words.
    pub unusable: Vec<String>,
}

impl Nodes {
    /// Reads the intent. What two entries claim is nobody's, but for this node's own and for the addresses at which
    /// tunnels end, which are the entries' keys.
    pub fn of(intent: &Intent, networks: &Networks, geometry: &Geometry) -> Self {
        let own = IpAddr::V4(geometry.node_ip);
        let local = Peer { remote: own, local: true, mtu: None };
        let mut nodes = Self::default();
        let (mut contested_blocks, mut contested_addresses) = (BTreeSet::new(), BTreeSet::new());
        for (ip, node) in &intent.nodes {
            let peer = Peer { remote: *ip, local: *ip == own, mtu: None };
            let mut unusable = |what: String| nodes.unusable.push(format!("node {} ({ip}): {what}", node.host));
            match networks.block_of(node.subnets) {
                Ok(block) if block == geometry.local_block && !peer.local => {
                    unusable("the ledger gives it this node's subnet; remove one of the two nodes".into());
                }
                Ok(block) => {
                    if let Some(other) = nodes.blocks.insert(block, peer) {
                        contested_blocks.insert(block);
                        unusable(format!("its subnet is that of {} too; remove one of the two nodes", other.remote));
                    }
                }
                Err(error) => {
                    unusable(error.to_string());
                    continue;
                }
            }
            nodes.addresses.insert(*ip, peer);
            for address in node.addresses.iter().filter(|address| *address != ip) {
                if *address == own || intent.nodes.contains_key(address) {
                    unusable(format!("its address {address} is another node's"));
                } else if let Some(other) = nodes.addresses.insert(*address, peer)
                    && other != peer
                {
                    contested_addresses.insert(*address);
                    unusable(format!("its address {address} is that of {} too", other.remote));
                }
            }
        }
        nodes.blocks.retain(|block, _| !contested_blocks.contains(block));
        nodes.addresses.retain(|address, _| !contested_addresses.contains(address));
        // Our own block is ours whatever the ledger says of it now: pods live in it.
        nodes.blocks.insert(geometry.local_block, local);
        nodes.addresses.insert(own, local);
        nodes
    }

    /// Asks the kernel which routes are narrower than `underlay`, in bytes: by configuration, or by what a router said.
    pub fn ask_routes(&mut self, host: &mut Netlink, underlay: u32) {
        let mut asked: BTreeMap<IpAddr, Option<u32>> = BTreeMap::new();
        for peer in self.blocks.values_mut().chain(self.addresses.values_mut()).filter(|peer| !peer.local) {
            // A route that cannot be asked for is taken for a wide one: the path is then learned from the routers.
            let mut ask = || host.route_to(peer.remote).ok().flatten()?.mtu.filter(|mtu| *mtu < underlay);
            peer.mtu = *asked.entry(peer.remote).or_insert_with(&mut ask);
        }
    }

    /// The other nodes' addresses.
    pub fn remote_addresses(&self) -> BTreeSet<IpAddr> {
        self.addresses.iter().filter(|(_, peer)| !peer.local).map(|(address, _)| *address).collect()
    }
}

#[cfg(test)]
mod tests {
    use bulkhead_core::ledger::{self, ClusterEntry};

    use super::*;

    fn read(nodes: &[(&str, &str, &str)]) -> Nodes {
        let cluster: ClusterEntry = ledger::parse(
            br#"{"epoch":1,"network":["10.77.0.0/16"],"hostSubnetLength":8,"serviceNetwork":[],"mode":"multitenant"}"#,
        )
        .unwrap();
        let entry = |(ip, addresses, subnet): &(&str, &str, &str)| {
            let json = format!(r#"{{"host":"n","addresses":{addresses},"subnets":["{subnet}"]}}"#);
            (ip.parse().unwrap(), ledger::parse(json.as_bytes()).unwrap())
        };
        let intent = Intent { nodes: nodes.iter().map(entry).collect(), ..Intent::default() };
        let geometry = Geometry {
            network: "10.77.0.0/16".parse().unwrap(),
            host_bits: 8,
            blocks: 256,
            local_block: 1,
            node_ip: "10.0.0.1".parse().unwrap(),
            vxlan_port: 4789,
            mtu: 1450,
        };
        Nodes::of(&intent, &cluster.networks, &geometry)
    }

    type Owners = (Vec<(u32, String)>, Vec<(String, String)>);

    fn owners(nodes: &Nodes) -> Owners {
        let blocks = nodes.blocks.iter().map(|(block, peer)| (*block, peer.remote.to_string()));
        let addresses = nodes.addresses.iter().map(|(ip, peer)| (ip.to_string(), peer.remote.to_string()));
        (blocks.collect(), addresses.collect())
    }

    const SELF: (&str, &str, &str) = ("10.0.0.1", r#"["10.0.0.1"]"#, "10.77.1.0/24");

    #[test]
    fn pods_whose_namespace_was_made_anew_or_whose_vni_is_anothers_are_named() {
        let record = |pod: &str, namespace: &str, vni: u32| -> Record {
            let json = serde_json::json!({
                "id": format!("{pod}@eth0"), "pod": pod, "namespace": namespace, "vni": vni, "netns": "/n", "host": 2,
                "addresses": ["10.77.1.2"], "ifindex": 5, "mtu": 1450, "stage": "attached",
            });
            serde_json::from_value(json).unwrap()
        };
        let records =
            [record("well", "a", 10), record("old", "b", 11), record("stray", "c", 10), record("last", "gone", 12)];
        let tenant = |vni: u32| ledger::parse(format!(r#"{{"vni":{vni},"netId":{vni}}}"#).as_bytes()).unwrap();
        let namespaces = [("a", 10), ("b", 20), ("c", 21)];
        let namespaces = namespaces.map(|(name, vni)| (Namespace::new(name).unwrap(), tenant(vni)));
        let intent = Intent { namespaces: namespaces.into(), ..Intent::default() };
        let ends: Vec<String> =
            misplaced(&records, &intent).map(|text| text.rsplit(": ").next().unwrap().to_owned()).collect();
        assert_eq!(ends, ["c/stray", "b/old"], "a namespace that is gone lets its pods end by themselves");
        assert_eq!(misplaced(&records[..1], &intent).next(), None);
    }

    #[test]
    fn each_node_has_its_subnet_and_all_of_its_addresses() {
        let nodes = read(&[SELF, ("10.0.0.2", r#"["10.0.0.2","10.9.0.2"]"#, "10.77.2.0/24")]);
        assert_eq!(nodes.unusable, Vec::<String>::new());
        let remote: Vec<String> = nodes.remote_addresses().iter().map(ToString::to_string).collect();
        assert_eq!(remote, ["10.0.0.2", "10.9.0.2"]);
        assert_eq!(owners(&nodes).0, [(1, "10.0.0.1".to_owned()), (2, "10.0.0.2".to_owned())]);
    }

    #[test]
    fn nobody_takes_over_an_address_at_which_a_tunnel_ends() {
        let nodes = read(&[
            SELF,
            ("10.0.0.2", r#"["10.0.0.2"]"#, "10.77.2.0/24"),
            ("10.0.0.3", r#"["10.0.0.3","10.0.0.2","10.0.0.1"]"#, "10.77.3.0/24"),
        ]);
        assert!(owners(&nodes).1.iter().all(|(address, owner)| address == owner), "{nodes:?}");
        assert_eq!(nodes.unusable.len(), 2);
    }

    #[test]
    fn what_two_entries_claim_is_nobodys() {
        let nodes = read(&[
            SELF,
            ("10.0.0.2", r#"["10.0.0.2","10.9.0.9"]"#, "10.77.2.0/24"),
            ("10.0.0.3", r#"["10.0.0.3","10.9.0.9"]"#, "10.77.2.0/24"),
            ("10.0.0.4", r#"["10.0.0.4"]"#, "10.77.1.0/24"),
        ]);
        let (blocks, addresses) = owners(&nodes);
        assert_eq!(blocks, [(1, "10.0.0.1".to_owned())], "and this node's own stays");
        assert_eq!(addresses.len(), 4, "{addresses:?}");
        assert_eq!(nodes.unusable.len(), 3, "{:?}", nodes.unusable);
    }
}
