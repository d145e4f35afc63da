//! What a node's init does on a real machine: a service that ended by itself is started again a second later.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bulkhead_tests::error::{LabError, Tried};

use crate::node::Node;

/// The nodes of a cluster by their names.
pub type Nodes = Arc<Mutex<BTreeMap<String, Arc<Node>>>>;

const PERIOD: Duration = Duration::from_secs(1);

/// Looks after the services of all nodes until it is dropped.
#[derive(Debug)]
pub struct Caretaker {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Caretaker {
    /// Starts its thread.
    pub fn start(nodes: Nodes) -> Result<Self, LabError> {
        let (stop, stopped) = mpsc::channel();
        let rounds = move || {
            while matches!(stopped.recv_timeout(PERIOD), Err(RecvTimeoutError::Timeout)) {
                let present: Vec<_> = nodes.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
                for node in present {
                    for ended in node.revive() {
                        println!("{ended}; it is started again");
                    }
                }
            }
        };
        let thread = thread::Builder::new().name("caretaker".into()).spawn(rounds);
        Ok(Self { stop: Some(stop), thread: Some(thread.tried(|| "start the caretaker".into())?) })
    }
}

impl Drop for Caretaker {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
