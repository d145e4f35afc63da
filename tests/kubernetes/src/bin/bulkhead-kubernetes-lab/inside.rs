//! `kubectl` and `exec`: for a cluster that another process runs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use bulkhead_kubernetes_tests::programs::Programs;
use bulkhead_tests::error::{LabError, Tried};
use bulkhead_tests::netns::Netns;
use bulkhead_tests::registry::LabId;
use bulkhead_tests::standing;

fn refused(answer: &str) -> LabError {
    LabError::Refused { what: "use a cluster".into(), answer: answer.to_owned() }
}

/// The cluster that is up, and its namespaces.
fn standing_cluster() -> Result<(LabId, Vec<(String, PathBuf)>), LabError> {
    let labs = standing::labs(None)?;
    let lab = labs.iter().find(|lab| lab.id.dir().join("admin.conf").exists());
    let lab = lab.ok_or_else(|| refused("none is up; start one with `bulkhead-kubernetes-lab up`"))?;
    Ok((lab.id, standing::names(lab.id)))
}

fn finish(netns: &Netns, command: Command) -> Result<ExitCode, LabError> {
    let what = format!("wait for {}", command.get_program().display());
    let status = netns.spawn(command)?.wait().tried(|| what)?;
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
}

fn netns_of(names: &[(String, PathBuf)], name: &str) -> Result<Netns, LabError> {
    let found = names.iter().find(|(label, _)| label == name);
    let known: Vec<&str> = names.iter().map(|(label, _)| label.as_str()).collect();
    let (_, path) = found.ok_or_else(|| refused(&format!("there is no {name}, but {}", known.join(", "))))?;
    Netns::open(path)
}

/// Runs kubectl on the infra machine.
pub fn kubectl(arguments: &[String]) -> Result<ExitCode, LabError> {
    let (id, names) = standing_cluster()?;
    let mut command = Command::new(Programs::find()?.get("kubectl")?);
    command.arg("--kubeconfig").arg(id.dir().join("admin.conf")).args(arguments).env("HOME", id.dir().join("home"));
    finish(&netns_of(&names, "infra")?, command)
}

/// Runs a program in all namespaces of a node, or in the only one of another machine.
pub fn exec(name: &str, command: &[String]) -> Result<ExitCode, LabError> {
    let (_, names) = standing_cluster()?;
    let netns = netns_of(&names, name)?;
    let [program, arguments @ ..] = command else { return Err(refused("exec needs a program")) };
    let mut child = match first_process(netns.path()) {
        Some(pid) => {
            let mut enter = Command::new("nsenter");
            enter.args(["--target", &pid.to_string(), "--mount", "--uts", "--ipc", "--pid", program]);
            enter
        }
        None => Command::new(program),
    };
    child.args(arguments);
    finish(&netns, child)
}

/// The process that is the first of a PID namespace of its own and is in this network namespace.
fn first_process(netns: &Path) -> Option<u32> {
    let wanted = fs::metadata(netns).ok()?;
    let pids = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.into_iter().find(|pid| {
        let same = fs::metadata(format!("/proc/{pid}/ns/net"))
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == (wanted.dev(), wanted.ino()));
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
        same && numbers.split_whitespace().skip(1).eq(["1"])
    })
}
