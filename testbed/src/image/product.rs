//! The image of ConsulLock itself, as the `Dockerfile` builds it: the same script puts its file
//! system together, and a test compares what both say of its containers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::contents::Contents;
use super::{Image, ImageConfig};
use crate::folder::Folder;
use crate::process::BedError;
use crate::run::run;
use crate::tools::repository;

/// What it is called here. Use it with `imagePullPolicy: Never`.
pub const PRODUCT_IMAGE: &str = concat!("consullock.dev/consul-lock:", env!("CARGO_PKG_VERSION"));

/// As whom it runs: nobody whom a host knows.
const USER: &str = "65532:65532";

const LABELS: [(&str, &str); 4] = [
    ("org.opencontainers.image.title", "consul-lock"),
    (
        "org.opencontainers.image.description",
        "Locks and leader election for Kubernetes that live in HashiCorp Consul",
    ),
    ("org.opencontainers.image.licenses", "Apache-2.0"),
    ("org.opencontainers.image.version", env!("CARGO_PKG_VERSION")),
];

/// How long putting the files together may take on a busy machine; of another kind of machine some are
/// downloaded.
const ALLOWED: Duration = Duration::from_secs(300);

/// The image, and the files that it is made of as long as this is kept.
#[derive(Debug)]
pub struct ProductImage {
    /// The image.
    pub image: Image,
    _folder: Folder,
}

impl ProductImage {
    /// Of this binary.
    ///
    /// # Errors
    /// Its file system could not be put together, with what is missing.
    pub fn of(binary: &Path) -> Result<ProductImage, BedError> {
        let folder = Folder::new("product")?;
        let root = folder.path().join("root");
        let mut script = Command::new(repository().join("tools/image/assemble.sh"));
        run(
            script.arg(std::path::absolute(binary)?).arg(&root).current_dir(repository()),
            ALLOWED,
        )?;
        let mut files = Vec::new();
        collect(&root, &root, &mut files)?;
        let config = ImageConfig { architecture: architecture(binary)?, ..config() };
        let image = Image { name: PRODUCT_IMAGE.to_owned(), files, config };
        Ok(ProductImage { image, _folder: folder })
    }

    /// Whether the binary says what it was made of, and the SBOM names all of that; in words.
    ///
    /// # Errors
    /// One of them does not name what it should, or is odd.
    pub fn contents(&self) -> Result<String, String> {
        let read = |place: &str| {
            let is_it = |(_, other): &&(PathBuf, PathBuf)| other.as_path() == Path::new(place);
            let file = self.image.files.iter().find(is_it);
            let read = file.map(|(file, _)| fs::read(file));
            read.transpose().map_err(|error| format!("{place}: {error}"))
        };
        let binary = read("consul-lock")?.unwrap_or_default();
        let Some(contents) = Contents::of(&binary)? else {
            return Ok("the binary does not say what it was made of".to_owned());
        };
        let sbom = read("usr/share/doc/consul-lock/sbom.cdx.json")?;
        let lock = fs::read_to_string(repository().join("Cargo.lock"));
        let lock = lock.map_err(|error| format!("Cargo.lock: {error}"))?;
        let missing = contents.missing(&lock, sbom.as_deref())?;
        if !missing.is_empty() {
            return Err(format!(
                "the binary was made of more than is told: {}",
                missing.join(", ")
            ));
        }
        let count = contents.linked.len();
        let named = if sbom.is_some() { "all of them in the SBOM" } else { "and there is no SBOM" };
        Ok(format!("the binary says that {count} crates are in it, {named}"))
    }

    /// What it takes on a node, in bytes.
    ///
    /// # Errors
    /// A file is gone.
    pub fn size(&self) -> std::io::Result<u64> {
        self.image.files.iter().map(|(file, _)| Ok(file.metadata()?.len())).sum()
    }
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<(PathBuf, PathBuf)>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(root, &path, files)?;
        } else {
            let place = path.strip_prefix(root).unwrap_or(&path).to_owned();
            files.push((path, place));
        }
    }
    Ok(())
}

/// What container images call the kind of processor that a binary is for.
fn architecture(binary: &Path) -> std::io::Result<String> {
    let elf = fs::read(binary)?;
    // e_machine.
    let name = match elf.get(0x12..0x14) {
        Some([0x3e, 0]) => "amd64",
        Some([0xb7, 0]) => "arm64",
        _ => super::architecture(),
    };
    Ok(name.to_owned())
}

fn config() -> ImageConfig {
    ImageConfig {
        architecture: super::architecture().to_owned(),
        entrypoint: vec!["/consul-lock".to_owned()],
        user: USER.to_owned(),
        ports: vec!["8080/tcp".to_owned()],
        labels: LABELS.map(|(name, text)| (name.to_owned(), text.to_owned())).to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last stage of a Dockerfile that says the same.
    fn last_stage(config: &ImageConfig) -> String {
        let labels = config.labels.iter().map(|(name, text)| format!("{name}=\"{text}\""));
        let labels = labels.collect::<Vec<_>>().join(" \\\n      ");
        let ImageConfig { user, ports, entrypoint, .. } = config;
        format!(
            "FROM scratch\nCOPY --from=build /image/ /\nLABEL {labels}\nUSER {user}\n\
             EXPOSE {}\nENTRYPOINT {}\n",
            ports.join(" "),
            serde_json::to_string(entrypoint).unwrap(),
        )
    }

    #[test]
    fn the_dockerfile_says_the_same_of_its_containers() {
        let dockerfile = fs::read_to_string(repository().join("Dockerfile")).unwrap();
        let expected = last_stage(&config());
        assert!(
            dockerfile.ends_with(&expected),
            "the Dockerfile's last stage should read\n{expected}"
        );
        let made = "    tools/image/build.sh /out \\\n    \
                    && tools/image/assemble.sh /out/consul-lock /image\n";
        assert!(dockerfile.contains(made), "{made}");
    }
}
