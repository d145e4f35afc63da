//! `e2e`: the upstream tests.

use std::path::Path;
use std::process::ExitCode;

use bulkhead_kubernetes_tests::{Cluster, conformance};
use bulkhead_tests::error::{LabError, Tried};
use bulkhead_tests::signals;

/// Runs them on a cluster.
pub fn run(cluster: &Cluster, focus: &str, skip: Option<&str>, log: &Path) -> Result<ExitCode, LabError> {
    let log = std::path::absolute(log).tried(|| format!("find {}", log.display()))?;
    signals::remove_on_signal(cluster.id())?;
    println!("running the specs that match {focus}; their output goes to {}", log.display());
    let summary = conformance::run(cluster, focus, skip, &log)?;
    print!("{summary}");
    Ok(if summary.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
