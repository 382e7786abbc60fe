//! The processes that come of a command, found and ended as the kernel knows them.
//!
//! A process group is not enough: a daemon leaves it. Whoever calls [`adopt`] becomes the parent of
//! every orphan among its descendants (`PR_SET_CHILD_SUBREAPER`), so whatever outlives its own
//! parent turns up among our children, and killing children until there are none ends them all.
//!
//! Nothing here allocates or panics: it has to work when nothing else does.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::{
    fs::{CWD, Mode, OFlags, RawDir, openat},
    io::Errno,
    path::{Arg, DecInt},
    process::{
        Pid, Signal, WaitOptions, WaitStatus, getpid, getppid, kill_process, kill_process_group,
        set_child_subreaper, wait,
    },
};

/// While they are being ended, processes are looked for this often: of a process that loses its
/// parent nobody tells us, and a killed one takes a moment to vanish.
pub(super) const AGAIN: Duration = Duration::from_millis(20);
/// As many are told to stop at most.
const TOLD: usize = 256;

/// The right to end what descends from this process.
#[derive(Debug)]
pub(super) struct Descendants {
    /// Process groups that hold others, too: ours, and that of whoever started us. A descendant in
    /// one of them is ended by itself.
    mixed: [Option<Pid>; 2],
}

/// From now on orphans among our descendants become our children.
pub(super) fn adopt() -> io::Result<Descendants> {
    set_child_subreaper(Some(getpid()))?;
    let group = |pid: Pid| {
        let processes = processes()?;
        stat(&processes, DecInt::new(pid.as_raw_nonzero().get()))?.1
    };
    Ok(Descendants { mixed: [group(getpid()), getppid().and_then(group)] })
}

/// What became of a child.
#[derive(Debug)]
pub(super) enum Child {
    /// This one ended, or was stopped by a signal.
    News(Pid, WaitStatus),
    /// All go on as before.
    Quiet,
    /// There is none.
    None,
}

/// Asks for one child that ended or was stopped, without waiting.
pub(super) fn child() -> Child {
    match wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
        Ok(Some((pid, status))) => Child::News(pid, status),
        Ok(None) | Err(Errno::INTR) => Child::Quiet,
        Err(_) => Child::None,
    }
}

/// Forgets children that have ended.
pub(super) fn reap() {
    while let Child::News(..) = child() {}
}

impl Descendants {
    /// Sends our children SIGKILL. Those of theirs become ours, so it has to be repeated until
    /// there is no child left.
    pub(super) fn kill(&self) {
        for_each_child(|pid, group| {
            if let Some(group) = self.unmixed(group) {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = kill_process(pid, Signal::KILL);
        });
    }

    /// Tells every child that is not `told` to stop, and its process group with it.
    pub(super) fn tell(&self, told: &mut Told) {
        for_each_child(|pid, group| {
            let group = self.unmixed(group);
            if !told.add(group.unwrap_or(pid)) {
                return;
            }
            // Stopped, it could not do anything about it, so it is continued.
            for signal in [Signal::TERM, Signal::CONT] {
                let _ = match group {
                    Some(group) => kill_process_group(group, signal),
                    None => kill_process(pid, signal),
                };
            }
        });
    }

    fn unmixed(&self, group: Option<Pid>) -> Option<Pid> {
        group.filter(|_| !self.mixed.contains(&group))
    }
}

/// Processes, or groups of them, that were told to stop.
#[derive(Debug)]
pub(super) struct Told {
    known: [Option<Pid>; TOLD],
    count: usize,
}

impl Told {
    pub(super) fn nobody() -> Told {
        Told { known: [None; TOLD], count: 0 }
    }

    /// `false`: it is known, or there is no room for more; then it is killed without a word.
    pub(super) fn add(&mut self, one: Pid) -> bool {
        let is_new = !self.known[..self.count].contains(&Some(one));
        match self.known.get_mut(self.count).filter(|_| is_new) {
            Some(free) => {
                *free = Some(one);
                self.count += 1;
                true
            }
            None => false,
        }
    }
}

/// Calls `act` with every child and its process group. A `/proc` that cannot be read has none;
/// whoever needs certainty asks [`child`].
fn for_each_child(mut act: impl FnMut(Pid, Option<Pid>)) {
    let Some(processes) = processes() else { return };
    let me = getpid();
    let mut space = [MaybeUninit::uninit(); 8192];
    let mut entries = RawDir::new(&processes, &mut space);
    while let Some(Ok(entry)) = entries.next() {
        let Some(pid) = number(entry.file_name().to_bytes()) else { continue };
        if let Some((parent, group)) = stat(&processes, entry.file_name())
            && parent == Some(me)
        {
            act(pid, group);
        }
    }
}

pub(super) fn processes() -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, c"/proc", flags, Mode::empty()).ok()
}

/// The parent and the process group of the process of this name in `/proc`, as far as they are in
/// our namespace.
fn stat(processes: &OwnedFd, name: impl Arg) -> Option<(Option<Pid>, Option<Pid>)> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let process = openat(processes, name, flags, Mode::empty()).ok()?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let stat = openat(process.as_fd(), c"stat", flags, Mode::empty()).ok()?;
    let mut text = [0; 512];
    let length = rustix::io::read(&stat, &mut text[..]).ok()?;
    parse(&text[..length])
}

/// `PID (NAME) STATE PARENT GROUP …`, where a name may hold anything, and 0 is nobody here. Of a
/// process that is vanishing the kernel tells 0 and -1.
fn parse(stat: &[u8]) -> Option<(Option<Pid>, Option<Pid>)> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let mut fields = stat[end + 1..].split(|byte| *byte == b' ').skip(2);
    Some((number(fields.next()?), number(fields.next()?)))
}

pub(super) fn number(text: &[u8]) -> Option<Pid> {
    // A negative one would be a fault to it.
    let number = std::str::from_utf8(text).ok()?.parse().ok().filter(|number| *number > 0)?;
    Pid::from_raw(number)
}

#[cfg(test)]
mod tests {
    use rustix::process::getpgrp;

    use super::*;

    #[test]
    fn name_of_a_process_may_hold_anything() {
        let pid = Pid::from_raw;
        assert_eq!(parse(b"7 (sh) S 3 5 5 0 -1"), Some((pid(3), pid(5))));
        assert_eq!(parse(b"7 (a) S 1 1 (b) R 3 5 5 0 -1"), Some((pid(3), pid(5))));
        assert_eq!(parse(b"1 (init) S 0 0 0"), Some((None, None)));
        assert_eq!(parse(b"7 (vanishing) X 0 -1 -1"), Some((None, None)));
        assert_eq!(parse(b"7 (cut of"), None);
    }

    #[test]
    fn everybody_is_told_once_while_there_is_room() {
        let mut told = Told::nobody();
        let pids = || (1..).map_while(Pid::from_raw).take(TOLD);
        assert!(pids().all(|pid| told.add(pid)));
        assert!(!pids().any(|pid| told.add(pid)), "once");
        assert!(!told.add(Pid::from_raw(100_000).unwrap()), "no room");
    }

    #[test]
    fn children_are_found() {
        let mut command = std::process::Command::new("sleep");
        let mut sleeper = command.arg("60").spawn().unwrap();
        let mut found = Vec::new();
        for_each_child(|pid, group| found.push((pid, group)));
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        let expected = (Pid::from_child(&sleeper), Some(getpgrp()));
        assert!(found.contains(&expected), "{expected:?} not in {found:?}");
    }
}
