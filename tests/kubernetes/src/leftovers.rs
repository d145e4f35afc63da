//! What an installation of Bulkhead changes on nodes, in etcd and in the API, and that nothing of it is left.

use bulkhead_tests::error::{LabError, promised};

use crate::cluster::{BULKHEAD_PREFIX, Cluster};

/// What an agent could change of a node's networking.
pub const NETWORKING: &str = "set +e
    ip -o link | cut -d' ' -f2,3
    ip -4 -o address | tr -s ' ' | cut -d' ' -f2-4
    ip -4 route show table all
    ip -4 rule
    tc qdisc show | cut -d' ' -f2,5
    for device in $(ls /sys/class/net); do tc filter show dev $device ingress; tc filter show dev $device egress; done 2>/dev/null
    nft list tables | grep -i bulkhead
    nft list ruleset | grep -iE 'bulkhead|bh0a'
    find /etc/cni/net.d -type f | sort | xargs -r cat
    find /sys/fs/bpf
    sysctl net.ipv4.ip_forward
    true";
/// What else an installation leaves.
const FILES: &str = "set +e
    ls -d /run/bulkhead /var/lib/bulkhead /var/lib/bulkhead-etcd 2>/dev/null
    ls /opt/cni/bin
    ss -xl | grep bulkhead
    ss -tuln | grep -E ':(4789|9470|9471|9472|9473|9474) '
    true";
/// Objects of no namespace that Bulkhead makes, or could.
const KINDS: &str = "clusterroles,clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings,namespaces,\
                     customresourcedefinitions,priorityclasses";

/// Runs a script on a node; what it says.
pub fn on(cluster: &Cluster, node: &str, script: &str) -> Result<String, LabError> {
    cluster.node(node)?.exec(&["sh", "-ec", script], &[])
}

/// What a script says on every node, by the node's name.
pub fn everywhere(cluster: &Cluster, script: &str) -> Result<Vec<(String, String)>, LabError> {
    cluster.nodes().iter().map(|node| Ok((node.name().to_owned(), on(cluster, node.name(), script)?))).collect()
}

/// An error unless every node's [`NETWORKING`] is as it was `before`, and there is nothing else of Bulkhead.
pub fn expect_nothing_left(cluster: &Cluster, before: &[(String, String)]) -> Result<(), LabError> {
    let none = |what: &str, found: &str| promised(found.is_empty(), || format!("{what} is left: {found}"));
    for (node, was) in before {
        let now = on(cluster, node, NETWORKING)?;
        promised(now == *was, || format!("the networking of {node} was\n{was}\nand is\n{now}"))?;
        let files = on(cluster, node, FILES)?;
        promised(!files.contains("bulkhead") && !files.contains(':'), || format!("on {node} is left: {files}"))?;
    }
    none("of keys", cluster.etcd().ctl(&["get", "--prefix", BULKHEAD_PREFIX, "--keys-only"])?.trim())?;
    let kubectl = cluster.kubectl();
    let objects = kubectl.run(&["get", KINDS, "-o", "name"])?;
    none("of objects", &objects.lines().filter(|name| name.contains("bulkhead")).collect::<Vec<_>>().join(" "))?;
    let labelled = "app.kubernetes.io/part-of=bulkhead";
    let kinds = "all,configmaps,secrets,roles,rolebindings";
    none("of objects", kubectl.run(&["get", kinds, "-A", "-l", labelled, "-o", "name"])?.trim())?;
    let namespaces = kubectl.json(&["get", "namespaces"])?.to_string();
    promised(!namespaces.contains("bulkhead"), || format!("of the namespaces is left: {namespaces}"))?;
    for node in kubectl.json(&["get", "nodes"])?["items"].as_array().into_iter().flatten() {
        let (metadata, conditions) = (node["metadata"].to_string(), node["status"]["conditions"].to_string());
        promised(!metadata.contains("bulkhead"), || format!("of a node is left: {metadata}"))?;
        promised(!conditions.contains("Bulkhead"), || format!("of a node is left: {conditions}"))?;
    }
    Ok(())
}
