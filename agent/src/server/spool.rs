//! Carries out the DELs that came while no agent was there, and again those that failed.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;
use std::{fs, thread};

use bulkhead_core::attachment::AttachmentId;
use bulkhead_core::cni::{Code, Failure};
use bulkhead_core::protocol::CniCall;
use bulkhead_core::spool;

use super::detach;
use crate::live::{Live, locked};
use crate::reconcile::Agent;

/// DELs carried out at once, so that their devices go many in one request.
const WORKERS: usize = 16;
/// How old a file may be that a plugin is about to rename.
const HALF_WRITTEN: Duration = Duration::from_mins(1);

fn folder(agent: &Agent) -> PathBuf {
    super::spool_path(&agent.config.run_dir)
}

/// All of them. What plugins left half-written when they were killed goes.
pub(super) fn drain(agent: &Agent) {
    let (Some(live), folder) = (agent.live.get(), folder(agent)) else { return };
    let Ok(entries) = fs::read_dir(&folder) else { return };
    let mut dels = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        match name.to_str().and_then(spool::parse_file_name) {
            Some(id) => dels.push((id, entry.path())),
            None if name.to_str().is_some_and(is_temporary) => remove_if_old(&entry.path(), HALF_WRITTEN),
            None => {}
        }
    }
    side_by_side(dels, |(id, path)| carry_out(live, &id, &path));
}

/// Does them all, [`WORKERS`] at once.
fn side_by_side<T: Send>(items: Vec<T>, work: impl Fn(T) + Sync) {
    let helpers = items.len().min(WORKERS).saturating_sub(1);
    let items = Mutex::new(items.into_iter());
    let all = || {
        while let Some(item) = next(&items) {
            work(item);
        }
    };
    thread::scope(|scope| {
        for _ in 0..helpers {
            if let Err(error) = thread::Builder::new().name("spool".into()).spawn_scoped(scope, all) {
                tracing::warn!(%error, "spooled DELs are carried out by fewer threads");
            }
        }
        all();
    });
}

fn next<T>(items: &Mutex<std::vec::IntoIter<T>>) -> Option<T> {
    locked(items).next()
}

/// Whether [`spool::temporary_name`] makes such names.
fn is_temporary(name: &str) -> bool {
    let parts = name.strip_prefix('.').and_then(|rest| rest.rsplit_once('.'));
    parts.is_some_and(|(id, process)| process.parse::<u32>().is_ok() && id.parse::<AttachmentId>().is_ok())
}

fn remove_if_old(path: &Path, age: Duration) {
    let written = fs::metadata(path).and_then(|found| found.modified()).ok();
    if written.and_then(|when| when.elapsed().ok()).is_some_and(|since| since >= age) {
        tracing::info!(path = %path.display(), "removed a spooled DEL whose plugin was killed while it wrote");
        drop(fs::remove_file(path));
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

    #[test]
    fn dels_are_carried_out_side_by_side_each_once() {
        // Nobody passes before all have come.
        let (together, done) = (std::sync::Barrier::new(WORKERS), Mutex::new(Vec::new()));
        side_by_side((0..WORKERS * 3).collect(), |item| {
            together.wait();
            done.lock().unwrap().push(item);
        });
        let mut done = done.into_inner().unwrap();
        done.sort_unstable();
        assert_eq!(done, (0..WORKERS * 3).collect::<Vec<_>>());
        side_by_side(Vec::<u8>::new(), |_| panic!("nothing to do"));
    }

    #[test]
    fn only_old_temporaries_of_plugins_are_removed() {
        let id = AttachmentId::new("c1.x", "eth0").unwrap();
        assert!(is_temporary(&spool::temporary_name(&id, 7)));
        for other in [&spool::file_name(&id), ".c1@eth0", ".c1@eth0.x", ".hidden", ".c1.7", "c1@eth0.7", ""] {
            assert!(!is_temporary(other), "{other}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(spool::temporary_name(&id, 7));
        fs::write(&path, "").unwrap();
        remove_if_old(&path, HALF_WRITTEN);
        assert!(path.exists(), "its plugin may be about to rename it");
        let old = std::time::SystemTime::now() - HALF_WRITTEN;
        fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
        remove_if_old(&path, HALF_WRITTEN);
        assert!(!path.exists());
    }
}
