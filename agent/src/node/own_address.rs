//! Which of this machine's addresses the cluster knows it by: where its tunnels end.
//!
//! The ledger decides. Its leader reads a Node's addresses, keeps those inside the node networks, and takes the first of
//! IPv4, which need not be the one that a kubelet puts first (`status.hostIP`), may lie behind it, or may change while the
//! machine runs.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use bulkhead_core::NodeName;

use crate::intent::Intent;
use crate::kernel::{KernelError, Netlink};

/// The address at which the ledger has this node: the one given by flag if it has it there, else one under this node's
/// name that this machine has; the given one if there is none such, whoever has it. `local` is asked only when it matters.
///
/// # Errors
///
/// As `local`'s.
pub fn own_address<E>(
    node: &NodeName,
    given: Option<Ipv4Addr>,
    intent: &Intent,
    local: impl FnOnce() -> Result<BTreeSet<Ipv4Addr>, E>,
) -> Result<Option<Ipv4Addr>, E> {
    let named: Vec<Ipv4Addr> = intent
        .nodes
        .iter()
        .filter(|(_, entry)| entry.host == *node)
        .filter_map(|(ip, _)| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None })
        .collect();
    if named.is_empty() || given.is_some_and(|ip| named.contains(&ip)) {
        return Ok(given);
    }
    let local = local()?;
    Ok(named.into_iter().find(|ip| local.contains(ip)).or(given))
}

/// All IPv4 addresses of this machine's devices.
///
/// # Errors
///
/// Netlink's.
pub fn local_addresses(netlink: &mut Netlink) -> Result<BTreeSet<Ipv4Addr>, KernelError> {
    let mut all = BTreeSet::new();
    for link in netlink.links()? {
        for address in netlink.addresses(link.index)? {
            if let IpAddr::V4(ip) = address.network.ip() {
                all.insert(ip);
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bulkhead_core::ledger;

    use super::*;

    /// The address of n1, which has 10.0.0.1 and 192.168.1.5, given one by flag and a ledger of (address, name).
    fn own(given: Option<&str>, entries: &[(&str, &str)]) -> Option<String> {
        let entry = |(ip, host): &(&str, &str)| {
            let json = format!(r#"{{"host":"{host}","addresses":["{ip}"],"subnets":["10.77.5.0/24"]}}"#);
            (ip.parse().unwrap(), ledger::parse(json.as_bytes()).unwrap())
        };
        let intent = Intent { nodes: entries.iter().map(entry).collect(), ..Intent::default() };
        let local = || Ok::<_, Infallible>(["10.0.0.1", "192.168.1.5"].map(|ip| ip.parse().unwrap()).into());
        let given = given.map(|ip| ip.parse().unwrap());
        let Ok(found) = own_address(&NodeName::new("n1").unwrap(), given, &intent, local);
        found.map(|ip| ip.to_string())
    }

    #[test]
    fn the_ledger_decides_which_address_of_this_machine_it_is() {
        let given = Some("192.168.1.5");
        let is = |ip: &str| Some(ip.to_owned());
        assert_eq!(own(given, &[("192.168.1.5", "n1")]), is("192.168.1.5"));
        assert_eq!(own(given, &[("10.0.0.1", "n1")]), is("10.0.0.1"), "inside the node networks");
        assert_eq!(own(None, &[("10.0.0.1", "n1")]), is("10.0.0.1"), "the kubelet puts IPv6 first");
        assert_eq!(own(given, &[("10.0.0.1", "n1"), ("192.168.1.5", "n2")]), is("10.0.0.1"));
        assert_eq!(own(given, &[("192.168.1.5", "n2")]), is("192.168.1.5"), "which is then refused");
    }

    #[test]
    fn an_address_of_another_machine_is_never_taken() {
        assert_eq!(own(None, &[("10.0.0.9", "n1")]), None);
        assert_eq!(own(None, &[("10.0.0.1", "n2")]), None);
        assert_eq!(own(Some("192.168.1.5"), &[("10.0.0.9", "n1")]).as_deref(), Some("192.168.1.5"));
        assert_eq!(own(None, &[]), None);
    }
}
