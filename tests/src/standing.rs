//! Labs that are left up for a person: another process finds them, knows their parts by name, and ends them.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::error::{LabError, Tried};
use crate::registry::{self, LabId, Running};
use crate::wait;

fn names_file(id: LabId) -> PathBuf {
    id.dir().join("names")
}

/// Notes the names of a lab's network namespaces, and that it is left up.
pub fn write_names(id: LabId, names: &[(String, PathBuf)]) -> Result<(), LabError> {
    let lines: Vec<String> = names.iter().map(|(name, path)| format!("{name}\t{}\n", path.display())).collect();
    let file = names_file(id);
    fs::write(&file, lines.concat()).tried(|| format!("write {}", file.display()))
}

/// What [`write_names`] noted.
pub fn names(id: LabId) -> Vec<(String, PathBuf)> {
    let text = fs::read_to_string(names_file(id)).unwrap_or_default();
    let pairs = text.lines().filter_map(|line| line.split_once('\t'));
    pairs.map(|(name, path)| (name.to_owned(), path.into())).collect()
}

/// Labs that are left up, all or the one of that number; those of tests and demos are nobody else's.
pub fn labs(number: Option<u8>) -> Result<Vec<Running>, LabError> {
    let mut labs = registry::running()?;
    labs.retain(|lab| names_file(lab.id).exists() && number.is_none_or(|number| number == lab.id.number()));
    Ok(labs)
}

/// Ends them by asking their processes.
pub fn down(number: Option<u8>) -> Result<Vec<LabId>, LabError> {
    let mut ended = Vec::new();
    for Running { id, pid } in labs(number)? {
        let pid = Pid::from_raw(pid)
            .ok_or_else(|| LabError::Refused { what: "end a lab".into(), answer: format!("no process {pid}") })?;
        kill_process(pid, Signal::TERM).tried(|| format!("end lab {}", id.number()))?;
        wait::until(&format!("the end of lab {}", id.number()), Duration::from_secs(20), || {
            registry::running().is_ok_and(|labs| labs.iter().all(|lab| lab.id != id)).then_some(())
        })?;
        ended.push(id);
    }
    Ok(ended)
}
