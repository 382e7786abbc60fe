//! Log lines on standard error: text for people, or one JSON object per line for machines.
//!
//! Whatever happens for a claim happens inside its [`claim_span`], and both formats write the
//! fields of all open spans on every line, so that the claim's name is on every line about it.

use std::{fmt, io, str::FromStr};

use serde_json::{Map, Value};
use tracing::{
    Event, Span, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter as Level,
};
use tracing_subscriber::{
    EnvFilter,
    fmt::{
        FmtContext, FormatEvent, FormatFields, FormattedFields, MakeWriter,
        format::{JsonFields, Writer},
    },
    registry::LookupSpan,
};

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line: `timestamp`, `level`, `target`, `message`, and the fields of the
    /// event and of the spans around it side by side.
    Json,
}

/// What is logged: a level, or a comma list of `target=level`. Checked when it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(String);

/// Why a string is no [`Filter`].
#[derive(Debug, thiserror::Error)]
#[error(
    "{raw:?} is no log filter: give error, warn, info, debug, trace or off, or a comma list of \
     target=level such as \"info,consul_lock::keeper=debug\""
)]
pub struct FilterError {
    raw: String,
}

impl FromStr for Filter {
    type Err = FilterError;
    fn from_str(raw: &str) -> Result<Filter, FilterError> {
        // A word that is no level would be taken for a target, all of whose lines are wanted.
        // An empty one would be taken for the level error.
        let known = raw.split(',').map(str::trim).all(|part| {
            part.contains(['=', ':', '[']) || (!part.is_empty() && part.parse::<Level>().is_ok())
        });
        match EnvFilter::try_new(raw) {
            Ok(_) if known => Ok(Filter(raw.to_owned())),
            _ => Err(FilterError { raw: raw.to_owned() }),
        }
    }
}

impl Default for Filter {
    fn default() -> Filter {
        Filter("info".to_owned())
    }
}

impl Filter {
    fn build(&self) -> EnvFilter {
        EnvFilter::new(&self.0)
    }
}

/// The span in which everything about one claim happens. At error level, so that no filter takes
/// the claim's name off a line that it lets through.
pub fn claim_span(namespace: &str, name: &str) -> Span {
    tracing::error_span!("claim", claim = format_args!("{namespace}/{name}"))
}

/// From now on this process logs to standard error. The first call counts; a later one returns
/// `false` and changes nothing.
pub fn install(format: Format, filter: &Filter) -> bool {
    let ansi = io::IsTerminal::is_terminal(&io::stderr())
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    tracing::subscriber::set_global_default(subscriber(format, filter, io::stderr, ansi)).is_ok()
}

fn subscriber<W>(
    format: Format,
    filter: &Filter,
    writer: W,
    ansi: bool,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let plain = tracing_subscriber::fmt()
        .with_env_filter(filter.build())
        .with_writer(writer)
        .with_ansi(ansi && format == Format::Text);
    match format {
        Format::Text => Box::new(plain.finish()),
        Format::Json => {
            Box::new(plain.fmt_fields(JsonFields::new()).event_format(OneObject).finish())
        }
    }
}

/// Writes an event as one flat JSON object, so that `.claim` is `.claim` on every line. The
/// library's own format nests span fields in an array.
struct OneObject;

impl<S, N> FormatEvent<S, N> for OneObject
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = Line::default();
        for span in ctx.event_scope().into_iter().flat_map(|s| s.from_root()) {
            if let Some(fields) = span.extensions().get::<FormattedFields<N>>()
                && let Ok(fields) = serde_json::from_str::<Map<String, Value>>(&fields.fields)
            {
                line.0.extend(fields);
            }
        }
        event.record(&mut line);
        let metadata = event.metadata();
        // Last, so that no field takes their place.
        line.put("timestamp", now());
        line.put("level", metadata.level().as_str());
        line.put("target", metadata.target());
        writeln!(writer, "{}", Value::Object(line.0))
    }
}

/// Log lines carry the wall clock: they are for reading, nothing decides by them.
fn now() -> String {
    crate::clock::Clock::boot().wall().to_string()
}

#[derive(Default)]
struct Line(Map<String, Value>);

impl Line {
    fn put(&mut self, name: &str, value: impl Into<Value>) {
        self.0.insert(name.to_owned(), value.into());
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field.name(), format!("{value:?}"));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), value);
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field.name(), value);
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field.name(), value);
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field.name(), value);
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field.name(), value);
    }
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field.name(), value.to_string());
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, sync::Arc};

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: Format, filter: &str, work: impl FnOnce()) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let filter = filter.parse().unwrap();
        let subscriber = subscriber(format, &filter, move || writer.clone(), false);
        tracing::subscriber::with_default(subscriber, work);
        String::from_utf8(buffer.0.lock().clone()).unwrap()
    }

    #[test]
    fn claim_is_a_field_of_every_json_line_about_it() {
        let text = logged(Format::Json, "info", || {
            let _claim = claim_span("shop", "billing").entered();
            tracing::info!(token = 7_u64, "held");
            let _deeper = tracing::info_span!("release", key = "a/b").entered();
            tracing::warn!(error = %"says \"no\"", "not \n released");
        });
        let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["claim"], "shop/billing");
        assert_eq!(lines[0]["message"], "held");
        assert_eq!(lines[0]["token"], 7);
        assert_eq!(lines[0]["level"], "INFO");
        assert_eq!(lines[1]["claim"], "shop/billing");
        assert_eq!(lines[1]["key"], "a/b");
        assert_eq!(lines[1]["error"], "says \"no\"");
        assert_eq!(lines[1]["message"], "not \n released");
    }

    #[test]
    fn claim_is_on_every_text_line_whatever_the_filter() {
        let text = logged(Format::Text, "warn", || {
            let _claim = claim_span("shop", "billing").entered();
            tracing::info!("not wanted");
            tracing::warn!("renewal failed");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("shop/billing"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn filter_refuses_what_it_would_misunderstand() {
        for good in ["info", "WARN", "off", "info,consul_lock::keeper=debug"] {
            assert!(good.parse::<Filter>().is_ok(), "{good}");
        }
        for bad in ["", "loud", "info,verbose", "consul_lock=loud", "a=b=c"] {
            let error = bad.parse::<Filter>().unwrap_err().to_string();
            assert!(error.contains("error, warn, info"), "{bad}: {error}");
        }
    }
}
