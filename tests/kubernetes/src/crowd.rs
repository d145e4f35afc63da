//! Many pods at once, as light as pods are: a sandbox with `pause` in it and no container, as their image is on no node.
//!
//! Their sandboxes' creation is measured where it happens: containerd logs when it is asked for one and when it has it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::thread;
use std::time::Duration;

use bulkhead_tests::error::{LabError, Tried};
use bulkhead_tests::wait;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::stock::Stock;

/// How long all of them may take to get their sandboxes, and to go again.
const PATIENCE: Duration = Duration::from_mins(10);
/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(300);
const DAY: Duration = Duration::from_hours(24);

/// Namespaces with as many pods each, spread over the workers.
#[derive(Debug, Clone, Copy)]
pub struct Crowd {
    /// How its namespaces' names begin.
    pub name: &'static str,
    /// How many namespaces.
    pub namespaces: usize,
    /// How many pods in each.
    pub pods: usize,
    /// How many pods are made before the first of them has its sandbox; then as many more.
    pub at_once: usize,
}

/// How long sandboxes took, sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Times {
    times: Vec<Duration>,
    /// Requests for one that failed; the kubelet asked again.
    pub failures: Vec<String>,
}

impl Crowd {
    fn names(self) -> impl Iterator<Item = String> {
        (1..=self.namespaces).map(move |number| format!("{}-{number}", self.name))
    }

    /// Makes the namespaces and all pods, and waits until each has its sandbox.
    pub fn start(self, cluster: &Cluster) -> Result<(), LabError> {
        let kubectl = cluster.kubectl();
        let namespaces: Vec<Value> = self
            .names()
            .map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"crowd": ""}}}))
            .collect();
        kubectl.create(&list(&namespaces))?;
        // The API server takes no pod into a namespace without a service account.
        let names: Vec<String> = self.names().collect();
        for name in &names {
            kubectl.wait("create", &["-n", name, "serviceaccount/default"], PATIENCE)?;
        }
        let nodes: Vec<String> = cluster.workers().iter().map(|node| node.name().to_owned()).collect();
        let places = (0..self.pods).flat_map(|number| names.iter().map(move |name| (name, number)));
        let pods: Vec<Value> =
            places.zip(nodes.iter().cycle()).map(|((name, number), node)| pod(name, number, node)).collect();
        let mut wanted = self.times(cluster)?.count();
        for wave in pods.chunks(self.at_once.max(1)) {
            wanted += wave.len();
            kubectl.create(&list(wave))?;
            wait::until_or("a sandbox for each pod", PATIENCE, || {
                let times = self.times(cluster).map_err(|error| error.to_string())?;
                if times.count() >= wanted {
                    return Ok(());
                }
                // To look is work, and the nodes are at work.
                thread::sleep(LOOK);
                Err(format!("{times} {:?}", times.failures.last()))
            })?;
        }
        Ok(())
    }

    /// How long the sandboxes of its pods took till now, by what the workers' containerds logged.
    pub fn times(self, cluster: &Cluster) -> Result<Times, LabError> {
        let mut all = Times::default();
        for node in cluster.workers() {
            let path = cluster.dir().join(node.name()).join("containerd.log");
            let text = fs::read_to_string(&path).tried(|| format!("read {}", path.display()))?;
            let found = read_log(&text, &format!("Namespace:{}-", self.name));
            all.times.extend(found.times);
            all.failures.extend(found.failures);
        }
        all.times.sort_unstable();
        Ok(all)
    }

    /// Deletes the namespaces, and waits until the API server has forgotten them and the cluster holds what it held `before`.
    pub fn end(self, cluster: &Cluster, before: &Stock) -> Result<(), LabError> {
        let limit = format!("--timeout={}s", PATIENCE.as_secs());
        cluster.kubectl().run(&["delete", "namespace", "-l", "crowd", &limit])?;
        wait::until_or("nothing of the crowd being left", PATIENCE, || {
            let difference = Stock::of(cluster).map_or_else(|error| error.to_string(), |now| before.difference(&now));
            if difference.is_empty() {
                return Ok(());
            }
            // To look is work here, too.
            thread::sleep(LOOK);
            Err(difference)
        })
    }
}

