//! Removes pods' devices on a thread of its own. Deleting one takes tens of milliseconds of the kernel's one lock, a
//! hundred at once hardly more: whatever comes while one request runs goes into the next.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use super::record::Record;
use super::wire::WireError;
use crate::kernel::{BatchError, KernelError, Link, Netlink, Op};

/// Devices that are about to be deleted are put into this group (ip-link(8), `group`).
const SCRATCH_GROUP: u32 = 0x626c;
/// The most devices of one request.
const MOST: usize = 100;

/// Why devices could not be removed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the device {device} could not be removed: {reason}")]
pub struct RemoveError {
    device: String,
    reason: String,
}

struct Job {
    index: u32,
    device: String,
    done: Sender<Result<(), RemoveError>>,
}

/// The thread's front.
#[derive(Debug, Clone)]
pub struct Remover {
    jobs: Sender<Job>,
}

impl Remover {
    /// Starts the thread in the host's netns, which is the caller's. It ends with the last front.
    pub fn start() -> std::io::Result<Self> {
        let (jobs, inbox) = channel();
        thread::Builder::new().name("remover".into()).spawn(move || work(&inbox))?;
        Ok(Self { jobs })
    }

    /// Removes a pod's device and waits until it is gone. Nothing there is fine; a device of that index with another name is
    /// not ours and stays.
    pub fn remove(&self, record: &Record) -> Result<(), RemoveError> {
        let (done, answer) = channel();
        let device = record.host_interface();
        let ended = || RemoveError { device: record.host_interface(), reason: "the remover's thread has ended".into() };
        self.jobs.send(Job { index: record.ifindex, device, done }).map_err(|_| ended())?;
        answer.recv().map_err(|_| ended())?
    }
}

fn work(inbox: &Receiver<Job>) {
    while let Ok(first) = inbox.recv() {
        let mut jobs = vec![first];
        jobs.extend(inbox.try_iter().take(MOST - 1));
        let outcome = remove(&jobs).map_err(|error| error.to_string());
        for job in jobs {
            let reason = outcome.clone().err();
            let answer = reason.map_or(Ok(()), |reason| Err(RemoveError { device: job.device, reason }));
            // Whoever asked may have gone away.
            drop(job.done.send(answer));
        }
    }
}

fn remove(jobs: &[Job]) -> Result<(), WireError> {
    let mut netlink = Netlink::here()?;
    let mut present = Vec::new();
    for job in jobs {
        let ours = |link: &Link| link.name == job.device;
        present.extend(netlink.link_by_index(job.index)?.filter(ours).map(|link| link.index));
    }
    match present[..] {
        [] => Ok(()),
        [one] => Ok(netlink.apply(Op::link_delete(one).if_present())?),
        _ => match netlink.batch(Op::links_delete(&present, SCRATCH_GROUP)) {
            Ok(()) => Ok(()),
            // One that went by itself between the look and the request must not keep the others.
            Err(error) => one_by_one(&mut netlink, &present, &error),
        },
    }
}

fn one_by_one(netlink: &mut Netlink, indices: &[u32], error: &BatchError) -> Result<(), WireError> {
    tracing::debug!(%error, "devices are deleted one by one");
    let deletes = indices.iter().map(|index| netlink.apply(Op::link_delete(*index).if_present()));
    let failed: Vec<KernelError> = deletes.filter_map(Result::err).collect();
    failed.into_iter().next().map_or(Ok(()), |error| Err(error.into()))
}
