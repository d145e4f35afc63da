//! Random interleavings of people and two controllers, one of them with a stale state, a lost lead or writes that
//! arrive late, on the in-memory store. After every write the ledger is held against a naive model; at the end
//! everything comes to rest.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, its helpers too"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use bulkhead_controller::plan::{self, Note, Policy, Step};
use bulkhead_controller::state::State;
use bulkhead_core::ledger::{ClusterEntry, LedgerKey, NodeEntry, parse};
use bulkhead_core::record::{ConfigRecord, NetNamespaceRecord, Record, SubnetRecord};
use bulkhead_core::{ClusterName, Keys, Namespace, Tenant, keys};
use bulkhead_store::{Candidate, Fence, Leadership, Outcome, Snapshot, Store, Twin, Txn};
use proptest::prelude::*;

const TTL: Duration = Duration::from_mins(10);
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "kube-system"];
const VERBS: [&str; 5] = ["join", "isolate", "global", "merge", ""];
const CONFIGS: [&str; 4] = [
    r#"{"Name":"k8ssdn","Network":"172.11.0.0/28","HostSubnetLength":2,"PluginName":"k8s-ovs-multitenant"}"#,
    r#"{"Name":"k8ssdn","Network":"172.12.0.0/28","HostSubnetLength":2,"PluginName":"k8s-ovs-multitenant"}"#,
    r#"{"Name":"k8ssdn","Network":"172.11.0.0/28","HostSubnetLength":2,"PluginName":"k8s-ovs-subnet"}"#,
    r#"{"Name":"other","Network":"172.11.0.0/28","HostSubnetLength":2}"#,
];

#[derive(Debug, Clone)]
enum Event {
    /// A person writes a record with this `NetID`.
    Create(usize, Option<i64>),
    /// A person writes what is no record.
    Garbage(usize, bool),
    Delete(usize),
    /// A person writes actions into several records by one transaction: who, verb, target.
    Act(Vec<(usize, usize, usize)>),
    NodeAsks(u8),
    NodeNames(u8, u8),
    NodeGone(u8),
    Config(usize),
    /// The leader, or else the other controller, sees what the store holds.
    Look(bool),
    /// A controller plans and sends.
    Work(bool),
    /// A controller plans and its write is on its way: whether it arrives is not known.
    Launch(bool),
    /// The oldest write on its way arrives.
    Arrive,
    /// The leader's lease runs out and the other one leads.
    Depose,
}

fn event() -> impl Strategy<Value = Event> {
    let who = 0..NAMES.len();
    let node = 1u8..7;
    let leader = proptest::bool::weighted(0.8);
    prop_oneof![
        4 => (who.clone(), prop::option::of(prop_oneof![Just(0), Just(-1), Just(5), 8..20i64]))
            .prop_map(|(who, number)| Event::Create(who, number)),
        1 => (who.clone(), any::<bool>()).prop_map(|(who, object)| Event::Garbage(who, object)),
        2 => who.clone().prop_map(Event::Delete),
        5 => prop::collection::vec((who.clone(), 0..VERBS.len(), who), 1..4).prop_map(Event::Act),
        2 => node.clone().prop_map(Event::NodeAsks),
        1 => (node.clone(), 0u8..5).prop_map(|(node, block)| Event::NodeNames(node, block)),
        1 => node.prop_map(Event::NodeGone),
        1 => (0..CONFIGS.len()).prop_map(Event::Config),
        5 => leader.prop_map(Event::Look),
        12 => leader.prop_map(Event::Work),
        4 => leader.prop_map(Event::Launch),
        3 => Just(Event::Arrive),
        1 => Just(Event::Depose),
    ]
}

struct Controller {
    state: State,
    fence: Option<Fence>,
}

struct World {
    twin: Twin,
    store: Store,
    keys: Keys,
    policy: Policy,
    controllers: [Controller; 2],
    leader: usize,
    /// Kept, since dropping one gives its lead up.
    leaderships: Vec<Leadership>,
    on_the_way: Vec<(Fence, Step)>,
    model: Model,
}

/// What must hold of the ledger, from one write to the next.
#[derive(Default)]
struct Model {
    /// VNI by namespace and the create revision of its entry.
    vnis: BTreeMap<(Namespace, i64), u32>,
    /// Every number that any namespace ever had.
    ever: BTreeSet<u32>,
}

