//! The speed of locks, side by side with Consul's own `consul lock` and Go's `api.Lock`, in one run
//! against one Consul: `make bench`.
//!
//! The crate and `api.Lock` are measured in processes of their own that do the same ([`ours`],
//! `benches/peers/api-lock`). Requests and Raft entries are what Consul itself has counted.
//!
//! It ends well unless something failed or a figure that must be 0 is not. A missed aim is printed
//! and is no failure: times depend on the machine.

mod bed;
mod children;
mod ours;
mod program;
mod rows;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use testbed::bench::{process, table::Table};

/// What may go wrong.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Bed(#[from] testbed::BedError),
    #[error(transparent)]
    TimedOut(#[from] testbed::TimedOut),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Settings(#[from] consul_lock::SettingsError),
    #[error(transparent)]
    Connect(#[from] consul_lock::ConnectError),
    #[error(transparent)]
    Acquire(#[from] consul_lock::AcquireError),
    #[error(transparent)]
    Release(#[from] consul_lock::ReleaseError),
    #[error("a task of the benchmark: {0}")]
    Task(#[from] tokio::task::JoinError),
    #[error("{0}")]
    Odd(String),
}

type Outcome<T> = Result<T, Failure>;

/// How much to measure. The defaults are what is reported.
#[derive(Parser)]
struct Amounts {
    #[command(subcommand)]
    part: Option<Part>,
    /// Acquisitions one after the other
    #[arg(long, default_value_t = 300)]
    acquires: usize,
    /// For how many seconds 64 workers acquire and release
    #[arg(long, default_value_t = 10)]
    cycles: u64,
    /// Handovers from one holder to the next
    #[arg(long, default_value_t = 30)]
    handovers: usize,
    /// Rounds of 50 waiters
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// For how many seconds 50 contenders queue again at once
    #[arg(long, default_value_t = 40)]
    requeue: u64,
    /// Locks in one process
    #[arg(long, default_value_t = 1000)]
    many: usize,
    /// For how many seconds they are held
    #[arg(long, default_value_t = 60)]
    steady: u64,
    /// Commands under a lock that are killed, one after the other
    #[arg(long, default_value_t = 10)]
    kills: usize,
    /// Machines that die for each means, each at another moment between two renewals
    #[arg(long, default_value_t = 9)]
    deaths: usize,
    /// Leave out how long the peers go on when packets are dropped, which takes minutes
    #[arg(long)]
    no_silence: bool,
    /// Cargo says so
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Part {
    /// Play our part in a measurement
    #[command(hide = true)]
    Ours(ours::Order),
    /// Hold a lock on this key, and say what becomes of it
    #[command(hide = true)]
    Hold { key: String },
}

fn main() -> ExitCode {
    let mut amounts = Amounts::parse();
    let done = match amounts.part.take() {
        Some(Part::Ours(order)) => ours::run(order),
        Some(Part::Hold { key }) => ours::hold(&key),
        None => measure(&amounts),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn measure(amounts: &Amounts) -> Outcome<()> {
    testbed::say("starting Consul");
    // The peers need a connection for every lock.
    let consul = bed::consul(Some(10_000))?;
    let agent = consul.request("GET", "/v1/agent/self", b"")?.json();
    let version = agent["Config"]["Version"].as_str().unwrap_or("?");
    let built = if cfg!(debug_assertions) { "a debug build" } else { "a release build" };
    let mut table = Table::beside(
        "peer",
        format!(
            "{}; Consul {version} (in memory), consul-lock {} ({built}), all on this machine",
            process::machine(),
            env!("CARGO_PKG_VERSION"),
        ),
    );
    rows::acquire(&consul, amounts, &mut table)?;
    rows::cycles(&consul, amounts, &mut table)?;
    rows::handover(&consul, amounts, &mut table)?;
    rows::waiters(&consul, amounts, &mut table)?;
    rows::requeue(&consul, amounts, &mut table)?;
    children::killed(&consul, amounts.kills, &mut table)?;
    children::machine_dies(&consul, amounts.deaths, &mut table)?;
    children::machine_dies_with_its_agent(amounts.deaths, &mut table)?;
    children::silence(&consul, !amounts.no_silence, &mut table)?;
    rows::many(&consul, amounts, &mut table)?;
    drop(consul);
    rows::capped(amounts, &mut table)?;
    program::size(&mut table)?;
    table.print();
    if table.must_be_failed() {
        return Err(Failure::Odd("a figure that must be 0 is not".to_owned()));
    }
    Ok(())
}
