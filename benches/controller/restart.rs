//! The controller is killed while it holds a thousand claims; another one adopts them.

use std::{collections::BTreeMap, time::Duration};

use consul_lock::{
    api::Phase,
    clock::Instant,
    consul::{Blocking, Consistency, Consul, KvPair},
};
use kube::{ResourceExt, api::ListParams};

use crate::{
    Failure, Outcome,
    bed::{Bed, CLUSTER, Field, Replica},
    process::Connections,
    steady,
    table::{Aim, Row, Table, milliseconds},
};

/// How long all may take together.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often the new controller is asked.
const GLANCE: Duration = Duration::from_millis(50);
/// After this long every session that was not adopted has ended: twice the TTL, and then some.
const BEYOND_EXPIRY: Duration = Duration::from_secs(35);

/// A tenure as Kubernetes and Consul have it.
#[derive(Debug, PartialEq)]
struct Tenure {
    held: bool,
    token: Option<String>,
    session: Option<String>,
    transitions: i64,
}

/// Returns the controller that runs then.
pub(crate) async fn measure(
    bed: &Bed,
    field: &Field,
    replica: Replica,
    connections: &Connections,
    table: &mut Table,
) -> Outcome<Replica> {
    let (before, versions) = (tenures(field).await?, steady::versions(field).await?);
    replica.kill()?;
    let killed = field.clock.now();
    // The series of each claim tell which ones the new controller holds.
    let heir = Replica::start(bed, &["--per-claim-metrics"])?;
    let started = field.clock.now();
    connections.watch_instead(heir.pid()?);
    let (leads, adopted) = adoption(field, &heir, before.len()).await?;

    let what = format!("restart with {} Held claims", before.len());
    let row = Row::new(format!("{what}: new process started -> all adopted"));
    table.push(row.value(milliseconds(adopted.since(started))));
    let row = Row::new(format!("{what}: of these, from leading on"));
    table.push(row.value(milliseconds(adopted.since(leads))));
    table.note(format!(
        "The new process leads {} after its start: the Lease of the killed one has to run out \
         first (8 s). A second replica, or a SIGTERM instead of SIGKILL, shortens that.",
        milliseconds(leads.since(started))
    ));

    let lost = |now: &BTreeMap<String, Tenure>| {
        before.iter().filter(|(name, tenure)| now.get(*name) != Some(tenure)).count()
    };
    let at_once = lost(&tenures(field).await?);
    field.clock.sleep_until(killed + BEYOND_EXPIRY).await;
    let later = lost(&tenures(field).await?);
    let row = Row::new(format!("{what}: tenures lost"));
    let lost = at_once.max(later);
    table.push(row.value(lost.to_string()).aim(Aim::Must, "0", lost == 0));
    let rewritten = steady::versions(field).await?;
    let rewritten = versions.iter().filter(|(name, old)| rewritten.get(*name) != Some(old)).count();
    let row = Row::new(format!("{what}: claims whose resource version changed"));
    table.push(row.value(rewritten.to_string()));
    table.note(format!(
        "A tenure counts as lost unless phase, fencing token, session and transitions in the \
         status are what they were, and that session holds the key in Consul; looked at when \
         all were adopted and again {} s after the kill.",
        BEYOND_EXPIRY.as_secs()
    ));
    Ok(heir)
}

/// When the new controller led, and when it held all of them.
async fn adoption(field: &Field, heir: &Replica, count: usize) -> Outcome<(Instant, Instant)> {
    let deadline = field.clock.now() + PATIENCE;
    let mut leads = None;
    loop {
        let scrape = heir.scrape();
        let now = field.clock.now();
        if let Some(scrape) = scrape {
            if scrape.sum("consul_lock_leader", &[]) == 1.0 {
                leads.get_or_insert(now);
            }
            let held = scrape.sum("consul_lock_claim_held", &[]) as usize;
            if let Some(leads) = leads.filter(|_| held == count) {
                return Ok((leads, now));
            }
        }
        if now >= deadline {
            return Err(Failure::InVain("the new controller to adopt all claims".into()));
        }
        field.clock.sleep_until(now + GLANCE).await;
    }
}

async fn tenures(field: &Field) -> Outcome<BTreeMap<String, Tenure>> {
    let blocking = Blocking { after: 0, wait: Duration::from_secs(1) };
    let prefix = format!("{CLUSTER}/");
    let listing = field.consul.watch_prefix(&prefix, blocking, Consistency::Consistent).await?;
    let pairs: BTreeMap<&str, &KvPair> =
        listing.pairs.iter().map(|pair| (pair.key.as_str(), pair)).collect();
    let claims = field.ours.list(&ListParams::default()).await?;
    let tenure = |claim: consul_lock::api::ConsulLock| {
        let name = claim.name_any();
        let status = claim.status.unwrap_or_default();
        let pair = status.key.as_deref().and_then(|key| pairs.get(key));
        let session = status.session.and_then(|session| session.id);
        let in_consul = pair.and_then(|pair| pair.session.as_ref()).map(ToString::to_string);
        let tenure = Tenure {
            held: status.phase == Some(Phase::Held) && session == in_consul,
            token: status.fencing_token,
            session,
            transitions: status.transitions,
        };
        (name, tenure)
    };
    Ok(claims.items.into_iter().map(tenure).collect())
}
