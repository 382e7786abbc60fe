//! Nothing outlives the process that started it, however that ends.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod doomed;

use doomed::{Doomed, runs, wait_until_gone};

#[test]
fn a_killed_process_leaves_neither_server_nor_folder() {
    let mut doomed = Doomed::start("wait");
    assert!(runs(doomed.server));
    doomed.signal("-KILL");
    doomed.wait_until_server_ended();
    wait_until_gone(&doomed.folder);
}

#[test]
fn a_terminated_process_leaves_neither_server_nor_folder() {
    let mut doomed = Doomed::start("wait");
    // Not SIGINT: what a shell runs in the background ignores that, and so do its children.
    doomed.signal("-TERM");
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
