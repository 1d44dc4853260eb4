//! Everything an engineer does to Herald. `cargo xtask --help` is the manual.

mod check;
mod command;
mod environments;
mod kafka;
mod local;
mod port;
mod tools;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Everything an engineer does to Herald; each command it runs is shown with a `$` before it.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Chore {
    Check(check::Args),
    /// Start an Apache Kafka to work with, and end it at Ctrl-C.
    Kafka,
    Local(local::Args),
}

fn main() -> ExitCode {
    let result = match Chore::parse() {
        Chore::Check(args) => check::run(&args),
        Chore::Kafka => kafka::run(),
        Chore::Local(args) => local::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// The top of the repository.
fn root() -> PathBuf {
    let xtask = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    xtask
        .parent()
        .expect("xtask lies in the workspace")
        .to_owned()
}

/// Cargo's folder for what it builds, wherever the user has put it: we run from its `debug`.
fn target() -> PathBuf {
    let program = std::env::current_exe().expect("the system knows the path of a running program");
    program
        .ancestors()
        .nth(2)
        .expect("a program lies in <target>/debug")
        .to_owned()
}
