//! The app's processes, in a process namespace that is shared with them: found, told to stop,
//! killed.
//!
//! # Guarantees
//! Only what matches is signalled, and never this process or [whom it spares](App::sparing): a
//! process is looked at again once its number cannot come to mean another.
//! # Not guaranteed
//! That a process may be signalled: that takes the same user, or `CAP_KILL`. Nor is a process found
//! whose name is another, such as what the app has started. Where a container's main process ends,
//! the runtime ends the rest.
//!
//! Nothing here allocates once it was made: it has to work when nothing else does.

use std::{
    ffi::CString,
    io,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::Path,
    time::Duration,
};

use rustix::{
    fs::{CWD, Mode, OFlags, RawDir, openat},
    io::Errno,
    path::{Arg, DecInt},
    process::{
        Pid, PidfdFlags, Signal, getpid, kill_process, pidfd_open, pidfd_send_signal,
        test_kill_process,
    },
};

use crate::{
    agent::descendants::{Told, number, processes},
    clock::Instant,
};

/// How many processes there may be between one of the app's and its container's main one.
const DEPTH: usize = 32;

/// Which processes are the app's, and how they are told to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppSettings {
    /// What its program is called.
    pub name: Option<String>,
    /// The file with its number; with a name, both have to match.
    pub pid_file: Option<std::path::PathBuf>,
    /// What it is sent when it has to stop; SIGKILL follows.
    pub signal: i32,
}

/// The right to end the app.
#[derive(Debug)]
pub(super) struct App {
    name: Option<Vec<u8>>,
    pid_file: Option<CString>,
    signal: Signal,
    spared: [Option<Pid>; 2],
    /// The kernel does not let us, which was said already.
    is_refused: bool,
}

impl App {
    /// # Errors
    /// If the settings are no signal or no path.
    pub(super) fn new(settings: &AppSettings) -> io::Result<App> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let path = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(|_| invalid());
        Ok(App {
            name: settings.name.as_ref().map(|name| name.as_bytes().to_vec()),
            pid_file: settings.pid_file.as_deref().map(path).transpose()?,
            signal: Signal::from_named_raw(settings.signal).ok_or_else(invalid)?,
            spared: [Some(getpid()), None],
            is_refused: false,
        })
    }

    /// Spares this process, too.
    pub(super) fn sparing(&mut self, pid: Option<Pid>) {
        self.spared[1] = pid;
    }

    /// Tells every process that is not `told` to stop. Returns how many there are.
    pub(super) fn tell(&mut self, told: &mut Told) -> usize {
        let (signal, mut refused) = (self.signal, false);
        let count = self.for_each(|process| {
            if told.add(process.pid) {
                // Stopped, it could not do anything about it, so it is continued.
                refused |= process.send(signal) == Err(Errno::PERM);
                let _ = process.send(Signal::CONT);
            }
        });
        self.note(refused);
        count
    }

    /// Sends every process SIGKILL. Returns how many of them had begun by `since`: whoever has some
    /// start again at once, would else be waited for without end.
    pub(super) fn kill(&mut self, since: Instant) -> usize {
        let (mut refused, mut count) = (false, 0);
        self.for_each(|process| {
            refused |= process.send(Signal::KILL) == Err(Errno::PERM);
            count += usize::from(process.began <= since);
        });
        self.note(refused);
        count
    }

    /// How many processes there are.
    pub(super) fn count(&self) -> usize {
        self.for_each(|_| {})
    }

    /// Says so if they may not be signalled, before it is too late.
    pub(super) fn try_rights(&mut self) {
        let mut refused = false;
        self.for_each(|process| {
            refused |= test_kill_process(process.pid) == Err(Errno::PERM);
        });
        self.note(refused);
    }

    /// Calls `act` with the main process of each container in which there is one of them, as often
    /// as there are.
    pub(super) fn for_each_main(&self, mut act: impl FnMut(Pid)) {
        let Some(processes) = processes() else { return };
        self.for_each(|process| {
            if let Some(main) =
                topmost(&processes, process.pid).filter(|pid| self.may_be_main(*pid))
            {
                act(main);
            }
        });
    }

    /// Whether this process is the main one of another container than ours.
    pub(super) fn is_main(&self, pid: Pid) -> bool {
        is_topmost(pid) && self.may_be_main(pid)
    }

    /// Neither the pod's, of which orphans are children, nor ours.
    fn may_be_main(&self, pid: Pid) -> bool {
        pid != Pid::INIT && !self.spared.contains(&Some(pid))
    }

    fn note(&mut self, refused: bool) {
        if refused && !self.is_refused {
            eprintln!(
                "error: the app may not be signalled: run the agent as the app's user, or as root \
                 with the capability KILL"
            );
        }
        self.is_refused |= refused;
    }

    /// Calls `act` with each of the app's processes. Returns how many there are.
    fn for_each(&self, mut act: impl FnMut(&Process)) -> usize {
        let Some(processes) = processes() else { return 0 };
        let mut count = 0;
        let mut look = |pid: Pid| {
            // Held before it is looked at, so that what is signalled is what was looked at.
            let handle = pidfd_open(pid, PidfdFlags::empty()).ok();
            if self.spared.contains(&Some(pid)) {
                return;
            }
            if let Some(began) = self.matches(&processes, pid) {
                count += 1;
                act(&Process { pid, handle, began });
            }
        };
        if let Some(file) = &self.pid_file {
            if let Some(pid) = read_number(file) {
                look(pid);
            }
            return count;
        }
        let mut space = [MaybeUninit::uninit(); 8192];
        let mut entries = RawDir::new(&processes, &mut space);
        while let Some(Ok(entry)) = entries.next() {
            if let Some(pid) = number(entry.file_name().to_bytes()) {
                look(pid);
            }
        }
        count
    }

    /// When this process began, if it works for the app: one that has ended and was not waited for
    /// does not.
    fn matches(&self, processes: &OwnedFd, pid: Pid) -> Option<Instant> {
        // The pause container's, or ours to begin with.
        if pid == Pid::INIT {
            return None;
        }
        let mut stat = [0; 512];
        let stat = read(processes, pid, c"stat", &mut stat).and_then(Stat::parse)?;
        if matches!(stat.state, b'Z' | b'X') {
            return None;
        }
        let Some(name) = &self.name else { return Some(stat.began) };
        let mut line = [0; 512];
        let argument = read(processes, pid, c"cmdline", &mut line).map(program);
        // Of a longer name the kernel keeps the beginning alone, which others may share.
        let is_its = stat.name == name || argument == Some(name.as_slice());
        is_its.then_some(stat.began)
    }
}

