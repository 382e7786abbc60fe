//! Stand-in until the test bed's control plane is merged: a cluster that KUBECONFIG names.
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, api::PostParams};

pub(crate) async fn kube_client() -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::try_default().await.unwrap()
}

pub(crate) async fn create_namespace(client: &Client, name: &str) {
    let mut namespace = Namespace::default();
    namespace.metadata.name = Some(name.into());
    let _ = Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await;
}
