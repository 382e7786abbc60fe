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

use std::{
    cell::RefCell,
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
    core::{Collector, Desc},
    proto::{MetricFamily, MetricType},
};

/// From a call within one machine to a blocking query that ran its full minute.
const CALL_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
];
/// From an uncontended lock to a night's wait for somebody else's.
const WAIT_SECONDS: &[f64] = &[
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0,
    43200.0,
];

/// Asked at each scrape.
type Asked<T> = Arc<dyn Fn() -> T + Send + Sync>;
/// Who answers, once somebody does.
type Source<T> = Arc<RwLock<Option<Asked<T>>>>;

/// What a metric is, for the reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Its name.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// What its series differ by.
    pub labels: Vec<String>,
    /// What it tells.
    pub help: String,
}

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
    locks: Source<Vec<(&'static str, usize)>>,
    tightest: Source<Option<f64>>,
    leader: Source<bool>,
    per_claim: Option<PerClaim>,
}

/// Series that grow with the number of claims.
struct PerClaim {
    held: IntGaugeVec,
    token: GaugeVec,
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
            locks: make.asked_by_label("locks", "Claims, by phase.", "phase"),
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
            }),
            registry: make.build_info().process().0.clone(),
            described: make.1.into_inner(),
        };
        metrics.report_leader_from(|| false);
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
    pub fn report_locks_from(
        &self,
        count: impl Fn() -> Vec<(&'static str, usize)> + Send + Sync + 'static,
    ) {
        set(&self.locks, count);
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

    /// Per-claim series: where the claim stands now. Does nothing unless they were asked for.
    pub fn claim_stands(&self, namespace: &str, name: &str, token: Option<u64>) {
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
    }

    /// Per-claim series: the claim is gone, and its series with it.
    pub fn claim_gone(&self, namespace: &str, name: &str) {
        if let Some(per_claim) = &self.per_claim {
            // An error says that there was no such series, which is what is wanted.
            drop(per_claim.held.remove_label_values(&[namespace, name]));
            drop(per_claim.token.remove_label_values(&[namespace, name]));
        }
    }

    /// Per-claim series: this process no longer speaks for any claim (it stopped leading).
    pub fn all_claims_gone(&self) {
        if let Some(per_claim) = &self.per_claim {
            per_claim.held.reset();
            per_claim.token.reset();
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

fn set<T>(source: &Source<T>, ask: impl Fn() -> T + Send + Sync + 'static) {
    *source.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(ask));
}

/// Makes and registers metrics. Names and labels are literals of this file and tested below, so
/// nothing here can fail at run time.
struct Make(Registry, RefCell<Vec<Described>>);

const LITERAL: &str = "names and labels are valid and registered once; the tests build them all";

fn opts(name: &str, help: &str) -> Opts {
    // The prefix is not the registry's, which would rename the process_* metrics as well.
    Opts::new(format!("consul_lock_{name}"), help)
}

impl Make {
    fn register<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let made = made.expect(LITERAL);
        self.describe(&made);
        self.0.register(Box::new(made.clone())).expect(LITERAL);
        made
    }

    fn describe(&self, made: &impl Collector) {
        let kind = match made.collect().first().map(MetricFamily::get_field_type) {
            Some(MetricType::COUNTER) => "counter",
            Some(MetricType::HISTOGRAM) => "histogram",
            _ => "gauge",
        };
        let described = made.desc().into_iter().map(|desc| Described {
            name: desc.fq_name.clone(),
            kind,
            labels: [
                desc.variable_labels.clone(),
                desc.const_label_pairs.iter().map(|label| label.name().to_owned()).collect(),
            ]
            .concat(),
            help: desc.help.clone(),
        });
        self.1.borrow_mut().extend(described);
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::with_opts(opts(name, help)))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(opts(name, help), labels))
    }

    fn int_gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(IntGaugeVec::new(opts(name, help), labels))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.register(GaugeVec::new(opts(name, help), labels))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let opts = HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec());
        self.register(Histogram::with_opts(opts))
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
        let opts = HistogramOpts::from(opts(name, help)).buckets(CALL_SECONDS.to_vec());
        self.register(HistogramVec::new(opts, labels))
    }

    /// A gauge that is asked for at each scrape, and absent where `value` says `None`.
    fn asked<T: 'static>(&self, name: &str, help: &str, value: fn(T) -> Option<f64>) -> Source<T> {
        let source = Source::default();
        let gauge = Gauge::with_opts(opts(name, help)).expect(LITERAL);
        self.describe(&gauge);
        let asked = AtScrape {
            source: Arc::clone(&source),
            desc: gauge.desc().into_iter().cloned().collect(),
            collect: Box::new(move |answer| {
                value(answer).map_or_else(Vec::new, |value| {
                    gauge.set(value);
                    gauge.collect()
                })
            }),
        };
        self.0.register(Box::new(asked)).expect(LITERAL);
        source
    }

    /// The same with one label; each answer names its values.
    fn asked_by_label(
        &self,
        name: &str,
        help: &str,
        label: &str,
    ) -> Source<Vec<(&'static str, usize)>> {
        let source = Source::default();
        let gauges = IntGaugeVec::new(opts(name, help), &[label]).expect(LITERAL);
        self.describe(&gauges);
        let asked = AtScrape {
            source: Arc::clone(&source),
            desc: gauges.desc().into_iter().cloned().collect(),
            collect: Box::new(move |answer: Vec<(&'static str, usize)>| {
                for (label, count) in answer {
                    let count = i64::try_from(count).unwrap_or(i64::MAX);
                    gauges.with_label_values(&[label]).set(count);
                }
                gauges.collect()
            }),
        };
        self.0.register(Box::new(asked)).expect(LITERAL);
        source
    }

    fn build_info(&self) -> &Make {
        let labels = opts("build_info", "Always 1; what was built is in the labels.")
            .const_label("version", env!("CARGO_PKG_VERSION"))
            .const_label("profile", profile());
        self.register(IntGauge::with_opts(labels)).set(1);
        self
    }

    #[cfg(target_os = "linux")]
    fn process(&self) -> &Make {
        let process = prometheus::process_collector::ProcessCollector::for_self();
        self.0.register(Box::new(process)).expect(LITERAL);
        self
    }

    #[cfg(not(target_os = "linux"))]
    fn process(&self) -> &Make {
        self
    }
}

