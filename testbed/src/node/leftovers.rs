//! Takes away what a cluster leaves on the machine: processes in its network namespace, that
//! namespace, its links and rules on the host, its cgroups.
//!
//! There is one script for it. It runs when a cluster is dropped, in the reaper when the process
//! ended in any other way, and at the next start for whatever is found all the same.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::slot::{PREFIX, Slot};
use crate::process::BedError;
use crate::run::run;

/// Where the namespaces' files and the cgroups are.
const NAMESPACES: &str = "/run/netns";
const CGROUPS: &str = "/sys/fs/cgroup";

/// The script gives processes and cgroups ten seconds each.
const ALLOWED: Duration = Duration::from_secs(60);

/// `name` is set before it. Each thing may be gone already. A killed node takes its pods along,
/// because their PID namespace ends with it; until then their cgroups are busy.
const SCRIPT: &str = r#"
inhabitants() { ip netns pids "$name" 2>/dev/null; }
tries=0
while [ $tries -lt 100 ] && [ -n "$(inhabitants)" ]; do
    for pid in $(inhabitants); do kill -KILL "$pid" 2>/dev/null; done
    tries=$((tries + 1)); sleep 0.1
done
for link in /sys/class/net/*; do
    read -r alias 2>/dev/null <"$link/ifalias" || continue
    if [ "$alias" = "$name" ]; then ip link delete "${link##*/}" 2>/dev/null; fi
done
nft delete table inet "$name" 2>/dev/null
if [ -e "/run/netns/$name" ]; then ip netns delete "$name"; fi
tries=0
while [ $tries -lt 100 ]; do
    busy=
    for cgroup in /sys/fs/cgroup/"$name" /sys/fs/cgroup/*/"$name"; do
        [ -d "$cgroup" ] || continue
        find "$cgroup" -depth -type d -exec rmdir {} \; 2>/dev/null
        [ ! -d "$cgroup" ] || busy=yes
    done
    [ -n "$busy" ] || break
    tries=$((tries + 1)); sleep 0.1
done
exit 0
"#;

/// The script for a cluster of this name.
pub(super) fn script(name: &str) -> String {
    format!("name={name} # remove what is left of it\n{SCRIPT}")
}

/// Takes away what a cluster of this name left.
pub(super) fn remove(name: &str) -> Result<(), BedError> {
    run(Command::new("sh").args(["-c", &script(name)]), ALLOWED).map(drop)
}

/// Takes away what clusters left whose processes ended without doing so. Those that run keep
/// their [`Slot`], and are left alone.
pub(super) fn remove_ownerless() -> Result<(), BedError> {
    for name in found() {
        let Some(_free) = Slot::of(&name).and_then(|number| Slot::take(number).ok()) else {
            continue;
        };
        crate::say(format!("removing what is left of {name}"));
        remove(&name)?;
    }
    Ok(())
}

/// The names of clusters that there are traces of.
fn found() -> BTreeSet<String> {
    let mut folders = vec![NAMESPACES.into(), CGROUPS.into()];
    folders.extend(paths_in(Path::new(CGROUPS)));
    let names = folders.iter().flat_map(|folder| paths_in(folder));
    names
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
        .filter(|name| name.starts_with(PREFIX))
        .collect()
}

fn paths_in(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}
