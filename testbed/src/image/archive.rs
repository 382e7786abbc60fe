//! The archive of an image: the OCI image layout in a tar, with Docker's own manifest beside it,
//! which engines before Docker 25 look for.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use flate2::{Compression, GzBuilder};
use ring::digest::{SHA256, digest};
use serde_json::{Map, Value, json};
use tar::{Builder, EntryType, Header};

use super::{Image, ImageConfig};

/// How the files are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// As they are, which takes no time.
    Plain,
    /// For whoever has to send them.
    Gzip,
}

impl Layer {
    fn media_type(self) -> &'static str {
        match self {
            Layer::Plain => "application/vnd.oci.image.layer.v1.tar",
            Layer::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        }
    }

    fn pack(self, tar: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Layer::Plain => Ok(tar.to_vec()),
            Layer::Gzip => {
                // Neither a name nor a time goes into its header.
                let mut gzip = GzBuilder::new().write(Vec::new(), Compression::best());
                gzip.write_all(tar)?;
                gzip.finish()
            }
        }
    }
}

/// A piece of the layout: its hash is its name.
struct Blob {
    media_type: &'static str,
    hash: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(media_type: &'static str, bytes: Vec<u8>) -> Blob {
        Blob { media_type, hash: sha256(&bytes), bytes }
    }

    fn json(media_type: &'static str, content: &Value) -> Blob {
        Blob::new(media_type, content.to_string().into_bytes())
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.hash)
    }

    /// What others call it by.
    fn descriptor(&self) -> Value {
        json!({
            "mediaType": self.media_type,
            "digest": format!("sha256:{}", self.hash),
            "size": self.bytes.len(),
        })
    }
}

pub(super) fn write(image: &Image, to: &Path, layer: Layer) -> io::Result<()> {
    let tar = tar_of(&image.files)?;
    let config = config(&image.config, &sha256(&tar));
    let config = Blob::json("application/vnd.oci.image.config.v1+json", &config);
    let files = Blob::new(layer.media_type(), layer.pack(&tar)?);
    let manifest = Blob::json(
        "application/vnd.oci.image.manifest.v1+json",
        &json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config.descriptor(),
            "layers": [files.descriptor()],
        }),
    );
    let dockers = json!([{
        "Config": config.path(), "RepoTags": [image.name], "Layers": [files.path()],
    }]);
    let mut archive = Builder::new(File::create(to)?);
    let mut put = |name: &str, bytes: &[u8]| put(&mut archive, name, 0o644, bytes);
    put("oci-layout", json!({"imageLayoutVersion": "1.0.0"}).to_string().as_bytes())?;
    put("index.json", index(image, &manifest).to_string().as_bytes())?;
    put("manifest.json", dockers.to_string().as_bytes())?;
    for blob in [&manifest, &config, &files] {
        put(&blob.path(), &blob.bytes)?;
    }
    archive.into_inner()?.sync_all()
}

/// What the archive is: one image, by this name.
fn index(image: &Image, manifest: &Blob) -> Value {
    let name = image.name.as_str();
    let mut entry = manifest.descriptor();
    entry["platform"] = json!({"os": "linux", "architecture": image.config.architecture()});
    let tag = name.rsplit_once(':').map_or(name, |(_, tag)| tag);
    entry["annotations"] = json!({
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": tag,
    });
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    })
}

fn config(config: &ImageConfig, layer: &str) -> Value {
    let ImageConfig { entrypoint, user, ports, labels, architecture: _ } = config;
    let mut said = json!({"Entrypoint": entrypoint});
    if !user.is_empty() {
        said["User"] = json!(user);
    }
    if !ports.is_empty() {
        let ports = ports.iter().map(|port| (port.clone(), json!({})));
        said["ExposedPorts"] = Value::Object(ports.collect::<Map<_, _>>());
    }
    if !labels.is_empty() {
        let labels = labels.iter().map(|(name, text)| (name.clone(), json!(text)));
        said["Labels"] = Value::Object(labels.collect::<Map<_, _>>());
    }
    json!({
        "architecture": config.architecture(),
        "os": "linux",
        "config": said,
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
    })
}

/// The files and the folders that they need, in one order, owned by root, of no time.
fn tar_of(files: &[(PathBuf, PathBuf)]) -> io::Result<Vec<u8>> {
    let mut files: Vec<_> = files.iter().collect();
    files.sort_by_key(|(_, place)| place);
    let (mut tar, mut folders) = (Builder::new(Vec::new()), BTreeSet::new());
    for (file, place) in files {
        let above: Vec<&Path> = place.ancestors().skip(1).collect();
        for folder in above.into_iter().rev().filter(|folder| *folder != Path::new("")) {
            if folders.insert(folder) {
                let mut header = header(EntryType::Directory, 0o755, 0);
                tar.append_data(&mut header, folder, io::empty())?;
            }
        }
        let executable = file.metadata()?.permissions().mode() & 0o111 != 0;
        let mode = if executable { 0o755 } else { 0o644 };
        put(&mut tar, place, mode, &std::fs::read(file)?)?;
    }
    tar.into_inner()
}

