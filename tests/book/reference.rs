//! The reference: pages below `docs/src/reference/` whose second half is made of the types, the
//! flags and the metrics themselves. `make generate` writes them anew.

use std::{collections::BTreeMap, fmt::Write as _, fs};

use clap::{Arg, Command};
use consul_lock::{api::ConsulLock, cli, controller, telemetry::Metrics};
use kube::CustomResourceExt;
use serde_json::Value;

use super::{below, read, root};

/// What the generated part of a page begins with.
const MARK: &str = "<!-- Made by `make generate`. Do not edit what follows. -->\n";

/// The pages: file, and what belongs behind the mark.
fn generated() -> [(&'static str, String); 7] {
    [
        ("consullock.md", fields("spec")),
        ("status.md", format!("{}{}", fields("status"), reasons())),
        ("commands.md", commands()),
        ("variables.md", variables()),
        ("exit-codes.md", exit_codes()),
        ("metrics.md", metrics()),
        ("events.md", events()),
    ]
}

#[test]
fn the_reference_is_current() {
    let mut old = Vec::new();
    for (file, content) in generated() {
        let path = format!("docs/src/reference/{file}");
        let on_disk = read(&path);
        let by_hand = on_disk.split_once(MARK).map_or(on_disk.as_str(), |(by_hand, _)| by_hand);
        let wanted = format!("{}\n\n{MARK}\n{}\n", by_hand.trim_end(), content.trim());
        if wanted == on_disk {
            continue;
        }
        if std::env::var_os("GENERATE").is_some() {
            fs::write(root().join(&path), wanted).unwrap();
        } else {
            old.push(path);
        }
    }
    assert!(old.is_empty(), "out of date: {old:?}; run `make generate` and commit the result");
}

/// Text of a schema or of clap, which may hold code between backticks: `<` is HTML outside of them.
fn words(text: &str) -> String {
    let parts = text.split('`').enumerate();
    let parts = parts.map(|(at, part)| match at % 2 {
        0 => in_one_line(&part.replace('<', "&lt;")),
        _ => part.split_whitespace().collect::<Vec<_>>().join(" "),
    });
    parts.collect::<Vec<_>>().join("`").trim().replace('|', "\\|")
}

fn in_one_line(text: &str) -> String {
    let ends = |at: bool| if at { " " } else { "" };
    let inner = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match inner.is_empty() {
        true => ends(!text.is_empty()).to_owned(),
        false => format!(
            "{}{inner}{}",
            ends(text.starts_with(char::is_whitespace)),
            ends(text.ends_with(char::is_whitespace))
        ),
    }
}

fn code(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("`{}`", text.replace('|', "\\|")) }
}

// The resource.

fn definition() -> Value {
    serde_json::to_value(ConsulLock::crd()).unwrap()["spec"]["versions"][0].take()
}

/// The fields of `spec` or `status`, a table for each object, and what the API server refuses.
fn fields(part: &str) -> String {
    let schema = definition()["schema"]["openAPIV3Schema"]["properties"][part].take();
    let mut text = String::new();
    object(part, &schema, &mut text);
    if part == "spec" {
        text += "\n## Refused\n\nWhat the API server says of a spec that means nothing:\n\n";
        rules(part, &schema, &mut text);
    }
    text
}

/// An object's table, and those of the objects in it.
fn object(path: &str, schema: &Value, text: &mut String) {
    let _ = write!(text, "\n## {path}\n\n{}\n\n", words(str_of(&schema["description"])));
    text.push_str("| field | type | default | |\n|---|---|---|---|\n");
    let properties = schema["properties"].as_object().unwrap();
    for (name, field) in properties {
        let required =
            schema["required"].as_array().is_some_and(|all| all.contains(&name[..].into()));
        let default = match (&field["default"], required) {
            (Value::Null, true) => "must be given".to_owned(),
            (Value::Null, false) | (Value::Object(_), _) => String::new(),
            (Value::String(text), _) if text.is_empty() => "`\"\"`".to_owned(),
            (Value::String(text), _) => code(text),
            (other, _) => code(&other.to_string()),
        };
        let about = words(str_of(&field["description"]));
        let limits = limits(field);
        let _ =
            writeln!(text, "| {} | {} | {default} | {about}{limits} |", code(name), kind(field));
    }
    for (name, field) in properties {
        let path = format!("{path}.{name}");
        if field["properties"].is_object() {
            object(&path, field, text);
        } else if field["items"]["properties"].is_object() {
            object(&format!("{path}[]"), &field["items"], text);
        }
    }
}

