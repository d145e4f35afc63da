//! Who reaches whom: every pair, every protocol, both directions, at once.

use std::fmt;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::echo::ECHO;
use crate::endpoint::Endpoint;
use crate::error::LabError;
use crate::probe::{PATIENCE, Proto, SILENCE, reaches, reaches_with};
use crate::table::Table;

/// Probes under way at one time.
const PARALLEL: usize = 24;

/// The result of one probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cell {
    from: usize,
    to: usize,
    proto: Proto,
    passes: bool,
}

/// What was found.
#[derive(Debug, Clone)]
pub struct Matrix {
    names: Vec<String>,
    cells: Vec<Cell>,
}

/// A pair that behaves otherwise than it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surprise {
    /// Who sent.
    pub from: String,
    /// To whom.
    pub to: String,
    /// What.
    pub proto: Proto,
    /// It passed, but should not; or the other way round.
    pub passes: bool,
}

impl fmt::Display for Surprise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.passes { "passes, must not" } else { "does not pass, must" };
        write!(f, "{} {} -> {}: {verdict}", self.proto, self.from, self.to)
    }
}

impl Matrix {
    /// Probes every ordered pair of different endpoints. Where `expected` says that it passes and it did not at once, it
    /// is given more time.
    pub fn probe(
        endpoints: &[Endpoint],
        expected: impl Fn(&Endpoint, &Endpoint) -> bool + Sync,
    ) -> Result<Self, LabError> {
        let mut cells = Vec::new();
        for (from, source) in endpoints.iter().enumerate() {
            for (to, target) in endpoints.iter().enumerate().filter(|(to, _)| *to != from) {
                let passes = expected(source, target);
                cells.extend(Proto::ALL.map(|proto| Cell { from, to, proto, passes }));
            }
        }
        let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let work = || -> Result<(), LabError> {
            while let Some(cell) = cells.get(next.fetch_add(1, Ordering::Relaxed)) {
                let to: Ipv4Addr = endpoints[cell.to].address();
                let within = if cell.passes { PATIENCE } else { SILENCE };
                let passes = reaches(&endpoints[cell.from], to, cell.proto, within)?;
                found.lock().unwrap_or_else(PoisonError::into_inner).push(Cell { passes, ..*cell });
            }
            Ok(())
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..PARALLEL).map(|_| scope.spawn(work)).collect();
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().map_err(|_| LabError::ThreadGone("the matrix".into()))?)
        })?;
        let mut cells = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        cells.sort_by_key(|cell| (cell.from, cell.to, cell.proto));
        Ok(Self { names: endpoints.iter().map(|endpoint| endpoint.name().to_owned()).collect(), cells })
    }

    /// Pairs that behave otherwise than `expected`.
    pub fn surprises(&self, endpoints: &[Endpoint], expected: impl Fn(&Endpoint, &Endpoint) -> bool) -> Vec<Surprise> {
        self.cells
            .iter()
            .filter(|cell| cell.passes != expected(&endpoints[cell.from], &endpoints[cell.to]))
            .map(|cell| Surprise {
                from: self.names[cell.from].clone(),
                to: self.names[cell.to].clone(),
                proto: cell.proto,
                passes: cell.passes,
            })
            .collect()
    }

    /// Probes and compares; an error lists every surprise.
    pub fn expect(
        endpoints: &[Endpoint],
        expected: impl Fn(&Endpoint, &Endpoint) -> bool + Sync,
    ) -> Result<Self, LabError> {
        let matrix = Self::probe(endpoints, &expected)?;
        let surprises = matrix.surprises(endpoints, expected);
        if surprises.is_empty() {
            return Ok(matrix);
        }
        let lines: Vec<String> = surprises.iter().map(ToString::to_string).collect();
        Err(LabError::Refused { what: format!("the matrix\n{matrix}"), answer: lines.join("\n") })
    }

    fn cell(&self, from: usize, to: usize) -> String {
        if from == to {
            return "-".into();
        }
        let of_pair = || self.cells.iter().filter(|cell| cell.from == from && cell.to == to);
        if of_pair().all(|cell| cell.passes) {
            return "●".into();
        }
        let passing: Vec<String> = of_pair().filter(|cell| cell.passes).map(|cell| cell.proto.to_string()).collect();
        if passing.is_empty() { "·".into() } else { passing.join("+") }
    }
}

impl fmt::Display for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = (1..=self.names.len()).map(|number| number.to_string());
        let mut table = Table::new([String::new(), "from \\ to".to_owned()].into_iter().chain(numbers));
        for (from, name) in self.names.iter().enumerate() {
            let cells = (0..self.names.len()).map(|to| self.cell(from, to));
            table.row([(from + 1).to_string(), name.clone()].into_iter().chain(cells));
        }
        writeln!(f, "{table}  ● icmp, tcp and udp pass   · nothing passes")
    }
}

/// Packets larger than the MTU, both ways: fragments of UDP and ICMP, a TCP stream.
pub fn expect_large(from: &Endpoint, to: &Endpoint, size: usize) -> Result<(), LabError> {
    for proto in Proto::ALL {
        if !reaches_with(from, to.address(), ECHO, proto, size, Duration::from_secs(15))? {
            return Err(LabError::Refused {
                what: format!("{proto} of {size} bytes from {from} to {to}"),
                answer: "does not pass but should".into(),
            });
        }
    }
    Ok(())
}
