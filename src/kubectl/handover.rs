//! `handover`: the present tenure ends in favour of another pod, or of another contender.
//!
//! It is asked for by an annotation that names the tenure; the controller carries it out. So asking
//! twice, or too late, does nothing.

use k8s_openapi::api::core::v1::Pod;
use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
    core::SelectorExt,
};
use serde_json::{Value, json};

use super::{Cluster, KubectlError, Patience, rows::Row, table::clean, waiting};
use crate::{
    api::{ConsulLock, Mode, Phase},
    election::{HANDOVER_ANNOTATION, Handover, HandoverRefusal, Ineligible},
    lock::EndReason,
    names::FencingToken,
};

/// What the controller says when it does not hand a tenure over.
const REFUSED: &str = "HandoverRefused";

pub(super) async fn hand_over(
    cluster: &Cluster,
    name: &str,
    to: Option<&str>,
    patience: Patience,
) -> Result<String, KubectlError> {
    let claim = cluster.claim(name).await?;
    let token = present(&claim).map_err(KubectlError::Refused)?;
    if let Some(pod) = to {
        may_follow(cluster, &claim, pod).await?;
    }
    let asked = Handover { token, to: to.map(Into::into) };
    let before = cluster.clock.now();
    ask(cluster, name, Some(&asked)).await?;
    let holder = Row::of(&claim).holder.unwrap_or_default();
    let Some(limit) = patience else {
        return Ok(format!("consullock.consullock.dev/{name}: {holder} was asked to hand over\n"));
    };
    let itself = claim.spec.candidates.is_none();
    let is_over = |claim: &ConsulLock| outcome(claim, token, itself).is_some();
    let now = waiting::until(cluster, name, limit, is_over).await?;
    let outcome = now.as_ref().and_then(|now| outcome(now, token, itself));
    // Once it is over it means nothing; where it is not, nobody is to be surprised by it later.
    withdraw(cluster, name, &asked).await;
    match outcome {
        Some(Ok(words)) => {
            let took = cluster.clock.now().since(before).as_secs_f64();
            Ok(format!("consullock.consullock.dev/{name}: {words}, after {took:.1} s\n"))
        }
        Some(Err(refusal)) => Err(KubectlError::Refused(format!(
            "{}/{name} was not handed over: {refusal}",
            cluster.namespace
        ))),
        None => Err(KubectlError::TimedOut(format!(
            "{}/{name} was not handed over within {limit:?}, and the request is withdrawn; is a \
             controller running?",
            cluster.namespace
        ))),
    }
}

/// The token of the tenure that can be handed over.
fn present(claim: &ConsulLock) -> Result<FencingToken, String> {
    let (row, name) = (Row::of(claim), claim.name_any());
    let namespace = claim.namespace().unwrap_or_default();
    if claim.spec.mode == Mode::Agent {
        return Err(format!(
            "{namespace}/{name} has mode: Agent: its pods hold the key by themselves, and the one \
             that does is to be told to stop (delete it); `kubectl consullock -n {namespace} \
             release {name}` takes the key from it by force"
        ));
    }
    let token = row.token.as_ref().and_then(|token| token.parse().ok());
    match (token, &row.holder) {
        (Some(token), _) if row.phase == Phase::Held.as_str() => Ok(token),
        (_, Some(holder)) if row.stranger => Err(format!(
            "the stranger {holder} holds the key of {namespace}/{name}: whoever runs it has to stop \
             it; `kubectl consullock -n {namespace} release {name}` takes the key from it by force"
        )),
        (_, Some(holder)) => {
            let cluster = row.cluster.as_deref().map_or_else(
                || "outside of every cluster".to_owned(),
                |cluster| format!("in cluster {cluster}"),
            );
            Err(format!(
                "{holder} {cluster} holds the key of {namespace}/{name}, and is to be asked there; \
                 `kubectl consullock -n {namespace} release {name}` takes the key from it by force"
            ))
        }
        _ => Err(format!(
            "{namespace}/{name} does not hold its key, so there is nothing to hand over: {} {}",
            row.phase,
            row.message.unwrap_or_default()
        )),
    }
}

