//! Claims as rows: who holds what, since when, and who is next. Pure.

use jiff::Timestamp;
use kube::ResourceExt;
use serde::Serialize;

use super::{
    screen::{Paint, Tone},
    table::{Cell, Table, age, clean, short},
};
use crate::api::{ConsulLock, ConsulLockStatus, Phase};

/// One claim, as a program reads it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) phase: &'static str,
    /// Who holds the key, whoever that is.
    pub(super) holder: Option<String>,
    pub(super) cluster: Option<String>,
    pub(super) stranger: bool,
    /// Of the claim's own tenure.
    pub(super) token: Option<String>,
    pub(super) since: Option<Timestamp>,
    /// Who would follow, as far as this cluster knows.
    pub(super) next: Option<String>,
    pub(super) key: Option<String>,
    pub(super) session: Option<String>,
    pub(super) reason: Option<String>,
    pub(super) message: Option<String>,
}

/// One tenure, present or past.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Tenure {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) holder: String,
    pub(super) token: String,
    pub(super) from: Timestamp,
    /// `None`: it lasts.
    pub(super) to: Option<Timestamp>,
    /// Why it ended.
    pub(super) reason: Option<String>,
}

impl Row {
    pub(super) fn of(claim: &ConsulLock) -> Row {
        let none = ConsulLockStatus::default();
        let status = claim.status.as_ref().unwrap_or(&none);
        let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
        let holder = status.holder.as_ref();
        let text = |text: &String| clean(text);
        Row {
            namespace: claim.namespace().unwrap_or_default(),
            name: claim.name_any(),
            phase: status.phase.unwrap_or_default().as_str(),
            holder: holder.map(|holder| clean(&holder.identity)),
            cluster: holder.and_then(|holder| holder.cluster.as_ref()).map(text),
            stranger: holder.is_some_and(|holder| holder.stranger),
            token: status.fencing_token.as_ref().map(text),
            since: status.acquired_at.as_ref().map(|time| time.0),
            next: next(claim, status).as_ref().map(text),
            key: status.key.as_ref().or(claim.spec.key.as_ref()).map(text),
            session: status.session.as_ref().and_then(|session| session.id.as_ref()).map(text),
            reason: ready.map(|ready| clean(&ready.reason)),
            message: ready.map(|ready| clean(&ready.message)),
        }
    }
}

/// Who would have the key next, of those whom this claim knows of: who else contends in Consul is
/// not known to anybody.
fn next(claim: &ConsulLock, status: &ConsulLockStatus) -> Option<String> {
    let contends = matches!(
        status.phase,
        Some(Phase::Held | Phase::Waiting | Phase::LockDelay | Phase::Releasing)
    );
    let holds = status.fencing_token.is_some();
    match &status.candidates {
        _ if !contends => None,
        Some(candidates) if holds => candidates.next.clone(),
        Some(candidates) => candidates.first.clone(),
        None if holds => None,
        None => Some(claim.name_any()),
    }
}

/// The tenures that the status tells of, the newest first.
pub(super) fn tenures(claim: &ConsulLock) -> Vec<Tenure> {
    let Some(status) = &claim.status else { return Vec::new() };
    let (namespace, name) = (claim.namespace().unwrap_or_default(), claim.name_any());
    let token = status.fencing_token.as_deref().map(clean);
    let present = token.zip(status.acquired_at.as_ref());
    let present = present.map(|(token, from)| Tenure {
        namespace: namespace.clone(),
        name: name.clone(),
        holder: status.holder.as_ref().map(|holder| clean(&holder.identity)).unwrap_or_default(),
        token,
        from: from.0,
        to: None,
        reason: None,
    });
    let past = status.history.iter().map(|past| Tenure {
        namespace: namespace.clone(),
        name: name.clone(),
        holder: clean(&past.holder),
        token: clean(&past.token),
        from: past.from.0,
        to: Some(past.to.0),
        reason: Some(clean(&past.reason)),
    });
    present.into_iter().chain(past).collect()
}

pub(super) fn tone(phase: &str) -> Tone {
    match phase {
        "Held" => Tone::Good,
        "Failed" | "Unknown" => Tone::Bad,
        "Waiting" | "LockDelay" | "Releasing" | "Pending" => Tone::Busy,
        _ => Tone::Plain,
    }
}

