//! As much of Prometheus' text format as is needed to add series up.

/// The verbs that change something, as the API server's metrics call them.
const WRITING: [&str; 6] = ["POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"];

/// What one scrape answered.
pub struct Scrape(String);

impl Scrape {
    /// Of this text.
    #[must_use]
    pub fn new(text: String) -> Scrape {
        Scrape(text)
    }

    /// The sum of a metric's series that carry all these labels.
    #[must_use]
    pub fn sum(&self, metric: &str, labels: &[(&str, &str)]) -> f64 {
        self.series(metric, labels).map(|(_, value)| value).sum()
    }

    /// Labels and value of each such series.
    pub fn series<'a>(
        &'a self,
        metric: &'a str,
        labels: &'a [(&str, &str)],
    ) -> impl Iterator<Item = (&'a str, f64)> {
        let lines = self.0.lines().filter_map(move |line| {
            let rest = line.strip_prefix(metric)?;
            let (series, value) = rest.rsplit_once(' ')?;
            let whole = series.is_empty() || series.starts_with('{');
            whole.then_some((series, value.parse().ok()?))
        });
        lines.filter(move |(series, _)| {
            labels.iter().all(|(label, value)| series.contains(&format!("{label}=\"{value}\"")))
        })
    }

    /// How many requests the API server took so far that write this resource.
    #[must_use]
    pub fn writes(&self, resource: &str) -> u64 {
        let of_verb =
            |verb| self.sum("apiserver_request_total", &[("resource", resource), ("verb", verb)]);
        WRITING.into_iter().map(of_verb).sum::<f64>() as u64
    }

    /// How many of them are patches: of objects by themselves, or of a subresource.
    #[must_use]
    pub fn patches(&self, resource: &str) -> u64 {
        let labels = [("resource", resource), ("verb", "PATCH")];
        self.sum("apiserver_request_total", &labels) as u64
    }

    /// All requests of the controller to Consul.
    #[must_use]
    pub fn consul_requests(&self) -> u64 {
        self.sum("consul_lock_consul_requests_total", &[]) as u64
    }
}
