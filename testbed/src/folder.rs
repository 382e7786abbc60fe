//! Short-lived folders.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::reaper;

/// How much of the end of a log is printed.
const TAIL_LINES: usize = 25;

/// A temporary folder that is removed when dropped.
///
/// If the thread is panicking then, its logs (`*.log`) stay; their place and their last lines are
/// printed. If the process ends without dropping it, the [reaper] removes it.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Creates one, with `label` in its name.
    ///
    /// # Errors
    /// The folder could not be created, or the reaper not be told.
    pub fn new(label: &str) -> io::Result<Folder> {
        let path = tempfile::Builder::new().prefix(&format!("testbed-{label}-")).tempdir()?.keep();
        let folder = Folder { path };
        reaper::owns_folder(&folder.path)?;
        Ok(folder)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file in it and returns the file's path.
    ///
    /// # Errors
    /// The file could not be written.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> io::Result<PathBuf> {
        let path = self.path.join(name);
        fs::write(&path, content)?;
        Ok(path)
    }

    fn keep_logs(&self) {
        crate::say(format!("the logs are kept in {}", self.path.display()));
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                // Printed, not said: this belongs to the output of the test that failed.
                eprintln!("{}", tail(&path));
            } else if path.is_dir() {
                let _ = fs::remove_dir_all(&path);
            } else {
                let _ = fs::remove_file(&path);
            }
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep_logs();
        } else {
            // What cannot be removed now is left to the operating system's own cleaning.
            let _ = fs::remove_dir_all(&self.path);
        }
        reaper::forget_folder(&self.path);
    }
}

/// The last lines of a log, under a headline; for people to read.
#[must_use]
pub fn tail(log: &Path) -> String {
    let lines = last_lines(log).unwrap_or_else(|error| format!("({error})"));
    format!("--- end of {} ---\n{lines}", log.display())
}

fn last_lines(log: &Path) -> io::Result<String> {
    const ENOUGH: u64 = 16 * 1024;
    let mut file = fs::File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(ENOUGH)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_gone_when_dropped() {
        let folder = Folder::new("gone").unwrap();
        let file = folder.write("a.log", "text").unwrap();
        drop(folder);
        assert!(!file.exists());
    }

    #[test]
    fn keeps_its_logs_and_nothing_else_when_the_thread_panics() {
        let folder = Folder::new("kept").unwrap();
        let (log, data) =
            (folder.write("a.log", "text").unwrap(), folder.write("data", "").unwrap());
        let path = folder.path().to_owned();
        let panicked = std::thread::spawn(move || {
            let _folder = folder;
            std::panic::resume_unwind(Box::new("on purpose"));
        })
        .join();
        assert!(panicked.is_err() && log.exists() && !data.exists());
        fs::remove_dir_all(path).unwrap();
    }
}
