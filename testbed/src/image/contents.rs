//! What a binary says that it was made of: the list that `cargo auditable` puts into its section
//! `.dep-v0`, as JSON packed by zlib. And whether the SBOM beside it, and `Cargo.lock`, say the same.

use std::collections::BTreeSet;
use std::io::Read;

use flate2::read::ZlibDecoder;
use serde::Deserialize;

/// The section of the list.
const SECTION: &[u8] = b".dep-v0";
/// The longest list that is read.
const LIST_MAX: u64 = 8_000_000;

/// A crate and its version.
pub(super) type Package = (String, String);

/// What a binary was made of.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Contents {
    /// What is in it, itself included.
    pub(super) linked: BTreeSet<Package>,
    /// What only built it: build scripts, macros and what they need.
    pub(super) built_by: BTreeSet<Package>,
}

#[derive(Deserialize)]
struct List {
    packages: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    name: String,
    version: String,
    #[serde(default)]
    kind: String,
}

#[derive(Deserialize)]
struct Sbom {
    metadata: Metadata,
    components: Vec<Component>,
}

#[derive(Deserialize)]
struct Metadata {
    component: Component,
}

#[derive(Deserialize)]
struct Component {
    name: String,
    version: String,
}

impl Contents {
    /// As a binary tells; `None`: it does not tell.
    pub(super) fn of(binary: &[u8]) -> Result<Option<Contents>, String> {
        let section =
            section(binary, SECTION).ok_or("this is no 64-bit ELF file, or half of one")?;
        let Some(packed) = section else { return Ok(None) };
        let mut text = Vec::new();
        let unpacked = ZlibDecoder::new(packed).take(LIST_MAX).read_to_end(&mut text);
        unpacked.map_err(|error| format!("its list of dependencies is no zlib: {error}"))?;
        let list: List = serde_json::from_slice(&text)
            .map_err(|error| format!("its list of dependencies is odd: {error}"))?;
        let (built_by, linked) =
            list.packages.into_iter().partition::<Vec<_>, _>(|one| one.kind == "build");
        let set = |list: Vec<Listed>| list.into_iter().map(|one| (one.name, one.version)).collect();
        Ok(Some(Contents { linked: set(linked), built_by: set(built_by) }))
    }

    /// What is in the binary, and neither in `Cargo.lock` nor the SBOM as it should be.
    pub(super) fn missing(&self, lock: &str, sbom: Option<&[u8]>) -> Result<Vec<String>, String> {
        let locked = locked(lock);
        let all = self.linked.iter().chain(&self.built_by);
        let unlocked = all.filter(|package| !locked.contains(*package));
        let unlocked =
            unlocked.map(|(name, version)| format!("{name} {version}: not in Cargo.lock"));
        let mut missing: Vec<String> = unlocked.collect();
        if let Some(sbom) = sbom {
            let sbom: Sbom = serde_json::from_slice(sbom)
                .map_err(|error| format!("the SBOM is odd: {error}"))?;
            let named = sbom.components.into_iter().chain([sbom.metadata.component]);
            let named: BTreeSet<Package> = named.map(|one| (one.name, one.version)).collect();
            let unnamed = self.linked.difference(&named);
            missing.extend(
                unnamed.map(|(name, version)| format!("{name} {version}: not in the SBOM")),
            );
        }
        Ok(missing)
    }
}

/// What `Cargo.lock` names.
fn locked(lock: &str) -> BTreeSet<Package> {
    let value = |line: &str, field: &str| {
        let text = line.strip_prefix(field)?.strip_prefix(" = \"")?.strip_suffix('"')?;
        Some(text.to_owned())
    };
    let mut packages = BTreeSet::new();
    let mut name = None;
    for line in lock.lines() {
        name = value(line, "name").or(name);
        if let (Some(version), Some(name)) = (value(line, "version"), &name) {
            packages.insert((name.clone(), version));
        }
    }
    packages
}

