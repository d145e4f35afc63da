//! Brings etcd's members to those that are wanted, one change at a time, while it runs.

use std::time::Duration;

use tokio::time::Instant;

use super::access::{Access, Change};
use super::members::Member;
use super::membership::{Listed, Step, next};
use super::nodes::Nodes;
use crate::error::CliError;
use crate::output::Console;

/// Between two looks at etcd.
const PAUSE: Duration = Duration::from_secs(2);

/// The etcd that is to be changed.
pub struct Join {
    /// How it is reached.
    pub access: Access,
    /// Where its members may be.
    pub endpoints: Vec<String>,
    /// Their port for each other.
    pub peer_port: u16,
    /// Until when it is waited for.
    pub deadline: Instant,
}

impl Join {
    /// Waits until a member answers with a quorum behind it; which one, and what it lists.
    pub async fn await_quorum(&self, console: &mut Console<'_>) -> Result<(&str, Vec<Listed>), CliError> {
        let mut said = false;
        loop {
            match self.access.list(&self.endpoints).await {
                Ok(answer) => return Ok(answer),
                Err(error) if Instant::now() >= self.deadline => {
                    return Err(CliError::Unfinished(vec![format!(
                        "etcd has no quorum: {error}; see its pods (app.kubernetes.io/component=etcd), and docs/install.md, \"A member is lost\""
                    )]));
                }
                Err(_) if said => {}
                Err(error) => {
                    console.progress(&format!("waiting for a quorum of etcd: {error}"))?;
                    said = true;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Removes, moves, adds and promotes until etcd has the members that are wanted. A new one's node gets its label when etcd
    /// knows of it.
    pub async fn bring_to(&self, wanted: &[Member], nodes: &Nodes, console: &mut Console<'_>) -> Result<(), CliError> {
        let mut said = String::new();
        loop {
            let (endpoint, listed) = self.await_quorum(console).await?;
            let Some(step) = next(&listed, wanted, self.peer_port) else { return Ok(()) };
            let url = |member: &Member| member.url(self.peer_port);
            let (what, result) = match &step {
                Step::Remove(id) => {
                    let name = listed.iter().find(|one| one.id == *id).map_or("", |one| one.name.as_str());
                    (format!("{name}: its member is removed"), self.access.change(endpoint, Change::Remove(*id)).await)
                }
                Step::Move(id, member) => (
                    format!("{member}: its member has this address now"),
                    self.access.change(endpoint, Change::Move(*id, &url(member))).await,
                ),
                Step::Add(member) => (
                    format!("{member}: a member is added, which counts when it has the data"),
                    self.access.change(endpoint, Change::Add { url: &url(member), learner: true }).await,
                ),
                Step::Promote(id, member) => {
                    nodes.label(&member.node, console).await?;
                    let started = listed.iter().any(|one| one.id == *id && one.started);
                    let result = if started {
                        self.access.change(endpoint, Change::Promote(*id)).await
                    } else {
                        Err("its pod has not started yet".to_owned())
                    };
                    (format!("{member}: its member has the data, and counts"), result)
                }
            };
            let news = match &result {
                Ok(()) => what.clone(),
                Err(error) => format!("not yet: {what}: {error}"),
            };
            if news != said {
                console.progress(&news)?;
            }
            if let Err(error) = result {
                if Instant::now() >= self.deadline {
                    return Err(CliError::Unfinished(vec![format!(
                        "not done: {what}: {error}; etcd has its quorum; run the setup again"
                    )]));
                }
                tokio::time::sleep(PAUSE).await;
            }
            said = news;
        }
    }
}
