//! Bulkhead installed on nodes that are not fit for it, taken up once they are, removed without a trace and installed again.
//! Needs root and the programs of `build/build.sh`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use bulkhead_kubernetes_tests::cluster::{BULKHEAD_PREFIX, CONTROL};
use bulkhead_kubernetes_tests::flow::{Pings, expect_whole};
use bulkhead_kubernetes_tests::leftovers::{NETWORKING, everywhere, expect_nothing_left, on};
use bulkhead_kubernetes_tests::tenants::{await_reach, await_status, create, declare, expect_silence};
use bulkhead_kubernetes_tests::{Cluster, Pod, bulkhead};
use bulkhead_tests::error::LabError;
use bulkhead_tests::wait;

/// Where agents of this test look for the kernel's BTF: on one node it is missing.
const BTF: &str = "/var/lib/bulkhead/btf";
const VALUES: [&str; 1] = ["agent.extraArgs={--kernel-btf=/var/lib/bulkhead/btf,--resync=3}"];
/// How soon a loaded machine brings a thing to pass.
const PATIENCE: Duration = Duration::from_mins(4);

/// What is wrong with a node, and how it is made so and mended.
struct Fault {
    node: &'static str,
    make: &'static str,
    mend: &'static str,
    /// What its agent says, among others.
    says: &'static [&'static str],
}

const FAULTS: [Fault; 4] = [
    Fault {
        node: "n1",
        make: "rm -f /var/lib/bulkhead/btf",
        mend: "ln -s /sys/kernel/btf/vmlinux /var/lib/bulkhead/btf",
        says: &["the kernel shows no BTF at /var/lib/bulkhead/btf", "CONFIG_DEBUG_INFO_BTF"],
    },
    Fault {
        node: "n2",
        make: r#"echo '{"cniVersion":"1.0.0","name":"old","plugins":[{"type":"oldnet"}]}' > /etc/cni/net.d/05-old.conflist"#,
        mend: "rm /etc/cni/net.d/05-old.conflist",
        says: &[
            "/05-old.conflist (network old, plugin oldnet) sorts before 10-bulkhead.conflist",
            "remove that network",
        ],
    },
    Fault {
        node: "n3",
        make: "ip route add blackhole 172.11.200.0/24",
        mend: "ip route del blackhole 172.11.200.0/24",
        says: &["network 172.11.0.0/16 clashes", "the route to 172.11.200.0/24", "another cluster.network"],
    },
    Fault {
        node: "n4",
        make: "ip link add old0 type vxlan id 5 dstport 4789 dev eth0 && ip link set old0 up",
        mend: "ip link del old0",
        says: &["UDP port 4789 is in use by the VXLAN device old0", "another port (--vxlan-port"],
    },
];

/// The notes of a node's Events with this reason.
fn events(cluster: &Cluster, node: &str, reason: &str) -> Result<Vec<String>, LabError> {
    let about = format!("involvedObject.kind=Node,involvedObject.name={node},reason={reason}");
    let listed = cluster.kubectl().json(&["get", "events", "-A", "--field-selector", &about])?;
    let note = |event: &serde_json::Value| event["message"].as_str().unwrap_or_default().to_owned();
    Ok(listed["items"].as_array().unwrap().iter().map(note).collect())
}

fn has_all(text: &str, words: &[&str]) -> bool {
    words.iter().all(|word| text.contains(word))
}

