//! Every kind of change of a tenant's network, by annotation, by `kubectl bulkhead` and by a record in etcd, while more than 50
//! connections run: those that are allowed before and after lose nothing, those that are not any more die, what is allowed now
//! works. Needs root and the programs of `build/build.sh`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "changes/declared.rs"]
mod declared;

use std::thread;
use std::time::{Duration, Instant};

use bulkhead_kubernetes_tests::connections::Connection;
use bulkhead_kubernetes_tests::endpoints;
use bulkhead_kubernetes_tests::tenants::{Change, Way, ask, await_status, create};
use bulkhead_kubernetes_tests::traffic::{self, Pair};
use bulkhead_kubernetes_tests::{Cluster, Pod, bulkhead, pod};
use bulkhead_tests::error::{LabError, promised};
use bulkhead_tests::probe::{PATIENCE, Proto, SILENCE, reaches};
use bulkhead_tests::tenancy::Tenancy;
use bulkhead_tests::{Endpoint, wait};
use serde_json::json;

/// How soon a change is in force at the latest; two seconds are promised, of a machine that has nothing else to do. How long it
/// took is printed.
const SOON: Duration = Duration::from_secs(30);
/// A connection on which nothing came for so long is dead, if nothing comes later either.
const DEAD: Duration = Duration::from_secs(1);
/// Connections of each pair that a change may concern.
const EACH: usize = 2;

/// What a change does to a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Stays,
    Opens,
    Closes,
    Apart,
}

struct Scene {
    cluster: Cluster,
    tenancy: Tenancy,
    /// Allowed whatever happens to a, b and c.
    always: Vec<(Endpoint, Endpoint)>,
    /// Pods of different namespaces, on one node and across.
    between: Vec<(Endpoint, Endpoint)>,
    standing: Vec<Connection>,
    slowest: Vec<(String, Duration)>,
}

fn borrowed(pairs: &[(Endpoint, Endpoint)]) -> Vec<Pair<'_>> {
    pairs.iter().map(|(from, to)| (from, to)).collect()
}

impl Scene {
    fn build() -> Result<Self, LabError> {
        let cluster = Cluster::builder().start()?;
        bulkhead::install(&cluster, &[])?;
        create(&cluster, &["a", "b", "c"])?;
        let wanted = [
            ("a", "1", "n1"),
            ("a", "2", "n2"),
            ("b", "1", "n1"),
            ("b", "2", "n2"),
            ("c", "1", "n1"),
            ("c", "2", "n2"),
            ("kube-system", "open", "n1"),
        ];
        for (namespace, name, node) in wanted {
            pod::ask(cluster.kubectl(), namespace, name, node)?;
        }
        let endpoint = |namespace: &str, name: &str| -> Result<Endpoint, LabError> {
            endpoints::of_pod(&Pod::find(cluster.kubectl(), namespace, name)?)
        };
        let (a, b) = ([endpoint("a", "1")?, endpoint("a", "2")?], [endpoint("b", "1")?, endpoint("b", "2")?]);
        let (c, open) = ([endpoint("c", "1")?, endpoint("c", "2")?], endpoint("kube-system", "open")?);
        let host = endpoints::of_node(&cluster, "n2")?;
        let pair = |from: &Endpoint, to: &Endpoint| (from.clone(), to.clone());
        let always = vec![
            pair(&a[0], &a[1]),
            pair(&b[0], &b[1]),
            pair(&c[1], &c[0]),
            pair(&open, &b[0]),
            pair(&b[1], &open),
            pair(&open, &a[1]),
            pair(&host, &b[0]),
            pair(&host, &a[1]),
            pair(&b[0], &host),
            pair(&a[0], &host),
        ];
        let between = vec![
            pair(&a[0], &b[0]),
            pair(&b[0], &a[1]),
            pair(&b[1], &a[0]),
            pair(&c[0], &b[0]),
            pair(&b[1], &c[0]),
            pair(&a[1], &c[0]),
            pair(&c[1], &a[1]),
        ];
        let mut tenancy = Tenancy::isolated(&["a", "b", "c"]);
        tenancy.global("kube-system");
        let standing = traffic::connect(&borrowed(&always), 5)?;
        Ok(Self { cluster, tenancy, always, between, standing, slowest: Vec::new() })
    }

