//! A cluster's network namespace.
//!
//! It has two links to the host. Over `world` it reaches Consul, and whatever else there is; this
//! is the one that is cut. Over `bed` tests reach the API server, pods and Services whatever they
//! did to the other. Of its 256 addresses:
//!
//! | | |
//! |---|---|
//! | .1 and .2 | `world`: the host's end and the node's |
//! | .5 and .6 | `bed`: the same |
//! | .64 to .127 | Services |
//! | .128 to .255 | pods |

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use super::leftovers;
use super::slot::Slot;
use crate::folder::Folder;
use crate::process::BedError;
use crate::reaper;
use crate::run::run;

/// How long one of `ip` and `nft` may take on a busy machine.
const ALLOWED: Duration = Duration::from_secs(20);

/// Makes the namespace and its links. `world`, `bed` and `name` are names on the host, `net` is
/// what all the addresses begin with. Other clusters' packets are not forwarded by us. What pods
/// send into the world gets the node's address, as in most clusters.
const BUILD: &str = r#"# make a network namespace
set -e
ip netns add "$name"
inside() { nsenter --net=/run/netns/"$name" "$@"; }
link() { # name on the host, name inside, the host's address, the node's
    ip link add "$1" type veth peer name "$2" netns "$name"
    ip link set "$1" alias "$name"
    ip addr add "$3/30" dev "$1"
    ip link set "$1" up
    inside ip addr add "$4/30" dev "$2"
    inside ip link set "$2" up
}
inside ip link set lo up
link "$world" world "$net.1" "$net.2"
link "$bed" bed "$net.5" "$net.6"
inside ip route add default via "$net.1"
inside sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
ip route add "$net.64/26" via "$net.6"
ip route add "$net.128/25" via "$net.6"
inside nft "
    table ip consul-lock {
        chain into-the-world {
            type nat hook postrouting priority srcnat;
            ip saddr $net.128/25 oifname world masquerade
        }
    }"
"#;

/// Packets vanish at both ends of the link, and nobody is told.
const CUT: &str = r#"# cut a cluster off
set -e
rules() { echo "
    table inet $name {
        chain cut { type filter hook prerouting priority -400; iifname \"$1\" drop; }
    }"
}
nft "$(rules "$world")"
nsenter --net=/run/netns/"$name" nft "$(rules world)"
"#;

const HEAL: &str = r#"# end the cut
set -e
nft delete table inet "$name"
nsenter --net=/run/netns/"$name" nft delete table inet "$name"
"#;

/// The same for one pod, whomever it talks to.
const CUT_POD: &str = r#"# cut a pod off
set -e
nsenter --net=/run/netns/"$name" nft "
    table inet pod-${pod##*.} {
        chain from { type filter hook prerouting priority -400; ip saddr $pod drop; }
        chain through { type filter hook forward priority -400; ip daddr $pod drop; }
        chain to { type filter hook output priority -400; ip daddr $pod drop; }
    }"
"#;

const HEAL_POD: &str = r#"# end the cut of a pod
nsenter --net=/run/netns/"$name" nft delete table inet "pod-${pod##*.}"
"#;

/// A network namespace with its links. Dropping it removes them, and whatever still runs in it.
#[derive(Debug)]
pub(super) struct Network {
    slot: Slot,
    folder: Folder,
}

impl Network {
    /// Makes one, after having removed what others left.
    pub(super) fn create() -> Result<Network, BedError> {
        leftovers::remove_ownerless()?;
        let folder = Folder::new("network")?;
        let network = Network { slot: Slot::take_any()?, folder };
        let script = leftovers::script(&network.name());
        reaper::owns_script(&network.folder.write("remove.sh", script)?)?;
        network.shell(BUILD)?;
        Ok(network)
    }

    pub(super) fn name(&self) -> String {
        self.slot.name()
    }

    pub(super) fn number(&self) -> u8 {
        self.slot.number()
    }

    /// The host, as the namespace sees it over the link that can be cut.
    pub(super) fn gateway(&self) -> Ipv4Addr {
        self.slot.address(1)
    }

    /// The node, as the world sees it.
    pub(super) fn node(&self) -> Ipv4Addr {
        self.slot.address(2)
    }

    /// The node, as the test bed sees it.
    pub(super) fn bed(&self) -> Ipv4Addr {
        self.slot.address(6)
    }

    pub(super) fn service_range(&self) -> String {
        format!("{}/26", self.slot.address(64))
    }

    pub(super) fn first_service(&self) -> Ipv4Addr {
        self.slot.address(65)
    }

    pub(super) fn pod_range(&self) -> String {
        format!("{}/25", self.slot.address(128))
    }

    /// The words before a command that runs it in here. Not `ip netns exec`: that mounts another
    /// /sys, and the kubelet finds no cgroups there.
    pub(super) fn enter(&self) -> Vec<OsString> {
        vec!["nsenter".into(), format!("--net=/run/netns/{}", self.name()).into()]
    }

    /// No packet comes through to the world or from it.
    pub(super) fn cut(&self) -> Result<(), BedError> {
        self.shell(CUT)
    }

    /// The link to the world is down.
    pub(super) fn unplug(&self) -> Result<(), BedError> {
        self.shell("ip link set \"$world\" down")
    }

    /// All come through again.
    pub(super) fn heal(&self) -> Result<(), BedError> {
        self.shell(HEAL)
    }

    /// No packet comes through to this pod or from it.
    pub(super) fn cut_pod(&self, pod: Ipv4Addr) -> Result<(), BedError> {
        self.shell(&format!("pod={pod} {CUT_POD}"))
    }

    /// All come through again.
    pub(super) fn heal_pod(&self, pod: Ipv4Addr) -> Result<(), BedError> {
        self.shell(&format!("pod={pod} {HEAL_POD}"))
    }

    /// Puts rules into force, or takes them back.
    pub(super) fn nft(&self, rules: &str) -> Result<(), BedError> {
        let [enter, namespace] = self.enter().try_into().unwrap_or_default();
        run(Command::new(enter).arg(namespace).arg("nft").arg(rules), ALLOWED).map(drop)
    }

    fn shell(&self, script: &str) -> Result<(), BedError> {
        let [a, b, c, _] = self.slot.address(0).octets();
        let mut command = Command::new("sh");
        command.args(["-c", script]).env("name", self.name());
        command.env("net", format!("{a}.{b}.{c}"));
        command.env("world", format!("clw{}", self.slot.suffix()));
        command.env("bed", format!("clb{}", self.slot.suffix()));
        run(&mut command, ALLOWED).map(drop)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Err(error) = leftovers::remove(&self.name()) {
            crate::say(format!("something may be left of {}: {error}", self.name()));
        }
        reaper::forget_script(&self.folder.path().join("remove.sh"));
    }
}
