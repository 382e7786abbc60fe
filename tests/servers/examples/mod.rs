//! The worked examples of `examples/`, each with a database of its own in a real PostgreSQL, and
//! with the fault that it is about. Of each safety it is also shown what happens without it.

mod coupons;
mod inventory;
mod kubernetes;
mod nightly;
mod orders;
mod stage;
mod standby;