/// `consullock list`.
pub(super) fn list(rows: &[Row], wide: bool, now: Timestamp, paint: Paint) -> String {
    let mut head = vec!["NAMESPACE", "NAME", "PHASE", "HOLDER", "TOKEN", "SINCE", "NEXT"];
    if wide {
        head.extend(["CLUSTER", "KEY", "SESSION", "REASON"]);
    }
    let mut table = Table::new(&head);
    let cell = |text: &Option<String>| Cell::from(text.as_deref().unwrap_or_default());
    for row in rows {
        let mut cells = vec![
            Cell::from(&row.namespace),
            Cell::from(&row.name),
            Cell::toned(row.phase, tone(row.phase)),
            cell(&row.holder),
            cell(&row.token),
            cell(&row.since.map(|since| age(since, now))),
            cell(&row.next),
        ];
        if wide {
            cells.extend([&row.cluster, &row.key, &row.session, &row.reason].map(cell));
        }
        table.row(cells);
    }
    table.render(paint, "")
}

/// `consullock history`; `named`: of one claim, whose name need not be told.
pub(super) fn history(tenures: &[Tenure], named: bool, now: Timestamp, paint: Paint) -> String {
    let claim = ["NAMESPACE", "NAME"];
    let tenure = ["HOLDER", "TOKEN", "FROM", "TO", "LASTED", "ENDED"];
    let head = claim.iter().filter(|_| !named).chain(&tenure).copied().collect::<Vec<_>>();
    let mut table = Table::new(&head);
    for one in tenures {
        let claim = [&one.namespace, &one.name].map(Cell::from);
        let mut cells = Vec::from_iter(claim.into_iter().filter(|_| !named));
        let lasted = one.to.unwrap_or(now).as_second() - one.from.as_second();
        cells.extend([
            Cell::from(&one.holder),
            Cell::from(&one.token),
            Cell::from(one.from.to_string()),
            Cell::from(one.to.map(|to| to.to_string()).unwrap_or_default()),
            Cell::from(short(lasted)),
            match &one.reason {
                Some(reason) => Cell::from(reason),
                None => Cell::toned("holds", Tone::Good),
            },
        ]);
        table.row(cells);
    }
    table.render(paint, "")
}

#[cfg(test)]
mod tests {
    use super::{super::sample, *};

    #[test]
    fn a_list_says_who_holds_what_since_when_and_who_is_next() {
        let claims = [sample::elected(), sample::waiting(), sample::paused(), sample::fresh()];
        let rows: Vec<Row> = claims.iter().map(Row::of).collect();
        let shown = "\
NAMESPACE   NAME      PHASE     HOLDER                       TOKEN    SINCE    NEXT
shop        billing   Held      shop/billing-a               41       4m       billing-b
shop        migrate   Waiting   Consul API Lock[31m on vm7   <none>   <none>   migrate
shop        reports   Paused    <none>                       <none>   <none>   <none>
shop        fresh     Pending   <none>                       <none>   <none>   <none>
";
        assert_eq!(list(&rows, false, sample::now(), Paint::PLAIN), shown);
        let wide = list(&rows[..1], true, sample::now(), Paint::PLAIN);
        assert!(wide.contains("CLUSTER   KEY                        SESSION   REASON"), "{wide}");
        assert!(wide.contains("west      consul-lock/shop/billing   s-1       Held"), "{wide}");
    }

    #[test]
    fn a_claim_that_waits_with_pods_names_the_one_that_would_be_elected() {
        let mut claim = sample::elected();
        let status = claim.status.as_mut().unwrap();
        (status.phase, status.fencing_token) = (Some(Phase::Waiting), None);
        assert_eq!(Row::of(&claim).next.as_deref(), Some("billing-a"));
    }

    #[test]
    fn a_history_begins_with_the_tenure_that_lasts() {
        let tenures = tenures(&sample::elected());
        let shown = "\
HOLDER           TOKEN   FROM                   TO                     LASTED   ENDED
shop/billing-a   41      2026-01-02T03:00:00Z   <none>                 4m       holds
shop/billing-b   40      2026-01-02T02:50:00Z   2026-01-02T02:59:58Z   9m58s    PodDied
shop/billing-a   37      2026-01-02T02:00:00Z   2026-01-02T02:50:00Z   50m      HandedOver
";
        assert_eq!(history(&tenures, true, sample::now(), Paint::PLAIN), shown);
        let all = history(&tenures, false, sample::now(), Paint::PLAIN);
        assert!(all.starts_with("NAMESPACE   NAME      HOLDER"), "{all}");
    }
}
