//! Verifies an environment's results.

use std::process::ExitCode;

use anyhow::Context as _;

use crate::command::{output, status};
use crate::environments;
use crate::kubernetes::cluster::Cluster;
use crate::kubernetes::labels;

/// Compute an environment's food counts and windows of likes again from Kafka, and compare them with the database and the topics.
///
/// Prints from which offset on they were compared, and equal or what differs; then the exit code is 1.
#[derive(clap::Args)]
pub struct Args {
    /// default, dev or prod.
    #[arg(value_name = "ENV")]
    environment: String,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let [environment] = &environments::chosen(std::slice::from_ref(&args.environment))?[..] else {
        unreachable!("one was named");
    };
    let (namespace, name) = (&environment.namespace, &environment.name);
    let cluster = Cluster::minikube();
    let selector = labels::selector_of(&environment.release, "projector");
    let running = "--field-selector=status.phase=Running";
    let mut pods = cluster.kubectl(&["get", "pods", "--output=name", running]);
    pods.args(["--namespace", namespace, "--selector", &selector]);
    let pods = output(&mut pods)?;
    let pod = pods.lines().next();
    let pod =
        pod.with_context(|| format!("no projector runs in {name}; ./setup.sh {name} starts one"))?;
    let mut verify = cluster.kubectl(&["exec", "--namespace", namespace, pod]);
    verify.args(["--container=projector", "--", "/projector", "verify"]);
    let ended = status(&mut verify)?;
    Ok(match ended.success() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
