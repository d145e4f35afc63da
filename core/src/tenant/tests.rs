//! Tenants: each rule of birth, action and import, and all of them against a naive model.

use std::collections::BTreeSet;

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
        assert!(tenants.resume_import(&rest, &BTreeMap::new(), &BTreeSet::new(), &mut Numbers::default()).is_empty());
        assert_eq!(tenants, whole, "cut off after {done}");
    }
    let mut tenants = whole;
    let late = [(name("f"), Some(11))].into();
    let refused = tenants.resume_import(&late, &BTreeMap::new(), &BTreeSet::new(), &mut Numbers::default());
    assert!(matches!(refused[&name("f")], BirthError::Taken(_)), "11 is b's VNI and nobody's network");
}

#[test]
fn an_import_keeps_the_vnis_that_namespaces_show_if_no_record_says_otherwise() {
    let records = [("a", 11), ("b", 11), ("c", 0), ("d", 13), ("e", 0)].map(|(ns, id)| (name(ns), Some(id)));
    let shown = [("a", 10), ("b", 11), ("c", 12), ("d", 14), ("e", 13), ("gone", 15)];
    let shown = shown.map(|(ns, vni)| (name(ns), Vni::namespace(vni).unwrap())).into();
    let mut tenants = Tenants::default();
    assert!(tenants.resume_import(&records.into(), &shown, &BTreeSet::new(), &mut Numbers::default()).is_empty());
    let vnis = ["a", "b", "c", "d"].map(|ns| tenants.get(&name(ns)).unwrap().vni.get());
    assert_eq!(vnis, [10, 11, 12, 14]);
    assert_eq!(tenants.get(&name("e")).unwrap().vni.get(), 16, "13 is d's network, 15 somebody else's");
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
