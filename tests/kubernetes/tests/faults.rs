//! What happens to a cluster in a year: updates, crashes, restarts, the control plane away, a machine that dies and another one
//! under its name. Running pods lose not one packet, connections that were made at the beginning live to the end, tenants stay
//! apart. Needs root and the programs of `build/build.sh`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use bulkhead_kubernetes_tests::connections::Connection;
use bulkhead_kubernetes_tests::tenants::{await_status, create, declare};
use bulkhead_kubernetes_tests::traffic::{self, Pair};
use bulkhead_kubernetes_tests::{Cluster, Pod, bulkhead, endpoints, pod};
use bulkhead_tests::error::{LabError, Tried, promised};
use bulkhead_tests::etcd::Etcd;
use bulkhead_tests::probe::{Proto, SILENCE, reaches};
use bulkhead_tests::{Endpoint, wait};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

#[path = "faults/cable.rs"]
mod cable;

/// How long what is broken may take to be whole again.
const MENDED: Duration = Duration::from_mins(4);
/// How long kubelets may take to notice that the API server is back: client-go looks once a minute by then, or finds it not yet
/// ready and looks a minute later.
const NOTICED: Duration = Duration::from_mins(4);
/// How long the API server is away, and Bulkhead's etcd: what a test sleeps is this pace, and waits for nothing.
const AWAY: Duration = Duration::from_mins(1);

struct Scene {
    // Dropped before the cluster that it is on.
    etcd: Etcd,
    connections: Vec<Connection>,
    web: Endpoint,
    friend: Endpoint,
    stranger: Endpoint,
    pairs: Vec<(Endpoint, Endpoint)>,
    cluster: Cluster,
}

impl Scene {
    fn build() -> Result<Self, LabError> {
        let cluster = Cluster::builder().workers(3).start()?;
        let etcd = bulkhead::install_with_own_etcd(&cluster)?;
        create(&cluster, &["a", "b"])?;
        let pods = [("a", "web", "n1"), ("a", "friend", "n2"), ("b", "stranger", "n2"), ("b", "beside", "n1")];
        for (namespace, name, node) in pods.into_iter().chain([("kube-system", "open", "n1")]) {
            pod::ask(cluster.kubectl(), namespace, name, node)?;
        }
        let endpoint = |namespace: &str, name: &str| -> Result<Endpoint, LabError> {
            endpoints::of_pod(&Pod::find(cluster.kubectl(), namespace, name)?)
        };
        let (web, friend) = (endpoint("a", "web")?, endpoint("a", "friend")?);
        let (stranger, beside) = (endpoint("b", "stranger")?, endpoint("b", "beside")?);
        let (open, host) = (endpoint("kube-system", "open")?, endpoints::of_node(&cluster, "n2")?);
        let pair = |from: &Endpoint, to: &Endpoint| (from.clone(), to.clone());
        let pairs = vec![
            pair(&web, &friend),
            pair(&friend, &web),
            pair(&stranger, &beside),
            pair(&open, &web),
            pair(&open, &friend),
            pair(&host, &web),
            pair(&web, &host),
        ];
        let borrowed: Vec<Pair<'_>> = pairs.iter().map(|(from, to)| (from, to)).collect();
        let connections = traffic::connect(&borrowed, 5)?;
        Ok(Self { etcd, connections, web, friend, stranger, pairs, cluster })
    }

    /// Pings each pair while something happens; none may be lost, no connection broken, no stranger let in.
    fn during<T>(&mut self, what: &str, fault: impl FnOnce(&mut Self) -> Result<T, LabError>) -> Result<T, LabError> {
        println!("{what}");
        let begin = Instant::now();
        let pairs: Vec<Pair<'_>> = self.pairs.iter().map(|(from, to)| (from, to)).collect();
        let pings = traffic::ping(&pairs)?;
        let outcome = fault(self)?;
        println!("    over after {:.1} s", begin.elapsed().as_secs_f64());
        apart(&self.stranger, &self.web)?;
        traffic::expect_none_lost(pings, what)?;
        traffic::expect_alive(&self.connections, what)?;
        Ok(outcome)
    }

