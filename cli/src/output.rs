//! Prints results: tables for people, JSON for programs.
//!
//! Records are written by others, so no control character of theirs reaches the terminal.

use std::io::Write;

use serde::Serialize;

use crate::args::Format;
use crate::error::CliError;

/// Where results go, in the form that was asked for.
pub struct Console<'a> {
    format: Format,
    out: &'a mut dyn Write,
}

/// A result that is a row of a table.
pub trait Row: Serialize {
    /// The columns' names.
    const HEADER: &'static [&'static str];

    /// One cell per column.
    fn cells(&self) -> Vec<String>;
}

/// A text that does nothing to a terminal but appear.
pub fn plain(text: &str) -> String {
    // The bidirectional controls are no control characters, but reorder what is read.
    let steers = |c: char| {
        c.is_control() || matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if steers(c) { '?' } else { c }).collect()
}

impl<'a> Console<'a> {
    /// Prints to `out`.
    pub fn new(format: Format, out: &'a mut dyn Write) -> Self {
        Self { format, out }
    }

    /// Prints bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        self.out.write_all(bytes)?;
        Ok(self.out.flush()?)
    }

    /// Prints how far a long undertaking is, for people alone.
    pub fn progress(&mut self, line: &str) -> Result<(), CliError> {
        match self.format {
            Format::Json => Ok(()),
            Format::Table => self.raw((plain(line) + "\n").as_bytes()),
        }
    }

    /// Prints a list: a table, or a JSON array.
    pub fn table<T: Row>(&mut self, rows: &[T], empty: &str) -> Result<(), CliError> {
        match self.format {
            Format::Json => self.json(&rows),
            Format::Table if rows.is_empty() => self.raw(format!("{empty}\n").as_bytes()),
            Format::Table => {
                let header = T::HEADER.iter().map(|name| (*name).to_owned()).collect();
                let cells: Vec<_> = std::iter::once(header).chain(rows.iter().map(Row::cells)).collect();
                self.raw(align(&cells).as_bytes())
            }
        }
    }

    /// Prints one thing: name and value per line, or a JSON object. Lines without a value are left out.
    pub fn card<T: Serialize>(&mut self, value: &T, lines: &[(&str, String)]) -> Result<(), CliError> {
        match self.format {
            Format::Json => self.json(value),
            Format::Table => {
                let lines = lines.iter().filter(|(_, value)| !value.is_empty());
                let cells: Vec<_> = lines.map(|(name, value)| vec![format!("{name}:"), value.clone()]).collect();
                self.raw(align(&cells).as_bytes())
            }
        }
    }

    /// Prints what was done: a sentence per thing, or the JSON of all.
    pub fn report<T: Serialize>(&mut self, value: &T, sentences: &[String]) -> Result<(), CliError> {
        match self.format {
            Format::Json => self.json(value),
            Format::Table => {
                let text = sentences.iter().fold(String::new(), |text, line| text + &plain(line) + "\n");
                self.raw(text.as_bytes())
            }
        }
    }

    fn json(&mut self, value: &impl Serialize) -> Result<(), CliError> {
        let mut text = serde_json::to_vec_pretty(value).map_err(std::io::Error::from)?;
        text.push(b'\n');
        self.raw(&text)
    }
}

/// Columns as wide as their widest cell, two spaces apart.
fn align(rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|cells| cells.iter().map(|cell| plain(cell)).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|cells| cells.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for cells in rows {
        let line: Vec<String> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_nothing_steers_the_terminal() {
        let rows = [vec!["NAME".into(), "X".into()], vec!["\u{1b}[2Jb\u{e4}\u{202e}r\n".into(), "1".into()]];
        assert_eq!(align(&rows), "NAME       X\n?[2Jb\u{e4}?r?  1\n");
    }
}
