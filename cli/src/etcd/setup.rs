//! `bulkhead etcd setup`: chooses the nodes of the bundled etcd's members, makes its certificates, and writes down where it is;
//! run again, it brings all of that in line with the nodes that there are.
//!
//! Runs in the cluster as a Job, before there is a network, and whenever an administrator asks for it. Each step does nothing
//! where its result is there already, and what is decided is written down before it is done, so that it can be ended and begun
//! again at any point. A member moves only if its Node object is gone or barred: it is where the data is. One node's trouble
//! does not keep the others from their part.

use std::collections::BTreeSet;
use std::time::Duration;

use bulkhead_core::Namespace;
use clap::Args;
use kube::Client;
use serde::Serialize;
use tokio::time::Instant;

use super::certificates::Certificates;
use super::join::Join;
use super::members::{Count, Member, Plan, choose, parse_count, plan, stays};
use super::membership::{Age, Listed, bears};
use super::nodes::Nodes;
use super::record::{Ports, Record, Records};
use crate::args::duration;
use crate::error::CliError;
use crate::output::Console;

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
    /// How long to wait for etcd to answer and for new members to have its data
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    patience: Duration,
}

/// What is set up, as `-o json` prints it.
#[derive(Serialize)]
struct Report {
    members: Vec<String>,
    endpoints: String,
    /// What an administrator has to know or do.
    notes: Vec<String>,
}

/// Sets it up.
pub async fn setup(client: &Client, args: &SetupArgs, console: &mut Console<'_>) -> Result<(), CliError> {
    let deadline = Instant::now() + args.patience;
    let namespace = args.namespace.as_str();
    let records = Records::new(client, namespace, Ports { client: args.client_port, peer: args.peer_port });
    let nodes = Nodes::read(client, &args.node_selector).await?;
    let mut record = match records.get().await? {
        Some(record) => record,
        None => records.create(&choose(&nodes.eligible(), args.members).map_err(CliError::Refused)?).await?,
    };
    let plan = plan(&record.members, &nodes.all, &nodes.eligible, args.members);
    let certificates = Certificates::new(client, namespace, args.days);
    certificates.ensure(&record.members, &plan.members).await?;
    for member in record.members.iter().filter(|member| stays(member, &nodes.all)) {
        nodes.label(&member.node, console).await?;
    }
    let before = record.members.clone();
    let mut endpoints = records.endpoints(&plan.members);
    endpoints
        .extend(records.endpoints(&before).into_iter().filter(|one| !records.endpoints(&plan.members).contains(one)));
    let etcd = Join { access: certificates.access().await?, endpoints, peer_port: args.peer_port, deadline };
    let (_, listed) = etcd.await_quorum(console).await?;
    if record.age == Age::New {
        record = records.grown_up(&record).await?;
    }
    if plan.members != record.members {
        consent(&etcd, &records, &listed, &plan, args.peer_port).await?;
        record = records.replace(&record, &plan.members).await?;
        console.progress(&format!("members are to be {}", text(&plan.members)))?;
    }
    let wanted = reachable(&record, &plan, &listed, args.peer_port);
    etcd.bring_to(&wanted, &nodes, console).await?;
    nodes.unlabel_all_but(&record.members).await?;
    let notes = notes(&before, &record.members, &plan, args);
    let members = record.members.iter().map(ToString::to_string).collect();
    let report = Report { members, endpoints: records.endpoints(&record.members).join(","), notes };
    let mut sentences =
        vec![format!("members {}", report.members.join(", ")), format!("endpoints {}", report.endpoints)];
    sentences.extend(report.notes.clone());
    console.report(&report, &sentences)
}

fn text(members: &[Member]) -> String {
    members.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Refuses a plan by which etcd would lose its quorum.
async fn consent(
    etcd: &Join,
    records: &Records,
    listed: &[Listed],
    plan: &Plan,
    peer_port: u16,
) -> Result<(), CliError> {
    let mut up = BTreeSet::new();
    for member in &plan.members {
        let endpoint = records.endpoints(std::slice::from_ref(member)).join(",");
        let is_listed = |one: &&Listed| one.name == member.node || one.peer_urls.contains(&member.url(peer_port));
        let Some(one) = listed.iter().find(is_listed) else { continue };
        if etcd.access.list_of(&endpoint).await.is_ok() {
            up.insert(one.id);
        }
    }
    if bears(listed, &plan.members, peer_port, |one| up.contains(&one.id)) {
        return Ok(());
    }
    Err(CliError::Refused(format!(
        "the members of etcd without {} would be no quorum: {} of {} that stay answer; start them first",
        text(&plan.replaced),
        up.len(),
        plan.members.len() - plan.replaced.len()
    )))
}

/// The members that etcd can be brought to: one whose node is gone is left as it is, and not added.
fn reachable(record: &Record, plan: &Plan, listed: &[Listed], peer_port: u16) -> Vec<Member> {
    let is_listed = |member: &Member| listed.iter().any(|one| one.peer_urls.contains(&member.url(peer_port)));
    record.members.iter().filter(|member| !plan.stranded.contains(member) || is_listed(member)).cloned().collect()
}

/// What an administrator has to know or do.
fn notes(before: &[Member], now: &[Member], plan: &Plan, args: &SetupArgs) -> Vec<String> {
    let mut notes = Vec::new();
    let again = "run the setup again (docs/install.md, \"A member is lost\")";
    for member in &plan.stranded {
        notes.push(format!(
            "warning: the node of the member {member} is gone, and no other node may take its place: let one join, then {again}"
        ));
    }
    if now.len() < plan.wanted {
        notes.push(format!(
            "warning: {} of {} members that are wanted: let more nodes join, then {again}",
            now.len(),
            plan.wanted
        ));
    } else if now.len() == 1 && args.members == Count::Auto {
        notes.push(format!(
            "warning: one member alone: etcd is gone with its node. For three let three nodes join, then {again}"
        ));
    }
    if before != now {
        notes.push(format!(
            "controllers and agents know of other endpoints until they are started anew: kubectl -n {} rollout restart deployment/bulkhead-controller daemonset/bulkhead-agent",
            args.namespace
        ));
    }
    notes
}
