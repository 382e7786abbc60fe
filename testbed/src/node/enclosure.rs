//! What the node's own processes run in: a PID and a mount namespace.
//!
//! With the first process of the PID namespace everything in it ends, pods included, and with the
//! last process of the mount namespace all mounts are gone. So nothing can be left that would
//! have to be found and ended one by one.

use std::ffi::OsString;
use std::fs;
use std::time::Duration;

use super::network::Network;
use crate::folder::Folder;
use crate::process::{BedError, GRACE, Recipe, Server};
use crate::tools::Tool;

/// How long its mounts may take on a busy machine.
const ALLOWED: Duration = Duration::from_secs(60);

/// Makes the mounts its own, keeps from the host what containerd, the kubelet and the network
/// plugins write to fixed places whatever they are told, and becomes a first process that collects
/// orphans. /var/lib is covered by a layer that takes the writes, as it may hold this repository.
/// The kernel's settings are those that a kubelet sets to its taste, such as a reboot after an oops.
const FIRST_PROCESS: &str = r#"
set -e
mount --make-rshared /
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/log
mkdir /run/written /run/work
mount -t overlay -o lowerdir=/var/lib,upperdir=/run/written,workdir=/run/work overlay /var/lib
for setting in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops \
    kernel/keys/root_maxkeys kernel/keys/root_maxbytes
do
    copy=/run/${setting##*/}
    cat "/proc/sys/$setting" >"$copy"
    mount --bind "$copy" "/proc/sys/$setting"
done
echo ready
exec "$1" pause
"#;

/// The namespaces of one node, as long as their first process runs.
#[derive(Debug)]
pub(super) struct Enclosure {
    first: Server,
}

impl Enclosure {
    pub(super) fn start(network: &Network, folder: &Folder) -> Result<Enclosure, BedError> {
        let log = folder.path().join("node.log");
        let mut args: Vec<OsString> =
            ["--mount", "--propagation=private", "--pid", "--mount-proc"].map(Into::into).to_vec();
        args.extend(["--fork", "--kill-child", "sh", "-c", FIRST_PROCESS, "sh"].map(Into::into));
        args.push(Tool::Backend.path()?.into());
        let recipe = Recipe {
            name: "the node's first process".to_owned(),
            program: "unshare".into(),
            args,
            env: Vec::new(),
            log: log.clone(),
            allowed: ALLOWED,
            grace: GRACE,
        };
        let first = Server::start(recipe.entering(&network.enter()), move || {
            match fs::read_to_string(&log).is_ok_and(|text| text.contains("ready")) {
                true => Ok(()),
                false => Err("its mounts are not there".to_owned()),
            }
        })?;
        Ok(Enclosure { first })
    }

    /// The words before a command that runs it in here.
    ///
    /// `nsenter` stays as its parent. So that whoever asks both to end waits until it has ended,
    /// `nsenter` does not listen.
    pub(super) fn enter(&self) -> Vec<OsString> {
        let process = format!("/proc/{}/ns", self.first.pid().unwrap_or_default());
        vec![
            "env".into(),
            "--ignore-signal=TERM".into(),
            "nsenter".into(),
            format!("--net={process}/net").into(),
            format!("--mount={process}/mnt").into(),
            // Its own is still the host's: it is the parent of the first process.
            format!("--pid={process}/pid_for_children").into(),
            "env".into(),
            "--default-signal=TERM".into(),
        ]
    }
}
