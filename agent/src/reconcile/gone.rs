//! Records of pods that are no more, though nobody has called DEL for them (a node that was cut off while its pods were
//! deleted, a runtime that lost its own books).
//!
//! A record goes only when two sources agree, at two resyncs in a row: the API server does not know the pod, and the runtime
//! has given up its netns or its device is gone. A live pod has its netns, whatever the API server says.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use bulkhead_core::attachment::AttachmentId;

use super::Agent;
use crate::kernel::{KernelError, Netlink};
use crate::live::Live;
use crate::pods::Record;
use crate::pods::record::Stage;

/// At how many resyncs in a row both sources must agree.
const RESYNCS: u32 = 2;

/// Pods that seem to be gone, and for how many resyncs they have.
#[derive(Debug, Default)]
pub(super) struct Missing(BTreeMap<AttachmentId, u32>);

/// Whether no namespace is at a netns' path any more. One below a folder that this process does not see says nothing: the runtime's
/// folder may not be mounted here.
pub(super) fn is_netns_gone(path: &Path) -> bool {
    let gone = |path: &Path| std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound);
    let seen = path.starts_with("/proc") || path.parent().is_some_and(|folder| !gone(folder));
    gone(path) && seen
}

/// Whether the kernel still has the pod's device.
pub(super) fn has_device(record: &Record, host: &mut Netlink) -> Result<bool, KernelError> {
    Ok(host.link_by_index(record.ifindex)?.is_some_and(|link| link.name == record.host_interface()))
}

fn is_gone(record: &Record, agent: &Agent, host: &mut Netlink) -> Result<bool, KernelError> {
    if record.uid.is_empty() || record.stage != Stage::Attached || agent.api.knows(&record.uid) {
        return Ok(false);
    }
    let netns = Path::new(&record.netns);
    // A path in another PID namespace's /proc would not be seen here.
    Ok((!netns.starts_with("/proc") && is_netns_gone(netns)) || !has_device(record, host)?)
}

impl Missing {
    /// One resync's look; removes what has been gone for long enough and says what it was.
    pub(super) fn collect(
        &mut self,
        agent: &Agent,
        live: &Live,
        host: &mut Netlink,
    ) -> Result<Vec<String>, KernelError> {
        if !agent.api.is_complete() {
            self.0.clear();
            return Ok(Vec::new());
        }
        let mut counted = BTreeMap::new();
        for record in live.records.all() {
            if is_gone(&record, agent, host)? {
                let count = self.0.get(&record.id).map_or(1, |count| count + 1);
                counted.insert(record.id.clone(), count);
            }
        }
        self.0 = counted;
        let due: Vec<AttachmentId> =
            self.0.iter().filter(|(_, count)| **count >= RESYNCS).map(|(id, _)| id.clone()).collect();
        let mut done = Vec::new();
        for id in due {
            let line = live.exclusively(&id, || match live.records.get(&id) {
                // A pod may have been attached anew under the ID since.
                Some(held) if is_gone(&held, agent, host)? => Ok(remove(live, &held)),
                _ => Ok(None),
            })?;
            done.extend(line);
        }
        Ok(done)
    }
}

fn remove(live: &Live, record: &Record) -> Option<String> {
    let removed = live.remover.remove(record).map_err(|error| error.to_string());
    match removed.and_then(|()| live.forget(record).map_err(|error| error.to_string())) {
        Ok(()) => Some(format!(
            "the pod {}/{} is gone for the API server and the runtime; its address is free again",
            record.namespace, record.pod
        )),
        Err(error) => {
            tracing::warn!(pod = record.pod, namespace = %record.namespace, error, "a pod that is gone cannot be removed");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_seen_says_nothing_of_what_is_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let netns = folder.path().join("netns/cni-1");
        assert!(!is_netns_gone(&netns), "the runtime's folder is not there");
        std::fs::create_dir(folder.path().join("netns")).unwrap();
        assert!(is_netns_gone(&netns));
        std::fs::write(&netns, "").unwrap();
        assert!(!is_netns_gone(&netns));
        assert!(is_netns_gone(Path::new("/proc/4194305/ns/net")), "no process has such a number");
    }
}
