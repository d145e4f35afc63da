//! Services on the real kube-proxy in both of its modes: datagrams to a backend that changes, connections that idle or share
//! their ports, sources that are kept, and who may use them. Needs root and the programs of `build/build.sh`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "services/foreign.rs"]
mod foreign;
#[path = "services/policies.rs"]
mod policies;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bulkhead_kubernetes_tests::inner::{DATAGRAMS, Inner, at};
use bulkhead_kubernetes_tests::pod::{self, WEB, manifest};
use bulkhead_kubernetes_tests::tenants::{await_status, create, declare};
use bulkhead_kubernetes_tests::{Cluster, Pod, ProxyMode, bulkhead};
use bulkhead_tests::error::LabError;
use bulkhead_tests::wait;
use serde_json::{Value, json};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
/// How soon kube-proxy has heard of a change, on a loaded machine.
const SOON: Duration = Duration::from_mins(2);
/// An address that is no machine's.
const EXTERNAL: &str = "198.51.100.7";
const HOST_PORT: u16 = 18080;

fn turn() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A cluster with the tenant `a` (client and one on n1, two on n2) and the tenant `b` (stranger on n1).
struct Scene {
    client: Inner,
    one: Pod,
    two: Pod,
    beside: Pod,
    stranger: Pod,
    // Dropped last: what is in it is in use.
    cluster: Cluster,
}

/// Waits until a service answers by one of these.
fn await_answer(from: &Inner, to: SocketAddr, by: &[&str]) -> Result<(), LabError> {
    wait::until_or(&format!("{to} being answered by {by:?}"), SOON, || match from.who(to) {
        Ok(name) if by.contains(&name.as_str()) => Ok(()),
        other => Err(format!("{other:?}")),
    })
}

impl Scene {
    fn set(proxy: ProxyMode, proxy_knows_pods: bool) -> Result<Self, LabError> {
        let cluster = Cluster::builder().proxy(proxy).proxy_knows_pods(proxy_knows_pods).start()?;
        bulkhead::install(&cluster, &[])?;
        create(&cluster, &["a", "b"])?;
        let mut hosted: Value = serde_json::from_str(&manifest("a", "two", "n2")).unwrap();
        hosted["spec"]["containers"][0]["ports"] = json!([{"containerPort": WEB, "hostPort": HOST_PORT}]);
        for (namespace, name) in [("a", "client"), ("a", "one"), ("b", "stranger")] {
            pod::ask(cluster.kubectl(), namespace, name, "n1")?;
        }
        cluster.kubectl().apply(&hosted.to_string())?;
        let find = |namespace, name| Pod::find(cluster.kubectl(), namespace, name);
        let (beside, one, two, stranger) =
            (find("a", "client")?, find("a", "one")?, find("a", "two")?, find("b", "stranger")?);
        let client = Inner::of(&cluster, "n1", "a", "client")?;
        Ok(Self { client, one, two, beside, stranger, cluster })
    }

