//! The leader at work: one watch in, one fenced transaction at a time out.
//!
//! Promises: it writes nothing after it learned that its leadership is over, and what was in flight then is refused by
//! etcd; a transaction that met a newer state is planned again on it; etcd's outages are waited out.

use std::collections::{HashMap, HashSet};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bulkhead_store::{Conflict, Fence, Leadership, Loss, Outcome, Store, StoreError, Update, Watch};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, error, info, warn};

use crate::history::History;
use crate::kubernetes::Report;
use crate::kubernetes::absence::Absences;
use crate::objects::Objects;
use crate::plan::{self, Note, Policy, Step};
use crate::state::State;

/// How often everything is looked at again without a change.
const RESYNC: Duration = Duration::from_secs(30);
/// How long only machines that name their subnet are served behind a raised epoch: agents list again and ask within seconds.
const NAMED_FIRST: Duration = Duration::from_mins(1);
/// How long a change that a conflict told of may take to come by the watch.
const CATCH_UP: Duration = Duration::from_secs(1);
/// The shortest and longest wait after a write that failed.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What the controller did since it started.
#[derive(Debug, Default)]
pub struct Tally {
    /// Transactions that were carried out.
    pub steps: AtomicU64,
    /// Transactions that met a newer state.
    pub conflicts: AtomicU64,
    /// Records that were answered with an error.
    pub refusals: AtomicU64,
    /// Records that differed from the ledger and were restored.
    pub restored: AtomicU64,
    /// Whether it leads now.
    pub leading: AtomicBool,
    /// Whether it leads or could: the config was found.
    pub running: AtomicBool,
    /// Namespaces in the ledger, when it last led.
    pub namespaces: AtomicU64,
    /// Nodes in the ledger, when it last led.
    pub nodes: AtomicU64,
}

impl Tally {
    fn count(&self, step: &Step) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        for note in step.notes() {
            match note {
                Note::Refused { .. } => self.refusals.fetch_add(1, Ordering::Relaxed),
                Note::Restored { .. } => self.restored.fetch_add(1, Ordering::Relaxed),
                _ => 0,
            };
        }
    }
}

/// Why a leader stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The lease can no longer be relied on.
    Lost(Loss),
    /// etcd refused a write for its fence: another leads already.
    FencedOff,
    /// The process is shutting down.
    Closed,
}

/// What came of one try to move the cluster on.
enum Progress {
    /// There is nothing to do.
    Quiet,
    /// A transaction was carried out; there may be more.
    Moved,
    /// The state is behind: go on once the watch has reached this revision.
    Behind(i64),
    /// It is not known whether a write happened: read everything again.
    Reread,
    /// Try again after a while.
    Failed,
    /// Another leads.
    FencedOff,
}

/// Kubernetes, as the leader sees it.
#[derive(Debug, Clone)]
pub struct Outside {
    /// What it has; none until it was listed.
    pub objects: watch::Receiver<Option<Objects>>,
    /// How long a node's subnet is kept for it after its Node is gone.
    pub node_release_after: Duration,
    /// What it should show; none while this process does not lead.
    pub reports: watch::Sender<Option<Report>>,
}

/// Takes the report back when the lead ends.
struct Reporting<'a>(&'a watch::Sender<Option<Report>>);

impl Drop for Reporting<'_> {
    fn drop(&mut self) {
        self.0.send_replace(None);
    }
}

/// Counts as leading for as long as it lives.
struct Leading<'a>(&'a Tally);

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        self.0.leading.store(false, Ordering::Relaxed);
    }
}

/// What a leader works on and by.
#[derive(Debug, Clone, Copy)]
pub struct Task<'a> {
    /// etcd.
    pub store: &'a Store,
    /// What all keys begin with.
    pub prefix: &'a str,
    /// What is decided for all namespaces.
    pub policy: &'a Policy,
    /// What is counted.
    pub tally: &'a Tally,
    /// Kubernetes; none standalone.
    pub outside: Option<&'a Outside>,
}