/// The namespaces of the ledger, with the create revisions of their entries.
fn tenants(keys: &Keys, snapshot: &Snapshot) -> BTreeMap<Namespace, (i64, Tenant)> {
    let read = |entry: &bulkhead_store::Entry| match LedgerKey::parse(entry.key.strip_prefix(&keys.ledger())?)? {
        LedgerKey::Namespace(namespace) => Some((namespace, (entry.create_revision, parse(&entry.value).unwrap()))),
        _ => None,
    };
    snapshot.entries.iter().filter_map(read).collect()
}

impl Model {
    /// Judges one step by what was before and after it.
    fn check(&mut self, keys: &Keys, before: &Snapshot, step: &Step, after: &Snapshot) {
        let now = tenants(keys, after);
        let vnis: BTreeSet<_> = now.values().map(|(_, tenant)| tenant.vni).collect();
        assert_eq!(vnis.len(), now.len(), "two namespaces have one VNI");
        let importing = before.get(&keys.numbers()).is_none();
        let moves: Vec<_> = step.notes().iter().filter(|note| matches!(note, Note::Moved { .. })).collect();
        if let [Note::Moved { namespace, to, action: "join", .. }] = moves[..] {
            let record = before.get(&keys.netnamespace(namespace)).unwrap();
            let target = NetNamespaceRecord::parse(&record.value).unwrap().namespace;
            let (_, target) = &tenants(keys, before)[&Namespace::new(target).unwrap()];
            assert_eq!(target.net_id, *to, "{namespace} joined a network that its target is not in");
        }
        let joins = step.notes().iter().any(|note| matches!(note, Note::Moved { action: "join", .. }));
        for (namespace, (created, tenant)) in &now {
            let known = self.vnis.insert((namespace.clone(), *created), tenant.vni.get());
            assert!(known.is_none_or(|known| known == tenant.vni.get()), "the VNI of {namespace} changed");
            // A number of before comes back only to somebody who asked for it by name.
            if known.is_none() && !self.ever.insert(tenant.vni.get()) {
                let record = before.get(&keys.netnamespace(namespace)).expect("born without a record");
                let asked = NetNamespaceRecord::parse(&record.value).unwrap().net_id;
                assert_eq!(asked, Some(tenant.vni.get().into()), "{namespace} was given a number of before");
            }
            self.ever.insert(tenant.net_id.get());
            let alone = || now.iter().all(|(other, (_, with))| other == namespace || with.net_id != tenant.net_id);
            let fresh = step.notes().iter().any(|note| match note {
                Note::Born(born, _) => born == namespace && !importing,
                Note::Moved { namespace: moved, action, .. } => moved == namespace && *action == "isolate" && !joins,
                _ => false,
            });
            assert!(!fresh || tenant.net_id.is_global() || alone(), "{namespace} shares a network of its own");
        }
        let (mut networks, mut nodes) = (None, BTreeMap::<IpAddr, NodeEntry>::new());
        for entry in &after.entries {
            match entry.key.strip_prefix(&keys.ledger()).and_then(LedgerKey::parse) {
                Some(LedgerKey::Node(address)) => drop(nodes.insert(address, parse(&entry.value).unwrap())),
                Some(LedgerKey::Cluster) => networks = Some(parse::<ClusterEntry>(&entry.value).unwrap().networks),
                _ => {}
            }
        }
        let mut blocks = BTreeSet::new();
        for (address, node) in nodes {
            let networks = networks.as_ref().expect("nodes without networks");
            let block = networks.block_of(node.subnets).expect("a subnet outside the network");
            assert!(blocks.insert(block), "{address} has somebody's subnet");
            let queued = keys.released_subnet(node.subnets.iter().next().unwrap());
            assert!(after.get(&queued).is_none(), "{queued} is in use");
        }
    }
}

