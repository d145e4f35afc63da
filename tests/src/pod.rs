//! A pod: a namespace wired by the product's CNI plugin.

use std::net::Ipv4Addr;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::endpoint::Endpoint;
use crate::error::LabError;
use crate::frame::{self, Mac};
use crate::netns::Netns;
use crate::runtime::{Container, Runtime};

/// What a pod may be given beside its name.
#[derive(Debug, Clone)]
pub struct PodSpec {
    /// Towards the pod, bits per second.
    pub ingress: Option<u64>,
    /// From the pod, bits per second.
    pub egress: Option<u64>,
    /// The interface's name.
    pub interface: String,
    /// The config's CNI version.
    pub version: String,
}

impl Default for PodSpec {
    fn default() -> Self {
        Self { ingress: None, egress: None, interface: "eth0".into(), version: "1.0.0".into() }
    }
}

impl PodSpec {
    /// Limits in bits per second; 0 is none.
    pub fn limited(ingress: u64, egress: u64) -> Self {
        let some = |rate| Some(rate).filter(|rate| *rate > 0);
        Self { ingress: some(ingress), egress: some(egress), ..Self::default() }
    }

    /// The `runtimeConfig` that containerd would give.
    pub fn runtime_config(&self) -> Value {
        let mut bandwidth = json!({});
        // As containerd does: the burst is the largest that the plugin's type holds.
        let burst = u64::from(u32::MAX);
        if let Some(rate) = self.ingress {
            bandwidth["ingressRate"] = rate.into();
            bandwidth["ingressBurst"] = burst.into();
        }
        if let Some(rate) = self.egress {
            bandwidth["egressRate"] = rate.into();
            bandwidth["egressBurst"] = burst.into();
        }
        json!({"bandwidth": bandwidth})
    }
}

/// A pod that runs. Dropping it takes its namespace away without a DEL, as a crash would; see [`Pod::delete`].
#[derive(Debug)]
pub struct Pod {
    endpoint: Endpoint,
    container: Container,
    result: Value,
    spec: PodSpec,
    runtime: Runtime,
    mac: Mac,
    host_mac: Mac,
}

impl Pod {
    /// ADDs a pod whose namespace exists, and starts its servers.
    pub fn attach(
        runtime: &Runtime,
        netns: Arc<Netns>,
        container: Container,
        label: &str,
        spec: &PodSpec,
    ) -> Result<Self, LabError> {
        let mut call = runtime.call_for("ADD", &container);
        call.with("cniVersion", spec.version.clone().into()).with("runtimeConfig", spec.runtime_config());
        let what = format!("ADD of {label}");
        let result = call.run()?.ok(&what)?.json();
        let malformed = || LabError::Refused { what: what.clone(), answer: result.to_string() };
        let address = result["ips"][0]["address"].as_str().ok_or_else(malformed)?;
        let address: Ipv4Addr = address.split('/').next().and_then(|text| text.parse().ok()).ok_or_else(malformed)?;
        let mac = |index: usize| result["interfaces"][index]["mac"].as_str().and_then(frame::parse_mac);
        let host_mac = mac(0).ok_or_else(malformed)?;
        let mac = mac(1).ok_or_else(malformed)?;
        let endpoint = Endpoint::start(label, address, netns)?;
        Ok(Self { endpoint, container, result, spec: spec.clone(), runtime: runtime.clone(), mac, host_mac })
    }

    /// What probes need.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.endpoint.address()
    }

    /// Where it is.
    pub fn netns(&self) -> &Arc<Netns> {
        self.endpoint.netns()
    }

    /// What its runtime knows of it.
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// The ADD's result.
    pub fn result(&self) -> &Value {
        &self.result
    }

    /// The MAC address of its device.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// The MAC address that it sends to: the device on the host.
    pub fn host_mac(&self) -> Mac {
        self.host_mac
    }

    /// The device on the host.
    pub fn host_interface(&self) -> &str {
        self.result["interfaces"][0]["name"].as_str().unwrap_or_default()
    }

    /// CHECK as the runtime makes it.
    pub fn check(&self) -> Result<(), LabError> {
        self.call("CHECK").run()?.ok(&format!("CHECK of {}", self.endpoint)).map(drop)
    }

    /// A call about this pod with `prevResult` and capabilities as the runtime gives them.
    pub fn call(&self, command: &str) -> crate::runtime::Call {
        let mut call = self.runtime.call_for(command, &self.container);
        call.with("cniVersion", self.spec.version.clone().into())
            .with("runtimeConfig", self.spec.runtime_config())
            .with("prevResult", self.result.clone());
        call
    }

    /// DEL, then the namespace goes.
    pub fn delete(self) -> Result<(), LabError> {
        self.call("DEL").run()?.ok(&format!("DEL of {}", self.endpoint)).map(drop)
    }
}
