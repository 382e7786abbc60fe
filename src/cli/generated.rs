//! What is made of the command line's own definition: shell completion and man pages.

use std::{ffi::OsString, io};

use clap::Command;
use clap_complete::{CompletionCandidate, Shell, engine};
use clap_mangen::Man;

/// Cobra's `ShellCompDirectiveNoFileComp`: names of files are no answer.
const NO_FILES: &str = ":4\n";

/// A script that completes the command in a shell.
pub(super) fn completion(mut command: Command, shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, &mut script);
    script
}

/// What the last of the words may become, as cobra's `__complete` says it and kubectl expects it of
/// `kubectl_complete-NAME`: a line for each, with its help behind a tab, and then what else the
/// shell is to do (<https://github.com/spf13/cobra/blob/main/site/content/completions/_index.md>).
///
/// # Errors
/// The words end before the first.
pub(super) fn candidates(mut command: Command, words: Vec<OsString>) -> io::Result<Vec<u8>> {
    let last = words.len().saturating_sub(1);
    let found = engine::complete(&mut command, words, last, None)?;
    let line = |one: &CompletionCandidate| {
        let value = one.get_value().to_string_lossy();
        let help = one.get_help().map(ToString::to_string).unwrap_or_default();
        match help.lines().next() {
            Some(help) => format!("{value}\t{help}\n"),
            None => format!("{value}\n"),
        }
    };
    let shown = found.iter().filter(|one| !one.is_hide_set()).map(line);
    Ok(shown.chain([NO_FILES.to_owned()]).collect::<String>().into_bytes())
}

/// A page for the command and each of its subcommands: file name and content.
pub(super) fn man_pages(command: Command) -> Vec<(String, Vec<u8>)> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    collect(&command, &mut pages);
    pages
}

fn collect(command: &Command, pages: &mut Vec<(String, Vec<u8>)>) {
    for subcommand in command.get_subcommands().filter(|one| !one.is_hide_set()) {
        collect(subcommand, pages);
    }
    let name = command.get_display_name().unwrap_or(command.get_name());
    let man = Man::new(command.clone());
    let mut page = Vec::new();
    man.render(&mut page).expect("memory takes everything");
    pages.push((format!("{name}.1"), page));
}
