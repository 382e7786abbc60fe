//! Every relative link of a page leads to a file that is there, and to a heading of it.

use std::{
    collections::BTreeSet,
    path::{Component, Path, PathBuf},
};

use super::{below, pages, prose, read, root};

/// What a page links to: `[words](target)`.
fn targets(page: &str) -> Vec<String> {
    // Code may look like a link.
    let text: String = prose(page).split('`').step_by(2).collect();
    let starts = text.match_indices("](").map(|(at, _)| at + 2);
    starts.filter_map(|at| text[at..].split_once(')').map(|(to, _)| to.to_owned())).collect()
}

/// The anchors of a page's headings, as GitHub and mdbook make them.
fn anchors(page: &str) -> BTreeSet<String> {
    let text = prose(page);
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let mut found = BTreeSet::new();
    for heading in headings {
        let words = heading.trim_start_matches('#').trim();
        // A link's words are shown, and not where it leads.
        let mut shown = String::new();
        let mut rest = words;
        while let Some((before, behind)) = rest.split_once("](") {
            shown += before;
            rest = behind.split_once(')').map_or("", |(_, rest)| rest);
        }
        shown += rest;
        let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
        found.insert(
            shown.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-"),
        );
    }
    found
}

/// What is wrong with one link of a page.
fn broken(page: &Path, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let to = match file {
        "" => page.to_owned(),
        file => flat(&page.with_file_name(file)),
    };
    if !root().join(&to).exists() {
        return Some(format!("{}: {target}: there is no {}", page.display(), to.display()));
    }
    let found = anchor.is_empty() || anchors(&read(&to)).contains(anchor);
    (!found).then(|| format!("{}: {target}: no such heading", page.display()))
}

/// The path without `..`, so that a link that leaves the repository is none.
fn flat(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut flat, part| {
        match part {
            Component::ParentDir if flat.pop() => {}
            part => flat.push(part),
        }
        flat
    })
}

#[test]
fn every_link_and_anchor_of_what_is_there_to_read_leads_somewhere() {
    let wrong: Vec<String> = pages()
        .iter()
        .flat_map(|page| {
            let targets = targets(&read(page));
            targets.iter().filter_map(|to| broken(page, to)).collect::<Vec<_>>()
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_link_to_nowhere_is_found() {
    let page = Path::new("docs/src/index.md");
    assert_eq!(broken(page, "concepts.md"), None);
    assert_eq!(broken(page, "../../README.md#licence"), None);
    assert_eq!(broken(page, "https://consul.io/#x"), None);
    for (to, what) in [
        ("concept.md", "there is no docs/src/concept.md"),
        ("concepts.md#nothing-of-the-kind", "no such heading"),
        ("../../../etc/passwd", "there is no"),
    ] {
        assert!(broken(page, to).unwrap_or_default().contains(what), "{to}");
    }
    assert_eq!(targets("[a](b.md)\n```\n[c](d.md)\n```\n"), ["b.md"]);
    assert!(
        anchors("## What it *is*, `run` and [more](x.md)\n").contains("what-it-is-run-and-more")
    );
}

#[test]
fn every_page_of_the_book_is_in_its_table_of_contents_once() {
    let mut listed = targets(&read("docs/src/SUMMARY.md"));
    let mut there = Vec::new();
    below(&root().join("docs/src"), "md", &mut there);
    let base = Path::new("docs/src");
    let mut there: Vec<String> = there
        .iter()
        .map(|page| page.strip_prefix(base).unwrap().to_str().unwrap().to_owned())
        .filter(|page| page != "SUMMARY.md")
        .collect();
    listed.sort();
    there.sort();
    assert_eq!(listed, there);
}
