//! Nothing happens to a thousand held claims: what that costs.

use std::{collections::BTreeMap, time::Duration};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, ResourceExt,
    api::{ListParams, WatchEvent, WatchParams},
};
use tokio::task::JoinSet;

use crate::{
    Outcome,
    bed::{Bed, Field, OURS, Replica},
    process,
    prometheus::Scrape,
    table::{Aim, Row, Table},
};

/// Resident memory, at most.
const RSS_MB: f64 = 60.0;

/// Everything that is counted, at one instant.
struct Count {
    versions: BTreeMap<String, String>,
    api: Scrape,
    controller: Scrape,
    processor: Duration,
}

impl Count {
    async fn take(field: &Field, replica: &Replica) -> Outcome<Count> {
        Ok(Count {
            versions: versions(field).await?,
            api: field.api_requests().await?,
            controller: replica.scrape().unwrap_or_else(|| Scrape::new(String::new())),
            processor: process::processor_time(replica.pid()?)?,
        })
    }
}

/// Name and resource version of each of our claims.
pub(crate) async fn versions(field: &Field) -> Outcome<BTreeMap<String, String>> {
    let claims = field.ours.list(&ListParams::default()).await?;
    let version = |claim: consul_lock::api::ConsulLock| {
        (claim.name_any(), claim.resource_version().unwrap_or_default())
    };
    Ok(claims.items.into_iter().map(version).collect())
}

pub(crate) async fn watch(
    bed: &Bed,
    field: &Field,
    replica: &Replica,
    span: Duration,
    table: &mut Table,
) -> Outcome<()> {
    let leases = count_lease_writes(field).await?;
    let before = Count::take(field, replica).await?;
    let began = field.clock.now();
    let mut telemetry = BTreeMap::new();
    while field.clock.now().since(began) < span {
        telemetry.extend(consul_requests(bed));
        field.pause(Duration::from_secs(1)).await;
    }
    let took = field.clock.now().since(began).as_secs_f64();
    let after = Count::take(field, replica).await?;
    let own_leases = leases.finish().await?;
    let claims = before.versions.len();
    let span = format!("{claims} Held claims over {took:.0} s");

    writes(&span, &before, &after, own_leases, table);
    consul(&span, took / 60.0 * claims as f64, &before, &after, &telemetry, claims, table);
    let (resident, most) = process::memory(replica.pid()?)?;
    let row = Row::new(format!("{span}: resident memory")).value(format!("{resident:.1} MB"));
    table.push(row.aim(Aim::Wish, format!("at most {RSS_MB} MB"), resident <= RSS_MB));
    let row = Row::new("resident memory, the most at any time until then");
    table.push(row.value(format!("{most:.1} MB")));
    let processor = after.processor.saturating_sub(before.processor).as_secs_f64();
    let row = Row::new(format!("{span}: processor time"));
    table.push(row.value(format!("{:.1} % of a core", processor / took * 100.0)));
    Ok(())
}

fn writes(span: &str, before: &Count, after: &Count, own_leases: usize, table: &mut Table) {
    let must_be_none =
        |row: Row, count: u64| row.value(count.to_string()).aim(Aim::Must, "0", count == 0);
    let changed =
        before.versions.iter().filter(|(name, version)| after.versions.get(*name) != Some(version));
    let changed = changed.count() + after.versions.len().abs_diff(before.versions.len());
    let row = Row::new(format!("{span}: claims whose resource version changed"));
    table.push(must_be_none(row, changed as u64));
    for resource in ["consullocks", "events"] {
        let count = after.api.writes(resource) - before.api.writes(resource);
        let row = Row::new(format!("{span}: the API server's count of writes, {resource}"));
        table.push(must_be_none(row, count));
    }
    let leases = after.api.writes("leases") - before.api.writes("leases");
    let row = Row::new(format!("{span}: writes of leases (expected: the leader's renewals)"));
    table.push(row.value(format!("{own_leases}")));
    table.note(format!(
        "The leader renews its Lease about once a second: {own_leases} writes. The API server \
         counts {leases} writes of Leases in all; the others are its own."
    ));
}

fn consul(
    span: &str,
    claim_minutes: f64,
    before: &Count,
    after: &Count,
    telemetry: &BTreeMap<String, u64>,
    claims: usize,
    table: &mut Table,
) {
    let requests = after.controller.consul_requests() - before.controller.consul_requests();
    let per_claim = requests as f64 / claim_minutes;
    let row = Row::new(format!("{span}: requests to Consul per claim and minute"));
    table.push(row.value(format!("{per_claim:.2}")));
    let mut by_operation: BTreeMap<String, f64> = BTreeMap::new();
    for (sign, count) in [(-1.0, before), (1.0, after)] {
        for (labels, value) in count.controller.series("consul_lock_consul_requests_total", &[]) {
            *by_operation.entry(labels.to_owned()).or_default() += sign * value;
        }
    }
    by_operation.retain(|_, count| *count != 0.0);
    let by_operation: Vec<_> =
        by_operation.iter().map(|(labels, count)| format!("{count} {labels}")).collect();
    let seconds = 10.0 * telemetry.len() as f64;
    let counted = telemetry.values().sum::<u64>() as f64 / seconds * 60.0 / claims as f64;
    table.note(format!(
        "Requests to Consul by the controller's own count: {}. By Consul's count (consul.api.http, \
         {seconds:.0} s of it): {counted:.2} per claim and minute.",
        by_operation.join(", ")
    ));
}

/// Requests that Consul counted in the last whole interval of ten seconds, by the interval's
/// beginning; without the ones that ask for this.
fn consul_requests(bed: &Bed) -> Option<(String, u64)> {
    let ask = || bed.consul.request("GET", "/v1/agent/metrics", b"").ok();
    let metrics = tokio::task::block_in_place(ask)?.json();
    let samples = metrics["Samples"].as_array()?;
    let counted = samples.iter().filter(|sample| {
        let ours = sample["Labels"]["path"].as_str().is_some_and(|path| path.contains("agent"));
        sample["Name"].as_str() == Some("consul.api.http") && !ours
    });
    let count = counted.filter_map(|sample| sample["Count"].as_u64()).sum();
    Some((metrics["Timestamp"].as_str()?.to_owned(), count))
}

/// Counts the changes of the controller's Leases.
struct LeaseWrites(JoinSet<()>, std::sync::Arc<std::sync::atomic::AtomicUsize>);

impl LeaseWrites {
    async fn finish(mut self) -> Outcome<usize> {
        self.0.shutdown().await;
        Ok(self.1.load(std::sync::atomic::Ordering::Relaxed))
    }
}

async fn count_lease_writes(field: &Field) -> Outcome<LeaseWrites> {
    let leases: Api<Lease> = Api::namespaced(field.client.clone(), OURS);
    let from = leases.list(&ListParams::default()).await?.metadata.resource_version;
    let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (counted, mut watching) = (std::sync::Arc::clone(&count), JoinSet::new());
    watching.spawn(async move {
        let params = WatchParams::default().timeout(290);
        let Ok(events) = leases.watch(&params, &from.unwrap_or_default()).await else { return };
        let mut events = events.boxed();
        while let Ok(Some(event)) = events.try_next().await {
            if matches!(event, WatchEvent::Added(_) | WatchEvent::Modified(_)) {
                counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        }
    });
    Ok(LeaseWrites(watching, count))
}
