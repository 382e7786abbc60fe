//! Holds a lock where the work is: `consul-lock run -- CMD`, and beside the work: `consul-lock agent`.
//!
//! Of `run` there are three processes. `run` ([`run()`]) keeps session and key. The *guard*
//! ([`guard()`]), the same binary without a runtime, waits for the lock beside it, is the parent of
//! the command and of everything that comes of it, and knows until when that may go on. The command
//! does the work. The agent and its guard: [`agent()`].
//!
//! # Guarantees
//! When the lock is lost, or [`Notice`] before *valid until*, the command's processes are sent
//! SIGTERM and, a grace later, SIGKILL; all of it before *valid until*. The guard does so by
//! itself, should `run` be frozen, stuck or dead; `run` does so should the guard be. Only when none
//! of the processes is left is the key released and the session destroyed, in this order.
//! # Not guaranteed
//! That a process is stopped which the command has another service start (systemd, a container
//! engine): it descends from that service. Nor, if `run` and the guard are killed together: where
//! there are [cgroups](cgroup), the next run of the same place ends what they left. The protected
//! resource has to check the fencing token.

mod cgroup;
mod child;
mod descendants;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzed;
mod guard;
mod nested;
mod notice;
mod orders;
mod run;
mod settings;
mod sidecar;
mod signals;
mod terminal;
mod terms;
mod timer;
mod valid_until;
mod work;

pub use guard::{GUARD, guard};
pub use nested::Outer;
pub use notice::{Notice, NoticeError};
pub use run::{Outcome, RunError, RunSettings, run};
pub use settings::LockSettings;
pub use sidecar::{
    AgentError, AgentSettings, AppSettings, ClaimSettings, PodSettings, Surroundings, agent,
    guard_agent, hear_signals,
};
