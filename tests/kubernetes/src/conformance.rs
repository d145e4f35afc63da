//! The upstream tests, `e2e.test`, against a cluster of the lab.

use std::fmt;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use bulkhead_tests::error::{LabError, Tried};

use crate::cluster::Cluster;

/// The specs on networking that a cluster must pass to be called conformant.
pub const SIG_NETWORK: &str = r"\[sig-network\].*\[Conformance\]";

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Summary {
    /// The closing lines: how many ran, passed and failed.
    pub lines: Vec<String>,
    /// The specs that failed.
    pub failures: Vec<String>,
    /// Whether all passed, and at least one ran.
    pub passed: bool,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.failures.iter().chain(&self.lines) {
            writeln!(f, "{line}")?;
        }
        Ok(())
    }
}

/// Runs the specs whose names match `focus` but not `skip`, one at a time; all that they say goes to the file `log`.
pub fn run(cluster: &Cluster, focus: &str, skip: Option<&str>, log: &Path) -> Result<Summary, LabError> {
    let open = || File::options().create(true).append(true).open(log).tried(|| format!("open {}", log.display()));
    fs::write(log, "").tried(|| format!("write {}", log.display()))?;
    let mut command = Command::new(cluster.programs().get("e2e.test")?);
    command
        .arg(format!("--kubeconfig={}", cluster.kubectl().kubeconfig().display()))
        .arg(format!("--kubectl-path={}", cluster.programs().get("kubectl")?.display()))
        .arg(format!("--num-nodes={}", cluster.workers().len()))
        .arg(format!("--ginkgo.focus={focus}"))
        .args(skip.map(|skip| format!("--ginkgo.skip={skip}")))
        .args(["--provider=skeleton", "--disable-log-dump", "--ginkgo.no-color", "--ginkgo.timeout=2h"])
        .env("HOME", cluster.dir().join("home"))
        .current_dir(cluster.dir())
        .stdin(Stdio::null())
        .stdout(open()?)
        .stderr(open()?);
    let status = cluster.underlay().infra.spawn(command)?.wait().tried(|| "wait for e2e.test".into())?;
    let text = fs::read_to_string(log).tried(|| format!("read {}", log.display()))?;
    let lines_with = |marks: &[&str]| -> Vec<String> {
        text.lines()
            .filter(|line| marks.iter().any(|mark| line.trim_start().starts_with(mark)))
            .map(str::to_owned)
            .collect()
    };
    let lines = lines_with(&["Ran ", "SUCCESS! --", "FAIL! --"]);
    let ran = lines.iter().any(|line| line.starts_with("Ran ") && !line.starts_with("Ran 0 "));
    if lines.is_empty() {
        let end = bulkhead_tests::process::tail(log, 20);
        return Err(LabError::Died { name: "e2e.test".into(), status: status.to_string(), log: end });
    }
    Ok(Summary { lines, failures: lines_with(&["[FAIL] "]), passed: status.success() && ran })
}