    /// Asks for a pod; gives it when it is ready.
    fn start(&self, namespace: &str, name: &str, node: &str) -> Result<Endpoint, LabError> {
        endpoints::of_pod(&Pod::start(&self.cluster, namespace, name, node)?)
    }

    /// Deletes a pod and waits until it is gone.
    fn delete(&self, namespace: &str, name: &str) -> Result<(), LabError> {
        self.cluster.kubectl().run(&["-n", namespace, "delete", "pod", name]).map(drop)
    }

    /// A pod of a is reached from a, and from b is not.
    fn expect_of_a(&self, pod: &Endpoint) -> Result<(), LabError> {
        works(&self.friend, pod)?;
        works(&self.web, pod)?;
        apart(&self.stranger, pod)
    }
}

fn works(from: &Endpoint, to: &Endpoint) -> Result<(), LabError> {
    for proto in Proto::ALL {
        wait::until(&format!("{proto} from {from} to {to}"), MENDED, || {
            reaches(from, to.address(), proto, Duration::from_secs(1)).unwrap_or(false).then_some(())
        })?;
    }
    Ok(())
}

fn apart(from: &Endpoint, to: &Endpoint) -> Result<(), LabError> {
    unreachable(from, to.address())
}

fn unreachable(from: &Endpoint, to: Ipv4Addr) -> Result<(), LabError> {
    for proto in Proto::ALL {
        promised(!reaches(from, to, proto, SILENCE)?, || format!("{proto} from {from} reaches {to}"))?;
    }
    Ok(())
}

fn update(scene: &mut Scene) -> Result<(), LabError> {
    let kubectl = scene.cluster.kubectl();
    for what in ["daemonset/bulkhead-agent", "deployment/bulkhead-controller"] {
        kubectl.run(&["-n", bulkhead::NAMESPACE, "rollout", "restart", what])?;
    }
    bulkhead::await_ready(&scene.cluster)
}

/// Kills the agents of both nodes, with a pod being started and one being deleted on each.
fn kill_agents(scene: &mut Scene) -> Result<(), LabError> {
    let (cluster, nodes) = (&scene.cluster, ["n1", "n2"]);
    nodes.iter().try_for_each(|node| scene.start("a", &format!("leaves-{node}"), node).map(drop))?;
    let mut restarts = Vec::new();
    for node in nodes {
        restarts.push(bulkhead::agent_restarts(cluster, node)?);
        cluster.node(node)?.exec(&["pkill", "-KILL", "-x", "bulkhead-agent"], &[])?;
        pod::ask(cluster.kubectl(), "a", &format!("comes-{node}"), node)?;
        cluster.kubectl().run(&["-n", "a", "delete", "pod", &format!("leaves-{node}"), "--wait=false"])?;
    }
    for (node, before) in nodes.into_iter().zip(restarts) {
        wait::until(&format!("the agent of {node} being started again"), MENDED, || {
            (bulkhead::agent_restarts(cluster, node).ok()? > before).then_some(())
        })?;
    }
    bulkhead::await_ready(cluster)?;
    for node in nodes {
        let comes = endpoints::of_pod(&Pod::find(cluster.kubectl(), "a", &format!("comes-{node}"))?)?;
        scene.expect_of_a(&comes)?;
        cluster.kubectl().run(&[
            "-n",
            "a",
            "wait",
            "--for=delete",
            "pod",
            &format!("leaves-{node}"),
            "--timeout=5m",
        ])?;
    }
    Ok(())
}

fn restart_kubelets(scene: &mut Scene) -> Result<(), LabError> {
    for node in ["n1", "n2"] {
        scene.cluster.kubectl().run(&["-n", "a", "delete", "pod", &format!("comes-{node}"), "--wait=false"])?;
        scene.cluster.restart_containerd(node)?;
        scene.cluster.restart_kubelet(node)?;
        pod::ask(scene.cluster.kubectl(), "a", &format!("after-{node}"), node)?;
    }
    scene.cluster.await_nodes_ready()?;
    for node in ["n1", "n2"] {
        let after = Pod::find(scene.cluster.kubectl(), "a", &format!("after-{node}"))?;
        scene.expect_of_a(&endpoints::of_pod(&after)?)?;
    }
    Ok(())
}

