//! One claim in words: what it asks for, how it stands, and a timeline of its tenures. Pure.

use std::fmt::Write as _;

use jiff::Timestamp;
use k8s_openapi::{api::events::v1::Event, apimachinery::pkg::apis::meta::v1::Condition};
use serde::Serialize;

use super::{
    rows::{self, Row, Tenure},
    screen::{Paint, Tone},
    table::{Cell, Table, age, clean, short},
};
use crate::api::{ConsulLock, ConsulLockSpec, ConsulLockStatus};

/// The newest events that are shown.
const EVENTS: usize = 10;

/// Everything about one claim.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Description {
    claim: Row,
    spec: ConsulLockSpec,
    status: ConsulLockStatus,
    tenures: Vec<Tenure>,
    events: Vec<Told>,
}

/// An event, as far as somebody reads it.
#[derive(Serialize)]
struct Told {
    at: Option<Timestamp>,
    kind: String,
    reason: String,
    note: String,
}

impl Description {
    pub(super) fn of(claim: &ConsulLock, events: &[Event]) -> Description {
        let mut events: Vec<Told> = events.iter().map(Told::of).collect();
        events.sort_by_key(|event| std::cmp::Reverse(event.at));
        events.truncate(EVENTS);
        Description {
            claim: Row::of(claim),
            spec: claim.spec.clone(),
            status: claim.status.clone().unwrap_or_default(),
            tenures: rows::tenures(claim),
            events,
        }
    }

    /// In words.
    pub(super) fn text(&self, now: Timestamp, paint: Paint) -> String {
        let mut text = String::new();
        for (name, value) in self.facts(now, paint) {
            let _ = writeln!(text, "{:14}{value}", format!("{name}:"));
        }
        let _ = write!(text, "Timeline:\n{}", timeline(&self.tenures, now, paint));
        let conditions = conditions(&self.status.conditions, now);
        let _ = write!(text, "Conditions:\n{}", conditions.render(paint, "  "));
        match self.events.is_empty() {
            true => text.push_str("Events:       <none>\n"),
            false => {
                let events = events(&self.events, now);
                let _ = write!(text, "Events:\n{}", events.render(paint, "  "));
            }
        }
        text
    }

    fn facts(&self, now: Timestamp, paint: Paint) -> Vec<(&'static str, String)> {
        let (claim, status) = (&self.claim, &self.status);
        let none = || "<none>".to_owned();
        let phase = paint.with(rows::tone(claim.phase), claim.phase);
        let reason = claim.message.as_ref().map(|message| format!(": {message}"));
        let mut facts = vec![
            ("Name", claim.name.clone()),
            ("Namespace", claim.namespace.clone()),
            ("Key", claim.key.clone().unwrap_or_else(none)),
            ("Phase", phase + &reason.unwrap_or_default()),
            ("Holder", self.holder()),
        ];
        if let Some(token) = &claim.token {
            let since = claim.since.map(|since| format!(", since {since} ({})", age(since, now)));
            facts.push(("Token", format!("{token}{}", since.unwrap_or_default())));
        }
        facts.push(("Next in line", claim.next.clone().unwrap_or_else(none)));
        if let Some(candidates) = &status.candidates {
            let (matching, eligible) = (candidates.matching, candidates.eligible);
            facts.push(("Candidates", format!("{matching} match, {eligible} may be elected")));
        }
        if let Some(routing) = &self.spec.routing {
            facts.push(("Service", clean(&routing.service)));
        }
        facts.push(("Session", self.session()));
        if let Some(guarantee) = &status.guarantee {
            let (failover, margin) = (&guarantee.failover_max, &guarantee.overlap_margin);
            let (failover, margin) = (clean(failover.as_str()), clean(margin.as_str()));
            let promise = format!(
                "after the death of a holder without a word another has the key within \
                 {failover}, {margin} of it lock-delay"
            );
            facts.push(("Promise", promise));
        }
        facts.push(("Tenures", format!("{} begun", status.transitions)));
        facts
    }

    fn holder(&self) -> String {
        let Some(holder) = &self.status.holder else { return "<none>".to_owned() };
        let mut words = clean(&holder.identity);
        let mut more = Vec::new();
        if holder.stranger {
            more.push("a stranger".to_owned());
        }
        let named = [("cluster", &holder.cluster), ("pod", &holder.pod), ("node", &holder.node)];
        let named = named.into_iter().filter_map(|(what, name)| Some((what, name.as_ref()?)));
        more.extend(named.map(|(what, name)| format!("{what} {}", clean(name))));
        if !more.is_empty() {
            let _ = write!(words, " ({})", more.join(", "));
        }
        if let Some(why) = &holder.why {
            let _ = write!(words, ", elected as {}", clean(why));
        }
        words
    }