impl World {
    async fn new() -> Self {
        let twin = Twin::new();
        let store = twin.store();
        let keys = Keys::new(keys::DEFAULT_PREFIX, &ClusterName::new("k8ssdn").unwrap()).unwrap();
        let blank = || Controller { state: State::new(keys.clone()), fence: None };
        let controllers = [blank(), blank()];
        let policy = Policy { global_at_birth: [Namespace::new("kube-system").unwrap()].into(), ..Policy::default() };
        let mut world = Self {
            twin,
            store,
            keys,
            policy,
            controllers,
            leader: 1,
            leaderships: Vec::new(),
            on_the_way: Vec::new(),
            model: Model::default(),
        };
        world.write(&keys::config(keys::DEFAULT_PREFIX), CONFIGS[0]).await;
        world.depose().await;
        world
    }

    fn who(&self, leader: bool) -> usize {
        if leader { self.leader } else { 1 - self.leader }
    }

    async fn write(&self, key: &str, value: &str) {
        assert!(self.store.commit(Txn::new().put(key, value)).await.unwrap().done().is_some());
    }

    async fn list(&self) -> Snapshot {
        self.store.list(&format!("{}/", keys::DEFAULT_PREFIX)).await.unwrap()
    }

    async fn depose(&mut self) {
        if let Some(fence) = self.controllers[self.leader].fence.clone() {
            assert!(self.twin.expire_lease_of(fence.key()));
        }
        self.leader = 1 - self.leader;
        let name = format!("controller{}", self.leader);
        let leadership = Candidate::campaign(&self.store, &self.keys.election(), &name, TTL).await.unwrap();
        self.controllers[self.leader].fence = Some(leadership.fence());
        // A leader begins with nothing: what it takes for lost it has seen under its own lead.
        self.controllers[self.leader].state = State::new(self.keys.clone());
        self.leaderships.push(leadership);
    }

    async fn look(&mut self, who: usize) {
        let snapshot = self.list().await;
        self.controllers[who].state.replace(&snapshot);
    }

    /// Sends a step under a fence; a step under a former one must be refused for it.
    async fn send(&mut self, fence: &Fence, step: &Step) -> Option<i64> {
        let before = self.list().await;
        let leads = self.controllers[self.leader].fence.as_ref() == Some(fence);
        match self.store.commit(step.txn(fence)).await.unwrap() {
            Outcome::Done { revision } => {
                assert!(leads, "a former leader moved the ledger");
                let after = self.list().await;
                self.model.check(&self.keys, &before, step, &after);
                Some(revision)
            }
            Outcome::Conflict(conflict) => {
                assert_eq!(conflict.fenced_off(), !leads);
                None
            }
        }
    }

    fn plan(&self, who: usize) -> Option<(Fence, Step)> {
        let controller = &self.controllers[who];
        Some((controller.fence.clone()?, plan::next(&controller.state, &self.policy)?))
    }

    /// Plans and sends once; false if there was nothing to do.
    async fn work(&mut self, who: usize) -> bool {
        let Some((fence, step)) = self.plan(who) else { return false };
        if let Some(revision) = self.send(&fence, &step).await {
            self.controllers[who].state.committed(step.writes(), revision);
        }
        true
    }

