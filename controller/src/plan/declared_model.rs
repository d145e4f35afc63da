//! Random annotations, actions, births and deaths against a naive model: who shares a network with whom at the end.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_core::annotation::{JoinConsent, Network};
use bulkhead_core::{Action, Namespace};
use proptest::prelude::*;

use super::scenes::{Scene, ns};
use crate::objects::NamespaceObject;

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

#[derive(Debug, Clone)]
enum Event {
    Appear(usize),
    Vanish(usize),
    /// The annotation; none removes it. `Err` is a wrong value.
    Annotate(usize, Option<Result<Network, ()>>),
    Consent(usize, BTreeSet<usize>),
    Act(usize, Action),
}

fn who() -> impl Strategy<Value = usize> {
    0..NAMES.len()
}

fn event() -> impl Strategy<Value = Event> {
    let network = prop_oneof![
        2 => Just(Some(Ok(Network::Isolated))),
        1 => Just(Some(Ok(Network::Global))),
        6 => who().prop_map(|to| Some(Ok(Network::Join(ns(NAMES[to]))))),
        1 => Just(Some(Err(()))),
        2 => Just(None),
    ];
    let action = prop_oneof![
        4 => who().prop_map(|to| Action::Join(ns(NAMES[to]))),
        2 => Just(Action::Isolate),
        1 => Just(Action::Global),
    ];
    prop_oneof![
        4 => who().prop_map(Event::Appear),
        1 => who().prop_map(Event::Vanish),
        8 => (who(), network).prop_map(|(who, network)| Event::Annotate(who, network)),
        2 => (who(), prop::collection::btree_set(who(), 0..4)).prop_map(|(who, list)| Event::Consent(who, list)),
        6 => (who(), action).prop_map(|(who, action)| Event::Act(who, action)),
    ]
}

/// Networks by label; 0 is open to all.
#[derive(Default)]
struct Model {
    objects: BTreeMap<Namespace, NamespaceObject>,
    networks: BTreeMap<Namespace, u32>,
    labels: u32,
    consent: bool,
}

impl Model {
    fn fresh(&mut self) -> u32 {
        self.labels += 1;
        self.labels
    }

    fn network(&self, name: &Namespace) -> Option<&Network> {
        self.objects[name].network.as_ref()?.as_ref().ok()
    }

    /// The target, if the join holds but for circles.
    fn edge(&self, name: &Namespace) -> Option<&Namespace> {
        let Some(Network::Join(target)) = self.network(name) else { return None };
        let object = self.objects.get(target)?;
        let admits = object.consent.as_ref().is_some_and(|consent| consent.as_ref().unwrap().admits(name));
        (target != name && (admits || !self.consent)).then_some(target)
    }

    fn goes_round(&self, name: &Namespace) -> bool {
        let mut at = name;
        for _ in 0..NAMES.len() {
            match self.edge(at) {
                Some(next) if next == name => return true,
                Some(next) => at = next,
                None => return false,
            }
        }
        false
    }

    fn target(&self, name: &Namespace) -> Option<&Namespace> {
        self.edge(name).filter(|_| !self.goes_round(name))
    }

    fn root<'a>(&'a self, name: &'a Namespace) -> &'a Namespace {
        self.target(name).map_or(name, |target| self.root(target))
    }

    fn isolate(&mut self, name: &Namespace) -> bool {
        let own = self.networks[name];
        let others = self.networks.iter().any(|(other, net)| *net == own && self.root(other) != name);
        if own == 0 || others {
            let fresh = self.fresh();
            self.networks.insert(name.clone(), fresh);
        }
        own == 0 || others
    }

    /// Each declaration on its own, again and again until nothing moves.
    fn rest(&mut self) {
        let names: Vec<_> = self.objects.keys().cloned().collect();
        for _ in 0..100 {
            let mut moved = false;
            for name in &names {
                let wanted = match (self.network(name), self.target(name)) {
                    (_, Some(target)) => Some(self.networks[target]),
                    (Some(Network::Global), _) => Some(0),
                    _ => None,
                };
                if let Some(wanted) = wanted {
                    moved |= self.networks.insert(name.clone(), wanted) != Some(wanted);
                }
            }
            if !moved {
                let isolated: Vec<_> =
                    names.iter().filter(|name| self.network(name) == Some(&Network::Isolated)).collect();
                moved = isolated.into_iter().any(|name| self.isolate(name));
            }
            if !moved {
                return;
            }
        }
        panic!("the model does not come to rest");
    }

