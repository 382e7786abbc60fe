//! Durations as users write them: Go syntax, `15s`, `1m30s`, `500ms`.
//!
//! [`GoDuration`] is what stands in an object; [`GoDuration::parse`] is what it means. Reading an
//! object never fails over a duration: a text that means nothing is reported when it is parsed, so
//! that one bad object cannot stop a whole list from being read.
//!
//! # Guarantees
//! Every text that [`PATTERN`] and [`MAX_LENGTH`] admit parses, here and by CEL's `duration()`,
//! without overflow. Nothing else parses here. No input panics.

use std::{borrow::Cow, fmt, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// What a duration looks like: at least one number with a unit, up to six digits before the point
/// and three behind it. With [`MAX_LENGTH`] this stays below 2⁶³ nanoseconds, where CEL's
/// `duration()` ends.
pub(super) const PATTERN: &str = r"^([0-9]{1,6}(\.[0-9]{1,3})?(ms|s|m|h))+$";

/// The longest text of a duration, in bytes.
pub(super) const MAX_LENGTH: usize = 20;

/// A duration as text, and compared as text: ask [`GoDuration::parse`] for its meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GoDuration(String);

/// A duration, or `never`, as text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DurationOrNever(String);

/// A text that is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{shown:?} is no duration: write numbers with the units h, m, s or ms, \
     such as 15s, 1m30s or 500ms"
)]
pub struct DurationError {
    /// The text, cut when it is long.
    pub shown: String,
}

impl GoDuration {
    /// Wraps a text as it is.
    pub fn new(text: impl Into<String>) -> GoDuration {
        GoDuration(text.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What the text means.
    ///
    /// # Errors
    /// [`DurationError`] for everything that the schema does not admit.
    pub fn parse(&self) -> Result<Duration, DurationError> {
        parse(&self.0)
            .ok_or_else(|| DurationError { shown: self.0.chars().take(2 * MAX_LENGTH).collect() })
    }
}

impl DurationOrNever {
    /// The word for no end.
    pub(super) const NEVER: &'static str = "never";

    /// Wraps a text as it is.
    pub fn new(text: impl Into<String>) -> DurationOrNever {
        DurationOrNever(text.into())
    }

    /// The text as a duration; `None`: never.
    pub fn bounded(&self) -> Option<GoDuration> {
        (self.0 != Self::NEVER).then(|| GoDuration(self.0.clone()))
    }
}

impl JsonSchema for DurationOrNever {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "DurationOrNever".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let never = DurationOrNever::NEVER;
        let pattern = PATTERN.trim_start_matches('^').trim_end_matches('$');
        json_schema!({
            "type": "string", "maxLength": MAX_LENGTH, "pattern": format!("^({never}|{pattern})$"),
        })
    }
}

impl From<Duration> for GoDuration {
    /// Whole milliseconds, in the fewest units: 90 s is `1m30s`, 24 h is `24h`.
    fn from(span: Duration) -> GoDuration {
        let millis = span.as_millis();
        let parts = [
            (millis / 3_600_000, "h"),
            (millis / 60_000 % 60, "m"),
            (millis / 1_000 % 60, "s"),
            (millis % 1_000, "ms"),
        ];
        let text: String = parts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, unit)| format!("{count}{unit}"))
            .collect();
        GoDuration(if text.is_empty() { "0s".into() } else { text })
    }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl JsonSchema for GoDuration {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "GoDuration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "maxLength": MAX_LENGTH, "pattern": PATTERN })
    }
}

fn parse(text: &str) -> Option<Duration> {
    if text.is_empty() || text.len() > MAX_LENGTH {
        return None;
    }
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let (span, behind) = part(rest)?;
        sum = sum.checked_add(span)?;
        rest = behind;
    }
    Some(sum)
}

