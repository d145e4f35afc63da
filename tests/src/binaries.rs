//! Where the product's binaries are.

use std::env;
use std::path::PathBuf;

use crate::error::{LabError, Tried};

/// The directory with the product's binaries.
#[derive(Debug, Clone)]
pub struct Binaries(PathBuf);

impl Binaries {
    /// `BULKHEAD_BIN_DIR`, or the target directory that this program is in.
    pub fn find() -> Result<Self, LabError> {
        if let Some(dir) = env::var_os("BULKHEAD_BIN_DIR") {
            return Ok(Self(dir.into()));
        }
        let mut dir = env::current_exe().tried(|| "find this program".into())?;
        dir.pop();
        if dir.ends_with("deps") {
            dir.pop();
        }
        Ok(Self(dir))
    }

    fn get(&self, name: &str) -> Result<PathBuf, LabError> {
        let path = self.0.join(name);
        if path.is_file() { Ok(path) } else { Err(LabError::NotBuilt(path)) }
    }

    /// `bulkhead-controller`.
    pub fn controller(&self) -> Result<PathBuf, LabError> {
        self.get("bulkhead-controller")
    }

    /// `bulkhead-agent`.
    pub fn agent(&self) -> Result<PathBuf, LabError> {
        self.get("bulkhead-agent")
    }

    /// `bulkhead-cni`.
    pub fn cni(&self) -> Result<PathBuf, LabError> {
        self.get("bulkhead-cni")
    }

    /// `bulkhead`.
    pub fn cli(&self) -> Result<PathBuf, LabError> {
        self.get("bulkhead")
    }
}