/// A pod that the kubelet starts by itself, from a file.
fn static_pod(scene: &Scene, name: &str, node: &str, uid: &str) -> Result<PathBuf, LabError> {
    let mut manifest: Value = serde_json::from_str(&pod::manifest("a", name, node)).unwrap();
    manifest["metadata"]["uid"] = uid.into();
    let file = format!("/etc/kubernetes/manifests/{name}.json");
    let disk = scene.cluster.node(node)?;
    disk.disk().write(&file, &manifest.to_string())?;
    Ok(disk.disk().path(&file))
}

/// Kills all processes of a pod, its sandbox too: the kubelet makes it a new one.
fn kill_pod(uid: &str) -> Result<(), LabError> {
    let processes = endpoints::processes(uid)?;
    promised(!processes.is_empty(), || format!("no processes of pod {uid} are found"))?;
    for process in &processes {
        let number = process.file_name().and_then(|name| name.to_str()?.parse().ok()).and_then(Pid::from_raw);
        match kill_process(number.unwrap(), Signal::KILL) {
            // It ended with one that was killed before it.
            Err(Errno::SRCH) => {}
            other => other.tried(|| format!("kill {}", process.display()))?,
        }
    }
    wait::until(&format!("the end of pod {uid}"), MENDED, || {
        endpoints::processes(uid).is_ok_and(|now| processes.iter().all(|old| !now.contains(old))).then_some(())
    })
}

/// The API server is away for a minute, Bulkhead's etcd for another that begins half way: pods come and go all the time.
fn take_the_control_plane_away(scene: &mut Scene) -> Result<(), LabError> {
    let sandbox = Pod::start(&scene.cluster, "a", "sandbox", "n2")?;
    scene.start("a", "leaves", "n1")?;
    pod::ask(scene.cluster.kubectl(), "a", "comes", "n1")?;
    scene.cluster.kubectl().run(&["-n", "a", "delete", "pod", "leaves", "--wait=false"])?;
    let begin = Instant::now();
    scene.cluster.stop_api()?;
    pods_come_and_go_without_the_api_server(scene, &sandbox)?;
    thread::sleep((AWAY / 2).saturating_sub(begin.elapsed()));

    println!("  the API server and etcd away, after {:.0} s", begin.elapsed().as_secs_f64());
    scene.etcd.stop_all()?;
    let without_etcd = Instant::now();
    let uid = "5b1f7e52-0000-4000-8000-000000000002";
    let file = static_pod(scene, "static-2", "n2", uid)?;
    scene.expect_of_a(&endpoints::of_uid("a/static-2", uid)?)?;
    fs::remove_file(&file).tried(|| format!("remove {}", file.display()))?;
    thread::sleep(AWAY.saturating_sub(begin.elapsed()));

    println!("  etcd away, after {:.0} s", begin.elapsed().as_secs_f64());
    scene.cluster.start_api()?;
    let kubectl = scene.cluster.kubectl();
    pod::ask(kubectl, "a", "without-etcd", "n2")?;
    // What a kubelet was asked before the API server went away it does at the latest now.
    kubectl.wait("delete", &["-n", "a", "pod", "leaves"], NOTICED)?;
    for name in ["comes", "without-etcd"] {
        kubectl.wait("condition=Ready", &["-n", "a", "pod", name], NOTICED)?;
        scene.expect_of_a(&endpoints::of_pod(&Pod::find(kubectl, "a", name)?)?)?;
    }
    create(&scene.cluster, &["late"])?;
    pod::ask(kubectl, "late", "guest", "n1")?;
    declare(&scene.cluster, "late", Some("join:a"))?;
    // Before the kubelet has heard of it, a pod that is pending proves nothing.
    wait::until("the kubelet having taken up late/guest", NOTICED, || {
        let guest = kubectl.json(&["-n", "late", "get", "pod", "guest"]).ok()?;
        guest["status"]["startTime"].is_string().then_some(())
    })?;
    thread::sleep(AWAY.saturating_sub(without_etcd.elapsed()));
    apart(&scene.stranger, &scene.web)?;
    // Nothing is invented: a namespace that etcd does not have has no network.
    let guest = kubectl.json(&["-n", "late", "get", "pod", "guest"])?;
    promised(guest["status"]["phase"] == "Pending", || format!("late/guest runs without etcd: {}", guest["status"]))?;
    println!(
        "  all is back after {:.0} s, etcd having been away for {:.0} s",
        begin.elapsed().as_secs_f64(),
        without_etcd.elapsed().as_secs_f64()
    );
    scene.etcd.start_all()?;
    wait::until("late being joined to a", MENDED, || await_status(&scene.cluster, "late", "joined to a").ok())?;
    kubectl.wait("condition=Ready", &["-n", "late", "pod", "guest"], NOTICED)?;
    kubectl.wait("condition=Ready", &["nodes", "--all"], NOTICED)?;
    let guest = endpoints::of_pod(&Pod::find(kubectl, "late", "guest")?)?;
    scene.expect_of_a(&guest)?;
    bulkhead::await_ready(&scene.cluster)
}

