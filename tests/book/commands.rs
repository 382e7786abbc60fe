//! What the pages say to type: our commands have those subcommands and flags, `make` has those
//! targets, the chart has those values, files and tests are there, and a ConsulLock means something.

use std::path::PathBuf;

use clap::Command;
use consul_lock::{
    api::{ConsulLock, ConsulLockSpec},
    cli,
};
use kube::CustomResourceExt;
use serde_json::Value;

use super::{blocks, pages, prose, read, root};

/// Splits a line into commands of words, as a shell does where it matters here.
fn split(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let (mut word, mut quote) = (None::<String>, None);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some('"') | None, '\\') => word.get_or_insert_default().extend(chars.next()),
            (None, '\'' | '"') => {
                quote = Some(c);
                let _ = word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, c) if c.is_whitespace() || ";|&()".contains(c) => {
                commands.last_mut().unwrap().extend(word.take());
                if !c.is_whitespace() {
                    commands.push(Vec::new());
                }
            }
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    commands.last_mut().unwrap().extend(word);
    commands.into_iter().map(without_what_comes_before).filter(|words| !words.is_empty()).collect()
}

/// A command without assignments and a shell's own words in front.
fn without_what_comes_before(words: Vec<String>) -> Vec<String> {
    let before = |word: &String| {
        let (name, is_set) =
            word.split_once('=').map_or((word.as_str(), false), |(n, _)| (n, true));
        ["do", "then", "sudo", "exec", "!"].contains(&name)
            || is_set && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
    };
    words.into_iter().skip_while(before).collect()
}

/// The lines of a page's blocks that are for a shell: those behind a `$`, or all where there is none.
/// And what systemd and cron are to start.
fn typed(page: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for (kind, block) in blocks(page) {
        match kind {
            "" | "sh" | "console" => {}
            "ini" => {
                let starts = block.lines().filter_map(|line| line.strip_prefix("ExecStart="));
                lines.extend(starts.map(program_by_name));
                continue;
            }
            "cron" => {
                let commands = block.lines().filter_map(|line| line.splitn(6, ' ').nth(5));
                lines.extend(commands.map(|line| line.trim().to_owned()));
                continue;
            }
            _ => continue,
        }
        let whole = block.replace("\\\n", " ");
        let prompted = whole.lines().any(|line| line.starts_with("$ "));
        for line in whole.lines() {
            let shown = if prompted { line.strip_prefix("$ ") } else { Some(line) };
            lines.extend(shown.map(str::to_owned));
        }
    }
    lines
}

/// Without the folder of the program, which is none to look at here.
fn program_by_name(line: &str) -> String {
    let (program, rest) = line.split_once(' ').unwrap_or((line, ""));
    format!("{} {rest}", program.rsplit('/').next().unwrap_or_default())
}

/// Code among the prose.
fn mentioned(page: &str) -> Vec<String> {
    let text = prose(page);
    text.split('`').skip(1).step_by(2).map(|code| code.replace('\n', " ")).collect()
}

/// What is wrong with one command, if it is one that can be judged here. `places`: where files may be.
fn wrong(places: &[PathBuf], words: &[String], mentioned: bool) -> Option<String> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["consul-lock", rest @ ..] => ours(0, rest, mentioned),
        ["kubectl", "consullock", rest @ ..] | ["kubectl-consullock", rest @ ..] => {
            ours(1, rest, mentioned)
        }
        ["make", targets @ ..] => {
            let makefile = read("Makefile");
            let there = |target: &str| makefile.contains(&format!("\n{target}:"));
            let unknown = targets.iter().find(|target| !target.contains('=') && !there(target));
            unknown.map(|target| format!("make has no target {target}"))
        }
        ["helm", rest @ ..] => helm(rest),
        ["cargo", "test", rest @ ..] => test(rest),
        ["kubectl" | "psql", rest @ ..] => {
            let files = rest.windows(2).filter(|pair| pair[0] == "-f").map(|pair| pair[1]);
            let mut files = files.filter(|file| *file != "-" && !file.contains("://"));
            let missing = |file: &&str| !places.iter().any(|place| place.join(file).exists());
            files.find(missing).map(|file| format!("there is no file {file}"))
        }
        _ => None,
    }
}

/// Ours: what is to be typed must parse; of what is only mentioned, and where something is left
/// out, subcommand and flags must be there.
fn ours(which: usize, words: &[&str], mentioned: bool) -> Option<String> {
    let mut command = cli::commands()[which].clone();
    if !mentioned && !words.iter().any(|word| word.contains(['…', '$'])) {
        let all = std::iter::once("program").chain(words.iter().copied());
        let error = command.try_get_matches_from_mut(all).err()?;
        return error.use_stderr().then(|| error.to_string());
    }
    command.build();
    let own = words.split(|word| *word == "--").next().unwrap_or_default();
    let mut rest = own.iter();
    let first = rest.clone().find(|word| word.starts_with(|c: char| c.is_ascii_lowercase()));
    let command = match first {
        Some(name) => match command.find_subcommand(name) {
            Some(found) => found,
            None => return Some(format!("no subcommand {name}")),
        },
        None => &command,
    };
    let unknown = rest.find(|word| word.starts_with("--") && !has_flag(command, word));
    unknown.map(|flag| format!("{} has no flag {flag}", command.get_name()))
}

