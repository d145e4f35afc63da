//! What annotations may say, on namespaces of their own: joins that follow one another, a circle, and a target's consent while the
//! cluster asks for it (`requireJoinConsent`). Who looks at the namespace and its Events sees why.

use super::*;
use bulkhead_kubernetes_tests::tenants::{declare, status};

/// How soon something is in force or told, on a loaded machine and with a controller that has just begun.
const PATIENT: Duration = Duration::from_mins(2);
const CONSENT: &str = "bulkhead.dev/allow-join-from";

/// Waits until the status begins and ends so.
fn told(cluster: &Cluster, namespace: &str, beginning: &str, end: &str) -> Result<(), LabError> {
    wait::until_or(&format!("{namespace}: {beginning} ... {end}"), PATIENT, || {
        let found = status(cluster, namespace).map_err(|error| error.to_string())?;
        if found.starts_with(beginning) && found.contains(end) { Ok(()) } else { Err(found) }
    })
}

/// Waits for an Event in a namespace of that type and reason that says so.
fn event(cluster: &Cluster, namespace: &str, (kind, reason): (&str, &str), says: &str) -> Result<(), LabError> {
    let select = format!("type={kind},reason={reason},involvedObject.kind=Namespace,involvedObject.name={namespace}");
    wait::until_or(&format!("an Event {reason} in {namespace}: {says}"), PATIENT, || {
        let arguments = ["-n", namespace, "get", "events", "--field-selector", &select];
        let events = cluster.kubectl().json(&arguments).map_err(|error| error.to_string())?;
        let mut notes = events["items"].as_array().into_iter().flatten().filter_map(|event| event["message"].as_str());
        if notes.any(|note| note.contains(says)) { Ok(()) } else { Err(events["items"].to_string()) }
    })
}

/// Says who may join a namespace; nobody by `None`.
fn admit(cluster: &Cluster, namespace: &str, whom: Option<&str>) -> Result<(), LabError> {
    let words = whom.map_or(format!("{CONSENT}-"), |whom| format!("{CONSENT}={whom}"));
    cluster.kubectl().run(&["annotate", "--overwrite", "namespace", namespace, &words]).map(drop)
}

fn open(from: &Endpoint, to: &Endpoint) -> Result<(), LabError> {
    Proto::ALL.into_iter().try_for_each(|proto| {
        wait::until(&format!("{proto} from {from} to {to}"), PATIENT, || {
            reaches(from, to.address(), proto, PATIENCE).unwrap_or(false).then_some(())
        })
    })
}

fn shut(from: &Endpoint, to: &Endpoint) -> Result<(), LabError> {
    Proto::ALL.into_iter().try_for_each(|proto| {
        wait::until(&format!("silence from {from} to {to} by {proto}"), PATIENT, || {
            (!reaches(from, to.address(), proto, SILENCE).unwrap_or(true)).then_some(())
        })
    })
}

/// Has the controllers begin anew with these values of the chart; those of before are gone when this returns.
fn set_values(cluster: &Cluster, values: &[&str]) -> Result<(), LabError> {
    let kubectl = cluster.kubectl();
    let controllers = ["-n", bulkhead::NAMESPACE, "get", "pods", "-l", "app.kubernetes.io/component=controller"];
    let names = kubectl.run(&[&controllers[..], &["-o", "name"]].concat())?;
    kubectl.apply(&bulkhead::manifests(cluster, values)?)?;
    bulkhead::await_ready(cluster)?;
    let gone: Vec<&str> = ["-n", bulkhead::NAMESPACE].into_iter().chain(names.split_whitespace()).collect();
    kubectl.wait("delete", &gone, 2 * PATIENT).map(drop)
}

pub fn annotations_are_followed_or_refused(scene: &Scene) -> Result<(), LabError> {
    let (cluster, stranger) = (&scene.cluster, &scene.always[1].0);
    let places = [("x", "n1"), ("y", "n2"), ("z", "n1"), ("u", "n1"), ("v", "n2")];
    create(cluster, &places.map(|(name, _)| name))?;
    for (namespace, node) in places {
        pod::ask(cluster.kubectl(), namespace, "1", node)?;
    }
    let endpoint = |(namespace, _)| endpoints::of_pod(&Pod::find(cluster.kubectl(), namespace, "1")?);
    let [x, y, z, guest, host] = places.map(endpoint);
    let (x, y, z) = (x?, y?, z?);
    a_chain_is_followed(cluster, stranger, [&x, &y, &z])?;
    a_circle_is_refused(cluster, [&x, &y, &z])?;
    consent_is_asked_for(cluster, stranger, [&x, &z], [&guest?, &host?])
}

