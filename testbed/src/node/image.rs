//! Container images, made from files without a registry.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::folder::Folder;
use crate::process::BedError;
use crate::run::run;
use crate::tools::Tool;

/// What holds a pod's namespaces.
pub(super) const SANDBOX_IMAGE: &str = "consullock.dev/testbed/pause:1";

/// A program for pods that answers HTTP; see `testbed/backend`. Use it with
/// `imagePullPolicy: Never`.
pub const BACKEND_IMAGE: &str = "consullock.dev/testbed/backend:1";

/// How long packing and hashing some megabytes may take on a busy machine.
const ALLOWED: Duration = Duration::from_secs(60);

/// An image: some programs and which one runs.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its name, with a tag.
    pub name: String,
    /// Files of this machine, and where each goes in the image, such as `bin/program`. All are
    /// executable there.
    pub files: Vec<(PathBuf, PathBuf)>,
    /// What a container of it runs unless told otherwise.
    pub entrypoint: Vec<String>,
}

impl Image {
    /// What pods' sandboxes run.
    pub(super) fn sandbox() -> Result<Image, BedError> {
        Image::of_backend(SANDBOX_IMAGE, "pause")
    }

    /// What tests' pods run.
    pub(super) fn backend() -> Result<Image, BedError> {
        Image::of_backend(BACKEND_IMAGE, "serve")
    }

    fn of_backend(name: &str, task: &str) -> Result<Image, BedError> {
        Ok(Image {
            name: name.to_owned(),
            files: vec![(Tool::Backend.path()?, "backend".into())],
            entrypoint: vec!["/backend".to_owned(), task.to_owned()],
        })
    }

    /// Writes it as an archive that `ctr images import` and `docker load` read.
    pub(super) fn archive(&self, folder: &Folder) -> Result<PathBuf, BedError> {
        let work = tempfile::tempdir_in(folder.path())?;
        let (root, archive) = (work.path().join("root"), work.path().join("archive"));
        fs::create_dir(&root)?;
        fs::create_dir(&archive)?;
        for (file, place) in &self.files {
            let copy = root.join(place);
            fs::create_dir_all(copy.with_file_name(""))?;
            fs::copy(file, &copy)?;
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
        }
        let layer = archive.join("layer.tar");
        pack(&root, &layer)?;
        let config = self.config(&sha256(&layer)?).to_string();
        fs::write(archive.join("config.json"), config)?;
        let manifest = json!([{
            "Config": "config.json", "RepoTags": [self.name], "Layers": ["layer.tar"],
        }]);
        fs::write(archive.join("manifest.json"), manifest.to_string())?;
        let image = folder.path().join(format!("{}.tar", self.name.replace(['/', ':'], "-")));
        pack(&archive, &image)?;
        Ok(image)
    }

    fn config(&self, layer: &str) -> Value {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        json!({
            "architecture": architecture,
            "os": "linux",
            "config": {"Entrypoint": self.entrypoint},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
        })
    }
}

fn pack(folder: &Path, archive: &Path) -> Result<(), BedError> {
    let mut tar = Command::new("tar");
    tar.arg("--create").arg("--file").arg(archive).arg("--directory").arg(folder);
    tar.args(["--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "--sort=name", "."]);
    run(&mut tar, ALLOWED).map(drop)
}

fn sha256(file: &Path) -> Result<String, BedError> {
    let printed = run(Command::new("sha256sum").arg(file), ALLOWED)?;
    Ok(printed.split_whitespace().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_names_its_image_and_the_hash_of_its_layer() {
        let folder = Folder::new("image").unwrap();
        let file = folder.write("program", "#!/bin/sh\n").unwrap();
        let image = Image {
            name: "some/image:1".to_owned(),
            files: vec![(file, "bin/program".into())],
            entrypoint: vec!["/bin/program".to_owned()],
        };
        let archive = image.archive(&folder).unwrap();
        let read = |name: &str| {
            let mut tar = Command::new("tar");
            tar.arg("--extract").arg("--to-stdout").arg("--file").arg(&archive).arg(name);
            run(&mut tar, ALLOWED).unwrap()
        };
        let manifest: Value = serde_json::from_str(&read("./manifest.json")).unwrap();
        assert_eq!(manifest[0]["RepoTags"], json!(["some/image:1"]));
        let layer = folder.write("layer.tar", read("./layer.tar")).unwrap();
        let config: Value = serde_json::from_str(&read("./config.json")).unwrap();
        let hash = format!("sha256:{}", sha256(&layer).unwrap());
        assert_eq!(config["rootfs"]["diff_ids"], json!([hash]));
        assert!(read("./layer.tar").contains("./bin/program"));
    }
}
