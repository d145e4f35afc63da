//! The pages that are made of the sources, and what they may not miss. `BULKHEAD_BLESS=1` writes them (`make reference`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use bulkhead_agent::datapath::REASONS;
use bulkhead_core::annotation::ALL;
use bulkhead_deploy::kept::{keep, root};
use bulkhead_deploy::{annotations, drops, flags, schema, values};
use clap::CommandFactory;

const BLESS: &str = "make reference";

#[test]
fn values_are_those_of_the_chart() {
    let text = fs::read_to_string(root().join("deploy/chart/values.yaml")).unwrap();
    keep("docs/values.md", &values::reference(&text).unwrap(), BLESS).unwrap();
}

#[test]
fn the_schema_says_of_each_value_what_the_chart_says() {
    let read = |file: &str| fs::read_to_string(root().join(file)).unwrap();
    let (file, values) = ("deploy/chart/values.schema.json", read("deploy/chart/values.yaml"));
    keep(file, &schema::described(&read(file), &values).unwrap(), BLESS).unwrap();
}

#[test]
fn flags_are_those_of_the_programs() {
    let programs = [
        bulkhead_agent::args::Args::command(),
        bulkhead_controller::args::ControllerArgs::command(),
        bulkhead_cli::command(false),
    ];
    keep("docs/flags.md", &flags::reference(&programs).unwrap(), BLESS).unwrap();
}

#[test]
fn annotations_are_those_of_the_core() {
    keep("docs/annotations.md", &annotations::reference(), BLESS).unwrap();
}

#[test]
fn reasons_of_drops_are_those_of_the_datapath() {
    let reasons = REASONS.iter().map(|reason| (reason.counter, reason.meaning));
    keep("docs/drops.md", &drops::reference(reasons), BLESS).unwrap();
}

/// Files below a folder whose names end so.
fn files(folder: &Path, ends: &[&str], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, ends, found);
        } else if ends.iter().any(|end| path.to_string_lossy().ends_with(end)) {
            found.push(path);
        }
    }
}

/// An annotation that is used without being described is one that users do not know.
#[test]
fn every_annotation_in_the_sources_is_described() {
    let mut sources = Vec::new();
    for folder in
        ["core/src", "store/src", "controller/src", "agent/src", "cli/src", "cni-plugin/src", "deploy/chart/templates"]
    {
        files(&root().join(folder), &[".rs", ".yaml"], &mut sources);
    }
    let described: BTreeSet<&str> = ALL.iter().filter_map(|one| one.name.strip_prefix("bulkhead.dev/")).collect();
    let mut used = BTreeSet::new();
    for path in sources {
        // Tests write wrong ones on purpose.
        if path.to_string_lossy().ends_with("_tests.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for (at, prefix) in text.match_indices("bulkhead.dev/") {
            let rest = &text[at + prefix.len()..];
            let end = rest.find(|c: char| !(c.is_ascii_lowercase() || c == '-')).unwrap_or(rest.len());
            if end > 0 {
                assert!(described.contains(&rest[..end]), "{}: bulkhead.dev/{}", path.display(), &rest[..end]);
                used.insert(rest[..end].to_owned());
            }
        }
    }
    assert_eq!(used.len(), described.len(), "{used:?}");
}

/// A page that was renamed, or has a typo in a link, is found here.
#[test]
fn links_between_the_documents_lead_to_files() {
    let mut pages: Vec<PathBuf> =
        ["README.md", "SECURITY.md", "CONTRIBUTING.md"].iter().map(|name| root().join(name)).collect();
    files(&root().join("docs"), &[".md"], &mut pages);
    let mut looked = 0;
    for page in &pages {
        let text = fs::read_to_string(page).unwrap();
        for (at, start) in text.match_indices("](") {
            let link = text[at + start.len()..].split([')', '#']).next().unwrap();
            if !link.is_empty() && !link.contains("://") {
                assert!(page.parent().unwrap().join(link).exists(), "{}: {link}", page.display());
                looked += 1;
            }
        }
    }
    assert!(looked > 20, "{looked}");
}
