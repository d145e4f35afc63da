//! A pod of the lab's own image on a chosen node: it answers on HTTP port 8080 and has a shell with the usual tools.

use std::net::IpAddr;
use std::process::Output;
use std::time::Duration;

use bulkhead_tests::error::LabError;
use bulkhead_tests::wait;
use serde_json::json;

use crate::cluster::Cluster;
use crate::images::AGNHOST;
use crate::kubectl::Kubectl;

/// How long a pod may take to start.
const START: Duration = Duration::from_mins(3);
/// How long kubectl may take to get at a pod that runs.
const REACHED: Duration = Duration::from_mins(1);
/// How long a new namespace may take to have its service account: its controller may not have noticed yet that the API server
/// is back.
const ACCOUNT: Duration = Duration::from_mins(3);
/// The port that its web server listens on.
pub const WEB: u16 = 8080;

/// A pod that runs. It is the cluster's and outlives this value.
#[derive(Debug, Clone)]
pub struct Pod {
    kubectl: Kubectl,
    namespace: String,
    name: String,
    uid: String,
    address: IpAddr,
}

impl Pod {
    /// Creates the pod and waits until it is ready. The namespace exists.
    pub fn start(cluster: &Cluster, namespace: &str, name: &str, node: &str) -> Result<Self, LabError> {
        let kubectl = cluster.kubectl().clone();
        ask(&kubectl, namespace, name, node)?;
        Self::find(&kubectl, namespace, name)
    }

    /// Waits until a pod is ready that somebody else created.
    pub fn find(kubectl: &Kubectl, namespace: &str, name: &str) -> Result<Self, LabError> {
        let refused = |answer: String| LabError::Refused { what: format!("start pod {namespace}/{name}"), answer };
        if let Err(error) = kubectl.wait("condition=Ready", &["-n", namespace, "pod", name], START) {
            let events = kubectl.run(&["-n", namespace, "describe", "pod", name]).unwrap_or_default();
            return Err(refused(format!("{error}\n{events}")));
        }
        let pod = kubectl.json(&["-n", namespace, "get", "pod", name])?;
        let address = pod["status"]["podIP"].as_str().and_then(|text| text.parse().ok());
        let address = address.ok_or_else(|| refused("it has no address".into()))?;
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        Ok(Self { kubectl: kubectl.clone(), namespace: namespace.to_owned(), name: name.to_owned(), uid, address })
    }

    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The UID of its object.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// Its address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Runs a program in it, whatever its exit status.
    pub fn exec(&self, command: &[&str]) -> Result<Output, LabError> {
        self.kubectl.exec(&self.namespace, &self.name, command)
    }

    /// Runs a program in it; anything but success is an error.
    pub fn exec_ok(&self, command: &[&str]) -> Result<String, LabError> {
        self.kubectl.exec_ok(&self.namespace, &self.name, command)
    }

    /// Whether a program in it succeeds. Where kubectl could not run it there is no answer, and it is asked again.
    fn succeeds(&self, command: &[&str]) -> Result<bool, LabError> {
        wait::until_or(&format!("a program being run in {}", self.full_name()), REACHED, || {
            let output = self.exec(command).map_err(|error| error.to_string())?;
            let said = String::from_utf8_lossy(&output.stderr);
            match output.status.success() {
                false if !said.contains("command terminated with exit code") => Err(said.into_owned()),
                success => Ok(success),
            }
        })
    }

    /// Whether one of three echo requests is answered within a second each.
    pub fn pings(&self, to: IpAddr) -> Result<bool, LabError> {
        self.succeeds(&["sh", "-c", &format!("for i in 1 2 3; do ping -c1 -W1 {to} && exit; done; exit 1")])
    }

    /// Whether a web server at `host:port` answers within two seconds.
    pub fn fetches(&self, from: &str) -> Result<bool, LabError> {
        self.succeeds(&["curl", "-sf", "-m", "2", "-o", "/dev/null", &format!("http://{from}/")])
    }

    /// How often its container was started again.
    pub fn restarts(&self) -> Result<u64, LabError> {
        let pod = self.kubectl.json(&["-n", &self.namespace, "get", "pod", &self.name])?;
        Ok(pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or_default())
    }
}

/// Asks for a pod without waiting for it. The API server refuses it until the namespace, which may be new, has its service
/// account.
pub fn ask(kubectl: &Kubectl, namespace: &str, name: &str, node: &str) -> Result<(), LabError> {
    wait::until_or(&format!("pod {namespace}/{name} being accepted"), ACCOUNT, || {
        kubectl.apply(&manifest(namespace, name, node)).map(drop).map_err(|error| error.to_string())
    })
}

/// The pod's manifest.
pub fn manifest(namespace: &str, name: &str, node: &str) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "tolerations": [{"operator": "Exists"}],
            "containers": [{
                "name": "web",
                "image": AGNHOST,
                "imagePullPolicy": "Never",
                "args": ["netexec", format!("--http-port={WEB}")],
            }],
        },
    })
    .to_string()
}
