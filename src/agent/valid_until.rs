//! The file that tells a command until when it may rely on the lock.
//!
//! One line: seconds since the machine started, as in the first column of `/proc/uptime` and as
//! `CLOCK_BOOTTIME` counts them. It is replaced at every renewal, never written in place, so
//! whoever reads it reads a whole line; one that could not be replaced says too little, never too
//! much.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::clock::Instant;

/// The variable by which a command finds it.
pub(super) const VALID_UNTIL_FILE: &str = "CONSUL_LOCK_VALID_UNTIL_FILE";

/// The file, in a folder of its own that others cannot look into. Dropped, both are removed.
#[derive(Debug)]
pub(super) struct ValidUntilFile {
    folder: PathBuf,
}

impl ValidUntilFile {
    /// Makes the folder, under the one for temporary files.
    pub(super) fn new(valid_until: Instant) -> io::Result<ValidUntilFile> {
        let name = format!("consul-lock-{}-{:016x}", std::process::id(), rand::random::<u64>());
        let folder = std::env::temp_dir().join(name);
        DirBuilder::new().mode(0o700).create(&folder)?;
        let file = ValidUntilFile { folder };
        file.set(valid_until)?;
        Ok(file)
    }

    pub(super) fn path(&self) -> PathBuf {
        self.folder.join("valid-until")
    }

    pub(super) fn set(&self, valid_until: Instant) -> io::Result<()> {
        let at = valid_until.since_boot();
        let new = self.folder.join("new");
        fs::write(&new, format!("{}.{:09}\n", at.as_secs(), at.subsec_nanos()))?;
        fs::rename(new, self.path())
    }
}

impl Drop for ValidUntilFile {
    fn drop(&mut self) {
        remove(&self.path());
    }
}

/// What the file says; `None` if it is gone, or none of ours.
pub(super) fn read(file: &Path) -> Option<Instant> {
    let said = fs::read_to_string(file).ok()?;
    let (seconds, nanos) = said.trim_end().split_once('.')?;
    let nanos = Some(nanos).filter(|nanos| nanos.len() == 9)?.parse().ok()?;
    Some(Instant::from_boot(Duration::new(seconds.parse().ok()?, nanos)))
}

/// Removes the file, and its folder, which holds nothing else.
pub(super) fn remove(file: &Path) {
    if let Some(folder) = file.parent() {
        for name in [file, &folder.join("new")] {
            drop(fs::remove_file(name));
        }
        drop(fs::remove_dir(folder));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn it_says_seconds_since_boot_and_goes_with_its_owner() {
        let at = |nanos| Instant::from_boot(Duration::from_nanos(nanos));
        let file = ValidUntilFile::new(at(1_000_000_007)).unwrap();
        let path = file.path();
        assert_eq!(fs::read_to_string(&path).unwrap(), "1.000000007\n");
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
        file.set(at(16_500_000_000)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "16.500000000\n");
        assert_eq!(read(&path), Some(at(16_500_000_000)));
        drop(file);
        assert!(!path.parent().unwrap().exists());
        assert_eq!(read(&path), None);
    }
}
