//! Endpoints that are made by hand: who may write `EndpointSlices` can put another tenant's pod behind a service of their own.
//! Whose service it is must not matter, only whose the client and the pod are.

use std::fmt;
use std::thread;
use std::time::Duration;

use super::*;

/// How soon every node has heard of a service, on a loaded machine.
const HEARD: Duration = Duration::from_mins(2);

/// A way to a service.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// TCP.
    Web(SocketAddr),
    /// UDP.
    Datagram(SocketAddr),
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Web(to) => write!(f, "tcp {to}"),
            Self::Datagram(to) => write!(f, "udp {to}"),
        }
    }
}

impl Way {
    /// Who answers on it.
    fn answer(self, from: &Inner) -> Result<String, String> {
        match self {
            Self::Web(to) => from.who(to).map_err(|error| error.to_string()),
            Self::Datagram(to) => match from.ask(0, to, "hostname") {
                Ok(answer) => answer.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            },
        }
    }
}

/// What is to be tried from where; `name` is for people.
struct Client<'a> {
    name: &'a str,
    inner: &'a Inner,
}

/// Who answers each client on each way, asked all at once.
fn answers(clients: &[Client<'_>], ways: &[Way]) -> Vec<(String, Result<String, String>)> {
    thread::scope(|scope| {
        let asked: Vec<_> = clients
            .iter()
            .flat_map(|client| ways.iter().map(move |way| (client, *way)))
            .map(|(client, way)| (format!("{} by {way}", client.name), scope.spawn(move || way.answer(client.inner))))
            .collect();
        asked.into_iter().map(|(what, thread)| (what, thread.join().unwrap())).collect()
    })
}

/// A service of tenant `b` without selector; its only endpoint is this pod, whoever's it is. Gives the ways to it: by its address
/// and by every node's port.
fn serve_by_hand(scene: &Scene, name: &str, backend: &Pod) -> Result<Vec<Way>, LabError> {
    let kubectl = scene.cluster.kubectl();
    let ports = json!([
        {"name": "web", "port": WEB, "protocol": "TCP"},
        {"name": "datagrams", "port": DATAGRAMS, "protocol": "UDP"},
    ]);
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "b", "name": name},
        "spec": {"type": "NodePort", "ports": ports},
    });
    let endpoints = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"namespace": "b", "name": name, "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": [{"addresses": [backend.address()], "conditions": {"ready": true}}],
    });
    kubectl.apply(&service.to_string())?;
    kubectl.apply(&endpoints.to_string())?;
    let service = kubectl.json(&["-n", "b", "get", "service", name])?;
    let address = service["spec"]["clusterIP"].as_str().unwrap().parse().unwrap();
    let port = |index: usize| u16::try_from(service["spec"]["ports"][index]["nodePort"].as_u64().unwrap()).unwrap();
    let mut ways = vec![Way::Web(at(address, WEB)), Way::Datagram(at(address, DATAGRAMS))];
    for node in scene.cluster.nodes() {
        let node = node.address().into();
        ways.extend([Way::Web(at(node, port(0))), Way::Datagram(at(node, port(1)))]);
    }
    Ok(ways)
}

/// Waits until these are answered by the pod on every way; then the others are not on any.
fn only(ways: &[Way], by: &str, may: &[Client<'_>], may_not: &[Client<'_>]) -> Result<(), LabError> {
    wait::until_or(&format!("{by} answering on every way"), HEARD, || {
        let wrong: Vec<_> = answers(may, ways).into_iter().filter(|(_, answer)| answer.as_deref() != Ok(by)).collect();
        if wrong.is_empty() { Ok(()) } else { Err(format!("{wrong:?}")) }
    })?;
    let reached: Vec<_> = answers(may_not, ways).into_iter().filter(|(_, answer)| answer.is_ok()).collect();
    assert!(reached.is_empty(), "another tenant's pod is reached by endpoints made by hand: {reached:?}");
    Ok(())
}

pub fn endpoints_made_by_hand_open_no_tenant(scene: &Scene) -> Result<(), LabError> {
    let kubectl = scene.cluster.kubectl();
    for (namespace, name) in [("b", "away"), ("kube-system", "open")] {
        kubectl.apply(&manifest(namespace, name, "n2"))?;
    }
    let own = Pod::find(kubectl, "b", "away")?;
    Pod::find(kubectl, "kube-system", "open")?;
    let stranger = Inner::of(&scene.cluster, "n1", "b", "stranger")?;
    let away = Inner::of(&scene.cluster, "n2", "b", "away")?;
    let open = Inner::of(&scene.cluster, "n2", "kube-system", "open")?;
    let of_a = || Client { name: "a/client on n1", inner: &scene.client };
    let global = || Client { name: "kube-system/open on n2", inner: &open };
    let of_b =
        || [Client { name: "b/stranger on n1", inner: &stranger }, Client { name: "b/away on n2", inner: &away }];
    // Strangers are on the backend's node and on another one; the control plane's is a third.
    for (name, backend) in [("one", &scene.one), ("two", &scene.two)] {
        let ways = serve_by_hand(scene, &format!("takes-{name}"), backend)?;
        only(&ways, name, &[of_a(), global()], &of_b())?;
    }
    let ways = serve_by_hand(scene, "own", &own)?;
    let [stranger, away] = of_b();
    only(&ways, "away", &[stranger, away, global()], &[of_a()])
}
