//! The network config: what of it the plugin itself needs, and the checks that each operation asks for.

use std::path::{Path, PathBuf};

use bulkhead_core::cni::{Code, Failure, Version};
use bulkhead_core::protocol::{Command, DEFAULT_SOCKET};
use bulkhead_core::spool;
use serde_json::{Value, json};

use crate::Failed;

/// The longest path of a unix socket, in bytes (unix(7): `sun_path` less its NUL).
const MAX_SOCKET: usize = 107;

/// A config whose version is known and whose own fields are well formed.
#[derive(Debug)]
pub struct Config {
    /// `cniVersion`.
    pub version: Version,
    /// `socket`: where the agent listens.
    pub socket: PathBuf,
    /// `spool`: where DELs go that no agent takes.
    pub spool: PathBuf,
    /// All of it, for the agent.
    pub whole: Value,
}

/// The supported versions' names, oldest first.
pub fn supported() -> [&'static str; Version::ALL.len()] {
    Version::ALL.map(Version::as_str)
}

fn invalid(msg: impl Into<String>, details: impl Into<String>) -> Failure {
    Failure::new(Code::InvalidConfig, msg, details)
}

fn object(bytes: &[u8]) -> Result<Value, Failure> {
    if bytes.is_empty() {
        return Err(Failure::new(Code::Decode, "there is no network config on stdin", "the runtime passes it there"));
    }
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|error| Failure::new(Code::Decode, "the network config is not JSON", error.to_string()))?;
    if value.is_object() { Ok(value) } else { Err(invalid("the network config is not a JSON object", "")) }
}

/// Reads a config and checks everything that no operation can do without.
pub fn parse(bytes: &[u8]) -> Result<Config, Failed> {
    let whole = object(bytes)?;
    let named = match whole.get("cniVersion") {
        None => "0.1.0", // what its absence means (CNI specification, section 1)
        Some(Value::String(name)) => name,
        Some(_) => return Err(invalid("cniVersion is not a string", "").into()),
    };
    let version = Version::parse(named).ok_or_else(|| {
        let shown: String = named.chars().take(40).collect();
        let details = format!("supported are {}; absent means 0.1.0", supported().join(", "));
        Failure::new(Code::IncompatibleVersion, format!("cniVersion {shown:?} is not supported"), details)
    })?;
    let failed = |failure| Failed { version, failure };
    check_name(&whole).map_err(failed)?;
    let socket = path(&whole, "socket", DEFAULT_SOCKET).map_err(failed)?;
    if socket.as_os_str().len() > MAX_SOCKET {
        return Err(failed(invalid("socket is longer than a unix socket's path can be (107 bytes)", "")));
    }
    let spool = path(&whole, "spool", spool::DEFAULT_FOLDER).map_err(failed)?;
    Ok(Config { version, socket, spool, whole })
}

/// `name` is required by the specification and becomes a path in runtimes' caches.
fn check_name(config: &Value) -> Result<(), Failure> {
    let name = config.get("name").and_then(Value::as_str).unwrap_or_default();
    let first = name.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric());
    if first && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"_.-".contains(&c)) {
        return Ok(());
    }
    let shown: String = name.chars().take(80).collect();
    Err(invalid(
        format!("the network's name {shown:?} is missing or not valid"),
        "use letters, digits, '_', '.' and '-', a letter or digit first",
    ))
}

fn path(config: &Value, field: &str, default: &str) -> Result<PathBuf, Failure> {
    let text = match config.get(field) {
        None => default,
        Some(Value::String(text)) => text,
        Some(_) => return Err(invalid(format!("{field} is not a string"), "")),
    };
    if Path::new(text).is_absolute() && !text.contains('\0') {
        return Ok(text.into());
    }
    let shown: String = text.chars().take(80).collect();
    Err(invalid(format!("{field} {shown:?} is not an absolute path"), format!("leave it out for {default}")))
}

