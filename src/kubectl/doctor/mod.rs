//! `doctor`: everything that the controller needs, each checked by doing it, with what to run to
//! repair what is missing.
//!
//! # Guarantees
//! Nothing that anybody else uses is changed: writes in Kubernetes are dry runs, and what is made in
//! Consul has a name of its own and is taken away again, also after a failure or Ctrl-C. What could
//! not be looked at is said, and does not pass for well.
//! # Not guaranteed
//! That what is right now stays so.

use std::time::Duration;

use k8s_openapi::api::{authentication::v1::SelfSubjectReview, core::v1::Namespace};
use kube::{
    Api, ResourceExt,
    api::{ListParams, PostParams},
};

use super::{Cluster, Format, KubectlError, Screen, signalled};
use crate::{
    api::{ConsulLock, KEY_PREFIXES_ANNOTATION, Settings},
    consul::http::{HttpConfig, HttpConsul},
    names::{Key, NodeName},
};

mod clocks;
mod consul;
mod definition;
mod finding;
mod rights;

use consul::Probe;
use finding::{Finding, all_is_well, report};
use rights::Examined;

/// What the controller is told by its configuration, and how to answer.
#[derive(Clone, Debug)]
pub struct DoctorSettings {
    /// How to reach Consul.
    pub consul: HttpConfig,
    /// What keys begin with.
    pub key_prefix: Key,
    /// `None`: from the UID of the Namespace kube-system.
    pub cluster_name: Option<String>,
    /// Whose claims are looked after; empty: everybody's.
    pub watch_namespaces: Vec<String>,
    /// `None`: the namespace that names are looked for in.
    pub lease_namespace: Option<String>,
    /// The Lease that the replicas share.
    pub lease_name: String,
    /// How to answer.
    pub format: Format,
}

/// What everything in Consul is named after.
struct Setting {
    cluster: String,
    confined: Vec<String>,
}

/// The shortest TTL that is asked for where nobody asks for any.
const DEFAULT_TTL: Duration = Duration::from_secs(15);

/// Examines everything; whether all is well.
pub(super) async fn examine(
    cluster: &Cluster,
    settings: DoctorSettings,
) -> Result<bool, KubectlError> {
    let screen = Screen::new(settings.format);
    let consul = HttpConsul::new(settings.consul.clone()).map_err(KubectlError::ConsulConfig)?;
    let claims = claims(cluster, &settings.watch_namespaces).await;
    let name = cluster_name(cluster, &settings).await;
    let setting = Setting {
        cluster: name.clone().unwrap_or_else(|_| "unknown".to_owned()),
        confined: settings.watch_namespaces.clone(),
    };
    let mut probe = Probe::new(&setting);
    let known = claims.as_deref().ok();
    let examined = tokio::select! {
        found = async {
            tokio::join!(
                kubernetes(cluster, &settings, known),
                in_consul(cluster, &settings, &consul, &setting, &mut probe, known),
            )
        } => Ok(found),
        signalled = signalled() => Err(signalled),
    };
    let left = probe.clean_up(&consul).await;
    consul.log_out().await;
    let (mut findings, in_consul) = match examined {
        Ok(found) => found,
        Err(signalled) => {
            signalled?;
            return Err(KubectlError::Interrupted);
        }
    };
    if let Err(words) = &name {
        let repair = vec!["give --cluster-name, as the controller has it".to_owned()];
        findings.push(Finding::problem("Kubernetes: the cluster's name", words, repair));
    }
    findings.extend(in_consul);
    if !left.is_empty() {
        let words = format!("left behind: {}", left.join("; "));
        findings.push(Finding::unknown("Consul: cleaned up", words));
    }
    screen.show(&findings, |paint| report(&findings, paint))?;
    Ok(all_is_well(&findings))
}

