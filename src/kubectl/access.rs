//! How the API server is reached: as kubectl reaches it.

use std::{path::PathBuf, time::Duration};

use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Config, Resource,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::KubectlError;
use crate::{api::ConsulLock, clock::Clock};

/// How long one call may take.
pub(super) const CALL_WITHIN: Duration = Duration::from_secs(10);
/// How long a watch may be silent.
const SILENCE: Duration = Duration::from_secs(295);

/// What kubectl's own flags say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Instead of `KUBECONFIG` and `~/.kube/config`.
    pub kubeconfig: Option<PathBuf>,
    /// Instead of the kubeconfig's current context.
    pub context: Option<String>,
    /// Instead of the context's namespace.
    pub namespace: Option<String>,
    /// Whom to act as.
    pub user: Option<String>,
    /// The groups to act with.
    pub groups: Vec<String>,
}

/// An API server, and the namespace that names without one are looked for in.
#[derive(Clone)]
pub(super) struct Cluster {
    pub(super) client: Client,
    pub(super) namespace: String,
    pub(super) clock: Clock,
}

impl Access {
    /// A client. Connects to nothing yet.
    pub(super) async fn connect(&self, clock: Clock) -> Result<Cluster, KubectlError> {
        let mut config = self.config().await?;
        // Fifteen silent retries would turn an error into a hang of many minutes.
        config.default_retry = false;
        config.connect_timeout = Some(CALL_WITHIN);
        config.write_timeout = Some(CALL_WITHIN);
        config.read_timeout = Some(SILENCE);
        if self.user.is_some() {
            config.auth_info.impersonate.clone_from(&self.user);
            config.auth_info.impersonate_groups =
                Some(self.groups.clone()).filter(|groups| !groups.is_empty());
        }
        let namespace = self.namespace.clone().unwrap_or(config.default_namespace.clone());
        let client = Client::try_from(config);
        let client = client.map_err(|source| KubectlError::Client(Box::new(source)))?;
        Ok(Cluster { client, namespace, clock })
    }

    async fn config(&self) -> Result<Config, KubectlError> {
        let options =
            KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let named = std::env::var_os("KUBECONFIG").is_some_and(|files| !files.is_empty());
        let config = match &self.kubeconfig {
            Some(path) => match Kubeconfig::read_from(path) {
                Ok(kubeconfig) => Config::from_custom_kubeconfig(kubeconfig, &options).await,
                Err(error) => Err(error),
            },
            // Named on purpose: if it is no good, another cluster will not do.
            None if named || self.context.is_some() => Config::from_kubeconfig(&options).await,
            None => {
                let found = Config::infer().await;
                return found.map_err(|source| KubectlError::Nowhere(Box::new(source)));
            }
        };
        config.map_err(|source| KubectlError::Kubeconfig(Box::new(source)))
    }
}

impl Cluster {
    /// The claims of the namespace.
    pub(super) fn claims(&self) -> Api<ConsulLock> {
        self.within()
    }

    /// The namespace's objects of a kind.
    pub(super) fn within<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The claim of this name.
    pub(super) async fn claim(&self, name: &str) -> Result<ConsulLock, KubectlError> {
        self.call(format!("read the ConsulLock {}/{name}", self.namespace), self.claims().get(name))
            .await
    }

    /// Makes a call, for a limited time.
    pub(super) async fn call<T>(
        &self,
        attempt: impl Into<String>,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, KubectlError> {
        match self.clock.timeout(CALL_WITHIN, call).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(source)) => {
                Err(KubectlError::Api { attempt: attempt.into(), source: Box::new(source) })
            }
            Err(_) => Err(KubectlError::Silent { attempt: attempt.into(), within: CALL_WITHIN }),
        }
    }
}
