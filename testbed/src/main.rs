//! `testbed`: the test bed from a shell. `make` calls it.

use std::process::ExitCode;

use testbed::tools::{Tool, ToolError};

const USAGE: &str =
    "usage: testbed tools    find or build every server and tool, and say where they are";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match args.as_slice() {
        ["tools"] => tools().map_err(|error| error.to_string()),
        _ => Err(USAGE.to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn tools() -> Result<(), ToolError> {
    for tool in Tool::ALL {
        println!("{:<15} {}", tool.name(), tool.path()?.display());
    }
    Ok(())
}