/// One number with its unit, and what follows.
fn part(text: &str) -> Option<(Duration, &str)> {
    let (whole, rest) = digits(text, 6)?;
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(behind) => digits(behind, 3)?,
        None => ("0", rest),
    };
    let (unit_nanos, rest) = unit(rest)?;
    let whole: u64 = whole.parse().ok()?;
    let scale = 10_u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let fraction: u64 = fraction.parse().ok()?;
    // Exact: every unit is a multiple of 1,000 ns, and a fraction has at most three digits.
    let nanos = whole.checked_mul(unit_nanos)?.checked_add(fraction * (unit_nanos / scale))?;
    Some((Duration::from_nanos(nanos), rest))
}

/// The digits at the start, if there are 1 to `most`.
fn digits(text: &str, most: usize) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (1..=most).contains(&end).then(|| text.split_at(end))
}

/// The unit at the start, in nanoseconds. `ms` before `m`: the longer name wins, as in Go.
fn unit(text: &str) -> Option<(u64, &str)> {
    const UNITS: [(&str, u64); 4] =
        [("ms", 1_000_000), ("s", 1_000_000_000), ("m", 60_000_000_000), ("h", 3_600_000_000_000)];
    UNITS.iter().find_map(|(name, nanos)| text.strip_prefix(name).map(|rest| (*nanos, rest)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn meaning(text: &str) -> Option<Duration> {
        GoDuration::new(text).parse().ok()
    }

    #[test]
    fn durations_mean_what_go_says() {
        for (text, millis) in [
            ("15s", 15_000),
            ("1m30s", 90_000),
            ("500ms", 500),
            ("24h", 86_400_000),
            ("0s", 0),
            ("1.5s", 1_500),
            ("0.001s", 1),
            ("5s5s", 10_000),
            ("1m1ms", 60_001),
            ("999999h", 3_599_996_400_000),
        ] {
            assert_eq!(meaning(text), Some(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        let digits = "9".repeat(400);
        for text in [
            "",
            "abc",
            "-5s",
            "+5s",
            "++15s",
            "15",
            "0",
            "5s0",
            "1d",
            "s",
            ".5s",
            "5.s",
            "1.2345s",
            "1 s",
            " 1s",
            "1s ",
            "5s-3s",
            "1us",
            "1µs",
            "1ns",
            "1234567s",
            "1S",
            "1m30",
            "１s",
            "99999999999999999999h",
            &digits,
        ] {
            assert_eq!(meaning(text), None, "{text}");
        }
    }

    #[test]
    fn a_refusal_shows_the_text_and_what_is_allowed() {
        let error = GoDuration::new("1d").parse().unwrap_err().to_string();
        assert!(error.contains("\"1d\"") && error.contains("15s, 1m30s or 500ms"), "{error}");
        let long = GoDuration::new("9".repeat(400)).parse().unwrap_err();
        assert!(long.to_string().len() < 200);
    }

    #[test]
    fn durations_are_printed_in_the_fewest_units() {
        for (millis, text) in [
            (0, "0s"),
            (45_000, "45s"),
            (90_000, "1m30s"),
            (86_400_000, "24h"),
            (172_860_000, "48h1m"),
            (1, "1ms"),
        ] {
            assert_eq!(GoDuration::from(Duration::from_millis(millis)).as_str(), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_back(millis in 0_u64..9_000_000_000) {
            let span = Duration::from_millis(millis);
            prop_assert_eq!(GoDuration::from(span).parse(), Ok(span));
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = GoDuration::new(text).parse();
        }

        #[test]
        fn no_text_of_the_right_letters_panics(text in "[-+0-9.hmsuµ]{0,24}") {
            let _ = GoDuration::new(text).parse();
        }

        /// The schema's pattern promises no more than the parser and CEL's int64 nanoseconds keep.
        #[test]
        fn what_the_schema_admits_parses(
            text in r"([0-9]{1,6}(\.[0-9]{1,3})?(ms|s|m|h)){1,4}"
        ) {
            prop_assume!(text.len() <= MAX_LENGTH);
            let span = GoDuration::new(text).parse();
            prop_assert!(span.is_ok_and(|span| i64::try_from(span.as_nanos()).is_ok()));
        }
    }
}
