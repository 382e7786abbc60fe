//! What an operator sees from outside: [`Metrics`], [`logs`], and the [`admin`] server that serves
//! the metrics and the probes.
//!
//! Used by every layer that does something worth counting; uses nothing of theirs, so whoever
//! reports passes plain values. Labels are `&'static str`: only what the source names can become a
//! label, never a key, an object's name or an error's text; but for the series of each claim, which
//! have to be asked for.

pub mod admin;
pub mod logs;
mod make;
mod metrics;

pub use make::{Census, Described};
pub use metrics::{FailoverPart, HolderLabels, Metrics};
