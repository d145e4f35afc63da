//! Which nodes carry the members of the bundled etcd. Pure.

use std::collections::BTreeSet;
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

/// The label of the members' nodes; kubelets may not set it. A node with another value is to carry none.
pub const LABEL: &str = "bulkhead.node-restriction.kubernetes.io/etcd";
/// Its value on the members' nodes.
pub const LABELLED: &str = "member";

/// Where tunnels end, too: the node's first internal address.
fn internal_ip(node: &Node) -> Option<IpAddr> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    addresses.iter().filter(|address| address.type_ == "InternalIP").find_map(|address| address.address.parse().ok())
}

fn is_control_plane(node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    labels.is_some_and(|labels| labels.contains_key("node-role.kubernetes.io/control-plane"))
}

fn label(node: &Node) -> Option<&str> {
    node.metadata.labels.as_ref()?.get(LABEL).map(String::as_str)
}

/// Whether an administrator keeps members off it.
fn is_barred(node: &Node) -> bool {
    label(node).is_some_and(|value| value != LABELLED)
}

/// Whether its kubelet is known to be away. One that waits for its network is not.
fn is_away(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "Unknown"))
}

/// Nodes that could carry a member: labelled ones first, then those of the control plane, then by name.
fn able<'a>(nodes: impl Iterator<Item = &'a Node>) -> Vec<Member> {
    let mut able: Vec<(bool, bool, Member)> = nodes
        .filter(|node| node.metadata.deletion_timestamp.is_none() && !is_barred(node) && !is_away(node))
        .filter_map(|node| {
            let member = Member { node: node.metadata.name.clone()?, ip: internal_ip(node)? };
            Some((label(node).is_none(), !is_control_plane(node), member))
        })
        .collect();
    able.sort_unstable();
    able.into_iter().map(|(_, _, member)| member).collect()
}

/// Chooses the first members among the nodes that may carry one.
pub fn choose(nodes: &[Node], count: Count) -> Result<Vec<Member>, String> {
    let mut able = able(nodes.iter());
    let wanted = count.of(able.len());
    if able.len() < wanted {
        return Err(format!(
            "members wanted: {wanted}, each on a node of its own; {} of {} nodes that match are up and have an InternalIP: let more join, or ask for fewer members",
            able.len(),
            nodes.len()
        ));
    }
    able.truncate(wanted);
    Ok(able)
}

impl Count {
    /// How many that is with so many nodes.
    const fn of(self, able: usize) -> usize {
        match self {
            Self::Exactly(count) => count,
            Self::Auto if able < 3 => 1,
            Self::Auto => 3,
        }
    }
}

/// What members there are to be, and why others than now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// All of them: those that stay, at the addresses that their nodes have now, then new ones.
    pub members: Vec<Member>,
    /// Those whose node is gone or barred, and that another one stands in for.
    pub replaced: Vec<Member>,
    /// Those whose node is gone or barred while no other can take their place; they are among `members`.
    pub stranded: Vec<Member>,
    /// How many were asked for.
    pub wanted: usize,
}

/// Whether a member's node is there and may go on carrying it.
pub fn stays(member: &Member, nodes: &[Node]) -> bool {
    nodes.iter().any(|node| node.metadata.name.as_deref() == Some(&member.node) && !is_barred(node))
}

