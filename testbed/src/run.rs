//! Short commands: run to their end, within a time limit.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::process::BedError;
use crate::wait::wait_for;

/// Runs a command that must succeed, and returns what it printed. After `allowed` it is killed.
///
/// # Errors
/// It could not be started, failed, or took too long; with what it said on stderr.
pub fn run(command: &mut Command, allowed: Duration) -> Result<String, BedError> {
    let line = line_of(command);
    let spawned =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.map_err(|source| BedError::Spawn { name: line.clone(), source })?;
    // Read while it runs: a pipe that nobody empties would hold it up.
    let (stdout, stderr) = (drain(child.stdout.take()), drain(child.stderr.take()));
    let ended = wait_for(format!("`{line}`"), allowed, || child.try_wait().transpose());
    if ended.is_err() {
        // It may end by itself right now; then there is nothing to kill.
        let _ = child.kill();
        let _ = child.wait();
    }
    let status = ended??;
    let (stdout, stderr) = (collect(stdout)?, collect(stderr)?);
    match status.success() {
        true => Ok(stdout),
        false => Err(BedError::Failed { line, status, output: stderr }),
    }
}

/// The command in one line; of a script its first.
fn line_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let first_line = |word: &OsStr| match word.to_string_lossy().split_once('\n') {
        Some((first, _)) => format!("'{first} ...'"),
        None => word.to_string_lossy().into_owned(),
    };
    words.map(first_line).collect::<Vec<_>>().join(" ")
}

type Drain = thread::JoinHandle<io::Result<Vec<u8>>>;

fn drain(pipe: Option<impl Read + Send + 'static>) -> Drain {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.ok_or(io::ErrorKind::BrokenPipe)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    })
}

fn collect(drain: Drain) -> io::Result<String> {
    let bytes = drain.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, allowed: Duration) -> Result<String, BedError> {
        run(Command::new("sh").args(["-c", script]), allowed)
    }

    #[test]
    fn hands_out_more_than_a_pipe_holds() {
        let text = shell("head -c 300000 /dev/zero | tr '\\0' x", Duration::from_secs(20)).unwrap();
        assert_eq!(text.len(), 300_000);
    }

    #[test]
    fn a_failure_says_what_failed_and_why() {
        let error = shell("echo no >&2; exit 3", Duration::from_secs(20)).unwrap_err();
        let said = error.to_string();
        assert!(said.contains("`sh -c echo no") && said.ends_with("no\n"), "{said}");
    }

    #[test]
    fn what_takes_too_long_is_ended() {
        let error = shell("exec sleep 600", Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, BedError::TimedOut(_)), "{error}");
    }
}
