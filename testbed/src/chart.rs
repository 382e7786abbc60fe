//! What is generated of the Helm chart: from `values.schema.json`, which says of each value what it
//! is for and what it is by default, `values.yaml` and the tables at the end of the README.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::PathBuf;

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::Value;

use crate::tools::repository;

/// What the generated part of the README begins with.
const MARK: &str =
    "<!-- Generated from values.schema.json by `make generate`. Do not edit what follows. -->\n";

/// How wide the comments in `values.yaml` are.
const WIDTH: usize = 100;

/// A value, or a group of values.
#[derive(Debug, Deserialize)]
struct Node {
    description: String,
    /// A value has one, and a group has none.
    default: Option<Value>,
    #[serde(default)]
    properties: IndexMap<String, Node>,
}

/// Where the chart is.
#[must_use]
pub fn folder() -> PathBuf {
    repository().join("charts/consul-lock")
}

/// Writes what is generated.
///
/// # Errors
/// The schema cannot be read, or a file not be written.
pub fn generate() -> io::Result<()> {
    for (path, content) in generated()? {
        fs::write(path, content)?;
    }
    Ok(())
}

/// The generated files, and what they should hold.
fn generated() -> io::Result<[(PathBuf, String); 2]> {
    let read = |name: &str| fs::read_to_string(folder().join(name));
    let schema: Node = serde_json::from_str(&read("values.schema.json")?)?;
    let readme = read("README.md")?;
    let by_hand = readme.split_once(MARK).map_or(readme.as_str(), |(by_hand, _)| by_hand);
    Ok([
        (folder().join("values.yaml"), values(&schema)),
        (folder().join("README.md"), format!("{by_hand}{MARK}{}", tables(&schema))),
    ])
}

fn values(schema: &Node) -> String {
    let mut text =
        "# Generated from values.schema.json by `make generate`. Do not edit.\n".to_owned();
    for (name, node) in &schema.properties {
        text.push('\n');
        value(name, node, "", &mut text);
    }
    text
}

fn value(name: &str, node: &Node, indent: &str, text: &mut String) {
    let width = WIDTH - indent.len() - 2;
    for line in wrapped(&node.description, width) {
        let _ = writeln!(text, "{indent}# {line}");
    }
    match &node.default {
        Some(default) => {
            let _ = writeln!(text, "{indent}{name}: {}", flow(default));
        }
        None => {
            let _ = writeln!(text, "{indent}{name}:");
            for (name, node) in &node.properties {
                value(name, node, &format!("{indent}  "), text);
            }
        }
    }
}

fn wrapped(words: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in words.split(' ') {
        let used = lines.last().map_or(0, |line| line.chars().count());
        if used > 0 && used + 1 + word.chars().count() > width {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            let space = if line.is_empty() { "" } else { " " };
            let _ = write!(line, "{space}{word}");
        }
    }
    lines
}

/// A value in one line of YAML.
fn flow(value: &Value) -> String {
    match value {
        Value::Array(items) => {
            format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", "))
        }
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| format!("{name}: {}", flow(value)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

/// A table of what is in no group, and one for each group.
fn tables(schema: &Node) -> String {
    let groups = schema.properties.iter().filter(|(_, node)| node.default.is_none());
    let single = schema.properties.iter().filter(|(_, node)| node.default.is_some());
    let mut text = String::new();
    table(single, "", &mut text);
    for (name, group) in groups {
        let _ = write!(text, "\n### {name}\n\n{}\n", group.description);
        table(group.properties.iter(), &format!("{name}."), &mut text);
    }
    text
}

fn table<'a>(nodes: impl Iterator<Item = (&'a String, &'a Node)>, above: &str, text: &mut String) {
    text.push_str("\n| value | default | |\n|---|---|---|\n");
    for (name, node) in nodes {
        rows(&format!("{above}{name}"), node, text);
    }
}

fn rows(path: &str, node: &Node, text: &mut String) {
    match &node.default {
        Some(default) => {
            let _ = writeln!(text, "| `{path}` | `{}` | {} |", flow(default), node.description);
        }
        None => {
            let _ = writeln!(text, "| `{path}` | | {} |", node.description);
            for (name, node) in &node.properties {
                rows(&format!("{path}.{name}"), node, text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_tables_are_current() {
        for (path, content) in generated().unwrap() {
            let on_disk = fs::read_to_string(&path).unwrap_or_default();
            let path = path.display();
            assert!(on_disk == content, "{path} is out of date: run `make generate` and commit it");
        }
    }

    #[test]
    fn the_chart_and_its_image_have_the_version_of_the_binary() {
        let chart = fs::read_to_string(folder().join("Chart.yaml")).unwrap();
        for field in ["version", "appVersion"] {
            let line = format!("\n{field}: {}\n", env!("CARGO_PKG_VERSION"));
            assert!(chart.contains(&line), "no {line:?}");
        }
        let schema: Value = read_schema();
        let repository = &schema["properties"]["image"]["properties"]["repository"]["default"];
        let ours = crate::PRODUCT_IMAGE.rsplit_once(':').map(|(name, _)| name);
        assert_eq!(repository.as_str(), ours);
    }

    fn read_schema() -> Value {
        let schema = fs::read_to_string(folder().join("values.schema.json")).unwrap();
        serde_json::from_str(&schema).unwrap()
    }

    /// The objects whose names are free, and in which anything goes.
    const OPEN: [&str; 1] = ["/properties/global"];

    /// Where an object lets in what it does not name, or whose fields may be missing.
    fn open(schema: &Value, path: &str, in_items: bool, found: &mut Vec<String>) {
        let described = schema["properties"].as_object();
        if schema["type"] == "object" && !OPEN.contains(&path) {
            let all: Vec<&String> = described.into_iter().flatten().map(|(name, _)| name).collect();
            let closed = match all.is_empty() {
                true => schema["additionalProperties"].is_object(),
                false => schema["additionalProperties"] == Value::Bool(false),
            };
            let required = schema["required"].as_array().map_or(0, Vec::len);
            if !closed || (!in_items && required != all.len()) {
                found.push(path.to_owned());
            }
        }
        for (name, field) in described.into_iter().flatten() {
            open(field, &format!("{path}/properties/{name}"), in_items, found);
        }
        for (name, shape) in schema["definitions"].as_object().into_iter().flatten() {
            open(shape, &format!("{path}/definitions/{name}"), in_items, found);
        }
        open_items(schema, path, found);
    }

    fn open_items(schema: &Value, path: &str, found: &mut Vec<String>) {
        if schema["items"].is_object() {
            open(&schema["items"], &format!("{path}/items"), true, found);
        }
    }

    #[test]
    fn no_object_of_the_schema_takes_a_value_that_it_does_not_name() {
        let schema = read_schema();
        let mut found = Vec::new();
        open(&schema, "", false, &mut found);
        assert_eq!(found, Vec::<String>::new());

        let mut loose = schema;
        loose["properties"]["rbac"]["additionalProperties"] = Value::Bool(true);
        open(&loose, "", false, &mut found);
        assert_eq!(found, ["/properties/rbac"]);
    }

    #[test]
    fn long_descriptions_are_wrapped() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("a-very-long-word b", 5), ["a-very-long-word", "b"]);
    }
}
