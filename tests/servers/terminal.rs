//! A terminal as somebody sits before it: util-linux's `script`, with keys typed into it.

use std::{
    io::{Read as _, Write as _},
    process::{Child, ChildStdin, Command, Stdio},
};

use testbed::{reaper, wait_for};

use crate::fixtures::PATIENCE;

/// A terminal, and what was started on it.
pub(crate) struct Terminal {
    script: Child,
    keys: Option<ChildStdin>,
}

impl Terminal {
    /// Starts a shell's command on a terminal of its own, with these variables.
    pub(crate) fn start<'a>(
        command: &str,
        variables: impl IntoIterator<Item = (&'a str, String)>,
    ) -> Terminal {
        // A shell that was started in the background is deaf to Ctrl-C, and so is what it starts.
        let mut terminal = Command::new("env");
        terminal.args(["--default-signal", "script", "-qec", command, "/dev/null"]);
        terminal.envs(variables).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut script = reaper::spawn(&mut terminal).unwrap();
        Terminal { keys: script.stdin.take(), script }
    }

    pub(crate) fn type_in(&mut self, keys: &str) {
        self.keys.as_mut().unwrap().write_all(keys.as_bytes()).unwrap();
    }

    /// The command's exit code, and what was shown until its end.
    pub(crate) fn shown(mut self) -> (Option<i32>, String) {
        let script = &mut self.script;
        let ended = wait_for("the terminal's end", PATIENCE, || script.try_wait().unwrap());
        let code = ended.unwrap().code();
        reaper::forget_process(script.id());
        let mut shown = String::new();
        script.stdout.take().unwrap().read_to_string(&mut shown).unwrap();
        (code, shown)
    }
}
