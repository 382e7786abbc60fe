//! Free ports that stay ours.
//!
//! A server that is killed and restarted needs its port back, so ports are taken from below the
//! kernel's ephemeral range, where no outgoing connection can slip in, and are reserved among all
//! test processes by an abstract Unix socket of the same number: the kernel gives it up when the
//! process ends, and nothing lies about on disk. What other programs listen on is tried out.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::{self, Ipv4Addr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

const FIRST: u16 = 20_000;
const COUNT: u16 = 10_000;

/// A port for both TCP and UDP on the loopback addresses. Reserved until dropped.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _reservation: UnixListener,
}

impl Port {
    /// Reserves a free one.
    ///
    /// # Errors
    /// None of some hundred tries was free.
    pub fn reserve() -> io::Result<Port> {
        let start = RandomState::new().build_hasher().finish();
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for step in 0..500 {
            // A stride that is prime to COUNT, so that neighbours are not tried one by one.
            let offset = (start % u64::from(COUNT) + step * 37) % u64::from(COUNT);
            match Port::take(FIRST + offset as u16) {
                Ok(port) => return Ok(port),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Reserves several.
    ///
    /// # Errors
    /// As [`Port::reserve`].
    pub fn reserve_many<const N: usize>() -> io::Result<[Port; N]> {
        let ports: Vec<Port> = (0..N).map(|_| Port::reserve()).collect::<Result<_, _>>()?;
        ports.try_into().map_err(|_| io::ErrorKind::AddrInUse.into())
    }

    /// The port's number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }

    /// The port on the IPv4 loopback address.
    #[must_use]
    pub fn address(&self) -> net::SocketAddr {
        (Ipv4Addr::LOCALHOST, self.number).into()
    }

    fn take(number: u16) -> io::Result<Port> {
        let name = SocketAddr::from_abstract_name(format!("consul-lock-testbed-port-{number}"))?;
        let reservation = UnixListener::bind_addr(&name)?;
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, number))?;
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, number))?;
        Ok(Port { number, _reservation: reservation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserved_port_is_given_to_nobody_else_until_dropped() {
        let port = Port::reserve().unwrap();
        let number = port.number();
        assert!(Port::take(number).is_err());
        drop(port);
        assert!(Port::take(number).is_ok());
    }
}
