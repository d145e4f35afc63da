//! `bulkhead-bench`: Bulkhead's speed beside its baselines, all in one run; see `bench/README.md`.
//!
//! Prints one table and writes it as JSON. Ends with 0 if all targets are met, with 1 otherwise. Needs root and the
//! reference CNI plugins; the binaries that it measures are those beside it or in `BULKHEAD_BIN_DIR`.

mod calls;
mod change;
mod machine;
mod paths;
mod plugin;
mod report;
mod round_trip;
mod sample;
mod scale;

use std::path::PathBuf;
use std::process::ExitCode;

use bulkhead_tests::Lab;
use bulkhead_tests::error::LabError;
use clap::{Parser, ValueEnum};

use crate::machine::Machine;
use crate::report::Report;

/// The pods' network of the lab: 1,021 addresses on each node, so that freed ones can rest between repeats.
const NETWORK: &str = "10.64.0.0/12";
const HOST_BITS: u8 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// ADD and DEL beside the reference plugins.
    Calls,
    /// Round trips beside bare veth and bare switch.
    Paths,
    /// One join until it is in force on all nodes.
    Change,
    /// The agent's memory in a large cluster.
    Scale,
}

/// Measures Bulkhead beside its baselines. Needs root.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Where the result goes
    #[arg(long, default_value = "bench/results/latest.json")]
    output: PathBuf,
    /// Only these parts; nothing is written then
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Repeats of each measurement
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=50))]
    repeats: u8,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bulkhead-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all targets are met.
fn run(arguments: &Arguments) -> Result<bool, LabError> {
    let wanted = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    let repeats = usize::from(arguments.repeats);
    let machine = Machine::look();
    let mut report = Report::default();
    if [Part::Calls, Part::Paths, Part::Change].into_iter().any(wanted) {
        let lab = Lab::builder().network(NETWORK, HOST_BITS).start()?;
        if wanted(Part::Paths) {
            report.extend(paths::rows(&lab, repeats)?);
        }
        if wanted(Part::Calls) {
            report.extend(calls::rows(&lab, repeats)?);
        }
        if wanted(Part::Change) {
            report.extend(change::rows(&lab, 4 * repeats)?);
        }
    }
    if wanted(Part::Scale) {
        report.extend(scale::rows()?);
    }
    println!("{report}");
    machine.caution().iter().for_each(|caution| println!("  {caution}"));
    if arguments.only.is_empty() {
        report.write(&arguments.output, &machine)?;
        println!("  written to {}", arguments.output.display());
    }
    Ok(report.all_met())
}
