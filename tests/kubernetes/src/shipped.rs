//! The image as it is shipped, made without a daemon: what `deploy/Containerfile` makes, of binaries that are built already.
//!
//! Promises: its programs are static, there is nothing else in it, and it is no larger than [`LIMIT`].

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use bulkhead_tests::error::{LabError, Tried};
use serde_json::Value;

use crate::bulkhead::IMAGE;
use crate::elf;
use crate::image::{Archive, Image};
use crate::layer::Layer;

/// The largest image in bytes, unpacked: 60 MB.
pub const LIMIT: u64 = 60_000_000;
/// The programs in it.
pub const PROGRAMS: [&str; 4] = ["bulkhead-agent", "bulkhead-controller", "bulkhead-cni", "bulkhead"];

/// Makes it of the programs in `binaries` and writes it to `to` as an OCI archive; its size in bytes. One that is not fit to be
/// shipped is not left there.
pub fn write(binaries: &Path, revision: &str, to: &Path) -> Result<u64, LabError> {
    let mut layer = Layer::new();
    for name in PROGRAMS {
        let path: PathBuf = binaries.join(name);
        if !path.is_file() {
            return Err(LabError::NotBuilt(path));
        }
        if !elf::needed_by(&path)?.is_empty() {
            return Err(refused(format!("{} is not static; `make release` builds it so", path.display())));
        }
        layer = layer.file(&path, &format!("/usr/bin/{name}"));
    }
    layer = layer.link("bulkhead", "/usr/bin/kubectl-bulkhead");
    let mut archive = Archive::new();
    let layer = archive.add_layer(layer);
    let labels = [
        ("title", "bulkhead"),
        ("description", "The tenant network for Kubernetes"),
        ("source", env!("CARGO_PKG_REPOSITORY")),
        ("licenses", env!("CARGO_PKG_LICENSE")),
        ("version", env!("CARGO_PKG_VERSION")),
        ("revision", revision),
    ];
    let image = Image::new(IMAGE, &[]).layer(layer);
    archive.add(
        labels.iter().fold(image, |image, (key, value)| image.label(&format!("org.opencontainers.image.{key}"), value)),
    );
    archive.write(to)?;
    let size = fs::metadata(to).tried(|| format!("read {}", to.display()))?.len();
    if size > LIMIT {
        fs::remove_file(to).tried(|| format!("remove {}", to.display()))?;
        return Err(refused(format!("it has {size} bytes and may have {LIMIT}; see what made the programs larger")));
    }
    Ok(size)
}

/// What the labels of an archive of one image say, `org.opencontainers.image.` left out, as a registry's tools show them.
pub fn labels(archive: &Path) -> Result<BTreeMap<String, String>, LabError> {
    let what = || format!("read {}", archive.display());
    let mut texts = BTreeMap::new();
    let mut entries = tar::Archive::new(File::open(archive).tried(what)?);
    for entry in entries.entries().tried(what)? {
        let mut entry = entry.tried(what)?;
        let name = entry.path().tried(what)?.display().to_string();
        let mut text = String::new();
        // Layers are no text.
        if entry.size() < 1 << 16 && entry.read_to_string(&mut text).is_ok() {
            texts.insert(name, text);
        }
    }
    let json = |name: &str| -> Result<Value, LabError> {
        let text = texts.get(name).map(String::as_str).unwrap_or_default();
        serde_json::from_str(text)
            .map_err(|error| LabError::Refused { what: what(), answer: format!("{name}: {error}") })
    };
    let blob = |value: &Value| {
        let digest = value["digest"].as_str().unwrap_or_default();
        json(&format!("blobs/{}", digest.replace(':', "/")))
    };
    let config = blob(&blob(&json("index.json")?["manifests"][0])?["config"])?;
    let labels = config["config"]["Labels"].as_object().into_iter().flatten();
    let short = |key: &str| key.trim_start_matches("org.opencontainers.image.").to_owned();
    Ok(labels.map(|(key, value)| (short(key), value.as_str().unwrap_or_default().to_owned())).collect())
}

fn refused(answer: String) -> LabError {
    LabError::Refused { what: "make the image".into(), answer }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_dynamic_or_too_large_is_no_image() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("image.tar");
        let made = |dir: &Path| write(dir, "r", &to).map_err(|error| error.to_string());
        assert!(made(dir.path()).unwrap_err().contains("is not there"));
        for name in PROGRAMS {
            fs::write(dir.path().join(name), name).unwrap();
        }
        assert!(made(dir.path()).unwrap() < LIMIT);
        let labels = labels(&to).unwrap();
        assert_eq!((labels["revision"].as_str(), labels["version"].as_str()), ("r", env!("CARGO_PKG_VERSION")));
        File::create(dir.path().join("bulkhead")).unwrap().set_len(LIMIT).unwrap();
        assert!(made(dir.path()).unwrap_err().contains("may have 60000000"));
        assert!(!to.exists());
        fs::copy(std::env::current_exe().unwrap(), dir.path().join("bulkhead")).unwrap();
        assert!(made(dir.path()).unwrap_err().contains("is not static"));
    }
}