fn str_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn kind(field: &Value) -> String {
    match (str_of(&field["type"]), str_of(&field["format"])) {
        ("array", _) => format!("list of {}", kind(&field["items"])),
        ("object", _) if field["additionalProperties"].is_object() => {
            format!("map to {}", kind(&field["additionalProperties"]))
        }
        ("string", "date-time") => "time".to_owned(),
        ("string", _) if str_of(&field["pattern"]).contains("(ms|s|m|h)") => "duration".to_owned(),
        (kind, _) => kind.to_owned(),
    }
}

/// What of a field's limits its description may not say.
fn limits(field: &Value) -> String {
    let mut said = Vec::new();
    let about = str_of(&field["description"]);
    let values = field["enum"].as_array().into_iter().flatten();
    let values: Vec<String> = values.map(|value| code(str_of(value))).collect();
    if values.iter().any(|value| !about.contains(value)) {
        said.push(format!("One of {}.", values.join(", ")));
    }
    for (limit, words) in [
        ("maxLength", "characters at most"),
        ("maxItems", "items at most"),
        ("maxProperties", "entries at most"),
    ] {
        let number = field[limit].as_u64();
        // Of a duration it says nothing.
        let tells =
            |number: &u64| kind(field) != "duration" && !about.contains(&number.to_string());
        if let Some(number) = number.filter(tells) {
            said.push(format!("{number} {words}."));
        }
    }
    if let Some(pattern) = field["pattern"].as_str().filter(|_| kind(field) != "duration") {
        said.push(format!("Matches {}.", code(pattern)));
    }
    said.iter().map(|said| format!(" {said}")).collect()
}

fn rules(path: &str, schema: &Value, text: &mut String) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let _ = writeln!(text, "- {}: {}", code(path), words(str_of(&rule["message"])));
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        rules(&format!("{path}.{name}"), field, text);
        rules(&format!("{path}.{name}[]"), &field["items"], text);
    }
}

// Reasons: the enums that name them, with what their sources say of each.

/// The variants of an enum of this folder, each with the comment before it.
fn variants(folder: &str, name: &str) -> Vec<(String, String)> {
    let mut files = Vec::new();
    below(&root().join(folder), "rs", &mut files);
    let head = format!("enum {name} {{\n");
    let source = files.iter().map(read).find(|source| source.contains(&head));
    let source = source.unwrap_or_else(|| panic!("no enum {name} in {folder}"));
    let body = source.split_once(&head).unwrap().1;
    let body = body.lines().map(str::trim).take_while(|line| *line != "}");
    let (mut found, mut about) = (Vec::new(), String::new());
    for line in body.filter(|line| !line.starts_with('#')) {
        match line.strip_prefix("/// ").or(line.strip_prefix("/* ")) {
            Some(words) => about += &format!("{} ", words.trim_end_matches("*/")),
            None => found.push((line.trim_end_matches(',').to_owned(), std::mem::take(&mut about))),
        }
    }
    assert!(found.len() > 3 && found.iter().all(|(_, about)| !about.is_empty()), "{found:?}");
    found
}

fn table_of(head: &str, rows: impl IntoIterator<Item = (String, String)>) -> String {
    let mut text = format!("| {head} | |\n|---|---|\n");
    for (name, about) in rows {
        let _ = writeln!(text, "| {} | {} |", code(&name), words(&about));
    }
    text
}

fn reasons() -> String {
    let phases = table_of("phase", variants("src/api", "Phase"));
    let ready = table_of("reason", variants("src/controller", "Reason"));
    let ends = table_of("reason", variants("src/lock", "EndReason"));
    format!(
        "\n## Phases\n\n{phases}\n## Reasons of Ready\n\n`Held` has the same, and so have the other \
         conditions where they are `Unknown` for want of an answer.\n\n{ready}\n## Reasons for which a \
         tenure ends\n\nIn `status.history[].reason`.\n\n{ends}"
    )
}

