//! Tests against real servers: a Consul or three, and a Kubernetes API server. They come from
//! `tools/` through the `testbed`, are shared where tests do not disturb one another, and end with
//! this process.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking; clippy knows only `#[test]`s")]

mod agent;
mod agent_mode;
mod api_contract;
mod canary;
mod chart;
mod claims;
mod consul_access;
mod consul_certificates;
mod consul_cluster;
mod consul_contract;
mod consul_faults;
mod consul_login;
mod consul_misconfigured;
mod consul_wire;
mod corpus;
mod disasters;
mod disasters_kubernetes;
mod elections;
mod elections_changes;
mod elections_faults;
mod elections_rights;
mod end_to_end;
mod examples;
mod faults_consul;
mod faults_consul_access;
mod faults_consul_answers;
mod faults_consul_keys;
mod faults_controller;
mod faults_kubernetes;
mod fixtures;
mod gates;
mod handovers;
mod interop;
mod kubectl;
mod kubectl_doctor;
mod kubectl_release;
mod library;
mod monitoring;
mod pods;
mod process;
mod replicas;
mod rights;
mod run;
mod scripted;
mod site;
mod terminal;
mod witness;
