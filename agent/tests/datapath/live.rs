//! A node at work, with books and an intent, over maps of its own; and what it makes of its namespaces' indices.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use bulkhead_agent::datapath::abi::{EndpointValue, NETID_NONE, NS_UNKNOWN, NamespaceValue};
use bulkhead_agent::datapath::{Datapath, DatapathError};
use bulkhead_agent::intent::Shared;
use bulkhead_agent::live::{Live, locked};
use bulkhead_agent::pods::record::Stage;
use bulkhead_agent::pods::{Limits, Record, Records, Remover};
use bulkhead_agent::reconcile::apply_namespaces;
use bulkhead_core::attachment::AttachmentId;
use bulkhead_core::cluster::Networks;
use bulkhead_core::ledger::{self, ClusterEntry};
use bulkhead_core::{Mode, Namespace};

use super::node::{GEOMETRY, in_own_netns, on_bpf_fs};

/// The cluster of [`GEOMETRY`].
pub fn cluster() -> ClusterEntry {
    let json =
        r#"{"epoch":1,"network":["10.42.0.0/16"],"hostSubnetLength":8,"serviceNetwork":[],"mode":"multitenant"}"#;
    ledger::parse(json.as_bytes()).unwrap()
}

/// An agent that has just started, over the maps and records that the last one left.
pub fn start(bpf_dir: &Path, run_dir: &Path) -> Live {
    let networks: Networks = cluster().networks;
    let datapath =
        Datapath::load(bpf_dir, &GEOMETRY).expect("cannot load the datapath: this test needs root (CAP_BPF)");
    let records = Records::open(run_dir, GEOMETRY.host_bits, Duration::ZERO).unwrap();
    Live::new(GEOMETRY, networks, 1, datapath, (records, Remover::start().unwrap()))
}

/// Runs a test with an agent's folders, in a network namespace of its own.
pub fn on_folders(test: impl FnOnce(&Path, &Path) + Send) {
    on_bpf_fs(|bpf_dir| {
        let run_dir = tempfile::tempdir().unwrap();
        in_own_netns(|| test(bpf_dir, run_dir.path()));
    });
}

/// A pod's record.
pub fn record(name: &str, vni: u32, host: u32) -> Record {
    let block = u32::from(GEOMETRY.network.network()) + (GEOMETRY.local_block << GEOMETRY.host_bits);
    Record {
        id: AttachmentId::new(name, "eth0").unwrap(),
        pod: name.into(),
        uid: String::new(),
        namespace: Namespace::new(format!("ns{vni}").as_str()).unwrap(),
        vni,
        // A netns that lives.
        netns: "/proc/self/ns/net".into(),
        host,
        addresses: vec![Ipv4Addr::from(block + host).into()],
        ifindex: 0x0100_0000 + 2 * host,
        mtu: 1450,
        limits: Limits::default(),
        attempt: String::new(),
        stage: Stage::Attached,
    }
}

