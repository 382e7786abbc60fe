//! Locks and leader election for Kubernetes that reach beyond one cluster, because they live in
//! HashiCorp Consul.

pub mod api;
pub mod cli;
pub mod clock;
pub mod consul;
pub mod controller;
pub mod keeper;
pub mod lock;
pub mod names;
pub mod replicas;
pub mod telemetry;