impl Config {
    /// What the specification asks of the config for this operation.
    pub fn check_for(&self, command: Command) -> Result<(), Failure> {
        let (since, name) = match command {
            Command::Add | Command::Del => (Version::V0_3_0, ""),
            Command::Check => (Version::V0_4_0, "CHECK"),
            Command::Gc => (Version::V1_1_0, "GC"),
            Command::Status => (Version::V1_1_0, "STATUS"),
        };
        if self.version < since {
            let msg = format!("cniVersion {} has no {name}", self.version);
            return Err(Failure::new(Code::IncompatibleVersion, msg, format!("{name} came with {since}")));
        }
        match command {
            Command::Add if self.has("prevResult") => Err(invalid(
                "this plugin cannot follow another one, and there is a prevResult",
                "it makes the pod's interface: put it first in the conflist",
            )),
            Command::Check if !self.has("prevResult") => {
                Err(invalid("prevResult is missing", "CHECK compares the pod with what ADD answered"))
            }
            Command::Gc => self.check_valid_attachments(),
            _ => Ok(()),
        }
    }

    fn has(&self, field: &str) -> bool {
        self.whole.get(field).is_some_and(|value| !value.is_null())
    }

    /// Absent or unreadable must not be read as "none is valid", by which every pod would be detached.
    fn check_valid_attachments(&self) -> Result<(), Failure> {
        const FIELD: &str = "cni.dev/valid-attachments";
        let list = self.whole.get(FIELD).and_then(Value::as_array);
        let list =
            list.ok_or_else(|| invalid(format!("{FIELD} is missing or not a list"), "GC keeps what it names"))?;
        let named = |entry: &Value| ["containerID", "ifname"].iter().all(|field| entry[field].is_string());
        match list.iter().position(|entry| !named(entry)) {
            None => Ok(()),
            Some(at) => Err(invalid(format!("{FIELD}[{at}] has no containerID or ifname"), "")),
        }
    }

    /// `dns`, which an ADD hands through.
    pub fn dns(&self) -> Option<&Value> {
        self.whole.get("dns").filter(|dns| dns.is_object())
    }
}

