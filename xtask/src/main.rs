//! Herald's development commands. `cargo xtask --help` is the manual.

// Without the feature "cluster", some shared code is unused.
#![cfg_attr(not(feature = "cluster"), allow(dead_code))]

mod chart;
mod check;
mod command;
mod environments;
mod kafka;
#[cfg(feature = "cluster")]
mod kubernetes;
mod local;
mod pids;
mod port;
mod services;
#[cfg(feature = "cluster")]
mod token;
mod tools;

use std::fs::{File, TryLockError};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

/// Herald's development commands; each program that they run is shown with a `$` before it.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Command {
    #[cfg(feature = "cluster")]
    #[command(flatten)]
    Kubernetes(kubernetes::Command),
    Local(local::Args),
    /// Run an Apache Kafka for development until Ctrl-C.
    Kafka,
    #[cfg(feature = "cluster")]
    Token(token::Args),
    /// Write what is generated from `helm/values.yaml`: the schema, the defaults, and the table in `helm/README.md`.
    Chart,
    Check(check::Args),
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        #[cfg(feature = "cluster")]
        Command::Kubernetes(command) => command.run(),
        Command::Local(args) => local::run(&args),
        Command::Kafka => kafka::run(),
        #[cfg(feature = "cluster")]
        Command::Token(args) => token::run(&args),
        Command::Chart => chart::run(),
        Command::Check(args) => check::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// Serialises commands that change the environments, such as two `./setup.sh` at once; released when dropped.
fn lock() -> anyhow::Result<File> {
    let path = target().join("xtask.lock");
    let context = || format!("cannot lock {}", path.display());
    let file = File::create(&path).with_context(context)?;
    if let Err(TryLockError::WouldBlock) = file.try_lock() {
        println!("another cargo xtask is changing the environments: waiting for it to exit");
        file.lock().with_context(context)?;
    }
    Ok(file)
}

/// The root of the repository.
fn root() -> PathBuf {
    let xtask = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    xtask
        .parent()
        .expect("xtask is in the workspace")
        .to_owned()
}

/// Cargo's target folder, wherever the user has put it: we run from its `debug`.
fn target() -> PathBuf {
    let program = std::env::current_exe().expect("the system knows the path of a running program");
    program
        .ancestors()
        .nth(2)
        .expect("the program is in <target>/debug")
        .to_owned()
}
