//! The lab on Kubernetes proves things only if it is a cluster: its own network, services, restarts, power cuts, and that
//! nothing of it is left. Needs root and the programs of `build/build.sh`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bulkhead_kubernetes_tests::cluster::{BULKHEAD_PREFIX, CONTROL};
use bulkhead_kubernetes_tests::image::Archive;
use bulkhead_kubernetes_tests::network::DNS_ADDRESS;
use bulkhead_kubernetes_tests::pod::WEB;
use bulkhead_kubernetes_tests::{Cluster, Network, Pod, ProxyMode};
use bulkhead_tests::error::LabError;
use bulkhead_tests::{cgroup, registry, wait};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
/// How soon a loaded machine brings a thing to pass; a kubelet that boots without its API server looks again once a minute.
const SOON: Duration = Duration::from_mins(4);

fn turn() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What of the host a lab could change.
#[derive(Debug, PartialEq, Eq)]
struct Host {
    links: String,
    mounts: Vec<PathBuf>,
    kernel: Vec<String>,
}

impl Host {
    fn look() -> Self {
        let output = Command::new("ip").args(["-o", "link"]).output().unwrap();
        let files = ["vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops", "net/netfilter/nf_conntrack_max"];
        Self {
            links: String::from_utf8(output.stdout).unwrap(),
            // Other labs may come and go meanwhile.
            mounts: registry::mounts_below(Path::new("/")).into_iter().filter(|path| !is_in_a_lab(path)).collect(),
            kernel: files.map(|file| fs::read_to_string(Path::new("/proc/sys").join(file)).unwrap_or_default()).into(),
        }
    }
}

fn is_in_a_lab(path: &Path) -> bool {
    path.to_string_lossy().starts_with("/dev/shm/bhl")
}

/// Processes that belong to a lab by their control group or their root.
fn processes_of(prefix: &str, dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let path = entry.path();
        let groups = fs::read_to_string(path.join("cgroup")).unwrap_or_default();
        let root = fs::read_link(path.join("root")).unwrap_or_default();
        let command = fs::read_to_string(path.join("cmdline")).unwrap_or_default();
        // With what follows the number: of another lab it may be the beginning.
        let below = format!("{}/", dir.display());
        if groups.contains(&format!("/{prefix}/")) || root.starts_with(dir) || command.contains(&below) {
            found.push(format!("{}: {}", path.display(), command.replace('\0', " ")));
        }
    }
    found
}

fn expect_nothing_left(number: u8) {
    let prefix = format!("bhl{number}");
    let dir = Path::new("/dev/shm").join(&prefix);
    assert!(!dir.exists(), "{}", dir.display());
    assert_eq!(registry::mounts_below(&dir), Vec::<PathBuf>::new());
    assert!(!cgroup::exists(Path::new(&prefix)).unwrap());
    assert_eq!(processes_of(&prefix, &dir), Vec::<String>::new());
}

