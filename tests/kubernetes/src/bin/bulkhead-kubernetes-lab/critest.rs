//! `critest`: the upstream tests of a container runtime, those on networking, against a worker's containerd.
//!
//! Its sandboxes are of namespaces that no API server knows, and a pod without a tenant gets no network: each is made while its
//! sandbox waits for it.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use bulkhead_kubernetes_tests::Cluster;
use bulkhead_kubernetes_tests::image::{Archive, Image};
use bulkhead_kubernetes_tests::layer::Layer;
use bulkhead_tests::error::{LabError, Tried};
use bulkhead_tests::signals;

/// Images of our own in the place of those that would be pulled.
const SHELL: &str = "lab.invalid/shell:1";
const WEB: &str = "lab.invalid/web:1";
const NODE: &str = "n1";
/// How the names of its namespaces begin.
const NAMESPACE: &str = "cri-test-namespace";
/// A sandbox waits longer for its tenant.
const LOOK: Duration = Duration::from_millis(200);

/// Runs the specs whose names match.
pub fn run(cluster: &Cluster, program: &Path, focus: &str) -> Result<ExitCode, LabError> {
    signals::remove_on_signal(cluster.id())?;
    cluster.import(&images(cluster)?)?;
    let node = cluster.node(NODE)?;
    let (inside, list) = ("/opt/critest", "/etc/critest-images.yaml");
    let here = node.disk().path(inside);
    fs::copy(program, &here)
        .tried(|| format!("copy {} (is it built? tests/kubernetes/critest/build.sh)", program.display()))?;
    node.disk().write(list, &format!("defaultTestContainerImage: {SHELL}\nwebServerTestImage: {WEB}\n"))?;
    let (focus, list) = (format!("--ginkgo.focus={focus}"), format!("--test-images-file={list}"));
    let endpoint = "--runtime-endpoint=unix:///run/containerd/containerd.sock";
    // A kubelet ends pods that are not its own.
    node.stop("kubelet")?;
    let words = [inside, endpoint, &list, &focus, "--ginkgo.no-color", "--ginkgo.v"];
    let output = thread::scope(|scope| {
        let tests = scope.spawn(|| node.with_machine(|machine| machine.output(&words, &[])));
        let mut made = BTreeSet::new();
        while !tests.is_finished() {
            make_namespaces(cluster, &mut made)?;
            // Between two looks at a log.
            thread::sleep(LOOK);
        }
        tests.join().unwrap_or_else(|_| Err(LabError::ThreadGone("critest".into())))
    })?;
    print!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok(if output.status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Makes the namespaces of sandboxes that containerd was asked for.
fn make_namespaces(cluster: &Cluster, made: &mut BTreeSet<String>) -> Result<(), LabError> {
    let path = cluster.dir().join(NODE).join("containerd.log");
    let text = fs::read_to_string(&path).tried(|| format!("read {}", path.display()))?;
    for rest in text.split(NAMESPACE).skip(1) {
        let end = rest.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-').unwrap_or(rest.len());
        let name = format!("{NAMESPACE}{}", &rest[..end]);
        if made.insert(name.clone()) {
            cluster.kubectl().run(&["create", "namespace", &name])?;
        }
    }
    Ok(())
}

fn images(cluster: &Cluster) -> Result<PathBuf, LabError> {
    // What the tests' containers run until they are killed.
    let top = cluster.dir().join("top");
    fs::write(&top, "#!/bin/sh\nexec sleep infinity\n").tried(|| format!("write {}", top.display()))?;
    fs::set_permissions(&top, Permissions::from_mode(0o755)).tried(|| format!("chmod {}", top.display()))?;
    let mut archive = Archive::new();
    let mut shell = Layer::base().file(&top, "/usr/bin/top");
    for tool in ["sh", "sleep", "cat", "hostname"] {
        shell = shell.program(&Path::new("/bin").join(tool), &format!("/usr/bin/{tool}"))?;
    }
    let base = archive.add_layer(shell);
    let agnhost = archive.add_layer(Layer::new().file(&cluster.programs().get("agnhost")?, "/agnhost"));
    archive.add(Image::new(SHELL, &[]).command(&["sh"]).layer(base));
    archive.add(Image::new(WEB, &["/agnhost", "netexec", "--http-port=80"]).layer(base).layer(agnhost));
    let file = cluster.dir().join("critest.tar");
    archive.write(&file)?;
    Ok(file)
}
