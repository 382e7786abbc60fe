//! A cgroup that all of a node's pods are in: two nodes on one machine must not share theirs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::process::BedError;

const ROOT: &str = "/sys/fs/cgroup";

/// What the kubelet wants to have, of what the second version of cgroups offers.
const WANTED: [&str; 5] = ["cpu", "cpuset", "memory", "pids", "io"];

/// Creates `/name` in every hierarchy that there is. It is removed with the cluster.
pub(super) fn create(name: &str) -> Result<(), BedError> {
    let created = if Path::new(ROOT).join("cgroup.controllers").exists() {
        create_unified(name)
    } else {
        create_everywhere(name)
    };
    created.map_err(|error| {
        BedError::Impossible(format!("cannot create the cgroup {name} below {ROOT}: {error}"))
    })
}

/// Version 2: one hierarchy, in which a parent says what its children may use.
fn create_unified(name: &str) -> io::Result<()> {
    let root = Path::new(ROOT);
    let offered = fs::read_to_string(root.join("cgroup.controllers"))?;
    let own = root.join(name);
    fs::create_dir(&own)?;
    for parent in [root, &own] {
        for controller in offered.split_whitespace().filter(|name| WANTED.contains(name)) {
            fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"))?;
        }
    }
    Ok(())
}

/// Version 1: one hierarchy for each controller.
fn create_everywhere(name: &str) -> io::Result<()> {
    for hierarchy in fs::read_dir(ROOT)? {
        let hierarchy = hierarchy?.path();
        if !hierarchy.join("cgroup.procs").exists() {
            continue;
        }
        let own = hierarchy.join(name);
        match fs::create_dir(&own) {
            // `cpu` and `cpuacct` may be two names of one hierarchy.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            created => created?,
        }
        copy_cpuset(&hierarchy, &own)?;
    }
    Ok(())
}

/// A new cpuset is empty, and takes no process until it has CPUs and memory.
fn copy_cpuset(parent: &Path, child: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let from: PathBuf = parent.join(file);
        if from.exists() {
            fs::write(child.join(file), fs::read(from)?)?;
        }
    }
    Ok(())
}
