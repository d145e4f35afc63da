//! A container runtime's part: CNI calls of the real plugin, with environment, stdin and capabilities as containerd gives
//! them. Calls may run concurrently.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::{LabError, Tried};
use crate::netns::Netns;

/// A node's runtime.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// The host's namespace, where the plugin runs.
    pub netns: Arc<Netns>,
    /// The plugin.
    pub plugin: PathBuf,
    /// The agent's socket.
    pub socket: PathBuf,
    /// Where DELs wait for the agent.
    pub spool: PathBuf,
}

/// One call, to be changed as a test needs it before it is made.
#[derive(Debug, Clone)]
pub struct Call {
    runtime: Runtime,
    /// `CNI_*` variables.
    pub environment: Vec<(String, String)>,
    /// The network config.
    pub config: Value,
    /// Sent instead of the config, if set.
    pub raw_stdin: Option<Vec<u8>>,
}

/// What the plugin answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its exit code; -1 if a signal ended it.
    pub exit: i32,
    /// Everything on stdout.
    pub stdout: String,
    /// Everything on stderr.
    pub stderr: String,
    /// From exec to exit.
    pub took: Duration,
}

impl Answer {
    /// Its JSON, null if stdout is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_default()
    }

    /// The CNI error code on stdout.
    pub fn code(&self) -> Option<u64> {
        self.json()["code"].as_u64()
    }

    /// The answer of a call that must succeed.
    pub fn ok(self, what: &str) -> Result<Self, LabError> {
        if self.exit == 0 {
            return Ok(self);
        }
        let answer = format!("exit {}: {}{}", self.exit, self.stdout.trim(), self.stderr.trim());
        Err(LabError::Refused { what: what.to_owned(), answer })
    }
}

impl Runtime {
    /// The config as the agent's conflist has it, for one plugin.
    pub fn config(&self, version: &str) -> Value {
        json!({
            "cniVersion": version,
            "name": "bulkhead",
            "type": "bulkhead-cni",
            "socket": self.socket,
            "spool": self.spool,
            "capabilities": {"bandwidth": true},
        })
    }

    /// A call without a container.
    pub fn call(&self, command: &str) -> Call {
        let environment = vec![
            ("CNI_COMMAND".to_owned(), command.to_owned()),
            ("CNI_PATH".to_owned(), self.plugin.parent().unwrap_or(&self.plugin).display().to_string()),
        ];
        Call { runtime: self.clone(), environment, config: self.config("1.0.0"), raw_stdin: None }
    }

    /// A call for a container's interface.
    pub fn call_for(&self, command: &str, container: &Container) -> Call {
        let mut call = self.call(command);
        call.set("CNI_CONTAINERID", &container.id);
        call.set("CNI_IFNAME", &container.interface);
        call.set("CNI_NETNS", &container.netns.display().to_string());
        call.set(
            "CNI_ARGS",
            &format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}-uid",
                container.namespace, container.pod, container.id, container.pod
            ),
        );
        call
    }
}

/// What a runtime knows of a pod.
#[derive(Debug, Clone)]
pub struct Container {
    /// `CNI_CONTAINERID`.
    pub id: String,
    /// `CNI_IFNAME`.
    pub interface: String,
    /// `CNI_NETNS`.
    pub netns: PathBuf,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
}

impl Call {
    /// Sets a variable, replacing an earlier value.
    pub fn set(&mut self, name: &str, value: &str) -> &mut Self {
        self.unset(name);
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Removes a variable.
    pub fn unset(&mut self, name: &str) -> &mut Self {
        self.environment.retain(|(known, _)| known != name);
        self
    }

    /// Sets a field of the config.
    pub fn with(&mut self, field: &str, value: Value) -> &mut Self {
        self.config[field] = value;
        self
    }

    /// Makes the call and waits for its end.
    pub fn run(&self) -> Result<Answer, LabError> {
        let mut command = Command::new(&self.runtime.plugin);
        command.env_clear().envs(self.environment.iter().cloned());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let stdin = self.raw_stdin.clone().unwrap_or_else(|| self.config.to_string().into_bytes());
        let begin = Instant::now();
        let mut child = self.runtime.netns.spawn_bare(command)?;
        if let Some(mut pipe) = child.stdin.take() {
            // The plugin may refuse its input before it has read it all.
            drop(pipe.write_all(&stdin));
        }
        let output = child.wait_with_output().tried(|| "wait for bulkhead-cni".into())?;
        Ok(Answer {
            exit: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            took: begin.elapsed(),
        })
    }
}
