//! The reference of annotations, made of [`bulkhead_core::annotation::ALL`].

use std::fmt::Write;

use bulkhead_core::annotation::{ALL, Description};

/// The page, in Markdown.
pub fn reference() -> String {
    let mut page = String::from(
        "# Annotations\n\n\
         Made of `core/src/annotation.rs`; `make reference` makes it anew, and a test keeps it so. Who wins where an annotation and \
         an action differ, and what each status means: [kubernetes.md](kubernetes.md).\n\n\
         | annotation | on a | written by | values | effect |\n|---|---|---|---|---|\n",
    );
    for Description { name, object, writer, values, effect } in ALL {
        let _ = writeln!(page, "| `{name}` | {object} | {writer} | {values} | {effect} |");
    }
    page
}
