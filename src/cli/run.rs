//! `consul-lock run`: what to hold, and what to run under it.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
    time::Duration,
};

use clap::{ArgMatches, Args};

use super::{
    CliError, boolean,
    consul::ConsulFlags,
    lock::{LockFlags, LogFlags, SECOND, between, is_in_names, long, name},
};
use crate::{
    agent::{Notice, NoticeError, Outer, RunSettings},
    consul::http::HttpConfig,
    holder::this_host,
    names::{Key, NodeName, SessionId},
    telemetry::logs::{Filter, Format},
};

const EXIT_CODES: &str = "\
The command sees CONSUL_LOCK_HELD=true, CONSUL_LOCK_KEY, CONSUL_LOCK_SESSION, CONSUL_LOCK_TOKEN \
(the fencing token: send it with every write, and have the writes refused that carry a smaller one \
than was seen) and CONSUL_LOCK_VALID_UNTIL_FILE (a file of one line: until when the lock may be \
relied on, in seconds since the machine started, as /proc/uptime counts them).

Exit codes: the command's own; 128 + N if signal N ended it; 2 wrong usage, or settings that \
Consul does not take; 3 could not start; 69 Consul is out of reach; 75 the lock was not free \
(--wait, --try-once); 77 Consul denies it; 79 the lock was lost and the command stopped; 124 \
--max-hold passed and the command was stopped; 126 the command cannot be run; 127 there is no such \
command.";

/// A validated `consul-lock run`.
#[derive(Clone, Debug)]
pub struct RunConfig {
    /// How to reach Consul.
    pub consul: HttpConfig,
    /// What to hold, and what to run under it.
    pub settings: RunSettings,
    /// How log lines look.
    pub log_format: Format,
    /// Which are written.
    pub log: Filter,
}

/// Why there is no [`RunConfig`].
#[derive(Debug, thiserror::Error)]
pub enum RunConfigError {
    /// The command could not be stopped in time.
    #[error(transparent)]
    Notice(#[from] NoticeError),
    /// This process has the lock already.
    #[error(
        "--key {0}: this already runs under a lock on {0} (CONSUL_LOCK_HELD, CONSUL_LOCK_KEY) and \
         would wait for itself; give --re-entrant to take part in that tenure"
    )]
    Nested(Key),
}

#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct RawRun {
    /// The key to hold. Everybody who contends for the same key takes turns
    #[arg(long, env = "CONSUL_LOCK_KEY", value_name = "KEY")]
    key: Key,

    /// Use this session and leave it as it is, instead of making one. It must have a TTL, and nobody
    /// else may use it for the same key
    #[arg(long, value_name = "ID", value_parser = session)]
    #[arg(conflicts_with_all = ["ttl", "lock_delay", "behavior", "node", "check", "service_check"])]
    session: Option<SessionId>,

    /// What to call the holder, for others to see. Default: the command's name
    #[arg(long, env = "CONSUL_LOCK_NAME", value_name = "NAME", value_parser = name)]
    name: Option<String>,

    /// The node of Consul's catalog that the session sits on; it is made if there is none. No
    /// agent runs there, so no agent's end takes the lock along
    #[arg(long, env = "CONSUL_LOCK_NODE", value_name = "NAME")]
    #[arg(default_value = "consul-lock-run", value_parser = name)]
    node: String,

    #[command(flatten)]
    lock: LockFlags,

    /// Give up waiting for the lock after this long; 1s to 8760h. Default: wait for ever
    #[arg(long, env = "CONSUL_LOCK_WAIT", value_name = "DURATION", value_parser = long)]
    wait: Option<Duration>,

    /// Give up after one attempt
    #[arg(long, env = "CONSUL_LOCK_TRY_ONCE", value_name = "BOOL")]
    #[arg(num_args = 0..=1, require_equals = true, conflicts_with = "wait")]
    #[arg(default_value = "false", default_missing_value = "true", value_parser = boolean)]
    try_once: bool,

    /// While waiting for the lock, try this often again to reach a Consul that does not answer.
    /// Default: for ever
    #[arg(long, env = "CONSUL_LOCK_RETRIES", value_name = "NUMBER")]
    retries: Option<u32>,

    /// The time between two such tries; 100ms to 1h
    #[arg(long, env = "CONSUL_LOCK_RETRY_INTERVAL", value_name = "DURATION")]
    #[arg(default_value = "1s", value_parser = retry_interval)]
    retry_interval: Duration,

    /// Under a run of the same key: take part in its tenure, and release nothing
    #[arg(long, env = "CONSUL_LOCK_RE_ENTRANT", value_name = "BOOL")]
    #[arg(num_args = 0..=1, require_equals = true)]
    #[arg(default_value = "false", default_missing_value = "true", value_parser = boolean)]
    re_entrant: bool,

    /// When the lock was lost and the command stopped, contend again
    #[arg(long, env = "CONSUL_LOCK_RESTART", value_name = "BOOL")]
    #[arg(num_args = 0..=1, require_equals = true)]
    #[arg(default_value = "false", default_missing_value = "true", value_parser = boolean)]
    restart: bool,

    /// Let the command see CONSUL_HTTP_TOKEN and CONSUL_HTTP_TOKEN_FILE
    #[arg(long, env = "CONSUL_LOCK_PASS_CONSUL_TOKEN", value_name = "BOOL")]
    #[arg(num_args = 0..=1, require_equals = true)]
    #[arg(default_value = "false", default_missing_value = "true", value_parser = boolean)]
    pass_consul_token: bool,

    #[command(flatten)]
    consul: ConsulFlags,

    #[command(flatten)]
    log: LogFlags,

    /// The command to run while the lock is held, and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

