//! Builds a tool once: cached by a hash of its pins, under a lock that other processes respect.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{Module, Tool, ToolError, on_path, repository};
use crate::wait::{Deadline, Heartbeat, Stopwatch, pause, wait_for};
use crate::{folder, reaper, say};

/// A build takes minutes; on a slow machine a quarter of an hour.
const BUILD_PATIENCE: Duration = Duration::from_secs(45 * 60);

/// What a build that is not of Go alone needs to be there.
const CGO_NEEDS: &str = " (it needs Debian's packages gcc, pkg-config and libseccomp-dev)";

/// A tool's place in the cache.
pub(super) struct Cached {
    tool: Tool,
    source: PathBuf,
    folder: PathBuf,
}

impl Cached {
    pub(super) fn of(tool: Tool) -> Result<Cached, ToolError> {
        let module = tool.module();
        let source = repository().join(module.folder);
        let hash = hash_of(module, &source).map_err(|source| io_error(tool, source))?;
        let folder = repository().join("tools/.cache").join(format!("{}-{hash:016x}", module.name));
        Ok(Cached { tool, source, folder })
    }

    pub(super) fn binary(&self) -> PathBuf {
        self.folder.join(self.tool.file_name())
    }

    pub(super) fn exists(&self) -> bool {
        self.binary().is_file()
    }

    /// Builds it, unless another process did meanwhile.
    pub(super) fn build(&self, why: &str) -> Result<PathBuf, ToolError> {
        fs::create_dir_all(self.folder.with_file_name("")).map_err(|error| self.io(error))?;
        let _lock = self.lock()?;
        if self.exists() {
            return Ok(self.binary());
        }
        if on_path("go").is_none() {
            return Err(ToolError::NoGo { tool: self.tool.name(), module: self.source.clone() });
        }
        let module = self.tool.module();
        say(format!(
            "building {} from {} ({why}); takes {} the first time",
            self.tool.name(),
            module.folder,
            module.takes
        ));
        let watch = Stopwatch::start();
        self.build_aside()?;
        say(format!("built {} in {} s", self.tool.name(), watch.elapsed().as_secs()));
        Ok(self.binary())
    }

    /// One build at a time: two would only halve each other's speed.
    fn lock(&self) -> Result<File, ToolError> {
        let path = self.folder.with_file_name("build.lock");
        let file = File::create(path).map_err(|error| self.io(error))?;
        let what = format!("another process that builds tools, to go on with {}", self.tool.name());
        wait_for(what, BUILD_PATIENCE, || match file.try_lock() {
            Ok(()) => Some(Ok(())),
            Err(TryLockError::WouldBlock) => None,
            Err(TryLockError::Error(error)) => Some(Err(self.io(error))),
        })??;
        Ok(file)
    }

    /// Builds into a folder of its own and moves that to its place when all is there.
    fn build_aside(&self) -> Result<(), ToolError> {
        let aside = self.folder.with_extension("building");
        self.remove_leftovers().and_then(|()| fs::create_dir(&aside)).map_err(|e| self.io(e))?;
        let log = aside.join("build.log");
        if !self.run_go(&aside, &log)? {
            let output = folder::tail(&log);
            let module = self.source.clone();
            let needs = if self.tool.module().cgo { CGO_NEEDS } else { "" };
            return Err(ToolError::Build { tool: self.tool.name(), module, needs, output });
        }
        fs::rename(&aside, &self.folder).map_err(|error| self.io(error))
    }

    /// Removes what failed and interrupted builds left. We hold the lock: nobody builds there.
    fn remove_leftovers(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.folder.with_file_name(""))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "building") {
                fs::remove_dir_all(path)?;
            }
        }
        Ok(())
    }

    /// Whether `go build` succeeded.
    fn run_go(&self, aside: &Path, log: &Path) -> Result<bool, ToolError> {
        let module = self.tool.module();
        let spawn = || {
            let log = File::create(log)?;
            let mut go = Command::new("go");
            go.args(["build", "-mod=readonly", "-buildvcs=false", "-trimpath"])
                .arg(format!("-ldflags={}", module.ldflags))
                .arg(format!("-tags={}", module.tags))
                .arg("-o")
                .arg(format!("{}/", aside.display()))
                .arg(module.package)
                .current_dir(&self.source)
                .env("CGO_ENABLED", if module.cgo { "1" } else { "0" })
                .env("GOWORK", "off")
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log);
            reaper::spawn(&mut go)
        };
        let mut go = spawn().map_err(|error| self.io(error))?;
        let success = self.wait_for_go(&mut go);
        reaper::forget_process(go.id());
        success
    }

    fn wait_for_go(&self, go: &mut Child) -> Result<bool, ToolError> {
        let deadline = Deadline::after(BUILD_PATIENCE);
        let mut alive = Heartbeat::start();
        loop {
            if let Some(status) = go.try_wait().map_err(|error| self.io(error))? {
                return Ok(status.success());
            }
            if deadline.passed() {
                let killed = go.kill().and_then(|()| go.wait());
                return killed.map(|_| false).map_err(|error| self.io(error));
            }
            alive.beat(|waited| {
                format!(
                    "still building {} ({} s so far, {} in all)",
                    self.tool.name(),
                    waited.as_secs(),
                    self.tool.module().takes
                )
            });
            pause();
        }
    }

    fn io(&self, source: io::Error) -> ToolError {
        io_error(self.tool, source)
    }
}

fn io_error(tool: Tool, source: io::Error) -> ToolError {
    ToolError::Io { tool: tool.name(), source }
}

/// A hash of all that decides what comes out: pins, flags and our own Go code.
fn hash_of(module: &Module, source: &Path) -> io::Result<u64> {
    let mut files = Vec::new();
    collect_files(source, &mut files)?;
    files.retain(|file| file.extension().is_some_and(|kind| kind == "go" || is_pin(file)));
    files.sort();
    let mut hash = fnv(0xcbf2_9ce4_8422_2325, module.ldflags.as_bytes());
    hash = fnv(hash, module.tags.as_bytes());
    hash = fnv(hash, if module.cgo { b"cgo".as_slice() } else { &[] });
    for file in files {
        hash = fnv(hash, &fs::read(file)?);
    }
    Ok(hash)
}

/// The files of a folder, and of those below it.
fn collect_files(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => collect_files(&entry.path(), files)?,
            false => files.push(entry.path()),
        }
    }
    Ok(())
}

fn is_pin(file: &Path) -> bool {
    file.ends_with("go.mod") || file.ends_with("go.sum")
}

/// FNV-1a: stable over releases of Rust, as the standard library's hasher is not.
fn fnv(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(fnv(0xcbf2_9ce4_8422_2325, b"a"), 0xaf63_dc4c_8601_ec8c);
    }

    #[test]
    fn other_pins_mean_another_place() {
        let folder = crate::Folder::new("hash").unwrap();
        folder.write("go.mod", "one").unwrap();
        let one = hash_of(&super::super::ETCD, folder.path()).unwrap();
        folder.write("go.mod", "two").unwrap();
        let two = hash_of(&super::super::ETCD, folder.path()).unwrap();
        assert_ne!(one, two);
        fs::create_dir(folder.path().join("program")).unwrap();
        folder.write("program/main.go", "package main").unwrap();
        assert_ne!(two, hash_of(&super::super::ETCD, folder.path()).unwrap());
    }
}
