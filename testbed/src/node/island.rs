//! A network namespace of its own for clients that are to be cut off.

use std::net::Ipv4Addr;
use std::process::Command;

use super::host;
use super::network::Network;
use crate::process::BedError;

/// A network namespace with a link to the host. Dropping it removes it, and whatever still runs in
/// it. Needs what [`super::Cluster`] needs of the machine; see [`super::Cluster::skips`].
#[derive(Debug)]
pub struct Island {
    network: Network,
}

impl Island {
    /// Makes one.
    ///
    /// # Errors
    /// It could not be made; with what failed.
    pub fn create() -> Result<Island, BedError> {
        if let Some(why) = host::why_not() {
            return Err(BedError::Impossible(format!("no network namespace here: {why}")));
        }
        host::check_programs()?;
        Ok(Island { network: Network::create()? })
    }

    /// The host's address for everything inside. Have a Consul serve on it:
    /// [`crate::ConsulConfig::also_on`].
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        self.network.gateway()
    }

    /// The same command, to be run inside.
    #[must_use]
    pub fn inside(&self, command: &Command) -> Command {
        let words = self.network.enter();
        let mut inside = Command::new(&words[0]);
        inside.args(&words[1..]).arg(command.get_program()).args(command.get_args());
        inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        inside
    }

    /// Packets vanish without a word, in both directions.
    ///
    /// # Errors
    /// The rules could not be set, or are set already.
    pub fn cut(&self) -> Result<(), BedError> {
        self.network.cut()
    }

    /// Takes the host's end of the link down, as if its cable were pulled.
    ///
    /// # Errors
    /// It could not be done.
    pub fn unplug(&self) -> Result<(), BedError> {
        self.network.unplug()
    }
}
