//! Speed, side by side with a floor: `make bench`.
//!
//! Starts a Consul and a control plane, runs the controller's binary against them, and prints a
//! table. Beside each time stands its *floor*: what a bare client needs that makes the same calls,
//! one after the other, over warm connections and with the same crates, in the same run.
//!
//! It ends well unless something failed or a figure that must be 0 is not. A missed aim is printed
//! and is no failure: times depend on the machine.

mod bed;
mod cast;
mod change;
mod elections;
mod floor;
mod latency;
mod peer;
mod restart;
mod sight;
mod steady;

use std::{process::ExitCode, sync::Arc, time::Duration};

use clap::Parser;

use bed::{Bed, Field, Replica};
use sight::Sight;
use testbed::bench::{
    process::{self, Connections},
    prometheus,
    table::{self, Table},
};

/// What may go wrong.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Bed(#[from] testbed::BedError),
    #[error(transparent)]
    Tool(#[from] testbed::tools::ToolError),
    #[error("Kubernetes: {0}")]
    Kube(#[from] kube::Error),
    #[error("the kubeconfig: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    #[error("Consul: {0}")]
    Consul(#[from] consul_lock::consul::ConsulError),
    #[error("Consul's client: {0}")]
    ConsulClient(#[from] consul_lock::consul::http::HttpConfigError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("a task of the benchmark: {0}")]
    Task(#[from] tokio::task::JoinError),
    #[error("waited in vain for {0}")]
    InVain(String),
    #[error("{0}")]
    Odd(String),
}

type Outcome<T> = Result<T, Failure>;

/// How much to measure. The defaults are what is reported.
#[derive(Parser)]
struct Amounts {
    /// Claims that are created one at a time
    #[arg(long, default_value_t = 200)]
    single: usize,
    /// Claims that are created all at once, and held from then on
    #[arg(long, default_value_t = 1000)]
    burst: usize,
    /// For how many seconds the steady state is watched
    #[arg(long, default_value_t = 60)]
    steady: u64,
    /// Deaths of a leader, one after the other, and as many changes by preemption
    #[arg(long, default_value_t = 100)]
    changes: usize,
    /// Claims with three candidates each
    #[arg(long, default_value_t = 1000)]
    elections: usize,
    /// How many of their leaders die at once
    #[arg(long, default_value_t = 300)]
    failures: usize,
    /// How often client-go's leader crashes, and how often it goes
    #[arg(long, default_value_t = 3)]
    peer: usize,
    /// Leave the elections out
    #[arg(long)]
    no_elections: bool,
    /// Measure the elections alone
    #[arg(long)]
    elections_only: bool,
    /// Cargo says so
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    consul_lock::consul::http::ensure_tls_provider();
    let amounts = Amounts::parse();
    match run(&amounts) {
        Ok(table) => {
            table.print();
            if table.must_be_failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(amounts: &Amounts) -> Outcome<Table> {
    testbed::say("starting Consul, etcd and kube-apiserver");
    let bed = Bed::start()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(measure(&bed, amounts))
}

async fn measure(bed: &Bed, amounts: &Amounts) -> Outcome<Table> {
    let mut table = Table::new(bed.machine().await?);
    let field = Field::prepare(bed).await?;
    if !amounts.elections_only {
        locks(bed, &field, amounts, &mut table).await?;
    }
    if !amounts.no_elections {
        let replica = Replica::start(bed, &[])?;
        replica.wait_leads().await?;
        let amounts = elections::Amounts {
            changes: amounts.changes,
            claims: amounts.elections,
            failures: amounts.failures,
            steady: Duration::from_secs(amounts.steady),
            peer: amounts.peer,
        };
        elections::measure(bed, &field, &replica, amounts, &mut table).await?;
    }
    Ok(table)
}

/// Claims that contend for themselves.
async fn locks(bed: &Bed, field: &Field, amounts: &Amounts, table: &mut Table) -> Outcome<()> {
    let sight = Sight::of(field);
    let watching = sight::follow(Arc::clone(&sight), field);
    let replica = Replica::start(bed, &[])?;
    replica.wait_leads().await?;
    let connections = Connections::watch(replica.pid()?, bed.consul.http());

    testbed::say(format!("{} claims one at a time, and the floor", amounts.single));
    let template = latency::one_at_a_time(field, &sight, &replica, amounts.single, table).await?;
    field.clear().await?;
    connections.phase_over("one at a time");
    field.quiet().await?;

    testbed::say(format!("a burst of {} claims, and the floor", amounts.burst));
    latency::burst(field, &sight, amounts.burst, &template, &connections, table).await?;
    connections.phase_over("burst");
    field.quiet().await?;

    testbed::say(format!("the steady state for {} s", amounts.steady));
    let span = Duration::from_secs(amounts.steady);
    steady::watch(bed, field, &replica, span, table).await?;
    connections.phase_over("steady state");

    testbed::say("the controller is killed, and another started");
    let replica = restart::measure(bed, field, replica, &connections, table).await?;
    connections.phase_over("restart");
    connections.report(table);
    drop(watching);
    // The claims are cleared while somebody looks after them.
    field.clear().await?;
    drop(replica);
    Ok(())
}