/// Leads until it is over. The leadership stays the caller's, to resign.
pub async fn lead(task: Task<'_>, leadership: &Leadership, memory: (&mut History, &mut State)) -> Ended {
    let prefix = format!("{}/", task.prefix);
    task.tally.leading.store(true, Ordering::Relaxed);
    let _leading = Leading(task.tally);
    let leader = Leader {
        reporting: task.outside.map(|outside| Reporting(&outside.reports)),
        store: task.store,
        watch: task.store.watch(&prefix),
        prefix,
        fence: leadership.fence(),
        policy: task.policy,
        tally: task.tally,
        history: memory.0,
        state: memory.1,
        listed: false,
        named_first: None,
        objects: task.outside.map(|outside| {
            let mut objects = outside.objects.clone();
            objects.mark_changed();
            objects
        }),
        absences: Absences::new(task.outside.map_or(Duration::ZERO, |outside| outside.node_release_after)),
        complained: HashMap::new(),
    };
    let lost: Pin<Box<dyn Future<Output = Loss> + Send>> = Box::pin(leadership.lost());
    // Dropping the leader's future drops the write in flight with it; etcd refuses it if another leads by then.
    tokio::select! {
        biased;
        loss = lost => Ended::Lost(loss),
        ended = leader.work() => ended,
    }
}

struct Leader<'a> {
    store: &'a Store,
    prefix: String,
    fence: Fence,
    policy: &'a Policy,
    tally: &'a Tally,
    /// Outlives the leadership and the watch: a restore of etcd may end both.
    history: &'a mut History,
    watch: Watch,
    /// Outlives them as well: what others deleted meanwhile is put back.
    state: &'a mut State,
    /// Whether the state is a whole one, kept up to date.
    listed: bool,
    /// Until when machines that name their subnet come first, and behind the rise of which epoch.
    named_first: Option<(u64, Instant)>,
    /// What Kubernetes has; none standalone.
    objects: Option<watch::Receiver<Option<Objects>>>,
    /// Where it is told what to show.
    reporting: Option<Reporting<'a>>,
    /// Who is away from it.
    absences: Absences,
    /// What was logged, by key and revision.
    complained: HashMap<String, i64>,
}

