//! The spool: DEL calls that came while no agent was there. The plugin writes a file per attachment, the agent carries
//! it out and removes it.
//!
//! Nothing is lost if both keep to this order. The plugin: no agent answers, write the file (temporary name, then
//! rename), try the agent once more; if it answers now, remove the file. The agent: listen, then drain, then accept;
//! and drain an attachment's file before its ADD, since runtimes may use a container ID again.

use thiserror::Error;

use crate::attachment::{AttachmentError, AttachmentId};
use crate::protocol::{CniCall, Command, MAX_PAYLOAD};

/// Where the files are unless configured.
pub const DEFAULT_FOLDER: &str = "/run/bulkhead/spool";
/// The largest file that is read, in bytes.
pub const MAX_BYTES: usize = MAX_PAYLOAD;

const SUFFIX: &str = ".json";

/// Why a file is not a spooled DEL. Such a file helps nobody: the agent says so and removes it.
#[derive(Debug, Error)]
pub enum SpoolError {
    /// Not JSON of a call.
    #[error("the spooled call cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// Larger than [`MAX_BYTES`].
    #[error("the spooled call has {0} bytes; the largest that is read has {MAX_BYTES}")]
    TooLarge(usize),
    /// Another operation.
    #[error("the spooled call is a {0:?}; only DEL is ever spooled")]
    NotDel(Command),
    /// It names no attachment.
    #[error("the spooled call names no attachment: {0}")]
    Attachment(#[from] AttachmentError),
    /// It names another attachment than its file.
    #[error("the spooled call is of {call}, its file of {file}")]
    Misplaced {
        /// Whom the call names.
        call: AttachmentId,
        /// Whom the file names.
        file: AttachmentId,
    },
}

/// The file of an attachment's DEL: `<container ID>@<interface>.json`.
pub fn file_name(attachment: &AttachmentId) -> String {
    format!("{attachment}{SUFFIX}")
}

/// The name under which a file is written before it is renamed; `process` keeps two writers apart.
pub fn temporary_name(attachment: &AttachmentId, process: u32) -> String {
    format!(".{attachment}.{process}")
}

/// Whose DEL a file is; none for what is not spooled (a temporary name, a stranger's file).
pub fn parse_file_name(name: &str) -> Option<AttachmentId> {
    let (container_id, interface) = name.strip_suffix(SUFFIX)?.split_once('@')?;
    AttachmentId::new(container_id, interface).ok()
}

/// A file's content: exactly the JSON of [`CniCall`].
pub fn encode(call: &CniCall) -> Result<Vec<u8>, SpoolError> {
    let bytes = serde_json::to_vec(call)?;
    if bytes.len() > MAX_BYTES { Err(SpoolError::TooLarge(bytes.len())) } else { Ok(bytes) }
}

/// Reads a file of the spool: the DEL that the plugin could not deliver.
pub fn parse(file: &AttachmentId, content: &[u8]) -> Result<CniCall, SpoolError> {
    if content.len() > MAX_BYTES {
        return Err(SpoolError::TooLarge(content.len()));
    }
    let call: CniCall = serde_json::from_slice(content)?;
    if call.command != Command::Del {
        return Err(SpoolError::NotDel(call.command));
    }
    let named = call.attachment()?;
    if named != *file {
        return Err(SpoolError::Misplaced { call: named, file: file.clone() });
    }
    Ok(call)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn call(command: Command, container_id: &str) -> CniCall {
        CniCall {
            command,
            container_id: container_id.into(),
            interface: "eth0".into(),
            netns: String::new(),
            args: [("K8S_POD_NAME".to_owned(), "p".to_owned())].into(),
            config: json!({"cniVersion": "1.0.0"}),
            attempt: String::new(),
        }
    }

    #[test]
    fn a_del_comes_back_as_it_was() {
        let del = call(Command::Del, "c1");
        let name = file_name(&del.attachment().unwrap());
        assert_eq!(name, "c1@eth0.json");
        let file = parse_file_name(&name).unwrap();
        assert_eq!(parse(&file, &encode(&del).unwrap()).unwrap(), del);
    }

    #[test]
    fn what_the_plugin_did_not_write_is_refused() {
        let file = AttachmentId::new("c1", "eth0").unwrap();
        let read = |call: &CniCall| parse(&file, &encode(call).unwrap());
        assert!(matches!(read(&call(Command::Add, "c1")), Err(SpoolError::NotDel(_))));
        assert!(matches!(read(&call(Command::Del, "c2")), Err(SpoolError::Misplaced { .. })));
        assert!(matches!(read(&call(Command::Del, "../c")), Err(SpoolError::Attachment(_))));
        assert!(matches!(parse(&file, b"{"), Err(SpoolError::Json(_))));
        assert!(matches!(parse(&file, &vec![b' '; MAX_BYTES + 1]), Err(SpoolError::TooLarge(_))));
        let half_written = temporary_name(&file, 7);
        for name in [&half_written, "c1.json", "c1@eth0", "c1@a:b.json", "README", ""] {
            assert_eq!(parse_file_name(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&AttachmentId::new("c1", "eth0").unwrap(), &bytes);
        }

        #[test]
        fn a_file_name_names_one_attachment(container_id in "[a-z0-9][a-z0-9_.-]{0,20}", interface in "[^/:\\s\\p{C}]{1,15}") {
            if let Ok(attachment) = AttachmentId::new(container_id, interface) {
                prop_assert_eq!(parse_file_name(&file_name(&attachment)), Some(attachment));
            }
        }
    }
}
