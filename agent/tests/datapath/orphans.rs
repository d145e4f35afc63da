//! Pods whose VNI has become another namespace's, after a ledger that was lost and made anew.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::node::{GEOMETRY, Node, PEER, REMOTE_POD, Tenant, first_networks, may_talk, on_bpf_fs, on_node};
use super::packet::{PORT, Packet};
use super::run::{Skb, Way};
use aya::maps::{Array, Map, MapData};
use bulkhead_agent::datapath::abi::{ABI_VERSION, EndpointValue, NETID_NONE, NS_UNKNOWN, NamespaceValue};
use bulkhead_agent::datapath::{Datapath, Network, ORPHANS};
use bulkhead_agent::intent::Shared;
use bulkhead_agent::live::{Live, locked};
use bulkhead_agent::pods::record::Stage;
use bulkhead_agent::pods::wire::GATEWAY_MAC;
use bulkhead_agent::pods::{Limits, Record, Records, Remover};
use bulkhead_agent::reconcile::apply_namespaces;
use bulkhead_core::attachment::AttachmentId;
use bulkhead_core::ledger::ClusterEntry;
use bulkhead_core::{Namespace, Tenant as Numbers};

const CLUSTER: &str =
    r#"{"epoch":1,"network":["10.42.0.0/16"],"hostSubnetLength":8,"serviceNetwork":[],"mode":"multitenant"}"#;

fn namespace(name: &str) -> Namespace {
    Namespace::new(name).unwrap()
}

