//! Writes the spool: the DELs that no agent took. Its rules and format are `bulkhead_core::spool`'s.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bulkhead_core::AttachmentId;
use bulkhead_core::cni::{Code, Failure};
use bulkhead_core::protocol::CniCall;
use bulkhead_core::spool;

/// A DEL that was written down.
pub struct Spooled {
    path: PathBuf,
}

impl Spooled {
    /// Takes it back: an agent carried it out after all.
    pub fn take_back(self) {
        // The agent may have removed it in the meantime; one that stays is carried out twice, which does no harm.
        let _ = std::fs::remove_file(self.path);
    }
}

/// Writes a DEL down so that it appears whole or not at all.
pub fn write(folder: &Path, attachment: &AttachmentId, call: &CniCall) -> Result<Spooled, Failure> {
    let content = spool::encode(call).map_err(|error| Failure::new(Code::InvalidConfig, error.to_string(), ""))?;
    let path = folder.join(spool::file_name(attachment));
    let temporary = folder.join(spool::temporary_name(attachment, std::process::id()));
    let done = create(&temporary, &content).and_then(|()| std::fs::rename(&temporary, &path));
    done.map(|()| Spooled { path }).map_err(|error| {
        let _ = std::fs::remove_file(&temporary);
        let msg = format!("no agent answers and the DEL cannot be written to {}", folder.display());
        Failure::new(Code::Io, msg, format!("{error}; start the agent, or make the spool writable"))
    })
}

fn create(path: &Path, content: &[u8]) -> io::Result<()> {
    let open = || OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    let mut file = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(path.parent().unwrap_or(path))?;
            open()?
        }
        opened => opened?,
    };
    file.write_all(content)
}

#[cfg(test)]
mod tests {
    use bulkhead_core::protocol::Command;
    use serde_json::json;

    use super::*;

    fn del() -> (AttachmentId, CniCall) {
        let call = CniCall {
            command: Command::Del,
            container_id: "c1".into(),
            interface: "eth0".into(),
            netns: String::new(),
            args: std::collections::BTreeMap::new(),
            config: json!({"cniVersion": "1.0.0"}),
            attempt: String::new(),
        };
        (call.attachment().unwrap(), call)
    }

    #[test]
    fn a_del_is_written_once_whole_and_can_be_taken_back() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("run/spool");
        let (attachment, call) = del();
        write(&folder, &attachment, &call).ok().unwrap();
        let spooled = write(&folder, &attachment, &call).ok().unwrap();
        let names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["c1@eth0.json"]);
        let content = std::fs::read(folder.join("c1@eth0.json")).unwrap();
        assert_eq!(spool::parse(&attachment, &content).unwrap(), call);
        spooled.take_back();
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    }

    #[test]
    fn a_spool_that_cannot_be_written_is_said() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        std::fs::write(&file, "").unwrap();
        let (attachment, call) = del();
        let failure = write(&file, &attachment, &call).err().unwrap();
        assert_eq!(failure.code, Code::Io);
        assert!(failure.msg.contains("/file"), "{failure:?}");
    }
}
