//! What the book prints for a reader to type, typed as it stands there.

use std::{ffi::OsString, fs, os::unix::fs::symlink, path::Path, process::Command};

use testbed::{Cluster, Consul, Folder, Helm, run, tools::Tool};

use crate::bed::PATIENCE;

/// A page of the book, below `docs/src`.
pub(crate) struct Page {
    name: &'static str,
    text: String,
}

impl Page {
    #[track_caller]
    pub(crate) fn open(name: &'static str) -> Page {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/src").join(name);
        Page { name, text: fs::read_to_string(path).unwrap() }
    }

    /// Its only block of this kind that has these words in it.
    #[track_caller]
    pub(crate) fn block(&self, kind: &str, words: &str) -> String {
        let fence = format!("\n```{kind}\n");
        let blocks = self.text.split(&fence).skip(1);
        let blocks = blocks.map(|rest| rest.split_once("\n```").unwrap().0);
        let found: Vec<&str> = blocks.filter(|block| block.contains(words)).collect();
        assert_eq!(found.len(), 1, "{}: {kind} with {words:?}: {found:?}", self.name);
        found[0].to_owned()
    }

    /// The only command of its blocks for a shell that begins with these words.
    #[track_caller]
    pub(crate) fn command(&self, words: &str) -> String {
        let text = self.text.replace("\\\n", "");
        let found: Vec<&str> = text.lines().filter(|line| line.starts_with(words)).collect();
        assert_eq!(found.len(), 1, "{}: {words:?}: {found:?}", self.name);
        found[0].to_owned()
    }
}

/// Who types it: an administrator of a cluster and of its Consul, in the folder of the repository,
/// with `kubectl`, its plugin, `helm`, `consul` and `consul-lock` on PATH.
pub(crate) struct Reader {
    env: Vec<(String, OsString)>,
    _programs: Folder,
    /// Helm's home.
    _helm: Helm,
}

impl Reader {
    pub(crate) fn of(cluster: &Cluster, consul: &Consul) -> Reader {
        let programs = Folder::new("reader").unwrap();
        let ours = Path::new(env!("CARGO_BIN_EXE_consul-lock")).to_owned();
        let tool = |tool: Tool| (tool.name(), tool.path().unwrap());
        for (name, program) in [
            ("consul-lock", ours.clone()),
            ("kubectl-consullock", ours),
            tool(Tool::Kubectl),
            tool(Tool::Helm),
            tool(Tool::Consul),
        ] {
            symlink(program, programs.path().join(name)).unwrap();
        }
        let helm = Helm::new(cluster.kubeconfig()).unwrap();
        let path = std::env::var("PATH").unwrap();
        let path = format!("{}:{path}", programs.path().display());
        let mut env = vec![("PATH".to_owned(), path.into())];
        env.extend(helm.env().into_iter().map(|(name, value)| (name, value.into())));
        env.extend(consul.env().into_iter().map(|(name, value)| (name.to_owned(), value.into())));
        Reader { env, _programs: programs, _helm: helm }
    }

    /// What that prints. Each of the commands must succeed.
    #[track_caller]
    pub(crate) fn types(&self, script: &str) -> String {
        self.tries(script).unwrap_or_else(|error| panic!("{error}\nof:\n{script}"))
    }

    pub(crate) fn tries(&self, script: &str) -> Result<String, testbed::BedError> {
        let mut shell = Command::new("sh");
        shell.args(["-euc", script]).current_dir(env!("CARGO_MANIFEST_DIR"));
        run(shell.envs(self.env.iter().cloned()), PATIENCE + PATIENCE)
    }
}
