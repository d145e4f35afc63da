//! CNI calls that are wrong, through the real plugin and agent: each refused with its code, a text and no effect.

use std::collections::BTreeMap;
use std::fs::File;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use bulkhead_tests::error::{Tried, promised};
use bulkhead_tests::leak::{self, Holdings};
use bulkhead_tests::probe::expect_reaches;
use bulkhead_tests::runtime::{Answer, Call, Container};
use bulkhead_tests::{Lab, LabError, Node, Pod, wait};
use serde_json::json;

const SOON: Duration = Duration::from_secs(30);

/// Refused: a non-zero exit and one JSON error on stdout with one of these codes.
fn refused(what: &str, answer: &Answer, codes: &[u64]) -> Result<(), LabError> {
    let json = answer.json();
    let right = answer.exit != 0
        && answer.code().is_some_and(|code| codes.contains(&code))
        && json["msg"].as_str().is_some_and(|text| !text.is_empty())
        && json["cniVersion"].is_string();
    println!("    {what}: code {}, {}", json["code"], json["msg"]);
    promised(right, || {
        format!("{what}: exit {}, wanted a code of {codes:?}, got {}{}", answer.exit, answer.stdout, answer.stderr)
    })
}

fn call(node: &Node, container: &Container, change: impl FnOnce(&mut Call)) -> Result<Answer, LabError> {
    let mut call = node.cni().call_for("ADD", container);
    change(&mut call);
    call.run()
}

#[test]
fn a_wrong_call_is_refused_and_changes_nothing() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(1).start()?;
    lab.create_tenants(&["a"])?;
    let node = lab.node(0);
    let stays = lab.pod(0, "a", "stays")?;
    lab.pod(0, "a", "first")?.delete()?;
    let (netns, container) = node.sandbox("a", "p", "eth0")?;
    let before = Holdings::of(node)?;
    stdin(node, &container)?;
    environment(node, &container)?;
    bandwidth(node, &container)?;
    println!("interfaces and namespaces");
    netns.ip("link add eth0 type bridge")?;
    refused("an interface that exists", &call(node, &container, |_| {})?, &[100])?;
    netns.ip("link del eth0")?;
    leak::await_same(node, &before)?;
    println!("the same container is attached after all of that, twice the same result, and another interface");
    let first = call(node, &container, |_| {})?.ok("ADD")?;
    let again = call(node, &container, |_| {})?;
    promised(again.exit != 0 || again.json() == first.json(), || format!("{} then {}", first.stdout, again.stdout))?;
    node.cni().call_for("DEL", &container).run()?.ok("DEL")?;
    expect_reaches(stays.endpoint(), node.host())?;
    del_check_gc(node, &stays)
}

fn stdin(node: &Node, container: &Container) -> Result<(), LabError> {
    println!("stdin");
    let raw = |bytes: &[u8]| call(node, container, |call| call.raw_stdin = Some(bytes.to_vec()));
    refused("empty", &raw(b"")?, &[6, 7])?;
    refused("not JSON", &raw(b"{\"cniVersion\":")?, &[6])?;
    refused("a JSON list", &raw(b"[]")?, &[6, 7])?;
    refused("10 MB of spaces", &raw(&vec![b' '; 10 << 20])?, &[5, 6, 7])?;
    let deep = "[".repeat(200_000);
    refused("deep nesting", &raw(deep.as_bytes())?, &[6, 7])?;
    refused("bytes that are no text", &raw(&[0xff, 0xfe, 0])?, &[6])?;
    for version in ["0.1.0", "0.2.0", "2.0.0", "x", ""] {
        let answer = call(node, container, |call| {
            call.with("cniVersion", version.into());
        })?;
        refused(&format!("version {version:?}"), &answer, &[1, 7])?;
    }
    for name in ["", "../x", "a/b", "a\0b"] {
        let answer = call(node, container, |call| {
            call.with("name", name.into());
        })?;
        refused(&format!("network name {name:?}"), &answer, &[7])?;
    }
    Ok(())
}

fn environment(node: &Node, container: &Container) -> Result<(), LabError> {
    println!("environment");
    for variable in ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
        refused(
            &format!("no {variable}"),
            &call(node, container, |call| {
                call.unset(variable);
            })?,
            &[4],
        )?;
        refused(
            &format!("empty {variable}"),
            &call(node, container, |call| {
                call.set(variable, "");
            })?,
            &[4],
        )?;
    }
    let host = format!("{}/host", node.dir().display());
    drop(std::os::unix::fs::symlink(node.netns().path(), &host));
    for (variable, value) in [
        ("CNI_COMMAND", "PLUG"),
        ("CNI_CONTAINERID", "../../etc/passwd"),
        ("CNI_CONTAINERID", "-x"),
        ("CNI_IFNAME", "a/b"),
        ("CNI_IFNAME", ".."),
        ("CNI_IFNAME", "sixteen-letters-"),
        ("CNI_IFNAME", "with space"),
        ("CNI_IFNAME", "a:b"),
        ("CNI_IFNAME", "lo"),
        ("CNI_NETNS", "/nowhere/at/all"),
        ("CNI_NETNS", "/etc/passwd"),
        ("CNI_NETNS", "/"),
        ("CNI_NETNS", host.as_str()),
        ("CNI_ARGS", "K8S_POD_NAMESPACE"),
        ("CNI_ARGS", "K8S_POD_NAMESPACE=../a;K8S_POD_NAME=p"),
        ("CNI_ARGS", "K8S_POD_NAME=p"),
    ] {
        let answer = call(node, container, |call| {
            call.set(variable, value);
        })?;
        refused(&format!("{variable}={value}"), &answer, &[4, 7, 100])?;
    }
    std::fs::remove_file(&host).map_err(|source| LabError::Io { what: format!("remove {host}"), source })
}

