//! Tests against real servers.

mod corpus;
mod fixtures;
mod replicas;