    /// Does something to the tenants; `model` does it to the naive one, which says what must become of each pair.
    fn step(
        &mut self,
        what: &str,
        act: impl FnOnce(&Cluster) -> Result<(), LabError>,
        model: impl FnOnce(&mut Tenancy),
    ) -> Result<(), LabError> {
        println!("{what}");
        let before: Vec<bool> = self.between.iter().map(|(from, to)| self.tenancy.may(from, to)).collect();
        let mut held = Vec::new();
        for (pair, may) in borrowed(&self.between).into_iter().zip(&before) {
            held.push(traffic::connect(&[pair], if *may { EACH } else { 0 })?);
        }
        let pings = traffic::ping(&borrowed(&self.always[..7]))?;
        let begin = Instant::now();
        act(&self.cluster)?;
        let asked = begin.elapsed();
        model(&mut self.tenancy);
        let checks = self.between.iter().zip(before).zip(&held).map(|((pair, before), connections)| {
            let fate = match (before, self.tenancy.may(&pair.0, &pair.1)) {
                (true, true) => Fate::Stays,
                (false, true) => Fate::Opens,
                (true, false) => Fate::Closes,
                (false, false) => Fate::Apart,
            };
            (pair, fate, connections)
        });
        let outcomes: Vec<_> = thread::scope(|scope| {
            let all: Vec<_> = checks
                .map(|(pair, fate, connections)| {
                    (fate, scope.spawn(move || judge((&pair.0, &pair.1), fate, connections, begin)))
                })
                .collect();
            all.into_iter().map(|(fate, thread)| (fate, thread.join().unwrap())).collect()
        });
        let (mut slowest, mut kept) = (Duration::ZERO, Vec::new());
        for ((fate, outcome), connections) in outcomes.into_iter().zip(held) {
            slowest = slowest.max(outcome?);
            if fate == Fate::Stays {
                kept.extend(connections);
            }
        }
        println!("    asked within {:.2} s, in force within {:.2} s", asked.as_secs_f64(), slowest.as_secs_f64());
        self.slowest.push((what.to_owned(), slowest));
        traffic::expect_none_lost(pings, what)?;
        traffic::expect_alive(&self.standing, what)?;
        if kept.is_empty() { Ok(()) } else { traffic::expect_whole(kept, what) }
    }

    fn change(&mut self, way: Way, namespace: &str, change: Change<'_>, followers: &[&str]) -> Result<(), LabError> {
        let act = |cluster: &Cluster| ask(cluster, way, namespace, change);
        self.step(&format!("{way}: {namespace} {change}"), act, |tenancy| {
            match change {
                Change::Join(target) => tenancy.join(namespace, target),
                Change::Isolate => tenancy.isolate(namespace),
                Change::Global => tenancy.global(namespace),
            }
            for follower in followers {
                tenancy.join(follower, namespace);
            }
        })
    }
}

/// Waits for a pair's fate; gives how long after `begin` it was met.
fn judge((from, to): Pair<'_>, fate: Fate, connections: &[Connection], begin: Instant) -> Result<Duration, LabError> {
    match fate {
        Fate::Stays => {
            // What was asked before the change and answered after it proves nothing.
            let goals: Vec<u64> = connections.iter().map(|one| one.progress().sent + 5).collect();
            for (connection, goal) in connections.iter().zip(goals) {
                wait::until_or(&format!("{} going on", connection.name()), SOON, || {
                    let progress = connection.progress();
                    if progress.answered >= goal { Ok(()) } else { Err(progress.to_string()) }
                })?;
            }
            Ok(Duration::ZERO)
        }
        Fate::Opens => {
            for proto in [Proto::Icmp, Proto::Tcp] {
                wait::until(&format!("{proto} from {from} to {to}"), SOON, || {
                    reaches(from, to.address(), proto, Duration::from_millis(200)).unwrap_or(false).then_some(())
                })?;
            }
            let took = begin.elapsed();
            traffic::expect_works((from, to), EACH)?;
            Ok(took)
        }
        Fate::Closes => {
            let mut passed_last = begin;
            for connection in connections {
                wait::until_or(&format!("{} dying", connection.name()), SOON, || {
                    let quiet = connection.last_answer().elapsed();
                    if quiet > DEAD { Ok(()) } else { Err(format!("an answer {quiet:?} ago")) }
                })?;
            }
            wait::until(&format!("silence from {from} to {to}"), SOON, || {
                let passed =
                    Proto::ALL.into_iter().any(|proto| reaches(from, to.address(), proto, SILENCE).unwrap_or(true));
                if passed {
                    passed_last = Instant::now();
                }
                (!passed).then_some(())
            })?;
            // A connection that only stood still for a while has had an answer since.
            let last =
                connections.iter().map(Connection::last_answer).max().map_or(passed_last, |last| last.max(passed_last));
            let took = last.saturating_duration_since(begin);
            promised(took < SOON, || format!("{from} -> {to} died after {took:?}"))?;
            Ok(took)
        }
        Fate::Apart => {
            for proto in Proto::ALL {
                let passed = reaches(from, to.address(), proto, SILENCE)?;
                promised(!passed, || format!("{proto} from {from} to {to} passes, which are not joined"))?;
            }
            Ok(Duration::ZERO)
        }
    }
}

/// b and a through all verbs; followers are those who declared to join.
fn each_verb(scene: &mut Scene, way: Way) -> Result<(), LabError> {
    let followers: &[&str] = if way == Way::Etcd { &[] } else { &["b"] };
    scene.change(way, "b", Change::Join("a"), &[])?;
    scene.change(way, "b", Change::Isolate, &[])?;
    scene.change(way, "b", Change::Global, &[])?;
    scene.change(way, "b", Change::Isolate, &[])?;
    println!(
        "a target that moves: who declared to join it follows and stays connected, who was moved by an action stays"
    );
    scene.change(way, "b", Change::Join("a"), &[])?;
    scene.change(way, "a", Change::Join("c"), followers)?;
    scene.change(way, "a", Change::Isolate, followers)?;
    scene.change(way, "b", Change::Isolate, &[])
}

