//! kubectl on the infra machine, as an administrator.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_tests::error::LabError;
use bulkhead_tests::netns::Netns;
use serde_json::Value;

/// The tool, and whom it talks to as whom.
#[derive(Debug, Clone)]
pub struct Kubectl {
    netns: Arc<Netns>,
    program: PathBuf,
    kubeconfig: PathBuf,
    home: PathBuf,
}

impl Kubectl {
    /// `home` is where it keeps its caches.
    pub fn new(netns: Arc<Netns>, program: PathBuf, kubeconfig: PathBuf, home: &Path) -> Self {
        Self { netns, program, kubeconfig, home: home.to_owned() }
    }

    /// The same as another user.
    #[must_use]
    pub fn with_kubeconfig(&self, kubeconfig: &Path) -> Self {
        Self { kubeconfig: kubeconfig.to_owned(), ..self.clone() }
    }

    /// The kubeconfig that it uses.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(arguments).env("HOME", &self.home);
        command
    }

    /// Runs it, whatever it answers.
    pub fn output(&self, arguments: &[&str], input: &[u8]) -> Result<Output, LabError> {
        self.netns.output_of(self.command(arguments), input)
    }

    /// Runs it; anything but success is an error.
    pub fn run(&self, arguments: &[&str]) -> Result<String, LabError> {
        self.netns.exec_of(self.command(arguments), &[])
    }

    /// Applies manifests (YAML or JSON).
    pub fn apply(&self, manifests: &str) -> Result<String, LabError> {
        self.netns.exec_of(self.command(&["apply", "-f", "-"]), manifests.as_bytes())
    }

    /// Creates what manifests name and is not there: one request for each.
    pub fn create(&self, manifests: &str) -> Result<String, LabError> {
        self.netns.exec_of(self.command(&["create", "-f", "-"]), manifests.as_bytes())
    }

    /// Deletes what manifests name, and waits until it is gone.
    pub fn delete(&self, manifests: &str) -> Result<String, LabError> {
        self.netns.exec_of(self.command(&["delete", "--ignore-not-found", "-f", "-"]), manifests.as_bytes())
    }

    /// Runs it with `-o json` and reads the answer.
    pub fn json(&self, arguments: &[&str]) -> Result<Value, LabError> {
        let text = self.run(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).map_err(|error| LabError::Refused {
            what: format!("kubectl {} -o json", arguments.join(" ")),
            answer: format!("not JSON ({error}): {text}"),
        })
    }

    /// Waits for a condition, such as `condition=Ready`, of the objects that the arguments select.
    pub fn wait(&self, condition: &str, objects: &[&str], limit: Duration) -> Result<String, LabError> {
        let (condition, limit) = (format!("--for={condition}"), format!("--timeout={}s", limit.as_secs()));
        self.run(&[&["wait", &condition, &limit], objects].concat())
    }

    /// Runs a program in a pod.
    pub fn exec(&self, namespace: &str, pod: &str, command: &[&str]) -> Result<Output, LabError> {
        self.output(&[&["-n", namespace, "exec", pod, "--"], command].concat(), &[])
    }

    /// Runs a program in a pod; anything but success is an error.
    pub fn exec_ok(&self, namespace: &str, pod: &str, command: &[&str]) -> Result<String, LabError> {
        self.run(&[&["-n", namespace, "exec", pod, "--"], command].concat())
    }
}
