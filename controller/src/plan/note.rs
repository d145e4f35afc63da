//! What is said of a step once it is carried out.
//!
//! Changes are logged at info, refusals at warn, always with the numbers that they are about.

use std::net::IpAddr;

use bulkhead_core::ledger::ClusterEntry;
use bulkhead_core::network::NodeSubnets;
use bulkhead_core::{Namespace, NetId, NodeName, Tenant, Vni};
use tracing::{debug, info, warn};

/// One thing that a step did.
#[derive(Debug, Clone, PartialEq)]
pub enum Note {
    /// The cluster's ledger entry was written.
    Cluster(ClusterEntry),
    /// The epoch rose and the numbers jumped.
    EpochRaised {
        /// The epoch that was found.
        from: u64,
        /// The epoch that holds now.
        to: u64,
        /// The last number that is passed by; none before the import.
        mark: Option<u32>,
        /// The words of whoever asked; none if nobody did.
        requested: Option<String>,
    },
    /// Whoever lost their place by a restore had their time to come back.
    Settled {
        /// The epoch that it was.
        epoch: u64,
    },
    /// The import of records without a ledger is done.
    ImportDone(usize),
    /// A namespace has its numbers.
    Born(Namespace, Tenant),
    /// An entry of the ledger has the UID of the Kubernetes namespace that it is of.
    Tied {
        /// The namespace.
        namespace: Namespace,
        /// Its UID.
        uid: String,
    },
    /// A namespace is gone and its numbers are released.
    Died(Namespace, Tenant),
    /// An action was carried out.
    Moved {
        /// Whose.
        namespace: Namespace,
        /// Its name on the wire.
        vni: Vni,
        /// The network it was in.
        from: NetId,
        /// The network it is in now; may be the same.
        to: NetId,
        /// `join`, `isolate` or `global`.
        action: &'static str,
    },
    /// A namespace is where an annotation says.
    Declared {
        /// Whose.
        namespace: Namespace,
        /// Its name on the wire.
        vni: Vni,
        /// The network it was in.
        from: NetId,
        /// The network it is in now.
        to: NetId,
        /// The namespace that it follows; itself if it follows nobody.
        root: Namespace,
    },
    /// Namespaces that are to move together did not fit one transaction.
    Split {
        /// How many wait for the next.
        left: usize,
    },
    /// A record was answered with an error.
    Refused {
        /// `namespace`, `node` or `restore`.
        what: &'static str,
        /// Its name; empty for a restore.
        name: String,
        /// Why.
        reason: String,
    },
    /// A record now says what the ledger says: it was incomplete, or its error is no more.
    Mirrored {
        /// `namespace` or `node`.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A record that a person made differ from the ledger was restored.
    Restored {
        /// `namespace` or `node`.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A ledger entry that somebody deleted is there again.
    PutBack {
        /// Its key.
        key: String,
    },
    /// A node has its subnet.
    Admitted {
        /// Its name.
        host: NodeName,
        /// Its address.
        address: IpAddr,
        /// Its subnets.
        subnets: NodeSubnets,
        /// Whether its record named them.
        adopted: bool,
    },
    /// A node of Kubernetes has another address or is another machine, and keeps its subnet.
    Seated {
        /// Its name.
        host: NodeName,
        /// Its address.
        address: IpAddr,
        /// The address that it had, if it is another one.
        was: Option<IpAddr>,
        /// Its subnets.
        subnets: NodeSubnets,
    },
    /// A node is gone and its subnet waits to be used again.
    Released {
        /// Its name.
        host: NodeName,
        /// Its address.
        address: IpAddr,
        /// Its subnets.
        subnets: NodeSubnets,
    },
}

fn list(subnets: NodeSubnets) -> String {
    subnets.iter().map(|subnet| subnet.to_string()).collect::<Vec<_>>().join(",")
}

impl Note {
    /// Logs it.
    pub fn log(&self) {
        match self {
            Self::Cluster(entry) => {
                let networks: Vec<_> = entry.networks.pools().map(|pool| pool.network().to_string()).collect();
                let services: Vec<_> = entry.networks.services().iter().map(ToString::to_string).collect();
                info!(
                    epoch = entry.epoch,
                    network = networks.join(","),
                    host_subnet_length = entry.networks.v4().host_bits(),
                    service_network = services.join(","),
                    mode = entry.mode.plugin_name(),
                    "the cluster's config is in force"
                );
            }
            Self::EpochRaised { from, to, mark, requested } => {
                warn!(
                    epoch = to,
                    was = from,
                    mark,
                    requested,
                    "etcd was restored or replaced: the epoch is raised and the numbers given out last are passed by"
                );
            }
            Self::Settled { epoch } => info!(epoch, "machines that name no subnet are served again"),
            Self::ImportDone(count) => info!(namespaces = count, "the records are in the ledger"),
            Self::Born(namespace, tenant) => {
                info!(%namespace, vni = %tenant.vni, net_id = %tenant.net_id, "namespace has its numbers");
            }
            Self::Tied { namespace, uid } => info!(%namespace, uid, "namespace is one that Kubernetes has"),
            Self::Died(namespace, tenant) => {
                info!(%namespace, vni = %tenant.vni, net_id = %tenant.net_id, "namespace is gone, its numbers are released");
            }
            Self::Moved { namespace, vni, from, to, action } if from == to => {
                info!(%namespace, %vni, net_id = %to, action, "action carried out, nothing to change");
            }
            Self::Moved { namespace, vni, from, to, action } => {
                info!(%namespace, %vni, net_id = %to, was = %from, action, "action carried out");
            }
            Self::Declared { namespace, vni, from, to, root } if namespace == root => {
                info!(%namespace, %vni, net_id = %to, was = %from, "annotation carried out");
            }
            Self::Declared { namespace, vni, from, to, root } => {
                info!(%namespace, %vni, net_id = %to, was = %from, follows = %root, "annotation carried out");
            }
            Self::Split { left } => {
                warn!(left, "more namespaces are to move together than one transaction takes, they move in several");
            }
            Self::Refused { what: "node", name, reason } => warn!(node = name, reason, "refused"),
            Self::Refused { what: "restore", reason, .. } => warn!(reason, "the restore waits"),
            Self::Refused { name, reason, .. } => warn!(namespace = name, reason, "refused"),
            Self::Mirrored { what, name } => debug!(what, name, "the record says what the ledger says"),
            Self::Restored { what: "node", name } => {
                warn!(node = name, "the record differed from the ledger and was restored: a node keeps its subnet");
            }
            Self::Restored { name, .. } => {
                warn!(namespace = name, "the record differed from the ledger and was restored: use an action");
            }
            Self::PutBack { key } => {
                warn!(key, "somebody deleted this ledger entry; it is put back: only the controller may write there");
            }
            Self::Admitted { host, address, subnets, adopted } => {
                info!(node = %host, %address, subnets = list(*subnets), adopted, "node has its subnet");
            }
            Self::Seated { host, address, was: Some(was), subnets } => {
                info!(node = %host, %address, %was, subnets = list(*subnets), "node has another address and keeps its subnet");
            }
            Self::Seated { host, address, was: None, subnets } => {
                info!(node = %host, %address, subnets = list(*subnets), "node is one that Kubernetes has and keeps its subnet");
            }
            Self::Released { host, address, subnets } => {
                info!(node = %host, %address, subnets = list(*subnets), "node is gone, its subnet is released");
            }
        }
    }
}
