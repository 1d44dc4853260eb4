//! Everything an engineer does to Herald. `cargo xtask --help` is the manual.

mod check;
mod cluster;
mod command;
mod doctor;
mod down;
mod environments;
mod forward;
mod images;
mod kafka;
mod kafka_address;
mod local;
mod logs;
mod minikube;
mod pids;
mod pods;
mod port;
mod release;
mod rollout;
mod status;
mod tools;
mod up;

use std::fs::{File, TryLockError};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

/// Everything an engineer does to Herald; each command it runs is shown with a `$` before it.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Chore {
    Up(up::Args),
    Forward(forward::Args),
    Status(status::Args),
    Logs(logs::Args),
    Doctor(doctor::Args),
    Down(down::Args),
    Local(local::Args),
    /// Start an Apache Kafka to work with, and end it at Ctrl-C.
    Kafka,
    Images(images::Args),
    Check(check::Args),
}

fn main() -> ExitCode {
    let result = match Chore::parse() {
        Chore::Up(args) => up::run(&args),
        Chore::Forward(args) => forward::run(&args),
        Chore::Status(args) => status::run(&args),
        Chore::Logs(args) => logs::run(&args),
        Chore::Doctor(args) => doctor::run(&args),
        Chore::Down(args) => down::run(&args),
        Chore::Local(args) => local::run(&args),
        Chore::Kafka => kafka::run(),
        Chore::Images(args) => images::run(&args),
        Chore::Check(args) => check::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// Keeps others who change the same things waiting until it is dropped: two `./setup.sh` at once, say.
fn lock() -> anyhow::Result<File> {
    let path = target().join("xtask.lock");
    let context = || format!("cannot lock {}", path.display());
    let file = File::create(&path).with_context(context)?;
    if let Err(TryLockError::WouldBlock) = file.try_lock() {
        println!("another cargo xtask is at work on the environments: waiting until it has ended");
        file.lock().with_context(context)?;
    }
    Ok(file)
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
