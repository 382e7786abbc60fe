//! Three Consul servers that elect a leader among them.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::{Value, json};

use crate::consul::{Consul, ConsulConfig, Place};
use crate::process::{BedError, with_free_ports};
use crate::wait::wait_for;

/// How long an election, or a server's way back, may take on a busy machine.
const ALLOWED: Duration = Duration::from_secs(60);

/// What kind of cluster.
#[derive(Clone, Debug, Default)]
pub struct ConsulClusterConfig {
    /// Leave the cluster on SIGTERM, as Consul's Helm chart has it.
    pub leave_on_terminate: bool,
    /// Anything else, merged over each server's configuration at the top level.
    pub extra: Value,
}

/// A cluster of Consul servers on 127.0.0.1, 127.0.0.2 and 127.0.0.3, with their data on disk.
#[derive(Debug)]
pub struct ConsulCluster {
    servers: Vec<Consul>,
}

impl ConsulCluster {
    /// Starts three servers and waits until all are voters under one leader.
    ///
    /// # Errors
    /// They did not come up.
    pub fn start(config: &ConsulClusterConfig) -> Result<ConsulCluster, BedError> {
        with_free_ports(|| {
            let places = (1..=3)
                .map(|host| Place::reserve(Ipv4Addr::new(127, 0, 0, host)))
                .collect::<Result<Vec<_>, _>>()?;
            let join: Vec<String> = places.iter().map(|place| place.serf().to_string()).collect();
            let server_config = server_config(config, &join);
            let servers = (1..)
                .zip(places)
                .map(|(nth, place)| {
                    Consul::prepare(&server_config, place, &format!("consul-{nth}"))
                })
                .collect::<Result<Vec<_>, _>>()?;
            // All are launched before any is waited for: none is ready without the others.
            servers.iter().try_for_each(|consul| consul.server().launch())?;
            servers.iter().try_for_each(|consul| consul.server().wait_ready())?;
            let cluster = ConsulCluster { servers };
            cluster.wait_for_voters(3)?;
            Ok(cluster)
        })
    }

    /// Starts an agent that is no server, on 127.0.0.`host`, of which the servers have 1 to 3: as
    /// there is one on each machine, through which clients talk to Consul whichever server is away.
    /// Its node is called as its [`Consul::server`] is.
    ///
    /// # Errors
    /// It did not come up.
    pub fn agent(&self, host: u8) -> Result<Consul, BedError> {
        let join: Vec<String> = self.servers.iter().map(|one| one.serf().to_string()).collect();
        let extra = json!({
            "server": false, "bootstrap_expect": 0, "retry_join": join, "retry_interval": "1s",
        });
        let config = ConsulConfig { persistent: true, extra, ..ConsulConfig::default() };
        with_free_ports(|| {
            let place = Place::reserve(Ipv4Addr::new(127, 0, 0, host))?;
            let agent = Consul::prepare(&config, place, &format!("consul-agent-{host}"))?;
            agent.server().start_again()?;
            Ok(agent)
        })
    }

    /// The servers. To stop, kill, pause or restart one, use its [`Consul::server`].
    #[must_use]
    pub fn servers(&self) -> &[Consul] {
        &self.servers
    }

    /// Which server leads now, in the eyes of any that answers.
    #[must_use]
    pub fn leader(&self) -> Option<usize> {
        let running = self.servers.iter().filter(|consul| consul.server().pid().is_some());
        let leader = running
            .filter_map(|consul| consul.request("GET", "/v1/status/leader", b"").ok())
            .filter_map(|reply| reply.json().as_str().map(str::to_owned))
            .find(|leader| !leader.is_empty())?;
        self.servers.iter().position(|consul| {
            consul.rpc().to_string() == leader && consul.server().pid().is_some()
        })
    }

    /// Waits until a server other than `old` leads, and returns which.
    ///
    /// # Errors
    /// None did in a minute.
    pub fn wait_for_leader_other_than(&self, old: Option<usize>) -> Result<usize, BedError> {
        let other = || self.leader().filter(|leader| Some(*leader) != old);
        Ok(wait_for("a leader of the Consul servers", ALLOWED, other)?)
    }

    /// Waits until so many servers are healthy voters. One that left and came back is none for
    /// about ten seconds; the next must not be stopped before, or the cluster loses its quorum.
    ///
    /// # Errors
    /// They were not in a minute.
    pub fn wait_for_voters(&self, count: usize) -> Result<(), BedError> {
        let enough = || (self.healthy_voters() >= count).then_some(());
        Ok(wait_for(format!("{count} healthy Consul voters"), ALLOWED, enough)?)
    }

    fn healthy_voters(&self) -> usize {
        let Some(leader) = self.leader() else {
            return 0;
        };
        let asked = self.servers[leader].request("GET", "/v1/operator/autopilot/health", b"");
        let health = asked.map(|reply| reply.json()).unwrap_or_default();
        let servers = health["Servers"].as_array().cloned().unwrap_or_default();
        servers
            .iter()
            .filter(|server| server["Voter"] == json!(true) && server["Healthy"] == json!(true))
            .count()
    }
}

fn server_config(config: &ConsulClusterConfig, join: &[String]) -> ConsulConfig {
    let mut extra = json!({
        "bootstrap_expect": 3,
        "retry_join": join,
        "retry_interval": "1s",
        "rejoin_after_leave": true,
    });
    for (name, value) in config.extra.as_object().into_iter().flatten() {
        extra[name] = value.clone();
    }
    ConsulConfig {
        persistent: true,
        leave_on_terminate: config.leave_on_terminate,
        extra,
        ..ConsulConfig::default()
    }
}