async fn kubernetes(
    cluster: &Cluster,
    settings: &DoctorSettings,
    claims: Option<&[ConsulLock]>,
) -> Vec<Finding> {
    let mut findings = vec![answers(cluster).await, definition::examine(&cluster.client).await];
    let user = user(cluster).await;
    let mean: Option<Vec<Settings>> =
        claims.map(|claims| claims.iter().filter_map(|one| one.spec.settings().ok()).collect());
    let somewhere = claims.and_then(|claims| claims.first()).and_then(ResourceExt::namespace);
    let examined = Examined {
        client: &cluster.client,
        clock: &cluster.clock,
        confined: &settings.watch_namespaces,
        namespace: somewhere.as_deref().unwrap_or(&cluster.namespace),
        lease_namespace: settings.lease_namespace.as_ref().unwrap_or(&cluster.namespace),
        lease_name: &settings.lease_name,
        claims: mean.as_deref(),
        user: user.as_deref(),
    };
    findings.extend(rights::examine(&examined).await);
    if let Some(claims) = claims {
        findings.push(refused_keys(claims));
    }
    let date = || async {
        let request = http::Request::get("/version").body(kube::client::Body::empty());
        let request = request.map_err(|error| error.to_string())?;
        let response = cluster.client.send(request).await.map_err(|error| error.to_string())?;
        let date = response.headers().get(http::header::DATE);
        let date = date.and_then(|date| date.to_str().ok()).map(str::to_owned);
        Ok(date.as_deref().and_then(crate::consul::http::date))
    };
    let check = "Kubernetes: its clock ticks as ours";
    findings.push(clocks::compare(check, &cluster.clock, date).await);
    findings
}

async fn in_consul(
    cluster: &Cluster,
    settings: &DoctorSettings,
    consul: &HttpConsul,
    setting: &Setting,
    probe: &mut Probe,
    claims: Option<&[ConsulLock]>,
) -> Vec<Finding> {
    let address = &settings.consul.address;
    let answers = consul::answers(consul, address).await;
    let is_there = answers.verdict == finding::Verdict::Ok;
    let mut findings = vec![answers];
    if !is_there {
        findings.push(Finding::unknown("Consul: everything else", "not looked at"));
        return findings;
    }
    let known = claims.into_iter().flatten().find_map(|claim| {
        let session = claim.status.as_ref()?.session.as_ref()?;
        session.node.clone().map(NodeName::new)
    });
    let shortest = shortest_ttl(claims.unwrap_or_default());
    let ttl = (shortest.0, shortest.1.as_str());
    findings.extend(consul::sessions(consul, setting, probe, ttl, known.as_ref()).await);
    for prefix in prefixes(cluster, settings).await {
        findings.push(consul::keys(consul, probe, &prefix).await);
    }
    let census = consul.census().await;
    // Claims that came while we looked account for their sessions, too.
    let later = self::claims(cluster, &settings.watch_namespaces).await.ok();
    let uids = claims.zip(later).map(|(claims, later)| {
        claims.iter().chain(&later).filter_map(ResourceExt::uid).collect::<Vec<_>>()
    });
    findings.push(consul::strangers(&census, &format!("consul-lock-{}-", setting.cluster)));
    findings.push(consul::leaks(&census, setting, uids.as_deref(), address));
    let date = || async { consul.date().await.map_err(|error| error.to_string()) };
    let check = "Consul: its clock ticks as ours";
    findings.push(clocks::compare(check, &cluster.clock, date).await);
    findings
}

async fn answers(cluster: &Cluster) -> Finding {
    const CHECK: &str = "Kubernetes: the API server answers";
    let asked = cluster.call("read the version", cluster.client.apiserver_version()).await;
    match asked {
        Ok(version) => Finding::ok(CHECK, format!("version {}", version.git_version)),
        Err(error) => {
            let repair = vec!["kubectl cluster-info".to_owned()];
            Finding::problem(CHECK, error.to_string(), repair)
        }
    }
}

/// Whom the API server takes us for.
async fn user(cluster: &Cluster) -> Option<String> {
    let reviews = Api::<SelfSubjectReview>::all(cluster.client.clone());
    let asked = SelfSubjectReview::default();
    let (params, attempt) = (PostParams::default(), "ask who we are");
    let review = cluster.call(attempt, reviews.create(&params, &asked)).await.ok()?;
    review.status?.user_info?.username
}

async fn cluster_name(cluster: &Cluster, settings: &DoctorSettings) -> Result<String, String> {
    if let Some(name) = &settings.cluster_name {
        return Ok(name.clone());
    }
    let namespaces = Api::<Namespace>::all(cluster.client.clone());
    let read = cluster.call("read the namespace kube-system", namespaces.get("kube-system")).await;
    let uid = read.map_err(|error| error.to_string())?.metadata.uid.unwrap_or_default();
    Ok(uid.get(..8).unwrap_or(&uid).to_owned())
}

async fn claims(cluster: &Cluster, confined: &[String]) -> Result<Vec<ConsulLock>, KubectlError> {
    let mut found = Vec::new();
    let places: Vec<Api<ConsulLock>> = match confined {
        [] => vec![Api::all(cluster.client.clone())],
        names => names.iter().map(|name| Api::namespaced(cluster.client.clone(), name)).collect(),
    };
    for claims in places {
        let listed =
            cluster.call("list the ConsulLocks", claims.list(&ListParams::default())).await;
        found.extend(listed?.items);
    }
    Ok(found)
}

