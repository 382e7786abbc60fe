//! What is shown of any claim, for `crate::fuzz`.

use jiff::Timestamp;

use super::{
    describe::Description,
    rows::{self, Row},
    screen::Paint,
};
use crate::api::ConsulLock;

/// However odd a claim is, it is shown, and does nothing to the terminal that shows it.
pub(crate) fn claim(claim: &ConsulLock) {
    // The API server sees to these.
    let name = |name: &Option<String>| {
        name.as_deref().is_none_or(|text| text.bytes().all(|c| c.is_ascii_graphic()))
    };
    if !name(&claim.metadata.name) || !name(&claim.metadata.namespace) {
        return;
    }
    let now = Timestamp::UNIX_EPOCH;
    let (row, tenures) = (Row::of(claim), rows::tenures(claim));
    let shown = [
        rows::list(&[row], true, now, Paint::PLAIN),
        rows::history(&tenures, false, now, Paint::PLAIN),
        Description::of(claim, &[]).text(now, Paint::PLAIN),
    ];
    for text in shown {
        let odd = |c: char| {
            (c.is_control() && c != '\n')
                || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        };
        assert!(!text.contains(odd), "{text:?}");
    }
}
