//! The etcd records that people see, in K8S-OVS' exact JSON: config, subnets, netnamespaces; and one of ours in its
//! style, the wish for a restore.
//!
//! They are mailbox and mirror (design, section 2), never what agents obey. A record is read leniently enough to be
//! written back: fields that we do not know survive, in their order, behind ours.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

/// The largest record that people may write, in bytes.
pub const MAX_BYTES: usize = 64 << 10;
/// What the leader's own fields may add to it, an answer among them: a record that was read can be answered and read again.
pub const MAX_ADDED: usize = 4 << 10;

/// Why a value is not a record.
#[derive(Debug, Error)]
pub enum RecordError {
    /// Not JSON, or a field of the wrong type.
    #[error("the record is not valid: {0}; write it as K8S-OVS does, for example {1}")]
    Json(#[source] serde_json::Error, &'static str),
    /// Larger than [`MAX_BYTES`], our fields aside.
    #[error("the record has {0} bytes; the largest that is read has 65536")]
    TooLarge(usize),
}

/// What all these records can do.
pub trait Record: Serialize + DeserializeOwned {
    /// A record as a user would write it, for error messages.
    const EXAMPLE: &'static str;

    /// Fields that we do not know.
    fn unknown(&self) -> &Map<String, Value>;

    /// Reads a record.
    fn parse(value: &[u8]) -> Result<Self, RecordError> {
        let too_large = || RecordError::TooLarge(value.len());
        if value.len() > MAX_BYTES + MAX_ADDED {
            return Err(too_large());
        }
        let record: Self = serde_json::from_slice(value).map_err(|source| RecordError::Json(source, Self::EXAMPLE))?;
        // Only what a person added can be large: ours is what the leader wrote into a record that was small enough.
        let added = || serde_json::to_vec(record.unknown()).map_or(0, |json| json.len());
        if value.len() > MAX_BYTES && added() > MAX_BYTES { Err(too_large()) } else { Ok(record) }
    }

    /// The record as K8S-OVS would write it: compact JSON, its field order, unknown fields last.
    fn to_json(&self) -> Vec<u8> {
        // Strings, numbers, booleans and maps with string keys cannot fail to serialise.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// `<prefix>/config`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ConfigRecord {
    /// The cluster's name: a segment of every other key.
    pub name: String,
    /// The pods' network in CIDR form; for dual-stack one of each family, separated by a comma.
    pub network: String,
    /// Host bits of one node's subnet; both families use the same.
    pub host_subnet_length: u64,
    /// The services' network in CIDR form; may be empty; families separated by a comma.
    #[serde(default)]
    pub service_network: String,
    /// `k8s-ovs-multitenant` or `k8s-ovs-subnet`.
    #[serde(default)]
    pub plugin_name: String,
    /// Fields that we do not know.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl Record for ConfigRecord {
    const EXAMPLE: &'static str = r#"{"Name":"k8ssdn","Network":"172.11.0.0/16","HostSubnetLength":10,"ServiceNetwork":"10.96.0.0/12","PluginName":"k8s-ovs-multitenant"}"#;

    fn unknown(&self) -> &Map<String, Value> {
        &self.unknown
    }
}

/// `<prefix>/<Name>/subnets/<HostIP>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SubnetRecord {
    /// The node's name.
    #[serde(default)]
    pub host: String,
    /// The node's underlay address.
    #[serde(rename = "HostIP", default)]
    pub host_ip: String,
    /// The node's subnet in CIDR form, empty while it waits for one; families separated by a comma.
    #[serde(default)]
    pub subnet: String,
    /// Set by a machine that asks for a subnet; the leader clears it.
    #[serde(default)]
    pub assign: bool,
    /// Why the leader refused it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// Fields that we do not know.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl Record for SubnetRecord {
    const EXAMPLE: &'static str = r#"{"Host":"lb1","HostIP":"10.0.0.9","Subnet":"","Assign":true}"#;

    fn unknown(&self) -> &Map<String, Value> {
        &self.unknown
    }
}

impl SubnetRecord {
    /// The record by which a machine asks for a subnet.
    pub fn asking(host: &str, host_ip: std::net::IpAddr) -> Self {
        Self {
            host: host.to_owned(),
            host_ip: host_ip.to_string(),
            subnet: String::new(),
            assign: true,
            error: String::new(),
            unknown: Map::new(),
        }
    }
}

/// `<prefix>/<Name>/netnamespaces/<namespace>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetNamespaceRecord {
    /// The namespace's name, as in the key.
    #[serde(default)]
    pub net_name: String,
    /// The tenant network; absent asks the leader for one. Wider than a `NetID` so that a bad number is answered, not lost.
    #[serde(rename = "NetID", default, skip_serializing_if = "Option::is_none")]
    pub net_id: Option<i64>,
    /// `join`, `isolate`, `global`, or empty.
    #[serde(default)]
    pub action: String,
    /// The target of a join.
    #[serde(default)]
    pub namespace: String,
    /// Why the leader refused the action.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// Fields that we do not know.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl Record for NetNamespaceRecord {
    const EXAMPLE: &'static str = r#"{"NetName":"a","NetID":10,"Action":"join","Namespace":"b"}"#;

