//! The images that every node of the lab has: what the kubelet and CoreDNS need, and what the upstream tests pull.

use std::path::Path;

use bulkhead_tests::error::LabError;

use crate::image::{Archive, Image};
use crate::layer::Layer;
use crate::programs::Programs;

/// The image of a pod's sandbox.
pub const PAUSE: &str = "registry.k8s.io/pause:3.10.1";
/// CoreDNS.
pub const COREDNS: &str = "registry.k8s.io/coredns/coredns:v1.12.4";
/// The upstream tests' own program; `pause`, `netexec`, `connect` and many more are its subcommands.
pub const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.56";
/// A shell with the usual tools.
pub const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.37.0-1";
/// The same with what asks name servers.
pub const DNSUTILS: &str = "registry.k8s.io/e2e-test-images/jessie-dnsutils:1.7";

/// Programs of the host that pods of the upstream tests call by name.
const TOOLS: [&str; 56] = [
    "awk",
    "basename",
    "bash",
    "cat",
    "chmod",
    "cp",
    "curl",
    "cut",
    "date",
    "dd",
    "df",
    "dig",
    "dirname",
    "env",
    "expr",
    "false",
    "find",
    "getent",
    "grep",
    "head",
    "host",
    "hostname",
    "id",
    "ip",
    "iperf3",
    "kill",
    "ln",
    "ls",
    "md5sum",
    "mkdir",
    "mktemp",
    "mv",
    "nc",
    "nslookup",
    "ping",
    "ps",
    "readlink",
    "rm",
    "sed",
    "seq",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "ss",
    "stat",
    "tail",
    "tee",
    "test",
    "timeout",
    "touch",
    "tr",
    "true",
    "uniq",
    "wc",
    "wget",
];
const PLACES: [&str; 4] = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"];

/// Writes them all as one archive.
pub fn write(programs: &Programs, to: &Path) -> Result<(), LabError> {
    let mut archive = Archive::new();
    let base = archive.add_layer(Layer::base());
    let tools = archive.add_layer(tools()?);
    let agnhost = archive.add_layer(
        Layer::new()
            .file(&programs.get("agnhost")?, "/agnhost")
            .link("agnhost", "/agnhost-2")
            .file(&programs.get("localhost.crt")?, "/localhost.crt")
            .file(&programs.get("localhost.key")?, "/localhost.key")
            .directory("/uploads"),
    );
    let coredns = archive.add_layer(Layer::new().file(&programs.get("coredns")?, "/coredns"));
    archive.add(Image::new(PAUSE, &["/agnhost", "pause"]).layer(base).layer(agnhost));
    archive.add(Image::new(AGNHOST, &["/agnhost"]).command(&["pause"]).layer(base).layer(tools).layer(agnhost));
    archive.add(Image::new(COREDNS, &["/coredns"]).layer(base).layer(coredns));
    for name in [BUSYBOX, DNSUTILS] {
        archive.add(Image::new(name, &[]).command(&["sh"]).layer(base).layer(tools));
    }
    archive.write(to)
}

fn tools() -> Result<Layer, LabError> {
    TOOLS.iter().try_fold(Layer::new(), |layer, tool| {
        let from = PLACES.iter().map(|place| Path::new(place).join(tool)).find(|path| path.exists());
        let from = from.unwrap_or_else(|| Path::new("/usr/bin").join(tool));
        layer.program(&from, &format!("/usr/bin/{tool}"))
    })
}
