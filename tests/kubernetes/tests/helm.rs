//! A release of Helm, as `docs/install.md` has it: installed, gone over to another version under traffic, removed without a trace.
//! With `BULKHEAD_IMAGE`, the archive that `make image` writes, what is installed is the image as it is shipped. Needs root and the
//! programs of `build/build.sh`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::env;
use std::path::{Path, PathBuf};

use bulkhead_kubernetes_tests::bulkhead::{IMAGE, NAMESPACE};
use bulkhead_kubernetes_tests::leftovers::{NETWORKING, everywhere, expect_nothing_left, on};
use bulkhead_kubernetes_tests::tenants::{await_reach, await_silence, create, kubectl_bulkhead};
use bulkhead_kubernetes_tests::{Cluster, Pod, bulkhead, endpoints, helm, shipped, traffic};
use bulkhead_tests::error::LabError;

/// Another name than that of the chart: whoever installs chooses it.
const RELEASE: &str = "tenants";
/// What is gone over to.
const NEXT: &str = "0.1.1";

/// The image to begin with.
fn first_image(cluster: &Cluster) -> Result<PathBuf, LabError> {
    let Some(archive) = env::var_os("BULKHEAD_IMAGE").map(PathBuf::from) else {
        println!("BULKHEAD_IMAGE is not set: the image is one of the development build");
        return bulkhead::image(cluster);
    };
    labels_are_whole(&archive)?;
    Ok(archive)
}

fn labels_are_whole(archive: &Path) -> Result<(), LabError> {
    let labels = shipped::labels(archive)?;
    println!("{}: {labels:?}", archive.display());
    let revision = labels["revision"].trim_end_matches("-dirty");
    assert!(revision.len() == 40 && revision.chars().all(|c| c.is_ascii_hexdigit()), "{labels:?}");
    assert_eq!(labels["version"], env!("CARGO_PKG_VERSION"));
    for (label, value) in [("title", "bulkhead"), ("licenses", "Apache-2.0"), ("source", env!("CARGO_PKG_REPOSITORY"))]
    {
        assert_eq!(labels[label], value, "{labels:?}");
    }
    Ok(())
}

/// All pods of Bulkhead's have this image, and are ready; its programs say their version.
fn runs(cluster: &Cluster, image: &str) -> Result<(), LabError> {
    bulkhead::await_ready(cluster)?;
    let kubectl = cluster.kubectl();
    let pods = kubectl.json(&["-n", NAMESPACE, "get", "pods", "-l", "app.kubernetes.io/name=bulkhead"])?;
    let pods = pods["items"].as_array().unwrap();
    assert!(pods.len() >= cluster.nodes().len() + 2, "{}", pods.len());
    for pod in pods {
        let containers =
            ["initContainers", "containers"].map(|key| pod["spec"][key].as_array().cloned().unwrap_or_default());
        for container in containers.iter().flatten() {
            assert_eq!(container["image"], image, "{}", pod["metadata"]["name"]);
        }
    }
    for node in cluster.nodes() {
        let ready = on(cluster, node.name(), "curl -sf http://127.0.0.1:9470/readyz")?;
        assert!(ready.starts_with("ready"), "{}: {ready}", node.name());
    }
    let agent = bulkhead::agent_on(cluster, "n1")?;
    for (pod, program) in [("deploy/bulkhead-controller", "bulkhead"), (&agent, "bulkhead"), (&agent, "bulkhead-agent")]
    {
        let said = kubectl.exec_ok(NAMESPACE, pod, &[program, "--version"])?;
        assert_eq!(said.trim(), format!("{program} {}", env!("CARGO_PKG_VERSION")));
    }
    let status = kubectl.exec_ok(NAMESPACE, &agent, &["bulkhead", "agent", "status"])?;
    assert!(status.contains("Ready:       yes"), "{status}");
    Ok(())
}

#[test]
fn a_release_is_installed_upgraded_under_traffic_and_removed() -> Result<(), LabError> {
    let cluster = Cluster::builder().start()?;
    let clean = everywhere(&cluster, NETWORKING)?;

    println!("helm install");
    cluster.import(&first_image(&cluster)?)?;
    let said = helm::install(&cluster, RELEASE, &[])?;
    assert!(said.contains("STATUS: deployed") && said.contains("rollout status daemonset/bulkhead-agent"), "{said}");
    runs(&cluster, IMAGE)?;
    create(&cluster, &["a", "b"])?;
    let (one, two) = (Pod::start(&cluster, "a", "one", "n1")?, Pod::start(&cluster, "a", "two", "n2")?);
    let stranger = Pod::start(&cluster, "b", "stranger", "n2")?;
    await_reach(&one, two.address())?;
    await_reach(&two, one.address())?;
    await_silence(&stranger, one.address())?;
    await_silence(&stranger, two.address())?;
    println!("{}", kubectl_bulkhead(&cluster, &["tenant", "list"])?);

    println!("helm upgrade to {NEXT}, under traffic");
    let name = IMAGE.replace(env!("CARGO_PKG_VERSION"), NEXT);
    cluster.import(&bulkhead::image_named(&cluster, &name)?)?;
    let (from, to) = (endpoints::of_pod(&one)?, endpoints::of_pod(&two)?);
    let pings = traffic::ping(&[(&from, &to), (&to, &from)])?;
    let connections = traffic::connect(&[(&from, &to)], 5)?;
    helm::upgrade(&cluster, RELEASE, &helm::chart_of_version(&cluster, NEXT)?, &["log.level=debug"])?;
    runs(&cluster, &name)?;
    traffic::expect_none_lost(pings, "an upgrade by Helm")?;
    traffic::expect_whole(connections, "an upgrade by Helm")?;
    let agents = cluster.kubectl().json(&["-n", NAMESPACE, "get", "daemonset", "bulkhead-agent"])?.to_string();
    let endpoints = cluster.etcd_client().endpoints;
    assert!(agents.contains("--log-level=debug") && agents.contains(&endpoints), "{agents}");
    let later = Pod::start(&cluster, "a", "later", "n1")?;
    await_reach(&later, two.address())?;
    await_silence(&stranger, later.address())?;

    println!("deploy/uninstall");
    let said = bulkhead::uninstall(&cluster)?;
    assert!(said.ends_with("uninstall: done\n"), "{said}");
    expect_nothing_left(&cluster, &clean)?;
    let releases = helm::helm(&cluster, &["list", "--all", "--all-namespaces", "--short"])?;
    assert_eq!(releases.trim(), "");
    Ok(())
}
