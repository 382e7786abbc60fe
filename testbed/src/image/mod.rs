//! Container images, made from files without a registry or a container engine.

mod archive;
mod contents;
mod product;

use std::path::{Path, PathBuf};

pub use archive::Layer;
pub use product::{PRODUCT_IMAGE, ProductImage};

use crate::process::BedError;
use crate::tools::Tool;

/// What holds a pod's namespaces.
pub(crate) const SANDBOX_IMAGE: &str = "consullock.dev/testbed/pause:1";

/// A program for pods that answers HTTP; see `testbed/backend`. Use it with
/// `imagePullPolicy: Never`.
pub const BACKEND_IMAGE: &str = "consullock.dev/testbed/backend:1";

/// An image: some files, and what of them runs.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its name, with a tag.
    pub name: String,
    /// Files of this machine, and where each goes in the image, such as `bin/program`. Who may
    /// execute a file here may do so there.
    pub files: Vec<(PathBuf, PathBuf)>,
    /// What a container of it does unless told otherwise.
    pub config: ImageConfig,
}

/// What an image says of its containers.
#[derive(Clone, Debug, Default)]
pub struct ImageConfig {
    /// What runs.
    pub entrypoint: Vec<String>,
    /// As whom, `user:group`; empty: as root.
    pub user: String,
    /// The ports that it serves, such as `8080/tcp`.
    pub ports: Vec<String>,
    /// Names and texts.
    pub labels: Vec<(String, String)>,
    /// The kind of processor that it is for, such as `amd64`; empty: this machine's.
    pub architecture: String,
}

impl ImageConfig {
    fn architecture(&self) -> &str {
        if self.architecture.is_empty() { architecture() } else { &self.architecture }
    }
}

impl Image {
    /// What pods' sandboxes run.
    pub(crate) fn sandbox() -> Result<Image, BedError> {
        Image::of_backend(SANDBOX_IMAGE, "pause")
    }

    /// What tests' pods run.
    pub(crate) fn backend() -> Result<Image, BedError> {
        Image::of_backend(BACKEND_IMAGE, "serve")
    }

    fn of_backend(name: &str, task: &str) -> Result<Image, BedError> {
        Image::of_backend_as("backend", name, task)
    }

    /// The program of [`BACKEND_IMAGE`] under another name, and with another task.
    ///
    /// # Errors
    /// It cannot be built.
    pub fn of_backend_as(program: &str, name: &str, task: &str) -> Result<Image, BedError> {
        let entrypoint = vec![format!("/{program}"), task.to_owned()];
        Ok(Image {
            name: name.to_owned(),
            files: vec![(Tool::Backend.path()?, program.into())],
            config: ImageConfig { entrypoint, ..ImageConfig::default() },
        })
    }

    /// Writes it as an OCI archive, which `ctr images import`, `podman load`, `skopeo` and
    /// `docker load` read. The same files make the same archive, byte for byte.
    ///
    /// # Errors
    /// A file could not be read, or the archive not be written.
    pub fn write(&self, to: &Path, layer: Layer) -> Result<(), BedError> {
        Ok(archive::write(self, to, layer)?)
    }
}

/// What container images call this machine's processor.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
