//! The rights of controllers: what a release of the chart has, and nothing else. Whether all of it is
//! used is seen at the end of `make test`, by `testbed rights`.

use k8s_openapi::api::{
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
    rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
};
use kube::{Api, Client, api::PostParams};
use serde_json::Value;
use testbed::rights::{RELEASE, of_chart};

use crate::{faults_kubernetes::put, site::eventually};

/// Makes the roles of a release in the namespace `its_own` that looks after the claims of another, or
/// of its own, and waits until the API server goes by them.
pub(crate) async fn grant(client: &Client, its_own: &str, claims: &str) {
    let (own, of_claims) = (its_own.to_owned(), claims.to_owned());
    let objects = tokio::task::spawn_blocking(move || of_chart(&own, &of_claims)).await.unwrap();
    for object in objects.unwrap() {
        apply(client, object).await;
    }
    let user = format!("system:serviceaccount:{its_own}:{RELEASE}");
    for (group, resource, namespace, verb) in [
        ("coordination.k8s.io", "leases", its_own, "create"),
        ("consullock.dev", "consullocks", claims, "list"),
        ("", "nodes", "", "watch"),
    ] {
        let text = |text: &str| Some(text.to_owned());
        let right = ResourceAttributes {
            group: text(group),
            resource: text(resource),
            namespace: text(namespace),
            verb: text(verb),
            ..ResourceAttributes::default()
        };
        effective(client, &user, right).await;
    }
}

/// Waits until the API server knows that somebody has a right.
pub(crate) async fn effective(client: &Client, user: &str, right: ResourceAttributes) {
    let spec = SubjectAccessReviewSpec {
        user: Some(user.to_owned()),
        resource_attributes: Some(right),
        ..SubjectAccessReviewSpec::default()
    };
    let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
    let api = Api::<SubjectAccessReview>::all(client.clone());
    let allowed = || async {
        let answer = api.create(&PostParams::default(), &review).await.unwrap().status;
        if answer.as_ref().is_some_and(|answer| answer.allowed) { Ok(()) } else { Err(answer) }
    };
    eventually(&format!("{user} to have a right"), allowed).await;
}

/// A role or a binding.
pub(crate) async fn apply(client: &Client, object: Value) {
    let of = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    let (name, namespace, client) = (of("name"), of("namespace"), client.clone());
    match object["kind"].as_str().unwrap() {
        "Role" => put(Api::<Role>::namespaced(client, &namespace), &name, object).await,
        "RoleBinding" => {
            put(Api::<RoleBinding>::namespaced(client, &namespace), &name, object).await
        }
        "ClusterRole" => put(Api::<ClusterRole>::all(client), &name, object).await,
        "ClusterRoleBinding" => put(Api::<ClusterRoleBinding>::all(client), &name, object).await,
        other => panic!("{other} grants nothing"),
    }
}