/// `x` joins `y`, which joins `z`.
fn a_chain_is_followed(cluster: &Cluster, stranger: &Endpoint, [x, y, z]: [&Endpoint; 3]) -> Result<(), LabError> {
    println!("a chain of joins follows its end");
    declare(cluster, "x", Some("join:y"))?;
    declare(cluster, "y", Some("join:z"))?;
    let together = || {
        told(cluster, "x", "joined to y (NetID ", ")")?;
        told(cluster, "y", "joined to z (NetID ", ")")?;
        told(cluster, "z", "joined by others (NetID ", ")")?;
        [(x, z), (z, y), (y, x)].into_iter().try_for_each(|(from, to)| open(from, to))?;
        [x, y, z].into_iter().try_for_each(|to| shut(stranger, to))
    };
    together()?;
    declare(cluster, "z", Some("global"))?;
    told(cluster, "x", "joined to y (global)", "")?;
    [x, y, z].into_iter().try_for_each(|to| open(stranger, to))?;
    declare(cluster, "z", Some("isolated"))?;
    together()
}

/// `y` and `z` join one another; nothing changes for them nor for `x`, which follows one of them.
fn a_circle_is_refused(cluster: &Cluster, [x, y, z]: [&Endpoint; 3]) -> Result<(), LabError> {
    println!("a circle is refused, and what was before stays");
    let pairs = [(x, z), (z, y), (y, x)];
    let (pings, connections) = (traffic::ping(&pairs)?, traffic::connect(&pairs, EACH)?);
    declare(cluster, "z", Some("join:y"))?;
    for (name, holds) in [("y", "; joined to z (NetID "), ("z", "; joined by others (NetID ")] {
        told(cluster, name, "refused: bulkhead.dev/network: the joins go round in a circle (y -> z -> y)", holds)?;
        event(cluster, name, ("Warning", "NetworkRefused"), "in a circle (y -> z -> y)")?;
    }
    told(cluster, "x", "joined to y (NetID ", ")")?;
    declare(cluster, "z", None)?;
    told(cluster, "y", "joined to z (NetID ", ")")?;
    told(cluster, "z", "joined by others (NetID ", ")")?;
    traffic::expect_none_lost(pings, "a circle")?;
    traffic::expect_whole(connections, "a circle")
}

/// `u` joins `v`, which does not admit it, then does, then does no more. `x` has joined `z` by `y` before anybody asked for consent.
fn consent_is_asked_for(
    cluster: &Cluster,
    stranger: &Endpoint,
    [x, z]: [&Endpoint; 2],
    [u, v]: [&Endpoint; 2],
) -> Result<(), LabError> {
    println!("a cluster that asks for consent: it moves nobody who has joined before");
    let (pings, standing) = (traffic::ping(&[(x, z)])?, traffic::connect(&[(x, z)], EACH)?);
    set_values(cluster, &["requireJoinConsent=true"])?;
    let refusal = |target: &str| {
        format!("bulkhead.dev/network: the namespace {target} does not admit it; {CONSENT} there must name it")
    };
    told(cluster, "x", &format!("refused: {}", refusal("y")), "; joined to z (NetID ")?;
    println!("no consent");
    declare(cluster, "u", Some("join:v"))?;
    told(cluster, "u", &format!("refused: {}", refusal("v")), "; isolated")?;
    event(cluster, "u", ("Warning", "NetworkRefused"), &refusal("v"))?;
    shut(u, v)?;
    println!("consent given");
    admit(cluster, "v", Some("x,u"))?;
    told(cluster, "u", "joined to v (NetID ", ")")?;
    event(cluster, "u", ("Normal", "NetworkChanged"), "joined to v (NetID ")?;
    open(u, v)?;
    shut(stranger, v)?;
    println!("consent withdrawn: who has joined stays, and follows no more");
    admit(cluster, "v", None)?;
    told(cluster, "u", &format!("refused: {}", refusal("v")), "; joined to v (NetID ")?;
    open(u, v)?;
    declare(cluster, "v", Some("global"))?;
    told(cluster, "v", "global", "")?;
    open(stranger, v)?;
    shut(stranger, u)?;
    declare(cluster, "v", Some("isolated"))?;
    told(cluster, "v", "isolated", "")?;
    shut(u, v)?;
    println!("consent withdrawn by who says isolated: it is alone");
    admit(cluster, "v", Some("*"))?;
    told(cluster, "u", "joined to v (NetID ", ")")?;
    open(u, v)?;
    admit(cluster, "v", None)?;
    told(cluster, "u", &format!("refused: {}", refusal("v")), "; isolated")?;
    shut(u, v)?;
    println!("a cluster that does not ask any more");
    set_values(cluster, &[])?;
    told(cluster, "u", "joined to v (NetID ", ")")?;
    told(cluster, "x", "joined to y (NetID ", ")")?;
    open(u, v)?;
    traffic::expect_none_lost(pings, "consent was asked for and was not")?;
    traffic::expect_whole(standing, "consent was asked for and was not")
}
