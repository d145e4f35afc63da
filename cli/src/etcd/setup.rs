//! `bulkhead etcd setup`: chooses the nodes of the bundled etcd's members, makes its certificates, and writes down where it is.
//!
//! Runs in the cluster as a Job, before there is a network. Each step does nothing where its result is there already, and the
//! choice is written down first, so that it can be ended and begun again at any point. What was chosen stays: it is where the
//! data is.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use bulkhead_core::Namespace;
use clap::Args;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret};
use kube::api::{ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde::Serialize;
use serde_json::json;

use super::members::{Count, Member, choose, parse_count};
use crate::certs::{Authority, CA_SECRET, CLIENT_NAME, Credential, Host, PEER_NAME, SERVER_NAME, credential_secret};
use crate::error::CliError;
use crate::output::Console;

/// The `ConfigMap` that says where the members are.
const CONFIG_MAP: &str = "bulkhead-etcd";
/// The label of the members' nodes; kubelets may not set it.
const LABEL: &str = "bulkhead.node-restriction.kubernetes.io/etcd";

/// What is to be set up.
#[derive(Debug, Clone, Args)]
pub struct SetupArgs {
    /// Namespace of the members
    #[arg(long, value_name = "NAME", default_value = "bulkhead-system")]
    namespace: Namespace,
    /// How many members: 1, 3, 5, or auto: 3 where there are three nodes, else 1
    #[arg(long, value_name = "COUNT", default_value = "auto", value_parser = parse_count)]
    members: Count,
    /// Labels of the nodes that may be chosen
    #[arg(long, value_name = "LABEL=VALUE,...", default_value = "", hide_default_value = true)]
    node_selector: String,
    /// Port for clients
    #[arg(long, value_name = "PORT", default_value_t = 9472, value_parser = clap::value_parser!(u16).range(1..))]
    client_port: u16,
    /// Port for the other members
    #[arg(long, value_name = "PORT", default_value_t = 9473, value_parser = clap::value_parser!(u16).range(1..))]
    peer_port: u16,
    /// Days for which the certificates are good, the authority's ten times as many
    #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u16).range(1..=36_500))]
    days: u16,
}

/// What is set up, as `-o json` prints it.
#[derive(Serialize)]
struct Report {
    members: Vec<String>,
    endpoints: String,
}

/// Sets it up.
pub async fn setup(client: &Client, args: &SetupArgs, console: &mut Console<'_>) -> Result<(), CliError> {
    let members = members(client, args).await?;
    certificates(client, args, &members).await?;
    let nodes: Api<Node> = Api::all(client.clone());
    for member in &members {
        let patch = json!({"metadata": {"labels": {LABEL: "member"}}});
        nodes.patch_metadata(&member.node, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    }
    let report =
        Report { members: members.iter().map(ToString::to_string).collect(), endpoints: endpoints(&members, args) };
    let sentences = [format!("members {}", report.members.join(", ")), format!("endpoints {}", report.endpoints)];
    console.report(&report, &sentences)
}

fn endpoints(members: &[Member], args: &SetupArgs) -> String {
    members.iter().map(|member| member.url(args.client_port)).collect::<Vec<_>>().join(",")
}

/// The members as written down, or chosen now and written down.
async fn members(client: &Client, args: &SetupArgs) -> Result<Vec<Member>, CliError> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), args.namespace.as_str());
    if let Some(there) = maps.get_opt(CONFIG_MAP).await? {
        return read(&there);
    }
    let nodes: Api<Node> = Api::all(client.clone());
    let list = nodes.list(&ListParams::default().labels(&args.node_selector)).await?;
    let members = choose(&list.items, args.members).map_err(CliError::Refused)?;
    match maps.create(&PostParams::default(), &config_map(&members, args)).await {
        Ok(_) => Ok(members),
        // Another one was faster: its choice holds.
        Err(kube::Error::Api(status)) if status.code == 409 => read(&maps.get(CONFIG_MAP).await?),
        Err(error) => Err(error.into()),
    }
}

fn config_map(members: &[Member], args: &SetupArgs) -> ConfigMap {
    let list = |one: &dyn Fn(&Member) -> String| members.iter().map(one).collect::<Vec<_>>().join(",");
    let born = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let data = [
        ("members", list(&|member| member.to_string())),
        ("endpoints", endpoints(members, args)),
        ("initial-cluster", list(&|member| format!("{}={}", member.node, member.url(args.peer_port)))),
        // Members of another installation at the same addresses are not taken for this one's.
        ("cluster-token", format!("bulkhead-{born:x}")),
    ];
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(CONFIG_MAP.to_owned()),
            namespace: Some(args.namespace.to_string()),
            labels: Some(BTreeMap::from([("app.kubernetes.io/name".to_owned(), "bulkhead".to_owned())])),
            ..ObjectMeta::default()
        },
        data: Some(data.map(|(key, value)| (key.to_owned(), value)).into()),
        ..ConfigMap::default()
    }
}

fn read(map: &ConfigMap) -> Result<Vec<Member>, CliError> {
    let text = map.data.as_ref().and_then(|data| data.get("members")).map_or("", String::as_str);
    text.split(',').map(str::parse).collect::<Result<_, String>>().map_err(|error| {
        CliError::Refused(format!(
            "the ConfigMap {CONFIG_MAP} cannot be read: its member {error}; correct or delete it"
        ))
    })
}

/// Makes the Secrets that are not there.
async fn certificates(client: &Client, args: &SetupArgs, members: &[Member]) -> Result<(), CliError> {
    let namespace = args.namespace.as_str();
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let authority = if let Some(there) = secrets.get_opt(CA_SECRET).await? {
        Authority::again(credential(&there)?)?
    } else {
        let new = Authority::new(args.days.saturating_mul(10))?;
        let own = &new.credential;
        let created = create(&secrets, &credential_secret(CA_SECRET, namespace, &own.certificate, own)).await?;
        if created { new } else { Authority::again(credential(&secrets.get(CA_SECRET).await?)?)? }
    };
    let mut hosts: Vec<Host> = members.iter().map(|member| Host::Ip(member.ip)).collect();
    hosts.extend(["127.0.0.1", "::1"].iter().filter_map(|ip| ip.parse().ok()).map(Host::Ip));
    let wanted: [(&str, &str, &[Host]); 3] = [
        ("bulkhead-etcd-server", SERVER_NAME, &hosts),
        ("bulkhead-etcd-peer", PEER_NAME, &hosts),
        ("bulkhead-etcd-client", CLIENT_NAME, &[]),
    ];
    for (secret, name, hosts) in wanted {
        if secrets.get_opt(secret).await?.is_none() {
            let credential = authority.issue(name, hosts, args.days)?;
            create(&secrets, &credential_secret(secret, namespace, &authority.credential.certificate, &credential))
                .await?;
        }
    }
    Ok(())
}

/// Creates a Secret; false if there is one already.
async fn create(secrets: &Api<Secret>, secret: &Secret) -> Result<bool, CliError> {
    match secrets.create(&PostParams::default(), secret).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn credential(secret: &Secret) -> Result<Credential, CliError> {
    let text = |key: &str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(key));
        bytes
            .and_then(|bytes| String::from_utf8(bytes.0.clone()).ok())
            .ok_or_else(|| CliError::Certificate(format!("the Secret {CA_SECRET} has no {key}; correct or delete it")))
    };
    Ok(Credential { certificate: text("tls.crt")?, key: text("tls.key")? })
}
