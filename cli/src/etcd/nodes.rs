//! The nodes of the cluster, and the label by which some of them get a member.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Node;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use super::members::{LABEL, LABELLED, Member};
use crate::error::CliError;
use crate::output::Console;

/// The nodes, and the right to label them.
pub struct Nodes {
    api: Api<Node>,
    /// All of them.
    pub all: Vec<Node>,
    /// Names of those that members may be put on.
    pub eligible: BTreeSet<String>,
}

impl Nodes {
    /// Reads them; `selector` says which may carry members.
    pub async fn read(client: &Client, selector: &str) -> Result<Self, CliError> {
        let api: Api<Node> = Api::all(client.clone());
        let all = api.list(&ListParams::default()).await?.items;
        let eligible = api.list(&ListParams::default().labels(selector)).await?.items;
        Ok(Self { api, all, eligible: eligible.into_iter().filter_map(|node| node.metadata.name).collect() })
    }

    /// Those that members may be put on.
    pub fn eligible(&self) -> Vec<Node> {
        let is_eligible = |node: &&Node| node.metadata.name.as_ref().is_some_and(|name| self.eligible.contains(name));
        self.all.iter().filter(is_eligible).cloned().collect()
    }

    /// Lets a node have its member. One that has gone meanwhile is said, and no reason to leave the others.
    pub async fn label(&self, node: &str, console: &mut Console<'_>) -> Result<(), CliError> {
        match self.patch(node, json!(LABELLED)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                console.progress(&format!("{node}: there is no such node any more"))
            }
            result => Ok(result?),
        }
    }

    /// Takes the label from nodes that are to have no member; another value of it is an administrator's.
    pub async fn unlabel_all_but(&self, members: &[Member]) -> Result<(), CliError> {
        let labelled = self.api.list_metadata(&ListParams::default().labels(&format!("{LABEL}={LABELLED}"))).await?;
        for node in labelled.items.into_iter().filter_map(|node| node.metadata.name) {
            if members.iter().any(|member| member.node == node) {
                continue;
            }
            match self.patch(&node, json!(null)).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                result => result?,
            }
        }
        Ok(())
    }

    async fn patch(&self, node: &str, value: serde_json::Value) -> Result<(), kube::Error> {
        let patch = json!({"metadata": {"labels": {LABEL: value}}});
        self.api.patch_metadata(node, &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
    }
}
