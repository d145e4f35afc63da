//! OCI image archives, made without a daemon: what `ctr images import` takes. The same files make the same bytes.
//!
//! Several images in one archive share the layers that they have in common.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use bulkhead_tests::error::{LabError, Tried};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, Header};

use crate::layer::Layer;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An image: a name, how it starts, and its layers from the lowest up.
#[derive(Debug, Clone)]
pub struct Image {
    name: String,
    entrypoint: Vec<String>,
    command: Vec<String>,
    labels: BTreeMap<String, String>,
    layers: Vec<usize>,
}

/// Images that are written into one archive.
#[derive(Debug, Clone, Default)]
pub struct Archive {
    images: Vec<Image>,
    layers: Vec<Layer>,
}

/// A layer of an archive, to be used by any of its images.
#[derive(Debug, Clone, Copy)]
pub struct LayerId(usize);

impl Image {
    /// An image without layers; `name` is full, such as `registry.k8s.io/pause:3.10.1`.
    pub fn new(name: &str, entrypoint: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            entrypoint: owned(entrypoint),
            command: Vec::new(),
            labels: BTreeMap::new(),
            layers: Vec::new(),
        }
    }

    /// What the entrypoint is given unless the pod says otherwise.
    #[must_use]
    pub fn command(mut self, words: &[&str]) -> Self {
        self.command = owned(words);
        self
    }

    /// A label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// A layer on top of what it has.
    #[must_use]
    pub fn layer(mut self, layer: LayerId) -> Self {
        self.layers.push(layer.0);
        self
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

impl Archive {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// An archive of one image of one layer: its name, its entrypoint, files as (source, destination), labels.
    pub fn of_files(
        name: &str,
        entrypoint: &[&str],
        files: &[(&Path, &str)],
        labels: &[(&str, &str)],
    ) -> Result<Self, LabError> {
        let mut layer = Layer::base();
        for (from, to) in files {
            layer = layer.program(from, to)?;
        }
        let mut archive = Self::new();
        let layer = archive.add_layer(layer);
        let image = Image::new(name, entrypoint).layer(layer);
        archive.add(labels.iter().fold(image, |image, (key, value)| image.label(key, value)));
        Ok(archive)
    }

    /// Adds a layer for [`Image::layer`].
    pub fn add_layer(&mut self, layer: Layer) -> LayerId {
        self.layers.push(layer);
        LayerId(self.layers.len() - 1)
    }

    /// Adds an image.
    pub fn add(&mut self, image: Image) {
        self.images.push(image);
    }

    /// Writes the archive.
    pub fn write(&self, to: &Path) -> Result<(), LabError> {
        let what = || format!("write {}", to.display());
        let mut out = Writer(Builder::new(BufWriter::new(File::create(to).tried(what)?)), HashSet::new());
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| out.blob(LAYER, &layer.archive()?).tried(what))
            .collect::<Result<_, LabError>>()?;
        let manifests: Vec<Value> =
            self.images.iter().map(|image| out.image(image, &layers)).collect::<Result<_, _>>().tried(what)?;
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        out.file("index.json", index.to_string().as_bytes()).tried(what)?;
        out.file("oci-layout", json!({"imageLayoutVersion": "1.0.0"}).to_string().as_bytes()).tried(what)?;
        out.0.finish().tried(what)
    }
}

/// The archive, and the blobs that are in it already.
struct Writer(Builder<BufWriter<File>>, HashSet<String>);

impl Writer {
    fn file(&mut self, path: &str, data: &[u8]) -> std::io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        self.0.append_data(&mut header, path, data)
    }

    /// Writes a blob and gives its descriptor.
    fn blob(&mut self, kind: &str, data: &[u8]) -> std::io::Result<Value> {
        let digest = Sha256::digest(data).iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        if self.1.insert(digest.clone()) {
            self.file(&format!("blobs/sha256/{digest}"), data)?;
        }
        Ok(json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": data.len()}))
    }

    fn image(&mut self, image: &Image, all_layers: &[Value]) -> std::io::Result<Value> {
        let layers: Vec<&Value> = image.layers.iter().map(|&number| &all_layers[number]).collect();
        let digests: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "Entrypoint": image.entrypoint,
                "Cmd": image.command,
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Labels": image.labels,
            },
            "rootfs": {"type": "layers", "diff_ids": digests},
        });
        let config = self.blob(CONFIG, config.to_string().as_bytes())?;
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        let mut descriptor = self.blob(MANIFEST, manifest.to_string().as_bytes())?;
        let tag = image.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        descriptor["annotations"] =
            json!({"io.containerd.image.name": image.name, "org.opencontainers.image.ref.name": tag});
        Ok(descriptor)
    }
}

/// The machine's architecture, as OCI calls it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
