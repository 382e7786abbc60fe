//! The flags that say how a lock is held: those of `run` and of `agent`.

use std::time::Duration;

use clap::Args;

use super::{duration, log_format};
use crate::{
    agent::LockSettings,
    api::{GoDuration, VALUE_MAX_CHARS},
    consul::Behavior,
    telemetry::logs::{Filter, Format},
};

/// The longest lock-delay that Consul grants.
const LONGEST_DELAY: Duration = Duration::from_secs(60);
pub(super) const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 3600);
const YEAR: Duration = Duration::from_secs(8760 * 3600);

#[derive(Args)]
pub(super) struct LockFlags {
    /// How long the lock may be relied on after a renewal was sent: 1s to 24h, and no less than
    /// Consul allows (10s, unless it is configured otherwise)
    #[arg(long, env = "CONSUL_LOCK_TTL", value_name = "DURATION")]
    #[arg(default_value = "15s", value_parser = ttl)]
    pub(super) ttl: Duration,

    /// How long nobody gets the lock after it was lost; if it is shorter than the grace, the work
    /// has no longer to stop then. 0s to 60s. After a release the lock is free at once
    #[arg(long, env = "CONSUL_LOCK_LOCK_DELAY", value_name = "DURATION")]
    #[arg(default_value = "15s", value_parser = lock_delay)]
    lock_delay: Duration,

    /// What becomes of the key when the lock is lost: release or delete
    #[arg(long, env = "CONSUL_LOCK_BEHAVIOR", value_name = "WHAT")]
    #[arg(default_value = "release", value_parser = behavior)]
    behavior: Behavior,

    /// The lock is lost when this check of the session's node turns critical, too (comma list, or
    /// several times). With --node: an agent's node, whose checks these are
    #[arg(long, env = "CONSUL_LOCK_CHECK", value_name = "ID", value_delimiter = ',')]
    #[arg(value_parser = check)]
    check: Vec<String>,

    /// The same for a check of a service on that node
    #[arg(long, env = "CONSUL_LOCK_SERVICE_CHECK", value_name = "ID", value_delimiter = ',')]
    #[arg(value_parser = check)]
    service_check: Vec<String>,

    /// A text for others to read, written into the key
    #[arg(long, env = "CONSUL_LOCK_VALUE", value_name = "TEXT", default_value = "")]
    #[arg(hide_default_value = true, value_parser = value)]
    value: String,

    /// Stop the work and release the lock after this long; 1s to 8760h. Default: never
    #[arg(long, env = "CONSUL_LOCK_MAX_HOLD", value_name = "DURATION", value_parser = long)]
    max_hold: Option<Duration>,

    /// The time between the first signal and SIGKILL when the work has to stop. Both come before
    /// the lock may be relied on no longer, so this is less than half of the TTL
    #[arg(long, env = "CONSUL_LOCK_GRACE", value_name = "DURATION")]
    #[arg(default_value = "5s", value_parser = duration)]
    pub(super) grace: Duration,
}

#[derive(Args)]
pub(super) struct LogFlags {
    /// How log lines look: text or json
    #[arg(long = "log-format", env = "CONSUL_LOCK_LOG_FORMAT", value_name = "FORMAT")]
    #[arg(default_value = "text", value_parser = log_format, help_heading = "Log")]
    pub(super) format: Format,

    /// What is logged: a level, or a comma list of target=level
    #[arg(long, env = "CONSUL_LOCK_LOG", value_name = "FILTER", default_value = "warn")]
    #[arg(help_heading = "Log")]
    pub(super) log: Filter,
}

impl From<LockFlags> for LockSettings {
    fn from(flags: LockFlags) -> LockSettings {
        LockSettings {
            ttl: flags.ttl,
            lock_delay: flags.lock_delay,
            behavior: flags.behavior,
            node_checks: flags.check,
            service_checks: flags.service_check,
            value: flags.value,
            max_hold: flags.max_hold,
        }
    }
}

pub(super) fn is_in_names(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._-".contains(c)
}

pub(super) fn name(raw: &str) -> Result<String, String> {
    if (1..=64).contains(&raw.len()) && raw.chars().all(is_in_names) {
        Ok(raw.to_owned())
    } else {
        Err("a name has 1 to 64 characters, each a letter, a digit or one of . _ -".to_owned())
    }
}

fn check(raw: &str) -> Result<String, String> {
    if (1..=256).contains(&raw.chars().count()) {
        Ok(raw.to_owned())
    } else {
        Err("a check's ID has 1 to 256 characters".to_owned())
    }
}

fn value(raw: &str) -> Result<String, String> {
    match raw.chars().count() {
        0..=VALUE_MAX_CHARS => Ok(raw.to_owned()),
        chars => Err(format!("{chars} characters, at most {VALUE_MAX_CHARS} are allowed")),
    }
}

fn behavior(raw: &str) -> Result<Behavior, String> {
    match raw {
        "release" => Ok(Behavior::Release),
        "delete" => Ok(Behavior::Delete),
        _ => Err("give release or delete".to_owned()),
    }
}

fn ttl(raw: &str) -> Result<Duration, String> {
    between(raw, SECOND, DAY)
}

fn lock_delay(raw: &str) -> Result<Duration, String> {
    between(raw, Duration::ZERO, LONGEST_DELAY)
}

pub(super) fn long(raw: &str) -> Result<Duration, String> {
    between(raw, SECOND, YEAR)
}

pub(super) fn between(raw: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let span = duration(raw)?;
    if (least..=most).contains(&span) {
        Ok(span)
    } else {
        Err(format!("give {} to {}", GoDuration::from(least), GoDuration::from(most)))
    }
}
