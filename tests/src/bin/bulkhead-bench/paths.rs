//! Round trips of pods beside their limits: two namespaces on a bare veth for one node, two machines on the same switch
//! without an overlay for two nodes. All paths take turns in each repeat, so that a busy moment of the machine hits all.

use std::net::Ipv4Addr;
use std::sync::Arc;

use bulkhead_tests::error::LabError;
use bulkhead_tests::netns::Netns;
use bulkhead_tests::{Lab, Pod};

use crate::report::{Row, Target};
use crate::round_trip::{Transport, core, measure};
use crate::sample::{median, percentile};

/// Round trips of one path in one repeat.
const COUNT: usize = 20_000;
/// The namespace that the measured pods are of.
pub const NAMESPACE: &str = "bench-path";
/// Last octets of the machines on the switch that are no nodes.
const MACHINES: [u8; 2] = [42, 43];
/// The ends of the bare veth (RFC 5737).
const BARE: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];

struct Path {
    from: Arc<Netns>,
    to: Arc<Netns>,
    address: Ipv4Addr,
    p50: Vec<f64>,
    p99: Vec<f64>,
}

impl Path {
    fn new(from: Arc<Netns>, to: Arc<Netns>, address: Ipv4Addr) -> Self {
        Self { from, to, address, p50: Vec::new(), p99: Vec::new() }
    }

    fn between(from: &Pod, to: &Pod) -> Self {
        Self::new(Arc::clone(from.netns()), Arc::clone(to.netns()), to.address())
    }

    fn repeat(&mut self, transport: Transport, core: usize) -> Result<(), LabError> {
        let mut times = measure(transport, &self.from, (&self.to, self.address), core, COUNT)?;
        self.p50.push(median(&mut times));
        self.p99.push(percentile(&mut times, 99.0));
        Ok(())
    }
}

/// Two namespaces and nothing between them but a veth.
fn bare_veth(lab: &Lab) -> Result<Path, LabError> {
    let dir = lab.id().dir().join("ns");
    let (a, b) = (Netns::create(&dir, "bare-a")?, Netns::create(&dir, "bare-b")?);
    a.ip(&format!(
        "link add eth0 type veth peer name eth0 netns {}\naddress add {}/30 dev eth0\nlink set eth0 up",
        b.path().display(),
        BARE[0]
    ))?;
    b.ip(&format!("address add {}/30 dev eth0\nlink set eth0 up", BARE[1]))?;
    Ok(Path::new(Arc::new(a), Arc::new(b), BARE[1]))
}

/// Two machines on the nodes' switch with no program, rule or connection tracking.
fn bare_switch(lab: &Lab) -> Result<Path, LabError> {
    let dir = lab.id().dir().join("ns");
    let (a, b) = (Netns::create(&dir, "machine-a")?, Netns::create(&dir, "machine-b")?);
    lab.underlay().join(&a, MACHINES[0])?;
    lab.underlay().join(&b, MACHINES[1])?;
    Ok(Path::new(Arc::new(a), Arc::new(b), lab.underlay().address(MACHINES[1])))
}

/// Measures all paths by both transports.
pub fn rows(lab: &Lab, repeats: usize) -> Result<Vec<Row>, LabError> {
    let core = core()?;
    lab.create_tenants(&[NAMESPACE])?;
    let pods = [(0, "one"), (0, "two"), (1, "far")]
        .iter()
        .map(|(node, name)| lab.pod(*node, NAMESPACE, name))
        .collect::<Result<Vec<_>, _>>()?;
    let [one, two, far] = &pods[..] else { return Ok(Vec::new()) };
    let mut paths = [bare_veth(lab)?, Path::between(one, two), bare_switch(lab)?, Path::between(one, far)];
    let mut rows = Vec::new();
    for transport in [Transport::Udp, Transport::Tcp] {
        for repeat in 0..repeats {
            // The order changes, so that nobody always runs after the same one.
            for step in 0..paths.len() {
                paths[(repeat + step) % 4].repeat(transport, core)?;
            }
        }
        let [veth, local, switch, across] = &mut paths;
        let name = transport.name();
        rows.extend(pair(&format!("{name} round trip, one node"), local, veth, Some(Target::RatioAtMost(1.15))));
        rows.extend(pair(&format!("{name} round trip, two nodes"), across, switch, None));
        for path in &mut paths {
            path.p50.clear();
            path.p99.clear();
        }
    }
    for pod in pods {
        pod.delete()?;
    }
    Ok(rows)
}

fn pair(name: &str, ours: &mut Path, bare: &mut Path, target: Option<Target>) -> [Row; 2] {
    let p50 = Row::new(format!("{name}, p50"), "us", median(&mut ours.p50)).beside(median(&mut bare.p50));
    let p99 = Row::new(format!("{name}, p99"), "us", median(&mut ours.p99)).beside(median(&mut bare.p99));
    [target.into_iter().fold(p50, Row::target), p99]
}
