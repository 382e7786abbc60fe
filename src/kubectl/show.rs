//! `list`, `describe`, `history` and `watch`.

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::events::v1::Event;
use kube::{
    Api, ResourceExt,
    api::ListParams,
    runtime::{
        WatchStreamExt,
        watcher::{self, watcher},
    },
};

use super::{
    Cluster, Format, KubectlError, Scope, Screen,
    changes::{Change, Changes},
    describe::Description,
    rows::{self, Row},
    signalled,
};
use crate::api::ConsulLock;

pub(super) async fn list(
    cluster: &Cluster,
    confined: bool,
    screen: &Screen,
) -> Result<(), KubectlError> {
    let scope = if confined { Scope::Namespace } else { Scope::Everywhere };
    let rows: Vec<Row> = claims(cluster, &scope).await?.iter().map(Row::of).collect();
    if rows.is_empty() {
        nothing_found(cluster, &scope, screen);
    }
    let (wide, now) = (screen.format == Format::Wide, cluster.clock.wall());
    screen.show(&rows, |paint| match rows.is_empty() {
        true => String::new(),
        false => rows::list(&rows, wide, now, paint),
    })
}

pub(super) async fn describe(
    cluster: &Cluster,
    names: &[String],
    screen: &Screen,
) -> Result<(), KubectlError> {
    let mut found = Vec::new();
    match names {
        [] => found = claims(cluster, &Scope::Namespace).await?,
        names => {
            for name in names {
                found.push(cluster.claim(name).await?);
            }
        }
    }
    if found.is_empty() {
        nothing_found(cluster, &Scope::Namespace, screen);
    }
    let mut described = Vec::new();
    for claim in &found {
        described.push(Description::of(claim, &events(cluster, claim).await?));
    }
    let now = cluster.clock.wall();
    screen.show(&described, |paint| {
        let texts = described.iter().map(|one| one.text(now, paint));
        texts.collect::<Vec<_>>().join("\n\n")
    })
}

pub(super) async fn history(
    cluster: &Cluster,
    scope: &Scope,
    screen: &Screen,
) -> Result<(), KubectlError> {
    let mut tenures: Vec<_> =
        claims(cluster, scope).await?.iter().flat_map(rows::tenures).collect();
    tenures.sort_by_key(|one| std::cmp::Reverse(one.from));
    let named = matches!(scope, Scope::Claim(_));
    if tenures.is_empty() && matches!(screen.format, Format::Table | Format::Wide) {
        eprintln!("No tenure found.");
    }
    let now = cluster.clock.wall();
    screen.show(&tenures, |paint| match tenures.is_empty() {
        true => String::new(),
        false => rows::history(&tenures, named, now, paint),
    })
}

/// Ends by itself only when nobody reads any more, or with SIGINT or SIGTERM.
pub(super) async fn watch(
    cluster: &Cluster,
    scope: &Scope,
    screen: &Screen,
) -> Result<(), KubectlError> {
    let (api, config) = match scope {
        Scope::Everywhere => (Api::all(cluster.client.clone()), watcher::Config::default()),
        Scope::Namespace => (cluster.claims(), watcher::Config::default()),
        Scope::Claim(name) => {
            // Who mistypes a name would wait for ever.
            cluster.claim(name).await?;
            let only = format!("metadata.name={name}");
            (cluster.claims(), watcher::Config::default().fields(&only))
        }
    };
    let mut changes = Changes::default();
    // Nobody's first sight of the cluster may fail silently; later on it is tried again and again.
    let first: Result<Vec<ConsulLock>, _> = claims(cluster, scope).await;
    first?;
    let follow = async {
        let mut events = watcher::<ConsulLock>(api, config).default_backoff().boxed();
        loop {
            match events.try_next().await {
                Ok(Some(event)) => {
                    for change in changes.take_in(event, cluster.clock.wall()) {
                        screen.stream(&change, |paint| Change::line(&change, paint))?;
                    }
                }
                Ok(None) => return Ok(()),
                Err(error) => eprintln!("cannot follow the ConsulLocks, trying again: {error}"),
            }
        }
    };
    tokio::select! {
        ended = follow => ended,
        signalled = signalled() => signalled,
    }
}

async fn claims(cluster: &Cluster, scope: &Scope) -> Result<Vec<ConsulLock>, KubectlError> {
    let everything = ListParams::default();
    let mut found = match scope {
        Scope::Claim(name) => vec![cluster.claim(name).await?],
        Scope::Namespace => {
            let attempt = format!("list the ConsulLocks of {}", cluster.namespace);
            cluster.call(attempt, cluster.claims().list(&everything)).await?.items
        }
        Scope::Everywhere => {
            let claims = Api::<ConsulLock>::all(cluster.client.clone());
            let attempt = "list the ConsulLocks of all namespaces (-n narrows it to one)";
            cluster.call(attempt, claims.list(&everything)).await?.items
        }
    };
    found.sort_by_key(|claim| (claim.namespace(), claim.name_any()));
    Ok(found)
}

/// The events about a claim; none where they may not be listed.
async fn events(cluster: &Cluster, claim: &ConsulLock) -> Result<Vec<Event>, KubectlError> {
    let uid = claim.uid().unwrap_or_default();
    let about = ListParams::default().fields(&format!("regarding.uid={uid}"));
    let events = cluster.within::<Event>();
    let listed = cluster.call("list the events", events.list(&about)).await;
    match listed {
        Ok(events) => Ok(events.items),
        Err(KubectlError::Api { source, .. }) if matches!(&*source, kube::Error::Api(status) if status.is_forbidden()) =>
        {
            eprintln!("The events may not be listed.");
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

/// As kubectl says it.
fn nothing_found(cluster: &Cluster, scope: &Scope, screen: &Screen) {
    if matches!(screen.format, Format::Table | Format::Wide) {
        match scope {
            Scope::Everywhere => eprintln!("No ConsulLocks found."),
            _ => eprintln!("No ConsulLocks found in {} namespace.", cluster.namespace),
        }
    }
}
