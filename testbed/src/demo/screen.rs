//! How the story looks: numbered steps, commands, and what they print.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

/// Standard output, with colours if it is a terminal.
pub(super) struct Screen {
    coloured: bool,
    steps: u32,
}

const BOLD: &str = "1";
const DIM: &str = "2";
const GREEN: &str = "32";
const CYAN: &str = "36";

impl Screen {
    pub(super) fn new() -> Screen {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Screen { coloured: wanted && io::stdout().is_terminal(), steps: 0 }
    }

    /// The next step's headline, and why it is taken.
    pub(super) fn step(&mut self, title: &str, why: &[&str]) -> io::Result<()> {
        self.steps += 1;
        let headline = self.paint(BOLD, format!("{}. {title}", self.steps));
        self.text(format!("\n{headline}"))?;
        why.iter().try_for_each(|line| self.text(format!("   {line}")))?;
        self.text("")
    }

    /// A command, as one would type it.
    pub(super) fn command(&self, line: &str) -> io::Result<()> {
        self.text(format!("{} {}", self.paint(DIM, "$"), self.paint(CYAN, line)))
    }

    /// What the story waits for now, or another aside.
    pub(super) fn aside(&self, line: impl Display) -> io::Result<()> {
        self.text(self.paint(DIM, format!("   {line}")))
    }

    /// Something that went as it should.
    pub(super) fn good(&self, line: impl Display) -> io::Result<()> {
        self.text(self.paint(GREEN, format!("=> {line}")))
    }

    /// Bare text, and the end of its last line.
    pub(super) fn text(&self, text: impl Display) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{text}")?;
        out.flush()
    }

    fn paint(&self, colour: &str, text: impl Display) -> String {
        match self.coloured {
            true => format!("\x1b[{colour}m{text}\x1b[0m"),
            false => text.to_string(),
        }
    }
}
