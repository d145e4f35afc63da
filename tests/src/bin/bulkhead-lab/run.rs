//! Verbs for a lab that another process runs: `down`, `sweep`, `exec`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use bulkhead_tests::error::{LabError, Tried};
use bulkhead_tests::netns::Netns;
use bulkhead_tests::registry::{self, LabId, Running};
use bulkhead_tests::table::Table;
use bulkhead_tests::wait;
use rustix::process::{Pid, Signal, kill_process};

/// Labs that `up` runs, all or the one of that number; those of tests and demos are nobody else's.
fn up(number: Option<u8>) -> Result<Vec<Running>, LabError> {
    let mut labs = registry::running()?;
    labs.retain(|lab| names_file(lab.id).exists() && number.is_none_or(|number| number == lab.id.number()));
    Ok(labs)
}

/// Ends labs by asking their processes, then removes what killed ones left.
pub fn down(number: Option<u8>) -> Result<ExitCode, LabError> {
    for Running { id, pid } in up(number)? {
        let pid = Pid::from_raw(pid)
            .ok_or_else(|| LabError::Refused { what: "end a lab".into(), answer: format!("no process {pid}") })?;
        kill_process(pid, Signal::TERM).tried(|| format!("end lab {}", id.number()))?;
        wait::until(&format!("the end of lab {}", id.number()), Duration::from_secs(20), || {
            registry::running().is_ok_and(|labs| labs.iter().all(|lab| lab.id != id)).then_some(())
        })?;
        println!("lab {} is down", id.number());
    }
    sweep()
}

/// Removes what killed labs left.
pub fn sweep() -> Result<ExitCode, LabError> {
    for id in registry::sweep()? {
        println!("removed what was left of lab {}", id.number());
    }
    Ok(ExitCode::SUCCESS)
}

fn names_file(id: LabId) -> PathBuf {
    id.dir().join("names")
}

/// Notes the names that `exec` knows: label, tab, path of the namespace.
pub fn write_names(id: LabId, names: &[(String, PathBuf)]) -> Result<(), LabError> {
    let lines: Vec<String> = names.iter().map(|(name, path)| format!("{name}\t{}\n", path.display())).collect();
    let file = names_file(id);
    fs::write(&file, lines.concat()).tried(|| format!("write {}", file.display()))
}

/// Runs a program inside.
pub fn exec(number: Option<u8>, name: Option<&str>, command: &[String]) -> Result<ExitCode, LabError> {
    let refuse = |answer: &str| LabError::Refused { what: "exec".into(), answer: answer.to_owned() };
    let labs = up(number)?;
    let lab = labs.first().ok_or_else(|| refuse("no lab is up; start one with `bulkhead-lab up`"))?;
    let text = fs::read_to_string(names_file(lab.id)).unwrap_or_default();
    let known: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once('\t')).collect();
    let (Some(name), [program, arguments @ ..]) = (name, command) else {
        let mut table = Table::new(["NAME", "NETWORK NAMESPACE"]);
        for (name, path) in &known {
            table.row([name, path]);
        }
        print!("{table}");
        return Ok(ExitCode::SUCCESS);
    };
    let found = known.iter().find(|(label, _)| *label == name || label.split('@').next() == Some(name));
    let (_, path) = found.ok_or_else(|| refuse(&format!("{name} is not in lab {}", lab.id.number())))?;
    let netns = Netns::open(Path::new(path))?;
    let mut child = Command::new(program);
    child.args(arguments);
    let status = netns.spawn(child)?.wait().tried(|| format!("wait for {program}"))?;
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
}
