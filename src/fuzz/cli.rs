//! The command line.

use crate::{
    agent::{LockSettings, Notice},
    cli::{self, CliError, Job},
    names::Key,
};
use std::time::Duration;

/// Stands in the corpus where a secret does.
const SECRET: &str = "s3cret";
/// What a secret is given by.
const FLAGS: [&str; 3] = ["--consul-http-token=", "--consul-http-auth=", ADDRESS];
const ADDRESS: &str = "--consul-http-addr=";

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A program's name and its arguments, one in a line.
pub(super) fn command_line(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let args: Vec<&str> = text.split('\n').collect();
    // Whoever names a device as a file of his waits for it.
    if ["/dev", "/proc", "/sys"].iter().any(|folder| text.contains(folder)) {
        return;
    }
    let outcome = cli::parse(&args);
    // What a terminal would act on is left out of what is shown, and what stood around it meets.
    let is_plain = !args.iter().any(|arg| arg.contains(char::is_control));
    if is_plain && is_secret(&args) {
        let shown = match &outcome {
            Ok(job) => format!("{job:?}"),
            Err(error) => format!("{error} {error:?}"),
        };
        assert!(!shown.contains(SECRET), "{args:?}: {shown}");
    }
    match outcome {
        Ok(job) => validated(&job),
        Err(error) => assert!(!said(&error).is_empty(), "{args:?}"),
    }
}

/// Whether every one that stands there is told as one, and to a command that takes it.
fn is_secret(args: &[&str]) -> bool {
    let takes = args.get(1).is_some_and(|one| ["controller", "run", "agent"].contains(one));
    let is_told = |arg: &str| {
        // In an address it is one in front of the host; elsewhere, and in a socket's path, it is a name.
        let is_user = !arg.contains("=unix://") && arg.contains(&format!("{SECRET}@"));
        FLAGS.iter().any(|flag| arg.starts_with(flag) && (*flag != ADDRESS || is_user))
    };
    takes && !args.contains(&"--") && args.iter().all(|arg| is_told(arg) || !arg.contains(SECRET))
}

fn said(error: &CliError) -> String {
    error.to_string()
}

/// Nothing below doubts these again.
fn validated(job: &Job) {
    match job {
        Job::Run(config) => {
            lock(&config.settings.lock);
            assert!(Notice::new(config.settings.lock.ttl, config.settings.notice.grace()).is_ok());
            assert!(is_key(&config.settings.key) && !config.settings.command.is_empty());
        }
        Job::Agent(config) => {
            lock(&config.settings.lock);
            assert!(Notice::new(config.settings.lock.ttl, config.settings.grace).is_ok());
            assert!(config.settings.key.iter().all(is_key));
            assert!(config.settings.key.is_some() || config.settings.claim.is_some());
        }
        Job::Controller(config) => {
            let (timings, prefix) = (&config.timings, &config.key_prefix);
            assert!(timings.retry() < timings.renew_deadline());
            assert!(timings.renew_deadline() < timings.duration());
            let longest = format!("{prefix}/{}/{}", "n".repeat(63), "c".repeat(63));
            assert!(Key::new(&longest).is_ok(), "no room for a claim below {prefix}");
        }
        Job::Guard(_) | Job::Kubectl(_) | Job::Completion(_) | Job::Man(..) | Job::Crd => {}
    }
}

fn lock(settings: &LockSettings) {
    assert!((SECOND..=DAY).contains(&settings.ttl), "{settings:?}");
    assert!(settings.lock_delay <= 60 * SECOND, "{settings:?}");
    assert!(settings.max_hold.is_none_or(|span| span >= SECOND), "{settings:?}");
}

fn is_key(key: &Key) -> bool {
    Key::new(key.as_str()).as_ref() == Ok(key)
}
