//! The Prometheus Operator's definitions: files of its Go module, of which nothing is built.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::{ToolError, on_path, repository};
use crate::run::run;

const NAME: &str = "the Prometheus Operator's definitions";
const MODULE: &str = "github.com/prometheus-operator/prometheus-operator";

/// How long the module may take to come, once.
const ALLOWED: Duration = Duration::from_secs(300);

/// The files of its definitions of ServiceMonitor and PrometheusRule, of the version that is pinned in
/// `tools/prometheus-operator`; fetched if need be.
///
/// # Errors
/// There is no Go, or the module cannot be had.
pub fn prometheus_operator_definitions() -> Result<[PathBuf; 2], ToolError> {
    let pins = repository().join("tools/prometheus-operator");
    if on_path("go").is_none() {
        return Err(ToolError::NoGo { tool: NAME, module: pins });
    }
    let mut command = Command::new("go");
    command.args(["mod", "download", "-json", MODULE]).current_dir(&pins);
    let failed =
        |output: String| ToolError::Build { tool: NAME, module: pins.clone(), needs: "", output };
    let printed = run(&mut command, ALLOWED).map_err(|error| failed(error.to_string()))?;
    let told: serde_json::Value = serde_json::from_str(&printed).unwrap_or_default();
    let Some(folder) = told["Dir"].as_str() else { return Err(failed(printed)) };
    let folder = PathBuf::from(folder).join("example/prometheus-operator-crd");
    let file = |kind: &str| folder.join(format!("monitoring.coreos.com_{kind}.yaml"));
    Ok([file("servicemonitors"), file("prometheusrules")])
}
