//! Names that become parts of etcd keys and of log lines. A name that exists is safe in both.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{what} {text:?} is not valid: {rule}")]
pub struct NameError {
    what: &'static str,
    text: String,
    rule: &'static str,
}

/// Cuts a text for an error message, so that a hostile value cannot flood a log.
fn excerpt(text: &str) -> String {
    if text.chars().count() <= 80 {
        return text.to_owned();
    }
    text.chars().take(80).chain("...".chars()).collect()
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks the text and makes it a name.
            pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
                let text = text.into();
                let valid: fn(&str) -> bool = $valid;
                if valid(&text) {
                    Ok(Self(text))
                } else {
                    Err(NameError { what: $what, text: excerpt(&text), rule: $rule })
                }
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl std::str::FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

fn edges_are_alphanumeric(text: &str) -> bool {
    let alphanumeric = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    alphanumeric(text.bytes().next()) && alphanumeric(text.bytes().last())
}

fn is_dns_label(text: &str) -> bool {
    text.len() <= 63
        && edges_are_alphanumeric(text)
        && text.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
}

name! {
    /// A namespace: an RFC 1123 label, as Kubernetes asks for.
    Namespace, "namespace", "use 1 to 63 lower-case letters, digits and '-', a letter or digit at both ends", is_dns_label
}

name! {
    /// A node's name, as its `Host` field says.
    NodeName, "node name", "use 1 to 253 letters, digits, '-', '_' and '.', a letter or digit at both ends",
    |text| text.len() <= 253
        && edges_are_alphanumeric(text)
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c))
}

name! {
    /// The `Name` of the cluster's config: one path segment of every key.
    ClusterName, "cluster name", "use 1 to 63 letters, digits, '-', '_' and '.', a letter or digit at both ends, and not 'config'",
    |text| text.len() <= 63
        && text != "config"
        && edges_are_alphanumeric(text)
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_key_are_refused() {
        for bad in ["", "a/b", "A", "-a", "a-", "a\0b", "a.b", &"a".repeat(64)] {
            assert!(Namespace::new(bad).is_err(), "{bad:?}");
        }
        assert!(Namespace::new("kube-system").is_ok());
        assert!(NodeName::new("Node_1.example.org").is_ok());
        assert!(NodeName::new("../x").is_err());
        assert!(ClusterName::new("k8ssdn").is_ok());
        assert!(ClusterName::new("config").is_err());
    }

    #[test]
    fn a_long_name_does_not_flood_its_error() {
        assert!(Namespace::new("x".repeat(10_000)).unwrap_err().to_string().len() < 300);
    }
}