impl Leader<'_> {
    async fn work(mut self) -> Ended {
        let mut resync = tokio::time::interval(RESYNC);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut retry = RETRY.0;
        let mut grace = None;
        loop {
            let settling =
                self.named_first.filter(|(epoch, _)| self.state.settled != Some(*epoch)).map(|(_, until)| until);
            tokio::select! {
                update = self.watch.next() => match update {
                    Some(update) => self.take(update),
                    None => return Ended::Closed,
                },
                () = changed(&mut self.objects) => {}
                () = until(grace), if self.listed => {}
                _ = resync.tick() => {}
                () = self.history.worth_saving() => {
                    self.history.save().await;
                    continue;
                }
                () = until(settling), if self.listed => {}
            }
            self.drain().await;
            while self.listed {
                grace = self.look_outside();
                self.look_at_epoch();
                self.complain();
                match self.progress().await {
                    Progress::Quiet => {
                        self.report();
                        break;
                    }
                    Progress::Moved => {
                        retry = RETRY.0;
                        self.drain().await;
                    }
                    Progress::Behind(revision) => self.catch_up(revision).await,
                    Progress::Reread => self.reread(),
                    Progress::Failed => {
                        tokio::time::sleep(retry).await;
                        retry = (retry * 2).min(RETRY.1);
                        self.drain().await;
                    }
                    Progress::FencedOff => return Ended::FencedOff,
                }
            }
        }
    }

    fn take(&mut self, update: Update) {
        match update {
            Update::Snapshot(mut snapshot) => {
                self.history.listed(&mut snapshot, &self.state.keys().ledger_cluster());
                debug!(revision = snapshot.revision, keys = snapshot.entries.len(), "listed");
                self.state.replace(&snapshot);
                self.listed = true;
            }
            Update::Changes(changes) => {
                self.history.changed(&changes, &self.state.keys().ledger_cluster());
                self.state.apply(&changes);
            }
            Update::Unreachable { error, .. } => {
                warn!(error = error.chain(), "etcd cannot be read, nothing is changed until it can");
                self.listed = false;
            }
        }
        self.state.owe(self.history.owed(), self.history.epoch());
    }

    /// Takes in what Kubernetes has; gives when to look at it again.
    fn look_outside(&mut self) -> Option<Instant> {
        let objects = self.objects.as_mut()?.borrow_and_update().clone();
        if let Some(objects) = objects {
            if let Some(memory) = &objects.memory {
                self.history.recall(memory, self.state.epoch());
                self.state.owe(self.history.owed(), self.history.epoch());
            }
            self.state.observe(objects);
        }
        let (overdue, next) = self.absences.look(self.state, Instant::now());
        self.state.expire(overdue);
        next
    }

    /// Counts from when this leader first sees a ledger that settles behind a rise, its own or another's.
    fn look_at_epoch(&mut self) {
        let (counted, now) = (self.named_first, Instant::now());
        let settling = self.state.settling();
        self.named_first =
            settling.map(|epoch| counted.filter(|(of, _)| *of == epoch).unwrap_or((epoch, now + NAMED_FIRST)));
        self.state.settle(self.named_first.filter(|(_, until)| *until <= now).map(|(epoch, _)| epoch));
    }

    /// Says what is, now that nothing is left to do.
    fn report(&self) {
        let counts =
            [(&self.tally.namespaces, self.state.tenants().len()), (&self.tally.nodes, self.state.nodes().count())];
        for (gauge, count) in counts {
            gauge.store(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        let Some(Reporting(reports)) = &self.reporting else { return };
        let report = Report {
            statuses: plan::statuses(self.state, self.policy),
            without_subnet: plan::without_subnet(self.state),
            subnets: plan::subnets(self.state),
            memory: self.state.epoch().and_then(|_| self.history.memory().cloned()),
        };
        reports.send_if_modified(|before| {
            let differs = before.as_ref() != Some(&report);
            *before = Some(report);
            differs
        });
    }

    /// Takes what has come already, so that one plan sees all of it.
    async fn drain(&mut self) {
        while let Ok(Some(update)) = tokio::time::timeout(Duration::ZERO, self.watch.next()).await {
            self.take(update);
        }
    }

    async fn progress(&mut self) -> Progress {
        let Some(step) = plan::next(self.state, self.policy) else { return Progress::Quiet };
        match self.store.commit(step.txn(&self.fence)).await {
            Ok(Outcome::Done { revision }) => {
                self.state.committed(step.writes(), revision);
                self.history.reached(revision, self.state.epoch());
                self.state.owe(self.history.owed(), self.history.epoch());
                if step.notes().iter().any(|note| matches!(note, Note::EpochRaised { .. })) {
                    self.history.save().await;
                }
                self.tally.count(&step);
                step.notes().iter().for_each(Note::log);
                Progress::Moved
            }
            Ok(Outcome::Conflict(conflict)) if conflict.fenced_off() => Progress::FencedOff,
            Ok(Outcome::Conflict(conflict)) => {
                self.tally.conflicts.fetch_add(1, Ordering::Relaxed);
                Progress::Behind(newest(&conflict))
            }
            Err(StoreError::OutcomeUnknown { .. }) => {
                info!("the outcome of a write is unknown, reading everything again");
                Progress::Reread
            }
            Err(error) if error.is_transient() => {
                warn!(error = error.chain(), "a write failed, trying again");
                Progress::Failed
            }
            Err(error) => {
                error!(error = error.chain(), "a write failed and will fail again until this is mended");
                Progress::Failed
            }
        }
    }

    /// Waits for the change that a conflict told of. A deletion has no revision that could be waited for: any news will do.
    async fn catch_up(&mut self, revision: i64) {
        let deadline = Instant::now() + CATCH_UP;
        let before = self.state.revision();
        while self.listed && (self.state.revision() < revision || self.state.revision() == before) {
            match tokio::time::timeout_at(deadline, self.watch.next()).await {
                Ok(Some(update)) => self.take(update),
                Ok(None) => return,
                Err(_) => {
                    // The state may differ from etcd in a way that no watch will mend.
                    self.reread();
                    return;
                }
            }
        }
        self.drain().await;
    }

    /// Begins anew with a list.
    fn reread(&mut self) {
        self.watch = self.store.watch(&self.prefix);
        self.listed = false;
    }

    /// Logs what no record can answer, once per revision.
    fn complain(&mut self) {
        let complaints = plan::complaints(self.state);
        let now: HashSet<_> = complaints.iter().map(|c| (c.key.as_str(), c.revision)).collect();
        self.complained.retain(|key, revision| now.contains(&(key.as_str(), *revision)));
        for complaint in complaints {
            if self.complained.insert(complaint.key.clone(), complaint.revision).is_none() {
                warn!(key = complaint.key, "{}", complaint.text);
            }
        }
    }
}

/// Waits for news of Kubernetes; for ever if there is none to come.
async fn changed(objects: &mut Option<watch::Receiver<Option<Objects>>>) {
    if let Some(objects) = objects
        && objects.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

/// Waits until then; for ever if there is no such time.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// The newest revision among the keys that made a transaction fail.
fn newest(conflict: &Conflict) -> i64 {
    conflict
        .failed
        .iter()
        .filter_map(|failed| failed.current.as_ref())
        .map(|entry| entry.mod_revision)
        .max()
        .unwrap_or(0)
}