/// What a section of an ELF file holds; `Some(None)`: it has none of this name.
fn section<'a>(elf: &'a [u8], wanted: &[u8]) -> Option<Option<&'a [u8]>> {
    /// ELF, 64 bits, the lesser byte first.
    const MAGIC: [u8; 6] = [0x7f, b'E', b'L', b'F', 2, 1];
    elf.strip_prefix(&MAGIC)?;
    let number = |at: usize, bytes: usize| {
        let field = elf.get(at..at.checked_add(bytes)?)?;
        let value = field.iter().rev().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        usize::try_from(value).ok()
    };
    let (table, size, count, of_names) =
        (number(0x28, 8)?, number(0x3a, 2)?, number(0x3c, 2)?, number(0x3e, 2)?);
    let header = |index: usize| table.checked_add(size.checked_mul(index)?);
    let bytes = |header: usize| {
        let (at, length) = (number(header + 0x18, 8)?, number(header + 0x20, 8)?);
        elf.get(at..at.checked_add(length)?)
    };
    let names = bytes(header(of_names)?)?;
    for index in 0..count {
        let header = header(index)?;
        let name = names.get(number(header, 4)?..)?;
        if name.split(|byte| *byte == 0).next() == Some(wanted) {
            return bytes(header).map(Some);
        }
    }
    Some(None)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use flate2::{Compression, read::ZlibEncoder};
    use serde_json::json;

    use super::*;
    use crate::Folder;

    fn package(name: &str) -> Package {
        (name.to_owned(), "1.0.0".to_owned())
    }

    /// A program of this machine, with such a section.
    fn program(list: &[u8]) -> Vec<u8> {
        let folder = Folder::new("contents").unwrap();
        let list = folder.write("list", list).unwrap();
        let made = folder.path().join("program");
        let section = format!(".dep-v0={}", list.display());
        let objcopy = Command::new("objcopy")
            .args(["--add-section", &section, "/bin/true"])
            .arg(&made)
            .status()
            .unwrap();
        assert!(objcopy.success());
        std::fs::read(made).unwrap()
    }

    fn list() -> Vec<u8> {
        let list = json!({"packages": [
            {"name": "ours", "version": "1.0.0", "source": "local", "root": true, "dependencies": [1]},
            {"name": "linked", "version": "1.0.0", "source": "crates.io"},
            {"name": "macros", "version": "1.0.0", "source": "crates.io", "kind": "build"},
        ]});
        let text = list.to_string();
        let mut packed = Vec::new();
        let mut encoder = ZlibEncoder::new(text.as_bytes(), Compression::fast());
        encoder.read_to_end(&mut packed).unwrap();
        packed
    }

    #[test]
    fn what_a_binary_was_made_of_is_read_from_it() {
        let contents = Contents::of(&program(&list())).unwrap().unwrap();
        assert_eq!(contents.linked, [package("linked"), package("ours")].into());
        assert_eq!(contents.built_by, [package("macros")].into());
        assert_eq!(Contents::of(&std::fs::read("/bin/true").unwrap()), Ok(None));
        for odd in [&b"#!/bin/sh"[..], &b"\x7fELF\x02\x01"[..], &program(b"no zlib")] {
            assert!(Contents::of(odd).is_err());
        }
    }

    #[test]
    fn what_the_lock_or_the_sbom_does_not_name_is_named() {
        let contents = Contents::of(&program(&list())).unwrap().unwrap();
        let locked = |name| format!("[[package]]\nname = \"{name}\"\nversion = \"1.0.0\"\n");
        let lock = ["ours", "linked", "macros"].map(locked).join("\n");
        let sbom = |names: &[&str]| {
            let components: Vec<_> =
                names.iter().map(|name| json!({"name": name, "version": "1.0.0"})).collect();
            let own = json!({"name": "ours", "version": "1.0.0"});
            json!({"metadata": {"component": own}, "components": components}).to_string()
        };
        let whole = sbom(&["linked", "another"]);
        assert_eq!(contents.missing(&lock, Some(whole.as_bytes())), Ok(vec![]));
        assert_eq!(contents.missing(&lock, None), Ok(vec![]));
        let half = contents.missing(&lock, Some(sbom(&["another"]).as_bytes())).unwrap();
        assert_eq!(half, ["linked 1.0.0: not in the SBOM"]);
        let other = lock.replace("linked", "another");
        let unlocked = contents.missing(&other, None).unwrap();
        assert_eq!(unlocked, ["linked 1.0.0: not in Cargo.lock"]);
    }
}