fn bandwidth(node: &Node, container: &Container) -> Result<(), LabError> {
    println!("bandwidth: 10X, 0, -1, 2P");
    for value in
        [json!("10X"), json!(0), json!(-1), json!(2_000_000_000_000_000_u64), json!(1.5), json!(999), json!({})]
    {
        for field in ["ingressRate", "egressRate"] {
            let limits = json!({"bandwidth": {field: value}});
            let answer = call(node, container, |call| {
                call.with("runtimeConfig", limits);
            })?;
            if value == 0 {
                // containerd writes 0 where a pod has a limit in the other direction only.
                println!("    {field} 0: exit {}", answer.exit);
                node.cni().call_for("DEL", container).run()?.ok("DEL")?;
            } else {
                refused(&format!("{field} {value}"), &answer, &[7])?;
            }
        }
    }
    Ok(())
}

fn del_check_gc(node: &Node, stays: &Pod) -> Result<(), LabError> {
    println!("DEL of what is not there succeeds; CHECK of it does not; GC removes what is not listed");
    let (_netns, unknown) = node.sandbox("a", "unknown", "eth0")?;
    let mut del = node.cni().call_for("DEL", &unknown);
    del.run()?.ok("DEL of an unknown container")?;
    del.unset("CNI_NETNS").run()?.ok("DEL without a namespace")?;
    del.set("CNI_NETNS", "/nowhere/at/all").run()?.ok("DEL with a namespace that is gone")?;
    let mut check = node.cni().call_for("CHECK", &unknown);
    refused("CHECK without prevResult", &check.run()?, &[7])?;
    check.with("prevResult", stays.result().clone());
    refused("CHECK of an unknown container", &check.run()?, &[3, 103])?;
    let (netns, listed) = node.sandbox("a", "listed", "eth0")?;
    node.cni().call_for("ADD", &listed).run()?.ok("ADD")?;
    let (gone_netns, gone) = node.sandbox("a", "gone", "eth0")?;
    node.cni().call_for("ADD", &gone).run()?.ok("ADD")?;
    drop(gone_netns);
    let mut gc = node.cni().call("GC");
    let keep = |container: &Container| json!({"containerID": container.id, "ifname": container.interface});
    gc.with("cniVersion", "1.1.0".into())
        .with("cni.dev/valid-attachments", json!([keep(stays.container()), keep(&listed)]));
    gc.run()?.ok("GC")?;
    let pods: BTreeMap<String, String> = node.pods()?.into_iter().map(|pod| (pod.pod, pod.container_id)).collect();
    promised(pods.len() == 2 && pods.contains_key("stays") && pods.contains_key("listed"), || {
        format!("after GC: {pods:?}")
    })?;
    stays.check()?;
    let mut status = node.cni().call("STATUS");
    status.with("cniVersion", "1.1.0".into()).run()?.ok("STATUS")?;
    let version = node.cni().call("VERSION").run()?.ok("VERSION")?.json();
    promised(version["supportedVersions"].as_array().is_some_and(|all| all.len() >= 4), || version.to_string())?;
    node.kill_agent()?;
    println!("without an agent: ADD 11, STATUS leaves the node ready, DEL succeeds and is carried out later");
    refused("ADD", &node.cni().call_for("ADD", &unknown).run()?, &[11])?;
    status.run()?.ok("STATUS without an agent")?;
    node.cni().call_for("DEL", &listed).run()?.ok("DEL without an agent")?;
    println!("another plugin was killed while it wrote, long ago");
    let half_written = node.cni().spool.join(".c1@eth0.7");
    let old = SystemTime::now() - Duration::from_mins(2);
    File::create(&half_written).and_then(|file| file.set_modified(old)).tried(|| "write into the spool".into())?;
    drop(netns);
    node.start_agent()?;
    wait::until_or("the spooled DEL", SOON, || {
        let pods = node.pods().map_err(|error| error.to_string())?;
        let left = half_written.exists();
        if pods.len() == 1 && !left { Ok(()) } else { Err(format!("{pods:?}, half-written file: {left}")) }
    })
}

