//! The `CNI_` variables: which operation, on what.
//!
//! Promises: an [`Operation`] that exists has every variable that the specification asks for, each well formed.

use std::collections::BTreeMap;

use bulkhead_core::AttachmentId;
use bulkhead_core::attachment::AttachmentError;
use bulkhead_core::cni::{Code, Failure};
use bulkhead_core::protocol::Command;

/// The longest `CNI_NETNS`, in bytes (Linux' `PATH_MAX`).
const MAX_PATH: usize = 4096;
/// The longest `CNI_ARGS`, in bytes.
const MAX_ARGS: usize = 64 << 10;

/// What the runtime asks for.
#[derive(Debug, PartialEq)]
pub enum Operation {
    /// VERSION, which needs no agent.
    Version,
    /// Everything else.
    Agent(Call),
}

/// A call for the agent, as the environment tells it.
#[derive(Debug, PartialEq)]
pub enum Call {
    /// ADD, into this netns.
    Add(Pod, String),
    /// DEL; the netns may be gone.
    Del(Pod, Option<String>),
    /// CHECK, in this netns.
    Check(Pod, String),
    /// GC.
    Gc,
    /// STATUS.
    Status,
}

/// Which attachment, with the runtime's words about its pod.
#[derive(Debug, PartialEq)]
pub struct Pod {
    /// `CNI_CONTAINERID` and `CNI_IFNAME`.
    pub attachment: AttachmentId,
    /// `CNI_ARGS`, split.
    pub args: BTreeMap<String, String>,
}

impl Call {
    /// The operation's name in the protocol.
    pub const fn command(&self) -> Command {
        match self {
            Self::Add(..) => Command::Add,
            Self::Del(..) => Command::Del,
            Self::Check(..) => Command::Check,
            Self::Gc => Command::Gc,
            Self::Status => Command::Status,
        }
    }
}

