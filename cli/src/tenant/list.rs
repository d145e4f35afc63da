//! `tenant list` and `tenant show`: which namespace is in which network, and what its record waits for.

use std::collections::BTreeMap;

use bulkhead_core::{Namespace, NetId, Tenant};
use serde::Serialize;

use crate::error::CliError;
use crate::output::{Console, Row};
use crate::view::{Mail, View};

/// How many of a network's other members a table names.
const NAMED: usize = 3;

/// Whom a namespace shares its network with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Network {
    /// Nobody.
    Isolated,
    /// All: `NetID` 0.
    Global,
    /// The others of its `NetID`.
    Joined,
    /// All, since the cluster is flat.
    Flat,
    /// It has no numbers yet.
    None,
}

/// How a namespace is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nothing waits.
    Ok,
    /// An action has not been answered yet.
    Pending,
    /// Its record was refused.
    Error,
    /// It has no numbers yet.
    New,
    /// Its record is gone, its numbers not yet.
    Leaving,
}

/// One namespace, as `tenant list -o json` prints it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantRow {
    namespace: Namespace,
    /// Absent while it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    vni: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    net_id: Option<u32>,
    network: Network,
    status: Status,
    /// What waits or is wrong; empty if nothing.
    detail: String,
    /// Not in a list's JSON, where it would grow with the square of the members.
    #[serde(skip)]
    others: Others,
}

/// The other members of a network, some of them by name.
#[derive(Debug, Default)]
struct Others {
    first: Vec<Namespace>,
    count: usize,
}

impl Row for TenantRow {
    const HEADER: &'static [&'static str] = &["NAME", "VNI", "NETID", "NETWORK", "STATUS"];

    fn cells(&self) -> Vec<String> {
        let number = |number: Option<u32>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
        vec![self.namespace.to_string(), number(self.vni), number(self.net_id), self.network_text(), self.status_text()]
    }
}

impl TenantRow {
    fn network_text(&self) -> String {
        match self.network {
            Network::Isolated => "isolated".into(),
            Network::Global => "global".into(),
            Network::Flat => "flat".into(),
            Network::None => "-".into(),
            Network::Joined => {
                let names: Vec<&str> = self.others.first.iter().map(Namespace::as_str).collect();
                let more = self.others.count - names.len();
                let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
                format!("joined with {}{tail}", names.join(", "))
            }
        }
    }

    fn status_text(&self) -> String {
        let word = match self.status {
            Status::Ok => "ok",
            Status::Pending => "pending",
            Status::Error => "error",
            Status::New => "new",
            Status::Leaving => "leaving",
        };
        if self.detail.is_empty() { word.into() } else { format!("{word}: {}", self.detail) }
    }
}

/// Who is in which network.
struct Members(BTreeMap<NetId, Vec<Namespace>>);

impl Members {
    fn of(tenants: &BTreeMap<Namespace, Tenant>) -> Self {
        let mut members: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (namespace, tenant) in tenants {
            members.entry(tenant.net_id).or_default().push(namespace.clone());
        }
        Self(members)
    }

    fn others(&self, namespace: &Namespace, net_id: NetId) -> impl Iterator<Item = &Namespace> {
        self.0.get(&net_id).into_iter().flatten().filter(move |other| *other != namespace)
    }

    fn some_others(&self, namespace: &Namespace, net_id: NetId) -> Others {
        let count = self.0.get(&net_id).map_or(0, |all| all.len().saturating_sub(1));
        Others { first: self.others(namespace, net_id).take(NAMED).cloned().collect(), count }
    }
}

fn status(view: &View, namespace: &Namespace, tenant: Option<&Tenant>) -> (Status, String) {
    let record = match view.netnamespace(namespace) {
        Mail::Absent => return (Status::Leaving, "its numbers are not released yet".into()),
        Mail::Broken(error, _) => return (Status::Error, error.to_string()),
        Mail::Read(record, _) => record,
    };
    let action = [record.action.as_str(), record.namespace.as_str()].join(" ").trim_end().to_owned();
    match (record.action.is_empty(), record.error.is_empty()) {
        (false, true) => (Status::Pending, action),
        (false, false) => (Status::Error, format!("{action}: {}", record.error)),
        (true, false) => (Status::Error, record.error),
        (true, true) if tenant.is_none() => (Status::New, "waits for its numbers".into()),
        (true, true) => (Status::Ok, String::new()),
    }
}

