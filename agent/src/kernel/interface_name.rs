//! A network device's name, checked once, so that it can go into a netlink message or a /proc path without a second look.

use std::fmt;
use std::str::FromStr;

/// The longest name in bytes: the kernel's `IFNAMSIZ` less the closing zero.
const MAX_LEN: usize = 15;

/// A device name that the kernel accepts: 1 to 15 bytes, no `/`, no `:`, no white space or control character, neither `.` nor `..`.
///
/// `all` and `default` are refused too: they name the kernel's templates under `/proc/sys/net/ipv4/conf`, not a device.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceName(String);

/// A name that the kernel would refuse, or that would mean something else in a path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{name}` cannot name a network device: it takes 1 to 15 visible characters without `/` or `:`, and not `.`, `..`, `all` or `default`"
)]
pub struct InterfaceNameError {
    name: String,
}

impl InterfaceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = InterfaceNameError;

    fn from_str(name: &str) -> Result<Self, InterfaceNameError> {
        let length = (1..=MAX_LEN).contains(&name.len());
        // The kernel looks at bytes, and takes 0xa0 for white space even within a UTF-8 character.
        let letters = name.bytes().all(|c| c > b' ' && c != 0x7f && c != 0xa0 && c != b'/' && c != b':');
        let reserved = matches!(name, "." | ".." | "all" | "default");
        if length && letters && !reserved {
            Ok(Self(name.to_owned()))
        } else {
            Err(InterfaceNameError { name: name.to_owned() })
        }
    }
}

impl TryFrom<&str> for InterfaceName {
    type Error = InterfaceNameError;

    fn try_from(name: &str) -> Result<Self, InterfaceNameError> {
        name.parse()
    }
}

impl AsRef<str> for InterfaceName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_names_pass() {
        for name in ["eth0", "bulkhead0", "veth0123456789a", "eth0.100", "wlan-x_y"] {
            assert_eq!(name.parse::<InterfaceName>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn names_that_the_kernel_or_a_path_would_choke_on_are_refused() {
        for name in [
            "",
            ".",
            "..",
            "all",
            "default",
            "a/b",
            "../../x",
            "a b",
            "a:b",
            "a\0",
            "veth0123456789ab",
            "a\u{85}b\u{a0}cdefghijk",
        ] {
            assert!(name.parse::<InterfaceName>().is_err(), "{name:?}");
        }
    }
}
