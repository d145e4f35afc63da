//! Bulkhead as a release of Helm, by the commands that `docs/install.md` prints.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bulkhead_tests::error::{LabError, Tried};

use crate::bulkhead::{self, NAMESPACE};
use crate::cluster::Cluster;

/// Runs Helm on the infra machine as an administrator; what it says.
pub fn helm(cluster: &Cluster, arguments: &[&str]) -> Result<String, LabError> {
    let mut command = Command::new(cluster.programs().get("helm")?);
    command.args(arguments).args(["--namespace", NAMESPACE]).env_clear();
    command.env("KUBECONFIG", cluster.kubectl().kubeconfig()).env("HOME", cluster.dir().join("home"));
    cluster.underlay().infra.exec_of(command, &[])
}

/// Installs the chart of this tree, whatever becomes of it; its image is on the nodes. `values` as `--set` takes them.
pub fn install(cluster: &Cluster, release: &str, values: &[&str]) -> Result<String, LabError> {
    bulkhead::prepare(cluster, values)?;
    let (chart, own) = (bulkhead::chart(), bulkhead::values(cluster));
    let mut arguments = vec!["install", release, path(&chart)?, "--create-namespace"];
    for value in own.iter().map(String::as_str).chain(values.iter().copied()) {
        arguments.extend(["--set", value]);
    }
    helm(cluster, &arguments)
}

/// Goes over to another chart with further values; those of the installation stay.
pub fn upgrade(cluster: &Cluster, release: &str, chart: &Path, values: &[&str]) -> Result<String, LabError> {
    let mut arguments = vec!["upgrade", release, path(chart)?, "--reset-then-reuse-values"];
    arguments.extend(values.iter().flat_map(|value| ["--set", *value]));
    helm(cluster, &arguments)
}

/// A copy of the chart, of another version of Bulkhead.
pub fn chart_of_version(cluster: &Cluster, version: &str) -> Result<PathBuf, LabError> {
    let (from, to) = (bulkhead::chart(), cluster.dir().join(format!("chart-{version}")));
    copy(&from, &to)?;
    let file = to.join("Chart.yaml");
    let text = fs::read_to_string(&file).tried(|| format!("read {}", file.display()))?;
    let own = env!("CARGO_PKG_VERSION");
    fs::write(&file, text.replace(own, version)).tried(|| format!("write {}", file.display()))?;
    Ok(to)
}

fn copy(from: &Path, to: &Path) -> Result<(), LabError> {
    let what = || format!("copy {} to {}", from.display(), to.display());
    fs::create_dir_all(to).tried(what)?;
    for entry in fs::read_dir(from).tried(what)? {
        let path = entry.tried(what)?.path();
        let target = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy(&path, &target)?;
        } else {
            fs::copy(&path, &target).tried(what)?;
        }
    }
    Ok(())
}

fn path(path: &Path) -> Result<&str, LabError> {
    let answer = || format!("{} is no text", path.display());
    path.to_str().ok_or_else(|| LabError::Refused { what: "name a folder to Helm".into(), answer: answer() })
}
