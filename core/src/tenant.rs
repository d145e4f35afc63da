//! Tenants and their state machine: birth, join, isolate, global, and the import of K8S-OVS records.
//!
//! Pure decisions over the whole table. The caller carries a decision out as one fenced transaction and then tells the
//! table; nothing here changes by being asked.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::name::{NameError, Namespace};
use crate::number::{Exhausted, Numbers};
use crate::vni::{NetId, NumberError, Vni};

/// How many namespaces the leader moves in one transaction when one write asks for it: each costs two compares and two
/// writes of the 128 that etcd takes, and the target, the numbers and the leader's fence are compared once. Actions
/// of more namespaces than this, or to many targets, are carried out in several transactions.
pub const MOVES_PER_TRANSACTION: usize = 62;

/// A namespace's numbers, as the ledger holds them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tenant {
    /// Its name on the wire; never changes.
    pub vni: Vni,
    /// The tenant network it is in.
    pub net_id: NetId,
    /// The Kubernetes UID: a namespace that was re-created under its name is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// What an administrator asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Into the target's network.
    Join(Namespace),
    /// Into a network of its own.
    Isolate,
    /// Open to all.
    Global,
}

/// Why an action is refused; it changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ActionError {
    /// The verb is none of the three.
    #[error("the action {0:?} is not known; use join, isolate or global")]
    UnknownVerb(String),
    /// A join without a target, or with one that cannot be a namespace.
    #[error("join needs the target's name in Namespace: {0}")]
    BadTarget(#[from] NameError),
    /// The namespace itself is not there.
    #[error("the namespace {0} is not known; create it first")]
    UnknownNamespace(Namespace),
    /// The target is not there (yet): the action waits.
    #[error("the target namespace {0} does not exist yet; the join waits for it")]
    UnknownTarget(Namespace),
    /// A namespace that would join itself.
    #[error("{0} cannot join itself; name another namespace")]
    JoinToItself(Namespace),
    /// No fresh number is left.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
}

impl ActionError {
    /// Whether the same action may work later without being written again.
    pub const fn waits(&self) -> bool {
        matches!(self, Self::UnknownTarget(_))
    }
}

impl Action {
    /// Reads a record's `Action` and `Namespace`; none if no action is asked for.
    pub fn parse(verb: &str, target: &str) -> Result<Option<Self>, ActionError> {
        match verb {
            "" => Ok(None),
            "join" => Ok(Some(Self::Join(Namespace::new(target)?))),
            "isolate" => Ok(Some(Self::Isolate)),
            "global" => Ok(Some(Self::Global)),
            _ => Err(ActionError::UnknownVerb(verb.chars().take(40).collect())),
        }
    }

    /// Its `Action` and `Namespace` in a record.
    pub fn fields(&self) -> (&'static str, &str) {
        match self {
            Self::Join(target) => ("join", target.as_str()),
            Self::Isolate => ("isolate", ""),
            Self::Global => ("global", ""),
        }
    }
}

/// Why a namespace cannot have the number it asks for, or any.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BirthError {
    /// Not a `NetID`.
    #[error("NetID: {0}")]
    Number(#[from] NumberError),
    /// Below 0.
    #[error("NetID {0} is negative; use 0 (global), a free number from 10 to 16777215, or leave it out")]
    Negative(i64),
    /// Somebody has it.
    #[error("NetID {0} is taken; leave it out to get a free one, or use the action join")]
    Taken(NetId),
    /// No number is left.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
}

/// Reads a `NetID` as a record has it.
pub fn parse_net_id(number: i64) -> Result<NetId, BirthError> {
    let unsigned = u64::try_from(number).map_err(|_| BirthError::Negative(number))?;
    let narrow = u32::try_from(unsigned).map_err(|_| NumberError::TooLarge(unsigned))?;
    Ok(NetId::new(narrow)?)
}

/// All tenants, with what is needed to decide quickly.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tenants {
    by_name: BTreeMap<Namespace, Tenant>,
    /// How many namespaces have a number as VNI.
    vnis: BTreeMap<Vni, usize>,
    /// How many namespaces are in a network.
    members: BTreeMap<NetId, usize>,
}

