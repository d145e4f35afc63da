//! The reference of the chart's values, made of the comments in `chart/values.yaml`.
//!
//! Reads as much of YAML as that file needs: maps by indentation, values on one line or as a list below. Promises: a value
//! without a comment directly above it is refused, so that none stays undocumented.

use std::fmt::Write;

/// One value.
#[derive(Debug, Clone)]
pub struct Value {
    /// Its keys, with dots between.
    pub path: String,
    /// Its default, on one line.
    pub default: String,
    /// What stands above it.
    pub comment: String,
}

/// A map that is open while its lines are read.
struct Open {
    indent: usize,
    path: String,
}

/// The page, in Markdown.
///
/// # Errors
/// A value has no comment.
pub fn reference(values: &str) -> Result<String, String> {
    let mut page = String::from(
        "# Values of the chart\n\n\
         Made of the comments in `deploy/chart/values.yaml`; `make reference` makes it anew, and a test keeps it so. Values are \
         checked by `values.schema.json`.\n\n\
         | value | default | meaning |\n|---|---|---|\n",
    );
    for Value { path, default, comment } in read(values)? {
        let comment = comment.replace('|', "\\|");
        writeln!(page, "| `{path}` | `{default}` | {comment} |").map_err(|error| error.to_string())?;
    }
    Ok(page)
}

/// All of them, in their order.
///
/// # Errors
/// A value has no comment.
pub fn read(text: &str) -> Result<Vec<Value>, String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    let mut comment = String::new();
    let mut at = 0;
    while let Some(line) = lines.get(at) {
        at += 1;
        let words = line.trim();
        if let Some(text) = words.strip_prefix('#') {
            if !comment.is_empty() {
                comment.push(' ');
            }
            comment.push_str(text.trim());
            continue;
        }
        let Some((key, value)) = words.split_once(':') else {
            comment.clear();
            continue;
        };
        let indent = line.len() - line.trim_start().len();
        open.retain(|map| map.indent < indent);
        let path = open.last().map_or_else(|| key.to_owned(), |map| format!("{}.{key}", map.path));
        let below: Vec<&str> = lines[at..].iter().copied().take_while(|next| deeper(next, indent)).collect();
        let meaning = std::mem::take(&mut comment);
        let default = match (value.trim(), below.first()) {
            ("", Some(first)) if first.trim_start().starts_with("- ") => list(&below),
            // A map with a comment of its own is a value as a whole: what is in it is free.
            ("", Some(first)) if !meaning.is_empty() && !first.trim_start().starts_with('#') => map(&below),
            ("", Some(_)) => {
                open.push(Open { indent, path });
                continue;
            }
            (value, _) => {
                if meaning.is_empty() {
                    return Err(format!("the value {path} has no comment above it"));
                }
                found.push(Value { path, default: value.to_owned(), comment: meaning });
                continue;
            }
        };
        if meaning.is_empty() {
            return Err(format!("the value {path} has no comment above it"));
        }
        at += below.len();
        found.push(Value { path, default, comment: meaning });
    }
    Ok(found)
}

fn deeper(line: &str, indent: usize) -> bool {
    !line.trim().is_empty() && line.len() - line.trim_start().len() > indent
}

fn list(lines: &[&str]) -> String {
    let items: Vec<&str> = lines.iter().map(|line| line.trim().trim_start_matches("- ")).collect();
    format!("[{}]", items.join(", "))
}

/// A small map on one line.
fn map(lines: &[&str]) -> String {
    let mut text = String::new();
    let mut indents: Vec<usize> = Vec::new();
    for line in lines {
        let indent = line.len() - line.trim_start().len();
        while indents.last().is_some_and(|last| *last > indent) {
            indents.pop();
            text.push('}');
        }
        if indents.last() == Some(&indent) {
            text.push_str(", ");
        } else {
            indents.push(indent);
            text.push('{');
        }
        text.push_str(line.trim());
        if line.trim_end().ends_with(':') {
            text.push(' ');
        }
    }
    text.push_str(&"}".repeat(indents.len()));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_with_their_paths_and_comments() {
        let page = reference(
            "# Head\n\na:\n  # Of b\n  b: 1\n  # Of\n  # c\n  c:\n    - x\n    - y\n# Of d | e\nd:\n  e:\n    f: 2\n    g: 3\n",
        )
        .unwrap();
        for row in
            ["| `a.b` | `1` | Of b |", "| `a.c` | `[x, y]` | Of c |", "| `d` | `{e: {f: 2, g: 3}}` | Of d \\| e |"]
        {
            assert!(page.contains(row), "{row}: {page}");
        }
        assert!(!page.contains("Head"));
        assert_eq!(reference("a:\n  b: 1\n").unwrap_err(), "the value a.b has no comment above it");
    }
}
