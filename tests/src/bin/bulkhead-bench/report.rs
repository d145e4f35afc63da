//! What the bench found: rows beside their baselines, as a table for people and a JSON file for machines.

use std::fmt;
use std::fs;
use std::path::Path;

use bulkhead_tests::error::{LabError, Tried};
use bulkhead_tests::table::Table;
use serde_json::{Value, json};

use crate::machine::Machine;

/// What a row must be.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    /// Value by baseline, at most.
    RatioAtMost(f64),
    /// Value by baseline, at least.
    RatioAtLeast(f64),
    /// The value itself, at most.
    AtMost(f64),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RatioAtMost(most) => write!(f, "ratio <= {most:.3}"),
            Self::RatioAtLeast(least) => write!(f, "ratio >= {least:.3}"),
            Self::AtMost(most) => write!(f, "value <= {most}"),
        }
    }
}

/// One measured thing.
#[derive(Debug, Clone)]
pub struct Row {
    name: String,
    unit: &'static str,
    value: f64,
    baseline: Option<f64>,
    target: Option<Target>,
}

impl Row {
    /// A row that is reported only.
    pub fn new(name: impl Into<String>, unit: &'static str, value: f64) -> Self {
        Self { name: name.into(), unit, value, baseline: None, target: None }
    }

    /// What it is compared with, in the same unit, from the same run.
    #[must_use]
    pub fn beside(mut self, baseline: f64) -> Self {
        self.baseline = Some(baseline);
        self
    }

    /// What it must be.
    #[must_use]
    pub fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    /// Value by baseline; none without a baseline or with one of 0.
    pub fn ratio(&self) -> Option<f64> {
        self.baseline.filter(|baseline| *baseline > 0.0).map(|baseline| self.value / baseline)
    }

    /// Whether the target is met; none without a target. A ratio that cannot be formed meets nothing.
    pub fn met(&self) -> Option<bool> {
        Some(match self.target? {
            Target::RatioAtMost(most) => self.ratio().is_some_and(|ratio| ratio <= most),
            Target::RatioAtLeast(least) => self.ratio().is_some_and(|ratio| ratio >= least),
            Target::AtMost(most) => self.value <= most,
        })
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "unit": self.unit,
            "value": self.value,
            "baseline": self.baseline,
            "ratio": self.ratio(),
            "target": self.target.map(|target| target.to_string()),
            "met": self.met(),
        })
    }
}

/// All rows of a run.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Adds rows and shows that they are there: a run takes minutes.
    pub fn extend(&mut self, rows: impl IntoIterator<Item = Row>) {
        for row in rows {
            eprintln!("  {}: {:.3} {}", row.name, row.value, row.unit);
            self.rows.push(row);
        }
    }

    /// Whether no row misses its target.
    pub fn all_met(&self) -> bool {
        self.rows.iter().all(|row| row.met() != Some(false))
    }

    /// Writes the JSON file and makes its directory.
    pub fn write(&self, path: &Path, machine: &Machine) -> Result<(), LabError> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).tried(|| format!("create {}", dir.display()))?;
        }
        let rows: Vec<Value> = self.rows.iter().map(Row::json).collect();
        let mut all = machine.json();
        all["rows"] = rows.into();
        fs::write(path, format!("{all:#}\n")).tried(|| format!("write {}", path.display()))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(["MEASURED", "UNIT", "BULKHEAD", "BASELINE", "RATIO", "TARGET", "MET"]);
        let shown = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
        for row in &self.rows {
            table.row([
                row.name.clone(),
                row.unit.to_owned(),
                shown(Some(row.value)),
                shown(row.baseline),
                shown(row.ratio()),
                row.target.map_or_else(|| "-".to_owned(), |target| target.to_string()),
                row.met().map_or("-", |met| if met { "yes" } else { "NO" }).to_owned(),
            ]);
        }
        table.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_met_at_its_bound_and_never_without_a_baseline() {
        let row = |target| Row::new("x", "ms", 1.0).target(target);
        assert_eq!(row(Target::RatioAtMost(0.25)).beside(4.0).met(), Some(true));
        assert_eq!(row(Target::RatioAtMost(0.24)).beside(4.0).met(), Some(false));
        assert_eq!(row(Target::RatioAtLeast(0.25)).beside(4.0).met(), Some(true));
        assert_eq!(row(Target::RatioAtLeast(0.25)).beside(0.0).met(), Some(false));
        assert_eq!(row(Target::RatioAtMost(9.0)).met(), Some(false));
        assert_eq!(row(Target::AtMost(1.0)).met(), Some(true));
        assert_eq!(Row::new("x", "ms", 1.0).met(), None);
    }

    #[test]
    fn one_missed_target_fails_the_run() {
        let mut report = Report::default();
        report.extend([Row::new("reported", "ms", 1.0), Row::new("met", "MiB", 1.0).target(Target::AtMost(2.0))]);
        assert!(report.all_met());
        report.extend([Row::new("missed", "MiB", 3.0).target(Target::AtMost(2.0))]);
        assert!(!report.all_met());
    }
}
