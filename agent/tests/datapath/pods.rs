//! One pod that cannot be brought in line keeps no other pod from it, nor the node.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use bulkhead_agent::kernel::{Hook, MAIN_TABLE, Netlink, Netns, Op, VethSpec};
use bulkhead_agent::live::{Live, locked};
use bulkhead_agent::pods::Record;
use bulkhead_agent::pods::wire::{GATEWAY_MAC, GROUP, PROTOCOL};
use bulkhead_agent::reconcile::{apply_namespaces, pods};

use super::live::{on_folders, record, start, tell};
use super::node::{GEOMETRY, in_new_netns};

fn wire(host: &mut Netlink, record: &Record, outside: &Netns) {
    let veth = Op::veth(&VethSpec {
        host_name: record.host_interface().parse().unwrap(),
        host_index: Some(record.ifindex),
        host_mac: GATEWAY_MAC,
        mtu: 1450,
        group: Some(GROUP),
        peer_name: format!("p{}", record.ifindex).parse().unwrap(),
        peer_index: None,
        peer_mac: record.mac(),
        peer_netns: outside.as_fd(),
        peer_gso_max_size: None,
    });
    host.apply(veth).unwrap();
}

fn programs(host: &mut Netlink, record: &Record) -> usize {
    [Hook::Ingress, Hook::Egress].map(|hook| host.filters(record.ifindex, hook).unwrap().len()).iter().sum()
}

fn has_route(host: &mut Netlink, record: &Record) -> bool {
    let routes = host.routes(MAIN_TABLE, Some(PROTOCOL)).unwrap();
    routes.iter().any(|route| route.index == Some(record.ifindex))
}

fn occupied(live: &Live) -> usize {
    locked(&live.datapath.endpoints).occupied().unwrap()
}

#[test]
fn what_fails_for_one_pod_is_done_for_the_others() {
    on_folders(|bpf_dir, run_dir| {
        let outside = in_new_netns(|| Netns::own().unwrap());
        let (live, shared) = (start(bpf_dir, run_dir), bulkhead_agent::intent::Shared::default());
        let mut host = Netlink::here().unwrap();
        host.batch(vec![Op::link_up(1), Op::address_add(1, ipnetwork::IpNetwork::V4(GEOMETRY.node_ip.into()), true)])
            .unwrap();
        tell(&shared, 1, &[(10, 10)]);
        // In the books' order: of a larger subnet; one that the kernel refuses; one whose device is gone; a good one.
        let mut moved = record("c1", 10, 300);
        moved.addresses = vec![Ipv4Addr::new(10, 42, 201, 44).into()];
        let mut refused = record("c2", 10, 20);
        refused.mtu = 10;
        let mut gone = record("c3", 10, 21);
        gone.netns = "/run/bulkhead-no-such-netns".into();
        let good = record("c4", 10, 22);
        for record in [&moved, &refused, &gone, &good] {
            live.records.update(record).unwrap();
        }
        for record in [&moved, &refused, &good] {
            wire(&mut host, record, &outside);
        }
        apply_namespaces(&live, &shared).unwrap();
        let published = pods::publish_all(&live, true);
        assert!(published.failed.is_empty(), "{published:?}");
        assert_eq!(occupied(&live), 3, "the good one, the refused one and the one that is gone");
        assert!(live.is_published(&good).unwrap() && !live.is_published(&moved).unwrap());

        let attached = pods::attach_all(&live, &mut host);
        assert_eq!(attached.failed.len(), 1, "{attached:?}");
        assert!(attached.failed[0].contains("c2"), "{attached:?}");
        assert_eq!((programs(&mut host, &good), programs(&mut host, &moved)), (2, 2));
        let waiting: Vec<_> = locked(&live.unattached).iter().cloned().collect();
        assert_eq!(waiting, [refused.id.clone()], "for the next turn");

        host.apply(Op::link_down(good.ifindex)).unwrap();
        assert!(!has_route(&mut host, &good));
        let looked = pods::look_after(&live, &mut host);
        assert_eq!(looked.failed.len(), 1, "{looked:?}");
        assert!(looked.failed[0].contains("c2"), "{looked:?}");
        assert!(has_route(&mut host, &good), "the good one is repaired");
        assert_eq!(looked.repaired.len(), 2, "that, and the one that is gone: {looked:?}");
        assert!(live.records.get(&gone.id).is_none());

        refused.mtu = 1450;
        live.records.update(&refused).unwrap();
        let attached = pods::attach_rest(&live, &mut host);
        assert!(attached.failed.is_empty() && locked(&live.unattached).is_empty(), "{attached:?}");
        assert_eq!(programs(&mut host, &refused), 2);

        // The one of the larger subnet can be deleted like any other.
        live.withdraw(&moved).unwrap();
        live.remover.remove(&moved).unwrap();
        live.forget(&moved).unwrap();
        assert!(live.records.get(&moved.id).is_none());
        assert!(host.link_by_index(moved.ifindex).unwrap().is_none());
        assert_eq!(occupied(&live), 2);
    });
}