    fn unknown(&self) -> &Map<String, Value> {
        &self.unknown
    }
}

impl NetNamespaceRecord {
    /// The record by which a namespace asks for its numbers.
    pub fn asking(namespace: &crate::name::Namespace) -> Self {
        Self {
            net_name: namespace.to_string(),
            net_id: None,
            action: String::new(),
            namespace: String::new(),
            error: String::new(),
            unknown: Map::new(),
        }
    }
}

/// `<prefix>/<Name>/restore`: etcd was restored or replaced, the leader is to raise the epoch. It deletes the record then.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RestoreRecord {
    /// Who asked and why: free text.
    #[serde(default)]
    pub requested: String,
    /// An epoch that agents have seen: the new one must exceed it. Absent: whatever the ledger says will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub above: Option<u64>,
    /// Why the leader cannot do it yet.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// Fields that we do not know.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl Record for RestoreRecord {
    const EXAMPLE: &'static str = r#"{"Requested":"etcd was restored from a snapshot"}"#;

    fn unknown(&self) -> &Map<String, Value> {
        &self.unknown
    }
}

impl RestoreRecord {
    /// The record by which somebody asks.
    pub fn asking(requested: &str, above: Option<u64>) -> Self {
        Self { requested: requested.to_owned(), above, error: String::new(), unknown: Map::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<R: Record>(json: &str) {
        assert_eq!(String::from_utf8(R::parse(json.as_bytes()).unwrap().to_json()).unwrap(), json);
    }

    #[test]
    fn k8s_ovs_records_round_trip_to_the_byte() {
        round_trip::<ConfigRecord>(ConfigRecord::EXAMPLE);
        round_trip::<RestoreRecord>(RestoreRecord::EXAMPLE);
        round_trip::<RestoreRecord>(r#"{"Requested":"","Error":"later","Ticket":7}"#);
        round_trip::<RestoreRecord>(r#"{"Requested":"","Above":3,"Ticket":7}"#);
        round_trip::<SubnetRecord>(
            r#"{"Host":"sdn-test1","HostIP":"10.0.0.197","Subnet":"172.11.0.0/22","Assign":false}"#,
        );
        round_trip::<NetNamespaceRecord>(r#"{"NetName":"helloworld1","NetID":300924,"Action":"","Namespace":""}"#);
    }

    #[test]
    fn unknown_fields_survive_in_their_order() {
        round_trip::<NetNamespaceRecord>(
            r#"{"NetName":"a","NetID":10,"Action":"","Namespace":"","Zeta":{"b":1,"a":[1,2]},"Alpha":null}"#,
        );
    }

    #[test]
    fn broken_records_are_answered_with_an_example() {
        for bad in [
            "",
            "{",
            "[]",
            "null",
            r#"{"NetName":"a","NetID":"10"}"#,
            r#"{"NetName":"a","NetID":1.5}"#,
            r#"{"NetName":"a","NetName":"b"}"#,
        ] {
            let error = NetNamespaceRecord::parse(bad.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("NetName"), "{bad}: {error}");
        }
        assert!(matches!(
            NetNamespaceRecord::parse(&vec![b' '; MAX_BYTES + MAX_ADDED + 1]),
            Err(RecordError::TooLarge(_))
        ));
    }

    #[test]
    fn the_largest_record_can_be_answered_and_is_read_again() {
        let frame = r#"{"NetName":"a","Action":"join","Namespace":"b","Note":""}"#;
        let note = |length: usize| frame.replace(r#"Note":""#, &format!(r#"Note":"{}"#, "x".repeat(length)));
        let largest = note(MAX_BYTES - frame.len());
        let mut record = NetNamespaceRecord::parse(largest.as_bytes()).unwrap();
        (record.net_id, record.error) = (Some(10), "y".repeat(MAX_ADDED / 2));
        let answered = record.to_json();
        assert!(answered.len() > MAX_BYTES);
        assert_eq!(NetNamespaceRecord::parse(&answered).unwrap(), record);
        let larger = note(MAX_BYTES);
        assert!(matches!(NetNamespaceRecord::parse(larger.as_bytes()), Err(RecordError::TooLarge(_))));
    }

    #[test]
    fn numbers_out_of_range_are_kept_to_be_answered() {
        for number in [-1, 1 << 24, i64::MAX] {
            let json = format!(r#"{{"NetName":"a","NetID":{number},"Action":"","Namespace":""}}"#);
            assert_eq!(NetNamespaceRecord::parse(json.as_bytes()).unwrap().net_id, Some(number));
        }
    }
}
