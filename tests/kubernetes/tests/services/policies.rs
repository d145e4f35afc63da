//! What a service's own settings do to pods of the cluster: a local traffic policy, affinity, no address of its own, and clients
//! that are behind it themselves or share their node's network.

use std::net::Ipv4Addr;
use std::thread;

use super::*;

const NODES: [&str; 3] = ["n1", "n2", "control"];

/// Waits until a new connection is answered by this pod, or by nobody.
fn await_from(from: &Inner, to: SocketAddr, by: Option<&str>) -> Result<(), LabError> {
    wait::until_or(&format!("{to} being answered by {by:?}"), SOON, || match from.who(to) {
        Ok(name) if by == Some(&name) => Ok(()),
        Err(_) if by.is_none() => Ok(()),
        other => Err(format!("{other:?}")),
    })
}

/// Who answers, once somebody does.
fn who(from: &Inner, to: SocketAddr) -> Result<String, LabError> {
    wait::until_or(&format!("{to} being answered"), SOON, || from.who(to).map_err(|error| error.to_string()))
}

/// None of these answers another tenant's pod.
fn none_answers(scene: &Scene, ways: &[SocketAddr]) -> Result<(), LabError> {
    let stranger = Inner::of(&scene.cluster, "n1", "b", "stranger")?;
    let answered: Vec<SocketAddr> = thread::scope(|scope| {
        let asked: Vec<_> = ways.iter().map(|way| (*way, scope.spawn(|| stranger.who(*way).is_ok()))).collect();
        asked.into_iter().filter_map(|(way, thread)| thread.join().unwrap().then_some(way)).collect()
    });
    assert!(answered.is_empty(), "open to another tenant: {answered:?}");
    Ok(())
}

/// The tenant's own pods reach a service with `externalTrafficPolicy: Local` by the port of the backend's node (n2), and by every
/// node's where kube-proxy can tell them from clients outside of the cluster; another tenant's by none.
pub fn local_policy_from_pods(scene: &Scene, port: u16, proxy_knows_pods: bool) -> Result<(), LabError> {
    for node in NODES {
        let url = format!("http://{}/", at(scene.node(node), port));
        // A node itself gets to every backend: by now its kube-proxy has heard of this one.
        wait::until_or(&format!("{node} knowing {url}"), SOON, || {
            let curl = ["curl", "-sf", "-m", "3", &url];
            scene.cluster.node(node).and_then(|node| node.exec(&curl, &[])).map_err(|error| error.to_string())
        })?;
        let by = (node == "n2" || proxy_knows_pods).then_some("two");
        await_from(&scene.client, at(scene.node(node), port), by)?;
    }
    none_answers(scene, &NODES.map(|node| at(scene.node(node), port)))
}

/// The backend that was chosen stays, however late the next connection comes and whether or not the other one is there.
pub fn affinity_outlasts_the_other_backend(scene: &Scene, free: IpAddr, sticky: IpAddr) -> Result<(), LabError> {
    let chosen = who(&scene.client, at(sticky, WEB))?;
    let stays = |when: &str| -> Result<(), LabError> {
        for _ in 0..10 {
            assert_eq!(who(&scene.client, at(sticky, WEB))?, chosen, "{when}");
        }
        Ok(())
    };
    for _ in 0..2 {
        scene.behind("both", &[chosen.as_str()])?;
        await_answers(scene, free, &[chosen.as_str()])?;
        stays("the other backend is gone")?;
        scene.behind("both", &["one", "two"])?;
        await_answers(scene, free, &["one", "two"])?;
        stays("the other backend is back")?;
    }
    Ok(())
}

/// Waits until just these answer, of many connections.
fn await_answers(scene: &Scene, service: IpAddr, by: &[&str]) -> Result<(), LabError> {
    wait::until_or(&format!("{service} being answered by {by:?}"), SOON, || {
        let answers: Result<BTreeSet<String>, _> = (0..20).map(|_| scene.client.who(at(service, WEB))).collect();
        match answers {
            Ok(all) if all.iter().map(String::as_str).eq(by.iter().copied()) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
}

fn await_fetched(by: &Pod, from: &str) -> Result<(), LabError> {
    wait::until_or(&format!("{from} answering {}", by.full_name()), SOON, || match by.fetches(from) {
        Ok(true) => Ok(()),
        other => Err(format!("{other:?}")),
    })
}

/// A service without an address is the names of its pods; who gets to know them still does not reach them.
pub fn a_headless_service(scene: &Scene) -> Result<(), LabError> {
    scene.behind("headless", &["one", "two"])?;
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "a", "name": "headless"},
        "spec": {"clusterIP": "None", "selector": {"headless": "yes"}, "ports": [{"name": "web", "port": WEB}]},
    });
    scene.cluster.kubectl().apply(&service.to_string())?;
    let name = "headless.a.svc.cluster.local";
    let expected = BTreeSet::from([scene.one.address(), scene.two.address()]);
    for from in [&scene.beside, &scene.stranger] {
        wait::until_or(&format!("{} resolving {name}", from.full_name()), 3 * SOON, || {
            let said = from.exec_ok(&["getent", "ahostsv4", name]).map_err(|error| error.to_string())?;
            let words = said.lines().filter_map(|line| line.split_whitespace().next());
            let found: BTreeSet<IpAddr> =
                words.filter_map(|word| word.parse::<Ipv4Addr>().ok()).map(Into::into).collect();
            if found == expected { Ok(()) } else { Err(said) }
        })?;
    }
    await_fetched(&scene.beside, &format!("{name}:{WEB}"))?;
    for pod in [&scene.one, &scene.two] {
        who(&scene.client, at(pod.address(), WEB))?;
    }
    assert!(!scene.stranger.fetches(&format!("{name}:{WEB}"))?, "{name} is open to another tenant");
    none_answers(scene, &[at(scene.one.address(), WEB), at(scene.two.address(), WEB)])
}

/// A pod that is a service's only backend reaches itself by every node's port.
pub fn a_pod_reaches_itself_by_node_ports(scene: &Scene) -> Result<(), LabError> {
    for (node, pod, label) in [("n1", "one", "first"), ("n2", "two", "second")] {
        let (_, port) = scene.serve(&format!("port-of-{pod}"), label, &json!({"type": "NodePort"}))?;
        let own = Inner::of(&scene.cluster, node, "a", pod)?;
        for node in NODES {
            await_from(&own, at(scene.node(node), port), Some(pod))?;
        }
    }
    Ok(())
}

/// A pod in its node's network is of no tenant, whatever its namespace: what runs on a node reaches all pods.
pub fn clients_in_the_nodes_network(scene: &Scene, service: IpAddr, port: u16) -> Result<(), LabError> {
    let kubectl = scene.cluster.kubectl();
    for node in ["n1", "n2"] {
        let mut pod: Value = serde_json::from_str(&manifest("b", &format!("host-{node}"), node)).unwrap();
        pod["spec"]["hostNetwork"] = true.into();
        pod["spec"]["containers"][0]["args"] = json!(["netexec", "--http-port=18090", "--udp-port=18091"]);
        kubectl.apply(&pod.to_string())?;
    }
    let mut ways = vec![at(service, WEB)];
    ways.extend(NODES.map(|node| at(scene.node(node), port)));
    for node in ["n1", "n2"] {
        let pod = Pod::find(kubectl, "b", &format!("host-{node}"))?;
        assert_eq!(pod.address(), scene.node(node));
        for way in &ways {
            await_fetched(&pod, &way.to_string())?;
        }
    }
    none_answers(scene, &ways)
}