fn namespace(name: &str, network: Option<&str>) -> String {
    let annotations = network.map(|network| json!({"bulkhead.dev/network": network}));
    let metadata = json!({"name": name, "annotations": annotations});
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}).to_string()
}

fn vni(cluster: &Cluster, namespace: &str) -> Result<String, LabError> {
    let object = cluster.kubectl().json(&["get", "namespace", namespace])?;
    Ok(object["metadata"]["annotations"]["bulkhead.dev/vni"].as_str().unwrap_or_default().to_owned())
}

/// Namespaces that come and join others, each in its way, go with their connections, and come again as new ones.
fn namespaces_come_and_go(scene: &mut Scene) -> Result<(), LabError> {
    println!("namespaces are created, join others, are deleted and created anew");
    let (cluster, host) = (&scene.cluster, &scene.always[8].1);
    let (a, c) = (&scene.always[0].0, &scene.always[2].0);
    // By now a declares to be isolated: no action joins it.
    let ways = [("d", Way::Annotation, "a", a), ("e", Way::Cli, "a", a), ("f", Way::Etcd, "c", c)];
    let pings = traffic::ping(&borrowed(&scene.always[..3]))?;
    let mut guests = Vec::new();
    for (name, way, ..) in ways {
        cluster.kubectl().apply(&namespace(name, (way == Way::Annotation).then_some("join:a")))?;
        pod::ask(cluster.kubectl(), name, "guest", "n2")?;
    }
    for (name, way, target, friend) in ways {
        let guest = endpoints::of_pod(&Pod::find(cluster.kubectl(), name, "guest")?)?;
        if way != Way::Annotation {
            let passed = reaches(friend, guest.address(), Proto::Tcp, SILENCE)?;
            promised(!passed, || format!("{friend} reaches {guest}, a new namespace"))?;
            ask(cluster, way, name, Change::Join(target))?;
        }
        guests.push(guest);
    }
    let mut joined = Vec::new();
    for (guest, (.., friend)) in guests.iter().zip(ways) {
        judge((friend, guest), Fate::Opens, &[], Instant::now())?;
        joined.extend(traffic::connect(&[(friend, guest)], EACH)?);
    }
    let mut old = Vec::new();
    for (name, ..) in ways {
        await_status(cluster, name, "joined")?;
        old.push(vni(cluster, name)?);
    }
    cluster.kubectl().run(&["delete", "namespace", "d", "e", "f"])?;
    for (connection, guest) in joined.iter().zip(guests.iter().flat_map(|guest| [guest; EACH])) {
        wait::until(&format!("{} dying", connection.name()), SOON, || {
            (connection.progress().broken.is_some() || connection.last_answer().elapsed() > DEAD).then_some(())
        })?;
        wait::until(&format!("{guest}, of a deleted namespace, being unplugged"), SOON, || {
            (!reaches(host, guest.address(), Proto::Icmp, SILENCE).ok()?).then_some(())
        })?;
    }
    for (name, ..) in ways {
        cluster.kubectl().apply(&namespace(name, None))?;
        pod::ask(cluster.kubectl(), name, "guest", "n2")?;
    }
    for ((name, _, _, friend), old) in ways.into_iter().zip(old) {
        let guest = endpoints::of_pod(&Pod::find(cluster.kubectl(), name, "guest")?)?;
        await_status(cluster, name, "isolated")?;
        let new = vni(cluster, name)?;
        promised(new != old && !new.is_empty(), || format!("{name} has the VNI {new} of its predecessor, {old}"))?;
        for proto in Proto::ALL {
            wait::until(&format!("{proto} from {host} to {guest}"), SOON, || {
                reaches(host, guest.address(), proto, PATIENCE).unwrap_or(false).then_some(())
            })?;
            let passed = reaches(friend, guest.address(), proto, SILENCE)?;
            promised(!passed, || format!("{proto}: {friend} reaches {guest}, a namespace made anew"))?;
        }
    }
    traffic::expect_none_lost(pings, "namespaces came and went")?;
    traffic::expect_alive(&scene.standing, "namespaces came and went")
}

#[test]
fn changes_by_every_way_are_felt_only_by_what_they_change() -> Result<(), LabError> {
    let mut scene = Scene::build()?;
    for way in [Way::Etcd, Way::Annotation, Way::Cli] {
        each_verb(&mut scene, way)?;
    }
    println!("an action on a namespace with an annotation changes nothing");
    let act = |cluster: &Cluster| {
        ask(cluster, Way::Etcd, "b", Change::Join("a"))?;
        await_status(cluster, "b", "refused").map(drop)
    };
    scene.step("etcdctl: b, which declares to be isolated, joins a", act, |_| {})?;
    namespaces_come_and_go(&mut scene)?;
    declared::annotations_are_followed_or_refused(&scene)?;
    println!("the whole time");
    traffic::expect_whole(scene.standing, "all changes")?;
    for (what, took) in scene.slowest {
        println!("  {what}: in force within {:.2} s", took.as_secs_f64());
    }
    Ok(())
}
