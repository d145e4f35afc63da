//! Verbs for a lab that another process runs: `down`, `sweep`, `exec`.

use std::process::{Command, ExitCode};

use bulkhead_tests::error::{LabError, Tried};
use bulkhead_tests::netns::Netns;
use bulkhead_tests::table::Table;
use bulkhead_tests::{registry, standing};

/// Ends labs by asking their processes, then removes what killed ones left.
pub fn down(number: Option<u8>) -> Result<ExitCode, LabError> {
    for id in standing::down(number)? {
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

/// Runs a program inside.
pub fn exec(number: Option<u8>, name: Option<&str>, command: &[String]) -> Result<ExitCode, LabError> {
    let refuse = |answer: &str| LabError::Refused { what: "exec".into(), answer: answer.to_owned() };
    let labs = standing::labs(number)?;
    let lab = labs.first().ok_or_else(|| refuse("no lab is up; start one with `bulkhead-lab up`"))?;
    let known = standing::names(lab.id);
    let (Some(name), [program, arguments @ ..]) = (name, command) else {
        let mut table = Table::new(["NAME", "NETWORK NAMESPACE"]);
        for (name, path) in &known {
            table.row([name.clone(), path.display().to_string()]);
        }
        print!("{table}");
        return Ok(ExitCode::SUCCESS);
    };
    let found = known.iter().find(|(label, _)| label == name || label.split('@').next() == Some(name));
    let (_, path) = found.ok_or_else(|| refuse(&format!("{name} is not in lab {}", lab.id.number())))?;
    let netns = Netns::open(path)?;
    let mut child = Command::new(program);
    child.args(arguments);
    let status = netns.spawn(child)?.wait().tried(|| format!("wait for {program}"))?;
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
}