fn pods_come_and_go_without_the_api_server(scene: &Scene, sandbox: &Pod) -> Result<(), LabError> {
    println!("  the API server away");
    let uid = "5b1f7e52-0000-4000-8000-000000000001";
    let file = static_pod(scene, "static-1", "n1", uid)?;
    kill_pod(sandbox.uid())?;
    let comes = endpoints::of_uid("a/static-1", uid)?;
    scene.expect_of_a(&comes)?;
    let again = endpoints::of_uid("a/sandbox", sandbox.uid())?;
    println!("    a/sandbox had {}, has {}", sandbox.address(), again.address());
    scene.expect_of_a(&again)?;
    fs::remove_file(&file).tried(|| format!("remove {}", file.display()))?;
    wait::until("the end of a/static-1", MENDED, || endpoints::processes(uid).ok()?.is_empty().then_some(()))?;
    // Its servers are the test's, and answer as long as it is connected.
    wait::until("a/static-1 being unplugged", MENDED, || unreachable(&scene.friend, comes.address()).ok())
}

/// n3 dies with its pods; another machine takes its name.
fn replace_a_node(scene: &mut Scene) -> Result<(), LabError> {
    let kubectl = scene.cluster.kubectl().clone();
    let pods = [("a", "old-1"), ("a", "old-2"), ("a", "old-3"), ("b", "old-4")];
    let old: Vec<Endpoint> =
        pods.iter().map(|(namespace, name)| scene.start(namespace, name, "n3")).collect::<Result<_, _>>()?;
    scene.expect_of_a(&old[0])?;
    let machine = scene.cluster.node("n3")?.address();
    scene.cluster.remove_node("n3")?;
    for (namespace, name) in pods {
        kubectl.run(&["-n", namespace, "delete", "pod", name, "--force", "--grace-period=0", "--ignore-not-found"])?;
    }
    old.iter().try_for_each(|old| apart(&scene.friend, old))?;
    scene.cluster.add_node_in_place_of("n3")?;
    scene.cluster.await_ready("n3")?;
    bulkhead::await_ready(&scene.cluster)?;
    let (new, strange) = (scene.start("a", "new", "n3")?, scene.start("b", "new", "n3")?);
    println!("    n3 was {machine}, is {}", scene.cluster.node("n3")?.address());
    scene.expect_of_a(&new)?;
    works(&scene.stranger, &strange)?;
    works(&new, &scene.friend)?;
    apart(&strange, &scene.web)?;
    apart(&scene.friend, &strange)?;
    apart(&new, &strange)?;
    let pods = kubectl.json(&["get", "pods", "-A"])?;
    let living: Vec<&str> =
        pods["items"].as_array().unwrap().iter().filter_map(|pod| pod["status"]["podIP"].as_str()).collect();
    let gone: Vec<Ipv4Addr> =
        old.iter().map(Endpoint::address).filter(|old| !living.contains(&old.to_string().as_str())).collect();
    println!("    a/new has {}, nobody has {gone:?}", new.address());
    gone.into_iter().try_for_each(|old| unreachable(&scene.friend, old).and_then(|()| unreachable(&new, old)))
}

