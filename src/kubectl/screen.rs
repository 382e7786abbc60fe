//! Where answers go, and how: a table or text for people, JSON or YAML for programs; colour only
//! where somebody looks at a terminal.

use std::io::{self, BufRead, IsTerminal, Write};

use serde::Serialize;

use super::KubectlError;

/// How an answer is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// A table or text.
    #[default]
    Table,
    /// A table with more columns.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// What a piece of text means, by which it is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Good,
    Busy,
    Bad,
}

/// Whether text is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Paint {
    colour: bool,
}

impl Paint {
    #[cfg(any(test, fuzzing))]
    pub(super) const PLAIN: Paint = Paint { colour: false };
    #[cfg(test)]
    pub(super) const COLOUR: Paint = Paint { colour: true };

    pub(super) fn with(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Plain => None,
            Tone::Good => Some(32),
            Tone::Busy => Some(33),
            Tone::Bad => Some(31),
        };
        match code.filter(|_| self.colour) {
            Some(code) => format!("\x1b[{code}m{text}\x1b[0m"),
            None => text.to_owned(),
        }
    }
}

/// Standard output, and standard input for questions.
pub(super) struct Screen {
    pub(super) format: Format,
    pub(super) paint: Paint,
}

impl Screen {
    /// Coloured if a terminal shows it and nobody asked for none (<https://no-color.org>).
    pub(super) fn new(format: Format) -> Screen {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Screen {
            format,
            paint: Paint { colour: io::stdout().is_terminal() && !no_colour && !dumb },
        }
    }

    /// Writes `value` as the format says, or `text` of it for people.
    pub(super) fn show<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce(Paint) -> String,
    ) -> Result<(), KubectlError> {
        match self.format {
            Format::Table | Format::Wide => self.say(&text(self.paint)),
            Format::Json => {
                let json = serde_json::to_string_pretty(value);
                self.say(&format!("{}\n", json.map_err(KubectlError::Encode)?))
            }
            Format::Yaml => {
                let yaml = serde_saphyr::to_string(value);
                self.say(&yaml.map_err(|error| KubectlError::EncodeYaml(error.to_string()))?)
            }
        }
    }

    /// Writes one object as a line of its own, or `line` of it for people.
    pub(super) fn stream<T: Serialize>(
        &self,
        value: &T,
        line: impl FnOnce(Paint) -> String,
    ) -> Result<(), KubectlError> {
        match self.format {
            Format::Table | Format::Wide => self.say(&line(self.paint)),
            Format::Json => {
                let json = serde_json::to_string(value).map_err(KubectlError::Encode)?;
                self.say(&format!("{json}\n"))
            }
            Format::Yaml => {
                let yaml = serde_saphyr::to_string(value);
                let yaml = yaml.map_err(|error| KubectlError::EncodeYaml(error.to_string()))?;
                self.say(&format!("---\n{yaml}"))
            }
        }
    }

    /// Writes text as it is.
    pub(super) fn say(&self, text: &str) -> Result<(), KubectlError> {
        let mut out = io::stdout().lock();
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        written.map_err(KubectlError::Output)
    }

    /// Asks a question that `y` or `yes` agrees to; anything else does not.
    pub(super) fn agrees(&self, question: &str) -> Result<bool, KubectlError> {
        if !io::stdin().is_terminal() {
            return Err(KubectlError::NobodyToAsk);
        }
        eprint!("{question} [y/N] ");
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer).map_err(KubectlError::Input)?;
        Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
    }
}
