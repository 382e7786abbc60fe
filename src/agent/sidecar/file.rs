//! The file that says where the agent stands.
//!
//! # Guarantees
//! It is replaced, never written in place: whoever reads it reads one whole line of JSON.
//! # Not guaranteed
//! That it is up to date: an agent that is frozen or dead writes nothing. A reader compares
//! `valid_until` with the first column of `/proc/uptime`, and relies on the lock no longer.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The file. Dropped, it stays.
#[derive(Debug)]
pub(super) struct StandingFile {
    path: PathBuf,
    new: PathBuf,
}

impl StandingFile {
    pub(super) fn new(path: &Path) -> StandingFile {
        // Beside it, for a rename must not cross file systems.
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        StandingFile { path: path.to_owned(), new: new.into() }
    }

    /// Replaces it. One that cannot be replaced is removed: what it says may be wrong from now on.
    pub(super) fn set(&self, json: &str) -> io::Result<()> {
        let replaced = fs::write(&self.new, format!("{json}\n"))
            .and_then(|()| fs::rename(&self.new, &self.path));
        if replaced.is_err() {
            drop(fs::remove_file(&self.path));
        }
        replaced
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_replaced_or_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("leader.json");
        let file = StandingFile::new(&path);
        file.set("one").unwrap();
        file.set("two").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        fs::create_dir(&file.new).unwrap();
        file.set("three").unwrap_err();
        assert!(!path.exists());
    }
}
