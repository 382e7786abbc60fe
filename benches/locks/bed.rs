//! The Consul, what it counts, and the processes that are measured against it.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use testbed::{
    Consul, ConsulConfig,
    bench::{process::Connections, prometheus::Scrape},
};

use crate::{Failure, Outcome};

/// Whom to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// The crate.
    Ours,
    /// The crate, with a session and connections for each contender.
    OursApart,
    /// Go's `api.Lock`.
    ApiLock,
}

/// How much of it; see `api-lock -bench`. Spans in milliseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Amount {
    pub(crate) count: usize,
    pub(crate) span: u64,
    pub(crate) hold: u64,
    pub(crate) patience: u64,
}

/// What Consul has counted so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    pub(crate) requests: f64,
    pub(crate) entries: f64,
}

/// A Consul that counts. It forgets everything when it ends and waits for no disk.
pub(crate) fn consul(connections: Option<u32>) -> Outcome<Consul> {
    let telemetry = json!({ "prometheus_retention_time": "2h", "disable_hostname": true });
    Ok(Consul::start(ConsulConfig {
        session_ttl_min: "10s".to_owned(),
        http_max_conns_per_client: connections,
        extra: json!({ "telemetry": telemetry }),
        ..ConsulConfig::default()
    })?)
}

impl Counts {
    pub(crate) fn of(consul: &Consul) -> Outcome<Counts> {
        let scrape = consul.request("GET", "/v1/agent/metrics?format=prometheus", b"")?;
        let this = consul.request("GET", "/v1/agent/self", b"")?.json();
        let last = &this["Stats"]["raft"]["last_log_index"];
        let entries = last.as_str().and_then(|text| text.parse().ok());
        Ok(Counts {
            requests: Scrape::new(scrape.text()).sum("consul_api_http_count", &[]),
            entries: entries.ok_or_else(|| Failure::Odd(format!("Raft index {last}")))?,
        })
    }

    /// Since then, without the two requests by which it was counted.
    pub(crate) fn since(self, then: Counts) -> Counts {
        let requests = (self.requests - then.requests - 2.0).max(0.0);
        Counts { requests, entries: self.entries - then.entries }
    }
}

/// A process that measures itself, and waits for orders between its steps.
pub(crate) struct Player {
    child: Child,
    orders: ChildStdin,
    lines: BufReader<ChildStdout>,
    consul: SocketAddr,
}

impl Player {
    pub(crate) fn start(consul: &Consul, who: Who, mode: &str, how: Amount) -> Outcome<Player> {
        let prefix = format!("bench/{who:?}-{mode}-{:08x}/", rand::random::<u32>());
        let Amount { count, span, hold, patience } = how;
        let mut command = match who {
            Who::Ours | Who::OursApart => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("ours").args(["--mode", mode]);
                let numbers = [("count", count as u64), ("span", span), ("hold", hold)];
                for (name, number) in numbers.into_iter().chain([("patience", patience)]) {
                    command.arg(format!("--{name}={number}"));
                }
                if who == Who::OursApart {
                    command.arg("--apart");
                }
                command.arg(&prefix).envs(consul.env());
                command
            }
            Who::ApiLock => {
                let numbers = [("span", span), ("hold", hold), ("patience", patience)];
                let mut args = vec!["-bench".to_owned(), mode.to_owned()];
                args.push(format!("-count={count}"));
                args.extend(numbers.map(|(name, number)| format!("-{name}={number}ms")));
                args.push(prefix);
                consul.api_lock(args.iter().map(String::as_str))?
            }
        };
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = testbed::reaper::spawn(&mut command)?;
        let (Some(orders), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Failure::Odd("a process without pipes".to_owned()));
        };
        Ok(Player { child, orders, lines: BufReader::new(output), consul: consul.http() })
    }

    fn line(&mut self) -> Outcome<String> {
        let mut line = String::new();
        match self.lines.read_line(&mut line)? {
            0 => Err(Failure::Odd("a measured process ended early".to_owned())),
            _ => Ok(line.trim().to_owned()),
        }
    }

    pub(crate) fn wait_ready(&mut self) -> Outcome<()> {
        match self.line()?.as_str() {
            "ready" => Ok(()),
            other => Err(Failure::Odd(format!("{other} instead of ready"))),
        }
    }

    pub(crate) fn go(&mut self) -> Outcome<()> {
        Ok(self.orders.write_all(b"\n")?)
    }

    pub(crate) fn result(&mut self) -> Outcome<Value> {
        let line = self.line()?;
        serde_json::from_str(&line).map_err(|error| Failure::Odd(format!("{line}: {error}")))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn connections(&self) -> Connections {
        Connections::watch(self.pid(), self.consul)
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        testbed::reaper::forget_process(self.child.id());
    }
}

/// One measurement from beginning to end.
pub(crate) fn play(consul: &Consul, who: Who, mode: &str, how: Amount) -> Outcome<(Value, Counts)> {
    let mut player = Player::start(consul, who, mode, how)?;
    player.wait_ready()?;
    let before = Counts::of(consul)?;
    player.go()?;
    let result = player.result()?;
    let counts = Counts::of(consul)?.since(before);
    // So that its sessions do not live on into the next measurement.
    let ended = || player.child.try_wait().transpose();
    testbed::wait_for("a measured process to end", Duration::from_secs(60), ended)??;
    Ok((result, counts))
}
