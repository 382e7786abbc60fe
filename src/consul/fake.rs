//! in-memory fake
