//! One Prometheus, which scrapes what it is told to and answers queries; and `promtool`, which judges
//! alerts without one.
//!
//! Unlike most servers it is not built: Debian's package `prometheus` has both. Whatever server that
//! package has started is left alone.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::folder::Folder;
use crate::http::request;
use crate::optional;
use crate::ports::Port;
use crate::process::{BedError, GRACE, Recipe, Server, with_free_ports};
use crate::run::run;
use crate::tools::on_path;

/// `required` makes [`Prometheus::why_not`] a failure rather than a reason to skip; `skip` is such a
/// reason by itself.
const WISH: &str = "TESTBED_PROMETHEUS";

/// How long it may take to start, or `promtool` to end, on a busy machine.
const ALLOWED: Duration = Duration::from_secs(60);

/// A running Prometheus on 127.0.0.1. Dropping it ends it.
#[derive(Debug)]
pub struct Prometheus {
    _server: Server, // first: it ends before its folder goes
    port: Port,
    _folder: Folder,
}

impl Prometheus {
    /// Why none can run here; nothing if one can. With the variable `TESTBED_PROMETHEUS` set to
    /// `skip`, that is why.
    ///
    /// # Panics
    /// None can run here, and `TESTBED_PROMETHEUS` says `required`: skipping is not wanted.
    #[must_use]
    pub fn why_not() -> Option<String> {
        optional::why_not(WISH, program("prometheus").and(program("promtool")))
    }

    /// Whether none can run here, so that a test has to be skipped; says so, and why.
    ///
    /// # Panics
    /// As [`Prometheus::why_not`].
    #[must_use]
    pub fn skips() -> bool {
        optional::skips(Prometheus::why_not())
    }

    /// Starts one with this configuration file's text, and waits until it is ready.
    ///
    /// # Errors
    /// There is none, it refuses the configuration, or it did not come up; with the end of its log.
    pub fn start(config: &str) -> Result<Prometheus, BedError> {
        let program = program("prometheus").map_err(BedError::Impossible)?;
        let folder = Folder::new("prometheus")?;
        let config = folder.write("prometheus.yml", config)?;
        let (server, port) = with_free_ports(|| {
            let port = Port::reserve()?;
            let address = port.address();
            let recipe = recipe(&program, &folder, &config, &port);
            let ready = move || match request(address, "GET", "/-/ready", &[], b"") {
                Ok(reply) if reply.status == 200 => Ok(()),
                Ok(reply) => Err(reply.text()),
                Err(error) => Err(error.to_string()),
            };
            Ok((Server::start(recipe, ready)?, port))
        })?;
        Ok(Prometheus { _server: server, port, _folder: folder })
    }

    /// What a query returns now: the list of series, each with its labels and its value.
    ///
    /// # Errors
    /// It is no query; with what is wrong with it.
    pub fn query(&self, query: &str) -> Result<Vec<Value>, BedError> {
        self.ask("/api/v1/query", &[("query", query)])
    }

    /// The alerts of its rule files that fire or are about to.
    ///
    /// # Errors
    /// It does not answer.
    pub fn alerts(&self) -> Result<Vec<Value>, BedError> {
        self.query("ALERTS")
    }

    fn ask(&self, path: &str, fields: &[(&str, &str)]) -> Result<Vec<Value>, BedError> {
        let body: Vec<String> =
            fields.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
        let form = [("Content-Type", "application/x-www-form-urlencoded")];
        let body = body.join("&");
        let reply = request(self.port.address(), "POST", path, &form, body.as_bytes())?;
        match reply.json()["data"]["result"].as_array() {
            Some(result) if reply.ok() => Ok(result.clone()),
            _ => Err(BedError::Refused {
                name: "prometheus".to_owned(),
                attempt: format!("answer {fields:?}"),
                answer: reply.text(),
            }),
        }
    }

    /// Runs `promtool`, which must succeed; what it printed.
    ///
    /// # Errors
    /// There is none, or it failed; with what it said.
    pub fn promtool(args: &[&str], folder: &Path) -> Result<String, BedError> {
        let program = program("promtool").map_err(BedError::Impossible)?;
        run(Command::new(program).args(args).current_dir(folder), ALLOWED)
    }
}

/// Where it is; or what to install.
fn program(name: &str) -> Result<PathBuf, String> {
    on_path(name).ok_or_else(|| {
        format!("there is no {name}: install Debian's package `prometheus`, or have it on PATH")
    })
}

fn recipe(program: &Path, folder: &Folder, config: &Path, port: &Port) -> Recipe {
    let flag = |name: &str, value: &str| OsString::from(format!("--{name}={value}"));
    let data = folder.path().join("data");
    let args = vec![
        flag("config.file", &config.display().to_string()),
        flag("storage.tsdb.path", &data.display().to_string()),
        flag("web.listen-address", &port.address().to_string()),
        flag("log.level", "warn"),
    ];
    Recipe {
        name: "prometheus".to_owned(),
        program: program.to_owned(),
        args,
        env: Vec::new(),
        log: folder.path().join("prometheus.log"),
        allowed: ALLOWED,
        grace: GRACE,
    }
}

/// As a field of a form.
fn encoded(value: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    value.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_encoded_for_a_form() {
        assert_eq!(encoded("a{b=~\"c|d\"}+1"), "a%7Bb%3D%7E%22c%7Cd%22%7D%2B1");
    }
}
