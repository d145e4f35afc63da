//! A question before what cannot be taken back.

use std::io::{BufRead, IsTerminal, Write};

use crate::error::CliError;
use crate::output::plain;

/// Says what would be done and asks whether to go on; none where nobody can answer, for there is no terminal.
pub fn asked(warning: &str) -> Result<Option<bool>, CliError> {
    if !std::io::stdin().is_terminal() {
        return Ok(None);
    }
    let mut terminal = std::io::stderr();
    write!(terminal, "{}\nGo on? [y/N] ", plain(warning))?;
    terminal.flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(Some(matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes")))
}
