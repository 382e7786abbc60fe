//! The controller under test, as a process.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::folder::Folder;
use crate::process::Recipe;

/// How long a replica may take to be ready, and to end.
const ALLOWED: Duration = Duration::from_secs(30);

/// A replica of the controller, of this binary and with these flags beside its own: what it needs
/// to find Kubernetes, where it answers, and a name. Its log is `controller.log` in the folder.
pub fn replica(
    program: &str,
    kubeconfig: &Path,
    admin: SocketAddr,
    folder: &Folder,
    flags: impl IntoIterator<Item = String>,
) -> Recipe {
    let own = ["controller".to_owned(), format!("--admin-addr={admin}")];
    let name = format!("replica-{}", admin.port());
    Recipe {
        program: program.into(),
        args: own.into_iter().chain(flags).map(Into::into).collect(),
        env: vec![
            ("KUBECONFIG".to_owned(), kubeconfig.display().to_string()),
            ("HOSTNAME".to_owned(), name.clone()),
        ],
        name,
        log: folder.path().join("controller.log"),
        allowed: ALLOWED,
        grace: ALLOWED,
    }
}