/// Whether a pod may follow, as far as it can be seen from here; the controller has the last word.
async fn may_follow(cluster: &Cluster, claim: &ConsulLock, name: &str) -> Result<(), KubectlError> {
    let refused = |why: HandoverRefusal| {
        let claim = claim.name_any();
        KubectlError::Refused(format!("{claim} cannot be handed over to pod {name}: {why}"))
    };
    let settings = claim.spec.settings();
    let settings = settings.map_err(|error| KubectlError::Refused(error.to_string()))?;
    let Some(candidates) = settings.candidates else {
        return Err(refused(HandoverRefusal::ElectsNobody));
    };
    let attempt = format!("read the pod {}/{name}", cluster.namespace);
    let pod = cluster.call(attempt, cluster.within::<Pod>().get_opt(name)).await?;
    let leader = claim.status.as_ref().and_then(|status| status.holder.as_ref());
    let leads = leader.is_some_and(|holder| holder.pod.as_deref() == Some(name));
    let why = match pod {
        Some(pod) if candidates.selector.matches(pod.labels()) => match () {
            () if leads => Some(HandoverRefusal::Leads(name.into())),
            () if candidates.gate.is_some() => Some(HandoverRefusal::Gate),
            () => ineligible(&pod).map(|why| HandoverRefusal::Ineligible(name.into(), why)),
        },
        _ => Some(HandoverRefusal::NoCandidate(name.into())),
    };
    why.map_or(Ok(()), |why| Err(refused(why)))
}

fn ineligible(pod: &Pod) -> Option<Ineligible> {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let is_ready = conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    match (pod.metadata.deletion_timestamp.is_some(), is_ready) {
        (true, _) => Some(Ineligible::Deleting),
        (false, false) => Some(Ineligible::NotReady),
        (false, true) => None,
    }
}

/// What became of it; `None`: nothing yet. `itself`: the claim elects no pods.
fn outcome(
    claim: &ConsulLock,
    token: FencingToken,
    itself: bool,
) -> Option<Result<String, String>> {
    let status = claim.status.as_ref()?;
    let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
    if status.fencing_token.as_ref() == Some(&token.to_string()) {
        let refusal = ready.filter(|ready| ready.reason == REFUSED)?;
        return Some(Err(clean(&refusal.message)));
    }
    if status.phase == Some(Phase::Releasing) {
        // The status goes on naming the one that is just giving it up.
        return None;
    }
    let past = status.history.iter().find(|past| past.token == token.to_string());
    let ended = match past.map(|past| (EndReason::named(&past.reason), &past.reason)) {
        Some((Some(EndReason::HandedOver), _)) => String::new(),
        Some((_, reason)) => format!(" (the tenure ended otherwise: {})", clean(reason)),
        None => return None,
    };
    let holder = status.holder.as_ref().map(|holder| clean(&holder.identity));
    let now = match (&status.fencing_token, holder) {
        (Some(token), holder) => {
            let holder = holder.unwrap_or_default();
            let (again, why) =
                if itself { (" again", ", for nobody else took it") } else { ("", "") };
            format!("{holder} holds the key{again} with token {token}{why}")
        }
        (None, Some(holder)) => format!("{holder} holds the key"),
        // Somebody else may be about to take it.
        (None, None) => return None,
    };
    Some(Ok(format!("{now}{ended}")))
}

/// Sets the annotation, or removes it.
async fn ask(
    cluster: &Cluster,
    name: &str,
    handover: Option<&Handover>,
) -> Result<(), KubectlError> {
    let value = handover.map_or(Value::Null, |asked| json!(asked.to_string()));
    let annotations = json!({ HANDOVER_ANNOTATION: value });
    let patch = Patch::Merge(json!({ "metadata": { "annotations": annotations } }));
    let (claims, params) = (cluster.claims(), PatchParams::default());
    let attempt = format!("annotate the ConsulLock {}/{name}", cluster.namespace);
    cluster.call(attempt, claims.patch(name, &params, &patch)).await?;
    Ok(())
}

/// Removes our request, if it still is ours.
async fn withdraw(cluster: &Cluster, name: &str, asked: &Handover) {
    let claim = cluster.claim(name).await;
    let ours = |claim: &ConsulLock| {
        claim.annotations().get(HANDOVER_ANNOTATION) == Some(&asked.to_string())
    };
    if claim.is_ok_and(|claim| ours(&claim))
        && let Err(error) = ask(cluster, name, None).await
    {
        eprintln!("the request stays: {error}");
    }
}
