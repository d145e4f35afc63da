//! The upstream tests of Kubernetes on networking pass on Bulkhead, in both modes of kube-proxy. The two run side by side:
//! most of their time is waiting. Needs root and the programs of `build/build.sh`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use bulkhead_kubernetes_tests::conformance::{self, SIG_NETWORK};
use bulkhead_kubernetes_tests::{Cluster, ProxyMode, bulkhead};
use bulkhead_tests::error::LabError;

/// As many as this Kubernetes has; fewer would mean that the selection missed some.
const SPECS: &str = "45 Passed | 0 Failed";

fn passes(proxy: ProxyMode) -> Result<(), LabError> {
    let cluster = Cluster::builder().proxy(proxy).start()?;
    bulkhead::install(&cluster, &[])?;
    let log = cluster.dir().join("e2e.log");
    let summary = conformance::run(&cluster, SIG_NETWORK, None, &log)?;
    println!("{proxy:?}:\n{summary}");
    let end = bulkhead_tests::process::tail(&log, 200);
    assert!(summary.passed && summary.lines.iter().any(|line| line.contains(SPECS)), "{proxy:?}:\n{summary}\n{end}");
    Ok(())
}

#[test]
fn upstream_network_specs_pass_with_iptables() -> Result<(), LabError> {
    passes(ProxyMode::Iptables)
}

#[test]
fn upstream_network_specs_pass_with_nftables() -> Result<(), LabError> {
    passes(ProxyMode::Nftables)
}