fn put(
    tar: &mut Builder<impl Write>,
    name: impl AsRef<Path>,
    mode: u32,
    bytes: &[u8],
) -> io::Result<()> {
    tar.append_data(&mut header(EntryType::Regular, mode, bytes.len() as u64), name, bytes)
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn sha256(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use super::*;
    use crate::Folder;

    type Entries = BTreeMap<String, (u32, Vec<u8>)>;

    /// Modes and contents by name.
    fn entries(tar: &[u8]) -> Entries {
        let mut archive = tar::Archive::new(tar);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            let owner = (entry.header().uid().unwrap(), entry.header().gid().unwrap());
            assert_eq!((owner, entry.header().mtime().unwrap()), ((0, 0), 0));
            let name = entry.path().unwrap().display().to_string();
            (name, (entry.header().mode().unwrap(), bytes))
        });
        entries.collect()
    }

    fn image(folder: &Folder) -> Image {
        let program = folder.write("program", "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        let text = folder.write("text", "words").unwrap();
        Image {
            name: "some.where/image:1".to_owned(),
            files: vec![(text, "etc/deep/text".into()), (program, "bin/program".into())],
            config: ImageConfig {
                entrypoint: vec!["/bin/program".to_owned()],
                user: "7:7".to_owned(),
                ports: vec!["80/tcp".to_owned()],
                labels: vec![("a.b".to_owned(), "c".to_owned())],
                architecture: "arm64".to_owned(),
            },
        }
    }

    fn archive(layer: Layer) -> Entries {
        let folder = Folder::new("image").unwrap();
        let archive = folder.path().join("archive.tar");
        image(&folder).write(&archive, layer).unwrap();
        entries(&std::fs::read(archive).unwrap())
    }

    fn json_of(entries: &Entries, name: &str) -> Value {
        serde_json::from_slice(&entries[name].1).unwrap()
    }

    fn blob<'a>(entries: &'a Entries, descriptor: &Value) -> &'a [u8] {
        let hash = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let bytes = &entries[&format!("blobs/sha256/{hash}")].1;
        assert_eq!(
            (sha256(bytes), json!(bytes.len())),
            (hash.to_owned(), descriptor["size"].clone())
        );
        bytes
    }

    #[test]
    fn from_the_index_everything_is_found_by_its_hash() {
        for (layer, media_type) in [(Layer::Plain, "tar"), (Layer::Gzip, "tar+gzip")] {
            let entries = archive(layer);
            let index = json_of(&entries, "index.json");
            let name = &index["manifests"][0]["annotations"]["io.containerd.image.name"];
            assert_eq!(name, "some.where/image:1");
            let manifest = blob(&entries, &index["manifests"][0]);
            let manifest: Value = serde_json::from_slice(manifest).unwrap();
            let config = blob(&entries, &manifest["config"]);
            let config: Value = serde_json::from_slice(config).unwrap();
            assert_eq!(config["config"]["User"], "7:7");
            assert_eq!(config["architecture"], "arm64");
            assert_eq!(index["manifests"][0]["platform"]["architecture"], "arm64");
            assert_eq!(config["config"]["ExposedPorts"], json!({"80/tcp": {}}));
            assert_eq!(config["config"]["Labels"], json!({"a.b": "c"}));
            let packed = &manifest["layers"][0];
            assert!(packed["mediaType"].as_str().unwrap().ends_with(media_type));
            let mut tar = blob(&entries, packed).to_vec();
            if layer == Layer::Gzip {
                let mut plain = Vec::new();
                flate2::read::GzDecoder::new(&*tar).read_to_end(&mut plain).unwrap();
                tar = plain;
            }
            assert_eq!(config["rootfs"]["diff_ids"], json!([format!("sha256:{}", sha256(&tar))]));
            let files = self::entries(&tar);
            let modes: Vec<_> = files.iter().map(|(name, (mode, _))| (&**name, *mode)).collect();
            let (folder, program, text) = (0o755, 0o755, 0o644);
            let expected = [
                ("bin", folder),
                ("bin/program", program),
                ("etc", folder),
                ("etc/deep", folder),
                ("etc/deep/text", text),
            ];
            assert_eq!(modes, expected);
            assert_eq!(files["etc/deep/text"].1, b"words");
        }
    }

    #[test]
    fn dockers_own_manifest_names_the_same_files() {
        let entries = archive(Layer::Gzip);
        let dockers = json_of(&entries, "manifest.json");
        assert_eq!(dockers[0]["RepoTags"], json!(["some.where/image:1"]));
        for path in [&dockers[0]["Config"], &dockers[0]["Layers"][0]] {
            assert!(entries.contains_key(path.as_str().unwrap()), "{path}");
        }
    }

    #[test]
    fn the_same_files_make_the_same_archive() {
        assert_eq!(archive(Layer::Gzip), archive(Layer::Gzip));
    }
}