fn has_flag(command: &Command, word: &str) -> bool {
    let name = word.trim_start_matches("--").split(['=', '[']).next().unwrap_or_default();
    let long = |arg: &clap::Arg| arg.get_long() == Some(name);
    // `--lease-…`
    name.contains('…') || name == "help" || command.get_arguments().any(long)
}

fn values_schema() -> Value {
    serde_json::from_str(&read("charts/consul-lock/values.schema.json")).unwrap()
}

fn helm(words: &[&str]) -> Option<String> {
    let schema = values_schema();
    let set = words.windows(2).filter(|pair| pair[0] == "--set").map(|pair| pair[1]);
    let mut names = set.flat_map(|set| set.split(',')).map(|set| set.split('=').next().unwrap());
    let unknown = |name: &&str| {
        let field = name.split('.').try_fold(&schema, |at, part| at["properties"].get(part));
        field.is_none()
    };
    names.find(unknown).map(|name| format!("the chart has no value {name}"))
}

/// `--test NAME FILTER`: the file is there, and the module that the filter names.
fn test(words: &[&str]) -> Option<String> {
    let at = words.iter().position(|word| *word == "--test")?;
    let name = words.get(at + 1)?;
    if *name == "NAME" {
        return None;
    }
    let folder = root().join("tests").join(name);
    let single = folder.with_extension("rs");
    if !single.exists() && !folder.join("main.rs").exists() {
        return Some(format!("there is no test {name}"));
    }
    let filter = words.get(at + 2).filter(|filter| filter.contains("::") || !single.exists())?;
    let place = folder.join(filter.replace("::", "/"));
    let there = *filter == "NAME" || place.exists() || place.with_extension("rs").exists();
    (!there).then(|| format!("{name} has no tests {filter}"))
}

#[test]
fn what_the_pages_say_to_type_can_be_typed() {
    let (mut checked, mut found) = (0, Vec::new());
    for page in pages().iter().filter(|page| !page.ends_with("CHANGELOG.md")) {
        let text = read(page);
        let mut places = vec![root().to_owned(), root().join(page).with_file_name("")];
        let typed = typed(&text).into_iter().map(|line| (line, false));
        for (line, mentioned) in typed.chain(mentioned(&text).into_iter().map(|code| (code, true)))
        {
            for words in split(&line) {
                checked += usize::from(words[0] == "consul-lock");
                if let ["cd", folder] = words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                    places.push(root().join(folder));
                }
                if let Some(what) = wrong(&places, &words, mentioned) {
                    found.push(format!("{}: {line}\n    {what}", page.display()));
                }
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(checked > 30, "{checked} commands of ours, which is less than there are");
}

#[test]
fn what_cannot_be_typed_is_found() {
    let here = &[root().to_owned()];
    for (line, what) in [
        ("consul-lock run --kee K -- true", "--kee"),
        ("consul-lock run -- true", "--key"),
        ("A=b consul-lock runn --key=K -- true", "runn"),
        ("kubectl consullock -n shop hand-over billing", "hand-over"),
        ("kubectl consullock release … --force", "--force"),
        ("make damo", "damo"),
        ("kubectl apply -f examples/biling.yaml", "biling"),
        ("helm install x charts/consul-lock --set consul.adress=x", "consul.adress"),
        ("cargo test --test server", "no test server"),
        ("cargo test --test servers examples::ordres", "examples::ordres"),
    ] {
        let commands = split(line);
        let said: Vec<String> =
            commands.iter().filter_map(|words| wrong(here, words, false)).collect();
        assert!(said.join("").contains(what), "{line}: {said:?}");
    }
    for line in [
        "for n in 1 2; do X=1 consul-lock run --key=a/b --wait=20s -- ./x 17 & done; wait  # no",
        "kubectl consullock list -o wide | grep Held",
        "consul-lock crd | kubectl apply -f -",
    ] {
        for words in split(line) {
            assert_eq!(wrong(here, &words, false), None, "{line}");
        }
    }
    let flags_of_a_mention = split("consul-lock run --key K --nonsense -- CMD").remove(0);
    assert!(wrong(here, &flags_of_a_mention, true).is_some());
}

/// Where a value has a field that its schema does not name.
fn unknown_field(schema: &Value, value: &Value, path: &str) -> Option<String> {
    match value {
        Value::Object(fields) => fields.iter().find_map(|(name, field)| {
            let path = format!("{path}.{name}");
            match (schema["properties"].get(name), &schema["additionalProperties"]) {
                (Some(schema), _) => unknown_field(schema, field, &path),
                (None, Value::Object(_)) => None,
                (None, _) if schema["properties"].is_object() => Some(path),
                (None, _) => None,
            }
        }),
        Value::Array(items) => {
            items.iter().find_map(|item| unknown_field(&schema["items"], item, path))
        }
        _ => None,
    }
}

/// The YAML of a page that is ours: claims, and values of the chart.
fn wrong_yaml(text: &str, claims: &mut usize) -> Option<String> {
    let value: Value = match serde_saphyr::from_str(text) {
        Ok(value) => value,
        Err(error) => return Some(error.to_string()),
    };
    let values = values_schema();
    if value["kind"] == "ConsulLock" {
        *claims += 1;
        let crd = serde_json::to_value(ConsulLock::crd()).unwrap();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        let spec = value["spec"].clone();
        let read: ConsulLockSpec = match serde_json::from_value(spec.clone()) {
            Ok(read) => read,
            Err(error) => return Some(error.to_string()),
        };
        let refused = read.settings().err().map(|error| error.to_string());
        return unknown_field(schema, &spec, "spec").or(refused);
    }
    let is_of_the_chart = value["apiVersion"].is_null()
        && value.as_object()?.keys().any(|name| values["properties"].get(name).is_some());
    is_of_the_chart.then(|| unknown_field(&values, &value, ""))?
}

/// What a page quotes of a file of the repository: the block behind `<!-- from PATH -->`.
#[test]
fn what_is_quoted_is_in_the_file_that_it_comes_from() {
    let mut quoted = 0;
    for page in pages() {
        let text = read(&page);
        for (from, rest) in
            text.split("\n<!-- from ").skip(1).map(|part| part.split_once(" -->").unwrap())
        {
            let (_, block) = blocks(rest).swap_remove(0);
            assert!(
                read(from).contains(&block),
                "{}: this is not in {from}:\n{block}",
                page.display()
            );
            quoted += 1;
        }
    }
    assert!(quoted > 3, "{quoted} quotations");
}

/// Whether a value says all that a part says. It may say more.
fn says(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            part.iter().all(|(name, field)| whole.get(name).is_some_and(|known| says(known, field)))
        }
        (Value::Array(whole), Value::Array(part)) => {
            part.iter().all(|item| whole.iter().any(|known| says(known, item)))
        }
        (whole, part) => whole == part,
    }
}

