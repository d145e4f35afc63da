//! Which nodes carry the members of the bundled etcd. Pure.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use k8s_openapi::api::core::v1::Node;

/// How many members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// Three where there are three nodes, else one.
    Auto,
    /// So many.
    Exactly(usize),
}

/// Reads a count: an odd number, for an even one bears no more losses than the odd one below it.
pub fn parse_count(text: &str) -> Result<Count, String> {
    match text {
        "auto" => Ok(Count::Auto),
        "1" => Ok(Count::Exactly(1)),
        "3" => Ok(Count::Exactly(3)),
        "5" => Ok(Count::Exactly(5)),
        _ => Err("use 1, 3, 5 or auto".to_owned()),
    }
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Its node, and its name.
    pub node: String,
    /// The node's address.
    pub ip: IpAddr,
}

impl Member {
    /// The URL at a port.
    pub fn url(&self, port: u16) -> String {
        format!("https://{}", SocketAddr::new(self.ip, port))
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.node, self.ip)
    }
}

impl FromStr for Member {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (node, ip) = text.split_once('=').ok_or_else(|| format!("{text:?} is not node=address"))?;
        let ip = ip.parse().map_err(|_| format!("{text:?} has no address"))?;
        if node.is_empty() { Err(format!("{text:?} has no node")) } else { Ok(Self { node: node.to_owned(), ip }) }
    }
}

/// Where tunnels end, too: the node's first internal address.
fn internal_ip(node: &Node) -> Option<IpAddr> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    addresses.iter().filter(|address| address.type_ == "InternalIP").find_map(|address| address.address.parse().ok())
}

fn is_control_plane(node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    labels.is_some_and(|labels| labels.contains_key("node-role.kubernetes.io/control-plane"))
}

/// Chooses among the nodes: those of the control plane first, then by name.
pub fn choose(nodes: &[Node], count: Count) -> Result<Vec<Member>, String> {
    let mut able: Vec<(bool, Member)> = nodes
        .iter()
        .filter(|node| node.metadata.deletion_timestamp.is_none())
        .filter_map(|node| {
            let member = Member { node: node.metadata.name.clone()?, ip: internal_ip(node)? };
            Some((!is_control_plane(node), member))
        })
        .collect();
    able.sort_unstable();
    let wanted = match count {
        Count::Exactly(count) => count,
        Count::Auto if able.len() < 3 => 1,
        Count::Auto => 3,
    };
    if able.len() < wanted {
        return Err(format!(
            "members wanted: {wanted}, each on a node of its own; {} of {} nodes that match have an InternalIP: let more join, or ask for fewer members",
            able.len(),
            nodes.len()
        ));
    }
    Ok(able.into_iter().take(wanted).map(|(_, member)| member).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, ip: Option<&str>, control_plane: bool) -> Node {
        let labels = if control_plane { json!({"node-role.kubernetes.io/control-plane": ""}) } else { json!({}) };
        let mut addresses = vec![json!({"type": "Hostname", "address": name})];
        addresses.extend(ip.map(|ip| json!({"type": "InternalIP", "address": ip})));
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": labels}, "status": {"addresses": addresses},
        }))
        .unwrap()
    }

    fn names(nodes: &[Node], count: Count) -> Result<Vec<String>, String> {
        choose(nodes, count).map(|members| members.into_iter().map(|member| member.node).collect())
    }

    #[test]
    fn the_control_plane_comes_first_and_few_nodes_have_one_member() {
        let all = [
            node("b", Some("10.0.0.2"), false),
            node("z", Some("10.0.0.9"), true),
            node("a", Some("10.0.0.1"), false),
            node("0", None, true),
        ];
        assert_eq!(names(&all, Count::Auto).unwrap(), ["z", "a", "b"]);
        assert_eq!(names(&all, Count::Exactly(1)).unwrap(), ["z"]);
        assert_eq!(names(&all[..1], Count::Auto).unwrap(), ["b"]);
        assert_eq!(names(&all[..2], Count::Auto).unwrap(), ["z"]);
        assert!(names(&all, Count::Exactly(5)).unwrap_err().contains("3 of 4"));
        assert!(names(&[], Count::Auto).is_err());
    }

    #[test]
    fn members_are_written_and_read() {
        let member: Member = "n1=10.0.0.1".parse().unwrap();
        assert_eq!(member.to_string(), "n1=10.0.0.1");
        assert_eq!(member.url(9472), "https://10.0.0.1:9472");
        assert_eq!("n1=fd00::1".parse::<Member>().unwrap().url(1), "https://[fd00::1]:1");
        for bad in ["", "n1", "=10.0.0.1", "n1=x"] {
            assert!(bad.parse::<Member>().is_err(), "{bad}");
        }
        assert!(parse_count("2").is_err() && parse_count("0").is_err());
        assert_eq!(parse_count("auto"), Ok(Count::Auto));
    }
}
