//! What is done with any bytes in the place of text that others wrote: the bodies of the fuzz targets.
//!
//! Compiled for tests, and for `cargo fuzz` (`make fuzz`), whose targets in `fuzz/` call what is
//! listed in [`TARGETS`] and nothing else. A test runs the same functions over the corpus that is
//! checked in, `fuzz/corpus/<target>/`, one input in a file. What an input must not do is said by the
//! assertions here, and beside what is private in the modules named `fuzzed`.

mod cli;
mod durations;
mod keys;

/// A target: its name, and what it does with an input. It panics over one that shows a bug.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[
    ("claims", claims),
    ("cli", cli::command_line),
    ("consul_replies", crate::consul::http::fuzzed::reply),
    ("durations", durations::duration),
    ("holders", holders),
    ("keys", keys::key),
    ("orders", crate::agent::fuzzed::packet),
];

/// Runs the target of this name.
///
/// # Panics
/// The input shows a bug; or there is no such target.
pub fn run(target: &str, input: &[u8]) {
    let found = TARGETS.iter().find(|(name, _)| *name == target);
    let (_, body) = found.expect("a target of fuzz/ is one of the table");
    body(input);
}

/// A `ConsulLock` as the API server may hold it: its spec, and the status that is read back.
fn claims(input: &[u8]) {
    let Ok(claim) = serde_json::from_slice(input) else { return };
    crate::controller::fuzzed::claim(&claim);
    crate::kubectl::fuzzed::claim(&claim);
}

/// The name of the session that holds a key, in the first line, and the key's value.
fn holders(input: &[u8]) {
    let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let Ok(session) = std::str::from_utf8(&input[..end]) else { return };
    let value = input.get(end + 1..).unwrap_or_default();
    crate::controller::fuzzed::holder(session, value);
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        fs,
        panic::{AssertUnwindSafe, catch_unwind},
        path::{Path, PathBuf},
    };

    use super::*;

    fn repository() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR"))
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        let files = fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
        files.map(|file| file.unwrap().path()).collect()
    }

    /// The files that the target panics over.
    fn crashes(body: fn(&[u8]), folder: &Path) -> Vec<PathBuf> {
        let survives = |file: &PathBuf| {
            let input = fs::read(file).unwrap();
            catch_unwind(AssertUnwindSafe(|| body(&input))).is_ok()
        };
        files(folder).into_iter().filter(|file| !survives(file)).collect()
    }

    #[test]
    fn no_input_of_the_corpus_shows_a_bug() {
        let mut found = Vec::new();
        for (name, body) in TARGETS {
            let folder = repository().join("fuzz/corpus").join(name);
            assert!(
                files(&folder).len() >= 5,
                "the corpus of {name} is too small to mean something"
            );
            found.extend(crashes(*body, &folder));
        }
        assert!(found.is_empty(), "what was panicked over: {found:#?}");
    }

    #[test]
    fn an_input_that_shows_a_bug_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (bad, good) = (folder.path().join("bad"), folder.path().join("good"));
        fs::write(&bad, "planted").unwrap();
        fs::write(good, "well").unwrap();
        assert_eq!(crashes(|input| assert_ne!(input, b"planted"), folder.path()), [bad]);
    }

    #[test]
    fn every_target_is_run_by_cargo_fuzz_and_has_a_corpus() {
        let names: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        let stems = |folder: &str| -> BTreeSet<String> {
            let files = files(&repository().join(folder)).into_iter();
            files.map(|file| file.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
        };
        assert_eq!(stems("fuzz/fuzz_targets"), names);
        assert_eq!(stems("fuzz/corpus"), names);
        let manifest = fs::read_to_string(repository().join("fuzz/Cargo.toml")).unwrap();
        for name in &names {
            assert!(manifest.contains(&format!("\"fuzz_targets/{name}.rs\"")), "{name}");
            let target = repository().join(format!("fuzz/fuzz_targets/{name}.rs"));
            let code = fs::read_to_string(target).unwrap();
            assert!(code.contains(&format!("fuzz::run({name:?}, ")), "{name}: {code}");
        }
    }
}
