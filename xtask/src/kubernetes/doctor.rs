//! The state of the environments, with a remedy for each problem.

use std::process::ExitCode;

use crate::environments;
use crate::kubernetes::health::Report;

/// Check the machine, the cluster, Kafka and the pages, and report each problem with a remedy.
///
/// Changes nothing. Exits with code 1 if it finds a problem.
#[derive(clap::Args)]
pub struct Args {
    /// default, dev, prod; all of them when none is named.
    #[arg(value_name = "ENV")]
    environments: Vec<String>,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let environments = environments::chosen(&args.environments)?;
    match Report::new(&environments, true)?.problems() {
        0 => {
            println!("\nnothing is wrong");
            return Ok(ExitCode::SUCCESS);
        }
        1 => println!("\n1 thing is wrong"),
        problems => println!("\n{problems} things are wrong"),
    }
    Ok(ExitCode::FAILURE)
}
