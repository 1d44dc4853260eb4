//! Everything an engineer does to Herald. `cargo xtask --help` is the manual.

// Without its feature "cluster", what is left does not use everything that is shared.
#![cfg_attr(not(feature = "cluster"), allow(dead_code))]

mod check;
#[cfg(feature = "cluster")]
mod cluster;
mod command;
#[cfg(feature = "cluster")]
mod doctor;
#[cfg(feature = "cluster")]
mod down;
mod environments;
#[cfg(feature = "cluster")]
mod forward;
#[cfg(feature = "cluster")]
mod images;
mod kafka;
#[cfg(feature = "cluster")]
mod kafka_address;
mod local;
#[cfg(feature = "cluster")]
mod logs;
#[cfg(feature = "cluster")]
mod minikube;
mod pids;
#[cfg(feature = "cluster")]
mod pods;
mod port;
#[cfg(feature = "cluster")]
mod release;
#[cfg(feature = "cluster")]
mod rollout;
#[cfg(feature = "cluster")]
mod status;
mod tools;
#[cfg(feature = "cluster")]
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
    #[cfg(feature = "cluster")]
    Up(up::Args),
    #[cfg(feature = "cluster")]
    Forward(forward::Args),
    #[cfg(feature = "cluster")]
    Status(status::Args),
    #[cfg(feature = "cluster")]
    Logs(logs::Args),
    #[cfg(feature = "cluster")]
    Doctor(doctor::Args),
    #[cfg(feature = "cluster")]
    Down(down::Args),
    Local(local::Args),
    /// Start an Apache Kafka to work with, and end it at Ctrl-C.
    Kafka,
    #[cfg(feature = "cluster")]
    Images(images::Args),
    Check(check::Args),
}

fn main() -> ExitCode {
    let result = match Chore::parse() {
        #[cfg(feature = "cluster")]
        Chore::Up(args) => up::run(&args),
        #[cfg(feature = "cluster")]
        Chore::Forward(args) => forward::run(&args),
        #[cfg(feature = "cluster")]
        Chore::Status(args) => status::run(&args),
        #[cfg(feature = "cluster")]
        Chore::Logs(args) => logs::run(&args),
        #[cfg(feature = "cluster")]
        Chore::Doctor(args) => doctor::run(&args),
        #[cfg(feature = "cluster")]
        Chore::Down(args) => down::run(&args),
        Chore::Local(args) => local::run(&args),
        Chore::Kafka => kafka::run(),
        #[cfg(feature = "cluster")]
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