    /// Makes a service of tenant `a` in front of the pods with a label; gives its address and its NodePort.
    fn serve(&self, name: &str, label: &str, more: &Value) -> Result<(IpAddr, u16), LabError> {
        let mut service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"namespace": "a", "name": name},
            "spec": {
                "selector": {label: "yes"},
                "ports": [
                    {"name": "web", "port": WEB},
                    {"name": "datagrams", "port": DATAGRAMS, "protocol": "UDP"},
                ],
            },
        });
        for (field, value) in more.as_object().into_iter().flatten() {
            service["spec"][field] = value.clone();
        }
        self.cluster.kubectl().apply(&service.to_string())?;
        let service = self.cluster.kubectl().json(&["-n", "a", "get", "service", name])?;
        let port = service["spec"]["ports"][0]["nodePort"].as_u64().unwrap_or_default();
        Ok((service["spec"]["clusterIP"].as_str().unwrap().parse().unwrap(), u16::try_from(port).unwrap()))
    }

    /// Makes pods a service's backends, and no others.
    fn behind(&self, label: &str, pods: &[&str]) -> Result<(), LabError> {
        let kubectl = self.cluster.kubectl();
        for pod in ["one", "two"] {
            let word = if pods.contains(&pod) { format!("{label}=yes") } else { format!("{label}-") };
            kubectl.run(&["-n", "a", "label", "--overwrite", "pod", pod, &word])?;
        }
        Ok(())
    }

    /// Waits until a service answers the client by one of these.
    fn await_answer(&self, to: SocketAddr, by: &[&str]) -> Result<(), LabError> {
        await_answer(&self.client, to, by)
    }

    fn node(&self, name: &str) -> IpAddr {
        self.cluster.node(name).unwrap().address().into()
    }

    /// What a machine outside of the cluster gets to see.
    fn outside(&self, page: &str, to: SocketAddr) -> Result<String, LabError> {
        let url = format!("http://{to}/{page}");
        self.cluster.underlay().outside.exec("curl", &["-sf", "-m", "3", &url], &[])
    }

    /// Waits until tenant `a` and the outside reach it; tenant `b` does not.
    fn belongs_to_a(&self, to: SocketAddr) -> Result<(), LabError> {
        wait::until_or(&format!("{to} being open to its tenant and the outside"), SOON, || {
            match (self.beside.fetches(&to.to_string()), self.outside("hostname", to)) {
                (Ok(true), Ok(_)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })?;
        assert!(!self.stranger.fetches(&to.to_string())?, "{to} is open to another tenant");
        Ok(())
    }
}

fn a_backend_of_datagrams_changes(scene: &Scene) -> Result<(), LabError> {
    scene.behind("datagrams", &["one"])?;
    let (address, port) = scene.serve("datagrams", "datagrams", &json!({"type": "NodePort"}))?;
    // The same source port again and again: the kernel's memory of the first backend never grows old.
    let ways = [at(address, DATAGRAMS), at(scene.node("n1"), datagram_port(scene, "datagrams", port)?)];
    for backend in ["one", "two", "one"] {
        scene.behind("datagrams", &[backend])?;
        let begin = Instant::now();
        for (number, way) in (0..).zip(ways) {
            wait::until_or(&format!("{backend} answering at {way}"), SOON, || {
                match scene.client.ask(40_000 + number, way, "hostname") {
                    Ok(Ok(name)) if name == backend => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })?;
        }
        println!("  {backend} answers after {:.1} s", begin.elapsed().as_secs_f64());
    }
    Ok(())
}

/// The NodePort of the service's second port.
fn datagram_port(scene: &Scene, name: &str, web: u16) -> Result<u16, LabError> {
    let service = scene.cluster.kubectl().json(&["-n", "a", "get", "service", name])?;
    let port = service["spec"]["ports"][1]["nodePort"].as_u64().unwrap();
    assert_ne!(port, u64::from(web));
    Ok(u16::try_from(port).unwrap())
}

/// A direct connection and one by a service that have the same ports on both ends.
fn one_pair_of_ports_twice(scene: &Scene, pod: &Pod, name: &str, service: SocketAddr) -> Result<(), LabError> {
    let direct = at(pod.address(), WEB);
    for (number, ways) in (0..).zip([[direct, service], [service, direct]]) {
        let source = 41_000 + number * 10 + u16::from(name == "two");
        let mut both = [scene.client.connect(source, ways[0])?, scene.client.connect(source, ways[1])?];
        for _ in 0..5 {
            for connection in &mut both {
                assert_eq!(connection.ask("hostname")?, name, "{connection}");
            }
        }
        for way in ways {
            let answer = scene.client.ask(source, at(way.ip(), DATAGRAMS), "hostname")?;
            assert_eq!(answer.unwrap(), name, "datagrams to {way}");
        }
    }
    Ok(())
}

/// Another tenant's namespaces and pods come, join, part and go.
fn churn(scene: &Scene) -> Result<(), LabError> {
    let cluster = &scene.cluster;
    create(cluster, &["x", "y"])?;
    for (namespace, node) in [("x", "n1"), ("x", "n2"), ("y", "n1"), ("y", "n2")] {
        pod::ask(cluster.kubectl(), namespace, &format!("on-{node}"), node)?;
    }
    let x = Pod::find(cluster.kubectl(), "x", "on-n1")?;
    declare(cluster, "y", Some("join:x"))?;
    await_status(cluster, "y", "joined to x")?;
    Pod::find(cluster.kubectl(), "y", "on-n2")?;
    cluster.kubectl().run(&["-n", "x", "expose", "pod", "on-n1", "--port=8080"])?;
    declare(cluster, "y", Some("global"))?;
    await_status(cluster, "y", "global")?;
    assert!(x.pings(x.address())?);
    cluster.kubectl().run(&["delete", "namespace", "x", "y", "--timeout=5m"]).map(drop)
}

fn sources_are_kept(scene: &Scene, proxy_knows_pods: bool) -> Result<(), LabError> {
    scene.behind("local", &["two"])?;
    let (_, port) = scene.serve("local", "local", &json!({"type": "NodePort", "externalTrafficPolicy": "Local"}))?;
    let there = at(scene.node("n2"), port);
    let seen = wait::until_or("the node of the backend answering", SOON, || {
        scene.outside("clientip", there).map_err(|error| error.to_string())
    })?;
    let outside = scene.cluster.underlay().outside_address().to_string();
    assert!(seen.starts_with(&outside), "the client {outside} is seen as {seen}");
    policies::local_policy_from_pods(scene, port, proxy_knows_pods)?;
    assert!(scene.outside("clientip", at(scene.node("n1"), port)).is_err(), "n1 has no backend");
    Ok(())
}

fn affinity_holds(scene: &Scene) -> Result<(), LabError> {
    scene.behind("both", &["one", "two"])?;
    let (free, _) = scene.serve("free", "both", &json!({}))?;
    let (sticky, _) = scene.serve("sticky", "both", &json!({"sessionAffinity": "ClientIP"}))?;
    let answers = |to: IpAddr, count: usize| -> Result<BTreeSet<String>, LabError> {
        (0..count).map(|_| scene.client.who(at(to, WEB))).collect()
    };
    for service in [free, sticky] {
        scene.await_answer(at(service, WEB), &["one", "two"])?;
    }
    wait::until_or("both backends answering", SOON, || {
        answers(free, 20)
            .map_err(|error| error.to_string())
            .and_then(|all| if all.len() == 2 { Ok(()) } else { Err(format!("{all:?}")) })
    })?;
    // Whether kube-proxy knew both when the first connection came is nothing to affinity: from now on it is one.
    let all = answers(sticky, 20)?;
    assert_eq!(all.len(), 1, "{all:?}");
    policies::affinity_outlasts_the_other_backend(scene, free, sticky)
}

fn services_do_what_services_do(proxy: ProxyMode, proxy_knows_pods: bool) -> Result<(), LabError> {
    let scene = Scene::set(proxy, proxy_knows_pods)?;
    let begin = Instant::now();
    let step = |what: &str| println!("{:.1} s: {what}", begin.elapsed().as_secs_f64());
    scene.behind("first", &["one"])?;
    scene.behind("second", &["two"])?;
    let (one, _) = scene.serve("one", "first", &json!({"externalIPs": [EXTERNAL]}))?;
    let (two, _) = scene.serve("two", "second", &json!({}))?;
    scene.await_answer(at(one, WEB), &["one"])?;
    scene.await_answer(at(two, WEB), &["two"])?;
    let mut idle = [scene.client.connect(0, at(one, WEB))?, scene.client.connect(0, at(two, WEB))?];
    for connection in &mut idle {
        connection.ask("hostname")?;
    }

    step("a direct connection and one by a service with the same ports, on one node and across");
    one_pair_of_ports_twice(&scene, &scene.one, "one", at(one, WEB))?;
    one_pair_of_ports_twice(&scene, &scene.two, "two", at(two, WEB))?;
    step("a pod behind a service reaches itself by it");
    for (node, pod, service) in [("n1", "one", one), ("n2", "two", two)] {
        let own = Inner::of(&scene.cluster, node, "a", pod)?;
        // What the client's node has heard of a service the pod's own may hear later.
        await_answer(&own, at(service, WEB), &[pod])?;
    }
    step("an external address: for its tenant and the outside");
    let external: IpAddr = EXTERNAL.parse().unwrap();
    let route = format!("route replace {EXTERNAL} via {}", scene.node("n1"));
    scene.cluster.underlay().outside.ip(&route)?;
    scene.belongs_to_a(at(external, WEB))?;
    step("a hostPort: for its tenant and the outside");
    scene.belongs_to_a(at(scene.node("n2"), HOST_PORT))?;
    step("endpoints made by hand: another tenant's pods are not reached by them");
    foreign::endpoints_made_by_hand_open_no_tenant(&scene)?;
    step("externalTrafficPolicy Local");
    sources_are_kept(&scene, proxy_knows_pods)?;
    step("session affinity");
    affinity_holds(&scene)?;
    step("a service without an address");
    policies::a_headless_service(&scene)?;
    step("a pod behind a service reaches itself by NodePorts");
    policies::a_pod_reaches_itself_by_node_ports(&scene)?;
    step("clients in their node's network");
    let (address, port) = scene.serve("for-nodes", "second", &json!({"type": "NodePort"}))?;
    policies::clients_in_the_nodes_network(&scene, address, port)?;
    step("datagrams to a backend that changes");
    a_backend_of_datagrams_changes(&scene)?;
    step("another tenant's namespaces and pods come and go");
    churn(&scene)?;
    step("connections that were idle meanwhile go on");
    for (connection, name) in idle.iter_mut().zip(["one", "two"]) {
        assert_eq!(connection.ask("hostname")?, name, "{connection}");
    }
    step("done");
    Ok(())
}

/// kube-proxy is told nothing of pods, as by kubeadm without `--pod-network-cidr`.
#[test]
fn services_do_what_services_do_with_iptables() -> Result<(), LabError> {
    let _turn = turn();
    services_do_what_services_do(ProxyMode::Iptables, false)
}

#[test]
fn services_do_what_services_do_with_nftables() -> Result<(), LabError> {
    let _turn = turn();
    services_do_what_services_do(ProxyMode::Nftables, true)
}
