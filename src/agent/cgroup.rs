//! A control group for the command and all that comes of it, where one can be made.
//!
//! The guard finds every process that comes of the command by itself ([`super::descendants`]), one
//! after the other. A group adds two things. What forks faster than it can be looked for is killed
//! at once, with everything else. And if `run` and the guard are killed together, so that nobody
//! is left who knows of the command, the group still holds its processes: the next run that is
//! started from the same group as that one ends them before it starts a command.
//!
//! Version 2 of cgroups, of Linux 5.14 or later, which kills a whole group in one step. Version 1
//! would have to be killed process by process, as descendants are.
//!
//! A process starts in the group of its parent, and to move one takes the kernel up to some ten
//! milliseconds. So that no command waits for that, `run` moves into the new group while it waits
//! for the lock, and moves back when it has started the guard; the guard, when it has started the
//! command.
//!
//! # Guarantees
//! A group is not touched by other runs while its `run` or its guard lives: both hold a lock on its
//! folder. Killing it neither allocates nor panics.
//! # Not guaranteed
//! That there is one: whoever runs us has to be allowed to make groups below ours and to move us
//! between them, as root is, and a systemd unit with `Delegate=yes`. Nor that a process stays in it
//! that may move itself elsewhere; it is a descendant all the same.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::task::spawn_blocking;

use crate::clock::Clock;

/// The files of a group: whoever writes a 0 into one moves there, a 1 into the other kills all.
const PROCS: &str = "cgroup.procs";
const KILL: &str = "cgroup.kill";

/// What the groups' names begin with.
const PREFIX: &str = "consul-lock-run-";

/// Another run may take a group that was just made for one that nobody minds.
const TRIES: u32 = 5;

/// How long processes that others left may take to vanish when they are killed.
const PATIENCE: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(5);

/// A group below that of `run`. Dropped, it is left and removed, if nothing else is in it.
#[derive(Debug)]
pub(super) struct Cgroup {
    folder: PathBuf,
    /// Whether this process is in it. Then to kill it would be to kill ourselves.
    inside: bool,
    kill: File,
    /// Whoever writes a 0 into it moves into the group above.
    back: File,
    /// Locked by `run` and by its guard.
    _lock: File,
}

/// Makes one that this process is in, beside whatever else goes on.
pub(super) fn prepare() -> impl Future<Output = Option<Cgroup>> {
    let made = spawn_blocking(Cgroup::make);
    async {
        let made = made.await.unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
        made.inspect_err(|error| tracing::debug!(%error, "the command has no cgroup")).ok()
    }
}

impl Cgroup {
    fn make() -> io::Result<Cgroup> {
        let ours = own()?;
        let mut made = Err(io::ErrorKind::NotFound.into());
        for _ in 0..TRIES {
            let name = format!("{PREFIX}{}-{:016x}", std::process::id(), rand::random::<u64>());
            let folder = ours.join(name);
            fs::create_dir(&folder)?;
            made = Cgroup::open(folder.clone());
            if made.is_ok() {
                break;
            }
            drop(fs::remove_dir(folder));
        }
        let mut made = made?;
        made.inside = false;
        move_to(&File::options().write(true).open(made.folder.join(PROCS))?)?;
        made.inside = true;
        Ok(made)
    }

    /// The group in this folder, in which this process was started.
    pub(super) fn open(folder: PathBuf) -> io::Result<Cgroup> {
        let lock = File::open(&folder)?;
        lock.try_lock_shared()?;
        // Who had the lock alone until now has removed the folder; from now on nobody can.
        let file = |file: PathBuf| File::options().write(true).open(file);
        let kill = file(folder.join(KILL))?;
        let back = file(folder.parent().unwrap_or(&folder).join(PROCS))?;
        Ok(Cgroup { folder, inside: true, kill, back, _lock: lock })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Has this process leave it. What it has started stays.
    pub(super) fn leave(&mut self) {
        self.inside = self.inside && move_to(&self.back).is_err();
    }

    /// Kills whatever is in it, and in groups below it; nothing while this process is.
    pub(super) fn kill(&self) {
        if !self.inside {
            kill(&self.kill);
        }
    }

    /// Ends what is left beside it of commands of which neither `run` nor the guard lives.
    pub(super) async fn sweep(&self, clock: &Clock) {
        for (folder, _lock) in self.folder.parent().map(abandoned).unwrap_or_default() {
            if remove(&folder).is_ok() {
                continue;
            }
            tracing::warn!(?folder, "ending what is left of a run that was killed with its guard");
            let (end, file) = (clock.now() + PATIENCE, folder.join(KILL));
            while let Err(error) = remove(&folder) {
                if clock.now() >= end {
                    tracing::warn!(?folder, %error, "cannot end it");
                    break;
                }
                if let Ok(file) = File::options().write(true).open(&file) {
                    kill(&file);
                }
                clock.sleep_until(clock.now() + AGAIN).await;
            }
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.leave();
        // Whoever is in it keeps it, until the next run.
        drop(remove(&self.folder));
    }
}

/// The groups below `ours` that nobody minds, each with a lock that keeps others away.
fn abandoned(ours: &Path) -> Vec<(PathBuf, File)> {
    let entries = fs::read_dir(ours).into_iter().flatten().flatten();
    let groups = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    let free = groups.filter_map(|entry| {
        let lock = File::open(entry.path()).ok()?;
        lock.try_lock().ok()?;
        Some((entry.path(), lock))
    });
    free.collect()
}

/// Moves this process into the group of this file.
fn move_to(mut procs: &File) -> io::Result<()> {
    procs.write_all(b"0")
}

fn kill(mut file: &File) {
    // A group that is gone has nobody in it.
    let _ = file.write_all(b"1");
}

/// Removes an empty group, and those below it.
fn remove(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(folder)
}

/// The folder of the group that this process is in.
fn own() -> io::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let groups = fs::read_to_string("/proc/self/cgroup")?;
    find(&mounts, &groups).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// `… ROOT MOUNTPOINT … - cgroup2 …` among the mounts, and `0::GROUP` among the groups, both of
/// which are seen from the same root.
fn find(mounts: &str, groups: &str) -> Option<PathBuf> {
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let mut fields = place.split(' ').skip(3).take_while(|_| kind.starts_with("cgroup2 "));
        let (root, point) = (fields.next()?, fields.next()?);
        Some(Path::new(point).join(Path::new(group).strip_prefix(root).ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_group_is_found_below_the_mount_of_version_2() {
        let both = "30 22 0:26 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                    41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        let found = |mounts, groups| find(mounts, groups).map(|path| path.display().to_string());
        let in_unit = found(both, "8:pids:/\n0::/system.slice/pay.service\n");
        assert_eq!(in_unit.unwrap(), "/sys/fs/cgroup/unified/system.slice/pay.service");
        assert_eq!(found(both, "0::/\n").unwrap(), "/sys/fs/cgroup/unified/");
        let container = "41 31 0:38 /docker/7 /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        assert_eq!(found(container, "0::/docker/7/app\n").unwrap(), "/sys/fs/cgroup/app");
        assert_eq!(found(container, "0::/elsewhere\n"), None);
        assert_eq!(found(both, "8:pids:/\n"), None, "version 1 alone");
    }
}
