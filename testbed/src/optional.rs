//! What a machine may lack, though Debian has it in a package: whether a test is skipped for want of
//! it, or fails.

use crate::wait::say;

/// Why a test has to be skipped; nothing if it need not be. `variable` is that of the environment by
/// which people say `skip`, or `required`.
///
/// # Panics
/// Something is missing, and it is required.
pub(crate) fn why_not<T>(variable: &str, found: Result<T, String>) -> Option<String> {
    let wish = std::env::var(variable).unwrap_or_default();
    if wish == "skip" {
        return Some(format!("{variable}={wish}"));
    }
    let why = found.err()?;
    assert!(wish != "required", "{variable}=required, but {why}");
    Some(why)
}

/// Whether the test has to be skipped; says so, and why.
pub(crate) fn skips(why: Option<String>) -> bool {
    if let Some(why) = &why {
        let test = std::thread::current();
        say(format!("SKIPPED: {}: {why}", test.name().unwrap_or("a test")));
    }
    why.is_some()
}
