//! A witness of everything that becomes of a site's pods and slices, version by version.
//!
//! It watches, so it misses no version, however briefly it lasted; and since versions of one API
//! server are in one order whatever the kind, it knows what came before what.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;

use consul_lock::clock::Clock;
use futures::StreamExt;
use k8s_openapi::api::{core::v1::Pod, discovery::v1::EndpointSlice};
use kube::{
    Api, Resource, ResourceExt,
    api::{ListParams, WatchEvent, WatchParams},
};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use crate::{
    fixtures::PATIENCE,
    site::{Site, eventually},
};

/// Something that was written, and the version that it made.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) version: u64,
    pub(crate) what: What,
}

/// How a pod or a slice was then.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum What {
    Pod(Wearer),
    /// The pods that are endpoints of the slice, and the token that it tells.
    Slice {
        name: String,
        pods: Vec<String>,
        token: Option<u64>,
    },
}

/// A pod, and what it carried of the claim's badge.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Wearer {
    pub(crate) pod: String,
    pub(crate) uid: String,
    pub(crate) labelled: bool,
    pub(crate) token: Option<u64>,
    pub(crate) deleting: bool,
    pub(crate) gone: bool,
}

/// Everything that was seen of one claim's pods and one Service's slices.
pub(crate) struct Witness {
    seen: Arc<Mutex<Vec<Seen>>>,
    _tasks: JoinSet<()>,
}

impl Witness {
    pub(crate) async fn of(site: &Site, claim: &str, service: &str) -> Witness {
        let (seen, mut tasks) = (Arc::default(), JoinSet::new());
        let (claim, service) = (claim.to_owned(), service.to_owned());
        let pods: Api<Pod> = Api::namespaced(site.client.clone(), &site.namespace);
        let slices: Api<EndpointSlice> = Api::namespaced(site.client.clone(), &site.namespace);
        let clock = site.clock().clone();
        let pod = move |pod: &Pod, gone| Some(of_pod(pod, &claim, gone));
        let slice = move |slice: &EndpointSlice, gone| of_slice(slice, &service, gone);
        follow(&mut tasks, pods, clock.clone(), Arc::clone(&seen), pod).await;
        follow(&mut tasks, slices, clock, Arc::clone(&seen), slice).await;
        Witness { seen, _tasks: tasks }
    }

    /// Everything so far, in the order in which it was written.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        let mut seen = self.seen.lock().clone();
        seen.sort_by_key(|one| one.version);
        seen
    }

    /// Waits until something has been seen, after `since`; its version.
    pub(crate) async fn until(&self, what: &str, since: u64, good: impl Fn(&What) -> bool) -> u64 {
        let clock = Clock::boot();
        let deadline = clock.now() + PATIENCE;
        loop {
            let seen = self.seen();
            let found = seen.iter().find(|one| one.version > since && good(&one.what));
            if let Some(found) = found {
                return found.version;
            }
            let last: Vec<_> = seen.iter().rev().take(8).collect();
            assert!(clock.now() < deadline, "waited for {what}; last: {last:#?}");
            clock.sleep_until(clock.now() + Duration::from_millis(1)).await;
        }
    }

    /// The newest version that was seen.
    pub(crate) fn newest(&self) -> u64 {
        self.seen().last().map_or(0, |last| last.version)
    }

    /// Never two endpoints, never two pods with the label, and tokens never go back, on slices, on
    /// pods and between the two: an endpoint's pod carries the label and the same token.
    pub(crate) fn assert_orderly(&self) {
        let mut endpoints: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut labelled: BTreeSet<String> = BTreeSet::new();
        let (mut on_slices, mut on_pods) = (0, 0);
        for one in self.seen() {
            match &one.what {
                What::Slice { name, pods, token } => {
                    endpoints.insert(name.clone(), pods.clone());
                    let all: Vec<_> = endpoints.values().flatten().collect();
                    assert!(all.len() <= 1, "two endpoints, {all:?}: {one:?}");
                    if !pods.is_empty() {
                        let token = token.expect("an endpoint has a token");
                        assert!(token >= on_slices, "{on_slices} was there before {one:?}");
                        on_slices = token;
                        assert!(token <= on_pods, "no pod knew of it before: {one:?}");
                    }
                }
                What::Pod(wearer) => {
                    if wearer.labelled && !wearer.gone {
                        labelled.insert(wearer.uid.clone());
                    } else {
                        labelled.remove(&wearer.uid);
                    }
                    assert!(labelled.len() <= 1, "two pods with the label: {one:?}");
                    if let Some(token) = wearer.token.filter(|_| wearer.labelled) {
                        assert!(token >= on_pods, "{on_pods} was there before {one:?}");
                        on_pods = token;
                    }
                }
            }
        }
    }

    /// The names of pods that were deleted, once for each.
    pub(crate) fn deleted(&self) -> Vec<String> {
        let mut uids = BTreeSet::new();
        let mut deleted = Vec::new();
        for one in self.seen() {
            if let What::Pod(wearer) = one.what
                && (wearer.deleting || wearer.gone)
                && uids.insert(wearer.uid)
            {
                deleted.push(wearer.pod);
            }
        }
        deleted
    }

    /// Waits until the witness has seen what the API server has now.
    pub(crate) async fn catches_up(&self, site: &Site) {
        let newest = async {
            let (mut newest, all) = (0, ListParams::default());
            let pods: Api<Pod> = Api::namespaced(site.client.clone(), &site.namespace);
            for pod in pods.list(&all).await.unwrap().items {
                newest = newest.max(version(&pod));
            }
            let slices: Api<EndpointSlice> = Api::namespaced(site.client.clone(), &site.namespace);
            for slice in slices.list(&all).await.unwrap().items {
                newest = newest.max(version(&slice));
            }
            newest
        }
        .await;
        eventually("the witness to catch up", || async {
            let seen = self.newest();
            if seen >= newest { Ok(()) } else { Err(seen) }
        })
        .await;
    }
}

