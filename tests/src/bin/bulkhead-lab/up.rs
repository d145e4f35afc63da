//! `up`: a lab to try things in.

use std::path::PathBuf;

use bulkhead_tests::lab::Lab;
use bulkhead_tests::pod::Pod;
use bulkhead_tests::table::Table;
use bulkhead_tests::{LabError, Node};
use bulkhead_tests::{signals, standing};

/// Starts a lab with a few pods, says what to try, and removes it on Ctrl-C or `down`.
pub fn up(nodes: u8) -> Result<(), LabError> {
    let lab = Lab::builder().nodes(nodes).start()?;
    lab.create_tenants(&["a", "b", "c", "kube-system"])?;
    let last = usize::from(nodes) - 1;
    let wanted =
        [(0, "a", "web"), (last, "a", "db"), (0, "b", "web"), (last, "c", "web"), (last, "kube-system", "dns")];
    let pods =
        wanted.iter().map(|(node, namespace, pod)| lab.pod(*node, namespace, pod)).collect::<Result<Vec<_>, _>>()?;
    let mut names: Vec<(String, PathBuf)> = Vec::new();
    names.extend(lab.nodes().iter().map(|node| (node.name().to_owned(), node.netns().path().to_owned())));
    names.extend(pods.iter().map(|pod| (pod.endpoint().name().to_owned(), pod.netns().path().to_owned())));
    for netns in [&lab.underlay().infra, &lab.underlay().outside] {
        names.push((netns.name().to_owned(), netns.path().to_owned()));
    }
    standing::write_names(lab.id(), &names)?;
    describe(&lab, &pods);
    signals::wait()?;
    println!("removing lab {}", lab.id().number());
    drop(pods);
    drop(lab);
    Ok(())
}

fn describe(lab: &Lab, pods: &[Pod]) {
    let mut table = Table::new(["NAME", "ADDRESS", "AGENT'S SOCKET"]);
    for node in lab.nodes() {
        table.row([node.name().to_owned(), node.address().to_string(), node.cni().socket.display().to_string()]);
    }
    for pod in pods {
        table.row([pod.endpoint().name().to_owned(), pod.address().to_string()]);
    }
    table.row(["outside".to_owned(), lab.outside().address().to_string()]);
    println!("\n{table}");
    let (etcd, cli) = (lab.etcd().endpoints(), lab.cli().program.display().to_string());
    let socket = lab.nodes().first().map(|node: &Node| node.cni().socket.display().to_string()).unwrap_or_default();
    let target = pods.get(2).map(|pod| pod.address().to_string()).unwrap_or_default();
    let exec = std::env::current_exe().map_or("bulkhead-lab".into(), |program| program.display().to_string()) + " exec";
    let key = "/k8s.ovs.com/ovs/network/k8ssdn/netnamespaces/b";
    println!(
        "Try, in another terminal (a and b are apart, kube-system is open to all):\n\n\
         \x20 {exec} a/web ping -c 3 {target}\n\
         \x20 {exec} infra {cli} --etcd-endpoints {etcd} tenant list\n\
         \x20 {exec} infra {cli} --etcd-endpoints {etcd} tenant join b --to a\n\
         \x20 {exec} n1 {cli} --agent-socket {socket} agent status\n\
         \x20 {exec} n1 bash\n\n\
         or as K8S-OVS' users do:\n\n\
         \x20 {exec} infra env ETCDCTL_API=3 etcdctl --endpoints {etcd} get {key}\n\
         \x20 {exec} infra env ETCDCTL_API=3 etcdctl --endpoints {etcd} put {key} \\\n\
         \x20   '{{\"NetName\":\"b\",\"NetID\":11,\"Action\":\"isolate\",\"Namespace\":\"\"}}'\n\n\
         Every pod echoes on port 7 and says whom it sees on port 8 (TCP and UDP). Ctrl-C ends the lab."
    );
}
