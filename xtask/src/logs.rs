//! What the services of an environment say.

use std::process::ExitCode;

use crate::cluster::Cluster;
use crate::command::status;
use crate::environments;
use crate::release;

/// Show what the services of an environment say, and go on until Ctrl-C.
#[derive(clap::Args)]
pub struct Args {
    /// default, dev or prod.
    #[arg(value_name = "ENV")]
    environment: String,

    /// Only this service: producer or consumer.
    #[arg(long, value_name = "NAME")]
    service: Option<String>,

    /// How many lines of each pod from before.
    #[arg(long, default_value_t = 20)]
    tail: u32,

    /// Leave after those.
    #[arg(long)]
    no_follow: bool,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let [environment] = &environments::chosen(std::slice::from_ref(&args.environment))?[..] else {
        unreachable!("one was named");
    };
    let mut selector = release::selector(&environment.release);
    if let Some(service) = &args.service {
        selector += &format!(",app.kubernetes.io/component={service}");
    }
    let mut logs = Cluster::minikube().kubectl(&["logs", "--prefix", "--max-log-requests", "50"]);
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
