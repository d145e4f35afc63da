//! A lab's control groups: a subtree of its own in the unified hierarchy or in each of the older ones.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{LabError, Tried};
use crate::wait;

const MOUNTED: &str = "/sys/fs/cgroup";

/// The hierarchies of this machine that hold controllers: one of version 2, or several of version 1.
fn hierarchies() -> Result<Vec<PathBuf>, LabError> {
    let root = Path::new(MOUNTED);
    if is_unified(root) {
        return Ok(vec![root.to_owned()]);
    }
    let mut found = Vec::new();
    if !root.is_dir() {
        return Ok(found);
    }
    for entry in fs::read_dir(root).tried(|| format!("list {MOUNTED}"))? {
        let path = entry.tried(|| format!("list {MOUNTED}"))?.path();
        // Names such as cpu,cpuacct come with links for each controller.
        if path.is_dir() && !path.is_symlink() && !is_unified(&path) {
            found.push(path);
        }
    }
    Ok(found)
}

fn is_unified(hierarchy: &Path) -> bool {
    hierarchy.join("cgroup.controllers").is_file()
}

/// Makes the group (a relative path such as `bhl7/n1`) in every hierarchy, ready to have groups of its own below it.
pub fn create(group: &Path) -> Result<(), LabError> {
    for hierarchy in hierarchies()? {
        let mut parent = hierarchy.clone();
        for part in group.components() {
            if is_unified(&hierarchy) {
                delegate(&parent)?;
            }
            let child = parent.join(part);
            match fs::create_dir(&child) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                    return Err(error).tried(|| format!("create {}", child.display()));
                }
                _ => {}
            }
            // Version 1: a new cpuset is empty and takes no process.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if !is_unified(&hierarchy)
                    && let Ok(value) = fs::read_to_string(parent.join(file))
                {
                    fs::write(child.join(file), value).tried(|| format!("write {file} of {}", child.display()))?;
                }
            }
            parent = child;
        }
        if is_unified(&hierarchy) {
            delegate(&parent)?;
        }
    }
    Ok(())
}

/// Hands every controller of a group to the groups below it.
fn delegate(group: &Path) -> Result<(), LabError> {
    let what = || format!("delegate the controllers of {}", group.display());
    let controllers = fs::read_to_string(group.join("cgroup.controllers")).tried(what)?;
    let wanted: Vec<String> = controllers.split_whitespace().map(|name| format!("+{name}")).collect();
    fs::write(group.join("cgroup.subtree_control"), wanted.join(" ")).tried(what)
}

/// Removes the group and all below it from every hierarchy. Its processes have ended or are about to.
pub fn remove(group: &Path) -> Result<(), LabError> {
    for hierarchy in hierarchies()? {
        let top = hierarchy.join(group);
        wait::until_or(&format!("the end of {}", top.display()), Duration::from_mins(1), || {
            remove_below(&top).map_err(|error| error.to_string())
        })?;
    }
    Ok(())
}

fn remove_below(group: &Path) -> std::io::Result<()> {
    let entries = match fs::read_dir(group) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            remove_below(&path)?;
        }
    }
    fs::remove_dir(group)
}

/// Whether the group exists in any hierarchy.
pub fn exists(group: &Path) -> Result<bool, LabError> {
    Ok(hierarchies()?.iter().any(|hierarchy| hierarchy.join(group).exists()))
}

/// Whether this machine has the hierarchies of version 1.
pub fn is_version_1() -> bool {
    !is_unified(Path::new(MOUNTED))
}