impl RawRun {
    pub(super) fn validate(self, matches: &ArgMatches) -> Result<RunConfig, CliError> {
        let notice = Notice::new(self.lock.ttl, self.lock.grace).map_err(RunConfigError::from)?;
        let is_nested = runs_under(&self.key);
        if is_nested && !self.re_entrant {
            return Err(RunConfigError::Nested(self.key).into());
        }
        let program = self.command.first().map(OsString::as_os_str).unwrap_or_default();
        let settings = RunSettings {
            name: self.name.unwrap_or_else(|| name_of(program)),
            host: this_host(),
            key: self.key,
            node: NodeName::new(self.node),
            lock: self.lock.into(),
            wait: self.wait,
            try_once: self.try_once,
            retries: self.retries,
            retry_interval: self.retry_interval,
            session: self.session,
            outer: if is_nested { outer() } else { None },
            restart: self.restart,
            notice,
            pass_consul_token: self.pass_consul_token,
            command: self.command,
        };
        let consul = self.consul.validate(matches)?;
        Ok(RunConfig { consul, settings, log_format: self.log.format, log: self.log.log })
    }
}

fn runs_under(key: &Key) -> bool {
    let is = |name, value: &str| std::env::var_os(name).is_some_and(|found| found == value);
    is("CONSUL_LOCK_HELD", "true") && is("CONSUL_LOCK_KEY", key.as_str())
}

/// The tenure that this runs under; `None` if its variables are not those of a run.
fn outer() -> Option<Outer> {
    let variable = |name| std::env::var(name).ok();
    Some(Outer {
        session: SessionId::new(variable("CONSUL_LOCK_SESSION")?),
        token: variable("CONSUL_LOCK_TOKEN")?.parse().ok()?,
        valid_until_file: variable("CONSUL_LOCK_VALID_UNTIL_FILE")?.into(),
    })
}

/// A holder's name made of a command's.
fn name_of(program: &OsStr) -> String {
    let file = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
    let allowed = |c: char| if is_in_names(c) { c } else { '-' };
    file.chars().map(allowed).take(64).collect()
}

fn session(raw: &str) -> Result<SessionId, String> {
    let is_uuid = raw.len() == 36 && raw.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    is_uuid.then(|| SessionId::new(raw)).ok_or_else(|| {
        "give a session's ID, such as adf4238a-882b-9ddc-4a9d-5b6758e4159e".to_owned()
    })
}

fn retry_interval(raw: &str) -> Result<Duration, String> {
    between(raw, Duration::from_millis(100), 3600 * SECOND)
}

#[cfg(test)]
mod tests {
    use crate::{
        api::VALUE_MAX_CHARS,
        cli::{Job, parse},
        consul::Behavior,
    };

