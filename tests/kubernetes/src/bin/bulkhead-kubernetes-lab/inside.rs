//! `kubectl` and `exec`: for a cluster that another process runs.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use bulkhead_kubernetes_tests::disk::PROGRAMS;
use bulkhead_kubernetes_tests::programs::Programs;
use bulkhead_kubernetes_tests::tenants;
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

/// Runs kubectl on the infra machine, with `kubectl bulkhead` if that is built.
pub fn kubectl(arguments: &[String]) -> Result<ExitCode, LabError> {
    let (id, names) = standing_cluster()?;
    let programs = Programs::find()?;
    let plugin = tenants::plugin(&id.dir()).ok();
    let folders = [Some(programs.dir()), plugin.as_deref().and_then(Path::parent)];
    let mut command = kubectl_of(&programs.get("kubectl")?, &id.dir(), arguments);
    command.env("PATH", path_with(folders.into_iter().flatten(), std::env::var_os("PATH")));
    finish(&netns_of(&names, "infra")?, command)
}

/// kubectl takes no flag before the name of a plugin, so the environment says which cluster.
fn kubectl_of(program: &Path, lab: &Path, arguments: &[String]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env("KUBECONFIG", lab.join("admin.conf")).env("HOME", lab.join("home"));
    command
}

/// A `PATH` with these folders first.
fn path_with<'a>(folders: impl IntoIterator<Item = &'a Path>, before: Option<OsString>) -> OsString {
    let mut path = OsString::new();
    for part in folders.into_iter().map(|folder| folder.as_os_str().to_owned()).chain(before) {
        if !path.is_empty() {
            path.push(":");
        }
        path.push(part);
    }
    path
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
            enter.env("PATH", path_with([Path::new(PROGRAMS)], std::env::var_os("PATH")));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubectl_has_its_plugins_name_first() {
        let words = ["bulkhead".to_owned(), "tenant".to_owned(), "list".to_owned()];
        let command = kubectl_of(Path::new("/p/kubectl"), Path::new("/lab"), &words);
        assert!(command.get_args().eq(["bulkhead", "tenant", "list"]));
        let set = |name: &str| command.get_envs().find(|(key, _)| *key == name).and_then(|(_, value)| value);
        assert_eq!(set("KUBECONFIG"), Some("/lab/admin.conf".as_ref()));
    }

    #[test]
    fn folders_come_before_the_path_that_was() {
        let folders = || [Path::new("/a"), Path::new("/b")];
        assert_eq!(path_with(folders(), Some("/usr/bin:/bin".into())), "/a:/b:/usr/bin:/bin");
        assert_eq!(path_with(folders(), None), "/a:/b");
    }
}
