//! The operations of CNI that a runtime may use or not, on a real one: STATUS as containerd 2 calls it, CHECK as CRI-O does right
//! after ADD, GC as the CNI library does (containerd 2.1 has no call for it). The node n1 has no `portmap`, so its list of plugins
//! speaks 1.1.0; n2 has Debian's, which does not. Needs root and the programs of `build/build.sh`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::process::Output;
use std::time::Duration;

use bulkhead_kubernetes_tests::node::Node;
use bulkhead_kubernetes_tests::tenants::{await_reach, create};
use bulkhead_kubernetes_tests::{Cluster, Pod, bulkhead};
use bulkhead_tests::error::LabError;
use bulkhead_tests::wait;
use serde_json::{Value, json};

const CONFLIST: &str = "/etc/cni/net.d/10-bulkhead.conflist";
/// The kubelet asks the runtime every five seconds, and tells the API server every ten.
const TOLD: Duration = Duration::from_mins(4);

fn conflist(node: &Node) -> Value {
    serde_json::from_slice(&fs::read(node.disk().path(CONFLIST)).unwrap()).unwrap()
}

/// What the CNI library remembers of the pods' interfaces.
fn attachments(node: &Node) -> Vec<Value> {
    let text = node.exec(&["sh", "-c", "cat /var/lib/cni/results/*-eth0"], &[]).unwrap();
    serde_json::Deserializer::from_str(&text).into_iter::<Value>().map(Result::unwrap).collect()
}

fn attachment(node: &Node, pod: &str) -> Value {
    let has = |one: &Value| one["cniArgs"].as_array().unwrap().contains(&json!(["K8S_POD_NAME", pod]));
    attachments(node).into_iter().find(has).unwrap()
}

/// Calls our plugin as the CNI library does: `more` in the config, the environment as runtimes set it.
fn call(node: &Node, command: &str, version: &str, environment: &[(&str, &str)], more: &Value) -> Output {
    let mut config = conflist(node)["plugins"][0].clone();
    config["name"] = "bulkhead".into();
    config["cniVersion"] = version.into();
    for (field, value) in more.as_object().into_iter().flatten() {
        config[field] = value.clone();
    }
    let mut words = vec!["env".to_owned(), format!("CNI_COMMAND={command}"), "CNI_PATH=/opt/cni/bin".to_owned()];
    words.extend(environment.iter().map(|(name, value)| format!("{name}={value}")));
    words.push("/opt/cni/bin/bulkhead-cni".to_owned());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    node.with_machine(|machine| machine.output(&words, config.to_string().as_bytes())).unwrap()
}

fn code(output: &Output) -> Option<u64> {
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    if output.status.success() { None } else { Some(answer["code"].as_u64().unwrap_or_default()) }
}

/// CHECK with the words that CRI-O uses, which are the same for every pod but for their values.
fn check(node: &Node, version: &str, pod: &str) -> Output {
    let known = attachment(node, pod);
    let text = |field: &str| known[field].as_str().unwrap().to_owned();
    let (id, netns) = (text("containerId"), text("netns"));
    let uid = "8e0a8a5e-63f4-4a5c-9a52-3c5cfa0c9b8c";
    let arguments = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME={pod};K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID={uid}"
    );
    let environment =
        [("CNI_CONTAINERID", id.as_str()), ("CNI_NETNS", &netns), ("CNI_IFNAME", "eth0"), ("CNI_ARGS", &arguments)];
    call(node, "CHECK", version, &environment, &json!({"prevResult": known["result"]}))
}

fn ready_message(cluster: &Cluster, node: &str) -> (bool, String) {
    let node = cluster.kubectl().json(&["get", "node", node]).unwrap();
    let conditions = node["status"]["conditions"].as_array().unwrap().clone();
    let ready = conditions.into_iter().find(|condition| condition["type"] == "Ready").unwrap();
    (ready["status"] == "True", ready["message"].as_str().unwrap().to_owned())
}

/// Where agents may run.
fn agents_where(cluster: &Cluster, selector: &Value) -> Result<(), LabError> {
    let patch = json!([{"op": "replace", "path": "/spec/template/spec/nodeSelector", "value": selector}]).to_string();
    let what = ["-n", bulkhead::NAMESPACE, "patch", "daemonset", "bulkhead-agent", "--type=json", "-p", &patch];
    cluster.kubectl().run(&what).map(drop)
}

