//! Level-triggered: from the intent and the records to what the kernel holds, over and over.
//!
//! One thread works here. Each change of the intent is applied whole; a resync repairs what others broke and says what it
//! was. Whatever fails is tried again after a second, then ever later, and shown meanwhile as the node's problem.

mod gone;
mod limits;
mod pace;
pub mod pods;
mod start;
mod tenants;
mod turn;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::args::Config;
use crate::http::CallMetrics;
use crate::intent::Shared;
use crate::kubernetes::{ApiPods, Complaint};
use crate::live::{Live, locked};
use crate::pods::records::since_boot;
use crate::preflight::Obstacle;

pub use start::StartError;
pub use tenants::apply_namespaces;
pub use turn::{Moved, run};

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
    /// What resyncs had to repair, newest last.
    pub repairs: Mutex<VecDeque<String>>,
    /// How much they had to repair since the start.
    pub repaired: AtomicU64,
    /// What is wrong with other threads' work, by the part that says so.
    notes: Mutex<BTreeMap<&'static str, Vec<String>>>,
    /// What the API server says of this node's pods; nothing unless it is watched.
    pub api: Arc<ApiPods>,
    /// CNI calls and how long they took.
    pub calls: CallMetrics,
    announced: AtomicBool,
    /// When the reconciler last showed that it lives, milliseconds since boot.
    beat: AtomicU64,
}

/// The part that sees to other firewalls.
const FIREWALL: &str = "host's firewall";
/// The reason of an Event of a node that works, but not as it should.
const DOUBTFUL: &str = "NodeDoubtful";
/// How many repairs are remembered for `bulkhead agent status`.
const REMEMBERED: usize = 20;

impl Agent {
    /// An agent with nothing done yet.
    pub fn new(config: Config, shared: Arc<Shared>) -> Self {
        let agent = Self {
            config,
            shared,
            live: OnceLock::new(),
            problems: Mutex::default(),
            repairs: Mutex::default(),
            repaired: AtomicU64::default(),
            notes: Mutex::default(),
            api: Arc::default(),
            calls: CallMetrics::default(),
            announced: AtomicBool::default(),
            beat: AtomicU64::default(),
        };
        agent.beat();
        agent
    }

    /// Whether pods can be attached.
    pub fn is_ready(&self) -> bool {
        self.live.get().is_some()
    }

    /// Whether the runtime was told so.
    pub fn is_announced(&self) -> bool {
        self.announced.load(Ordering::Acquire)
    }

    /// Everything that is wrong, for a person.
    pub fn all_problems(&self) -> Vec<String> {
        let mut all = locked(&self.problems).clone();
        let notes = locked(&self.notes);
        for note in notes.values().flatten() {
            if !all.contains(note) {
                all.push(note.clone());
            }
        }
        all
    }

    /// Says what is wrong with a part's work, in the place of what it said before.
    pub fn note(&self, part: &'static str, wrong: Vec<String>) {
        locked(&self.notes).insert(part, wrong);
    }

    /// Says what is not as it should be on a node that works all the same: in the log and by an Event when it is new.
    fn doubt(&self, obstacles: &[Obstacle]) {
        for text in self.new_in("node", obstacles.iter().map(ToString::to_string).collect()) {
            tracing::warn!("the node works, but would not be taken up anew: {text}");
            self.api.complaints.push(Complaint::Node { reason: DOUBTFUL, text });
        }
    }

    /// The same of the host's firewall.
    fn doubt_firewall(&self, wrong: Vec<String>) {
        for text in self.new_in(FIREWALL, wrong) {
            tracing::warn!("{text}");
            self.api.complaints.push(Complaint::Node { reason: DOUBTFUL, text });
        }
    }

    /// As [`Self::note`]; returns what was not said before.
    fn new_in(&self, part: &'static str, wrong: Vec<String>) -> Vec<String> {
        let before = locked(&self.notes).insert(part, wrong.clone()).unwrap_or_default();
        wrong.into_iter().filter(|text| !before.contains(text)).collect()
    }

    fn beat(&self) {
        let now = u64::try_from(since_boot().as_millis()).unwrap_or(u64::MAX);
        self.beat.store(now, Ordering::Release);
    }

    /// How long ago the reconciler showed that it lives.
    pub fn silent_for(&self) -> Duration {
        since_boot().saturating_sub(Duration::from_millis(self.beat.load(Ordering::Acquire)))
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
            self.repaired.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(repaired = line, "the resync repaired what something else had changed");
            if repairs.len() == REMEMBERED {
                repairs.pop_front();
            }
            repairs.push_back(line);
        }
    }
}