const fn profile() -> &'static str {
    if cfg!(debug_assertions) { "debug" } else { "release" }
}

/// A collector that asks instead of remembering.
struct AtScrape<T> {
    source: Source<T>,
    desc: Vec<Desc>,
    collect: Box<dyn Fn(T) -> Vec<MetricFamily> + Send + Sync>,
}

impl<T> Collector for AtScrape<T> {
    fn desc(&self) -> Vec<&Desc> {
        self.desc.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // Cloned out of the lock, so that a slow answer does not keep others from being set.
        let ask = self.source.read().unwrap_or_else(PoisonError::into_inner).clone();
        ask.map_or_else(Vec::new, |ask| (self.collect)(ask()))
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
        metrics
            .report_locks_from(move || vec![("Held", seen.load(Ordering::Relaxed)), ("Failed", 0)]);
        metrics.report_tightest_from(|| Some(7.5));
        assert_line(&metrics, "consul_lock_leader 1");
        assert_line(&metrics, "consul_lock_locks{phase=\"Held\"} 3");
        assert_line(&metrics, "consul_lock_locks{phase=\"Failed\"} 0");
        assert_line(&metrics, "consul_lock_session_valid_seconds 7.5");

        held.store(2, Ordering::Relaxed);
        metrics.report_tightest_from(|| None);
        assert_line(&metrics, "consul_lock_locks{phase=\"Held\"} 2");
        assert!(!metrics.render().contains("session_valid_seconds"));
    }

    #[test]
    fn series_do_not_grow_with_claims_unless_asked_for() {
        let (plain, detailed) = (Metrics::new(false), Metrics::new(true));
        let before = (samples(&plain), samples(&detailed));
        for claim in 0..50 {
            plain.claim_stands("shop", &format!("claim-{claim}"), Some(7));
            detailed.claim_stands("shop", &format!("claim-{claim}"), Some(7));
        }
        assert_eq!(samples(&plain), before.0);
        assert_eq!(samples(&detailed), before.1 + 100);
    }

    #[test]
    fn series_of_a_claim_follow_its_tenure_and_go_with_it() {
        let metrics = Metrics::new(true);
        metrics.claim_stands("shop", "billing", Some(42));
        let held = "consul_lock_claim_held{name=\"billing\",namespace=\"shop\"}";
        let token = "consul_lock_claim_fencing_token{name=\"billing\",namespace=\"shop\"}";
        assert_line(&metrics, &format!("{held} 1"));
        assert_line(&metrics, &format!("{token} 42"));

        metrics.claim_stands("shop", "billing", None);
        assert_line(&metrics, &format!("{held} 0"));
        assert!(!metrics.render().contains(token));

        metrics.claim_gone("shop", "billing");
        assert!(!metrics.render().contains("billing"));

        metrics.claim_stands("shop", "nightly", Some(43));
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
