//! The logs of an environment's services.

use std::process::ExitCode;

use clap::builder::PossibleValuesParser;

use crate::command::status;
use crate::environments;
use crate::kubernetes::cluster::Cluster;
use crate::kubernetes::labels;
use crate::services;

/// Show and follow the logs of an environment's services, until Ctrl-C or until these pods end.
#[derive(clap::Args)]
pub struct Args {
    /// default, dev or prod.
    #[arg(value_name = "ENV")]
    environment: String,

    /// Only this service.
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(services::names()))]
    service: Option<String>,

    /// The number of existing lines to show for each pod.
    #[arg(long, default_value_t = 20)]
    tail: u32,

    /// Exit after the existing lines instead of following.
    #[arg(long)]
    no_follow: bool,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let [environment] = &environments::chosen(std::slice::from_ref(&args.environment))?[..] else {
        unreachable!("one was named");
    };
    let selector = match &args.service {
        Some(service) => labels::selector_of(&environment.release, service),
        None => labels::selector(&environment.release),
    };
    let mut logs = Cluster::minikube().kubectl(&[
        "logs",
        "--prefix",
        "--all-containers",
        "--max-log-requests",
        "50",
    ]);
    logs.args([
        "--namespace",
        &environment.namespace,
        "--selector",
        &selector,
    ]);
    logs.arg(format!("--tail={}", args.tail));
    logs.arg(format!("--follow={}", !args.no_follow));
    let ended = status(&mut logs)?;
    Ok(if ended.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
