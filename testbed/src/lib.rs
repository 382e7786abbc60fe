//! Starts the real servers that tests, the demo and benchmarks talk to: a Consul or three of
//! them, a Kubernetes control plane or a whole cluster with a kubelet, a PostgreSQL, a Prometheus, and a
//! proxy that misbehaves on demand. For simulations there is an API server in memory ([`fake_api`]).
//!
//! What it promises:
//!
//! * Servers are ordinary processes: no root, no containers, but for [`Cluster`] and [`Island`]. They come from
//!   PATH or are built from `tools/` ([`tools`]); PostgreSQL ([`Postgres`]) and Prometheus ([`Prometheus`]) are
//!   Debian's.
//! * Ports are random and folders short-lived, so that tests run in parallel.
//! * Every wait has a deadline ([`wait_for`]), and what did not come up shows the end of its log.
//! * Nothing outlives the process that started it, however that ends ([`mod@reaper`]).
//! * After a panic the logs stay, and their place is printed ([`Folder`]).
//!
//! All of it is synchronous: a test in an async runtime starts its servers before it awaits
//! anything, or in `spawn_blocking`.

pub mod bench;
mod certs;
pub mod chart;
mod cluster;
mod consul;
mod control_plane;
pub mod fake_api;
mod folder;
mod helm;
mod http;
mod image;
mod node;
mod optional;
mod ports;
mod postgres;
mod process;
mod prometheus;
mod proxy;
mod replica;
pub mod rights;
mod run;
pub mod seeds;

pub mod reaper;
pub mod tools;
mod wait;

pub use certs::{Authority, CertFiles, Validity};
pub use cluster::{ConsulCluster, ConsulClusterConfig};
pub use consul::{Consul, ConsulConfig};
pub use control_plane::{Backup, ControlPlane, SERVICE_ACCOUNTS};
pub use folder::{Folder, tail};
pub use helm::Helm;
pub use http::{Reply, request};
pub use image::{BACKEND_IMAGE, Image, ImageConfig, Layer, PRODUCT_IMAGE, ProductImage};
pub use node::{Cluster, Enforced, Island, PodCut};
pub use ports::Port;
pub use postgres::{Database, Postgres};
pub use process::{BedError, Recipe, Server};
pub use prometheus::Prometheus;
pub use proxy::{Answer, Fault, Proxy};
pub use replica::replica;
pub use run::run;
pub use wait::{Deadline, Stopwatch, TimedOut, say, wait_closely, wait_for, wall};