fn resolves(pod: &Pod) -> Result<(), LabError> {
    let name = "kubernetes.default.svc.cluster.local";
    wait::until_or(&format!("{name} being resolved"), SOON, || {
        let answer = pod.exec_ok(&["dig", "+short", "+tries=1", "+time=1", &format!("@{DNS_ADDRESS}"), name]);
        match answer {
            Ok(text) if text.trim() == "10.96.0.1" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
}

fn pings(from: &Pod, to: &Pod) {
    wait::until("a ping", SOON, || from.pings(to.address()).unwrap().then_some(())).unwrap();
}

#[test]
fn a_cluster_works_and_its_nodes_come_and_go() {
    let _turn = turn();
    let host = Host::look();
    let cluster = Cluster::builder().network(Network::Reference).start().unwrap();
    let number = cluster.id().number();
    let mut begin = Instant::now();
    let mut say = |what: &str| {
        println!("{what} after {:.1} s", begin.elapsed().as_secs_f64());
        begin = Instant::now();
    };
    let a = Pod::start(&cluster, "default", "a", "n1").unwrap();
    say("the first pod is ready");
    let b = Pod::start(&cluster, "default", "b", "n2").unwrap();
    pings(&a, &b);
    resolves(&a).unwrap();
    cluster.kubectl().run(&["expose", "pod", "b", "--port=80", &format!("--target-port={WEB}")]).unwrap();
    let served = || a.fetches("b.default").unwrap().then_some(());
    wait::until("the service by its name", SOON, served).unwrap();
    say("pods, names and services work");

    // Services of the node come back; pods do not notice.
    cluster.restart_containerd("n2").unwrap();
    cluster.restart_kubelet("n2").unwrap();
    pings(&a, &b);
    cluster.await_ready("n2").unwrap();
    let n2 = cluster.node("n2").unwrap();
    let proxy = || n2.exec(&["pgrep", "-x", "kube-proxy"], &[]).ok();
    let first = proxy().unwrap();
    n2.exec(&["kill", "-9", first.trim()], &[]).unwrap();
    let another = || proxy().filter(|now| *now != first);
    wait::until("kube-proxy being started again", SOON, another).unwrap();
    say("a node's services are back");

    // The control plane away: what runs goes on.
    cluster.stop_api().unwrap();
    assert!(cluster.kubectl().run(&["get", "nodes"]).is_err());
    cluster.start_api().unwrap();
    cluster.stop_etcd().unwrap();
    assert!(cluster.kubectl().run(&["get", "nodes", "--request-timeout=2s"]).is_err());
    cluster.start_etcd().unwrap();
    wait::until("the API after etcd", SOON, || cluster.kubectl().run(&["get", "nodes"]).ok()).unwrap();
    pings(&a, &b);
    assert_eq!(b.restarts().unwrap(), 0);
    say("the control plane is back");

    // A cable pulled.
    cluster.cut_off("n2").unwrap();
    assert!(!a.pings(b.address()).unwrap());
    cluster.reconnect("n2").unwrap();
    pings(&a, &b);
    say("the cable is back");

    // A power cut: the disk stays, the pod is started anew.
    cluster.node("n2").unwrap().disk().write("/var/lib/bulkhead/kept", "yes").unwrap();
    cluster.node("n2").unwrap().exec(&["touch", "/run/lost"], &[]).unwrap();
    cluster.reboot("n2").unwrap();
    assert_eq!(n2.exec(&["cat", "/var/lib/bulkhead/kept"], &[]).unwrap(), "yes");
    assert!(n2.exec(&["ls", "/run/lost"], &[]).is_err());
    let restarts =
        wait::until("the pod being started again", SOON, || b.restarts().ok().filter(|&restarts| restarts > 0));
    let restarts = restarts.unwrap();
    let b = Pod::find(cluster.kubectl(), "default", "b").unwrap();
    pings(&a, &b);
    resolves(&b).unwrap();
    say("the node is back");

    // Switched on while the API server is away: it finds its way back by itself.
    cluster.stop_api().unwrap();
    cluster.reboot("n2").unwrap();
    cluster.start_api().unwrap();
    let again = || (b.restarts().ok()? > restarts).then_some(());
    wait::until("the pod being started a third time", SOON, again).unwrap();
    Pod::find(cluster.kubectl(), "default", "b").unwrap();
    let served = || a.fetches("b.default").unwrap().then_some(());
    wait::until("the service after a reboot", SOON, served).unwrap();
    say("a node is back that booted without the API server");

    // A node more, a node less, and one of the same name.
    let name = cluster.add_node().unwrap();
    assert_eq!(name, "n3");
    cluster.await_ready("n3").unwrap();
    let c = Pod::start(&cluster, "default", "c", "n3").unwrap();
    pings(&a, &c);
    cluster.remove_node("n3").unwrap();
    assert_eq!(cluster.add_node().unwrap(), "n3");
    cluster.await_ready("n3").unwrap();
    pings(&a, &Pod::start(&cluster, "default", "d", "n3").unwrap());

    say("nodes have come and gone");
    drop(cluster);
    say("all is removed");
    expect_nothing_left(number);
    assert_eq!(Host::look(), host);
}

#[test]
fn a_node_without_a_network_is_not_ready_and_kube_proxy_does_nftables() {
    let _turn = turn();
    let cluster = Cluster::builder().workers(1).proxy(ProxyMode::Nftables).start().unwrap();
    let why = || {
        let node = cluster.kubectl().json(&["get", "node", "n1"]).ok()?;
        let conditions = node["status"]["conditions"].as_array()?.clone();
        let ready = conditions.into_iter().find(|condition| condition["type"] == "Ready")?;
        Some((ready["status"].as_str()?.to_owned(), ready["message"].as_str()?.to_owned()))
    };
    // What a kubelet says first may be that it has not asked its runtime yet.
    wait::until_or("n1 saying what it lacks", SOON, || match why() {
        Some((status, message)) if status == "False" && message.contains("cni plugin not initialized") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .unwrap();
    let rules = || {
        let text = cluster.node("n1").unwrap().exec(&["nft", "list", "table", "ip", "kube-proxy"], &[]).ok()?;
        text.contains("10.96.0.1").then_some(())
    };
    wait::until("kube-proxy's table", SOON, rules).unwrap();

    // The cluster's etcd with a certificate of the lab's own authority, from a node.
    let client = cluster.etcd_client();
    let n1 = cluster.node("n1").unwrap();
    for (file, name) in [(&client.authority, "ca.crt"), (&client.certificate, "etcd.crt"), (&client.key, "etcd.key")] {
        n1.disk().write(&format!("/etc/bulkhead/{name}"), &fs::read_to_string(file).unwrap()).unwrap();
    }
    let etcdctl = ["env", "ETCDCTL_API=3", "etcdctl", "--command-timeout=10s", "--endpoints", &client.endpoints];
    let authority = ["--cacert", "/etc/bulkhead/ca.crt"];
    let certificate = ["--cert", "/etc/bulkhead/etcd.crt", "--key", "/etc/bulkhead/etcd.key"];
    let ask =
        |certificate: &[&str], words: &[&str]| n1.exec(&[&etcdctl[..], &authority, certificate, words].concat(), &[]);
    let own = format!("{BULKHEAD_PREFIX}x");
    ask(&certificate, &["put", &own, "1"]).unwrap();
    assert_eq!(ask(&certificate, &["get", "--print-value-only", &own]).unwrap(), "1\n");
    let refused = ask(&certificate, &["get", "--prefix", "/registry/"]).unwrap_err().to_string();
    assert!(refused.contains("permission denied"), "{refused}");
    assert!(ask(&[], &["get", &own]).is_err(), "without a certificate");
}

#[test]
fn an_image_is_made_of_files_and_runs() {
    let _turn = turn();
    let dir = std::env::temp_dir().join(format!("bulkhead-image-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let name = "lab.bulkhead.dev/echo:1.2.3";
    let files = [(Path::new("/bin/echo"), "/usr/bin/echo")];
    let archive = Archive::of_files(name, &["/usr/bin/echo", "hello"], &files, &[("revision", "abc")]).unwrap();
    let [one, two] = ["one.tar", "two.tar"].map(|file| dir.join(file));
    archive.write(&one).unwrap();
    archive.write(&two).unwrap();
    assert!(fs::read(&one).unwrap() == fs::read(&two).unwrap(), "the same bytes");
    let cluster = Cluster::builder().workers(1).network(Network::Reference).start().unwrap();
    cluster.import(&one).unwrap();
    let run = ["run", "echo", "--image", name, "--image-pull-policy=Never", "--restart=Never"];
    cluster.kubectl().run(&run).unwrap();
    cluster.kubectl().wait("jsonpath={.status.phase}=Succeeded", &["pod", "echo"], SOON).unwrap();
    wait::until_or("what it said", SOON, || match cluster.kubectl().run(&["logs", "echo"]) {
        Ok(said) if said == "hello\n" => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .unwrap();
    fs::remove_dir_all(&dir).unwrap();
}

/// Not a test: what `a_killed_lab_is_removed_by_the_next` kills.
#[test]
#[ignore = "started by another test"]
fn hold_a_cluster_until_killed() {
    let cluster = Cluster::builder().workers(1).network(Network::Reference).start().unwrap();
    fs::write(std::env::var("LAB_SAYS").unwrap(), cluster.id().number().to_string()).unwrap();
    loop {
        thread::park();
    }
}

#[test]
fn a_killed_lab_is_removed_by_the_next() {
    let _turn = turn();
    let host = Host::look();
    let says = std::env::temp_dir().join(format!("bulkhead-kubernetes-lab-{}", std::process::id()));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "hold_a_cluster_until_killed", "--ignored"])
        .env("LAB_SAYS", &says)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let read = || fs::read_to_string(&says).ok().and_then(|text| text.parse::<u8>().ok());
    let number = wait::until("the other lab", Duration::from_mins(6), read).unwrap();
    let prefix = format!("bhl{number}");
    assert!(!processes_of(&prefix, &Path::new("/dev/shm").join(&prefix)).is_empty(), "what is looked for is there");
    assert!(cgroup::exists(&Path::new(&prefix).join(CONTROL)).unwrap());
    child.kill().unwrap();
    child.wait().unwrap();
    // Another suite that starts a lab right now may be the one that sweeps it.
    wait::until_or("the killed lab being swept", SOON, || match registry::sweep() {
        Ok(_) if !Path::new("/dev/shm").join(&prefix).exists() => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .unwrap();
    fs::remove_file(&says).unwrap();
    expect_nothing_left(number);
    assert_eq!(Host::look(), host);
}
