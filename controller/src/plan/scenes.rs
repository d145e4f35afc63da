//! A cluster in the in-memory store, for tests of the plan: people write, the leader settles, everything is checked.

use std::sync::Arc;

use bulkhead_core::record::{ConfigRecord, NetNamespaceRecord, Record, SubnetRecord};
use bulkhead_core::{Action, ClusterName, Keys, Namespace, NodeName, keys};
use bulkhead_store::{Change, Changes, Outcome, Store, Txn};

use super::{Policy, Step, next};
use crate::objects::{NamespaceObject, NodeObject, Objects};
use crate::state::State;

/// More steps than any scene needs: beyond it the plan runs in circles.
const MOST_STEPS: usize = 3000;

pub(super) fn ns(name: &str) -> Namespace {
    Namespace::new(name).unwrap()
}

pub(super) struct Scene {
    pub(super) store: Store,
    pub(super) keys: Keys,
    pub(super) policy: Policy,
    pub(super) state: State,
}

impl Scene {
    /// A cluster with nothing but the example config.
    pub(super) async fn empty() -> Self {
        Self::with_config(ConfigRecord::EXAMPLE).await
    }

    pub(super) async fn with_config(config: &str) -> Self {
        let store = Store::in_memory();
        let keys = Keys::new(keys::DEFAULT_PREFIX, &ClusterName::new("k8ssdn").unwrap()).unwrap();
        let policy = Policy { global_at_birth: [ns("kube-system")].into(), ..Policy::default() };
        let state = State::new(keys.clone());
        let mut scene = Self { store, keys, policy, state };
        scene.write(&scene.keys.config(), config).await;
        scene
    }

