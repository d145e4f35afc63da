//! ADD and DEL beside the reference plugins: one at a time, and twenty at a time. Blocks of calls alternate between the
//! two, and who begins alternates too.

use std::time::Duration;

use bulkhead_tests::Lab;
use bulkhead_tests::error::LabError;

use crate::plugin::Contender;
use crate::report::{Row, Target};
use crate::sample::{median, milliseconds, percentile};

/// Calls at the same time.
const WIDTH: usize = 20;
/// Pods of each side; the first stays attached, so that nobody pays for the first bridge or the last pod.
const PODS: usize = 61;
/// Pods of a block of single calls.
const BLOCK: usize = 20;
/// The namespace of the pods.
pub const NAMESPACE: &str = "bench-calls";

/// Both sides, by turns.
struct Both {
    ours: Contender,
    theirs: Contender,
}

impl Both {
    /// Runs `work` for both; who is first alternates by `round`. Ours, theirs.
    fn each<T>(
        &self,
        round: usize,
        mut work: impl FnMut(&Contender) -> Result<T, LabError>,
    ) -> Result<(T, T), LabError> {
        if round.is_multiple_of(2) {
            let ours = work(&self.ours)?;
            Ok((ours, work(&self.theirs)?))
        } else {
            let theirs = work(&self.theirs)?;
            Ok((work(&self.ours)?, theirs))
        }
    }
}

/// Samples of both sides.
#[derive(Default)]
struct Samples {
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

impl Samples {
    fn times(&mut self, (ours, theirs): (Vec<Duration>, Vec<Duration>)) {
        self.ours.extend(milliseconds(&ours));
        self.theirs.extend(milliseconds(&theirs));
    }

    fn rate(&mut self, (ours, theirs): (f64, f64)) {
        self.ours.push(ours);
        self.theirs.push(theirs);
    }

    fn row(&mut self, name: &str, unit: &'static str, percent: f64) -> Row {
        Row::new(name, unit, percentile(&mut self.ours, percent)).beside(percentile(&mut self.theirs, percent))
    }

    fn median_row(&mut self, name: &str, unit: &'static str) -> Row {
        Row::new(name, unit, median(&mut self.ours)).beside(median(&mut self.theirs))
    }
}

/// Measures; `rounds` blocks of single calls and as many of twenty at a time.
pub fn rows(lab: &Lab, rounds: usize) -> Result<Vec<Row>, LabError> {
    lab.create_tenants(&[NAMESPACE])?;
    let both = Both {
        ours: Contender::bulkhead(lab.node(0), NAMESPACE, PODS)?,
        theirs: Contender::reference(lab, NAMESPACE, PODS)?,
    };
    both.each(0, |side| side.one_by_one("ADD", 0..1))?;
    let [mut add, mut del, mut adds, mut dels] = <[Samples; 4]>::default();
    for round in 0..rounds {
        add.times(both.each(round, |side| side.one_by_one("ADD", 1..1 + BLOCK))?);
        del.times(both.each(round, |side| side.one_by_one("DEL", 1..1 + BLOCK))?);
    }
    for round in 0..rounds {
        adds.rate(both.each(round, |side| side.at_once("ADD", WIDTH))?);
        dels.rate(both.each(round, |side| side.at_once("DEL", WIDTH))?);
    }
    both.each(0, |side| side.one_by_one("DEL", 0..1))?;
    Ok(vec![
        add.row("ADD, one at a time, p50", "ms", 50.0).target(Target::RatioAtMost(1.0 / 3.0)),
        add.row("ADD, one at a time, p99", "ms", 99.0),
        del.row("DEL, one at a time, p50", "ms", 50.0),
        del.row("DEL, one at a time, p99", "ms", 99.0),
        adds.median_row("ADD, 20 at a time", "1/s").target(Target::RatioAtLeast(4.0)),
        dels.median_row("DEL, 20 at a time", "1/s"),
    ])
}