/// What keys may begin with: the key prefix, and what Namespaces allow beside it.
async fn prefixes(cluster: &Cluster, settings: &DoctorSettings) -> Vec<String> {
    let mut prefixes = vec![format!("{}/", settings.key_prefix)];
    let namespaces = Api::<Namespace>::all(cluster.client.clone());
    let params = ListParams::default();
    let listed = cluster.call("list the namespaces", namespaces.list(&params)).await;
    for namespace in listed.map(|listed| listed.items).unwrap_or_default() {
        let watched = &settings.watch_namespaces;
        if !watched.is_empty() && !watched.contains(&namespace.name_any()) {
            continue;
        }
        let annotation = namespace.annotations().get(KEY_PREFIXES_ANNOTATION);
        let listed = annotation.into_iter().flat_map(|list| list.split(',')).map(str::trim);
        prefixes.extend(listed.filter(|one| one.ends_with('/')).map(str::to_owned));
    }
    prefixes.sort();
    prefixes.dedup();
    prefixes
}

/// The shortest TTL that a claim asks for, and whose it is.
fn shortest_ttl(claims: &[ConsulLock]) -> (Duration, String) {
    let asked = claims.iter().filter_map(|claim| {
        let settings = claim.spec.settings().ok()?;
        Some((settings.session.ttl, claim))
    });
    match asked.min_by_key(|(ttl, _)| *ttl) {
        Some((ttl, claim)) => {
            let namespace = claim.namespace().unwrap_or_default();
            (ttl, format!("that of {namespace}/{}", claim.name_any()))
        }
        None => (DEFAULT_TTL, "the default, for there is no claim".to_owned()),
    }
}

/// Claims whose keys their Namespaces do not allow.
fn refused_keys(claims: &[ConsulLock]) -> Finding {
    const CHECK: &str = "Kubernetes: every claim's key is allowed in its namespace";
    let is_refused = |claim: &&ConsulLock| {
        let conditions = claim.status.iter().flat_map(|status| &status.conditions);
        let mut ready = conditions.filter(|condition| condition.type_ == "Ready");
        ready.any(|ready| ready.reason == "KeyNotAllowed")
    };
    let refused: Vec<&ConsulLock> = claims.iter().filter(is_refused).collect();
    if refused.is_empty() {
        return Finding::ok(CHECK, format!("{} claims", claims.len()));
    }
    let named = refused.iter().map(|claim| {
        let (namespace, key) = (claim.namespace().unwrap_or_default(), key(claim));
        format!("{namespace}/{} wants {key}", claim.name_any())
    });
    let repair = refused.iter().map(|claim| {
        let (namespace, key) = (claim.namespace().unwrap_or_default(), key(claim));
        let prefix = key.rfind('/').map_or("", |end| &key[..=end]);
        format!(
            "kubectl annotate namespace {namespace} {KEY_PREFIXES_ANNOTATION}={prefix} # a comma \
             list; --overwrite replaces one that is there"
        )
    });
    Finding::problem(CHECK, named.collect::<Vec<_>>().join(", "), repair.collect())
}

fn key(claim: &ConsulLock) -> String {
    claim.spec.key.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::sample, finding::Verdict, *};

    #[test]
    fn the_shortest_ttl_in_use_is_tried() {
        let short = sample::claim("quick", json!({ "session": { "ttl": "10s" } }), json!({}));
        let (ttl, whose) = shortest_ttl(&[sample::elected(), short]);
        assert_eq!((ttl, whose.as_str()), (Duration::from_secs(10), "that of shop/quick"));
        assert_eq!(shortest_ttl(&[]).0, DEFAULT_TTL);
    }

    #[test]
    fn a_key_that_is_not_allowed_is_repaired_by_an_annotation() {
        assert_eq!(refused_keys(&[sample::elected()]).verdict, Verdict::Ok);
        let status = json!({ "conditions": [{
            "type": "Ready", "status": "False", "reason": "KeyNotAllowed", "message": "m",
            "lastTransitionTime": "2026-01-02T03:00:00Z",
        }] });
        let refused = sample::claim("x", json!({ "key": "shared/jobs/x" }), status);
        let found = refused_keys(&[refused]);
        assert_eq!(found.detail, "shop/x wants shared/jobs/x");
        let expected = "kubectl annotate namespace shop consullock.dev/key-prefixes=shared/jobs/";
        assert!(found.repair[0].starts_with(expected), "{found:?}");
    }
}
