//! Where the programs are that `build/build.sh` made.

use std::path::{Path, PathBuf};
use std::process::Command;

use bulkhead_tests::error::{LabError, Tried};

/// The directory with Kubernetes, containerd, CoreDNS and the upstream tests.
#[derive(Debug, Clone)]
pub struct Programs(PathBuf);

impl Programs {
    /// `BULKHEAD_KUBERNETES_PROGRAMS`, or where the script puts what it builds.
    pub fn find() -> Result<Self, LabError> {
        if let Some(dir) = std::env::var_os("BULKHEAD_KUBERNETES_PROGRAMS") {
            return Ok(Self(dir.into()));
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("build/build.sh");
        let output = Command::new(&script).arg("--where").output().tried(|| format!("run {}", script.display()))?;
        let dir = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        if output.status.success() && dir.is_dir() {
            return Ok(Self(dir));
        }
        Err(LabError::Refused {
            what: "find the lab's Kubernetes".into(),
            answer: format!("{} is not there: run {}", dir.display(), script.display()),
        })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// One of them.
    pub fn get(&self, name: &str) -> Result<PathBuf, LabError> {
        let path = self.0.join(name);
        if path.is_file() { Ok(path) } else { Err(LabError::NotBuilt(path)) }
    }
}
