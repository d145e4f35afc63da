//! Files of the project that are made of something else, and must not differ from it.

use std::fs;
use std::path::PathBuf;

/// The top folder of the project.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Compares a file, named from the project's top folder, with what it is to be; writes it instead where `BULKHEAD_BLESS` is set.
///
/// # Errors
/// It differs: from which line on, and what to do. Or it cannot be written.
pub fn keep(file: &str, wanted: &str, bless: &str) -> Result<(), String> {
    let path = root().join(file);
    if std::env::var_os("BULKHEAD_BLESS").is_some() {
        fs::write(&path, wanted).map_err(|error| format!("{file}: {error}"))?;
    }
    let there = fs::read_to_string(&path).unwrap_or_default();
    if there == wanted {
        return Ok(());
    }
    let same = there.lines().zip(wanted.lines()).take_while(|(a, b)| a == b).count();
    Err(format!("{file} is not what is made of its source, from line {} on; `{bless}` writes it anew", same + 1))
}