fn row(view: &View, members: &Members, namespace: Namespace, tenant: Option<&Tenant>) -> TenantRow {
    let (status, detail) = status(view, &namespace, tenant);
    let others = tenant.map(|tenant| members.some_others(&namespace, tenant.net_id)).unwrap_or_default();
    let network = match tenant {
        None => Network::None,
        Some(_) if view.is_flat() => Network::Flat,
        Some(tenant) if tenant.net_id.is_global() => Network::Global,
        Some(_) if others.count == 0 => Network::Isolated,
        Some(_) => Network::Joined,
    };
    let vni = tenant.map(|tenant| tenant.vni.get());
    TenantRow { namespace, vni, net_id: tenant.map(|tenant| tenant.net_id.get()), network, status, detail, others }
}

/// Prints all namespaces.
pub fn list(view: &View, console: &mut Console<'_>) -> Result<(), CliError> {
    let tenants = view.tenants();
    let members = Members::of(&tenants);
    let rows: Vec<TenantRow> = view
        .namespaces()
        .into_iter()
        .map(|namespace| {
            let tenant = tenants.get(&namespace);
            row(view, &members, namespace, tenant)
        })
        .collect();
    console.table(&rows, "there are no namespaces yet; Kubernetes or `bulkhead tenant create` makes them")
}

/// One namespace, as `tenant show -o json` and `tenant create -o json` print it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct TenantCard {
    #[serde(flatten)]
    row: TenantRow,
    /// The other namespaces of its network.
    joined_with: Vec<Namespace>,
    /// Its Kubernetes UID.
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
}

/// Prints one namespace.
pub fn show(view: &View, namespace: &Namespace, console: &mut Console<'_>) -> Result<(), CliError> {
    if !view.namespaces().contains(namespace) {
        return Err(unknown(&[namespace]));
    }
    let tenants = view.tenants();
    let members = Members::of(&tenants);
    let tenant = tenants.get(namespace);
    let row = row(view, &members, namespace.clone(), tenant);
    let others = tenant.map(|tenant| members.others(namespace, tenant.net_id).cloned().collect()).unwrap_or_default();
    let joined_with: Vec<Namespace> = others;
    let [name, vni, net_id, _, status] = <[String; 5]>::try_from(row.cells()).unwrap_or_default();
    let reach = match row.network {
        Network::Isolated => "isolated: reaches itself, global namespaces and the nodes",
        Network::Global => "global: reaches all and is reached by all",
        Network::Joined => "joined",
        Network::Flat => "flat: the cluster keeps no namespaces apart",
        Network::None => "-",
    };
    let names: Vec<&str> = joined_with.iter().map(Namespace::as_str).collect();
    let (together, uid) = (names.join(", "), tenant.and_then(|tenant| tenant.uid.clone()));
    let lines = [
        ("Name", name),
        ("VNI", vni),
        ("NetID", net_id),
        ("Network", reach.to_owned()),
        (if row.network == Network::Global { "Also global" } else { "Joined with" }, together),
        ("UID", uid.clone().unwrap_or_default()),
        ("Status", status),
    ];
    console.card(&TenantCard { row, joined_with, uid }, &lines)
}

/// The refusal of namespaces that are not there.
pub fn unknown(namespaces: &[&Namespace]) -> CliError {
    let names: Vec<&str> = namespaces.iter().map(|namespace| namespace.as_str()).collect();
    CliError::Refused(format!(
        "no such namespace: {}; `bulkhead tenant list` shows all, `bulkhead tenant create` makes one",
        names.join(", ")
    ))
}
