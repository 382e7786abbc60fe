//! How metrics are made and registered, and those that are asked for at a scrape.

use std::{cell::RefCell, sync::Arc};

use parking_lot::RwLock;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
    core::{Collector, Desc},
    proto::{MetricFamily, MetricType},
};

/// Asked at each scrape.
type Asked<T> = Arc<dyn Fn() -> T + Send + Sync>;
/// Who answers, once somebody does.
pub(super) type Source<T> = Arc<RwLock<Option<Asked<T>>>>;

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

/// How many there are, by the values of some labels.
pub type Census<const N: usize> = Vec<([&'static str; N], usize)>;
/// The same of any number.
pub(super) type Series<const N: usize> = Vec<([&'static str; N], f64)>;

pub(super) fn counted<const N: usize>(census: Census<N>) -> Series<N> {
    census.into_iter().map(|(labels, count)| (labels, count as f64)).collect()
}

pub(super) fn set<T>(source: &Source<T>, ask: impl Fn() -> T + Send + Sync + 'static) {
    *source.write() = Some(Arc::new(ask));
}

/// Makes and registers metrics. Names and labels are literals of `metrics` and tested there, so
/// nothing here can fail at run time.
pub(super) struct Make(pub(super) Registry, pub(super) RefCell<Vec<Described>>);

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

    pub(super) fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::with_opts(opts(name, help)))
    }

    pub(super) fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(opts(name, help), labels))
    }

    pub(super) fn int_gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(IntGaugeVec::new(opts(name, help), labels))
    }

    pub(super) fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.register(GaugeVec::new(opts(name, help), labels))
    }

    pub(super) fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let opts = HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec());
        self.register(Histogram::with_opts(opts))
    }

    pub(super) fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
    ) -> HistogramVec {
        let opts = HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec());
        self.register(HistogramVec::new(opts, labels))
    }

    /// A gauge that is asked for at each scrape, and absent where `value` says `None`.
    pub(super) fn asked<T: 'static>(
        &self,
        name: &str,
        help: &str,
        value: fn(T) -> Option<f64>,
    ) -> Source<T> {
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

    /// The same with labels, for whose values each answer gives numbers; those it does not name are absent.
    pub(super) fn asked_by_labels<const N: usize, T: 'static>(
        &self,
        name: &str,
        help: &str,
        labels: [&'static str; N],
        values: fn(T) -> Series<N>,
    ) -> Source<T> {
        let source = Source::default();
        let opts = opts(name, help);
        let make = move || GaugeVec::new(opts.clone(), &labels).expect(LITERAL);
        let gauges = make();
        self.describe(&gauges);
        let asked = AtScrape {
            source: Arc::clone(&source),
            desc: gauges.desc().into_iter().cloned().collect(),
            collect: Box::new(move |answer| {
                let gauges = make(); // and not the last scrape's
                for (labels, value) in values(answer) {
                    gauges.with_label_values(&labels).set(value);
                }
                gauges.collect()
            }),
        };
        self.0.register(Box::new(asked)).expect(LITERAL);
        source
    }

    pub(super) fn build_info(&self) -> &Make {
        let labels = opts("build_info", "Always 1; what was built is in the labels.")
            .const_label("version", env!("CARGO_PKG_VERSION"))
            .const_label("profile", profile());
        self.register(IntGauge::with_opts(labels)).set(1);
        self
    }

    #[cfg(target_os = "linux")]
    pub(super) fn process(&self) -> &Make {
        let process = prometheus::process_collector::ProcessCollector::for_self();
        self.0.register(Box::new(process)).expect(LITERAL);
        self
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn process(&self) -> &Make {
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
        let ask = self.source.read().clone();
        ask.map_or_else(Vec::new, |ask| (self.collect)(ask()))
    }
}
