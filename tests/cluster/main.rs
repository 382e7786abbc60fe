//! Tests on a real node: pods that a kubelet runs, Services that kube-proxy routes, and two
//! clusters that share one Consul. They need Linux and root, and say so where they are skipped.
//!
//! The clusters are started once for all tests of this binary. Most tests keep to a namespace of
//! their own on one cluster; those that cut links or stop servers take turns on the other.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking; clippy knows only `#[test]`s")]

mod agents;
mod bed;
mod chart;
mod controller;
mod disturbances;
mod elections;
mod firings;
mod image;
mod kubelet;
mod nightly;
mod partition;
mod payroll;
mod pods;
mod printed;
mod routing;
mod service;
