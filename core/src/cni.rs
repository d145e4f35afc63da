//! CNI's words: versions, error codes, and an ADD's result in each version's form (CNI specification 0.3.1 to 1.1.0).

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A version of the CNI specification that we speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Version {
    /// 0.3.0, whose results are 0.3.1's.
    #[serde(rename = "0.3.0")]
    V0_3_0,
    /// 0.3.1.
    #[serde(rename = "0.3.1")]
    V0_3_1,
    /// 0.4.0: adds CHECK.
    #[serde(rename = "0.4.0")]
    V0_4_0,
    /// 1.0.0: addresses lose their `version`.
    #[serde(rename = "1.0.0")]
    V1_0_0,
    /// 1.1.0: adds GC and STATUS, an interface's MTU.
    #[serde(rename = "1.1.0")]
    V1_1_0,
}

impl Version {
    /// All of them, oldest first.
    pub const ALL: [Self; 5] = [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// As the specification writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version of that name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error's code (CNI specification, section 5, "Error").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u32", try_from = "u32")]
pub enum Code {
    /// 1: the config's `cniVersion` is not one of ours.
    IncompatibleVersion,
    /// 2: a field that we do not support.
    UnsupportedField,
    /// 3: the container is unknown or gone; nothing to clean up.
    UnknownContainer,
    /// 4: a `CNI_` variable is missing or wrong.
    InvalidEnvironment,
    /// 5: reading or writing failed.
    Io,
    /// 6: the config is not JSON.
    Decode,
    /// 7: the config is JSON but wrong.
    InvalidConfig,
    /// 11: the same call may work a little later.
    TryAgainLater,
    /// 50: the network cannot take pods.
    Unavailable,
    /// 51: the network cannot take pods, and those that run are limited.
    UnavailableLimited,
    /// 100: the interface exists in the pod already.
    InterfaceExists,
    /// 101: no address is free.
    AddressPoolFull,
    /// 102: the kernel refused something.
    Kernel,
    /// 103: CHECK found something missing or changed.
    CheckFailed,
    /// 104: a defect of ours.
    Internal,
}

impl Code {
    const ALL: [(Self, u32); 15] = [
        (Self::IncompatibleVersion, 1),
        (Self::UnsupportedField, 2),
        (Self::UnknownContainer, 3),
        (Self::InvalidEnvironment, 4),
        (Self::Io, 5),
        (Self::Decode, 6),
        (Self::InvalidConfig, 7),
        (Self::TryAgainLater, 11),
        (Self::Unavailable, 50),
        (Self::UnavailableLimited, 51),
        (Self::InterfaceExists, 100),
        (Self::AddressPoolFull, 101),
        (Self::Kernel, 102),
        (Self::CheckFailed, 103),
        (Self::Internal, 104),
    ];

    /// Its number.
    pub fn number(self) -> u32 {
        Self::ALL.iter().find(|(code, _)| *code == self).map_or(104, |(_, number)| *number)
    }
}

impl From<Code> for u32 {
    fn from(code: Code) -> Self {
        code.number()
    }
}

impl TryFrom<u32> for Code {
    type Error = String;

    fn try_from(number: u32) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(_, known)| *known == number);
        found.map(|(code, _)| *code).ok_or_else(|| format!("{number} is not a CNI error code of ours"))
    }
}

/// A failed call, as it is told to the runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind.
    pub code: Code,
    /// What failed, in a sentence.
    pub msg: String,
    /// What to do, or the causes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl Failure {
    /// A failure with its two texts.
    pub fn new(code: Code, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: details.into() }
    }

    /// The JSON that goes to stdout.
    pub fn to_json(&self, version: Version) -> Value {
        json!({"cniVersion": version, "code": self.code, "msg": self.msg, "details": self.details})
    }
}

/// What an ADD made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// The device on the host.
    pub host_interface: String,
    /// Its MAC address.
    pub host_mac: String,
    /// The device in the pod: `CNI_IFNAME`.
    pub interface: String,
    /// Its MAC address.
    pub mac: String,
    /// Path of the pod's network namespace: `CNI_NETNS`.
    pub netns: String,
    /// Bytes.
    pub mtu: u32,
    /// The pod's addresses, each with the gateway of its family.
    pub addresses: Vec<(IpNetwork, IpAddr)>,
}

impl Attachment {
    /// The result in a version's form; `dns` is handed through from the config.
    pub fn to_json(&self, version: Version, dns: Option<&Value>) -> Value {
        let mut host = json!({"name": self.host_interface, "mac": self.host_mac});
        let mut pod = json!({"name": self.interface, "mac": self.mac, "sandbox": self.netns});
        if version >= Version::V1_1_0 {
            host["mtu"] = self.mtu.into();
            pod["mtu"] = self.mtu.into();
        }
        let addresses: Vec<Value> = self.addresses.iter().map(|address| ip_json(version, address)).collect();
        let routes = self.addresses.iter().map(|(network, gateway)| {
            let everywhere = if network.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
            json!({"dst": everywhere, "gw": gateway})
        });
        json!({
            "cniVersion": version,
            "interfaces": [host, pod],
            "ips": addresses,
            "routes": routes.collect::<Vec<_>>(),
            "dns": dns.cloned().unwrap_or_else(|| json!({})),
        })
    }
}

fn ip_json(version: Version, (network, gateway): &(IpNetwork, IpAddr)) -> Value {
    let mut ip = json!({"interface": 1, "address": network, "gateway": gateway});
    if version < Version::V1_0_0 {
        ip["version"] = if network.is_ipv4() { "4" } else { "6" }.into();
    }
    ip
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment() -> Attachment {
        Attachment {
            host_interface: "bh1".into(),
            host_mac: "ee:ee:ee:ee:ee:ee".into(),
            interface: "eth0".into(),
            mac: "0a:58:ac:0b:00:02".into(),
            netns: "/run/netns/x".into(),
            mtu: 1450,
            addresses: vec![("172.11.0.2/32".parse().unwrap(), "172.11.0.1".parse().unwrap())],
        }
    }

    #[test]
    fn each_version_has_its_own_form() {
        let old = attachment().to_json(Version::V0_3_1, None);
        assert_eq!(old["ips"][0]["version"], "4");
        assert_eq!(old["interfaces"][0].get("mtu"), None);
        let new = attachment().to_json(Version::V1_1_0, Some(&json!({"nameservers": ["10.96.0.10"]})));
        assert_eq!(new["ips"][0].get("version"), None);
        assert_eq!(new["interfaces"][1]["mtu"], 1450);
        assert_eq!(new["dns"]["nameservers"][0], "10.96.0.10");
        assert_eq!(new["cniVersion"], "1.1.0");
        assert_eq!(new["routes"][0], json!({"dst": "0.0.0.0/0", "gw": "172.11.0.1"}));
    }

    #[test]
    fn codes_are_the_specifications() {
        for (code, number) in Code::ALL {
            assert_eq!(Code::try_from(number), Ok(code));
        }
        assert_eq!(Failure::new(Code::TryAgainLater, "m", "d").to_json(Version::V1_0_0)["code"], 11);
    }
}
