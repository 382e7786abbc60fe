//! Numbers that keep clusters apart, also those of other processes.
//!
//! A number stands for a range of addresses. It is taken by an abstract Unix socket, as
//! [`crate::Port`] does it: the kernel gives it up when the process ends, however it ends.

use std::io;
use std::net::Ipv4Addr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Every cluster's name begins with it.
pub(super) const PREFIX: &str = "consul-lock-";
/// So many clusters at most; the third part of their addresses.
const COUNT: u8 = 32;

/// What all clusters' addresses begin with: part of a private range that few use.
const RANGE: [u8; 2] = [10, 211];

/// A number that is ours until dropped.
#[derive(Debug)]
pub(super) struct Slot {
    number: u8,
    _reservation: UnixListener,
}

impl Slot {
    /// Any that is free.
    pub(super) fn take_any() -> io::Result<Slot> {
        let free = (0..COUNT).find_map(|number| Slot::take(number).ok());
        free.ok_or_else(|| io::ErrorKind::AddrInUse.into())
    }

    /// This one, if it is free.
    pub(super) fn take(number: u8) -> io::Result<Slot> {
        let name = SocketAddr::from_abstract_name(format!("consul-lock-testbed-slot-{number}"))?;
        Ok(Slot { number, _reservation: UnixListener::bind_addr(&name)? })
    }

    /// The number in a cluster's name.
    pub(super) fn of(name: &str) -> Option<u8> {
        name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
    }

    /// A name for the cluster: of the number, and of this process. An earlier owner of the number
    /// may still be cleaning up after itself, and shall not take us for it.
    pub(super) fn name(&self) -> String {
        format!("{PREFIX}{}-{}", self.number, std::process::id())
    }

    /// What the names of its network links on the host end with; they may be 15 characters long.
    pub(super) fn suffix(&self) -> String {
        format!("{}-{}", self.number, std::process::id())
    }

    pub(super) fn number(&self) -> u8 {
        self.number
    }

    /// One of its 256 addresses.
    pub(super) fn address(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(RANGE[0], RANGE[1], self.number, last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_its_owners_until_dropped() {
        let number = COUNT - 1; // nobody gets that far
        let slot = Slot::take(number).unwrap();
        assert_eq!(Slot::of(&slot.name()), Some(number));
        assert!(Slot::take(number).is_err());
        drop(slot);
        drop(Slot::take(number).unwrap());
    }

    #[test]
    fn other_names_have_no_slot() {
        assert_eq!(Slot::of("cni-1234"), None);
        assert_eq!(Slot::of("consul-lock-demo"), None);
    }
}