    async fn happen(&mut self, event: Event) {
        let name = |who: usize| Namespace::new(NAMES[who]).unwrap();
        let address = |node: u8| IpAddr::from([10, 0, 0, node]);
        match event {
            Event::Create(who, net_id) => {
                let record = NetNamespaceRecord { net_id, ..NetNamespaceRecord::asking(&name(who)) };
                let text = String::from_utf8(record.to_json()).unwrap();
                self.write(&self.keys.netnamespace(&name(who)), &text).await;
            }
            Event::Garbage(who, object) => {
                let text = if object { r#"{"NetID":"x","Team":"blue"}"# } else { "hello" };
                self.write(&self.keys.netnamespace(&name(who)), text).await;
            }
            Event::Delete(who) => {
                let txn = Txn::new().delete(self.keys.netnamespace(&name(who)));
                let _outcome = self.store.commit(txn).await.unwrap();
            }
            Event::Act(actions) => {
                let actions: BTreeMap<_, _> = actions.into_iter().map(|(who, verb, to)| (who, (verb, to))).collect();
                let mut txn = Txn::new();
                for (who, (verb, target)) in actions {
                    let key = self.keys.netnamespace(&name(who));
                    let Some(entry) = self.store.get(&key).await.unwrap() else { continue };
                    let Ok(record) = NetNamespaceRecord::parse(&entry.value) else { continue };
                    let action = VERBS[verb].to_owned();
                    let record = NetNamespaceRecord { action, namespace: NAMES[target].to_owned(), ..record };
                    txn = txn.put(key, record.to_json());
                }
                let _outcome = self.store.commit(txn).await.unwrap();
            }
            Event::NodeAsks(node) => {
                let record = SubnetRecord::asking("n", address(node)).to_json();
                self.write(&self.keys.subnet(address(node)), std::str::from_utf8(&record).unwrap()).await;
            }
            Event::NodeNames(node, block) => {
                let subnet = format!("172.11.0.{}/30", block * 4);
                let record = SubnetRecord { subnet, assign: false, ..SubnetRecord::asking("n", address(node)) };
                let text = String::from_utf8(record.to_json()).unwrap();
                self.write(&self.keys.subnet(address(node)), &text).await;
            }
            Event::NodeGone(node) => {
                let _outcome = self.store.commit(Txn::new().delete(self.keys.subnet(address(node)))).await.unwrap();
            }
            Event::Config(which) => self.write(&keys::config(keys::DEFAULT_PREFIX), CONFIGS[which]).await,
            Event::Look(leader) => self.look(self.who(leader)).await,
            Event::Work(leader) => drop(self.work(self.who(leader)).await),
            Event::Launch(leader) => self.on_the_way.extend(self.plan(self.who(leader))),
            Event::Arrive => {
                if !self.on_the_way.is_empty() {
                    let (fence, step) = self.on_the_way.remove(0);
                    self.send(&fence, &step).await;
                }
            }
            Event::Depose => self.depose().await,
        }
    }

    /// Lets everything arrive and the leader work until nothing is left, then checks what people see.
    async fn rest(&mut self) {
        for (fence, step) in std::mem::take(&mut self.on_the_way) {
            self.send(&fence, &step).await;
        }
        self.write(&keys::config(keys::DEFAULT_PREFIX), CONFIGS[0]).await;
        self.look(self.leader).await;
        let mut steps = 0;
        while self.work(self.leader).await {
            steps += 1;
            assert!(steps < 100, "no rest: {:?}", self.plan(self.leader));
        }
        let snapshot = self.list().await;
        let mut state = State::new(self.keys.clone());
        state.replace(&snapshot);
        assert_eq!(plan::next(&state, &self.policy), None, "a new leader would go on writing");
        for text in NAMES {
            let namespace = Namespace::new(text).unwrap();
            let tenant = state.tenants().get(&namespace);
            let Some(entry) = snapshot.get(&self.keys.netnamespace(&namespace)) else {
                assert_eq!(tenant, None, "{text} is gone");
                continue;
            };
            match (NetNamespaceRecord::parse(&entry.value), tenant) {
                (Ok(record), Some(tenant)) => {
                    assert_eq!(record.net_id, Some(tenant.net_id.get().into()));
                    assert!(record.action.is_empty() || !record.error.is_empty(), "{record:?} is not answered");
                }
                (Ok(record), None) => assert!(!record.error.is_empty(), "{record:?} is not answered"),
                (Err(_), tenant) => {
                    assert_eq!(tenant, None, "a mirror is not restored");
                    let text = String::from_utf8_lossy(&entry.value);
                    assert!(text == "hello" || text.contains("Error"), "{text}");
                }
            }
        }
        for node in 1u8..7 {
            let address = IpAddr::from([10, 0, 0, node]);
            let ledger = snapshot.get(&self.keys.ledger_node(address));
            let Some(entry) = snapshot.get(&self.keys.subnet(address)) else {
                assert!(ledger.is_none(), "{address} is gone");
                continue;
            };
            let record = SubnetRecord::parse(&entry.value).unwrap();
            assert_eq!(ledger.is_some(), record.error.is_empty(), "{record:?}");
            assert_eq!(ledger.is_some(), !record.assign && !record.subnet.is_empty() && record.error.is_empty());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_in_whatever_order_no_number_is_given_twice_and_all_comes_to_rest(
        events in prop::collection::vec(event(), 1..150),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            assert!(ConfigRecord::parse(CONFIGS[0].as_bytes()).is_ok());
            let mut world = World::new().await;
            for event in events {
                world.happen(event).await;
            }
            world.rest().await;
        });
    }
}
