//! The binary: how big it is, and how quickly it starts.

use std::{process::Command, time::Duration};

use testbed::{
    Stopwatch,
    bench::table::{Row, Table, milliseconds},
    tools::Tool,
};

use crate::Outcome;

const STARTS: usize = 20;

pub(crate) fn size(table: &mut Table) -> Outcome<()> {
    let ours = env!("CARGO_BIN_EXE_consul-lock");
    let path = Tool::Consul.path().map_err(testbed::BedError::from)?;
    let size = |path: &std::path::Path| -> Outcome<String> {
        Ok(format!("{:.1} MB", std::fs::metadata(path)?.len() as f64 / 1e6))
    };
    let row = Row::new("the binary").value(size(ours.as_ref())?);
    table.push(row.floor(size(&path)?));
    let ours = start(&mut Command::new(ours))?;
    let peer = start(&mut Command::new(&path))?;
    let row = Row::new("- starts and says its version, p50").value(milliseconds(ours));
    table.push(row.floor(milliseconds(peer)).ratio(ours, peer));
    Ok(())
}

fn start(program: &mut Command) -> Outcome<Duration> {
    program.arg("--version");
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let watch = Stopwatch::start();
        let output = program.output()?;
        times.push(watch.elapsed());
        if !output.status.success() {
            return Err(crate::Failure::Odd(format!("{program:?}: {}", output.status)));
        }
    }
    times.sort();
    Ok(times[STARTS / 2])
}
