//! The metrics of one process.
//!
//! Callers say what happened ([`Metrics::acquired`], [`Metrics::renewed`]); what cannot be told by
//! an event alone (how many locks there are, how long the tightest session lasts, whether this
//! replica leads) is asked for at the moment of a scrape, so it cannot be out of date.
//!
//! # Guarantees
//! The number of series does not depend on the number of claims, unless per-claim series were
//! asked for. No type of the metrics library appears in a signature, and there is no global state:
//! two [`Metrics`] know nothing of one another.
//! # Not guaranteed
//! Counters start anew with the process, and with per-claim series a claim's go when it goes.

use std::{cell::RefCell, collections::HashMap, fmt, ops::Range, sync::Arc, time::Duration};

use jiff::Timestamp;
use parking_lot::Mutex;
use prometheus::{
    GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Registry,
    TextEncoder,
};

use super::make::{Census, Described, Make, Series, Source, counted, set};
use crate::lock::EndReason;

/// From a call within one machine to a blocking query that ran its full minute.
const CALL_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
];
/// From an uncontended lock to a night's wait for somebody else's.
const WAIT_SECONDS: &[f64] = &[
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0,
    43200.0,
];

/// Every metric of the process, and the registry they are served from.
pub struct Metrics {
    registry: Registry,
    described: Vec<Described>,
    acquisitions: IntCounter,
    losses: IntCounterVec,
    time_to_acquire: Histogram,
    handover: Histogram,
    renewals: IntCounterVec,
    renewal_duration: Histogram,
    requests: IntCounterVec,
    request_duration: HistogramVec,
    reconcile_duration: Histogram,
    reconcile_errors: IntCounterVec,
    watch_errors: IntCounterVec,
    failover: HistogramVec,
    locks: Source<Census<1>>,
    sessions: Source<Census<1>>,
    conditions: Source<Census<2>>,
    reasons: Source<Census<1>>,
    unheld: Source<f64>,
    busiest: Source<usize>,
    tightest: Source<Option<f64>>,
    leader: Source<bool>,
    certificate_expiry: Source<CertificateLives>,
    certificate_start: Source<CertificateLives>,
    token_expiry: Source<Option<Life>>,
    token_start: Source<Option<Life>>,
    per_claim: Option<PerClaim>,
}

/// From when until when something is good.
type Life = Range<Timestamp>;
/// The same of certificates, `ca` and `client`, as far as there are any.
type CertificateLives = Vec<(&'static str, Life)>;

/// Series that grow with the number of claims.
struct PerClaim {
    held: IntGaugeVec,
    token: GaugeVec,
    holder: IntGaugeVec,
    /// Who is shown as holder, by namespace and name: what is gone has to be named to be removed.
    holders: Mutex<HashMap<[String; 2], ClaimHolder>>,
}

/// Who holds a claim's key, and in which cluster, if that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HolderLabels<'a> {
    /// As in `status.holder.identity`.
    pub identity: &'a str,
    /// As in `status.holder.cluster`; empty if it is not known.
    pub cluster: &'a str,
}

type ClaimHolder = [String; 2];

/// A part of the time from a holder's end to traffic at the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailoverPart {
    /// From what went wrong with the elected pod to the decision that another follows.
    Detection,
    /// From there until its endpoint and label are gone.
    Withdrawal,
    /// In which Consul gives the free key to nobody.
    LockDelay,
    /// From there, or from the withdrawal, to holding the key.
    Acquisition,
    /// From there to the endpoint of the new holder.
    Routing,
}

impl FailoverPart {
    /// Every part, in the order of time.
    pub const ALL: [FailoverPart; 5] = [
        FailoverPart::Detection,
        FailoverPart::Withdrawal,
        FailoverPart::LockDelay,
        FailoverPart::Acquisition,
        FailoverPart::Routing,
    ];

    /// As a metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            FailoverPart::Detection => "detection",
            FailoverPart::Withdrawal => "withdrawal",
            FailoverPart::LockDelay => "lock_delay",
            FailoverPart::Acquisition => "acquisition",
            FailoverPart::Routing => "routing",
        }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics")
            .field("per_claim", &self.per_claim.is_some())
            .finish_non_exhaustive()
    }
}