struct Process {
    pid: Pid,
    /// `None` where the kernel has no such thing.
    handle: Option<OwnedFd>,
    began: Instant,
}

impl Process {
    fn send(&self, signal: Signal) -> Result<(), Errno> {
        match &self.handle {
            Some(handle) => pidfd_send_signal(handle, signal),
            None => kill_process(self.pid, signal),
        }
    }
}

/// Whether this process has no parent here, as a container's main process.
pub(super) fn is_topmost(pid: Pid) -> bool {
    processes().and_then(|processes| topmost(&processes, pid)) == Some(pid)
}

/// The process above this one that has no parent here.
fn topmost(processes: &OwnedFd, mut pid: Pid) -> Option<Pid> {
    for _ in 0..DEPTH {
        let mut stat = [0; 512];
        match read(processes, pid, c"stat", &mut stat).and_then(Stat::parse)?.parent {
            Some(parent) => pid = parent,
            None => return Some(pid),
        }
    }
    None
}

fn read<'a>(
    processes: &OwnedFd,
    pid: Pid,
    file: impl Arg,
    space: &'a mut [u8],
) -> Option<&'a [u8]> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let process = DecInt::new(pid.as_raw_nonzero().get());
    let process = openat(processes, process, flags, Mode::empty()).ok()?;
    let file = openat(&process, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let length = rustix::io::read(&file, &mut *space).ok()?;
    Some(&space[..length])
}

/// What the kernel tells of a process.
#[derive(Debug, PartialEq, Eq)]
struct Stat<'a> {
    /// No more than the first fifteen bytes of it.
    name: &'a [u8],
    state: u8,
    /// None where it is not of this namespace.
    parent: Option<Pid>,
    began: Instant,
}

impl Stat<'_> {
    /// `PID (NAME) STATE PARENT …`, where a name may hold anything; the twenty-second is the beginning, in
    /// hundredths of a second since the machine started.
    fn parse(stat: &[u8]) -> Option<Stat<'_>> {
        let begin = stat.iter().position(|byte| *byte == b'(')? + 1;
        let end = stat.iter().rposition(|byte| *byte == b')')?;
        let mut fields = stat.get(end + 2..)?.split(|byte| *byte == b' ');
        let state = *fields.next()?.first()?;
        let parent = number(fields.next()?);
        let ticks: u64 = std::str::from_utf8(fields.nth(17)?).ok()?.parse().ok()?;
        let began = Instant::from_boot(Duration::from_millis(ticks.checked_mul(10)?));
        Some(Stat { name: stat.get(begin..end)?, state, parent, began })
    }
}