fn version(object: &impl Resource) -> u64 {
    object.meta().resource_version.as_deref().unwrap().parse().unwrap()
}

fn of_pod(pod: &Pod, claim: &str, gone: bool) -> What {
    let label = pod.labels().get(&format!("consullock.dev/{claim}"));
    let token = pod.annotations().get(&format!("token.consullock.dev/{claim}"));
    What::Pod(Wearer {
        pod: pod.name_any(),
        uid: pod.uid().unwrap(),
        labelled: label.is_some(),
        token: token.and_then(|token| token.parse().ok()),
        deleting: pod.metadata.deletion_timestamp.is_some(),
        gone,
    })
}

fn of_slice(slice: &EndpointSlice, service: &str, gone: bool) -> Option<What> {
    let of = slice.labels().get("kubernetes.io/service-name")?;
    let serves = of == service && !gone;
    let endpoints = slice.endpoints.iter().filter(|_| serves);
    let pods = endpoints.map(|one| one.target_ref.as_ref().and_then(|to| to.name.clone()));
    let token = slice.annotations().get("consullock.dev/fencing-token");
    Some(What::Slice {
        name: slice.name_any(),
        pods: pods.map(Option::unwrap_or_default).collect(),
        token: token.and_then(|token| token.parse().ok()),
    })
}

/// Watches from what there is now on, through whatever becomes of the API server.
async fn follow<K>(
    tasks: &mut JoinSet<()>,
    api: Api<K>,
    clock: Clock,
    seen: Arc<Mutex<Vec<Seen>>>,
    read: impl Fn(&K, bool) -> Option<What> + Send + 'static,
) where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let keep = move |object: &K, gone| {
        if let Some(what) = read(object, gone) {
            seen.lock().push(Seen { version: version(object), what });
        }
        version(object)
    };
    let now = api.list(&ListParams::default()).await.unwrap();
    now.items.iter().for_each(|object| {
        keep(object, false);
    });
    let mut from = now.metadata.resource_version.unwrap();
    tasks.spawn(async move {
        loop {
            let params = WatchParams::default().timeout(290).disable_bookmarks();
            if let Ok(events) = api.watch(&params, &from).await {
                let mut events = std::pin::pin!(events);
                while let Some(Ok(event)) = events.next().await {
                    from = match event {
                        WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                            keep(&object, false).to_string()
                        }
                        WatchEvent::Deleted(object) => keep(&object, true).to_string(),
                        // A restarted API server does not remember so far back.
                        WatchEvent::Error(_) => match api.list(&ListParams::default()).await {
                            Ok(now) => {
                                now.items.iter().for_each(|object| {
                                    keep(object, false);
                                });
                                now.metadata.resource_version.unwrap()
                            }
                            Err(_) => break,
                        },
                        WatchEvent::Bookmark(_) => continue,
                    };
                }
            }
            clock.sleep_until(clock.now() + Duration::from_millis(20)).await;
        }
    });
}