impl Metrics {
    /// Metrics that nothing was counted in yet. With `per_claim`, two series for each claim.
    pub fn new(per_claim: bool) -> Arc<Metrics> {
        let make = Make(Registry::new(), RefCell::default());
        let metrics = Metrics {
            acquisitions: make.counter("acquisitions_total", "Tenures that began."),
            losses: make.counters(
                "losses_total",
                "Tenures that ended without our wish, by reason.",
                &["reason"],
            ),
            time_to_acquire: make.histogram(
                "time_to_acquire_seconds",
                "From wanting a key to holding it.",
                WAIT_SECONDS,
            ),
            handover: make.histogram(
                "handover_seconds",
                "From seeing a key free to holding it.",
                WAIT_SECONDS,
            ),
            renewals: make.counters(
                "renewals_total",
                "Session renewals, by result: ok or the error's class.",
                &["result"],
            ),
            renewal_duration: make.histogram(
                "renewal_duration_seconds",
                "How long a session renewal took, failed ones included.",
                CALL_SECONDS,
            ),
            requests: make.counters(
                "consul_requests_total",
                "Requests to Consul, by operation and class: ok or the error's class.",
                &["operation", "class"],
            ),
            request_duration: make.histograms(
                "consul_request_duration_seconds",
                "How long a request to Consul took; of blocking queries, the wait included.",
                &["operation"],
                CALL_SECONDS,
            ),
            reconcile_duration: make.histogram(
                "reconcile_duration_seconds",
                "How long one walk over a claim took.",
                CALL_SECONDS,
            ),
            reconcile_errors: make.counters(
                "reconcile_errors_total",
                "Walks over a claim that failed, by the error's class.",
                &["class"],
            ),
            watch_errors: make.counters(
                "watch_errors_total",
                "Errors of the watches on the Kubernetes API, by resource.",
                &["resource"],
            ),
            failover: make.histograms(
                "failover_seconds",
                "How long a change of holder took, by part: detection, withdrawal, lock_delay, \
                 acquisition, routing.",
                &["part"],
                WAIT_SECONDS,
            ),
            locks: make.asked_by_labels("locks", "Claims, by phase.", ["phase"], counted),
            sessions: make.asked_by_labels(
                "sessions",
                "Claims with a session, by what their status says of its health.",
                ["health"],
                counted,
            ),
            conditions: make.asked_by_labels(
                "conditions",
                "Claims, by condition and its status.",
                ["condition", "status"],
                counted,
            ),
            reasons: make.asked_by_labels(
                "reasons",
                "Claims, by the reason of their Ready condition.",
                ["reason"],
                counted,
            ),
            unheld: make.asked(
                "unheld_seconds",
                "Of the claims that contend for a key that nobody holds: for how long that has \
                 been so at most. 0 if there is none.",
                Some,
            ),
            busiest: make.asked(
                "busiest_claim_tenures",
                "The most tenures of one claim that ended within fifteen minutes, and neither by \
                 its wish nor with their work; a status remembers ten.",
                |most: usize| Some(most as f64),
            ),
            tightest: make.asked(
                "session_valid_seconds",
                "Until the session that ends soonest may no longer be relied on. Absent without \
                 sessions.",
                |left: Option<f64>| left,
            ),
            leader: make.asked(
                "leader",
                "1 while this replica leads, 0 while it stands by.",
                |leads| Some(f64::from(u8::from(leads))),
            ),
            certificate_expiry: make.asked_by_labels(
                "consul_certificate_expiry_timestamp_seconds",
                "When the certificate expires that calls to Consul are made with: ca, which Consul is \
                 trusted by, or client. Of several in a file, the first to expire. Absent without one.",
                ["certificate"],
                |lives| of_each(lives, |life| life.end),
            ),
            certificate_start: make.asked_by_labels(
                "consul_certificate_start_timestamp_seconds",
                "From when on the same certificate is good.",
                ["certificate"],
                |lives| of_each(lives, |life| life.start),
            ),
            token_expiry: make.asked(
                "consul_token_expiry_timestamp_seconds",
                "When the Consul token that is in use expires; that of a login is replaced before. \
                 Absent if it does not expire, or Consul has not told.",
                |life: Option<Life>| life.map(|life| seconds(life.end)),
            ),
            token_start: make.asked(
                "consul_token_start_timestamp_seconds",
                "When the same token was made.",
                |life: Option<Life>| life.map(|life| seconds(life.start)),
            ),
            per_claim: per_claim.then(|| PerClaim {
                held: make.int_gauges(
                    "claim_held",
                    "1 while the claim holds its key.",
                    &["namespace", "name"],
                ),
                token: make.gauges(
                    "claim_fencing_token",
                    "The fencing token of the claim's present tenure.",
                    &["namespace", "name"],
                ),
                holder: make.int_gauges(
                    "claim_holder",
                    "1: who holds the claim's key, as its status says.",
                    &["namespace", "name", "holder", "cluster"],
                ),
                holders: Mutex::default(),
            }),
            registry: make.build_info().process().0.clone(),
            described: make.1.into_inner(),
        };
        metrics.report_leader_from(|| false);
        // There from the start: of a series that begins with 1 Prometheus sees no increase.
        for part in FailoverPart::ALL {
            drop(metrics.failover.with_label_values(&[part.as_str()]));
        }
        for reason in EndReason::ALL.into_iter().filter(|reason| !reason.is_clean()) {
            drop(metrics.losses.with_label_values(&[reason.as_str()]));
        }
        Arc::new(metrics)
    }

