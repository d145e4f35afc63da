//! The reference of the programs' flags, made of what clap knows of them.
//!
//! Promises: each flag, positional and verb of the given commands is in it once for each meaning that it has; one without help is
//! refused, so that none stays undocumented. Flags of etcd, which all programs share, are told once.

use std::fmt::Write;

use clap::{Arg, Command};

/// The heading of the flags that all programs share.
const SHARED: &str = "etcd";

/// One flag or positional, as the page shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    name: String,
    variable: String,
    default: String,
    meaning: String,
}

/// The page, in Markdown, of programs with and without verbs.
///
/// # Errors
/// Something has no help, or the programs differ in the flags that they share.
pub fn reference(programs: &[Command]) -> Result<String, String> {
    let mut page = String::from(
        "# Flags\n\n\
         Made of the programs' own definitions; `make reference` makes it anew, and a test keeps it so. A flag that has a variable may \
         be given by it; a flag on the command line wins. `bulkhead-cni` takes none: the runtime calls it by environment and stdin \
         ([cni.md](cni.md)).\n",
    );
    let mut shared: Option<Vec<Row>> = None;
    for program in programs {
        let rows = rows(program, |heading| heading == Some(SHARED))?;
        if shared.get_or_insert_with(|| rows.clone()) != &rows {
            return Err(format!("{} has other flags for {SHARED} than the programs before it", program.get_name()));
        }
    }
    section(&mut page, "## etcd, for all programs", &shared.unwrap_or_default());
    for program in programs {
        let name = program.get_name();
        let own = rows(program, |heading| heading != Some(SHARED))?;
        section(&mut page, &format!("## {name}"), &own);
        let mut verbs = Vec::new();
        collect(program, "", &mut verbs)?;
        if verbs.is_empty() {
            continue;
        }
        section_of_verbs(&mut page, name, &verbs);
    }
    Ok(page)
}

fn section(page: &mut String, title: &str, rows: &[Row]) {
    let _ = write!(page, "\n{title}\n\n| flag | variable | default | meaning |\n|---|---|---|---|\n");
    for Row { name, variable, default, meaning } in rows {
        let _ = writeln!(page, "| {name} | {variable} | {default} | {meaning} |");
    }
}

/// A verb with its own flags.
struct Verb {
    name: String,
    about: String,
    rows: Vec<Row>,
}

fn collect(command: &Command, path: &str, verbs: &mut Vec<Verb>) -> Result<(), String> {
    for verb in command.get_subcommands() {
        let name = format!("{path} {}", verb.get_name()).trim().to_owned();
        if verb.has_subcommands() {
            collect(verb, &name, verbs)?;
            continue;
        }
        let about = verb.get_about().ok_or_else(|| format!("the verb {name} has no help"))?.to_string();
        verbs.push(Verb { rows: rows(verb, |_| true)?, name, about: cell(&about) });
    }
    Ok(())
}

/// What the verbs do, and their flags: one that means the same for several is told once.
fn section_of_verbs(page: &mut String, program: &str, verbs: &[Verb]) {
    let _ = write!(page, "\n### Verbs of {program}\n\n| verb | does |\n|---|---|\n");
    for Verb { name, about, .. } in verbs {
        let _ = writeln!(page, "| `{name}` | {about} |");
    }
    let mut told: Vec<(&Row, Vec<&str>)> = Vec::new();
    for verb in verbs {
        for row in &verb.rows {
            match told.iter_mut().find(|(other, _)| *other == row) {
                Some((_, names)) => names.push(&verb.name),
                None => told.push((row, vec![&verb.name])),
            }
        }
    }
    let _ = write!(page, "\n| flag or argument | of | default | meaning |\n|---|---|---|---|\n");
    for (Row { name, default, meaning, .. }, names) in told {
        let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        let _ = writeln!(page, "| {name} | {} | {default} | {meaning} |", names.join(", "));
    }
}