    fn act(&mut self, name: &Namespace, action: &Action) {
        if self.objects[name].network.is_some() {
            return;
        }
        match action {
            Action::Join(target) if target == name || !self.objects.contains_key(target) => {}
            Action::Join(target) => {
                let root = self.root(target);
                if root == name || self.network(root) != Some(&Network::Isolated) {
                    self.networks.insert(name.clone(), self.networks[target]);
                }
            }
            Action::Isolate => drop(self.isolate(name)),
            Action::Global => drop(self.networks.insert(name.clone(), 0)),
        }
    }
}

struct World {
    scene: Scene,
    model: Model,
    births: u32,
}

impl World {
    async fn new(consent: bool) -> Self {
        let mut scene = Scene::empty().await.with_kubernetes();
        scene.policy.require_join_consent = consent;
        scene.appears("kube-system", "u");
        scene.settle().await;
        Self { scene, model: Model { consent, ..Model::default() }, births: 0 }
    }

    fn show(&mut self, name: &str) {
        self.scene.object(name, self.model.objects[&ns(name)].clone());
    }

    async fn happen(&mut self, event: &Event) {
        match event {
            Event::Appear(who) => {
                let name = NAMES[*who];
                self.births += 1;
                let object = NamespaceObject { uid: format!("u{}", self.births), ..NamespaceObject::default() };
                if self.model.objects.insert(ns(name), object).is_some() {
                    // Made anew: everybody sees it gone for a moment.
                    self.model.networks.remove(&ns(name));
                }
                let fresh = self.model.fresh();
                self.model.networks.insert(ns(name), fresh);
                self.show(name);
            }
            Event::Vanish(who) => {
                self.model.objects.remove(&ns(NAMES[*who]));
                self.model.networks.remove(&ns(NAMES[*who]));
                self.scene.vanishes(NAMES[*who]);
            }
            Event::Annotate(who, network) => {
                let Some(object) = self.model.objects.get_mut(&ns(NAMES[*who])) else { return };
                object.network =
                    network.clone().map(|network| network.map_err(|()| "x".parse::<Network>().unwrap_err()));
                self.show(NAMES[*who]);
            }
            Event::Consent(who, list) => {
                let Some(object) = self.model.objects.get_mut(&ns(NAMES[*who])) else { return };
                let list = list.iter().map(|who| ns(NAMES[*who])).collect();
                object.consent = Some(Ok(JoinConsent::Of(list)));
                self.show(NAMES[*who]);
            }
            Event::Act(who, action) => {
                if !self.model.objects.contains_key(&ns(NAMES[*who])) {
                    return;
                }
                self.model.act(&ns(NAMES[*who]), action);
                self.scene.act(&[(NAMES[*who], action)]).await;
            }
        }
        self.model.rest();
    }

    /// Lets the leader work; nobody who was there before moves twice.
    async fn settle(&mut self) {
        let mut moved = BTreeMap::<String, u32>::new();
        let there: BTreeSet<String> =
            self.scene.state.ledger.keys().map(|name| self.scene.keys.ledger_namespace(name)).collect();
        while let Some(step) = self.scene.next() {
            for (key, value) in step.writes().iter().filter(|(key, _)| there.contains(*key)) {
                assert_ne!(value, &Some(self.scene.text(key).await.into_bytes()), "{key} is written for nothing");
                if value.is_some() {
                    *moved.entry(key.clone()).or_default() += 1;
                }
            }
            assert!(self.scene.carry_out(&step).await);
            assert!(moved.values().all(|times| *times == 1), "{moved:?}");
        }
        assert!(self.scene.settle().await == 0);
        // An action that was refused, or waits, is taken back: the model does not remember it.
        for name in self.model.objects.keys() {
            let mut record = self.scene.read(name.as_str()).await;
            if !record.action.is_empty() {
                assert!(!record.error.is_empty(), "{record:?}");
                record.action.clear();
                record.error.clear();
                let text = String::from_utf8(bulkhead_core::record::Record::to_json(&record)).unwrap();
                self.scene.record(name.as_str(), &text).await;
            }
        }
        self.scene.settle().await;
    }

    fn check(&self) {
        let tenants = self.scene.state.tenants();
        for (name, label) in &self.model.networks {
            let tenant = tenants.get(name).unwrap();
            assert_eq!(tenant.net_id.is_global(), *label == 0, "{name}: {tenant:?}");
            for (other, with) in &self.model.networks {
                let together = tenants.get(other).unwrap().net_id == tenant.net_id;
                assert_eq!(together, label == with, "{name} and {other}: {:?}", self.model.networks);
            }
        }
        assert_eq!(tenants.len(), self.model.networks.len() + 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn declarations_and_actions_end_where_the_naive_model_says(
        consent in proptest::bool::weighted(0.3),
        events in prop::collection::vec(event(), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new(consent).await;
            for event in &events {
                world.happen(event).await;
                world.settle().await;
                world.check();
            }
        });
    }
}
