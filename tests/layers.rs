//! Who may use whom: reads the sources and fails on a use that goes up or sideways.
//!
//! The table below is the architecture. Whoever wants another edge changes the table, in a commit
//! that says why.

#![expect(clippy::unwrap_used, reason = "a test may panic, and so may its helpers")]

use std::{
    fmt,
    path::{Path, PathBuf},
};

/// A module of `src/` and the modules of ours that it may use.
const LAYERS: &[(&str, &[&str])] = &[
    ("clock", &[]),
    ("names", &[]),
    ("api", &["clock", "names"]),
    ("lock", &["api", "clock", "names"]),
    ("election", &["api", "clock", "lock", "names"]),
    ("telemetry", &["api", "clock", "lock", "names"]),
    ("consul", &["clock", "names"]),
    ("keeper", &["clock", "consul", "election", "lock", "names", "telemetry"]),
    ("holder", &["clock", "consul", "keeper", "lock", "names", "telemetry"]),
    ("replicas", &["api", "clock", "names", "telemetry"]),
    ("controller", &["api", "clock", "consul", "election", "keeper", "lock", "names", "telemetry"]),
    ("agent", &["api", "clock", "consul", "holder", "keeper", "lock", "names", "telemetry"]),
    // What it says of a holder or of a right is what the controller would say.
    ("kubectl", &["api", "clock", "consul", "controller", "election", "keeper", "lock", "names"]),
    ("locks", &["api", "clock", "consul", "holder", "keeper", "lock", "names", "telemetry"]),
    (
        "cli",
        &[
            "agent",
            "api",
            "clock",
            "consul",
            "holder",
            "keeper",
            "kubectl",
            "names",
            "replicas",
            "telemetry",
        ],
    ),
    // Not in the binary: it hands any bytes to whoever reads what others wrote, from the flags down.
    ("fuzz", &["agent", "api", "cli", "consul", "controller", "kubectl", "locks", "names"]),
];

/// Files outside every layer: the map of the house, and the one that joins everything.
const OUTSIDE: &[&str] = &["lib", "main"];

/// Crates that only one module may name.
const PRIVATE_CRATES: &[(&str, &str)] = &[("reqwest", "consul")];

#[derive(Debug, PartialEq)]
struct Violation {
    file: PathBuf,
    line: usize,
    what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.what)
    }
}

#[test]
fn nobody_uses_what_lies_above() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    assert!(!files.is_empty(), "no sources under {}", root.display());
    let violations: Vec<String> = files
        .iter()
        .flat_map(|path| {
            let text = std::fs::read_to_string(path).unwrap();
            check(path.strip_prefix(&root).unwrap(), &text)
        })
        .map(|violation| violation.to_string())
        .collect();
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn an_upward_use_is_found_however_it_is_written() {
    for text in [
        "use crate::keeper::Keepers;",
        "use crate::{clock::Instant, keeper};",
        "use crate::{\n    clock::Instant,\n    keeper::{self, Wanted},\n};",
        "fn f(k: crate::keeper::Wanted) {}",
        "use super::super::keeper;",
        "pub(crate) use crate::{api::{Phase, x::{y}}, keeper};",
    ] {
        let found = check(Path::new("lock/machine.rs"), text);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert!(found[0].what.contains("lock may not use keeper"), "{found:?}");
    }
}

#[test]
fn lawful_uses_and_comments_are_left_alone() {
    for text in [
        "use crate::{clock::Instant, names::Key};",
        "use crate::lock::Other;",
        "//! See [`crate::keeper`].",
        "let x = 1; // crate::keeper would know",
        "use super::keeper_of;",
        "use crate::EndReason;",
    ] {
        assert_eq!(check(Path::new("lock/machine.rs"), text), [], "{text}");
    }
}

#[test]
fn private_crates_and_unknown_modules_are_found() {
    let found = check(Path::new("keeper/mod.rs"), "\nuse reqwest::Client;");
    assert_eq!(found[0].line, 2);
    assert!(found[0].what.contains("only consul may name reqwest"));
    assert_eq!(check(Path::new("consul/http.rs"), "use reqwest::Client;"), []);
    let found = check(Path::new("utils.rs"), "");
    assert!(found[0].what.contains("not in the table"));
}

#[test]
fn controller_and_agent_never_meet_and_only_main_uses_cli() {
    assert_eq!(check(Path::new("agent/mod.rs"), "use crate::controller::x;").len(), 1);
    assert_eq!(check(Path::new("controller/mod.rs"), "use crate::agent::x;").len(), 1);
    assert_eq!(check(Path::new("controller/mod.rs"), "use crate::cli::x;").len(), 1);
    assert_eq!(check(Path::new("main.rs"), "use consul_lock::cli;"), []);
}

/// What the crate shows to others: nothing else of it is meant for them. Who adds to it promises it.
const FACE: &[&str] = &[
    "AcquireError",
    "CloseError",
    "ConnectError",
    "Connection",
    "FencingToken",
    "Held",
    "Instant",
    "Key",
    "KeyError",
    "LockDelay",
    "Locks",
    "Name",
    "Prefix",
    "ReleaseError",
    "Settings",
    "SettingsError",
    "Ttl",
];

#[test]
fn crate_shows_its_face_and_nothing_else() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs");
    let code = without_comments(&std::fs::read_to_string(root).unwrap());
    assert_eq!(shown(&code), FACE, "the module `locks`, or #[doc(hidden)], is for everything else");
}

