//! What an operator sees from outside: [`Metrics`], [`logs`], and the [`admin`] server that serves
//! the metrics and the probes.
//!
//! Used by every layer that does something worth counting; uses nothing of theirs, so whoever
//! reports passes plain values. Labels are `&'static str`: only what the source names can become a
//! label, never a key, an object's name or an error's text.

pub mod admin;
pub mod logs;
mod metrics;

pub use metrics::{Described, Metrics};