/// How often the container of each pod with an address of its own on a node was started again.
fn restarts_on(scene: &Scene, node: &str) -> Result<BTreeMap<String, u64>, LabError> {
    let field = format!("spec.nodeName={node}");
    let pods = scene.cluster.kubectl().json(&["get", "pods", "-A", "--field-selector", &field])?;
    let own = pods["items"].as_array().into_iter().flatten().filter(|pod| pod["spec"]["hostNetwork"] != true);
    let count = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or_default();
    let word = |pod: &Value, field: &str| pod["metadata"][field].as_str().unwrap_or_default().to_owned();
    let name = |pod: &Value| format!("{}/{}", word(pod, "namespace"), word(pod, "name"));
    Ok(own.map(|pod| (name(pod), count(pod))).collect())
}

/// n1 loses its power: its pods come back, with addresses that are nobody else's.
fn reboot(scene: &Scene) -> Result<(), LabError> {
    let kubectl = scene.cluster.kubectl();
    let web = Pod::find(kubectl, "a", "web")?;
    let restarts = restarts_on(scene, "n1")?;
    promised(restarts.len() > 2, || format!("too few pods are on n1: {restarts:?}"))?;
    scene.cluster.reboot("n1")?;
    // All of them: one that is not started again yet shows the address that it had.
    wait::until_or("each pod of n1 being started again", MENDED, || {
        let now = restarts_on(scene, "n1").map_err(|error| error.to_string())?;
        let again = restarts.iter().all(|(pod, before)| now.get(pod).is_none_or(|now| now > before));
        if again { Ok(()) } else { Err(format!("{now:?}, before {restarts:?}")) }
    })?;
    bulkhead::await_ready(&scene.cluster)?;
    let [now, other] = [("a", "web"), ("b", "beside")].map(|(namespace, name)| Pod::find(kubectl, namespace, name));
    let (now, other) = (endpoints::of_pod(&now?)?, endpoints::of_pod(&other?)?);
    println!("    a/web: {}, now {}", web.address(), now.address());
    works(&scene.friend, &now)?;
    works(&now, &scene.friend)?;
    apart(&scene.stranger, &now)?;
    works(&scene.stranger, &other)?;
    apart(&other, &now)?;
    let pods = kubectl.json(&["get", "pods", "-A"])?;
    let mut addresses: Vec<&str> = pods["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|pod| pod["spec"]["hostNetwork"] != true && pod["status"]["phase"] == "Running")
        .filter_map(|pod| pod["status"]["podIP"].as_str())
        .collect();
    let count = addresses.len();
    addresses.sort_unstable();
    addresses.dedup();
    promised(addresses.len() == count, || format!("two pods have one address: {addresses:?}"))
}

#[test]
fn updates_and_faults_cost_no_running_pod_a_packet() -> Result<(), LabError> {
    let mut scene = Scene::build()?;
    scene.during("a rolling update of agents and controllers", update)?;
    scene.during("agents killed while pods come and go", kill_agents)?;
    scene.during("containerds and kubelets restarted while pods come and go", restart_kubelets)?;
    scene.during("API server and etcd away while pods come and go", take_the_control_plane_away)?;
    scene.during("a node's cable pulled", cable::pull_a_cable)?;
    scene.during("a machine dies, another one takes its name", replace_a_node)?;
    scene.delete("a", "new")?;

    println!("the connections of the beginning");
    traffic::expect_whole(std::mem::take(&mut scene.connections), "all faults")?;

    println!("a node without power");
    reboot(&scene)?;

    println!("a new tenant after all that");
    create(&scene.cluster, &["last"])?;
    await_status(&scene.cluster, "last", "isolated")?;
    let (one, two) = (scene.start("last", "one", "n1")?, scene.start("last", "two", "n3")?);
    works(&one, &two)?;
    apart(&one, &scene.friend)?;
    apart(&scene.friend, &two)
}