/// Reads the process' environment.
pub fn read() -> Result<Operation, Failure> {
    parse(|name| match std::env::var(name) {
        Ok(value) => Ok(Some(value)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => Err(invalid(format!("{name} is not UTF-8"), "")),
    })
}

fn invalid(msg: impl Into<String>, details: impl Into<String>) -> Failure {
    Failure::new(Code::InvalidEnvironment, msg, details)
}

/// Reads an environment by its look-up.
pub fn parse(get: impl Fn(&str) -> Result<Option<String>, Failure>) -> Result<Operation, Failure> {
    let command = get("CNI_COMMAND")?.filter(|value| !value.is_empty());
    let Some(command) = command else {
        return Err(invalid("CNI_COMMAND is missing", "this program is started by the container runtime"));
    };
    let pod = || -> Result<Pod, Failure> {
        let container_id = required(&get, &command, "CNI_CONTAINERID")?;
        let interface = required(&get, &command, "CNI_IFNAME")?;
        let attachment = AttachmentId::new(container_id, interface).map_err(|error| match error {
            AttachmentError::ContainerId(_) => invalid(format!("CNI_CONTAINERID: {error}"), ""),
            AttachmentError::Interface(_) | AttachmentError::Form(_) => invalid(format!("CNI_IFNAME: {error}"), ""),
        })?;
        Ok(Pod { attachment, args: split_args(&get("CNI_ARGS")?.unwrap_or_default())? })
    };
    let netns = || required(&get, &command, "CNI_NETNS").and_then(checked_path);
    Ok(Operation::Agent(match command.as_str() {
        "VERSION" => return Ok(Operation::Version),
        "ADD" => Call::Add(pod()?, netns()?),
        "CHECK" => Call::Check(pod()?, netns()?),
        "DEL" => {
            let netns = get("CNI_NETNS")?.filter(|path| !path.is_empty());
            Call::Del(pod()?, netns.map(checked_path).transpose()?)
        }
        "GC" => {
            required(&get, &command, "CNI_PATH")?;
            Call::Gc
        }
        "STATUS" => Call::Status,
        other => {
            let shown: String = other.chars().take(40).collect();
            return Err(invalid(
                format!("CNI_COMMAND {shown:?} is not known"),
                "supported are ADD, DEL, CHECK, GC, STATUS and VERSION",
            ));
        }
    }))
}

fn required(
    get: impl Fn(&str) -> Result<Option<String>, Failure>,
    command: &str,
    name: &str,
) -> Result<String, Failure> {
    get(name)?
        .filter(|value| !value.is_empty())
        .ok_or_else(|| invalid(format!("{name} is missing"), format!("{command} needs it")))
}

fn checked_path(path: String) -> Result<String, Failure> {
    if path.len() > MAX_PATH {
        return Err(invalid("CNI_NETNS is longer than a path can be (4096 bytes)", ""));
    }
    Ok(path)
}

/// Splits `A=1;B=2`. As in libcni an empty list is none, and a pair without '=' is an error.
fn split_args(text: &str) -> Result<BTreeMap<String, String>, Failure> {
    if text.len() > MAX_ARGS {
        return Err(invalid("CNI_ARGS is longer than 64 KiB", ""));
    }
    let pairs = text.split(';').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => {
                let shown: String = pair.chars().take(80).collect();
                Err(invalid(format!("CNI_ARGS has {shown:?}, which is no KEY=VALUE"), "write KEY=VALUE;KEY=VALUE"))
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_environment_is_answered_without_a_panic(values in prop::collection::vec("[ -~]{0,20}|\\PC{0,20}", 5)) {
            for command in ["ADD", "DEL", "CHECK", "GC", "STATUS", &values[4]] {
                let names = ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS"];
                let variables = names.into_iter().zip(values.iter().map(String::as_str));
                let _ = read(&variables.chain([("CNI_COMMAND", command)]).collect::<Vec<_>>());
            }
        }
    }

    fn read(variables: &[(&str, &str)]) -> Result<Operation, Failure> {
        parse(|name| Ok(variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())))
    }

    fn full(command: &'static str) -> [(&'static str, &'static str); 6] {
        [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", "/run/netns/x"),
            ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=p;X=a=b;"),
            ("CNI_PATH", "/opt/cni/bin"),
        ]
    }

    /// The operation with one variable changed, or taken away.
    fn with(command: &'static str, name: &str, value: Option<&'static str>) -> Result<Operation, Failure> {
        let mut variables: Vec<_> = full(command).into_iter().filter(|(known, _)| *known != name).collect();
        variables.extend(value.map(|value| (name, value)));
        read(&variables)
    }

    #[test]
    fn a_whole_environment_is_read() {
        let Ok(Operation::Agent(Call::Add(pod, netns))) = read(&full("ADD")) else { panic!() };
        assert_eq!(pod.attachment.to_string(), "c1@eth0");
        assert_eq!(pod.args["K8S_POD_NAME"], "p");
        assert_eq!(pod.args["X"], "a=b");
        assert_eq!(netns, "/run/netns/x");
        assert_eq!(read(&full("VERSION")), Ok(Operation::Version));
        assert_eq!(read(&[("CNI_COMMAND", "STATUS")]), Ok(Operation::Agent(Call::Status)));
        assert_eq!(read(&full("GC")), Ok(Operation::Agent(Call::Gc)));
    }

    #[test]
    fn each_operation_needs_what_the_specification_says() {
        let needs = [
            ("ADD", &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"][..], &["CNI_ARGS", "CNI_PATH"][..]),
            ("CHECK", &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"], &["CNI_ARGS", "CNI_PATH"]),
            ("DEL", &["CNI_CONTAINERID", "CNI_IFNAME"], &["CNI_NETNS", "CNI_ARGS", "CNI_PATH"]),
            ("GC", &["CNI_PATH"], &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS"]),
            ("STATUS", &[], &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS", "CNI_PATH"]),
        ];
        for (command, required, optional) in needs {
            for name in required {
                for gone in [None, Some("")] {
                    let failure = with(command, name, gone).unwrap_err();
                    assert_eq!((failure.code, failure.msg), (Code::InvalidEnvironment, format!("{name} is missing")));
                }
            }
            for name in optional {
                assert!(with(command, name, None).is_ok(), "{command} without {name}");
            }
        }
    }

    #[test]
    fn what_is_malformed_is_refused_by_name() {
        for (name, value) in [
            ("CNI_COMMAND", "add"),
            ("CNI_CONTAINERID", "../../etc"),
            ("CNI_CONTAINERID", "-c1"),
            ("CNI_IFNAME", "eth/0"),
            ("CNI_IFNAME", "sixteen-bytes-xx"),
            ("CNI_IFNAME", ".."),
            ("CNI_ARGS", "K8S_POD_NAME"),
            ("CNI_ARGS", "=x"),
        ] {
            let failure = with("ADD", name, Some(value)).unwrap_err();
            assert_eq!(failure.code, Code::InvalidEnvironment);
            assert!(failure.msg.starts_with(name), "{}", failure.msg);
        }
    }
}