/// The same of anything in a value.
fn says_somewhere(whole: &Value, part: &Value) -> bool {
    let deeper = |value: &Value| says_somewhere(value, part);
    says(whole, part)
        || match whole {
            Value::Object(fields) => fields.values().any(deeper),
            Value::Array(items) => items.iter().any(deeper),
            _ => false,
        }
}

/// What a page shows of a manifest of the repository, in fewer lines: the YAML behind
/// `<!-- part of PATH -->`.
#[test]
fn what_is_shown_in_part_is_in_the_manifest_that_it_comes_from() {
    let mut shown = 0;
    for page in pages() {
        let text = read(&page);
        for (from, rest) in
            text.split("\n<!-- part of ").skip(1).map(|part| part.split_once(" -->").unwrap())
        {
            let (_, block) = blocks(rest).swap_remove(0);
            let part: Value = serde_saphyr::from_str(&block).unwrap();
            let manifest: Vec<Value> = serde_saphyr::from_multiple(&read(from)).unwrap();
            assert!(
                manifest.iter().any(|document| says_somewhere(document, &part)),
                "{}: this is not in {from}:\n{block}",
                page.display()
            );
            shown += 1;
        }
    }
    assert!(shown > 1, "{shown} parts");
    let whole: Value = serde_saphyr::from_str("a: {list: [{x: 1, y: 2}, {x: 3}]}").unwrap();
    for (part, is_in) in [("list: [{x: 3}, {y: 2}]", true), ("list: [{x: 1, y: 3}]", false)] {
        let part: Value = serde_saphyr::from_str(part).unwrap();
        assert_eq!(says_somewhere(&whole, &part), is_in, "{part}");
    }
}

#[test]
fn the_yaml_of_the_pages_is_what_the_schemas_take() {
    let (mut claims, mut found) = (0, Vec::new());
    for page in pages() {
        let text = read(&page);
        for (_, block) in blocks(&text).into_iter().filter(|(kind, _)| *kind == "yaml") {
            for document in block.split("\n---\n") {
                let wrong = wrong_yaml(document, &mut claims);
                found
                    .extend(wrong.map(|what| format!("{}: {what} in\n{document}", page.display())));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(claims > 3, "{claims} claims, which is less than there are");
    for bad in [
        "kind: ConsulLock\nspec: {sesion: {ttl: 15s}}",
        "kind: ConsulLock\nspec: {session: {ttl: 1s}}",
        "kind: ConsulLock\nspec: {candidates: {selector: {matchlabels: {a: b}}}}",
        "consul: {tls: {caSecrte: {name: x}}}",
    ] {
        assert!(wrong_yaml(bad, &mut 0).is_some(), "{bad}");
    }
}
