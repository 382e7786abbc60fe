//! The containers in which the app works, by their main processes, and when they end.
//!
//! In a process namespace that the containers of a pod share, a container's main process is the one
//! above all of its others, and has no parent there: whoever started it is outside. When it ends, the
//! container does, and the kubelet starts another.
//!
//! # Guarantees
//! An end is noticed at once, whatever has been started meanwhile in its place.
//! # Not guaranteed
//! That a container is known which has ended sooner than [`AGAIN`] after it began. Outside of such a
//! namespace none is.
//!
//! Nothing here allocates.

use rustix::{
    event::{PollFd, PollFlags, poll},
    fd::OwnedFd,
    process::{Pid, PidfdFlags, pidfd_open},
    time::Timespec,
};

use super::app::App;

/// So many are watched.
pub(super) const ROOM: usize = 8;

/// The main processes of the app's containers.
#[derive(Debug, Default)]
pub(super) struct Mains {
    known: [Option<Main>; ROOM],
}

#[derive(Debug)]
struct Main {
    pid: Pid,
    /// Readable once it has ended.
    handle: OwnedFd,
}

impl Mains {
    pub(super) fn are_known(&self) -> bool {
        self.known.iter().any(Option::is_some)
    }

    /// Looks for those that are not known yet.
    pub(super) fn look(&mut self, app: &App) {
        app.for_each_main(|pid| {
            if self.known.iter().flatten().any(|main| main.pid == pid) {
                return;
            }
            // Held before it is looked at again, so that what is watched is what was looked at.
            let handle = pidfd_open(pid, PidfdFlags::empty()).ok().filter(|_| app.is_main(pid));
            let room = self.known.iter_mut().find(|place| place.is_none());
            if let (Some(handle), Some(room)) = (handle, room) {
                *room = Some(Main { pid, handle });
            }
        });
    }

    /// Whether some were known, and all have ended.
    pub(super) fn have_ended(&mut self) -> bool {
        let were_known = self.are_known();
        for place in &mut self.known {
            if place.as_ref().is_some_and(Main::has_ended) {
                *place = None;
            }
        }
        were_known && !self.are_known()
    }

    /// What becomes readable when one of them ends.
    pub(super) fn handles(&self) -> impl Iterator<Item = &OwnedFd> {
        self.known.iter().flatten().map(|main| &main.handle)
    }

    /// Nobody works any more, or others do.
    pub(super) fn forget(&mut self) {
        self.known = Default::default();
    }
}

impl Main {
    fn has_ended(&self) -> bool {
        let mut handle = [PollFd::new(&self.handle, PollFlags::IN)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut handle, Some(&at_once)), Ok(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched(process: &std::process::Child) -> Main {
        let pid = Pid::from_child(process);
        Main { pid, handle: pidfd_open(pid, PidfdFlags::empty()).unwrap() }
    }

    #[test]
    fn the_app_has_ended_with_the_last_of_its_containers() {
        let sleeper = || std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (mut one, mut other) = (sleeper(), sleeper());
        let mut mains = Mains::default();
        assert!(!mains.have_ended(), "none was known");
        (mains.known[0], mains.known[1]) = (Some(watched(&one)), Some(watched(&other)));
        assert!(!mains.have_ended());
        one.kill().unwrap();
        one.wait().unwrap();
        assert!(!mains.have_ended());
        assert_eq!(mains.handles().count(), 1, "nobody is woken by it again");
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(mains.have_ended());
        assert!(!mains.have_ended(), "once");
    }

    #[test]
    fn outside_of_a_pod_nobody_is_watched() {
        let settings = crate::agent::AppSettings {
            name: Some("sleep".to_owned()),
            pid_file: None,
            signal: 15,
        };
        let mut sleeper = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let app = App::new(&settings).unwrap();
        let mut mains = Mains::default();
        mains.look(&app);
        assert!(app.count() > 0 && !mains.are_known());
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
    }
}
