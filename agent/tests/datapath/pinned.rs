//! Maps that outlive an agent: adopted if they fit, replaced if not, and cleared of what no record stands behind.

use std::collections::BTreeSet;

use super::node::{GEOMETRY, OWN, Tenant, on_node};
use super::packet::{PORT, Packet};
use super::run::{Skb, Way};
use bulkhead_agent::datapath::abi::{ABI_VERSION, Port, StateValue};
use bulkhead_agent::datapath::{Datapath, DatapathError, Geometry};
use bulkhead_agent::live::locked;

fn occupied(datapath: &Datapath) -> usize {
    locked(&datapath.endpoints).occupied().unwrap()
}

#[test]
fn maps_of_the_same_layout_are_adopted() {
    on_node(|node| {
        let next = Datapath::load(&node.bpf_dir, &GEOMETRY).unwrap();
        assert_eq!(next.state().unwrap(), node.datapath.state().unwrap());
        assert_eq!(occupied(&next), node.pods.len());
        assert_eq!(locked(&next.namespaces).index(10), Some(node.index(Tenant::A)));
        // One map, two agents: what one writes the other's programs see.
        let pod = node.pod(Tenant::A);
        locked(&next.endpoints).withdraw(pod.host, pod.ifindex).unwrap();
        assert_eq!(occupied(&node.datapath), node.pods.len() - 1);
    });
}

#[test]
fn maps_of_another_size_start_afresh() {
    for geometry in [Geometry { host_bits: 9, blocks: 128, ..GEOMETRY }, Geometry { blocks: 255, ..GEOMETRY }] {
        on_node(|node| {
            let next = Datapath::load(&node.bpf_dir, &geometry).unwrap();
            assert_eq!(occupied(&next), 0);
            assert_eq!(locked(&next.namespaces).index(10), None);
            assert_eq!(next.state().unwrap(), StateValue::default());
            // The programs that run keep their maps until they are replaced.
            assert_eq!(occupied(&node.datapath), node.pods.len());
            let pod = node.pod(Tenant::A);
            let packet = Packet::udp(pod.mac, (pod.ip, PORT), (node.sibling(Tenant::A).ip, PORT)).frame();
            assert!(matches!(node.run("from_pod", &Skb::received(pod.ifindex, packet)).way, Way::Delivered(_)));
            // The new ones are pinned: the agent after that adopts them.
            let third = Datapath::load(&node.bpf_dir, &geometry).unwrap();
            locked(&next.endpoints).set_port(7, Port::Pod).unwrap();
            let stale = locked(&third.endpoints).prune(&BTreeSet::new(), &BTreeSet::new()).unwrap();
            assert_eq!(stale, 1, "one map");
        });
    }
}

#[test]
fn a_folder_that_is_no_bpf_file_system_is_refused() {
    on_node(|_| {
        let folder = tempfile::tempdir().unwrap();
        let error = Datapath::load(folder.path(), &GEOMETRY).err().expect("an error");
        assert!(matches!(error, DatapathError::NoBpfFs(_)), "{error}");
    });
}

#[test]
fn unpinning_leaves_nothing_in_the_folder() {
    on_node(|node| {
        node.datapath.unpin().unwrap();
        assert!(!node.bpf_dir.join(format!("v{ABI_VERSION}")).exists());
        let next = Datapath::load(&node.bpf_dir, &GEOMETRY).unwrap();
        assert_eq!(occupied(&next), 0);
    });
}

#[test]
fn prune_clears_what_no_record_stands_behind() {
    on_node(|node| {
        let (kept, stale) = (node.pod(Tenant::A), node.pod(Tenant::C));
        let endpoints = || locked(&node.datapath.endpoints);
        let hosts: BTreeSet<u32> = node.pods.iter().map(|pod| pod.host).filter(|host| *host != stale.host).collect();
        let mut devices: BTreeSet<u32> = node.pods.iter().map(|pod| pod.ifindex).collect();
        devices.insert(node.overlay);
        assert_eq!(endpoints().prune(&hosts, &devices).unwrap(), 1, "an address");
        assert_eq!(endpoints().prune(&hosts, &devices).unwrap(), 0);
        devices.remove(&stale.ifindex);
        assert_eq!(endpoints().prune(&hosts, &devices).unwrap(), 1, "a device");
        assert_eq!(occupied(&node.datapath), node.pods.len() - 1);

        let to_stale = Packet::udp(kept.mac, (kept.ip, PORT), (stale.ip, PORT)).frame();
        let outcome = node.run("from_pod", &Skb::received(kept.ifindex, to_stale));
        assert_eq!(outcome.way, Way::Dropped("no-endpoint"));
        let from_stale = Packet::udp(stale.mac, (stale.ip, PORT), (OWN[0], PORT)).frame();
        let outcome = node.run("from_pod", &Skb::received(stale.ifindex, from_stale));
        assert_eq!(outcome.way, Way::Dropped("spoofed-ip"));
        // The others are as they were.
        let own = Packet::udp(kept.mac, (kept.ip, PORT), (node.sibling(Tenant::A).ip, PORT)).frame();
        assert!(matches!(node.run("from_pod", &Skb::received(kept.ifindex, own)).way, Way::Delivered(_)));
        assert_eq!(
            endpoints().prune(&BTreeSet::new(), &BTreeSet::new()).unwrap(),
            11 + 12,
            "eleven pods, twelve ports"
        );
    });
}
