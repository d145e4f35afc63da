//! Which files a dynamically linked program needs to run: its interpreter and its libraries, theirs included.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use bulkhead_tests::error::{LabError, Tried};
use object::elf::{DT_NEEDED, FileHeader64};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use object::{Endianness, ReadRef};

/// Where Debian's loader looks without being told.
const PLACES: [&str; 6] = ["/usr/lib/{}-linux-gnu", "/lib/{}-linux-gnu", "/usr/lib64", "/lib64", "/usr/lib", "/lib"];

/// The files, by the path that the loader wants them at. Empty for a static program and for what is no ELF file.
pub fn needed_by(program: &Path) -> Result<BTreeSet<PathBuf>, LabError> {
    let mut found = BTreeSet::new();
    let mut open = vec![program.to_owned()];
    while let Some(file) = open.pop() {
        let data = fs::read(&file).tried(|| format!("read {}", file.display()))?;
        let Ok((interpreter, names)) = references(data.as_slice()) else { continue };
        for name in names {
            let path = locate(&name).ok_or_else(|| LabError::Refused {
                what: format!("find the libraries of {}", file.display()),
                answer: format!("{name} is in none of the loader's directories"),
            })?;
            if !found.contains(&path) {
                found.insert(path.clone());
                open.push(path);
            }
        }
        if let Some(path) = interpreter {
            found.insert(path);
        }
    }
    Ok(found)
}

fn locate(name: &str) -> Option<PathBuf> {
    let places = PLACES.iter().map(|place| place.replace("{}", std::env::consts::ARCH));
    places.map(|place| Path::new(&place).join(name)).find(|path| path.is_file())
}

fn references<'data>(data: impl ReadRef<'data>) -> object::read::Result<(Option<PathBuf>, Vec<String>)> {
    let header = FileHeader64::<Endianness>::parse(data)?;
    let endian = header.endian()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut interpreter = None;
    for segment in header.program_headers(endian, data)? {
        if let Some(path) = segment.interpreter(endian, data)? {
            interpreter = Some(PathBuf::from(text(path)));
        }
    }
    let sections = header.sections(endian, data)?;
    let mut names = Vec::new();
    if let Some((entries, link)) = sections.dynamic(endian, data)? {
        let strings = sections.strings(endian, data, link)?;
        for entry in entries.iter().filter(|entry| entry.tag(endian) == DT_NEEDED) {
            names.push(text(entry.string(endian, strings)?));
        }
    }
    Ok((interpreter, names))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_needs_its_libc_and_a_text_nothing() {
        let files = needed_by(Path::new("/bin/sh")).unwrap();
        assert!(files.iter().any(|path| path.ends_with("libc.so.6")), "{files:?}");
        assert!(files.iter().any(|path| path.to_string_lossy().contains("/ld-linux")), "{files:?}");
        assert!(needed_by(Path::new("/etc/passwd")).unwrap().is_empty());
    }
}