    /// What there is, those of the process (`process_*`) aside.
    pub fn described(&self) -> &[Described] {
        &self.described
    }

    /// A tenure began, `waited` after the key was first wanted; `since_free` after it was seen
    /// free, if somebody else had held it.
    pub fn acquired(&self, waited: Duration, since_free: Option<Duration>) {
        self.acquisitions.inc();
        self.time_to_acquire.observe(waited.as_secs_f64());
        if let Some(since_free) = since_free {
            self.handover.observe(since_free.as_secs_f64());
        }
    }

    /// A part of a change of holder took so long.
    pub fn failover(&self, part: FailoverPart, took: Duration) {
        self.failover.with_label_values(&[part.as_str()]).observe(took.as_secs_f64());
    }

    /// A tenure ended that should have gone on.
    pub fn lost(&self, reason: &'static str) {
        self.losses.with_label_values(&[reason]).inc();
    }

    /// A renewal came back after `took`: `"ok"`, or the class of its error.
    pub fn renewed(&self, result: &'static str, took: Duration) {
        self.renewals.with_label_values(&[result]).inc();
        self.renewal_duration.observe(took.as_secs_f64());
    }

    /// A request to Consul ended after `took`: `"ok"`, or the class of its error.
    pub fn consul_answered(&self, operation: &'static str, class: &'static str, took: Duration) {
        self.requests.with_label_values(&[operation, class]).inc();
        self.request_duration.with_label_values(&[operation]).observe(took.as_secs_f64());
    }

    /// A walk over a claim ended after `took`, well or not.
    pub fn reconciled(&self, took: Duration) {
        self.reconcile_duration.observe(took.as_secs_f64());
    }

    /// A walk over a claim failed.
    pub fn reconcile_failed(&self, class: &'static str) {
        self.reconcile_errors.with_label_values(&[class]).inc();
    }

    /// A watch on the Kubernetes API failed and will be tried again.
    pub fn watch_failed(&self, resource: &'static str) {
        self.watch_errors.with_label_values(&[resource]).inc();
    }

    /// From now on `count` answers how many claims there are in each phase. It should name every
    /// phase, also those with none; it runs at each scrape.
    pub fn report_locks_from(&self, count: impl Fn() -> Census<1> + Send + Sync + 'static) {
        set(&self.locks, count);
    }

    /// The same of the health of sessions.
    pub fn report_sessions_from(&self, count: impl Fn() -> Census<1> + Send + Sync + 'static) {
        set(&self.sessions, count);
    }

    /// The same of conditions, each with its name and status.
    pub fn report_conditions_from(&self, count: impl Fn() -> Census<2> + Send + Sync + 'static) {
        set(&self.conditions, count);
    }

    /// The same of the reasons of the Ready condition.
    pub fn report_reasons_from(&self, count: impl Fn() -> Census<1> + Send + Sync + 'static) {
        set(&self.reasons, count);
    }

    /// From now on `longest` answers for how many seconds a claim has contended at most for a key
    /// that nobody holds. It runs at each scrape.
    pub fn report_unheld_from(&self, longest: impl Fn() -> f64 + Send + Sync + 'static) {
        set(&self.unheld, longest);
    }

    /// From now on `most` answers how many tenures of one claim ended lately. It runs at each
    /// scrape.
    pub fn report_busiest_from(&self, most: impl Fn() -> usize + Send + Sync + 'static) {
        set(&self.busiest, most);
    }

