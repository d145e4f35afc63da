//! Carries out the DELs that came while no agent was there.

use std::fs;
use std::path::Path;

use bulkhead_core::attachment::AttachmentId;
use bulkhead_core::cni::{Code, Failure};
use bulkhead_core::protocol::CniCall;
use bulkhead_core::spool;

use super::detach;
use crate::live::Live;
use crate::reconcile::Agent;

fn folder(agent: &Agent) -> std::path::PathBuf {
    super::spool_path(&agent.config.run_dir)
}

/// All of them, when the node has come up.
pub(super) fn drain(agent: &Agent) {
    let (Some(live), folder) = (agent.live.get(), folder(agent)) else { return };
    let Ok(entries) = fs::read_dir(&folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if let Some(id) = name.to_str().and_then(spool::parse_file_name) {
            carry_out(live, &id, &entry.path());
        }
    }
}

/// One attachment's, before its ADD.
pub(super) fn drain_one(agent: &Agent, live: &Live, id: &AttachmentId) {
    let path = folder(agent).join(spool::file_name(id));
    if path.exists() {
        carry_out(live, id, &path);
    }
}

/// Keeps a DEL that came before the node was up, as the plugin does when no agent is there.
pub(super) fn keep(agent: &Agent, id: &AttachmentId, call: &CniCall) -> Result<(), Failure> {
    let failed =
        |why: String| Failure::new(Code::Io, "the node is not up and the DEL could not be kept for later", why);
    let folder = folder(agent);
    let content = spool::encode(call).map_err(|error| failed(error.to_string()))?;
    let (temporary, path) = (spool::temporary_name(id, std::process::id()), folder.join(spool::file_name(id)));
    let written = fs::create_dir_all(&folder)
        .and_then(|()| fs::write(folder.join(&temporary), content))
        .and_then(|()| fs::rename(folder.join(&temporary), &path));
    written.map_err(|error| failed(error.to_string()))?;
    // The node may have come up, and drained the spool, between the question and the file.
    if let Some(live) = agent.live.get().filter(|_| path.exists()) {
        carry_out(live, id, &path);
    }
    Ok(())
}

fn carry_out(live: &Live, id: &AttachmentId, path: &Path) {
    // All of it under the lock: a DEL that was read before an ADD of the same attachment must not follow it.
    live.exclusively(id, || consume(id, path, || detach::del(live, id)));
}

/// Reads a file of the spool, carries it out and removes it. The caller holds the attachment's lock.
fn consume<E: std::fmt::Display>(id: &AttachmentId, path: &Path, del: impl FnOnce() -> Result<(), E>) {
    let content = match fs::read(path) {
        Ok(content) => content,
        // Another call has carried it out, or the plugin has taken it back.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a spooled DEL cannot be read");
            return;
        }
    };
    match spool::parse(id, &content) {
        Ok(_) => match del() {
            Ok(()) => tracing::info!(container_id = id.container_id(), "carried out a spooled DEL"),
            Err(error) => {
                tracing::warn!(container_id = id.container_id(), %error, "a spooled DEL failed; it stays");
                return;
            }
        },
        Err(error) => tracing::warn!(path = %path.display(), %error, "removed a file of the spool that is no DEL"),
    }
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "a spooled DEL cannot be removed");
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use bulkhead_core::protocol::Command;

    use super::*;

    #[test]
    fn a_del_is_carried_out_once_and_stays_when_it_failed() {
        let folder = tempfile::tempdir().unwrap();
        let call = CniCall {
            command: Command::Del,
            container_id: "c1".into(),
            interface: "eth0".into(),
            netns: String::new(),
            args: std::collections::BTreeMap::new(),
            config: serde_json::json!({}),
            attempt: String::new(),
        };
        let id = call.attachment().unwrap();
        let path = folder.path().join(spool::file_name(&id));
        fs::write(&path, spool::encode(&call).unwrap()).unwrap();
        let dels = Cell::new(0);
        let del = |answer: Result<(), &'static str>| {
            consume(&id, &path, || {
                dels.set(dels.get() + 1);
                answer
            });
        };
        del(Err("busy"));
        assert!(path.exists());
        del(Ok(()));
        // What two of them saw in the folder, the second finds gone: an ADD between them keeps its pod.
        del(Ok(()));
        assert_eq!((dels.get(), path.exists()), (2, false));
        fs::write(&path, "{").unwrap();
        del(Ok(()));
        assert_eq!((dels.get(), path.exists()), (2, false));
    }
}