#[test]
fn what_is_shown_is_found_however_it_is_written() {
    let hidden = "#[doc(hidden)]\npub mod a;\nmod b;\npub(crate) mod c;\n";
    assert_eq!(shown(hidden), Vec::<String>::new());
    assert_eq!(shown("pub mod a;"), ["a"]);
    assert_eq!(shown("pub fn f() {}\n#[doc(hidden)]\npub use a::B;"), ["f"]);
    assert_eq!(
        shown("#[doc(inline)]\npub use a::{\n    B, b::C,\n};\npub use d::D;"),
        ["B", "C", "D"]
    );
}

/// The names that a crate's root makes public and does not hide, sorted.
fn shown(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut hidden = false;
    for item in code.split_inclusive([';', '}']) {
        let (attributes, item) = item.split_at(item.find("pub ").unwrap_or(item.len()));
        hidden |= attributes.contains("#[doc(hidden)]");
        let Some(item) = item.strip_prefix("pub ") else {
            hidden &= !attributes.contains([';', '}']);
            continue;
        };
        if !std::mem::take(&mut hidden) {
            let item = item.trim_end_matches([';', '}']);
            let (kind, rest) = item.split_once(' ').unwrap_or((item, ""));
            let rest = if kind == "use" { rest.rsplit('{').next().unwrap_or(rest) } else { rest };
            let parts = rest.split(',').map(str::trim).filter(|part| !part.is_empty());
            let last = |part: &str| part.rsplit("::").next().unwrap_or(part).to_owned();
            names.extend(parts.map(|part| identifier(&last(part)).to_owned()));
        }
    }
    names.sort();
    names
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|end| end == "rs") {
            files.push(path);
        }
    }
}

/// Everything that is wrong with one file; `path` is relative to `src/`.
fn check(path: &Path, text: &str) -> Vec<Violation> {
    let module = module_of(path);
    if OUTSIDE.contains(&module.as_str()) {
        return Vec::new();
    }
    let violation = |line, what| Violation { file: path.to_owned(), line, what };
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == module) else {
        return vec![violation(1, format!("{module} is not in the table of tests/layers.rs"))];
    };
    let code = without_comments(text);
    let upward = uses(&code, depth_of(path))
        .into_iter()
        .filter(|(_, used)| *used != module && !allowed.contains(&used.as_str()))
        .map(|(at, used)| violation(line_of(&code, at), format!("{module} may not use {used}")));
    let private = PRIVATE_CRATES
        .iter()
        .filter(|(_, owner)| *owner != module)
        .flat_map(|(name, owner)| {
            words(&code, name)
                .into_iter()
                .map(move |at| (at, format!("only {owner} may name {name}")))
        })
        .map(|(at, what)| violation(line_of(&code, at), what));
    upward.chain(private).collect()
}

/// The module right below the crate's root that the file belongs to.
fn module_of(path: &Path) -> String {
    let first = path.iter().next().unwrap().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// How many `super::` lead from the file's module to the crate's root.
fn depth_of(path: &Path) -> usize {
    let parts = path.iter().count();
    if path.ends_with("mod.rs") { parts - 1 } else { parts }
}

/// The code with its line comments blanked, so that positions stay true.
fn without_comments(text: &str) -> String {
    text.lines()
        .map(|line| match line.find("//") {
            // A URL in a text is no comment.
            Some(at) if !line[..at].ends_with(':') => &line[..at],
            _ => line,
        })
        .collect::<Vec<_>>()
        .join("\n")
}

/// The modules below the root that the code names, with the positions.
fn uses(code: &str, depth: usize) -> Vec<(usize, String)> {
    let from_root = words(code, "crate")
        .into_iter()
        .filter_map(|at| code[at..].strip_prefix("crate::").map(|rest| (at, rest)))
        .flat_map(|(at, rest)| heads(rest).into_iter().map(move |name| (at, name)));
    let by_super = words(code, "super").into_iter().filter_map(|at| {
        let mut rest = &code[at..];
        let mut steps = 0;
        while let Some(behind) = rest.strip_prefix("super::") {
            rest = behind;
            steps += 1;
        }
        (steps >= depth).then(|| (at, identifier(rest).to_owned()))
    });
    from_root
        .chain(by_super)
        .filter(|(_, name)| LAYERS.iter().any(|(layer, _)| layer == name))
        .collect()
}

/// The first names of a path or of each path in a brace group.
fn heads(rest: &str) -> Vec<String> {
    let Some(group) = rest.strip_prefix('{') else {
        return vec![identifier(rest).to_owned()];
    };
    let (mut names, mut depth, mut at_head) = (Vec::new(), 1, true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => at_head = true,
            c if c.is_whitespace() => {}
            _ if at_head => {
                names.push(identifier(&group[at..]).to_owned());
                at_head = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names
}

fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
    &text[..end]
}

/// Where `word` stands by itself.
fn words(code: &str, word: &str) -> Vec<usize> {
    let part_of_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    code.match_indices(word)
        .map(|(at, _)| at)
        .filter(|at| {
            let before = code[..*at].chars().next_back();
            let behind = code[at + word.len()..].chars().next();
            // A path's later parts (`pub(in crate::x)` aside) follow `::`; `$crate` is a macro's.
            !before.is_some_and(|c| part_of_word(c) || c == ':' || c == '$')
                && !behind.is_some_and(part_of_word)
        })
        .collect()
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}
