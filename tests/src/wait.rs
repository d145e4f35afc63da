//! Awaiting a condition: never a fixed sleep.

use std::thread;
use std::time::{Duration, Instant};

use crate::error::LabError;

/// How often a condition is looked at.
const STEP: Duration = Duration::from_millis(10);

/// Waits until `condition` gives a value; after `limit` the error says what was awaited.
pub fn until<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Result<T, LabError> {
    until_or(what, limit, || condition().ok_or_else(String::new))
}

/// As [`until`]; the condition says what it saw instead.
pub fn until_or<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<T, String>,
) -> Result<T, LabError> {
    let begin = Instant::now();
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(seen) if begin.elapsed() >= limit => {
                let detail = if seen.is_empty() { seen } else { format!("; last seen: {seen}") };
                return Err(LabError::TimedOut { what: what.to_owned(), waited: begin.elapsed(), detail });
            }
            Err(_) => thread::sleep(STEP),
        }
    }
}
