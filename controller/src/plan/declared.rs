//! What Namespaces declare by annotation, resolved: who is whose follower, and which declarations cannot be followed.
//!
//! A pure function of the annotations and of who is there. A declaration that cannot be followed moves nobody: the
//! namespace stays where it is, and so does whoever follows it, at its side.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_core::annotation::{ALLOW_JOIN_FROM, AnnotationError, NETWORK, Network};
use bulkhead_core::{Action, Namespace};
use thiserror::Error;

use super::Policy;
use crate::source;
use crate::state::State;

/// How an answer begins that refuses an action for an annotation.
const OBJECTION: &str = "bulkhead.dev/network of the namespace ";

/// Whether a record's `Error` refuses its action for an annotation.
pub(super) fn is_objection(error: &str) -> bool {
    error.starts_with(OBJECTION)
}

/// Why a declaration is not followed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unfollowed {
    /// It cannot be read.
    #[error("{0}")]
    Bad(#[from] AnnotationError),
    /// It names the namespace itself.
    #[error("{NETWORK}: {0} cannot join itself; name another namespace, or write isolated")]
    Itself(Namespace),
    /// It leads back to itself.
    #[error("{NETWORK}: the joins go round in a circle ({0}); change one of them")]
    Cycle(String),
    /// The target does not admit it.
    #[error("{NETWORK}: the namespace {0} does not admit it; {ALLOW_JOIN_FROM} there must name it")]
    Unwelcome(Namespace),
    /// The target is not there yet.
    #[error("{NETWORK}: the namespace {0} does not exist yet; the join waits for it")]
    NoTarget(Namespace),
}

impl Unfollowed {
    /// Whether it may work later without anybody writing an annotation.
    pub const fn waits(&self) -> bool {
        matches!(self, Self::NoTarget(_))
    }
}

/// What holds for a namespace that has the annotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing<'a> {
    /// A network of its own.
    Isolated,
    /// Open to all.
    Global,
    /// Where `root` is, at which the joins that begin with `target` end.
    Follows { target: &'a Namespace, root: &'a Namespace },
    /// Nothing.
    Unfollowed(Unfollowed),
}

/// All declarations.
#[derive(Debug, Default)]
pub(crate) struct Declared<'a> {
    standings: BTreeMap<&'a Namespace, Standing<'a>>,
    /// By root.
    followers: BTreeMap<&'a Namespace, BTreeSet<Namespace>>,
}

impl<'a> Declared<'a> {
    /// Resolves them; none while Kubernetes is not the source, or was not listed.
    pub(crate) fn new(state: &'a State, policy: &Policy) -> Self {
        let Some(objects) = state.source.objects() else { return Self::default() };
        let lives = |name: &Namespace| state.tenants().get(name).is_some() && !source::is_gone(state, name);
        let mut standings = BTreeMap::new();
        let mut joins = BTreeMap::<&Namespace, &Namespace>::new();
        for (name, object) in objects.namespaces.iter().filter(|(name, _)| lives(name)) {
            let standing = match &object.network {
                None => continue,
                Some(Err(error)) => Standing::Unfollowed(error.clone().into()),
                Some(Ok(Network::Isolated)) => Standing::Isolated,
                Some(Ok(Network::Global)) => Standing::Global,
                Some(Ok(Network::Join(target))) => {
                    let consent = objects.namespaces.get(target).and_then(|object| object.consent.as_ref());
                    let admits = consent.is_some_and(|consent| consent.as_ref().is_ok_and(|c| c.admits(name)));
                    if target == name {
                        Standing::Unfollowed(Unfollowed::Itself(name.clone()))
                    } else if !lives(target) {
                        Standing::Unfollowed(Unfollowed::NoTarget(target.clone()))
                    } else if policy.require_join_consent && !admits {
                        Standing::Unfollowed(Unfollowed::Unwelcome(target.clone()))
                    } else {
                        joins.insert(name, target);
                        continue;
                    }
                }
            };
            standings.insert(name, standing);
        }
        for cycle in cycles(&joins) {
            let text: Vec<_> = cycle.iter().chain(cycle.first()).take(9).map(|name| name.as_str()).collect();
            for name in &cycle {
                joins.remove(name);
                standings.insert(name, Standing::Unfollowed(Unfollowed::Cycle(text.join(" -> "))));
            }
        }
        let mut followers = BTreeMap::<_, BTreeSet<_>>::new();
        for (&name, &target) in &joins {
            let mut root = target;
            while let Some(next) = joins.get(root) {
                root = next;
            }
            followers.entry(root).or_default().insert(name.clone());
            standings.insert(name, Standing::Follows { target, root });
        }
        Self { standings, followers }
    }

    /// What holds for a namespace; none if it has no annotation.
    pub(crate) fn get(&self, namespace: &Namespace) -> Option<&Standing<'a>> {
        self.standings.get(namespace)
    }

    /// Those that have the annotation.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'a Namespace, &Standing<'a>)> {
        self.standings.iter().map(|(name, standing)| (*name, standing))
    }

    /// Who goes wherever this namespace goes.
    pub(crate) fn followers(&self, root: &Namespace) -> BTreeSet<Namespace> {
        self.followers.get(root).cloned().unwrap_or_default()
    }

    /// The namespaces that others follow.
    pub(crate) fn roots(&self) -> impl Iterator<Item = &'a Namespace> {
        self.followers.keys().copied()
    }

    /// Why an action of a namespace is refused: the annotation wins.
    pub(crate) fn objection(&self, state: &State, namespace: &Namespace, action: &Action) -> Option<String> {
        let says = |name: &Namespace| {
            let object = state.source.objects()?.namespaces.get(name)?;
            Some(object.network.as_ref()?.as_ref().map_or_else(|_| "a wrong value".to_owned(), ToString::to_string))
        };
        if self.get(namespace).is_some() {
            let says = says(namespace)?;
            return Some(format!(
                "{OBJECTION}{namespace} says {says}, and the annotation wins; change it or remove it (kubectl annotate namespace {namespace} {NETWORK}-)"
            ));
        }
        let Action::Join(target) = action else { return None };
        let root = match self.get(target)? {
            Standing::Follows { root, .. } => *root,
            Standing::Isolated => target,
            Standing::Global | Standing::Unfollowed(_) => return None,
        };
        let isolated = root != namespace && self.get(root) == Some(&Standing::Isolated);
        isolated.then(|| {
            format!(
                "{OBJECTION}{root} says isolated, so nobody joins it by an action; declare it (kubectl annotate namespace {namespace} {NETWORK}=join:{target})"
            )
        })
    }
}

/// The circles among the joins, each from its first name on.
fn cycles<'a>(joins: &BTreeMap<&'a Namespace, &'a Namespace>) -> Vec<Vec<&'a Namespace>> {
    let mut cycles = Vec::new();
    let mut seen = BTreeSet::new();
    for &start in joins.keys() {
        let mut path = Vec::new();
        let mut at = start;
        // Every namespace is walked over once: whatever was seen before leads to no new circle.
        while seen.insert(at) {
            path.push(at);
            match joins.get(at) {
                Some(next) => at = next,
                None => break,
            }
        }
        if let Some(begin) = path.iter().position(|name| *name == at)
            && joins.contains_key(at)
        {
            let mut cycle = path.split_off(begin);
            let first = cycle.iter().enumerate().min_by_key(|(_, name)| **name).map_or(0, |(first, _)| first);
            cycle.rotate_left(first);
            cycles.push(cycle);
        }
    }
    cycles
}
