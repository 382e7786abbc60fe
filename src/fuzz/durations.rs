//! Durations: what an object or a flag says, and what Consul says.

use std::time::Duration;

use crate::{
    api::{self, GoDuration},
    consul::http::fuzzed as consul,
};

/// Printing a longer one takes more digits than a duration may have.
const PRINTABLE: Duration = Duration::from_secs(999_999 * 3600);
/// The longest that is ever sent to Consul or relied on.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Any text in the place of a duration.
pub(super) fn duration(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let by_go = go(text).map(Duration::from_nanos);
    let ours = GoDuration::new(text).parse();
    assert_eq!(ours.is_ok(), api::fuzzed::admits_duration(text), "as the schema: {text:?}");
    match ours {
        Ok(span) => {
            assert_eq!(Some(span), by_go, "what CEL's duration() makes of {text:?}");
            // What is printed is whole milliseconds.
            if span <= PRINTABLE && span.subsec_nanos().is_multiple_of(1_000_000) {
                assert_eq!(GoDuration::from(span).parse(), Ok(span), "as printed");
            }
            if span <= LONGEST {
                let sent = consul::sent(span);
                assert_eq!(go(&sent).map(Duration::from_nanos), Some(span), "as sent: {sent}");
                assert_eq!(consul::read(&sent), Some(span), "as it comes back: {sent}");
            }
        }
        Err(error) => assert!(error.to_string().chars().count() < 400, "{error}"),
    }
    // A TTL that is taken for longer than it is would be relied on for too long.
    let read = consul::read(text);
    if let Some(span) = by_go {
        let read = read.unwrap_or_else(|| panic!("Go reads {text:?} as {span:?}"));
        // Of each fraction Go drops what is below a nanosecond, and we round it.
        let fractions = text.matches('.').count() as u64;
        let tolerance = Duration::from_nanos(1 + fractions) + span / (1 << 30);
        assert!(read.abs_diff(span) <= tolerance, "{text:?}: {read:?}, and by Go {span:?}");
    } else if let Some(read) = read {
        let go_ends = Duration::from_nanos(i64::MAX.unsigned_abs());
        assert!(read >= go_ends, "Go does not read {text:?}, and we take it for {read:?}");
    }
}

/// What Go's `time.ParseDuration` makes of a text, in nanoseconds, if that is not negative. Written
/// after its documentation and not after our parsers, in whole numbers throughout.
fn go(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 8] = [
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000), // U+00B5
        ("μs", 1_000), // U+03BC
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    let text = text.strip_prefix('+').unwrap_or(text);
    if text == "0" {
        return Some(0);
    }
    let (mut left, mut sum) = (text, 0_u64);
    if left.is_empty() {
        return None;
    }
    while !left.is_empty() {
        let number_ends = left.find(|c: char| c != '.' && !c.is_ascii_digit())?;
        let (number, behind) = left.split_at(number_ends);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return None;
        }
        let unit_ends = behind.find(|c: char| c == '.' || c.is_ascii_digit());
        let (unit, behind) = behind.split_at(unit_ends.unwrap_or(behind.len()));
        let (_, nanos) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        sum = sum.checked_add(whole.checked_mul(*nanos)?)?.checked_add(part(fraction, *nanos))?;
        if i64::try_from(sum).is_err() {
            return None;
        }
        left = behind;
    }
    Some(sum)
}

/// A fraction of a unit. What lies below a nanosecond is dropped.
fn part(fraction: &str, nanos: u64) -> u64 {
    // The smallest unit that has digits behind the point which count, an hour, has thirteen.
    let digits = fraction.bytes().chain(std::iter::repeat(b'0')).take(18);
    let scaled = digits.fold(0_u128, |sum, digit| sum * 10 + u128::from(digit - b'0'));
    u64::try_from(scaled * u128::from(nanos) / 10_u128.pow(18)).unwrap_or(0)
}