    /// A settled cluster of these namespaces, the first with VNI 10.
    pub(super) async fn of(names: &[&str]) -> Self {
        let mut scene = Self::empty().await;
        scene.settle().await;
        for name in names {
            scene.record(name, &format!(r#"{{"NetName":"{name}"}}"#)).await;
            scene.settle().await;
        }
        scene
    }

    /// The same with Kubernetes as the source, not listed yet.
    pub(super) fn with_kubernetes(self) -> Self {
        Self { state: self.state.with_kubernetes(), ..self }
    }

    fn outside(&mut self, change: impl FnOnce(&mut Objects)) {
        let mut objects = self.state.source().objects().cloned().unwrap_or_default();
        change(&mut objects);
        self.state.observe(objects);
    }

    /// Kubernetes has this Namespace.
    pub(super) fn object(&mut self, name: &str, object: NamespaceObject) {
        self.outside(|objects| drop(Arc::make_mut(&mut objects.namespaces).insert(ns(name), object)));
    }

    /// Kubernetes has a Namespace of this name without annotations.
    pub(super) fn appears(&mut self, name: &str, uid: &str) {
        self.object(name, NamespaceObject { uid: uid.to_owned(), ..NamespaceObject::default() });
    }

    /// Kubernetes has this Namespace no more.
    pub(super) fn vanishes(&mut self, name: &str) {
        self.outside(|objects| drop(Arc::make_mut(&mut objects.namespaces).remove(&ns(name))));
    }

    /// Kubernetes has this Node without annotations.
    pub(super) fn node(&mut self, host: &str, uid: &str, addresses: &[&str]) {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        self.node_object(host, NodeObject { uid: uid.to_owned(), addresses, ..NodeObject::default() });
    }

    /// Kubernetes has this Node.
    pub(super) fn node_object(&mut self, host: &str, object: NodeObject) {
        let host = NodeName::new(host).unwrap();
        self.outside(|objects| drop(Arc::make_mut(&mut objects.nodes).insert(host, object)));
    }

    /// Kubernetes has this Node no more.
    pub(super) fn node_leaves(&mut self, host: &str) {
        let host = NodeName::new(host).unwrap();
        self.outside(|objects| drop(Arc::make_mut(&mut objects.nodes).remove(&host)));
    }

    pub(super) async fn commit(&mut self, txn: Txn) {
        let outcome = self.store.commit(txn).await.unwrap();
        assert!(matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
        self.look().await;
    }

    pub(super) async fn write(&mut self, key: &str, value: &str) {
        self.commit(Txn::new().put(key, value)).await;
    }

    pub(super) async fn delete(&mut self, key: &str) {
        self.commit(Txn::new().delete(key)).await;
    }

    /// Deletes keys in one transaction and lets the state see it as a watch tells of it.
    pub(super) async fn delete_watched(&mut self, keys: &[String]) {
        let txn = keys.iter().fold(Txn::new(), |txn, key| txn.delete(key.as_str()));
        let revision = self.store.commit(txn).await.unwrap().done().unwrap();
        let changes = keys.iter().map(|key| Change::Delete { key: key.clone() }).collect();
        self.state.apply(&Changes { revision, changes });
    }

    pub(super) async fn record(&mut self, name: &str, json: &str) {
        self.write(&self.keys.netnamespace(&ns(name)), json).await;
    }

    pub(super) async fn subnet(&mut self, segment: &str, json: &str) {
        self.write(&format!("{}{segment}", self.keys.subnets()), json).await;
    }

    /// A machine asks for a subnet under this address.
    pub(super) async fn asks(&mut self, host: &str, address: &str) {
        let record = SubnetRecord::asking(host, address.parse().unwrap());
        self.subnet(address, std::str::from_utf8(&record.to_json()).unwrap()).await;
    }

    /// Writes actions into existing records by one transaction.
    pub(super) async fn act(&mut self, actions: &[(&str, &Action)]) {
        let mut txn = Txn::new();
        for (name, action) in actions {
            let (verb, target) = action.fields();
            let record =
                NetNamespaceRecord { action: verb.to_owned(), namespace: target.to_owned(), ..self.read(name).await };
            txn = txn.put(self.keys.netnamespace(&ns(name)), record.to_json());
        }
        self.commit(txn).await;
    }

    /// Lets the state see what the store holds, as a watch would bring it.
    pub(super) async fn look(&mut self) {
        let snapshot = self.store.list(keys::DEFAULT_PREFIX).await.unwrap();
        self.state.replace(&snapshot);
    }

    /// A second leader of the same cluster, with the state of this one.
    pub(super) fn rival(&self) -> Self {
        Self {
            store: self.store.clone(),
            keys: self.keys.clone(),
            policy: self.policy.clone(),
            state: self.state.clone(),
        }
    }

    /// Writes a record and lets the state see nothing else of what happened.
    pub(super) async fn record_alone(&mut self, name: &str, json: &str) {
        let key = self.keys.netnamespace(&ns(name));
        let outcome = self.store.commit(Txn::new().put(key.as_str(), json)).await.unwrap();
        let changes = vec![Change::Put(self.store.get(&key).await.unwrap().unwrap())];
        self.state.apply(&Changes { revision: outcome.done().unwrap(), changes });
    }

    /// The next step on the state as it is.
    pub(super) fn next(&self) -> Option<Step> {
        next(&self.state, &self.policy)
    }

    pub(super) async fn carry_out(&mut self, step: &Step) -> bool {
        match self.store.commit(step.txn_unfenced()).await.unwrap() {
            Outcome::Done { revision } => {
                self.state.committed(step.writes(), revision);
                true
            }
            Outcome::Conflict(_) => false,
        }
    }

    /// Lets the leader work until nothing is left to do; gives how many transactions it took.
    pub(super) async fn settle(&mut self) -> usize {
        for steps in 0..MOST_STEPS {
            let Some(step) = self.next() else {
                // What the leader believes after its own writes is what the store holds.
                let believed = self.state.clone();
                self.look().await;
                assert_eq!(believed.tenants(), self.state.tenants());
                assert_eq!((&believed.records, &believed.ledger), (&self.state.records, &self.state.ledger));
                assert_eq!((&believed.subnets, &believed.nodes), (&self.state.subnets, &self.state.nodes));
                assert_eq!((&believed.numbers, &believed.released), (&self.state.numbers, &self.state.released));
                assert_eq!(self.next(), None);
                return steps;
            };
            assert_eq!(step.txn_unfenced().check(), Ok(()));
            assert!(self.carry_out(&step).await, "conflict without a rival: {step:?}");
        }
        panic!("the plan runs in circles: {:?}", self.next());
    }

    pub(super) async fn text(&self, key: &str) -> String {
        let entry = self.store.get(key).await.unwrap();
        entry.map_or_else(String::new, |entry| String::from_utf8(entry.value).unwrap())
    }

    pub(super) async fn read(&self, name: &str) -> NetNamespaceRecord {
        NetNamespaceRecord::parse(self.text(&self.keys.netnamespace(&ns(name))).await.as_bytes()).unwrap()
    }

    pub(super) async fn read_subnet(&self, address: &str) -> SubnetRecord {
        SubnetRecord::parse(self.text(&self.keys.subnet(address.parse().unwrap())).await.as_bytes()).unwrap()
    }

    /// VNI and `NetID` by the ledger.
    pub(super) fn numbers(&self, name: &str) -> Option<(u32, u32)> {
        self.state.tenants().get(&ns(name)).map(|tenant| (tenant.vni.get(), tenant.net_id.get()))
    }
}
