//! `make demo`: the real servers, two replicas of the controller, and a story to watch.
//!
//! Every line behind a `$` is what was really run, by a shell, with the variables that the first
//! step prints. What the story promises is checked on the way, so it is a test as well: it exits
//! with 1 and says what it expected as soon as something goes another way.
//!
//! On a terminal it stays up until Ctrl-C. However it ends, nothing is left: neither a process nor
//! a file.

mod interrupt;
mod screen;
mod stage;
mod story;

use std::io::{self, IsTerminal};
use std::mem::ManuallyDrop;
use std::path::PathBuf;

use testbed::{BedError, TimedOut, say};

use interrupt::Interrupt;
use screen::Screen;
use stage::Stage;

/// Why the story ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum DemoError {
    /// The controller was not built.
    #[error("{} is missing: build it with `cargo build` (`make demo` does)", .0.display())]
    NoController(PathBuf),
    /// A server did not do as it was told.
    #[error(transparent)]
    Bed(#[from] BedError),
    /// Something did not happen in time.
    #[error(transparent)]
    TimedOut(#[from] TimedOut),
    /// A command failed.
    #[error("`{line}` ended with {status}\n{output}")]
    Command {
        /// As it was typed.
        line: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it printed.
        output: String,
    },
    /// It went another way than the story has it.
    #[error("expected {expected}\nbut saw {seen}")]
    Unexpected {
        /// What should have been.
        expected: String,
        /// What was.
        seen: String,
    },
    /// A file, or the terminal.
    #[error("the demo cannot go on: {0}")]
    Io(#[from] io::Error),
}

/// Runs the demo and ends the process with its exit code: 0 when all went as told, 1 when not, 130
/// after Ctrl-C in the middle.
pub(super) fn run() -> ! {
    let code = match play() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("\nThe demo failed: {error}");
            1
        }
    };
    testbed::reaper::exit(code)
}

const OPENING: &str = "
A lock is a key in Consul. A ConsulLock asks for one on behalf of a Kubernetes cluster. Here you see
who gets it, who waits, and what happens when a holder goes. Behind each $ is what is really typed, and
each => says what came of it. docs/src/tutorials/demo.md has it with explanations.";

fn play() -> Result<(), DemoError> {
    let interrupt = Interrupt::watch()?;
    let mut screen = Screen::new();
    screen.text(OPENING)?;
    // Never dropped: the reaper ends all at once, which is faster than one after the other.
    let mut stage = ManuallyDrop::new(Stage::build(&mut screen)?);
    if let Err(error) = story::tell(&mut stage, &mut screen) {
        stage.print_logs();
        return Err(error);
    }
    screen.step("Look around", &["In another terminal:"])?;
    stage.look_around(&screen)?;
    if io::stdin().is_terminal() && io::stdout().is_terminal() {
        screen.text("\nEverything stays up until Ctrl-C.")?;
        interrupt.wait_as_the_end();
    }
    screen.text("\nThis is no terminal, so everything is stopped now.")?;
    say("stopping the servers");
    Ok(())
}
