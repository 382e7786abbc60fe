//! A control group for the command and all that comes of it, where one can be made.
//!
//! The guard finds every process that comes of the command by itself ([`super::descendants`]), one
//! after the other. A group adds two things. What forks faster than it can be looked for is killed
//! at once, with everything else. And if `run` and the guard are killed together, so that nobody
//! is left who knows of the command, the group still holds its processes: the next guard that is
//! started from the same group as that one ends them before it starts a command.
//!
//! Version 2 of cgroups, of Linux 5.14 or later, which kills a whole group in one step. Version 1
//! would have to be killed process by process, as descendants are.
//!
//! # Guarantees
//! Nothing waits for a group: the kernel changes groups one at a time for the whole machine, so a
//! thread does all of it beside the guard's own, which works as if there were none. A group is not
//! touched by others while its guard lives, which holds a shared lock on its folder; whoever ends
//! what others left holds an exclusive one.
//! # Not guaranteed
//! That there is one: whoever runs us has to be allowed to make groups below ours and to move
//! processes there, as root is, and a systemd unit with `Delegate=yes`. Nor that everything is in
//! it: what a command forks in its first moments is not, and is a descendant all the same.

use std::{
    fs::{self, File},
    io::{self, PipeReader, PipeWriter, Read as _, Write as _},
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::process::Pid;

/// The files of a group: a number that is written into one moves that process there, a 1 that is
/// written into the other kills all.
const PROCS: &str = "cgroup.procs";
const KILL: &str = "cgroup.kill";

/// What the groups' names begin with.
const PREFIX: &str = "consul-lock-run-";

/// Another guard may take a group that was just made for one that nobody minds.
const TRIES: u32 = 5;

/// How often, and in which intervals, it is looked whether processes that others left are gone.
const LOOKS: u32 = 400;
const AGAIN: Duration = Duration::from_millis(5);

/// A group with a thread that sees to it.
#[derive(Debug)]
pub(super) struct Cgroup {
    orders: PipeWriter,
    thread: JoinHandle<()>,
}

impl Cgroup {
    /// Makes a group, and moves this process into it, beside whatever else goes on. `None` if there
    /// can be no thread. Signals have to be blocked: they are for the guard's own.
    pub(super) fn around(command: Pid) -> Option<Cgroup> {
        let (orders, writer) = io::pipe().ok()?;
        rustix::fs::fcntl_setfl(&writer, rustix::fs::OFlags::NONBLOCK).ok()?;
        // Without a group everything goes on as if there were none.
        let see_to = move || drop(see_to(command, orders));
        let thread = thread::Builder::new().spawn(see_to).ok()?;
        Some(Cgroup { orders: writer, thread })
    }

    /// Has whatever is in it killed, and in groups below it. Does not wait for it.
    pub(super) fn kill(&self) {
        // More orders than the pipe holds say nothing new.
        let _ = (&self.orders).write(b"k");
    }

    /// Nothing is left of the command: the group is removed.
    pub(super) fn end(self) {
        drop(self.orders);
        drop(self.thread.join());
    }
}

fn see_to(command: Pid, mut orders: PipeReader) -> io::Result<()> {
    let (folder, _lock) = make(&own()?)?;
    let open = |name| File::options().write(true).open(folder.join(name));
    let moved = open(PROCS).and_then(|mut procs| {
        procs.write_all(command.as_raw_nonzero().get().to_string().as_bytes())
    });
    if moved.is_ok() {
        let mut kill = open(KILL)?;
        while orders.read(&mut [0; 64])? > 0 {
            kill.write_all(b"1")?;
        }
    }
    remove(&folder)
}

/// Makes a group below this one, with a lock that says that somebody minds it.
fn make(ours: &Path) -> io::Result<(PathBuf, File)> {
    let mut made = Err(io::ErrorKind::NotFound.into());
    for _ in 0..TRIES {
        let name = format!("{PREFIX}{}-{:016x}", std::process::id(), rand::random::<u64>());
        let folder = ours.join(name);
        fs::create_dir(&folder)?;
        made = locked(&folder).map(|lock| (folder.clone(), lock));
        if made.is_ok() {
            break;
        }
        drop(fs::remove_dir(folder));
    }
    made
}

/// A guard's lock on its group, which all may share but those who would end it.
fn locked(folder: &Path) -> io::Result<File> {
    let lock = File::open(folder)?;
    lock.try_lock_shared()?;
    // Whoever had the lock until now may have removed the folder; from now on nobody can.
    fs::metadata(folder.join(KILL)).map(|_| lock)
}

/// Ends what is left of commands of which neither `run` nor the guard lives, or waits until another
/// guard has done so.
pub(super) fn sweep() {
    for folder in own().map(|ours| groups(&ours)).unwrap_or_default() {
        for _ in 0..LOOKS {
            if is_minded_or_gone(&folder) {
                break;
            }
            thread::sleep(AGAIN);
        }
    }
}

/// The commands' groups below `ours`.
fn groups(ours: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(ours).into_iter().flatten().flatten();
    let groups = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    groups.map(|entry| entry.path()).collect()
}

/// Whether a guard minds the group, or it is gone by now. If neither, what is in it is killed, here
/// or by whoever has the whole lock.
fn is_minded_or_gone(folder: &Path) -> bool {
    let Ok(lock) = File::open(folder) else { return true };
    if lock.try_lock().is_err() {
        return lock.try_lock_shared().is_ok();
    }
    let is_gone = remove(folder).is_ok();
    if !is_gone {
        drop(fs::write(folder.join(KILL), "1"));
    }
    is_gone
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
