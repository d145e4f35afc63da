//! One layer of an image: a set of files, written as the same bytes whenever and wherever it is written.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bulkhead_tests::error::{LabError, Tried};
use tar::{Builder, EntryType, Header};

use crate::elf;

/// As in Debian, these lead into /usr.
const LINKS: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

#[derive(Debug, Clone)]
enum Entry {
    Directory(u32),
    Copy(PathBuf),
    Text(String),
    Link(PathBuf),
}

/// Files by their path in the image, relative to its root.
#[derive(Debug, Clone, Default)]
pub struct Layer(BTreeMap<PathBuf, Entry>);

impl Layer {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// What every image of the lab starts with: the directories and links of a Debian root, two users, /tmp.
    pub fn base() -> Self {
        let mut base = Self::new();
        for link in LINKS {
            let target = Path::new("usr").join(link);
            base.add(&target, Entry::Directory(0o755));
            base.add(link, Entry::Link(target));
        }
        for directory in ["dev", "etc", "proc", "root", "run", "sys", "var"] {
            base.add(directory, Entry::Directory(0o755));
        }
        base.add("tmp", Entry::Directory(0o1777));
        base.text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")
            .text("/etc/group", "root:x:0:\nnogroup:x:65534:\n")
            .text("/etc/nsswitch.conf", "hosts: files dns\n")
    }

    fn add(&mut self, path: impl AsRef<Path>, entry: Entry) {
        let path = below_usr(path.as_ref());
        for parent in path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
            self.0.entry(parent.to_owned()).or_insert(Entry::Directory(0o755));
        }
        self.0.insert(path, entry);
    }

    /// A file of the host, with its mode.
    #[must_use]
    pub fn file(mut self, from: &Path, to: &str) -> Self {
        self.add(to, Entry::Copy(from.to_owned()));
        self
    }

    /// A small file.
    #[must_use]
    pub fn text(mut self, to: &str, text: &str) -> Self {
        self.add(to, Entry::Text(text.to_owned()));
        self
    }

    /// An empty directory.
    #[must_use]
    pub fn directory(mut self, to: &str) -> Self {
        self.add(to, Entry::Directory(0o755));
        self
    }

    /// A symbolic link.
    #[must_use]
    pub fn link(mut self, target: &str, to: &str) -> Self {
        self.add(to, Entry::Link(target.into()));
        self
    }

    /// A program of the host with all that it needs to run, which stays where the loader looks for it.
    pub fn program(mut self, from: &Path, to: &str) -> Result<Self, LabError> {
        let real =
            fs::canonicalize(from).tried(|| format!("find {} (run `scripts/setup kubernetes`)", from.display()))?;
        for library in elf::needed_by(&real)? {
            self.add(library.clone(), Entry::Copy(library));
        }
        self.add(to, Entry::Copy(real));
        Ok(self)
    }

    /// The layer as an uncompressed tar archive.
    pub fn archive(&self) -> Result<Vec<u8>, LabError> {
        let mut archive = Builder::new(Vec::new());
        for (path, entry) in &self.0 {
            let done = append(&mut archive, path, entry);
            done.tried(|| format!("add {} to an image", path.display()))?;
        }
        archive.into_inner().tried(|| "finish an image's layer".into())
    }
}

/// Relative to the root, and in /usr what [`Layer::base`] has links for: a directory must not take a link's place.
fn below_usr(path: &Path) -> PathBuf {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let linked = LINKS.iter().any(|link| relative.starts_with(link) && relative != Path::new(link));
    if linked { Path::new("usr").join(relative) } else { relative.to_owned() }
}

fn append(archive: &mut Builder<Vec<u8>>, path: &Path, entry: &Entry) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    match entry {
        Entry::Directory(mode) => {
            header.set_entry_type(EntryType::Directory);
            header.set_mode(*mode);
            archive.append_data(&mut header, path, io::empty())
        }
        Entry::Link(target) => {
            header.set_entry_type(EntryType::Symlink);
            header.set_mode(0o777);
            archive.append_link(&mut header, path, target)
        }
        Entry::Text(text) => {
            header.set_mode(0o644);
            header.set_size(text.len() as u64);
            archive.append_data(&mut header, path, text.as_bytes())
        }
        Entry::Copy(from) => {
            let name = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", from.display()));
            let data = fs::read(from).map_err(name)?;
            let executable = fs::metadata(from).map_err(name)?.permissions().mode() & 0o111 != 0;
            header.set_mode(if executable { 0o755 } else { 0o644 });
            header.set_size(data.len() as u64);
            archive.append_data(&mut header, path, data.as_slice())
        }
    }
}