#[test]
fn every_reason_that_the_controller_can_give_is_explained() {
    let page = read("docs/src/reference/status.md") + &read("docs/src/reference/events.md");
    for (name, _) in variants("src/controller", "Detail") {
        assert!(page.contains(&format!("`{name}`")), "{name} is in no page of the reference");
    }
    let mut files = Vec::new();
    for folder in ["src/controller", "src/election", "src/lock"] {
        below(&root().join(folder), "rs", &mut files);
    }
    // Tests, and the classes of errors, which are in the page of the metrics.
    let aside = ["test", "simulation", "sample", "writer"];
    for file in files.iter().map(|file| file.to_str().unwrap()) {
        if aside.iter().any(|word| file.contains(word)) {
            continue;
        }
        let source = read(file);
        let source = source.split_once("#[cfg(test)]").map_or(source.as_str(), |(code, _)| code);
        for word in source.split('"').skip(1).step_by(2) {
            let named = word.len() > 3
                && word.starts_with(|c: char| c.is_ascii_uppercase())
                && word.chars().all(|c| c.is_ascii_alphabetic())
                && word.chars().any(|c| c.is_ascii_lowercase());
            // What Kubernetes has of its own.
            let theirs = ["ExternalName", "Lock", "Warning", "Normal", "False", "Succeeded"];
            let said = page.contains(&format!("`{word}`"));
            assert!(
                !named || theirs.contains(&word) || said,
                "{file}: {word} is in no page of the reference"
            );
        }
    }
}

// Commands.

/// The commands that do something, each with how it is called.
fn leaves() -> Vec<(String, Command)> {
    let mut found = Vec::new();
    for mut command in cli::commands() {
        command.build();
        let name = command.get_bin_name().unwrap_or(command.get_name()).to_owned();
        for subcommand in command.get_subcommands().filter(|one| !one.is_hide_set()) {
            if subcommand.get_name() != "help" {
                found.push((format!("{name} {}", subcommand.get_name()), subcommand.clone()));
            }
        }
    }
    found
}

fn flags(command: &Command) -> impl Iterator<Item = &Arg> {
    let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
    shown.filter(|arg| !["help", "version"].contains(&arg.get_id().as_str()))
}

fn default_of(arg: &Arg) -> String {
    let values = arg.get_default_values().iter();
    values.map(|value| code(&value.to_string_lossy())).collect::<Vec<_>>().join(", ")
}

fn variable_of(arg: &Arg) -> Option<String> {
    Some(arg.get_env()?.to_string_lossy().into_owned())
}

fn spelled(arg: &Arg) -> String {
    match (arg.get_long(), arg.get_short()) {
        (Some(long), Some(short)) => format!("`--{long}`, `-{short}`"),
        (Some(long), None) => format!("`--{long}`"),
        _ => code(&arg.to_string()),
    }
}

fn about(arg: &Arg) -> String {
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string);
    words(&help.unwrap_or_default())
}

/// All of `consul-lock`; the plugin's commands are the same.
fn commands() -> String {
    let mut text = String::new();
    for (name, command) in leaves().iter().filter(|(name, _)| name.starts_with("consul-lock ")) {
        let long = command.get_long_about().or(command.get_about());
        let long = long.map(ToString::to_string).unwrap_or_default();
        let _ = write!(text, "\n## {name}\n\n");
        for part in long.split("\n\n") {
            let _ = write!(text, "{}\n\n", words(part));
        }
        let usage = command.clone().render_usage().to_string();
        let usage = usage.trim_start_matches("Usage: ");
        let _ = write!(text, "```text\n{usage}\n```\n\n");
        if flags(command).next().is_some() {
            text.push_str("| flag | variable | default | |\n|---|---|---|---|\n");
        }
        for arg in flags(command) {
            let variable = code(&variable_of(arg).unwrap_or_default());
            let default = default_of(arg);
            let _ =
                writeln!(text, "| {} | {variable} | {default} | {} |", spelled(arg), about(arg));
        }
        for part in after(command).split("\n\n").filter(|part| !part.is_empty()) {
            let _ = write!(text, "\n{}\n", words(part));
        }
    }
    text
}

fn after(command: &Command) -> String {
    command.get_after_help().map(ToString::to_string).unwrap_or_default()
}

fn variables() -> String {
    let mut found: BTreeMap<String, (String, Vec<(String, String)>)> = BTreeMap::new();
    for (name, command) in leaves().iter().filter(|(name, _)| name.starts_with("consul-lock ")) {
        for arg in flags(command) {
            if let Some(variable) = variable_of(arg) {
                let (_, users) =
                    found.entry(variable).or_insert_with(|| (spelled(arg), Vec::new()));
                users.push((name.trim_start_matches("consul-lock ").to_owned(), default_of(arg)));
            }
        }
    }
    let mut text = "| variable | flag | read by | default |\n|---|---|---|---|\n".to_owned();
    for (variable, (flag, users)) in found {
        let names: Vec<&str> = users.iter().map(|(name, _)| name.as_str()).collect();
        let first = &users[0].1;
        let default = match users.iter().all(|(_, default)| default == first) {
            true => first.clone(),
            false => {
                let each = users.iter().filter(|(_, default)| !default.is_empty());
                each.map(|(name, default)| format!("{default} ({name})"))
                    .collect::<Vec<_>>()
                    .join(", ")
            }
        };
        let _ =
            writeln!(text, "| {} | {flag} | {} | {default} |", code(&variable), names.join(", "));
    }
    text
}

