//! Level-triggered: from the intent and the records to what the kernel holds, over and over.
//!
//! One thread works here. Each change of the intent is applied whole; a resync repairs what others broke and says what it
//! was. Whatever fails is tried again after a second, then ever later, and shown meanwhile as the node's problem.

mod pace;
pub mod pods;
mod start;
mod tenants;
mod turn;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use crate::args::Config;
use crate::intent::Shared;
use crate::live::{Live, locked};

pub use start::StartError;
pub use tenants::apply_namespaces;
pub use turn::run;

/// The agent's parts, as its threads share them.
pub struct Agent {
    /// The flags.
    pub config: Config,
    /// The intent.
    pub shared: Arc<Shared>,
    /// The node, once it has its subnet and its datapath.
    pub live: OnceLock<Live>,
    /// What is wrong, for a person.
    pub problems: Mutex<Vec<String>>,
    /// What of the host cuts pods' traffic, for a person: looked for at each resync.
    pub foreign: Mutex<Vec<String>>,
    /// What resyncs had to repair, newest last.
    pub repairs: Mutex<VecDeque<String>>,
}

/// How many repairs are remembered for `bulkhead agent status`.
const REMEMBERED: usize = 20;

impl Agent {
    /// An agent with nothing done yet.
    pub fn new(config: Config, shared: Arc<Shared>) -> Self {
        let (problems, foreign, repairs) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { config, shared, live: OnceLock::new(), problems, foreign, repairs }
    }

    /// Whether pods can be attached.
    pub fn is_ready(&self) -> bool {
        self.live.get().is_some()
    }

    /// The node, once it is up; none if it is not by the deadline.
    pub fn wait_live(&self, deadline: Instant) -> Option<&Live> {
        let mut seen = 0;
        loop {
            if let Some(live) = self.live.get() {
                return Some(live);
            }
            if Instant::now() >= deadline {
                return None;
            }
            seen = self.shared.wait_past(seen, deadline);
        }
    }

    fn repaired(&self, what: impl IntoIterator<Item = String>) {
        let mut repairs = locked(&self.repairs);
        for line in what {
            tracing::warn!(repaired = line, "the resync repaired what something else had changed");
            if repairs.len() == REMEMBERED {
                repairs.pop_front();
            }
            repairs.push_back(line);
        }
    }
}
