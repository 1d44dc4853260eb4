//! Taking environments away again.

use std::process::ExitCode;

use crate::cluster::Cluster;
use crate::command::{command, run as run_command};
use crate::environments;
use crate::forward;
use crate::minikube;
use crate::release;
use crate::rollout::Workloads;

/// End the port-forwards and uninstall the environments; Kafka and what it holds stay.
#[derive(clap::Args)]
pub struct Args {
    /// default, dev, prod; all of them when none is named.
    #[arg(value_name = "ENV", conflicts_with = "cluster")]
    environments: Vec<String>,

    /// Also delete Kafka with everything it holds, and the cluster, when `up` made it.
    #[arg(long)]
    cluster: bool,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let environments = environments::chosen(&args.environments)?;
    let _lock = crate::lock()?;
    forward::stop(&environments)?;
    let cluster = Cluster::minikube();
    if args.cluster && minikube::is_ours(&cluster)? {
        run_command(&mut command(
            "minikube",
            ["delete", "--profile", &cluster.context],
        ))?;
        return Ok(ExitCode::SUCCESS);
    }
    let installed = release::installed(&cluster)?;
    for environment in &environments {
        if release::find(&installed, environment).is_none() {
            println!("{}: it is not installed", environment.name);
            continue;
        }
        let mut uninstall = cluster.helm(&["uninstall", &environment.release, "--wait"]);
        run_command(uninstall.args(["--namespace", &environment.namespace]))?;
    }
    if args.cluster {
        // What k8s/kafka made, and the volume; the namespace may hold somebody else's as well.
        let kinds =
            "statefulset,service,configmap,serviceaccount,networkpolicy,persistentvolumeclaim";
        let mut delete = cluster.kubectl(&["delete", kinds, "--namespace", "kafka"]);
        run_command(delete.args(["--selector", &Workloads::kafka().selector]))?;
        println!("the cluster was there before Herald: it stays");
    }
    Ok(ExitCode::SUCCESS)
}