/// As `--help` lists them: `Exit codes: 0 done; 1 …`.
fn exit_codes() -> String {
    let mut text = String::new();
    let plugin = cli::commands()[1].clone();
    let all = leaves().into_iter().filter(|(name, _)| name.starts_with("consul-lock "));
    for (name, command) in all.chain([("kubectl consullock".to_owned(), plugin)]) {
        let after = after(&command);
        let Some((_, listed)) = after.split_once("Exit codes: ") else { continue };
        let mut rows: Vec<(String, String)> = Vec::new();
        for part in listed.split("; ") {
            match part.split_once(' ') {
                Some((code, meaning)) if code.parse::<u8>().is_ok() => {
                    let meaning = meaning.trim_end_matches('.');
                    let (code, meaning) = match meaning.strip_prefix("+ N ") {
                        Some(meaning) => (format!("{code} + N"), meaning),
                        None => (code.to_owned(), meaning),
                    };
                    rows.push((code, meaning.to_owned()));
                }
                // The command's own codes.
                _ => rows.push((String::new(), part.to_owned())),
            }
        }
        let _ = write!(text, "\n## {name}\n\n{}", table_of("code", rows));
    }
    text
}

#[test]
fn every_command_that_can_fail_lists_its_exit_codes() {
    let page = exit_codes();
    for name in ["consul-lock controller", "consul-lock run", "consul-lock agent"] {
        let of = page.split_once(&format!("## {name}\n")).unwrap().1;
        for code in ["`1`", "`2`", "`3`"] {
            assert!(of.contains(code) || name.ends_with("run"), "{name}: {code}");
        }
    }
    for code in ["`69`", "`75`", "`77`", "`79`", "`124`", "`126`", "`127`"] {
        assert!(page.contains(&format!("\n| {code} | ")), "{code} in:\n{page}");
    }
}

// What can be watched.

fn metrics() -> String {
    let mut text = "| metric | type | labels | |\n|---|---|---|---|\n".to_owned();
    for one in Metrics::new(true).described() {
        let labels: Vec<String> = one.labels.iter().map(|label| code(label)).collect();
        let (name, labels) = (code(&one.name), labels.join(", "));
        let _ = writeln!(text, "| {name} | {} | {labels} | {} |", one.kind, words(&one.help));
    }
    text
}

fn events() -> String {
    let mut text = "| reason | type | |\n|---|---|---|\n".to_owned();
    for (reason, warning, when) in controller::EVENTS {
        let kind = if *warning { "Warning" } else { "Normal" };
        let _ = writeln!(text, "| {} | {kind} | {} |", code(reason), words(when));
    }
    text
}

/// What the sources serve, as `.route("/path"` says it.
fn routes(file: &str) -> Vec<String> {
    let source = read(file);
    let found = source.match_indices(".route(\"").map(|(at, start)| &source[at + start.len()..]);
    found.filter_map(|rest| rest.split_once('"').map(|(path, _)| path.to_owned())).collect()
}

#[test]
fn everything_that_is_served_by_http_is_in_the_reference() {
    let page = read("docs/src/reference/http.md");
    for (file, least) in [("src/agent/sidecar/http.rs", 5), ("src/telemetry/admin.rs", 3)] {
        let routes = routes(file);
        assert!(routes.len() >= least, "{file}: {routes:?}");
        for route in routes {
            assert!(page.contains(&format!("`GET {route}`")), "{route}");
        }
    }
    let told = read("src/agent/sidecar/standing.rs");
    let fields = told.split_once("struct Told<'a> {\n").unwrap().1.split_once('}').unwrap().0;
    for field in fields.lines().filter_map(|line| line.trim().split_once(':')) {
        assert!(page.contains(&format!("`{}`", field.0)), "{}", field.0);
    }
    let states = told.split_once("fn as_str(&self)").unwrap().1.split_once("\n    }").unwrap().0;
    for state in states.split('"').skip(1).step_by(2) {
        assert!(page.contains(&format!("`{state}`")), "{state}");
    }
}