    /// From now on `left` answers for how many seconds the session that ends soonest may still be
    /// relied on; `None` without sessions. It runs at each scrape.
    pub fn report_tightest_from(&self, left: impl Fn() -> Option<f64> + Send + Sync + 'static) {
        set(&self.tightest, left);
    }

    /// From now on `leads` answers whether this replica leads. It runs at each scrape.
    pub fn report_leader_from(&self, leads: impl Fn() -> bool + Send + Sync + 'static) {
        set(&self.leader, leads);
    }

    /// From now on `lives` answers until when the certificates are good. It runs at each scrape.
    pub fn report_certificates_from(
        &self,
        lives: impl Fn() -> CertificateLives + Send + Sync + 'static,
    ) {
        let (lives, again) = shared(lives);
        set(&self.certificate_expiry, lives);
        set(&self.certificate_start, again);
    }

    /// From now on `life` answers until when the Consul token is good; `None` if nothing is known, or it
    /// does not expire. It runs at each scrape.
    pub fn report_token_from(&self, life: impl Fn() -> Option<Life> + Send + Sync + 'static) {
        let (life, again) = shared(life);
        set(&self.token_expiry, life);
        set(&self.token_start, again);
    }

    /// Per-claim series: where the claim stands now, and who holds its key. Does nothing unless they
    /// were asked for.
    pub fn claim_stands(
        &self,
        namespace: &str,
        name: &str,
        token: Option<u64>,
        holder: Option<HolderLabels<'_>>,
    ) {
        let Some(per_claim) = &self.per_claim else {
            return;
        };
        let labels = [namespace, name];
        let held = per_claim.held.with_label_values(&labels);
        held.set(i64::from(token.is_some()));
        match token {
            // A token is a Raft index: exact in an f64 up to 2^53.
            Some(token) => per_claim.token.with_label_values(&labels).set(token as f64),
            None => drop(per_claim.token.remove_label_values(&labels)),
        }
        per_claim.show_holder(labels, holder);
    }

    /// Per-claim series: the claim is gone, and its series with it.
    pub fn claim_gone(&self, namespace: &str, name: &str) {
        if let Some(per_claim) = &self.per_claim {
            // An error says that there was no such series, which is what is wanted.
            drop(per_claim.held.remove_label_values(&[namespace, name]));
            drop(per_claim.token.remove_label_values(&[namespace, name]));
            per_claim.show_holder([namespace, name], None);
        }
    }

    /// Per-claim series: this process no longer speaks for any claim (it stopped leading).
    pub fn all_claims_gone(&self) {
        if let Some(per_claim) = &self.per_claim {
            per_claim.held.reset();
            per_claim.token.reset();
            per_claim.holder.reset();
            per_claim.holders.lock().clear();
        }
    }

    /// Everything in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut text = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            // Only a family without samples is refused, and gathering leaves those out.
            tracing::warn!(%error, "metrics could not be written in full");
        }
        text
    }
}

fn seconds(at: Timestamp) -> f64 {
    at.as_second() as f64
}

fn of_each(lives: CertificateLives, when: fn(Life) -> Timestamp) -> Series<1> {
    lives.into_iter().map(|(name, life)| ([name], seconds(when(life)))).collect()
}

/// The same question twice.
fn shared<T>(ask: impl Fn() -> T) -> (impl Fn() -> T, impl Fn() -> T) {
    let ask = Arc::new(ask);
    let again = Arc::clone(&ask);
    (move || ask(), move || again())
}