/// Calls of the runtime itself: the kubelet passes on what it hears.
fn status_is_asked_for(cluster: &Cluster, web: &Pod, friend: &Pod) -> Result<(), LabError> {
    agents_where(cluster, &json!({"nobody": "here"}))?;
    let (n1, n2) = (cluster.node("n1")?, cluster.node("n2")?);
    println!("  nodes whose agents are gone stay ready for their pods, and take no new ones");
    wait::until_or("no agent being left", TOLD, || {
        let taints = |node: &str| cluster.kubectl().run(&["get", "node", node, "-o", "jsonpath={.spec.taints[*].key}"]);
        let said = format!("{:?} {:?}", taints("n1"), taints("n2"));
        if said.matches("network-unavailable").count() == 2 { Ok(()) } else { Err(said) }
    })?;
    let asked = |node: &Node| code(&call(node, "STATUS", "1.1.0", &[], &json!({})));
    assert_eq!((asked(&n1), asked(&n2)), (None, None));
    assert!(ready_message(cluster, "n1").0 && ready_message(cluster, "n2").0);
    await_reach(friend, web.address())?;
    println!("  one that boots without an agent is not");
    cluster.reboot("n1")?;
    let message = wait::until_or("n1 being not ready", TOLD, || match ready_message(cluster, "n1") {
        (false, message) if message.contains("agent") => Ok(message),
        other => Err(format!("{other:?}")),
    })?;
    println!("  n1: {message}");
    assert_eq!(asked(&*cluster.node("n1")?), Some(50));
    agents_where(cluster, &json!({"kubernetes.io/os": "linux"}))?;
    bulkhead::await_ready(cluster)?;
    assert_eq!(asked(&*cluster.node("n1")?), None);
    Ok(())
}

/// An attachment that its runtime has forgotten, its namespace still there: nobody but GC can know that it is over.
fn gc_frees_what_is_forgotten(cluster: &Cluster, web: &Pod, friend: &Pod) -> Result<(), LabError> {
    let node = cluster.node("n1")?;
    node.exec(&["ip", "netns", "add", "forgotten"], &[])?;
    let environment = [
        ("CNI_CONTAINERID", "forgotten"),
        ("CNI_NETNS", "/run/netns/forgotten"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", "K8S_POD_NAMESPACE=a;K8S_POD_NAME=forgotten"),
    ];
    let added = call(&node, "ADD", "1.1.0", &environment, &json!({}));
    assert_eq!(code(&added), None, "{added:?}");
    let added: Value = serde_json::from_slice(&added.stdout).unwrap();
    let device = added["interfaces"][0]["name"].as_str().unwrap();
    assert!(node.exec(&["ip", "link", "show", device], &[]).is_ok(), "{added}");
    let valid: Vec<Value> = attachments(&node)
        .iter()
        .map(|known| json!({"containerID": known["containerId"], "ifname": known["ifName"]}))
        .collect();
    assert!(!valid.is_empty());
    // Both spellings, as the library sends them.
    let lists = json!({"cni.dev/valid-attachments": valid, "cni.dev/attachments": valid});
    assert_eq!(code(&call(&node, "GC", "1.0.0", &[], &lists)), Some(1), "1.0.0 has no GC");
    assert!(node.exec(&["ip", "link", "show", device], &[]).is_ok());
    let done = call(&node, "GC", "1.1.0", &[], &lists);
    assert_eq!(code(&done), None, "{done:?}");
    assert!(node.exec(&["ip", "link", "show", device], &[]).is_err(), "{device} is there still");
    await_reach(friend, web.address())?;
    await_reach(web, friend.address())?;
    assert_eq!(code(&check(&node, "1.1.0", "web")), None);
    node.exec(&["ip", "netns", "delete", "forgotten"], &[]).map(drop)
}

#[test]
fn a_runtime_asks_for_status_check_and_gc() -> Result<(), LabError> {
    let cluster = Cluster::builder().start()?;
    let n1 = cluster.node("n1")?;
    fs::remove_file(n1.disk().path("/opt/cni/bin/portmap")).unwrap();
    bulkhead::install(&cluster, &[])?;
    for (node, last) in [("n1", "1.1.0"), ("n2", "1.0.0")] {
        let offered = conflist(&*cluster.node(node)?)["cniVersions"].clone();
        assert_eq!(offered.as_array().unwrap().last().unwrap(), last, "{node}: {offered}");
    }
    create(&cluster, &["a"])?;
    let web = Pod::start(&cluster, "a", "web", "n1")?;
    let friend = Pod::start(&cluster, "a", "friend", "n2")?;
    println!("CHECK passes right after ADD, alone and in front of portmap, and tells what was taken away");
    for (node, version, pod) in [("n1", "1.1.0", "web"), ("n2", "1.0.0", "friend")] {
        let checked = check(&*cluster.node(node)?, version, pod);
        assert_eq!(code(&checked), None, "{node}: {checked:?}");
    }
    let netns = attachment(&n1, "web")["netns"].as_str().unwrap().to_owned();
    let route =
        |words: &[&str]| n1.exec(&[&["nsenter", &format!("--net={netns}"), "ip", "route"], words].concat(), &[]);
    let default = route(&["show", "default"])?;
    route(&["del", "default"])?;
    assert_eq!(code(&check(&n1, "1.1.0", "web")), Some(103));
    let back: Vec<&str> = default.split_whitespace().filter(|word| *word != "linkdown").collect();
    route(&[&["add"], &back[..]].concat())?;
    assert_eq!(code(&check(&n1, "1.1.0", "web")), None);
    println!("GC frees what the runtime has forgotten");
    gc_frees_what_is_forgotten(&cluster, &web, &friend)?;
    println!("STATUS: what makes a node ready");
    status_is_asked_for(&cluster, &web, &friend)
}
