//! What the benchmarks share: the table that they print, and what servers and Linux tell.

pub mod process;
pub mod prometheus;
pub mod table;
