//! What of Kubernetes' objects the plan needs. Everything that cannot be is left out, never guessed.

use std::net::IpAddr;

use bulkhead_core::annotation::{ALLOW_JOIN_FROM, NETWORK, NETWORK_STATUS, SUBNET, VNI};
use bulkhead_core::{Namespace, NodeName};
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::{Namespace as ApiNamespace, Node, Pod};

use crate::objects::{Condition, NamespaceObject, NodeObject};

/// The condition that says whether a node has a network.
pub(super) const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";

/// A Namespace by its name.
pub(super) fn namespace(object: ApiNamespace) -> Option<(Namespace, NamespaceObject)> {
    let name = Namespace::new(object.metadata.name?).ok()?;
    let annotations = object.metadata.annotations.unwrap_or_default();
    let text = |key: &str| annotations.get(key).cloned();
    let read = NamespaceObject {
        uid: object.metadata.uid?,
        network: annotations.get(NETWORK).map(|text| text.parse()),
        consent: annotations.get(ALLOW_JOIN_FROM).map(|text| text.parse()),
        shown_vni: text(VNI),
        shown_status: text(NETWORK_STATUS),
    };
    Some((name, read))
}

/// A Node by its name, with its addresses inside the networks; all of them if there are none.
pub(super) fn node(object: Node, networks: &[IpNetwork]) -> Option<(NodeName, NodeObject)> {
    let name = NodeName::new(object.metadata.name?).ok()?;
    let shown_subnet = object.metadata.annotations.unwrap_or_default().remove(SUBNET);
    let status = object.status.unwrap_or_default();
    let internal = status.addresses.into_iter().flatten().filter(|address| address.type_ == "InternalIP");
    let mut addresses: Vec<IpAddr> =
        internal.filter_map(|address| address.address.parse().ok()).map(|ip: IpAddr| ip.to_canonical()).collect();
    addresses.retain(|ip| networks.is_empty() || networks.iter().any(|network| network.contains(*ip)));
    // Stable: the kubelet's order within a family stays.
    addresses.sort_by_key(IpAddr::is_ipv6);
    let condition = status.conditions.into_iter().flatten().find(|condition| condition.type_ == NETWORK_UNAVAILABLE);
    let unavailable = condition.map(|condition| Condition {
        status: condition.status,
        reason: condition.reason.unwrap_or_default(),
        message: condition.message.unwrap_or_default(),
    });
    Some((name, NodeObject { uid: object.metadata.uid?, addresses, shown_subnet, unavailable }))
}

/// An agent's pod by its name: its node, and whether it is ready.
pub(super) fn agent(object: Pod) -> Option<(String, (NodeName, bool))> {
    let node = NodeName::new(object.spec?.node_name?).ok()?;
    let conditions = object.status.and_then(|status| status.conditions).unwrap_or_default();
    let leaving = object.metadata.deletion_timestamp.is_some();
    let ready = conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    Some((object.metadata.name?, (node, ready && !leaving)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_first_address_is_its_first_internal_ipv4() {
        let json = r#"{"metadata":{"name":"n1","uid":"u"},"status":{
            "addresses":[{"type":"Hostname","address":"n1"},{"type":"ExternalIP","address":"198.51.100.1"},
                {"type":"InternalIP","address":"fd00::1"},{"type":"InternalIP","address":"10.0.0.1"},
                {"type":"InternalIP","address":"10.0.0.2"}],
            "conditions":[{"type":"Ready","status":"True"},{"type":"NetworkUnavailable","status":"True","reason":"x","message":"y"}]}}"#;
        let read = |networks: &[&str]| {
            let networks: Vec<IpNetwork> = networks.iter().map(|text| text.parse().unwrap()).collect();
            node(serde_json::from_str(json).unwrap(), &networks).unwrap()
        };
        let addresses =
            |networks: &[&str]| read(networks).1.addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(addresses(&["10.0.0.2/31", "192.0.2.0/24"]), ["10.0.0.2"]);
        assert_eq!(addresses(&["10.0.0.0/24", "fd00::/64"]), ["10.0.0.1", "10.0.0.2", "fd00::1"]);
        let (name, node) = read(&[]);
        assert_eq!((name.as_str(), node.uid.as_str()), ("n1", "u"));
        assert_eq!(node.addresses, ["10.0.0.1", "10.0.0.2", "fd00::1"].map(|text| text.parse::<IpAddr>().unwrap()));
        let [status, reason, message] = ["True", "x", "y"].map(ToOwned::to_owned);
        assert_eq!(node.unavailable, Some(Condition { status, reason, message }));
    }

    #[test]
    fn a_pod_that_is_going_is_not_ready() {
        let pod = |going: &str| {
            let json = format!(
                r#"{{"metadata":{{"name":"p"{going}}},"spec":{{"nodeName":"n1","containers":[]}},
                    "status":{{"conditions":[{{"type":"Ready","status":"True"}}]}}}}"#
            );
            agent(serde_json::from_str(&json).unwrap()).unwrap().1.1
        };
        assert!(pod(""));
        assert!(!pod(r#","deletionTimestamp":"2026-01-01T00:00:00Z""#));
        assert!(
            agent(serde_json::from_str(r#"{"metadata":{"name":"p"},"spec":{"containers":[]}}"#).unwrap()).is_none()
        );
    }

    #[test]
    fn a_namespaces_annotations_are_read() {
        let json = r#"{"metadata":{"name":"a","uid":"u","annotations":{"bulkhead.dev/network":"join:b",
            "bulkhead.dev/allow-join-from":"*","bulkhead.dev/vni":"10"}}}"#;
        let (_, object) = namespace(serde_json::from_str(json).unwrap()).unwrap();
        assert!(object.network.unwrap().is_ok() && object.consent.unwrap().is_ok());
        assert_eq!((object.shown_vni.as_deref(), object.shown_status), (Some("10"), None));
    }
}
