//! Commands of the user's that are told when a tenure begins and when work has to stop.
//!
//! # Guarantees
//! No two of one agent run at once: the next one begins when the last is gone, and with it its
//! process group.
//! # Not guaranteed
//! That one runs only once for a tenure: an agent that was started again does not know what the
//! last one ran. Nor that one runs while the agent is frozen.

use std::{
    io,
    os::unix::process::ExitStatusExt as _,
    process::{ExitStatus, Stdio},
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};

/// A hook that runs, or none.
#[derive(Default)]
pub(super) struct Hooks {
    running: Option<Running>,
}

struct Running {
    child: Child,
    group: Option<Pid>,
    name: &'static str,
}

impl Hooks {
    /// Runs `command` by `/bin/sh`, once whatever ran before is gone.
    pub(super) async fn start(
        &mut self,
        name: &'static str,
        command: &str,
        variables: &[(&str, String)],
    ) {
        self.kill().await;
        tracing::info!(hook = name, "running");
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(command).envs(variables.iter().map(|(name, value)| (name, value)));
        for secret in crate::agent::child::SECRETS {
            shell.env_remove(secret);
        }
        let spawned = shell.stdin(Stdio::null()).process_group(0).kill_on_drop(true).spawn();
        match spawned {
            Ok(child) => {
                let group = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
                self.running = Some(Running { child, group, name });
            }
            Err(error) => tracing::error!(hook = name, %error, "cannot run it by /bin/sh"),
        }
    }

    /// Returns when the one that runs has ended; at once if there is none. Cancel-safe.
    pub(super) async fn ended(&mut self) {
        if let Some(running) = &mut self.running {
            let ended = running.child.wait().await;
            report(running.name, ended);
            self.running = None;
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Kills the one that runs, and waits for its end, which the kernel does not put off.
    pub(super) async fn kill(&mut self) {
        if let Some(running) = &self.running {
            // It was not waited for, so the number is still its own.
            if let Some(group) = running.group {
                let _ = kill_process_group(group, Signal::KILL);
            }
            tracing::warn!(hook = running.name, "killed: it took too long");
        }
        self.ended().await;
    }
}

fn report(hook: &'static str, ended: io::Result<ExitStatus>) {
    match ended {
        Ok(status) if status.success() => tracing::info!(hook, "done"),
        Ok(status) => {
            tracing::warn!(hook, code = status.code(), signal = status.signal(), "failed");
        }
        Err(error) => tracing::warn!(hook, %error, "cannot tell how it ended"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn next_hook_begins_when_the_last_is_gone_with_all_that_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let said = |name: &str| std::fs::read_to_string(folder.path().join(name)).ok();
        let variables = [("F", folder.path().display().to_string())];
        let mut hooks = Hooks::default();
        let first = "sleep 60 & echo $! > $F/new; mv $F/new $F/first; wait";
        hooks.start("first", first, &variables).await;
        while said("first").is_none() {
            tokio::task::yield_now().await;
        }
        hooks.start("second", "exit 3", &variables).await;
        hooks.ended().await;
        assert!(!hooks.is_running());
        // Killed, it vanishes when whoever inherited it waits for it, or is a zombie until then.
        let sleeper = format!("/proc/{}/stat", said("first").unwrap().trim());
        let is_gone =
            || std::fs::read_to_string(&sleeper).map_or(true, |stat| stat.contains(") Z "));
        while !is_gone() {
            tokio::task::yield_now().await;
        }
        hooks.kill().await;
    }
}