/// VERSION's answer, in the version that was asked in.
pub fn version_answer(bytes: &[u8]) -> Result<Value, Failed> {
    // Some runtimes ask without a config.
    let asked = if bytes.is_empty() { Value::Null } else { object(bytes)? };
    let sane = |text: &&str| text.len() <= 16 && text.bytes().all(|c| c.is_ascii_digit() || c == b'.');
    let version = asked.get("cniVersion").and_then(Value::as_str).filter(sane);
    Ok(json!({"cniVersion": version.unwrap_or(Version::V1_1_0.as_str()), "supportedVersions": supported()}))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_answered_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
            let _ = version_answer(&bytes);
        }

        #[test]
        fn any_value_in_any_field_is_answered_without_a_panic(
            field in "cniVersion|name|socket|spool|dns|prevResult|cni.dev/valid-attachments",
            value in r#"null|1|-1e9|"[a-z/\\PC]{0,9}"|\[\]|\{\}|\[1\]|\[\{"containerID":"c"\}\]|\[null\]"#,
        ) {
            let text = format!(r#"{{"cniVersion":"1.1.0","name":"n","{field}":{value}}}"#);
            if let Ok(config) = parse(text.as_bytes()) {
                for command in [Command::Add, Command::Del, Command::Check, Command::Gc, Command::Status] {
                    let _ = config.check_for(command);
                }
                let _ = config.dns();
            }
        }
    }

    fn config(extra: &Value) -> Result<Config, Failure> {
        let mut whole = json!({"cniVersion": "1.1.0", "name": "net", "type": "bulkhead-cni"});
        for (field, value) in extra.as_object().unwrap() {
            whole[field] = value.clone();
        }
        parse(whole.to_string().as_bytes()).map_err(|failed| failed.failure)
    }

    fn code(extra: &Value, command: Command) -> Option<Code> {
        config(extra).and_then(|config| config.check_for(command)).err().map(|failure| failure.code)
    }

    #[test]
    fn the_defaults_are_the_agents() {
        let config = config(&json!({"dns": {"nameservers": ["10.96.0.10"]}})).unwrap();
        assert_eq!(config.socket, Path::new("/run/bulkhead/agent.sock"));
        assert_eq!(config.spool, Path::new("/run/bulkhead/spool"));
        assert_eq!(config.dns().unwrap()["nameservers"][0], "10.96.0.10");
    }

    #[test]
    fn what_is_not_a_config_is_refused_with_its_code() {
        let of = |bytes: &[u8]| parse(bytes).map(drop).map_err(|failed| failed.failure.code).unwrap_err();
        assert_eq!(of(b""), Code::Decode);
        assert_eq!(of(b"{"), Code::Decode);
        assert_eq!(of("[".repeat(100_000).as_bytes()), Code::Decode);
        assert_eq!(of(b"[]"), Code::InvalidConfig);
        assert_eq!(of(b"{}"), Code::IncompatibleVersion);
        assert_eq!(of(br#"{"cniVersion":"0.2.0","name":"n"}"#), Code::IncompatibleVersion);
        assert_eq!(of(br#"{"cniVersion":1,"name":"n"}"#), Code::InvalidConfig);
        for bad in [
            json!({"name": ""}),
            json!({"name": "../n"}),
            json!({"name": 1}),
            json!({"socket": "agent.sock"}),
            json!({"socket": 1}),
            json!({"socket": format!("/{}", "s".repeat(107))}),
            json!({"spool": "./spool"}),
            json!({"spool": "/a\u{0}b"}),
        ] {
            assert_eq!(config(&bad).unwrap_err().code, Code::InvalidConfig, "{bad}");
        }
    }

    #[test]
    fn an_unknown_version_is_told_the_known_ones() {
        let failure = config(&json!({"cniVersion": "2.0.0"})).unwrap_err();
        assert!(failure.details.contains("0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"), "{failure:?}");
    }

    #[test]
    fn each_operation_has_its_own_rules() {
        let previous = json!({"prevResult": {"ips": []}});
        assert_eq!(code(&json!({}), Command::Add), None);
        assert_eq!(code(&previous, Command::Add), Some(Code::InvalidConfig));
        assert_eq!(code(&previous, Command::Del), None);
        assert_eq!(code(&previous, Command::Check), None);
        assert_eq!(code(&json!({}), Command::Check), Some(Code::InvalidConfig));
        assert_eq!(code(&json!({"prevResult": null}), Command::Check), Some(Code::InvalidConfig));
        assert_eq!(code(&json!({"cniVersion": "0.3.1"}), Command::Check), Some(Code::IncompatibleVersion));
        for command in [Command::Gc, Command::Status] {
            assert_eq!(code(&json!({"cniVersion": "1.0.0"}), command), Some(Code::IncompatibleVersion));
        }
    }

    #[test]
    fn a_gc_without_a_readable_list_removes_nothing() {
        let gc = |list: Value| code(&json!({"cni.dev/valid-attachments": list}), Command::Gc);
        assert_eq!(code(&json!({}), Command::Gc), Some(Code::InvalidConfig));
        assert_eq!(gc(Value::Null), Some(Code::InvalidConfig));
        assert_eq!(gc(json!([{"containerID": "c1"}])), Some(Code::InvalidConfig));
        assert_eq!(gc(json!([])), None);
        assert_eq!(gc(json!([{"containerID": "c1", "ifname": "eth0"}])), None);
    }

    #[test]
    fn version_echoes_the_version_asked_in() {
        let answer =
            |bytes: &[u8]| version_answer(bytes).map_err(|failed| failed.failure).unwrap()["cniVersion"].clone();
        assert_eq!(answer(br#"{"cniVersion":"0.4.0"}"#), "0.4.0");
        assert_eq!(answer(b""), "1.1.0");
        assert_eq!(answer(br#"{"cniVersion":"<script>"}"#), "1.1.0");
        assert!(version_answer(b"{").is_err());
    }
}