/// A node that is not fit says so in the log, by an Event, to its probe and in the status.
fn says_why(cluster: &Cluster, fault: &Fault) -> Result<(), LabError> {
    let (node, kubectl) = (fault.node, cluster.kubectl());
    let agent = bulkhead::agent_on(cluster, node)?;
    let said = wait::until_or(&format!("the log of {node} saying why"), PATIENCE, || {
        let log = kubectl.run(&["-n", bulkhead::NAMESPACE, "logs", &agent]).map_err(|error| error.to_string())?;
        let errors: Vec<&str> = log.lines().filter(|line| line.contains(r#""level":"ERROR""#)).collect();
        match errors[..] {
            [line] if has_all(line, fault.says) => Ok(line.to_owned()),
            _ => Err(log),
        }
    })?;
    println!("    {node}: {said}");
    wait::until_or(&format!("an Event on {node}"), PATIENCE, || {
        let events = events(cluster, node, "NodeUnfit").map_err(|error| error.to_string())?;
        let told = events.iter().any(|event| has_all(event, fault.says));
        if told { Ok(()) } else { Err(format!("{events:?}")) }
    })?;
    let probe = "curl -s -w '%{http_code}' http://127.0.0.1:9470/readyz";
    wait::until_or(&format!("the probe of {node} being told"), PATIENCE, || {
        let ready = on(cluster, node, probe).map_err(|error| error.to_string())?;
        if has_all(&ready, fault.says) && ready.ends_with("503") { Ok(()) } else { Err(ready) }
    })?;
    wait::until_or(&format!("the status of {node} saying why"), PATIENCE, || {
        let ask = ["bulkhead", "agent", "status", "-o", "json"];
        let status = kubectl.exec(bulkhead::NAMESPACE, &agent, &ask).map_err(|error| error.to_string())?;
        let status = String::from_utf8_lossy(&status.stdout).into_owned();
        let told = has_all(&status, &fault.says[..1]) && status.contains(r#""ready": false"#);
        if told { Ok(()) } else { Err(status) }
    })
}

fn unfit_nodes_are_left_alone(cluster: &Cluster) -> Result<(), LabError> {
    on(cluster, CONTROL, FAULTS[0].mend)?;
    for fault in &FAULTS {
        on(cluster, fault.node, FAULTS[0].mend)?;
        on(cluster, fault.node, fault.make)?;
    }
    let before = everywhere(cluster, NETWORKING)?;
    bulkhead::apply(cluster, &VALUES)?;
    println!("every node that is not fit says why");
    FAULTS.iter().try_for_each(|fault| says_why(cluster, fault))?;
    println!("a node without fault works");
    bulkhead::await_node(cluster, CONTROL)?;
    create(cluster, &["early"])?;
    let (one, two) = (Pod::start(cluster, "early", "one", CONTROL)?, Pod::start(cluster, "early", "two", CONTROL)?);
    await_reach(&one, two.address())?;
    println!("the others' networking is as it was, and each has told it once");
    for (node, was) in &before {
        if let Some(fault) = FAULTS.iter().find(|fault| fault.node == node) {
            assert_eq!(on(cluster, node, NETWORKING)?, *was, "{node}");
            let told = events(cluster, node, "NodeUnfit")?;
            assert_eq!(told.len(), 1, "{}: {told:?}", fault.node);
        }
    }
    println!("what is mended is taken up, no agent started again");
    let agents: Vec<String> =
        FAULTS.iter().map(|fault| bulkhead::agent_on(cluster, fault.node)).collect::<Result<_, _>>()?;
    FAULTS.iter().try_for_each(|fault| on(cluster, fault.node, fault.mend).map(drop))?;
    bulkhead::await_ready(cluster)?;
    for (fault, agent) in FAULTS.iter().zip(&agents) {
        let pod = cluster.kubectl().json(&["-n", bulkhead::NAMESPACE, "get", "pod", agent])?;
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{}", fault.node);
    }
    Ok(())
}

/// Two pods of `a` and one of `b`, on three nodes.
struct Tenants {
    one: Pod,
    two: Pod,
    stranger: Pod,
}

impl Tenants {
    fn start(cluster: &Cluster, generation: &str) -> Result<Self, LabError> {
        let pod =
            |namespace: &str, name: &str, node| Pod::start(cluster, namespace, &format!("{name}-{generation}"), node);
        Ok(Self { one: pod("a", "one", "n1")?, two: pod("a", "two", "n2")?, stranger: pod("b", "stranger", "n3")? })
    }

    fn expect_apart(&self) -> Result<(), LabError> {
        await_reach(&self.one, self.two.address())?;
        expect_silence(&self.stranger, self.two.address())
    }
}

/// A fault that comes later than the node was taken up takes nothing down.
fn a_node_at_work_goes_on(cluster: &Cluster, tenants: &Tenants) -> Result<(), LabError> {
    let flow = Pings::start("a/one -> a/two", &tenants.one, tenants.two.address())?;
    on(cluster, "n1", FAULTS[0].make)?;
    let agent = bulkhead::agent_on(cluster, "n1")?;
    cluster.kubectl().run(&["-n", bulkhead::NAMESPACE, "delete", "pod", &agent])?;
    wait::until_or("an Event on n1", PATIENCE, || {
        let events = events(cluster, "n1", "NodeDoubtful").map_err(|error| error.to_string())?;
        if events.iter().any(|event| has_all(event, FAULTS[0].says)) { Ok(()) } else { Err(format!("{events:?}")) }
    })?;
    bulkhead::await_ready(cluster)?;
    on(cluster, "n1", FAULTS[0].mend)?;
    wait::until_or("the doubt being gone", PATIENCE, || {
        let said = on(cluster, "n1", "curl -s http://127.0.0.1:9470/readyz").map_err(|error| error.to_string())?;
        if said.starts_with("ready") && !said.contains("BTF") { Ok(()) } else { Err(said) }
    })?;
    expect_whole(vec![flow], "the agent was started on a node that would not be taken up anew")
}

#[test]
fn unfit_nodes_are_left_alone_and_an_uninstall_leaves_nothing() -> Result<(), LabError> {
    let cluster = Cluster::builder().workers(4).start()?;
    let clean = everywhere(&cluster, NETWORKING)?;
    unfit_nodes_are_left_alone(&cluster)?;
    create(&cluster, &["a", "b"])?;
    declare(&cluster, "b", Some("isolated"))?;
    let tenants = Tenants::start(&cluster, "before")?;
    tenants.expect_apart()?;
    a_node_at_work_goes_on(&cluster, &tenants)?;

    println!("an uninstall under pods that run");
    for node in cluster.nodes() {
        on(&cluster, node.name(), &format!("rm {BTF}"))?;
    }
    // An earlier installation's, of the etcd that the chart brings along.
    let left = ["create", "configmap", "bulkhead-etcd", "--from-literal=endpoints=https://192.0.2.1:9472"];
    cluster.kubectl().run(&[&["-n", bulkhead::NAMESPACE][..], &left].concat())?;
    let said = bulkhead::uninstall(&cluster)?;
    let etcd = format!("etcd is {}: the keys below {BULKHEAD_PREFIX}", cluster.etcd_client().endpoints);
    assert!(said.contains(&etcd) && said.ends_with("uninstall: done\n"), "{said}");
    expect_nothing_left(&cluster, &clean)?;

    println!("installed again, the pods started again");
    bulkhead::apply(&cluster, &[])?;
    // Their sandboxes are taken down by the network that is there by then.
    for namespace in ["a", "b", "early", "kube-system"] {
        cluster.kubectl().run(&["-n", namespace, "delete", "pods", "--all", "--timeout=5m"])?;
    }
    bulkhead::await_ready(&cluster)?;
    await_status(&cluster, "b", "isolated")?;
    Tenants::start(&cluster, "after")?.expect_apart()
}
