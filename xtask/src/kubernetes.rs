//! The commands that need a cluster or make images.

pub mod cluster;
mod database;
mod doctor;
mod down;
mod forward;
mod health;
pub mod images;
mod kafka_address;
pub mod labels;
mod logs;
pub mod minikube;
mod pods;
pub mod release;
pub mod rollout;
mod secrets;
mod security;
mod servers;
mod status;
mod up;
mod verify;

use std::process::ExitCode;

#[derive(clap::Subcommand)]
pub enum Command {
    Up(up::Args),
    Forward(forward::Args),
    Status(status::Args),
    Logs(logs::Args),
    Doctor(doctor::Args),
    Verify(verify::Args),
    Down(down::Args),
    Images(images::Args),
}

impl Command {
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Up(args) => up::run(args),
            Self::Forward(args) => forward::run(args),
            Self::Status(args) => status::run(args),
            Self::Logs(args) => logs::run(args),
            Self::Doctor(args) => doctor::run(args),
            Self::Verify(args) => verify::run(args),
            Self::Down(args) => down::run(args),
            Self::Images(args) => images::run(args),
        }
    }
}
