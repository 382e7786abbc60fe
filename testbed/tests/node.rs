//! A cluster with a kubelet leaves nothing on the machine, however its process ends.
//!
//! What a cluster makes beside its files carries its process's id in its name.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod doomed;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use doomed::{Doomed, runs, signal, wait_until_gone};
use testbed::{Cluster, run, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Everything that is there of clusters which this process started: network namespaces, cgroups,
/// links and rules on the host, and whatever runs in one of the cgroups.
fn traces_of(process: u32) -> Vec<String> {
    let end = format!("-{process}");
    let of_process = |name: &String| name.starts_with("consul-lock-") && name.ends_with(&end);
    let mut places = vec!["/run/netns".into(), "/sys/fs/cgroup".into()];
    let hierarchies = names_in(Path::new("/sys/fs/cgroup"));
    places.extend(hierarchies.iter().map(|name| Path::new("/sys/fs/cgroup").join(name)));
    let mut traces: Vec<String> =
        places.iter().flat_map(|place| names_in(place)).filter(of_process).collect();
    for (program, args) in [("ip", ["link", "show"]), ("nft", ["list", "tables"])] {
        let listed = run(Command::new(program).args(args), PATIENCE).unwrap();
        let words = listed.split_whitespace().map(str::to_owned);
        traces.extend(words.filter(of_process));
    }
    for process in names_in(Path::new("/proc")) {
        let cgroups = fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap_or_default();
        let parts = cgroups.split(['/', '\n']).map(str::to_owned);
        traces.extend(parts.filter(of_process).take(1).map(|name| format!("{process} in {name}")));
    }
    traces
}

/// What a node writes to places that nobody can choose does not reach the machine.
fn assert_that_its_writes_stay_with_it(cluster: &Cluster) {
    let node = cluster.kubelet().pid().unwrap();
    let device = |path: &Path| fs::metadata(path).ok().map(|found| found.dev());
    for place in ["/run/containerd", "/var/lib/cni", "/var/lib/kubelet", "/var/log/containers"] {
        let on_the_machine = device(Path::new(place));
        let in_the_node = device(Path::new(&format!("/proc/{node}/root{place}")));
        assert!(in_the_node.is_some(), "it does not write to {place}");
        assert_ne!(in_the_node, on_the_machine, "{place}");
    }
    let mounts = fs::read_to_string(format!("/proc/{node}/mountinfo")).unwrap();
    for setting in ["vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic_on_oops"] {
        assert!(mounts.contains(&format!(" /proc/sys/{setting} ")), "{setting}");
    }
}

/// The process that would clean up after `parent`.
fn reaper_of(parent: u32) -> u32 {
    let is_reaper = |pid: &u32| {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        command.contains("\0testbed-reaper\0") && status.contains(&format!("\nPPid:\t{parent}\n"))
    };
    let pids = names_in(Path::new("/proc")).into_iter().filter_map(|name| name.parse().ok());
    pids.into_iter().find(is_reaper).unwrap()
}

/// A pod that runs, so that there is something to leave.
fn run_a_pod(cluster: &Cluster) {
    let kubectl = |args: &[&str]| {
        let mut command = cluster.kubectl(args.iter().copied()).unwrap();
        run(&mut command, PATIENCE).unwrap();
    };
    let image = format!("--image={}", testbed::BACKEND_IMAGE);
    kubectl(&["run", "pod", &image, "--image-pull-policy=Never"]);
    kubectl(&["wait", "--for=condition=Ready", "pod/pod", "--timeout=50s"]);
}

#[test]
fn a_dropped_cluster_leaves_nothing_even_if_it_is_cut() {
    if Cluster::skips() {
        return;
    }
    let cluster = Cluster::start().unwrap();
    run_a_pod(&cluster);
    assert_that_its_writes_stay_with_it(&cluster);
    cluster.cut().unwrap();
    let traces = traces_of(std::process::id());
    assert!(traces.iter().any(|trace| trace.contains(" in ")), "a pod runs: {traces:?}");
    drop(cluster);
    assert_eq!(traces_of(std::process::id()), Vec::<String>::new());
}

#[test]
fn a_killed_process_leaves_neither_kubelet_nor_namespace() {
    if Cluster::skips() {
        return;
    }
    let mut doomed = Doomed::start("cluster");
    assert_ne!(traces_of(doomed.pid()), Vec::<String>::new());
    doomed.signal("-KILL");
    doomed.wait_until_server_ended();
    wait_until_gone(&doomed.folder);
    assert_eq!(traces_of(doomed.pid()), Vec::<String>::new());
}

#[test]
fn what_is_left_all_the_same_is_removed_by_the_next_start() {
    if Cluster::skips() {
        return;
    }
    // Nobody will remove its files: they go to where we do.
    let folder = testbed::Folder::new("doomed").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_testbed"));
    let mut doomed =
        Doomed::run(command.args(["end-badly", "cluster"]).env("TMPDIR", folder.path()));
    signal(reaper_of(doomed.pid()), "-KILL");
    doomed.signal("-KILL");
    doomed.wait_until_ended();
    assert!(runs(doomed.server), "the kubelet goes on");

    let next = Cluster::start().unwrap();
    wait_for("the kubelet's end", PATIENCE, || (!runs(doomed.server)).then_some(())).unwrap();
    assert_eq!(traces_of(doomed.pid()), Vec::<String>::new());
    assert_ne!(traces_of(std::process::id()), Vec::<String>::new(), "the next one stays");
    drop(next);
}