fn count_down<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl Tenants {
    /// One namespace's numbers.
    pub fn get(&self, namespace: &Namespace) -> Option<&Tenant> {
        self.by_name.get(namespace)
    }

    /// All, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&Namespace, &Tenant)> {
        self.by_name.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Records what the ledger says of a namespace.
    pub fn insert(&mut self, namespace: Namespace, tenant: Tenant) {
        self.remove(&namespace);
        *self.vnis.entry(tenant.vni).or_default() += 1;
        *self.members.entry(tenant.net_id).or_default() += 1;
        self.by_name.insert(namespace, tenant);
    }

    /// Forgets a namespace that the ledger no longer has.
    pub fn remove(&mut self, namespace: &Namespace) -> Option<Tenant> {
        let tenant = self.by_name.remove(namespace)?;
        count_down(&mut self.vnis, &tenant.vni);
        count_down(&mut self.members, &tenant.net_id);
        Some(tenant)
    }

    /// Whether anybody has this number, as VNI or as `NetID`.
    pub fn in_use(&self, number: u32) -> bool {
        Vni::try_from(number).is_ok_and(|vni| self.vnis.contains_key(&vni) || self.members.contains_key(&vni.into()))
    }

    /// How many namespaces are in this network.
    pub fn members(&self, net_id: NetId) -> usize {
        self.members.get(&net_id).copied().unwrap_or(0)
    }

    /// The numbers of a new namespace. `asked` is what its record says: absent, 0 for global, or a free number.
    pub fn birth(
        &self,
        asked: Option<NetId>,
        uid: Option<String>,
        numbers: &mut Numbers,
    ) -> Result<Tenant, BirthError> {
        match asked {
            Some(net_id) if !net_id.is_global() => {
                if self.in_use(net_id.get()) {
                    return Err(BirthError::Taken(net_id));
                }
                Ok(Tenant { vni: Vni::namespace(net_id.get())?, net_id, uid })
            }
            _ => {
                let vni = numbers.take(|number| self.in_use(number))?;
                Ok(Tenant { vni, net_id: asked.unwrap_or(vni.into()), uid })
            }
        }
    }

    /// The `NetID` that an action gives to a namespace; the same one if it changes nothing.
    pub fn decide(&self, namespace: &Namespace, action: &Action, numbers: &mut Numbers) -> Result<NetId, ActionError> {
        let own = self.get(namespace).ok_or_else(|| ActionError::UnknownNamespace(namespace.clone()))?;
        match action {
            Action::Join(target) if target == namespace => Err(ActionError::JoinToItself(target.clone())),
            Action::Join(target) => {
                let target = self.get(target).ok_or_else(|| ActionError::UnknownTarget(target.clone()))?;
                Ok(target.net_id)
            }
            Action::Global => Ok(NetId::GLOBAL),
            Action::Isolate => self.own_network(namespace, own, &BTreeSet::new(), numbers).map_err(Into::into),
        }
    }

    /// The network of its own that a namespace has or can have, with `company`, who come along wherever it goes.
    pub fn isolate(
        &self,
        namespace: &Namespace,
        company: &BTreeSet<Namespace>,
        numbers: &mut Numbers,
    ) -> Result<NetId, ActionError> {
        let own = self.get(namespace).ok_or_else(|| ActionError::UnknownNamespace(namespace.clone()))?;
        self.own_network(namespace, own, company, numbers).map_err(Into::into)
    }

    fn own_network(
        &self,
        namespace: &Namespace,
        own: &Tenant,
        company: &BTreeSet<Namespace>,
        numbers: &mut Numbers,
    ) -> Result<NetId, Exhausted> {
        let is_free = |net_id: NetId| {
            let with = company.iter().filter(|name| *name != namespace).filter_map(|name| self.get(name));
            let ours = with.chain([own]).filter(|tenant| tenant.net_id == net_id).count();
            self.members(net_id) == ours
        };
        let home = NetId::from(own.vni);
        if !own.net_id.is_global() && is_free(own.net_id) {
            Ok(own.net_id)
        } else if own.net_id != home && is_free(home) {
            Ok(home)
        } else {
            Ok(numbers.take(|number| self.in_use(number))?.into())
        }
    }

    /// Reads K8S-OVS records that have no ledger: equal `NetID`s mean joined, and everyone keeps theirs. All numbers are
    /// read before the first is given out. What cannot be read is returned with its reason and gets nothing.
    pub fn import(
        records: &BTreeMap<Namespace, Option<i64>>,
        numbers: &mut Numbers,
    ) -> (Self, BTreeMap<Namespace, BirthError>) {
        let mut tenants = Self::default();
        let refused = tenants.resume_import(records, numbers);
        (tenants, refused)
    }

    /// Goes on with an import of which the ledger holds a part: `records` are those without a ledger entry. Whoever has
    /// one keeps it.
    pub fn resume_import(
        &mut self,
        records: &BTreeMap<Namespace, Option<i64>>,
        numbers: &mut Numbers,
    ) -> BTreeMap<Namespace, BirthError> {
        let mut refused = BTreeMap::new();
        let mut wanted = BTreeMap::new();
        for (namespace, number) in records {
            match number.map(parse_net_id).transpose() {
                Ok(net_id) => drop(wanted.insert(namespace.clone(), net_id)),
                Err(error) => drop(refused.insert(namespace.clone(), error)),
            }
        }
        let taken: BTreeSet<u32> = wanted.values().flatten().map(|id| id.get()).collect();
        for (namespace, net_id) in wanted {
            // A number that only names somebody on the wire is nobody's network yet.
            if let Some(foreign) =
                net_id.filter(|id| !id.is_global() && self.members(*id) == 0 && self.in_use(id.get()))
            {
                refused.insert(namespace, BirthError::Taken(foreign));
                continue;
            }
            // The first of a joined group has the number as its own; the others get a VNI that nobody uses.
            let own = net_id.and_then(|id| Vni::namespace(id.get()).ok()).filter(|vni| !self.vnis.contains_key(vni));
            let vni = match own {
                Some(vni) => vni,
                None => match numbers.take(|number| taken.contains(&number) || self.in_use(number)) {
                    Ok(vni) => vni,
                    Err(exhausted) => {
                        refused.insert(namespace, exhausted.into());
                        continue;
                    }
                },
            };
            self.insert(namespace, Tenant { vni, net_id: net_id.unwrap_or(vni.into()), uid: None });
        }
        refused
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Namespace {
        Namespace::new(text).unwrap()
    }

    fn born(names: &[&str]) -> (Tenants, Numbers) {
        let (mut tenants, mut numbers) = (Tenants::default(), Numbers::default());
        for text in names {
            let tenant = tenants.birth(None, None, &mut numbers).unwrap();
            tenants.insert(name(text), tenant);
        }
        (tenants, numbers)
    }

    fn act(tenants: &mut Tenants, numbers: &mut Numbers, who: &str, action: &Action) -> u32 {
        let net_id = tenants.decide(&name(who), action, numbers).unwrap();
        let tenant = Tenant { net_id, ..tenants.get(&name(who)).unwrap().clone() };
        tenants.insert(name(who), tenant);
        net_id.get()
    }

    #[test]
    fn join_isolate_global() {
        let (mut t, mut n) = born(&["a", "b", "c"]);
        assert_eq!(act(&mut t, &mut n, "a", &Action::Isolate), 10, "isolate of a unique network is a no-op");
        assert_eq!(act(&mut t, &mut n, "b", &Action::Join(name("a"))), 10);
        assert_eq!(act(&mut t, &mut n, "c", &Action::Join(name("b"))), 10, "a join is to the target's network");
        assert_eq!(act(&mut t, &mut n, "b", &Action::Isolate), 11, "back to its own");
        assert_eq!(act(&mut t, &mut n, "a", &Action::Isolate), 13, "others are in its own network: a fresh number");
        assert_eq!(act(&mut t, &mut n, "a", &Action::Isolate), 13);
        assert_eq!(act(&mut t, &mut n, "b", &Action::Global), 0);
        assert_eq!(act(&mut t, &mut n, "a", &Action::Join(name("b"))), 0, "a join to a global one is global");
        assert_eq!(act(&mut t, &mut n, "b", &Action::Isolate), 11);
    }

    #[test]
    fn company_does_not_count_as_others() {
        let (mut t, mut n) = born(&["a", "b", "c"]);
        act(&mut t, &mut n, "b", &Action::Join(name("a")));
        let company = BTreeSet::from([name("b")]);
        assert_eq!(t.isolate(&name("a"), &company, &mut n).map(NetId::get), Ok(10), "it is where it belongs");
        act(&mut t, &mut n, "c", &Action::Join(name("a")));
        assert_eq!(t.isolate(&name("a"), &company, &mut n).map(NetId::get), Ok(13), "c is nobody's company");
        assert_eq!(t.isolate(&name("c"), &company, &mut n).map(NetId::get), Ok(12));
    }

    #[test]
    fn bad_actions_are_refused() {
        let (t, mut n) = born(&["a"]);
        assert_eq!(t.decide(&name("a"), &Action::Join(name("a")), &mut n), Err(ActionError::JoinToItself(name("a"))));
        let waiting = t.decide(&name("a"), &Action::Join(name("x")), &mut n).unwrap_err();
        assert!(waiting.waits());
        assert_eq!(t.decide(&name("x"), &Action::Global, &mut n), Err(ActionError::UnknownNamespace(name("x"))));
        assert!(matches!(Action::parse("Join", "a"), Err(ActionError::UnknownVerb(_))));
        assert!(matches!(Action::parse("join", ""), Err(ActionError::BadTarget(_))));
        assert_eq!(Action::parse("", "a"), Ok(None));
    }

    #[test]
    fn a_number_that_people_write_is_taken_when_it_is_free_and_in_range() {
        let (t, mut n) = born(&["a"]);
        let ask = |number| parse_net_id(number).map(Some);
        assert_eq!(t.birth(ask(300_924).unwrap(), None, &mut n).unwrap().vni.get(), 300_924);
        assert!(matches!(t.birth(ask(10).unwrap(), None, &mut n), Err(BirthError::Taken(_))));
        let global = t.birth(ask(0).unwrap(), None, &mut n).unwrap();
        assert!(global.net_id.is_global() && global.vni.get() == 11);
        for bad in [-1, 5, 1 << 24, i64::MAX] {
            assert!(parse_net_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn k8s_ovs_records_keep_their_net_ids() {
        let records = [("a", Some(12)), ("b", Some(12)), ("c", Some(10)), ("d", Some(0)), ("e", None), ("f", Some(3))]
            .map(|(namespace, number)| (name(namespace), number))
            .into();
        let (tenants, refused) = Tenants::import(&records, &mut Numbers::default());
        let of = |text: &str| tenants.get(&name(text)).map(|t| (t.vni.get(), t.net_id.get()));
        assert_eq!(of("a"), Some((12, 12)));
        assert_eq!(of("b"), Some((11, 12)));
        assert_eq!(of("c"), Some((10, 10)));
        assert_eq!(of("d"), Some((13, 0)));
        assert_eq!(of("e"), Some((14, 14)));
        assert_eq!(refused.keys().collect::<Vec<_>>(), [&name("f")]);
    }

    #[test]
    fn an_import_that_was_cut_off_ends_as_if_it_had_not_been() {
        let records: BTreeMap<_, _> = [("a", Some(12)), ("b", Some(12)), ("c", None), ("d", Some(10)), ("e", Some(0))]
            .map(|(namespace, number)| (name(namespace), number))
            .into();
        let (whole, _) = Tenants::import(&records, &mut Numbers::default());
        for done in 0..=records.len() {
            let mut tenants = Tenants::default();
            for (namespace, tenant) in whole.iter().take(done) {
                tenants.insert(namespace.clone(), tenant.clone());
            }
            let rest = records.iter().skip(done).map(|(n, id)| (n.clone(), *id)).collect();
            assert!(tenants.resume_import(&rest, &mut Numbers::default()).is_empty());
            assert_eq!(tenants, whole, "cut off after {done}");
        }
        let mut tenants = whole;
        let late = [(name("f"), Some(11))].into();
        let refused = tenants.resume_import(&late, &mut Numbers::default());
        assert!(matches!(refused[&name("f")], BirthError::Taken(_)), "11 is b's VNI and nobody's network");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Birth(u8, Option<u8>),
        Death(u8),
        Act(u8, u8, u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0u8..8, prop::option::of(0u8..30)).prop_map(|(who, number)| Step::Birth(who, number)),
            (0u8..8).prop_map(Step::Death),
            (0u8..8, 0u8..3, 0u8..8).prop_map(|(who, verb, target)| Step::Act(who, verb, target)),
        ];
        prop::collection::vec(step, 1..80)
    }

    proptest! {
        /// Against a naive model: for each pair of namespaces, whether they are in one network.
        #[test]
        fn networks_are_what_the_actions_made_them(steps in steps()) {
            let (mut tenants, mut numbers) = (Tenants::default(), Numbers::default());
            // The model: a network is a set of names, or global.
            let mut groups: Vec<BTreeSet<Namespace>> = Vec::new();
            let mut global: BTreeSet<Namespace> = BTreeSet::new();
            let who = |index: u8| name(&format!("n{index}"));
            let leave = |groups: &mut Vec<BTreeSet<Namespace>>, global: &mut BTreeSet<Namespace>, n: &Namespace| {
                global.remove(n);
                for group in groups.iter_mut() { group.remove(n); }
                groups.retain(|group| !group.is_empty());
            };
            for step in steps {
                match step {
                    Step::Birth(index, number) => {
                        let n = who(index);
                        if tenants.get(&n).is_some() { continue }
                        let asked = number.map(|number| parse_net_id(number.into())).transpose();
                        let Ok(asked) = asked else { continue };
                        let Ok(tenant) = tenants.birth(asked, None, &mut numbers) else {
                            prop_assert!(tenants.in_use(number.unwrap().into()));
                            continue
                        };
                        prop_assert!(!tenants.in_use(tenant.vni.get()));
                        if tenant.net_id.is_global() { global.insert(n.clone()); } else { groups.push([n.clone()].into()); }
                        tenants.insert(n, tenant);
                    }
                    Step::Death(index) => {
                        if let Some(tenant) = tenants.remove(&who(index)) {
                            for number in [tenant.vni.get(), tenant.net_id.get()] {
                                if !tenants.in_use(number) { numbers.release(number); }
                            }
                        }
                        leave(&mut groups, &mut global, &who(index));
                    }
                    Step::Act(index, verb, target) => {
                        let n = who(index);
                        let action = [Action::Join(who(target)), Action::Isolate, Action::Global][usize::from(verb)].clone();
                        let Ok(net_id) = tenants.decide(&n, &action, &mut numbers) else { continue };
                        let tenant = Tenant { net_id, ..tenants.get(&n).unwrap().clone() };
                        tenants.insert(n.clone(), tenant);
                        let joined = match &action {
                            Action::Join(t) => groups.iter().position(|group| group.contains(t)).map(|at| groups[at].iter().next().unwrap().clone()),
                            _ => None,
                        };
                        if matches!(action, Action::Join(_)) && joined.as_ref() == Some(&n) { continue }
                        leave(&mut groups, &mut global, &n);
                        match (action, joined) {
                            (Action::Join(t), _) => match groups.iter_mut().find(|group| group.contains(&t)) {
                                Some(group) => drop(group.insert(n)),
                                None => drop(global.insert(n)),
                            },
                            (Action::Isolate, _) => groups.push([n].into()),
                            (Action::Global, _) => drop(global.insert(n)),
                        }
                    }
                }
                let vnis: BTreeSet<_> = tenants.iter().map(|(_, t)| t.vni).collect();
                prop_assert_eq!(vnis.len(), tenants.len(), "two namespaces have one VNI");
                for (a, ta) in tenants.iter() {
                    for (b, tb) in tenants.iter() {
                        let together = a == b || global.contains(a) || global.contains(b)
                            || groups.iter().any(|group| group.contains(a) && group.contains(b));
                        prop_assert_eq!(ta.net_id.reaches(tb.net_id), together, "{} {}", a, b);
                    }
                }
            }
        }
    }
}