impl PerClaim {
    /// There is one series for each claim that has a holder.
    fn show_holder(&self, claim: [&str; 2], holder: Option<HolderLabels<'_>>) {
        let [namespace, name] = claim;
        let mut holders = self.holders.lock();
        let now = holder.map(|holder| [holder.identity, holder.cluster].map(str::to_owned));
        let key = claim.map(str::to_owned);
        let before = match now.clone() {
            Some(now) => holders.insert(key, now),
            None => holders.remove(&key),
        };
        if let Some([identity, cluster]) = before.filter(|before| Some(before) != now.as_ref()) {
            drop(self.holder.remove_label_values(&[namespace, name, &identity, &cluster]));
        }
        if let Some([identity, cluster]) = now {
            self.holder.with_label_values(&[namespace, name, &identity, &cluster]).set(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[track_caller]
    fn assert_line(metrics: &Metrics, line: &str) {
        let text = metrics.render();
        assert!(text.lines().any(|l| l == line), "no line {line:?} in:\n{text}");
    }

    fn holder(identity: &str) -> Option<HolderLabels<'_>> {
        Some(HolderLabels { identity, cluster: "eu" })
    }

    fn samples(metrics: &Metrics) -> usize {
        let text = metrics.render();
        text.lines().filter(|l| !l.starts_with('#')).count()
    }

    #[test]
    fn what_happened_is_counted() {
        let metrics = Metrics::new(false);
        metrics.acquired(30 * MS, None);
        metrics.acquired(40 * MS, Some(20 * MS));
        metrics.lost("Expired");
        metrics.renewed("ok", 3 * MS);
        metrics.renewed("Transient", 3 * MS);
        metrics.consul_answered("watch_prefix", "ok", 59_000 * MS);
        metrics.reconciled(2 * MS);
        metrics.reconcile_failed("Denied");
        metrics.watch_failed("namespaces");
        metrics.failover(FailoverPart::Acquisition, 20 * MS);
        for line in [
            "consul_lock_acquisitions_total 2",
            "consul_lock_time_to_acquire_seconds_count 2",
            "consul_lock_time_to_acquire_seconds_bucket{le=\"0.05\"} 2",
            "consul_lock_handover_seconds_count 1",
            "consul_lock_losses_total{reason=\"Expired\"} 1",
            "consul_lock_renewals_total{result=\"ok\"} 1",
            "consul_lock_renewals_total{result=\"Transient\"} 1",
            "consul_lock_renewal_duration_seconds_count 2",
            "consul_lock_consul_requests_total{class=\"ok\",operation=\"watch_prefix\"} 1",
            "consul_lock_consul_request_duration_seconds_bucket{operation=\"watch_prefix\",le=\"60\"} 1",
            "consul_lock_reconcile_duration_seconds_count 1",
            "consul_lock_reconcile_errors_total{class=\"Denied\"} 1",
            "consul_lock_watch_errors_total{resource=\"namespaces\"} 1",
            "consul_lock_failover_seconds_bucket{part=\"acquisition\",le=\"0.025\"} 1",
            "consul_lock_failover_seconds_count{part=\"routing\"} 0",
        ] {
            assert_line(&metrics, line);
        }
    }

    #[test]
    fn what_is_asked_for_is_as_of_the_scrape() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let metrics = Metrics::new(false);
        assert_line(&metrics, "consul_lock_leader 0");
        assert!(!metrics.render().contains("session_valid_seconds"));

        let held = Arc::new(AtomicUsize::new(3));
        let seen = Arc::clone(&held);
        metrics.report_leader_from(|| true);
        metrics.report_locks_from(move || {
            vec![(["Held"], seen.load(Ordering::Relaxed)), (["Failed"], 0)]
        });
        metrics.report_sessions_from(|| vec![(["Jeopardy"], 2)]);
        metrics.report_conditions_from(|| vec![(["RoutingSynced", "False"], 4)]);
        metrics.report_reasons_from(|| vec![(["KeyConflict"], 5)]);
        metrics.report_unheld_from(|| 61.5);
        metrics.report_busiest_from(|| 6);
        metrics.report_tightest_from(|| Some(7.5));
        assert_line(&metrics, "consul_lock_leader 1");
        assert_line(&metrics, "consul_lock_locks{phase=\"Held\"} 3");
        assert_line(&metrics, "consul_lock_locks{phase=\"Failed\"} 0");
        assert_line(&metrics, "consul_lock_session_valid_seconds 7.5");
        assert_line(&metrics, "consul_lock_sessions{health=\"Jeopardy\"} 2");
        let routing = "consul_lock_conditions{condition=\"RoutingSynced\",status=\"False\"} 4";
        assert_line(&metrics, routing);
        assert_line(&metrics, "consul_lock_reasons{reason=\"KeyConflict\"} 5");
        assert_line(&metrics, "consul_lock_unheld_seconds 61.5");
        assert_line(&metrics, "consul_lock_busiest_claim_tenures 6");

        held.store(2, Ordering::Relaxed);
        metrics.report_tightest_from(|| None);
        assert_line(&metrics, "consul_lock_locks{phase=\"Held\"} 2");
        assert!(!metrics.render().contains("session_valid_seconds"));
    }

    #[test]
    fn what_is_good_for_a_time_tells_from_when_until_when_and_nothing_else_does() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let metrics = Metrics::new(false);
        let families = ["consul_certificate_", "consul_token_"];
        let shows = |metrics: &Metrics| families.map(|name| metrics.render().contains(name));
        assert_eq!(shows(&metrics), [false, false]);
        let lives =
            [("ca", at(1_000)..at(1_800_000_000)), ("client", at(2_000)..at(1_790_000_000))];
        metrics.report_certificates_from(move || lives.to_vec());
        metrics.report_token_from(move || Some(at(3_000)..at(1_780_000_000)));
        for line in [
            "certificate_expiry_timestamp_seconds{certificate=\"ca\"} 1800000000",
            "certificate_expiry_timestamp_seconds{certificate=\"client\"} 1790000000",
            "certificate_start_timestamp_seconds{certificate=\"client\"} 2000",
            "token_expiry_timestamp_seconds 1780000000",
            "token_start_timestamp_seconds 3000",
        ] {
            assert_line(&metrics, &format!("consul_lock_consul_{line}"));
        }
        metrics.report_certificates_from(move || vec![("ca", at(1_000)..at(1_900_000_000))]);
        metrics.report_token_from(|| None);
        let ca = "consul_lock_consul_certificate_expiry_timestamp_seconds{certificate=\"ca\"}";
        assert_line(&metrics, &format!("{ca} 1900000000"));
        assert!(!metrics.render().contains("{certificate=\"client\"}"), "{}", metrics.render());
        assert_eq!(shows(&metrics), [true, false]);
    }

