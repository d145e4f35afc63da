//! The roles of `docs/install.md`, typed at a real etcd as they stand there: who may do what below the prefix, and nothing
//! beside it; by certificates and by passwords.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bulkhead_store::Store;
use bulkhead_store::process::{Cluster, ClusterOptions, ServerTls};

use crate::fixture::type_at;

/// The commands of the block in which this stands.
fn documented(part: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/install.md");
    let text = fs::read_to_string(page).unwrap();
    let mut blocks = text.split("```").skip(1).step_by(2).filter(|block| block.contains(part));
    let block = blocks.next().unwrap_or_else(|| panic!("no block of docs/install.md has {part}"));
    assert_eq!(blocks.next(), None, "{part} is in two blocks");
    block.to_owned()
}

/// An etcd for clients with certificates, whose administrator shows one of the name root.
struct Etcd {
    cluster: Cluster,
    folder: tempfile::TempDir,
}

impl Etcd {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let names = "root,bulkhead,bulkhead-agent,kube-apiserver-etcd-client,nobody";
        let make = format!("certs --host 127.0.0.1 --client {names} --out {}", folder.path().display());
        type_at(&Store::in_memory(), &make).await.ok();
        let at = |file: &str| folder.path().join(file);
        let tls = ServerTls { cert: at("server.crt"), key: at("server.key"), client_ca: Some(at("ca.crt")) };
        let cluster = Cluster::start_with(&ClusterOptions { tls: Some(tls), ..ClusterOptions::default() }).unwrap();
        Self { cluster, folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Types a script as an administrator.
    fn type_script(&self, script: &str) {
        let mut command = Command::new("sh");
        command.args(["-euc", script]).current_dir(self.folder.path()).env("ETCDCTL_API", "3");
        command.env("ETCDCTL_ENDPOINTS", self.cluster.endpoint(0)).env("ETCDCTL_CACERT", self.file("ca.crt"));
        command.env("ETCDCTL_CERT", self.file("root.crt")).env("ETCDCTL_KEY", self.file("root.key"));
        let done = command.output().unwrap();
        assert!(done.status.success(), "{script}\n{done:?}");
    }

    /// What etcdctl answers to who shows this certificate, and gives this login if there is one.
    fn etcdctl(&self, name: &str, login: Option<&str>, words: &[&str]) -> Output {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.cluster.endpoint(0)]);
        for (flag, file) in
            [("--cacert", "ca.crt"), ("--cert", &format!("{name}.crt")), ("--key", &format!("{name}.key"))]
        {
            command.arg(flag).arg(self.file(file));
        }
        if let Some(login) = login {
            command.args(["--user", login]);
        }
        command.args(words).output().unwrap()
    }

    /// The real program with the settings that the chart gives to a pod.
    fn bulkhead(&self, name: &str, more: &[(&str, &str)], line: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
        command.args(line.split_whitespace()).env_clear();
        command.env("BULKHEAD_ETCD_ENDPOINTS", self.cluster.endpoint(0)).env("BULKHEAD_ETCD_CA", self.file("ca.crt"));
        command.env("BULKHEAD_ETCD_CERT", self.file(&format!("{name}.crt")));
        command.env("BULKHEAD_ETCD_KEY", self.file(&format!("{name}.key")));
        command.envs(more.iter().copied()).output().unwrap()
    }
}

const INIT: &str = "config init --name k8ssdn --network 172.11.0.0/16 --host-subnet-length 10";

fn worked(output: &Output) {
    assert!(output.status.success(), "{output:?}");
}

fn denied(output: &Output) {
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("permission"), "{output:?}");
}

#[tokio::test]
async fn the_clusters_own_etcd_lets_us_below_our_prefix_only() {
    let etcd = Etcd::start().await;
    etcd.type_script(&documented("kube-apiserver-etcd-client root"));
    for (key, may_write) in [("/registry/pods/a", false), ("/k8s.ovs.com/ovs/network/k8ssdn/x", true)] {
        worked(&etcd.etcdctl("kube-apiserver-etcd-client", None, &["put", key, "1"]));
        let put = etcd.etcdctl("bulkhead", None, &["put", key, "2"]);
        if may_write {
            worked(&put);
        } else {
            denied(&put);
        }
        denied(&etcd.etcdctl("bulkhead-agent", None, &["put", key, "3"]));
        denied(&etcd.etcdctl("nobody", None, &["get", key]));
    }
    denied(&etcd.etcdctl("bulkhead", None, &["get", "--prefix", "/registry/"]));
    denied(&etcd.etcdctl("bulkhead", None, &["user", "list"]));
    denied(&etcd.bulkhead("bulkhead-agent", &[], INIT));
    worked(&etcd.bulkhead("bulkhead", &[], INIT));
    worked(&etcd.bulkhead("bulkhead-agent", &[], "config show"));
    worked(&etcd.bulkhead("bulkhead", &[], "backup -"));
}

#[tokio::test]
async fn an_existing_etcd_lets_us_in_by_password_below_a_prefix_of_its_own() {
    let etcd = Etcd::start().await;
    for (file, password) in [("controller-password", "correct-horse\n"), ("agent-password", "battery-staple\n")] {
        fs::write(etcd.file(file), password).unwrap();
    }
    etcd.type_script(&documented("controller-password       &&"));
    etcd.type_script("etcdctl user add root --no-password; etcdctl user grant-role root root; etcdctl auth enable");
    let file = |name: &str| etcd.file(name).display().to_string();
    let login = |user: &'static str, password: String| {
        vec![
            ("BULKHEAD_ETCD_PREFIX", "/tenants/bulkhead".to_owned()),
            ("BULKHEAD_ETCD_USER", user.to_owned()),
            ("BULKHEAD_ETCD_PASSWORD_FILE", password),
        ]
    };
    let run = |settings: &[(&str, String)], line: &str| {
        let settings: Vec<(&str, &str)> = settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
        etcd.bulkhead("nobody", &settings, line)
    };
    let controller = login("bulkhead", file("controller-password"));
    let agent = login("bulkhead-agent", file("agent-password"));
    denied(&run(&agent, INIT));
    worked(&run(&controller, INIT));
    worked(&run(&agent, "config show"));
    worked(&run(&controller, "backup -"));
    let elsewhere: Vec<_> = controller.iter().filter(|(key, _)| *key != "BULKHEAD_ETCD_PREFIX").cloned().collect();
    denied(&run(&elsewhere, INIT));
    let wrong = run(&login("bulkhead", file("agent-password")), "config show");
    assert!(!wrong.status.success() && !String::from_utf8_lossy(&wrong.stderr).contains("battery"), "{wrong:?}");
    denied(&etcd.etcdctl("nobody", Some("bulkhead:correct-horse"), &["put", "/other", "1"]));
    worked(&etcd.etcdctl("nobody", Some("bulkhead:correct-horse"), &["put", "/tenants/bulkhead/x", "1"]));
}
