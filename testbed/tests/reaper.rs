//! Nothing outlives the process that started it, however that ends.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use testbed::wait_for;

/// A process that started a server and is about to end without running any destructor.
struct Doomed {
    process: Child,
    server: u32,
    folder: PathBuf,
}

impl Doomed {
    fn start(how: &str) -> Doomed {
        let mut process = Command::new(env!("CARGO_BIN_EXE_testbed"))
            .args(["end-badly", how])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let (server, folder) = line.trim().split_once(' ').unwrap();
        Doomed {
            process,
            server: server.parse().unwrap(),
            folder: folder.into(),
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.process.id().to_string();
        assert!(
            Command::new("kill")
                .args([name, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Waits for the process's end and then for that of its server.
    fn wait_until_server_ended(&mut self) {
        wait_for("the end of the process", Duration::from_secs(20), || {
            self.process.try_wait().unwrap()
        })
        .unwrap();
        wait_for("the end of its server", Duration::from_secs(20), || {
            (!runs(self.server)).then_some(())
        })
        .unwrap();
    }
}

/// A zombie does not run: it only waits for somebody to look at it.
fn runs(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").starts_with(" Z"))
}

fn wait_until_gone(path: &Path) {
    wait_for("the removal of a folder", Duration::from_secs(20), || {
        (!path.exists()).then_some(())
    })
    .unwrap();
}

#[test]
fn a_killed_process_leaves_neither_server_nor_folder() {
    let mut doomed = Doomed::start("wait");
    assert!(runs(doomed.server));
    doomed.signal("-KILL");
    doomed.wait_until_server_ended();
    wait_until_gone(&doomed.folder);
}

#[test]
fn an_interrupted_process_leaves_neither_server_nor_folder() {
    let mut doomed = Doomed::start("wait");
    doomed.signal("-INT");
    doomed.wait_until_server_ended();
    wait_until_gone(&doomed.folder);
}

#[test]
fn a_panicking_process_leaves_its_logs_only() {
    let mut doomed = Doomed::start("panic");
    doomed.wait_until_server_ended();
    wait_until_gone(&doomed.folder.join("data"));
    assert!(doomed.folder.join("stubborn.log").exists());
    std::fs::remove_dir_all(&doomed.folder).unwrap();
}
