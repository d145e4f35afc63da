//! The command line tool as an administrator uses it.

use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;

use serde_json::Value;

use crate::error::LabError;
use crate::netns::Netns;

/// The tool with the flags that point it at the lab.
#[derive(Debug, Clone)]
pub struct Cli {
    /// Where it runs.
    pub netns: Arc<Netns>,
    /// The program.
    pub program: PathBuf,
    /// Flags before the verb.
    pub flags: Vec<String>,
}

/// What it answered.
#[derive(Debug, Clone)]
pub struct CliOutput {
    /// Its exit code; -1 if a signal ended it.
    pub exit: i32,
    /// Everything on stdout.
    pub stdout: String,
    /// Everything on stderr.
    pub stderr: String,
}

impl From<Output> for CliOutput {
    fn from(output: Output) -> Self {
        Self {
            exit: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Cli {
    /// Runs it, whatever it answers.
    pub fn run(&self, arguments: &[&str]) -> Result<CliOutput, LabError> {
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        let program = self.program.display().to_string();
        Ok(self.netns.output(&program, &[&flags, arguments].concat(), &[])?.into())
    }

    /// Runs it; anything but success is an error.
    pub fn ok(&self, arguments: &[&str]) -> Result<String, LabError> {
        let output = self.run(arguments)?;
        if output.exit == 0 {
            return Ok(output.stdout);
        }
        let what = format!("bulkhead {}", arguments.join(" "));
        let answer = format!("exit {}: {}{}", output.exit, output.stdout.trim(), output.stderr.trim());
        Err(LabError::Refused { what, answer })
    }

    /// Runs it with `-o json` and reads the answer.
    pub fn json(&self, arguments: &[&str]) -> Result<Value, LabError> {
        let text = self.ok(&[&["-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).map_err(|error| LabError::Refused {
            what: format!("bulkhead -o json {}", arguments.join(" ")),
            answer: format!("not JSON ({error}): {text}"),
        })
    }
}
