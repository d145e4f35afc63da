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

    /// The numbers of a namespace whose entry was lost and that still shows its VNI; alone in its network, or in the
    /// global one.
    pub fn rebirth(&self, vni: Vni, global: bool, uid: Option<String>) -> Result<Tenant, BirthError> {
        if self.in_use(vni.get()) {
            return Err(BirthError::Taken(vni.into()));
        }
        Ok(Tenant { vni, net_id: if global { NetId::GLOBAL } else { vni.into() }, uid })
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
        let refused = tenants.resume_import(records, &BTreeMap::new(), &BTreeSet::new(), numbers);
        (tenants, refused)
    }

    /// Goes on with an import of which the ledger holds a part: `records` are those without a ledger entry. Whoever has
    /// one keeps it. `shown` are the VNIs that namespaces had in a ledger that is lost, each of one alone: theirs, if no record
    /// says otherwise. `reserved` are numbers that are given to nobody: of records that are still to be mended, say.
    pub fn resume_import(
        &mut self,
        records: &BTreeMap<Namespace, Option<i64>>,
        shown: &BTreeMap<Namespace, Vni>,
        reserved: &BTreeSet<u32>,
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
        let asked: BTreeSet<u32> =
            wanted.values().flatten().map(|id| id.get()).chain(reserved.iter().copied()).collect();
        let owners: BTreeMap<Vni, &Namespace> = shown.iter().map(|(namespace, vni)| (*vni, namespace)).collect();
        for (namespace, net_id) in wanted {
            // A number that only names somebody on the wire is nobody's network yet.
            if let Some(foreign) =
                net_id.filter(|id| !id.is_global() && self.members(*id) == 0 && self.in_use(id.get()))
            {
                refused.insert(namespace, BirthError::Taken(foreign));
                continue;
            }
            let shown = shown.get(&namespace).filter(|vni| !asked.contains(&vni.get()) && !self.in_use(vni.get()));
            // The first of a joined group, or who shows it, has the number as its own; the others get a VNI that nobody uses.
            let own = net_id.and_then(|id| Vni::namespace(id.get()).ok()).filter(|vni| !self.vnis.contains_key(vni));
            let own = own.filter(|vni| owners.get(vni).is_none_or(|owner| **owner == namespace));
            let is_anothers = |number| Vni::try_from(number).is_ok_and(|vni| owners.contains_key(&vni));
            let vni = match shown.copied().or(own) {
                Some(vni) => vni,
                None => {
                    match numbers.take(|number| asked.contains(&number) || is_anothers(number) || self.in_use(number)) {
                        Ok(vni) => vni,
                        Err(exhausted) => {
                            refused.insert(namespace, exhausted.into());
                            continue;
                        }
                    }
                }
            };
            self.insert(namespace, Tenant { vni, net_id: net_id.unwrap_or(vni.into()), uid: None });
        }
        refused
    }
}

#[cfg(test)]
mod tests;