#[test]
fn a_full_pool_is_told_and_becomes_free_again() -> Result<(), LabError> {
    // 3 host bits: eight addresses, of which pods may have at most seven.
    let lab = Lab::builder().nodes(1).network("10.77.0.0/24", 3).start()?;
    lab.create_tenants(&["a"])?;
    let node = lab.node(0);
    let mut pods = Vec::new();
    let answer = loop {
        let (netns, container) = node.sandbox("a", &format!("p{}", pods.len()), "eth0")?;
        let answer = node.cni().call_for("ADD", &container).run()?;
        if answer.exit != 0 {
            break answer;
        }
        pods.push((netns, container));
        promised(pods.len() <= 7, || "more pods than addresses".into())?;
    };
    refused("a full pool", &answer, &[101, 11])?;
    promised(pods.len() >= 5, || format!("full after {} pods", pods.len()))?;
    println!("an address that is freed is given out while no other is left");
    for (_, container) in &pods {
        node.cni().call_for("DEL", container).run()?.ok("DEL")?;
    }
    let pod = lab.pod(0, "a", "again")?;
    expect_reaches(pod.endpoint(), node.host())
}

#[test]
fn adds_that_wait_for_their_namespace_hold_nobody_up() -> Result<(), LabError> {
    const WAITING: usize = 140;
    /// An ADD waits ten seconds for its namespace: whom it holds up waits longer than this.
    const QUICK: Duration = Duration::from_secs(6);
    let lab = Lab::builder().nodes(1).start()?;
    lab.create_tenants(&["a"])?;
    let node = lab.node(0);
    let pod = lab.pod(0, "a", "old")?;
    let early = (0..WAITING).map(|number| node.sandbox("late", &format!("p{number}"), "eth0"));
    let early = early.collect::<Result<Vec<_>, _>>()?;
    thread::scope(|scope| {
        let (answers, outcome) = std::sync::mpsc::channel();
        for (_, container) in &early {
            let (call, answers) = (node.cni().call_for("ADD", container), answers.clone());
            scope.spawn(move || drop(answers.send((container.pod.clone(), call.run()))));
        }
        drop(answers);
        println!("{WAITING} ADDs wait");
        let begin = Instant::now();
        wait::until_or("all of them waiting", SOON, || match node.calls() {
            WAITING => Ok(()),
            other => Err(format!("{other} calls")),
        })?;
        println!("    after {:?}", begin.elapsed());
        let begin = Instant::now();
        node.cni().call_for("DEL", &early[0].1).run()?.ok("DEL of one that waits")?;
        let (name, overtaken) = outcome.recv_timeout(QUICK).map_err(|_| LabError::Broken("its ADD waits on".into()))?;
        promised(name == "p0", || format!("{name} was answered"))?;
        refused("the ADD that a DEL overtook", &overtaken?, &[11])?;
        pod.delete()?;
        lab.pod(0, "a", "new")?.check()?;
        promised(begin.elapsed() < QUICK, || format!("other calls took {:?}", begin.elapsed()))?;
        println!("their namespace comes");
        lab.create_tenants(&["late"])?;
        for (name, answer) in outcome {
            let answer = answer?;
            // On a slow machine its time was over before the namespace came: the runtime tries again.
            let container = early.iter().map(|(_, container)| container).find(|container| container.pod == name);
            let answer = match container {
                Some(container) if answer.code() == Some(11) => node.cni().call_for("ADD", container).run()?,
                _ => answer,
            };
            answer.ok(&format!("ADD of {name}"))?;
        }
        let pods = node.pods()?.iter().filter(|pod| pod.namespace == "late").count();
        promised(pods == WAITING - 1, || format!("{pods} pods"))
    })
}

#[test]
fn a_node_that_is_not_up_is_unavailable() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(1).bare().start()?;
    let node = lab.node(0);
    node.launch_agent()?;
    wait::until_or("the agent answering", SOON, || node.status().map(drop).map_err(|e| e.to_string()))?;
    let mut status = node.cni().call("STATUS");
    status.with("cniVersion", "1.1.0".into());
    refused("STATUS", &status.run()?, &[50])?;
    println!("with pods of an earlier agent");
    node.netns().ip("link add bh00000001 group 25195 type veth")?;
    status.run()?.ok("STATUS of a node with pods")?;
    let (_netns, container) = node.sandbox("a", "p", "eth0")?;
    refused("ADD", &node.cni().call_for("ADD", &container).run()?, &[11])
}

#[test]
fn a_del_in_the_spool_of_a_running_agent_is_carried_out_at_its_resync() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(1).agent_flag("--resync", "1").start()?;
    lab.create_tenants(&["a"])?;
    let pod = lab.pod(0, "a", "p")?;
    let mut del = pod.call("DEL");
    del.with("socket", "/nowhere/at/all.sock".into()).run()?.ok("DEL past the agent")?;
    wait::until_or("the DEL", SOON, || {
        let pods = lab.node(0).pods().map_err(|error| error.to_string())?;
        if pods.is_empty() { Ok(()) } else { Err(format!("{pods:?}")) }
    })
}
