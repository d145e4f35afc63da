//! Which calls are being served: how many at once, how many of them wait, and which ADDs a DEL has overtaken.
//!
//! Promises that calls which wait for something (a namespace's numbers, a node that is coming up) leave half of the places to
//! those that do not, and that no ADD attaches a pod whose DEL was answered while it waited.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bulkhead_core::attachment::AttachmentId;

use crate::live::locked;

/// Calls served at once; more wait in the socket's queue.
const MOST_CALLS: usize = 512;
/// Calls that wait at once; more are answered as if they had waited.
const MOST_WAITING: usize = 256;

/// The calls of one agent.
#[derive(Debug, Default)]
pub(super) struct Desk {
    calls: AtomicUsize,
    waiting: AtomicUsize,
    adds: Mutex<Vec<(AttachmentId, Arc<AtomicBool>)>>,
}

/// A call's place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place(Arc<Desk>);

/// Leave to wait, until it is dropped.
#[derive(Debug)]
pub(super) struct Wait<'desk>(&'desk Desk);

/// An ADD that has not begun yet, until it is dropped.
#[derive(Debug)]
pub(super) struct PendingAdd<'desk> {
    desk: &'desk Desk,
    overtaken: Arc<AtomicBool>,
}

impl Desk {
    /// Waits until there is a place. For one thread only, which alone gives places out.
    pub(super) fn enter(self: &Arc<Self>) -> Place {
        while self.calls.load(Ordering::Acquire) >= MOST_CALLS {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.calls.fetch_add(1, Ordering::AcqRel);
        Place(Arc::clone(self))
    }

    /// Leave to wait; none if too many do.
    pub(super) fn wait(&self) -> Option<Wait<'_>> {
        let room = |waiting| (waiting < MOST_WAITING).then_some(waiting + 1);
        self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).ok().map(|_| Wait(self))
    }

    /// Notes an ADD before it waits for anything. It is kept until the ADD holds its attachment's lock and has looked.
    pub(super) fn pending_add(&self, id: &AttachmentId) -> PendingAdd<'_> {
        let overtaken = Arc::new(AtomicBool::new(false));
        locked(&self.adds).push((id.clone(), Arc::clone(&overtaken)));
        PendingAdd { desk: self, overtaken }
    }

    /// A DEL is about to be carried out: ADDs of its attachment that came earlier and have not begun must not follow it. Returns
    /// whether there are any.
    pub(super) fn overtake(&self, id: &AttachmentId) -> bool {
        let adds = locked(&self.adds);
        let mut any = false;
        for (_, overtaken) in adds.iter().filter(|(added, _)| added == id) {
            overtaken.store(true, Ordering::Release);
            any = true;
        }
        any
    }
}

impl PendingAdd<'_> {
    /// Whether a DEL of the attachment came meanwhile.
    pub(super) fn is_overtaken(&self) -> bool {
        self.overtaken.load(Ordering::Acquire)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for PendingAdd<'_> {
    fn drop(&mut self) {
        locked(&self.desk.adds).retain(|(_, flag)| !Arc::ptr_eq(flag, &self.overtaken));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_wait_leave_half_of_the_places() {
        let desk = Arc::new(Desk::default());
        let mut waits: Vec<Wait<'_>> = std::iter::from_fn(|| desk.wait()).collect();
        assert_eq!(waits.len(), MOST_WAITING);
        waits.pop();
        assert!(desk.wait().is_some());
        let places: Vec<Place> = (0..MOST_CALLS).map(|_| desk.enter()).collect();
        assert_eq!(desk.calls.load(Ordering::Acquire), MOST_CALLS);
        drop(places);
        assert_eq!(desk.calls.load(Ordering::Acquire), 0);
    }

    #[test]
    fn a_del_overtakes_earlier_adds_of_its_attachment_only() {
        let desk = Desk::default();
        let id = |name: &str| AttachmentId::new(name, "eth0").unwrap();
        let (first, again, other) =
            (desk.pending_add(&id("c1")), desk.pending_add(&id("c1")), desk.pending_add(&id("c2")));
        assert!(desk.overtake(&id("c1")) && !desk.overtake(&id("c3")));
        let later = desk.pending_add(&id("c1"));
        assert!(first.is_overtaken() && again.is_overtaken() && !other.is_overtaken() && !later.is_overtaken());
        drop((first, again, later));
        assert!(!desk.overtake(&id("c1")));
        assert_eq!(locked(&desk.adds).len(), 1);
    }
}
