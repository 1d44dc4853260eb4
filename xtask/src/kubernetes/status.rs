//! The state of the environments.

use std::process::ExitCode;

use crate::environments;
use crate::kubernetes::health::Report;

/// Show the cluster, and each environment's release and revision, pods, images, topic and end offset, connections, and
/// page.
///
/// Exits with code 1 if something is wrong; `doctor` adds how to repair it.
#[derive(clap::Args)]
pub struct Args {
    /// default, dev, prod; all of them when none is named.
    #[arg(value_name = "ENV")]
    environments: Vec<String>,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let environments = environments::chosen(&args.environments)?;
    Ok(match Report::new(&environments, false)?.problems() {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}
