//! Drop counters before and after: what was dropped, where, and why.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::error::LabError;
use crate::node::Node;
use crate::wait;

/// Counters of one node at one time.
#[derive(Debug, Clone)]
pub struct Drops<'a> {
    node: &'a Node,
    before: BTreeMap<String, u64>,
}

impl<'a> Drops<'a> {
    /// Reads them.
    pub fn of(node: &'a Node) -> Result<Self, LabError> {
        Ok(Self { node, before: node.drops()? })
    }

    /// What has been dropped since, by reason.
    pub fn since(&self) -> Result<BTreeMap<String, u64>, LabError> {
        let mut now = self.node.drops()?;
        for (reason, count) in &mut now {
            *count -= self.before.get(reason).copied().unwrap_or_default().min(*count);
        }
        now.retain(|_, count| *count > 0);
        Ok(now)
    }

    /// Fails unless at least `count` packets were dropped for one of these reasons.
    pub fn expect(&self, reasons: &[&str], count: u64) -> Result<(), LabError> {
        wait::until_or(
            &format!("{count} packets dropped on {} as {}", self.node.name(), reasons.join(" or ")),
            Duration::from_secs(10),
            || {
                let since = self.since().map_err(|error| error.to_string())?;
                let seen: u64 = reasons.iter().filter_map(|reason| since.get(*reason)).sum();
                if seen >= count { Ok(()) } else { Err(format!("{since:?}")) }
            },
        )
    }

    /// Fails if anything was dropped.
    pub fn expect_none(&self) -> Result<(), LabError> {
        let since = self.since()?;
        if since.is_empty() {
            return Ok(());
        }
        Err(LabError::Refused { what: format!("no drop on {}", self.node.name()), answer: format!("{since:?}") })
    }
}