/// The ledger says this of the namespaces: name, VNI, `NetID`.
fn ledger(shared: &Shared, namespaces: &[(&str, u32, u32)]) {
    let entry = |(name, vni, net_id): &(&str, u32, u32)| {
        let numbers: Numbers = serde_json::from_str(&format!(r#"{{"vni":{vni},"netId":{net_id}}}"#)).unwrap();
        (namespace(name), numbers)
    };
    let cluster: ClusterEntry = serde_json::from_str(CLUSTER).unwrap();
    shared.update(|intent| {
        intent.cluster = Some(cluster);
        intent.namespaces = namespaces.iter().map(entry).collect();
    });
}

fn pod(live: &Live, name: &str, vni: u32) -> Record {
    let created = live.records.create(|host, ifindex| Record {
        id: AttachmentId::new(format!("{name}{ifindex}"), "eth0").unwrap(),
        pod: "p".into(),
        namespace: namespace(name),
        vni,
        netns: "/nowhere".into(),
        host,
        addresses: live.addresses(host),
        ifindex,
        mtu: 1450,
        limits: Limits::default(),
        attempt: String::new(),
        stage: Stage::Attached,
    });
    let record = created.unwrap();
    live.records.update(&record).unwrap();
    live.publish(&record).unwrap();
    record
}

/// Whether the maps hold the pod under this index.
fn is_under(live: &Live, record: &Record, index: u32) -> bool {
    let value = EndpointValue {
        ip4: record.ip4(),
        ip6: None,
        ifindex: record.ifindex,
        namespace: index,
        mac: record.mac(),
        gateway_mac: GATEWAY_MAC,
        shaped: false,
        policed: false,
    };
    locked(&live.datapath.endpoints).holds(record.host, value, None).unwrap()
}

fn index(live: &Live, vni: u32) -> u32 {
    locked(&live.datapath.namespaces).index(vni).unwrap_or(0)
}

#[test]
fn a_pod_never_acts_as_one_of_the_namespace_that_was_given_its_vni() {
    on_bpf_fs(|bpf_dir| {
        let datapath = Datapath::load(bpf_dir, &GEOMETRY).expect("this test needs root (CAP_BPF)");
        let run_dir = tempfile::tempdir().unwrap();
        let records = Records::open(run_dir.path(), GEOMETRY.host_bits, Duration::ZERO).unwrap();
        let networks = serde_json::from_str::<ClusterEntry>(CLUSTER).unwrap().networks;
        let live = Live::new(GEOMETRY, networks, 1, datapath, (records, Remover::start().unwrap()));
        let shared = Shared::default();
        ledger(&shared, &[("a", 10, 10), ("b", 11, 11)]);
        apply_namespaces(&live, &shared).unwrap();
        let (a, b) = (pod(&live, "a", 10), pod(&live, "b", 11));
        assert!(is_under(&live, &a, index(&live, 10)) && is_under(&live, &b, index(&live, 11)));
        assert_eq!(index(&live, ORPHANS), 0, "made when it is needed");

        ledger(&shared, &[("a", 11, 10), ("b", 12, 11), ("c", 10, 10)]);
        apply_namespaces(&live, &shared).unwrap();
        let nobody = index(&live, ORPHANS);
        assert!(nobody > NS_UNKNOWN && ![10, 11, 12].map(|vni| index(&live, vni)).contains(&nobody));
        assert!(is_under(&live, &a, nobody) && is_under(&live, &b, nobody), "and before anything else is published");
        live.publish(&a).unwrap();
        assert!(is_under(&live, &a, nobody) && live.is_published(&a).unwrap());
        let (c, young) = (pod(&live, "c", 10), pod(&live, "a", 11));
        assert!(is_under(&live, &c, index(&live, 10)) && is_under(&live, &young, index(&live, 11)));

        println!("a namespace that is only gone keeps its pods' index, as ever");
        ledger(&shared, &[("a", 11, 10), ("b", 12, 11)]);
        apply_namespaces(&live, &shared).unwrap();
        assert!(is_under(&live, &c, index(&live, 10)));
        live.publish(&a).unwrap();
        assert!(is_under(&live, &a, index(&live, 10)), "its VNI is nobody's again");

        println!("numbers as they were: everybody is back");
        ledger(&shared, &[("a", 10, 10), ("b", 11, 11)]);
        apply_namespaces(&live, &shared).unwrap();
        for (record, vni) in [(&a, 10), (&b, 11)] {
            live.publish(record).unwrap();
            assert!(is_under(&live, record, index(&live, vni)));
        }
        live.forget(&a).unwrap();
        live.republish(&a, nobody).unwrap();
        assert!(!is_under(&live, &a, nobody), "a pod that is gone stays gone");
    });
}

/// Publishes A's first pod as an orphan: its VNI is another namespace's now.
fn orphan(node: &Node) -> u32 {
    let pod = node.pod(Tenant::A);
    let owners = BTreeMap::from([(Tenant::A.vni(), namespace("another"))]);
    let keep: BTreeSet<u32> = Tenant::ALL.map(Tenant::vni).into_iter().chain([ORPHANS]).collect();
    let index = {
        let mut namespaces = locked(&node.datapath.namespaces);
        namespaces.set_owners(owners);
        namespaces.prepare(&first_networks(), Network::None, Network::Id(0), &keep).unwrap();
        namespaces.index_of(&namespace("a"), Tenant::A.vni())
    };
    let value = EndpointValue {
        ip4: pod.ip,
        ip6: None,
        ifindex: pod.ifindex,
        namespace: index,
        mac: pod.mac,
        gateway_mac: super::node::GATEWAY_MAC,
        shaped: false,
        policed: false,
    };
    locked(&node.datapath.endpoints).publish(pod.host, value, None).unwrap();
    index
}

#[test]
fn it_reaches_what_is_global_and_the_nodes_and_nothing_else() {
    on_node(|node| {
        let index = orphan(node);
        let pin = node.bpf_dir.join(format!("v{ABI_VERSION}")).join("namespaces");
        let map = Map::Array(MapData::from_pin(pin).unwrap());
        let values = Array::<_, [u8; NamespaceValue::SIZE]>::try_from(map).unwrap();
        let held = NamespaceValue::from_bytes(values.get(&index, 0).unwrap());
        assert_eq!((held.vni, held.net_id), (ORPHANS, [NETID_NONE; 2]), "what the wire carries");
        let own = node.pod(Tenant::A);
        for tenant in Tenant::ALL {
            let other = node.sibling(tenant);
            let allowed = may_talk(Network::None, tenant.network());
            for (from, to) in [(own, other), (other, own)] {
                let packet = Packet::udp(from.mac, (from.ip, PORT), (to.ip, PORT)).frame();
                let way = node.run("from_pod", &Skb::received(from.ifindex, packet)).way;
                assert_eq!(allowed, matches!(way, Way::Delivered(_)), "{tenant:?}: {way:?}");
                assert!(allowed || way == Way::Dropped("isolated"), "{tenant:?}: {way:?}");
            }
        }
        for remote in [REMOTE_POD, PEER[0], PEER[1]] {
            let packet = Packet::udp(own.mac, (own.ip, PORT), (remote, PORT)).frame();
            let outcome = node.run("from_pod", &Skb::received(own.ifindex, packet.clone()));
            assert_eq!(
                (outcome.way, outcome.mark >> 16),
                (Way::Tunnelled, index),
                "{remote}: under no namespace's VNI"
            );
            let skb = Skb::sent(node.overlay, own.ifindex, index << 16, packet);
            assert_eq!(node.run("to_overlay", &skb).way, Way::Passed, "{remote}");
        }
    });
}
