//! What names an attachment: the runtime's container ID and the interface in the pod (CNI specification, section 2).
//!
//! Both become file names, keys of records and log fields, so one that exists is safe in all of them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The longest container ID, in bytes: with an interface and a suffix it still is a file name (255 bytes).
pub const MAX_CONTAINER_ID: usize = 200;
/// The longest interface name, in bytes (Linux' IFNAMSIZ less its NUL).
pub const MAX_INTERFACE: usize = 15;

/// Why a pair of texts does not name an attachment.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AttachmentError {
    /// Not a container ID.
    #[error(
        "the container ID {0:?} is not valid: use 1 to 200 letters, digits, '_', '.' and '-', a letter or digit first"
    )]
    ContainerId(String),
    /// Not a name of a network device.
    #[error(
        "the interface name {0:?} is not valid: use 1 to 15 bytes without '/', ':', white space or control characters, and not '.' or '..'"
    )]
    Interface(String),
    /// Not the text of an attachment.
    #[error("{0:?} does not name an attachment; its form is <container ID>@<interface>")]
    Form(String),
}

/// One interface of one container: what ADD makes and DEL removes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AttachmentId {
    container_id: String,
    interface: String,
}

fn is_container_id(text: &str) -> bool {
    text.len() <= MAX_CONTAINER_ID
        && text.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric())
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || b"_.-".contains(&c))
}

fn is_interface(text: &str) -> bool {
    (1..=MAX_INTERFACE).contains(&text.len())
        && ![".", ".."].contains(&text)
        && !text.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
}

fn excerpt(text: &str) -> String {
    text.chars().take(80).collect()
}

impl AttachmentId {
    /// Checks `CNI_CONTAINERID` and `CNI_IFNAME`.
    pub fn new(container_id: impl Into<String>, interface: impl Into<String>) -> Result<Self, AttachmentError> {
        let (container_id, interface) = (container_id.into(), interface.into());
        if !is_container_id(&container_id) {
            return Err(AttachmentError::ContainerId(excerpt(&container_id)));
        }
        if !is_interface(&interface) {
            return Err(AttachmentError::Interface(excerpt(&interface)));
        }
        Ok(Self { container_id, interface })
    }

    /// `CNI_CONTAINERID`.
    pub fn container_id(&self) -> &str {
        &self.container_id
    }

    /// `CNI_IFNAME`.
    pub fn interface(&self) -> &str {
        &self.interface
    }
}

impl FromStr for AttachmentId {
    type Err = AttachmentError;

    fn from_str(text: &str) -> Result<Self, AttachmentError> {
        let (container_id, interface) = text.split_once('@').ok_or_else(|| AttachmentError::Form(excerpt(text)))?;
        Self::new(container_id, interface)
    }
}

impl TryFrom<String> for AttachmentId {
    type Error = AttachmentError;

    fn try_from(text: String) -> Result<Self, AttachmentError> {
        text.parse()
    }
}

impl From<AttachmentId> for String {
    fn from(id: AttachmentId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for AttachmentId {
    /// `<container ID>@<interface>`; '@' is in no container ID, so the text splits in one way only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.container_id, self.interface)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_folder_are_refused() {
        for bad in ["", "../x", "a/b", "-a", ".a", "a b", "a\0", "a@b", "\u{e9}", &"a".repeat(201)] {
            assert!(matches!(AttachmentId::new(bad, "eth0"), Err(AttachmentError::ContainerId(_))), "{bad:?}");
        }
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "a\0", "a\n", &"a".repeat(16)] {
            assert!(matches!(AttachmentId::new("c1", bad), Err(AttachmentError::Interface(_))), "{bad:?}");
        }
        let long = AttachmentId::new("a".repeat(200), "eth0@1").unwrap();
        assert!(long.to_string().ends_with("@eth0@1"));
        assert_eq!(long.to_string().parse(), Ok(long));
        assert!("c1".parse::<AttachmentId>().is_err());
    }

    #[test]
    fn a_long_name_does_not_flood_its_error() {
        assert!(AttachmentId::new("/".repeat(10_000), "eth0").unwrap_err().to_string().len() < 300);
    }
}