fn list(items: &[Value]) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

fn pod(namespace: &str, number: usize, node: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": format!("p{number}"), "labels": {"crowd": ""}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "containers": [{"name": "none", "image": "lab.invalid/none:1", "imagePullPolicy": "Never"}],
        },
    })
}

/// `time="2026-01-02T03:04:05.678901234Z" level=info msg="RunPodSandbox for &PodSandboxMetadata{Name:p0,Uid:...,Namespace:crowd-1,...}"`
/// when it is asked, the same with `returns sandbox id` when it is done.
fn read_log(text: &str, namespace: &str) -> Times {
    let mut asked = BTreeMap::new();
    let mut all = Times::default();
    for line in text.lines().filter(|line| line.contains("RunPodSandbox for ") && line.contains(namespace)) {
        let after = |mark: &str| line.split_once(mark).map(|(_, rest)| rest);
        let Some(uid) = after("Uid:").and_then(|rest| rest.split(',').next()) else { continue };
        let Some(time) = after("time=\"").and_then(time_of_day) else { continue };
        if line.contains("returns sandbox id") {
            let begin = asked.remove(uid);
            all.times.extend(begin.and_then(|begin| time.checked_sub(begin).or((time + DAY).checked_sub(begin))));
        } else if line.contains("level=error") {
            asked.remove(uid);
            all.failures.push(line.to_owned());
        } else {
            asked.insert(uid.to_owned(), time);
        }
    }
    all.times.sort_unstable();
    all
}

fn time_of_day(text: &str) -> Option<Duration> {
    let clock = text.split_once('T')?.1.get(..18)?;
    let mut parts = clock.splitn(3, ':');
    let mut whole = || parts.next()?.parse::<u64>().ok();
    let (hours, minutes) = (whole()?, whole()?);
    let seconds: f64 = parts.next()?.parse().ok()?;
    Some(Duration::from_secs(hours * 3600 + minutes * 60) + Duration::try_from_secs_f64(seconds).ok()?)
}

impl Times {
    /// How many.
    pub fn count(&self) -> usize {
        self.times.len()
    }

    /// What that share of them, in percent, took at most.
    pub fn percentile(&self, percent: usize) -> Duration {
        let last = self.times.len().saturating_sub(1);
        self.times.get((self.times.len() * percent / 100).min(last)).copied().unwrap_or_default()
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [half, most, last] = [50, 99, 100].map(|percent| self.percentile(percent).as_secs_f64() * 1e3);
        write!(f, "{} sandboxes: p50 {half:.0} ms, p99 {most:.0} ms, longest {last:.0} ms", self.count())?;
        if self.failures.is_empty() { Ok(()) } else { write!(f, "; {} tried again", self.failures.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerds_log_is_read() {
        let line = |time: &str, level: &str, rest: &str| {
            format!(
                "time=\"2026-01-02T{time}Z\" level={level} msg=\"RunPodSandbox for &PodSandboxMetadata{{Name:p0,Uid:u1,Namespace:crowd-1,Attempt:0,}}{rest}\"\n"
            )
        };
        let log = [
            line("03:04:05.500000000", "info", ""),
            line("03:04:06.000000000", "error", " failed, error"),
            line("23:59:59.750000000", "info", ""),
            line("00:00:00.250000000", "info", " returns sandbox id \\\"x\\\""),
        ];
        let times = read_log(&log.concat(), "Namespace:crowd-");
        assert_eq!(read_log(&log.concat(), "Namespace:other-"), Times::default());
        assert_eq!((times.times.as_slice(), times.failures.len()), (&[Duration::from_millis(500)][..], 1));
        assert_eq!(times.percentile(99), Duration::from_millis(500));
        assert_eq!(Times::default().percentile(50), Duration::ZERO);
    }
}