fn rows(command: &Command, wanted: impl Fn(Option<&str>) -> bool) -> Result<Vec<Row>, String> {
    let of = command.get_arguments().filter(|arg| !arg.is_hide_set() && wanted(arg.get_help_heading()));
    of.map(|arg| row(arg).ok_or_else(|| format!("{}: {} has no help", command.get_name(), arg.get_id()))).collect()
}

fn row(arg: &Arg) -> Option<Row> {
    let help = arg.get_help()?.to_string();
    // What clap cannot know of a default is told by the help itself.
    let (help, told) = match help.split_once(" [default") {
        Some((before, told)) => (before, told.trim_start_matches([':', ' ']).trim_end_matches(']')),
        None => (help.as_str(), ""),
    };
    let takes = arg.get_action().takes_values();
    let mut possible = Vec::new();
    let mut default = Vec::new();
    if takes {
        possible.extend(arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())));
    }
    if takes && !arg.is_hide_default_value_set() {
        default.extend(arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()));
    }
    let default = if default.is_empty() { told.to_owned() } else { code(&default.join(",")) };
    let meaning = if possible.is_empty() { help.to_owned() } else { format!("{help}: {}", possible.join(", ")) };
    let variable = arg.get_env().map(|name| code(&name.to_string_lossy())).unwrap_or_default();
    Some(Row { name: name(arg, takes), variable, default: cell(&default), meaning: cell(&meaning) })
}

/// `-o`, `--output FORMAT`, or `NAMESPACES...`.
fn name(arg: &Arg, takes: bool) -> String {
    let value = match arg.get_value_names() {
        Some(names) => names.join(" "),
        None => arg.get_id().as_str().to_uppercase(),
    };
    if arg.is_positional() {
        let several = arg.get_num_args().is_some_and(|count| count.max_values() > 1)
            || matches!(arg.get_action(), clap::ArgAction::Append);
        return code(&format!("{value}{}", if several { "..." } else { "" }));
    }
    let mut forms = Vec::new();
    forms.extend(arg.get_short().map(|short| code(&format!("-{short}"))));
    let long = arg.get_long().unwrap_or_default();
    forms.push(if takes { code(&format!("--{long} {value}")) } else { code(&format!("--{long}")) });
    forms.join(", ")
}

fn code(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("`{}`", cell(text)) }
}

/// Text that does not end a table's cell.
fn cell(text: &str) -> String {
    text.replace("\\|", "|").replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> Command {
        let etcd = || Arg::new("e").long("e").help("E").help_heading("etcd").env("E");
        let form = Arg::new("form").short('f').long("form").value_name("A|B").value_parser(["a", "b"]);
        let wait = || Arg::new("wait").long("wait").action(clap::ArgAction::SetTrue).help("Wait");
        let one = Command::new("one").about("Does one").arg(wait());
        let two = Command::new("two").about("Does two").arg(wait()).arg(Arg::new("x").help("Those").num_args(1..));
        Command::new("p")
            .arg(etcd())
            .arg(form.default_value("a").help("Form"))
            .arg(Arg::new("n").long("n").help("Name [default: the host's]"))
            .subcommand(one)
            .subcommand(Command::new("group").subcommand(two))
    }

    #[test]
    fn flags_verbs_and_arguments_are_told_once() {
        let page = reference(&[program(), program()]).unwrap();
        for row in [
            "| `--e E` | `E` |  | E |",
            "| `-f`, `--form A\\|B` |  | `a` | Form: `a`, `b` |",
            "| `--n N` |  | the host's | Name |",
            "| `group two` | Does two |",
            "| `--wait` | `one`, `group two` |  | Wait |",
            "| `X...` | `group two` |  | Those |",
        ] {
            assert!(page.contains(row), "{row}\n{page}");
        }
        assert_eq!(page.matches("| `--e E` |").count(), 1);
    }

    #[test]
    fn what_has_no_help_or_differs_is_refused() {
        let silent = Command::new("p").arg(Arg::new("x").long("x"));
        assert_eq!(reference(&[silent]).unwrap_err(), "p: x has no help");
        assert!(reference(&[program(), Command::new("q")]).unwrap_err().contains("other flags for etcd"));
    }
}
