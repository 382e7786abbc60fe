//! The book in `docs/`, the README and whatever else is there to read: what is generated of it is
//! current, its links lead somewhere, and what it says to type can be typed.

mod commands;
mod links;
mod reference;

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where the repository is.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every page that is there to read, relative to the repository.
fn pages() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"].map(PathBuf::from).into();
    for folder in ["docs", "charts", "examples"] {
        below(&root().join(folder), "md", &mut found);
    }
    found
}

/// The files below a folder whose name ends so, relative to the repository.
fn below(folder: &Path, end: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        // What mdbook builds.
        if path.is_dir() && path != root().join("docs/book") {
            below(&path, end, found);
        } else if path.extension().is_some_and(|extension| extension == end) {
            found.push(path.strip_prefix(root()).unwrap().to_owned());
        }
    }
    found.sort();
}

/// The fenced blocks of a page: what stands behind the fence, and the lines.
fn blocks(page: &str) -> Vec<(&str, String)> {
    let mut found = Vec::new();
    let mut open: Option<(&str, String)> = None;
    for line in page.lines() {
        match (line.trim_start().strip_prefix("```"), open.as_mut()) {
            (Some(_), Some(_)) => found.extend(open.take()),
            (Some(kind), None) => open = Some((kind.trim(), String::new())),
            (None, Some((_, text))) => *text += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block without an end: {open:?}");
    found
}

/// A page without its fenced blocks.
fn prose(page: &str) -> String {
    let mut fenced = false;
    let kept = page.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    });
    kept.map(|line| format!("{line}\n")).collect()
}