/// The intent at this revision: VNI and `NetID` of each namespace.
pub fn tell(shared: &Shared, revision: i64, tenants: &[(u32, u32)]) {
    shared.update(|intent| {
        let entry = |&(vni, id): &(u32, u32)| {
            let tenant = ledger::parse(format!(r#"{{"vni":{vni},"netId":{id}}}"#).as_bytes()).unwrap();
            (Namespace::new(format!("ns{vni}").as_str()).unwrap(), tenant)
        };
        (intent.cluster_id, intent.revision, intent.cluster) = (1, revision, Some(cluster()));
        intent.namespaces = tenants.iter().map(entry).collect();
    });
}

fn index(live: &Live, vni: u32) -> Option<u32> {
    locked(&live.datapath.namespaces).index(vni)
}

/// A pinned map, as anybody on the node may open it.
fn pinned<M: TryFrom<aya::maps::Map, Error = aya::maps::MapError>>(
    bpf_dir: &Path,
    name: &str,
    of: fn(aya::maps::MapData) -> aya::maps::Map,
) -> M {
    let version = format!("v{}", bulkhead_agent::datapath::abi::ABI_VERSION);
    let data = aya::maps::MapData::from_pin(bpf_dir.join(version).join(name)).unwrap();
    M::try_from(of(data)).unwrap()
}

type Values = aya::maps::Array<aya::maps::MapData, [u8; NamespaceValue::SIZE]>;
type Vnis = aya::maps::HashMap<aya::maps::MapData, u32, u32>;

fn value(bpf_dir: &Path, index: u32) -> NamespaceValue {
    let values: Values = pinned(bpf_dir, "namespaces", aya::maps::Map::Array);
    NamespaceValue::from_bytes(values.get(&index, 0).unwrap())
}

/// The network of a VNI in the bank that holds.
fn net_id(bpf_dir: &Path, live: &Live, vni: u32) -> Option<u32> {
    let bank = live.datapath.state().unwrap().bank as usize;
    index(live, vni).map(|index| value(bpf_dir, index).net_id[bank])
}

#[test]
fn a_pod_without_a_record_keeps_its_namespaces_index() {
    on_folders(|bpf_dir, run_dir| {
        let (live, shared) = (start(bpf_dir, run_dir), Shared::default());
        tell(&shared, 1, &[(10, 10), (20, 20), (30, 30)]);
        apply_namespaces(&live, &shared).unwrap();
        let stranger = record("stranger", 20, 9);
        live.publish(&stranger).unwrap();
        let held = index(&live, 20);
        assert!(held.is_some());
        drop(live);
        for agent in 0..3 {
            // Each finds the entry, and no record.
            let live = start(bpf_dir, run_dir);
            tell(&shared, 2 + agent, &[(10, 10), (30, 30)]);
            apply_namespaces(&live, &shared).unwrap();
            assert_eq!(index(&live, 20), held, "it is nobody else's while a device acts under it");
            assert_eq!(net_id(bpf_dir, &live, 20), Some(NETID_NONE));
            tell(&shared, 2 + agent, &[(10, 10)]);
            apply_namespaces(&live, &shared).unwrap();
            assert_eq!(index(&live, 30), None, "nobody acts under this one");
        }
        let live = start(bpf_dir, run_dir);
        live.withdraw(&stranger).unwrap();
        apply_namespaces(&live, &shared).unwrap();
        assert_eq!(index(&live, 20), None, "its pod is gone");
    });
}

#[test]
fn a_freed_index_that_a_pod_still_mentions_is_given_to_nobody() {
    on_folders(|bpf_dir, run_dir| {
        let (live, shared) = (start(bpf_dir, run_dir), Shared::default());
        tell(&shared, 1, &[(10, 10)]);
        apply_namespaces(&live, &shared).unwrap();
        let freed = index(&live, 10).unwrap();
        live.publish(&record("stranger", 10, 9)).unwrap();
        // As an agent did that looked at records only.
        let mut namespaces = locked(&live.datapath.namespaces);
        let none = bulkhead_agent::datapath::Network::None;
        let node = bulkhead_agent::datapath::Network::Id(0);
        let mut apply = |vnis: std::ops::Range<u32>, held: BTreeSet<u32>| {
            namespaces.hold(held);
            let intent = vnis.map(|vni| (vni, none)).collect();
            namespaces.prepare(&intent, none, node, &BTreeSet::new())?;
            namespaces.settle()
        };
        apply(0..0, BTreeSet::new()).unwrap();
        // All indices but that one are given out; then it is the only one left.
        let all = 100..100 + 65_533;
        let held = locked(&live.datapath.endpoints).namespaces();
        assert_eq!(held, BTreeSet::from([freed]));
        assert!(matches!(apply(all.clone(), held), Err(DatapathError::TooManyNamespaces)));
        apply(all, BTreeSet::new()).unwrap();
        drop(namespaces);
        assert_ne!(value(bpf_dir, freed).vni, 10, "without the pod it is another's");
    });
}

#[test]
fn a_pod_whose_vni_has_no_index_counts_as_unknown_until_it_has() {
    on_folders(|bpf_dir, run_dir| {
        let (live, shared) = (start(bpf_dir, run_dir), Shared::default());
        tell(&shared, 1, &[(10, 10)]);
        apply_namespaces(&live, &shared).unwrap();
        let late = record("late", 20, 9);
        let occupant = || {
            let endpoints: aya::maps::Array<_, [u8; EndpointValue::SIZE]> =
                pinned(bpf_dir, "endpoints", aya::maps::Map::Array);
            EndpointValue::occupant(&endpoints.get(&9, 0).unwrap())
        };
        live.publish(&late).unwrap();
        assert_eq!(occupant(), Some((late.ifindex, NS_UNKNOWN)));
        // With the record in the books its VNI has an index, whatever became of the namespace: as an ADD does.
        live.records.update(&late).unwrap();
        apply_namespaces(&live, &shared).unwrap();
        live.publish(&late).unwrap();
        assert!(live.is_published(&late).unwrap());
        assert_eq!(net_id(bpf_dir, &live, 20), Some(NETID_NONE));
        assert_eq!(occupant(), Some((late.ifindex, index(&live, 20).unwrap())));
    });
}

#[test]
fn a_cached_state_that_is_older_than_the_maps_changes_nothing() {
    on_folders(|bpf_dir, run_dir| {
        let (live, shared) = (start(bpf_dir, run_dir), Shared::default());
        tell(&shared, 8, &[(10, 10), (20, 10)]);
        apply_namespaces(&live, &shared).unwrap();
        // Isolated; and a new namespace, which needs no switch of the bank.
        tell(&shared, 9, &[(10, 10), (20, 20)]);
        apply_namespaces(&live, &shared).unwrap();
        tell(&shared, 10, &[(10, 10), (20, 20), (30, 30)]);
        apply_namespaces(&live, &shared).unwrap();
        let networks = |live: &Live| [10, 20, 30].map(|vni| net_id(bpf_dir, live, vni));
        let newest = [Some(10), Some(20), Some(30)];
        assert_eq!(networks(&live), newest);
        drop(live);

        // Killed before the cache was written.
        let cached = |cluster_id, revision, tenants: &[(u32, u32)]| {
            tell(&shared, revision, tenants);
            shared.update(|intent| (intent.cached, intent.cluster_id) = (true, cluster_id));
        };
        for (cluster_id, revision) in [(1, 8), (1, 9), (2, 11)] {
            let live = start(bpf_dir, run_dir);
            cached(cluster_id, revision, &[(10, 10), (20, 10)]);
            apply_namespaces(&live, &shared).unwrap();
            assert_eq!(networks(&live), newest, "revision {revision} of etcd {cluster_id}");
        }
        let live = start(bpf_dir, run_dir);
        cached(1, 11, &[(10, 10), (20, 0), (30, 30)]);
        apply_namespaces(&live, &shared).unwrap();
        assert_eq!(networks(&live), [Some(10), Some(0), Some(30)], "a newer one is better than none");
        // etcd itself may go back: that is judged elsewhere, and what is followed is applied.
        tell(&shared, 7, &[(10, 10), (20, 10)]);
        shared.update(|intent| intent.cached = false);
        apply_namespaces(&live, &shared).unwrap();
        assert_eq!(networks(&live), [Some(10), Some(10), None]);
        drop(live);
        let live = start(bpf_dir, run_dir);
        cached(1, 7, &[(10, 10), (20, 20)]);
        apply_namespaces(&live, &shared).unwrap();
        assert_eq!(networks(&live)[1], Some(20), "the maps are of that revision");
    });
}

#[test]
fn in_a_flat_network_pods_of_a_deleted_namespace_stay_in_it() {
    on_folders(|bpf_dir, run_dir| {
        let (live, shared) = (start(bpf_dir, run_dir), Shared::default());
        let set_mode = |mode| {
            shared.update(|intent| {
                intent.cluster.as_mut().unwrap().mode = mode;
            });
        };
        tell(&shared, 1, &[(10, 10), (20, 20)]);
        live.records.update(&record("runs", 20, 9)).unwrap();
        set_mode(Mode::Flat);
        apply_namespaces(&live, &shared).unwrap();
        tell(&shared, 2, &[(10, 10)]);
        set_mode(Mode::Flat);
        apply_namespaces(&live, &shared).unwrap();
        assert_eq!([10, 20].map(|vni| net_id(bpf_dir, &live, vni)), [Some(0), Some(0)]);
        set_mode(Mode::Multitenant);
        apply_namespaces(&live, &shared).unwrap();
        assert_eq!([10, 20].map(|vni| net_id(bpf_dir, &live, vni)), [Some(10), Some(NETID_NONE)]);
    });
}

#[test]
fn what_others_write_into_the_namespaces_maps_is_written_over() {
    on_folders(|bpf_dir, run_dir| {
        let (live, shared) = (start(bpf_dir, run_dir), Shared::default());
        tell(&shared, 1, &[(10, 10), (20, 20), (30, 30)]);
        apply_namespaces(&live, &shared).unwrap();
        let [a, b, c] = [10, 20, 30].map(|vni| index(&live, vni).unwrap());
        let repair = || locked(&live.datapath.namespaces).repair().unwrap();
        assert_eq!(repair(), 0);
        let (mut values, mut vnis): (Values, Vnis) =
            (pinned(bpf_dir, "namespaces", aya::maps::Map::Array), pinned(bpf_dir, "vnis", aya::maps::Map::HashMap));
        let honest = value(bpf_dir, a);
        // Global, no namespace at all, and index 0 as if it were one.
        values.set(a, NamespaceValue { net_id: [0; 2], ..honest }.to_bytes(), 0).unwrap();
        values.set(b, [0; NamespaceValue::SIZE], 0).unwrap();
        values.set(0, NamespaceValue { assigned: true, ..NamespaceValue::default() }.to_bytes(), 0).unwrap();
        vnis.insert(10, c, 0).unwrap();
        vnis.remove(&20).unwrap();
        vnis.insert(77, a, 0).unwrap();
        assert_eq!(repair(), 6);
        assert_eq!((value(bpf_dir, a), value(bpf_dir, 0)), (honest, NamespaceValue::default()));
        assert_eq!(value(bpf_dir, b).net_id, [20; 2]);
        let held: std::collections::BTreeMap<u32, u32> = vnis.iter().collect::<Result<_, _>>().unwrap();
        assert_eq!([10, 20, 30, 77].map(|vni| held.get(&vni).copied()), [Some(a), Some(b), Some(c), None]);
        assert_eq!(repair(), 0);

        // What is to be freed may be gone already: its index rests all the same.
        vnis.remove(&30).unwrap();
        tell(&shared, 2, &[(10, 10), (20, 20)]);
        apply_namespaces(&live, &shared).unwrap();
        assert_eq!((index(&live, 30), value(bpf_dir, c).assigned), (None, false));
    });
}

/// Only an intent as new as the maps can say that a VNI is another namespace's.
#[test]
fn an_older_cache_brings_no_orphan_back_under_its_old_vni() {
    on_folders(|bpf_dir, run_dir| {
        let (live, shared) = (start(bpf_dir, run_dir), Shared::default());
        let mut old = record("old", 20, 9);
        old.namespace = Namespace::new("ns10").unwrap();
        live.records.update(&old).unwrap();
        tell(&shared, 9, &[(10, 10), (20, 20)]);
        apply_namespaces(&live, &shared).unwrap();
        live.publish(&old).unwrap();
        assert!(live.is_published(&old).unwrap());
        let nobody = index(&live, bulkhead_agent::datapath::ORPHANS).unwrap();
        let held = || {
            let endpoints: aya::maps::Array<_, [u8; EndpointValue::SIZE]> =
                pinned(bpf_dir, "endpoints", aya::maps::Map::Array);
            EndpointValue::occupant(&endpoints.get(&9, 0).unwrap()).map(|(_, namespace)| namespace)
        };
        assert_eq!(held(), Some(nobody));
        drop(live);
        let live = start(bpf_dir, run_dir);
        tell(&shared, 8, &[]);
        shared.update(|intent| intent.cached = true);
        apply_namespaces(&live, &shared).unwrap();
        live.publish(&old).unwrap();
        assert_eq!(held(), Some(nobody));
        // A new pod is published all the same.
        let young = record("young", 10, 10);
        live.publish(&young).unwrap();
        tell(&shared, 9, &[(10, 10), (20, 20)]);
        shared.update(|intent| intent.cached = false);
        apply_namespaces(&live, &shared).unwrap();
        live.publish(&young).unwrap();
        assert!(live.is_published(&old).unwrap() && live.is_published(&young).unwrap());
    });
}
