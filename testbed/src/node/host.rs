//! Whether this machine can run a node, and what is peculiar about it.

use crate::process::BedError;
use crate::tools::on_path;

/// Bits of capability sets, of `linux/capability.h`.
const NET_ADMIN: u32 = 12;
const SYS_ADMIN: u32 = 21;
const SYS_RESOURCE: u32 = 24;

/// Programs beside our own tools, and Debian's packages of them.
const PROGRAMS: [(&str, &str); 5] = [
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("mount", "mount"),
];

/// Why no node can run here; nothing if one can.
pub(super) fn why_not() -> Option<String> {
    if !cfg!(target_os = "linux") {
        return Some("this is not Linux".to_owned());
    }
    if !rustix::process::geteuid().is_root() {
        return Some("not root: namespaces and cgroups need it".to_owned());
    }
    let missing = [(NET_ADMIN, "CAP_NET_ADMIN"), (SYS_ADMIN, "CAP_SYS_ADMIN")]
        .into_iter()
        .find(|(bit, _)| !capable(*bit))?;
    Some(format!("root, but without {}", missing.1))
}

/// Whether the processes of a node may lower the score by which the kernel picks whom to end when
/// memory is short.
pub(super) fn may_lower_oom_score() -> bool {
    capable(SYS_RESOURCE)
}

/// What a node needs beside our tools is installed. Unlike [`why_not`] this can be mended.
pub(super) fn check_programs() -> Result<(), BedError> {
    let missing: Vec<String> = PROGRAMS
        .iter()
        .filter(|(program, _)| on_path(program).is_none())
        .map(|(program, package)| format!("`{program}` (Debian's package `{package}`)"))
        .collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(BedError::Impossible(format!(
            "a node cannot be started: not on PATH: {}",
            missing.join(", ")
        ))),
    }
}

fn capable(bit: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    effective(&status).is_some_and(|set| set >> bit & 1 == 1)
}

/// The effective capabilities, of `/proc/self/status`.
fn effective(status: &str) -> Option<u64> {
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(hex.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_what_the_kernel_prints() {
        let set = effective("Name:\tx\nCapEff:\t000001fffeffffff\n").unwrap();
        assert_eq!(set >> SYS_RESOURCE & 1, 0);
        assert_eq!(set >> SYS_ADMIN & 1, 1);
        assert_eq!(effective("Name:\tx\n"), None);
    }
}
