//! What the tests share: a control plane that is started once.

use std::{path::Path, sync::OnceLock};

use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, Config,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use testbed::ControlPlane;

/// The control plane of whoever keeps to namespaces of his own. Ends with this process.
pub(crate) async fn shared_cluster() -> &'static ControlPlane {
    static CLUSTER: OnceLock<ControlPlane> = OnceLock::new();
    let start = || CLUSTER.get_or_init(|| ControlPlane::start().unwrap());
    tokio::task::spawn_blocking(start).await.unwrap()
}

/// An administrator of the shared control plane.
pub(crate) async fn kube_client() -> Client {
    client_by(shared_cluster().await.kubeconfig()).await
}

/// Whom a kubeconfig file makes one. A call is sent once and no more.
pub(crate) async fn client_by(kubeconfig: &Path) -> Client {
    // Refused when another test was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let file = Kubeconfig::read_from(kubeconfig).unwrap();
    let mut config =
        Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

pub(crate) async fn create_namespace(client: &Client, name: &str) {
    let mut namespace = Namespace::default();
    namespace.metadata.name = Some(name.into());
    let _ = Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await;
}