/// Judges the members by the nodes that there are; `eligible` names those that new ones may be put on. Their number grows where
/// there are nodes for all that are wanted, and never shrinks.
pub fn plan(current: &[Member], nodes: &[Node], eligible: &BTreeSet<String>, count: Count) -> Plan {
    let address = |member: &Member| {
        let node = nodes.iter().find(|node| node.metadata.name.as_deref() == Some(&member.node));
        node.and_then(internal_ip).unwrap_or(member.ip)
    };
    let (kept, mut lost): (Vec<_>, Vec<_>) = current.iter().cloned().partition(|member| stays(member, nodes));
    let mut members: Vec<Member> = kept.into_iter().map(|member| Member { ip: address(&member), ..member }).collect();
    let is_eligible = |node: &&Node| node.metadata.name.as_ref().is_some_and(|name| eligible.contains(name));
    let all_able = able(nodes.iter().filter(is_eligible));
    let of_members = members.iter().filter(|member| !all_able.iter().any(|able| able.node == member.node)).count();
    let wanted = count.of(all_able.len() + of_members);
    let mut free = all_able.into_iter().filter(|able| !current.iter().any(|member| member.node == able.node));
    let mut replaced = Vec::new();
    while !lost.is_empty() {
        let Some(next) = free.next() else { break };
        members.push(next);
        replaced.push(lost.remove(0));
    }
    members.extend(lost.iter().cloned());
    let more: Vec<Member> = free.take(wanted.saturating_sub(members.len())).collect();
    // In between, an even number bears no more losses than the odd one below it.
    if lost.is_empty() && members.len() + more.len() == wanted {
        members.extend(more);
    }
    Plan { members, replaced, stranded: lost, wanted }
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

    fn member(text: &str) -> Member {
        text.parse().unwrap()
    }

    fn planned(current: &[&str], nodes: &[Node], count: Count) -> (String, String, String) {
        let current: Vec<Member> = current.iter().map(|text| member(text)).collect();
        let eligible = nodes.iter().filter_map(|node| node.metadata.name.clone()).collect();
        let plan = plan(&current, nodes, &eligible, count);
        let text = |members: &[Member]| members.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        (text(&plan.members), text(&plan.replaced), text(&plan.stranded))
    }

    fn with(mut node: Node, label: &str, ready: &str) -> Node {
        node.metadata.labels.get_or_insert_default().insert(LABEL.to_owned(), label.to_owned());
        let conditions = json!([{"type": "Ready", "status": ready}]);
        node.status.as_mut().unwrap().conditions = serde_json::from_value(conditions).unwrap();
        node
    }

    #[test]
    fn a_member_whose_node_is_gone_is_replaced_and_others_stay_where_they_are() {
        let now = ["a=10.0.0.1", "b=10.0.0.2", "c=10.0.0.3"];
        let (a, b, d) =
            (node("a", Some("10.0.0.1"), false), node("b", Some("10.0.0.2"), false), node("d", Some("10.0.0.4"), true));
        let c = |ip| node("c", Some(ip), false);
        let of = |nodes: &[Node]| planned(&now, nodes, Count::Auto);
        let text = |members: &str, replaced: &str, stranded: &str| (members.into(), replaced.into(), stranded.into());
        let same = "a=10.0.0.1,b=10.0.0.2,c=10.0.0.3";
        assert_eq!(of(&[a.clone(), b.clone(), c("10.0.0.3"), d.clone()]), text(same, "", ""));
        // Another address under the same name.
        assert_eq!(of(&[a.clone(), b.clone(), c("10.0.0.9")]), text("a=10.0.0.1,b=10.0.0.2,c=10.0.0.9", "", ""));
        let moved = text("a=10.0.0.1,b=10.0.0.2,d=10.0.0.4", "c=10.0.0.3", "");
        assert_eq!(of(&[a.clone(), b.clone(), d.clone()]), moved);
        // An administrator keeps members off it.
        assert_eq!(of(&[a.clone(), b.clone(), with(c("10.0.0.3"), "never", "True"), d.clone()]), moved);
        // Nobody can take its place: it is waited for.
        assert_eq!(of(&[a.clone(), b.clone()]), text(same, "", "c=10.0.0.3"));
        let away = with(d, "member", "Unknown");
        assert_eq!(of(&[a, b, away]), text(same, "", "c=10.0.0.3"));
    }

    #[test]
    fn members_grow_by_pairs_and_never_shrink() {
        let all: Vec<Node> = ["a", "b", "c", "d", "e"]
            .iter()
            .zip(1..)
            .map(|(name, last)| node(name, Some(&format!("10.0.0.{last}")), false))
            .collect();
        let members = |current: &[&str], nodes: &[Node], count| planned(current, nodes, count).0;
        let one = ["b=10.0.0.2"];
        assert_eq!(members(&one, &all[..2], Count::Auto), "b=10.0.0.2");
        assert_eq!(members(&one, &all[..2], Count::Exactly(3)), "b=10.0.0.2");
        assert_eq!(members(&one, &all[..3], Count::Auto), "b=10.0.0.2,a=10.0.0.1,c=10.0.0.3");
        assert_eq!(members(&one, &all, Count::Exactly(5)).split(',').count(), 5);
        let three = ["a=10.0.0.1", "b=10.0.0.2", "c=10.0.0.3"];
        for count in [Count::Auto, Count::Exactly(1)] {
            assert_eq!(members(&three, &all, count), three.join(","));
        }
        // An administrator's choice comes before the alphabet.
        let mut wished = all.clone();
        wished[4] = with(wished[4].clone(), LABELLED, "True");
        assert_eq!(members(&one, &wished, Count::Auto), "b=10.0.0.2,e=10.0.0.5,a=10.0.0.1");
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
