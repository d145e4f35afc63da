//! `demo`: what the product does, in less than a minute. Every claim is measured; a wrong result ends it with exit code 1.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use bulkhead_tests::flow::{PacketFlow, TcpFlow};
use bulkhead_tests::goodput;
use bulkhead_tests::lab::Lab;
use bulkhead_tests::matrix::Matrix;
use bulkhead_tests::signals;
use bulkhead_tests::table::Table;
use bulkhead_tests::tenancy::Tenancy;
use bulkhead_tests::{Endpoint, LabError, PodSpec};

const RATE: u64 = 10_000_000;

struct Demo {
    lab: Lab,
    endpoints: Vec<Endpoint>,
    tenancy: Tenancy,
    wrong: usize,
}

/// Runs it.
pub fn demo() -> Result<ExitCode, LabError> {
    let begin = Instant::now();
    println!("Three nodes (network namespaces), one etcd, one controller, an agent on each node.");
    let lab = Lab::builder().start()?;
    signals::remove_on_signal(lab.id())?;
    lab.create_tenants(&["a", "b", "kube-system"])?;
    let pods = [(0, "a", "web"), (1, "a", "db"), (0, "b", "web"), (2, "b", "api"), (1, "kube-system", "dns")]
        .iter()
        .map(|(node, namespace, pod)| lab.pod(*node, namespace, pod))
        .collect::<Result<Vec<_>, _>>()?;
    let mut endpoints: Vec<Endpoint> = pods.iter().map(|pod| pod.endpoint().clone()).collect();
    endpoints.push(lab.node(0).host().clone());
    let mut tenancy = Tenancy::isolated(&["a", "b"]);
    tenancy.global("kube-system");
    let flows = [
        PacketFlow::ping(&endpoints[0], endpoints[1].address())?,
        PacketFlow::ping(&endpoints[3], endpoints[2].address())?,
        PacketFlow::ping(&endpoints[0], endpoints[4].address())?,
        PacketFlow::ping(&endpoints[5], endpoints[3].address())?,
    ];
    let tcp = TcpFlow::start(&endpoints[0], &endpoints[1])?;
    println!(
        "Pings, one each millisecond, and a TCP transfer run within a, within b, to kube-system and from the host."
    );

    let mut demo = Demo { lab, endpoints, tenancy, wrong: 0 };
    demo.show("a and b are apart, kube-system is open to all")?;
    demo.change("tenant join b --to a", |tenancy| tenancy.join("b", "a"))?;
    demo.change("tenant isolate b", |tenancy| tenancy.isolate("b"))?;
    demo.change("tenant global b", |tenancy| tenancy.global("b"))?;

    println!("What the traffic felt of all that");
    let mut table = Table::new(["FLOW", "RESULT"]);
    for flow in flows {
        let name = flow.name().to_owned();
        let loss = flow.stop();
        demo.wrong += usize::from(!loss.is_none());
        table.row([name, loss.to_string()]);
    }
    let name = tcp.name().to_owned();
    let progress = tcp.stop();
    demo.wrong += usize::from(progress.broken.is_some());
    table.row([name, progress.to_string()]);
    println!("{table}");
    demo.limit()?;
    let wrong = demo.wrong;
    drop(pods);
    drop(demo);
    println!("Done in {:.0} s; nothing is left.", begin.elapsed().as_secs_f64());
    if wrong > 0 {
        println!("{wrong} results were not as they must be.");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

impl Demo {
    fn show(&mut self, title: &str) -> Result<(), LabError> {
        let matrix = Matrix::probe(&self.endpoints, |from, to| self.tenancy.may(from, to))?;
        println!("\n{title}\n{matrix}");
        let surprises = matrix.surprises(&self.endpoints, |from, to| self.tenancy.may(from, to));
        for surprise in &surprises {
            println!("  WRONG: {surprise}");
        }
        self.wrong += surprises.len();
        Ok(())
    }

    fn change(&mut self, command: &str, model: impl FnOnce(&mut Tenancy)) -> Result<(), LabError> {
        let begin = Instant::now();
        let said = self.lab.bulkhead(command)?;
        let took = begin.elapsed().as_secs_f64() * 1000.0;
        model(&mut self.tenancy);
        println!("$ bulkhead {command}        ({took:.0} ms)");
        said.lines().for_each(|line| println!("  {line}"));
        self.show("who reaches whom now")
    }

    fn limit(&mut self) -> Result<(), LabError> {
        let slow = self.lab.pod_with(0, "a", "slow", &PodSpec::limited(RATE, RATE))?;
        let beside = self.lab.pod(0, "a", "beside")?;
        let (warm_up, window) = (Duration::from_millis(1500), Duration::from_secs(2));
        let mut table = Table::new(["POD", "LIMIT", "TCP PAYLOAD"]);
        let other = &self.endpoints[1];
        for (from, to, limit) in [
            (slow.endpoint(), other, "10 Mbit/s egress"),
            (other, slow.endpoint(), "10 Mbit/s ingress"),
            (beside.endpoint(), other, "none"),
        ] {
            let seen = goodput::tcp(from, to, warm_up, window)?;
            table.row([format!("{from} -> {to}"), limit.to_owned(), goodput::rate(seen)]);
            let limited = limit != "none";
            // 10 Mbit/s in whole numbers of a float.
            #[allow(clippy::cast_precision_loss)]
            let most = RATE as f64;
            self.wrong += usize::from(limited != (seen < most));
        }
        println!("A pod held to 10 Mbit/s\n{table}");
        Ok(())
    }
}