    use super::*;

    fn run(args: &[&str]) -> Result<RunConfig, CliError> {
        match parse(["consul-lock", "run"].iter().chain(args))? {
            Job::Run(config) => Ok(*config),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_become_settings() {
        let flags = "--key=shared/billing --name=billing --node=vms --ttl=30s --lock-delay=1s \
            --behavior=delete --check=a,b --check=c --service-check=d --value=v --wait=5s \
            --retries=0 --retry-interval=100ms --max-hold=1h --restart --grace=10s \
            --pass-consul-token -- pay --all";
        let settings = run(&flags.split_whitespace().collect::<Vec<_>>()).unwrap().settings;
        assert_eq!(settings.key.as_str(), "shared/billing");
        assert_eq!((settings.name.as_str(), settings.node.as_str()), ("billing", "vms"));
        assert_eq!((settings.lock.ttl, settings.lock.lock_delay), (30 * SECOND, SECOND));
        assert_eq!((settings.lock.behavior, settings.lock.value.as_str()), (Behavior::Delete, "v"));
        assert_eq!((settings.wait, settings.try_once), (Some(5 * SECOND), false));
        assert_eq!(settings.lock.max_hold, Some(3600 * SECOND));
        assert_eq!(settings.lock.node_checks, ["a", "b", "c"]);
        assert_eq!(settings.lock.service_checks, ["d"]);
        assert_eq!((settings.retries, settings.retry_interval), (Some(0), SECOND / 10));
        assert_eq!((settings.restart, settings.pass_consul_token), (true, true));
        assert_eq!(settings.notice.grace(), 10 * SECOND);
        assert_eq!(settings.command, ["pay", "--all"]);
    }

    #[test]
    fn holder_is_called_as_its_command_if_it_has_no_name() {
        let called = |program| run(&["--key=k", "--", program]).unwrap().settings.name;
        assert_eq!(called("/opt/pay"), "pay");
        assert_eq!(called("./pay all!"), "pay-all-");
    }

    #[test]
    fn bad_input_names_the_flag_and_what_is_allowed() {
        for (flags, flag, allowed) in [
            ("-- x", "--key", "required"),
            ("--key=a//b -- x", "--key", "may be empty"),
            ("--key=k", "<CMD>", "required"),
            ("--key=k --name=a/b -- x", "--name", "1 to 64 characters"),
            ("--key=k --node= -- x", "--node", "1 to 64 characters"),
            ("--key=k --ttl=900ms -- x", "--ttl", "give 1s to 24h"),
            ("--key=k --ttl=15 -- x", "--ttl", "15s, 1m30s or 500ms"),
            ("--key=k --lock-delay=61s -- x", "--lock-delay", "give 0s to 1m"),
            ("--key=k --behavior=keep -- x", "--behavior", "release or delete"),
            ("--key=k --check=a, -- x", "--check", "1 to 256 characters"),
            ("--key=k --session=mine -- x", "--session", "such as adf4238a"),
            ("--key=k --retries=-1 -- x", "--retries", "is not in 0.."),
            ("--key=k --retry-interval=1ms -- x", "--retry-interval", "give 100ms to 1h"),
            ("--key=k --wait=0s -- x", "--wait", "give 1s to"),
            ("--key=k --wait=5s --try-once -- x", "--try-once", "cannot be used with"),
            ("--key=k --max-hold=0s -- x", "--max-hold", "give 1s to"),
            ("--key=k --ttl=10s -- x", "--grace 5s", "--ttl 12s or more, or --grace 4s or less"),
            ("--key=k --restart=perhaps -- x", "--restart", "true or false"),
            ("--key=k --log=loud -- x", "--log", "error, warn, info"),
        ] {
            let error = run(&flags.split_whitespace().collect::<Vec<_>>()).unwrap_err();
            let error = error.to_string();
            assert!(error.contains(flag) && error.contains(allowed), "{flags}: {error}");
        }
        let long = format!("--value={}", "x".repeat(VALUE_MAX_CHARS + 1));
        let error = run(&["--key=k", &long, "--", "x"]).unwrap_err().to_string();
        assert!(error.contains("at most 4096"), "{error}");
    }
}
