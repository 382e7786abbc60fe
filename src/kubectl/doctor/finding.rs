//! What an examination found: a row for each check, and what to run to repair it. Pure.

use std::fmt::Write as _;

use serde::Serialize;

use super::super::{
    screen::{Paint, Tone},
    table::{Cell, Table, clean},
};

/// What came of one check.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Finding {
    /// What was checked.
    pub(super) check: String,
    pub(super) verdict: Verdict,
    /// What was seen.
    pub(super) detail: String,
    /// The commands that repair it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) repair: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum Verdict {
    Ok,
    Problem,
    /// It could not be looked at.
    Unknown,
}

impl Finding {
    pub(super) fn ok(check: impl Into<String>, detail: impl Into<String>) -> Finding {
        Finding::new(check, Verdict::Ok, detail, Vec::new())
    }

    pub(super) fn unknown(check: impl Into<String>, detail: impl Into<String>) -> Finding {
        Finding::new(check, Verdict::Unknown, detail, Vec::new())
    }

    pub(super) fn problem(
        check: impl Into<String>,
        detail: impl Into<String>,
        repair: Vec<String>,
    ) -> Finding {
        Finding::new(check, Verdict::Problem, detail, repair)
    }

    fn new(
        check: impl Into<String>,
        verdict: Verdict,
        detail: impl Into<String>,
        repair: Vec<String>,
    ) -> Finding {
        Finding { check: check.into(), verdict, detail: clean(&detail.into()), repair }
    }
}

/// A table, and below it the commands.
pub(super) fn report(findings: &[Finding], paint: Paint) -> String {
    let mut table = Table::new(&["CHECK", "RESULT", "DETAIL"]);
    for one in findings {
        let (word, tone) = match one.verdict {
            Verdict::Ok => ("OK", Tone::Good),
            Verdict::Problem => ("PROBLEM", Tone::Bad),
            Verdict::Unknown => ("cannot tell", Tone::Busy),
        };
        table.row(vec![Cell::from(&one.check), Cell::toned(word, tone), Cell::from(&one.detail)]);
    }
    let mut text = table.render(paint, "");
    for one in findings.iter().filter(|one| !one.repair.is_empty()) {
        let _ = write!(text, "\nTo repair {}:\n", one.check);
        for command in &one.repair {
            let _ = writeln!(text, "  {command}");
        }
    }
    text
}

/// Nothing was found, and nothing was left out.
pub(super) fn all_is_well(findings: &[Finding]) -> bool {
    findings.iter().all(|one| one.verdict == Verdict::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_each_check_and_what_to_run() {
        let findings = [
            Finding::ok("Consul answers", "leader 10.0.0.1:8300"),
            Finding::problem("RBAC pods", "may not patch", vec!["kubectl create x".to_owned()]),
            Finding::unknown("clocks", "no Date"),
        ];
        let shown = "\
CHECK            RESULT        DETAIL
Consul answers   OK            leader 10.0.0.1:8300
RBAC pods        PROBLEM       may not patch
clocks           cannot tell   no Date

To repair RBAC pods:
  kubectl create x
";
        assert_eq!(report(&findings, Paint::PLAIN), shown);
        assert!(all_is_well(&findings[..1]));
        assert!(!all_is_well(&findings[..2]) && !all_is_well(&findings[2..]));
    }
}