/// The last part of the first argument.
fn program(line: &[u8]) -> &[u8] {
    let first = line.split(|byte| *byte == 0).next().unwrap_or_default();
    first.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

/// The number in a file; `None`: there is none, so nobody is meant.
fn read_number(file: &CString) -> Option<Pid> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = openat(CWD, file.as_c_str(), flags, Mode::empty()).ok()?;
    let mut text = [0; 32];
    let length = rustix::io::read(&file, &mut text[..]).ok()?;
    number(text[..length].trim_ascii())
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::process::{CommandExt as _, ExitStatusExt as _},
        process::{Child, Command},
    };

    use super::*;
    use crate::clock::Clock;

    fn app(name: Option<&str>, pid_file: Option<&Path>) -> App {
        App::new(&AppSettings {
            name: name.map(str::to_owned),
            pid_file: pid_file.map(Path::to_owned),
            signal: 15,
        })
        .unwrap()
    }

    /// A process that is called so. Nobody else's tests may match it, nor ours each other's.
    fn sleeper(name: &str) -> Child {
        let sleeper = Command::new("sleep").arg0(format!("/opt/{name}")).arg("60").spawn().unwrap();
        // The kernel says that it runs a moment before it says what it is called.
        let cmdline = format!("/proc/{}/cmdline", sleeper.id());
        while std::fs::read(&cmdline).unwrap().is_empty() {
            std::thread::yield_now();
        }
        sleeper
    }

    fn found(app: &App) -> Vec<Pid> {
        let mut found = Vec::new();
        app.for_each(|process| found.push(process.pid));
        found
    }

    #[test]
    fn app_is_found_by_its_name_told_once_and_killed() {
        let name = "app-that-is-found-by-a-long-name";
        let mut sleeper = sleeper(name);
        let mut app = app(Some(name), None);
        assert_eq!(found(&app), [Pid::from_child(&sleeper)]);
        let mut told = Told::nobody();
        assert_eq!(app.tell(&mut told), 1);
        assert_eq!(sleeper.wait().unwrap().signal(), Some(15));
        assert_eq!(app.kill(Clock::boot().now()), 0);
    }

    #[test]
    fn neither_the_dead_nor_the_spared_nor_a_namesake_of_the_beginning_matches() {
        let mut app = app(Some("app-that-is-spared"), None);
        let mut sleepers = [sleeper("app-that-is-spared"), sleeper("app-that-is-spared-not")];
        assert_eq!(found(&app), [Pid::from_child(&sleepers[0])]);
        app.sparing(Some(Pid::from_child(&sleepers[0])));
        assert_eq!(found(&app), []);
        app.sparing(None);
        sleepers[0].kill().unwrap();
        let ended = || found(&app).is_empty();
        // It is a zombie as soon as it has died, and stays one until it is waited for.
        while !ended() {
            std::thread::yield_now();
        }
        for sleeper in &mut sleepers {
            drop(sleeper.kill());
            sleeper.wait().unwrap();
        }
    }

    #[test]
    fn whoever_began_later_is_killed_and_not_waited_for() {
        let before = Clock::boot().now();
        let name = "app-that-begins-later";
        // The kernel counts in hundredths of a second.
        while Clock::boot().now() < before + Duration::from_millis(20) {
            std::thread::yield_now();
        }
        let mut sleeper = sleeper(name);
        let mut app = app(Some(name), None);
        assert_eq!((app.count(), app.kill(before)), (1, 0));
        assert_eq!(sleeper.wait().unwrap().signal(), Some(9));
    }

    #[test]
    fn number_in_a_file_counts_together_with_the_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let mut sleeper = sleeper("app-with-a-file");
        assert_eq!(found(&app(None, Some(&file))), [], "no file, nobody");
        std::fs::write(&file, format!(" {}\n", sleeper.id())).unwrap();
        assert_eq!(found(&app(None, Some(&file))), [Pid::from_child(&sleeper)]);
        assert_eq!(found(&app(Some("app-with-a-file"), Some(&file))).len(), 1);
        assert_eq!(found(&app(Some("another"), Some(&file))), []);
        for text in ["1", "0", "-1", "", "x", &std::process::id().to_string()] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(found(&app(None, Some(&file))), [], "{text:?}");
        }
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
    }

    #[test]
    fn name_of_a_process_may_hold_anything() {
        let line = b"7 (a) b (c)) S 3 5 5 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 1234 0";
        let began = Instant::from_boot(Duration::from_millis(12_340));
        let stat = Stat { name: b"a) b (c)", state: b'S', parent: Pid::from_raw(3), began };
        assert_eq!(Stat::parse(line), Some(stat));
        assert_eq!(Stat::parse(b"7 (cut of"), None);
        assert_eq!(program(b"/usr/bin/pay\0--all\0"), b"pay");
        assert_eq!(program(b""), b"");
    }
}
