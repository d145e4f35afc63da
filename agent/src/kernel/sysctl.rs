//! Kernel settings under `/proc/sys/net`: compared first, written only when they differ, and said when they were.
//!
//! They are those of the calling thread's network namespace.

use std::io;
use std::path::{Path, PathBuf};

const ROOT: &str = "/proc/sys";

/// A setting that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SysctlError {
    /// Not a setting of the network.
    #[error("`{key}` is not the path of a network setting; one looks like net/ipv4/ip_forward")]
    Key {
        /// What was given.
        key: String,
    },
    /// The setting is not there or cannot be read.
    #[error("cannot read {}: {source}; does this kernel have the setting, and the device exist?", path.display())]
    Read {
        /// The setting's file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The setting cannot be written.
    #[error("cannot set {} to {value}: {source}; set it on the node, or let the agent write to /proc/sys", path.display())]
    Write {
        /// The setting's file.
        path: PathBuf,
        /// What it was to be.
        value: String,
        /// The system's answer.
        source: io::Error,
    },
}

/// The value of a setting, without the line's end. `key` is the path below `/proc/sys`, as in `net/ipv4/ip_forward`: slashes, for a
/// device's name may hold dots.
pub fn read(key: &str) -> Result<String, SysctlError> {
    read_file(&path(key)?)
}

/// Makes sure that a setting has a value. `Some` says what was changed, from what to what; `None`: it was so already.
pub fn ensure(key: &str, value: &str) -> Result<Option<String>, SysctlError> {
    let path = path(key)?;
    let before = read_file(&path)?;
    if before == value {
        return Ok(None);
    }
    std::fs::write(&path, value).map_err(|source| SysctlError::Write { path, value: value.to_owned(), source })?;
    Ok(Some(format!("{key}: from {before} to {value}")))
}

fn path(key: &str) -> Result<PathBuf, SysctlError> {
    let plain = key.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if key.starts_with("net/") && plain {
        Ok(Path::new(ROOT).join(key))
    } else {
        Err(SysctlError::Key { key: key.to_owned() })
    }
}

fn read_file(path: &Path) -> Result<String, SysctlError> {
    let text = std::fs::read_to_string(path).map_err(|source| SysctlError::Read { path: path.to_owned(), source })?;
    Ok(text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{in_new_netns, new_netns, wired_pod};
    use super::super::inside;
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_setting_is_changed_once_and_only_in_this_namespace() {
        in_new_netns(|| {
            let pod = new_netns();
            let key = "net/ipv4/ip_forward";
            let (before, wanted) = if read(key).unwrap() == "0" { ("0", "1") } else { ("1", "0") };
            assert_eq!(ensure(key, wanted).unwrap(), Some(format!("{key}: from {before} to {wanted}")));
            assert_eq!(ensure(key, wanted).unwrap(), None);
            assert_eq!(read(key).unwrap(), wanted);
            assert_eq!(inside(pod.as_fd(), "test", || read(key).unwrap()).unwrap(), before);
        });
    }

    #[test]
    fn a_devices_settings_are_reached_and_a_missing_device_is_told() {
        in_new_netns(|| {
            let _pod = wired_pod();
            ensure("net/ipv4/conf/vethtest0/rp_filter", "2").unwrap();
            assert_eq!(read("net/ipv4/conf/vethtest0/rp_filter").unwrap(), "2");
            let error = ensure("net/ipv4/conf/absent0/rp_filter", "2").unwrap_err();
            assert!(error.to_string().contains("/proc/sys/net/ipv4/conf/absent0/rp_filter"), "{error}");
            assert!(matches!(ensure("net/ipv4/ip_forward", "many"), Err(SysctlError::Write { .. })));
        });
    }

    #[test]
    fn keys_that_lead_elsewhere_are_refused() {
        for key in ["", "net", "kernel/panic", "/net/ipv4/ip_forward", "net/../kernel/panic", "net//ipv4", "net/ipv4/"]
        {
            assert!(matches!(read(key), Err(SysctlError::Key { .. })), "{key}");
        }
    }
}
