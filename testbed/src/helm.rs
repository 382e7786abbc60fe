//! The real Helm with this repository's chart.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::chart;
use crate::folder::Folder;
use crate::process::BedError;
use crate::run::run;
use crate::tools::Tool;

/// How long anything may take that waits for pods on a busy machine.
const ALLOWED: Duration = Duration::from_secs(300);

/// Helm with a home of its own.
#[derive(Debug)]
pub struct Helm {
    folder: Folder,
    kubeconfig: PathBuf,
}

impl Helm {
    /// For whom this kubeconfig file makes one. `helm template` and `helm lint` ask no API server,
    /// so it need not be there.
    ///
    /// # Errors
    /// Its home could not be made.
    pub fn new(kubeconfig: &Path) -> Result<Helm, BedError> {
        Ok(Helm { folder: Folder::new("helm")?, kubeconfig: kubeconfig.to_owned() })
    }

    /// Runs it, which must succeed; what it printed.
    ///
    /// # Errors
    /// There is no Helm, or it failed, with what it said.
    pub fn run(&self, args: &[&str]) -> Result<String, BedError> {
        run(self.command()?.args(args), ALLOWED)
    }

    /// The same with the chart and these values behind the arguments.
    ///
    /// # Errors
    /// As [`Helm::run`].
    pub fn with_chart(&self, args: &[&str], values: &Value) -> Result<String, BedError> {
        let folder = tempfile::tempdir_in(self.folder.path())?;
        let file = folder.path().join("values.json");
        std::fs::write(&file, values.to_string())?;
        let mut command = self.command()?;
        command.args(args).arg(chart::folder()).arg("--values").arg(file);
        run(&mut command, ALLOWED)
    }

    /// The variables that it is run with.
    #[must_use]
    pub fn env(&self) -> Vec<(String, PathBuf)> {
        let places = ["CACHE", "CONFIG", "DATA"];
        let home = |place: &&str| (format!("HELM_{place}_HOME"), self.folder.path().join(place));
        let kubeconfig = ("KUBECONFIG".to_owned(), self.kubeconfig.clone());
        places.iter().map(home).chain([kubeconfig]).collect()
    }

    fn command(&self) -> Result<Command, BedError> {
        let mut command = Tool::Helm.command([] as [&str; 0])?;
        command.envs(self.env());
        Ok(command)
    }
}