    fn session(&self) -> String {
        let Some(session) = &self.status.session else { return "<none>".to_owned() };
        let known = [
            session.id.as_deref().map(clean),
            Some(format!("{:?}", session.health)),
            session.ttl.as_ref().map(|ttl| format!("TTL {}", clean(ttl.as_str()))),
            session.node.as_ref().map(|node| format!("on node {}", clean(node))),
        ];
        known.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

impl Told {
    fn of(event: &Event) -> Told {
        let text = |text: &Option<String>| clean(text.as_deref().unwrap_or_default());
        Told {
            at: event.event_time.as_ref().map(|time| time.0),
            kind: text(&event.type_),
            reason: text(&event.reason),
            note: text(&event.note),
        }
    }
}

/// Tenures and what lay between them, the newest first: when each began, who had it, how long, and
/// how it ended.
fn timeline(tenures: &[Tenure], now: Timestamp, paint: Paint) -> String {
    if tenures.is_empty() {
        return "  no tenure yet\n".to_owned();
    }
    let width = tenures.iter().map(|one| one.holder.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    let mut later: Option<Timestamp> = None;
    for one in tenures {
        let to = one.to.unwrap_or(now);
        // The latest end is followed by nothing that this claim knows of.
        let between = later.unwrap_or(now).as_second() - to.as_second();
        if one.to.is_some() && between > 0 {
            let what = match later {
                Some(_) => "no tenure of this claim for",
                None => "no tenure of this claim since",
            };
            let _ = writeln!(text, "  {:20}  ·  {what} {}", "", short(between));
        }
        let lasted = short(to.as_second() - one.from.as_second());
        let (mark, end) = match &one.reason {
            None => (paint.with(Tone::Good, "●"), format!("holds, for {lasted}")),
            Some(reason) => ("○".to_owned(), format!("{lasted}, then {reason}")),
        };
        let (from, holder, token) = (one.from, &one.holder, &one.token);
        let _ = writeln!(text, "  {from:20}  {mark}  {holder:width$}  token {token}  {end}");
        later = Some(one.from);
    }
    text
}

fn conditions(conditions: &[Condition], now: Timestamp) -> Table {
    let mut table = Table::new(&["TYPE", "STATUS", "SINCE", "REASON", "MESSAGE"]);
    for one in conditions {
        table.row(vec![
            Cell::from(&one.type_),
            Cell::from(&one.status),
            Cell::from(age(one.last_transition_time.0, now)),
            Cell::from(&one.reason),
            Cell::from(&one.message),
        ]);
    }
    table
}

fn events(events: &[Told], now: Timestamp) -> Table {
    let mut table = Table::new(&["AGE", "TYPE", "REASON", "MESSAGE"]);
    for one in events {
        table.row(vec![
            Cell::from(one.at.map(|at| age(at, now)).unwrap_or_default()),
            Cell::from(&one.kind),
            Cell::from(&one.reason),
            Cell::from(&one.note),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::sample, *};
    use crate::api::GoDuration;

    #[test]
    fn a_description_tells_everything_in_words() {
        let event = |second, reason, note| {
            serde_json::from_value(json!({
                "eventTime": format!("2026-01-02T03:0{second}:00.000000Z"),
                "type": "Normal", "reason": reason, "note": note,
            }))
            .unwrap()
        };
        let events = [event(0, "Acquired", "pod billing-a holds it"), event(2, "X", "y\u{1b}")];
        let text = Description::of(&sample::elected(), &events).text(sample::now(), Paint::PLAIN);
        let shown = "\
Name:         billing
Namespace:    shop
Key:          consul-lock/shop/billing
Phase:        Held: pod billing-a holds the key
Holder:       shop/billing-a (cluster west, pod billing-a, node n-1), elected as ready for longest of 2 pods
Token:        41, since 2026-01-02T03:00:00Z (4m)
Next in line: billing-b
Candidates:   3 match, 2 may be elected
Service:      billing
Session:      s-1, Healthy, TTL 15s, on node consul-lock-west-shop
Promise:      after the death of a holder without a word another has the key within 45s, 15s of it lock-delay
Tenures:      3 begun
Timeline:
  2026-01-02T03:00:00Z  ●  shop/billing-a  token 41  holds, for 4m
                        ·  no tenure of this claim for 2s
  2026-01-02T02:50:00Z  ○  shop/billing-b  token 40  9m58s, then PodDied
  2026-01-02T02:00:00Z  ○  shop/billing-a  token 37  50m, then HandedOver
Conditions:
  TYPE            STATUS   SINCE   REASON   MESSAGE
  Ready           True     4m      Held     pod billing-a holds the key
  RoutingSynced   True     4m      Routed   traffic goes to pod billing-a
Events:
  AGE   TYPE     REASON     MESSAGE
  2m    Normal   X          y
  4m    Normal   Acquired   pod billing-a holds it
";
        assert_eq!(text, shown);
    }

    #[test]
    fn whoever_may_write_a_status_does_nothing_to_the_terminal_that_shows_it() {
        let bad = |text: &str| format!("{text}\u{1b}[2J\u{202e}");
        let mut claim = sample::elected();
        let status = claim.status.as_mut().unwrap();
        status.key = status.key.as_deref().map(bad);
        status.fencing_token = status.fencing_token.as_deref().map(bad);
        let candidates = status.candidates.as_mut().unwrap();
        candidates.next = candidates.next.as_deref().map(bad);
        let session = status.session.as_mut().unwrap();
        session.id = session.id.as_deref().map(bad);
        session.ttl = session.ttl.as_ref().map(|ttl| GoDuration::new(bad(ttl.as_str())));
        let guarantee = status.guarantee.as_mut().unwrap();
        guarantee.failover_max = GoDuration::new(bad("45s"));
        guarantee.overlap_margin = GoDuration::new(bad("15s"));
        let text = Description::of(&claim, &[]).text(sample::now(), Paint::PLAIN);
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text:?}");
        claim.spec.key = claim.status.unwrap().key;
        claim.status = None;
        let text = Description::of(&claim, &[]).text(sample::now(), Paint::PLAIN);
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text:?}");
    }

    #[test]
    fn a_claim_that_nobody_has_looked_at_is_described_as_well() {
        let text = Description::of(&sample::fresh(), &[]).text(sample::now(), Paint::PLAIN);
        for line in ["Key:          <none>", "Phase:        Pending", "no tenure yet", "<none>"] {
            assert!(text.contains(line), "no {line:?} in: {text}");
        }
    }
}