    #[test]
    fn series_do_not_grow_with_claims_unless_asked_for() {
        let (plain, detailed) = (Metrics::new(false), Metrics::new(true));
        let before = (samples(&plain), samples(&detailed));
        for claim in 0..50 {
            for tenure in 0..3 {
                let (name, pod) = (format!("claim-{claim}"), format!("shop/pod-{tenure}"));
                plain.claim_stands("shop", &name, Some(7 + tenure), holder(&pod));
                detailed.claim_stands("shop", &name, Some(7 + tenure), holder(&pod));
            }
        }
        assert_eq!(samples(&plain), before.0);
        assert_eq!(samples(&detailed), before.1 + 150, "whoever held a key before is gone");
    }

    #[test]
    fn series_of_a_claim_follow_its_tenure_and_go_with_it() {
        let metrics = Metrics::new(true);
        metrics.claim_stands("shop", "billing", Some(42), holder("shop/billing-a"));
        let held = "consul_lock_claim_held{name=\"billing\",namespace=\"shop\"}";
        let token = "consul_lock_claim_fencing_token{name=\"billing\",namespace=\"shop\"}";
        assert_line(&metrics, &format!("{held} 1"));
        assert_line(&metrics, &format!("{token} 42"));
        let shown = |who| {
            format!(
                "claim_holder{{cluster=\"eu\",holder=\"{who}\",name=\"billing\",namespace=\"shop\"}} 1"
            )
        };
        assert!(metrics.render().contains(&shown("shop/billing-a")));
        metrics.claim_stands("shop", "billing", Some(43), holder("shop/billing-b"));
        assert!(metrics.render().contains(&shown("shop/billing-b")));
        assert!(!metrics.render().contains("billing-a"));

        metrics.claim_stands("shop", "billing", None, None);
        assert!(!metrics.render().contains("billing-b"));
        assert_line(&metrics, &format!("{held} 0"));
        assert!(!metrics.render().contains(token));

        metrics.claim_gone("shop", "billing");
        assert!(!metrics.render().contains("billing"));

        metrics.claim_stands("shop", "nightly", Some(43), holder("shop/nightly"));
        metrics.all_claims_gone();
        assert!(!metrics.render().contains("nightly"));
    }

    #[test]
    fn every_name_is_prefixed_except_the_process_metrics_that_dashboards_know() {
        let text = Metrics::new(true).render();
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            assert!(line.starts_with("consul_lock_") || line.starts_with("process_"), "{line}");
        }
        let build = format!(
            "consul_lock_build_info{{profile=\"debug\",version=\"{}\"}} 1",
            env!("CARGO_PKG_VERSION")
        );
        assert!(text.contains(&build), "{text}");
        #[cfg(target_os = "linux")]
        assert!(text.contains("\nprocess_resident_memory_bytes "), "{text}");
    }
}
