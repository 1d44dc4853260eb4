//! Uninstalls environments.

use std::process::ExitCode;

use anyhow::{bail, ensure};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Namespace, PersistentVolumeClaim};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use crate::command::run as run_command;
use crate::environments;
use crate::kubernetes::cluster::{Cluster, minikube as run_minikube, wait_for};
use crate::kubernetes::labels::{MANAGED_BY, XTASK};
use crate::kubernetes::minikube::{self, State};
use crate::kubernetes::release;
use crate::kubernetes::servers;
use crate::kubernetes::{database, forward};

/// Stop the port-forwards and uninstall the environments; Kafka, PostgreSQL and their data are kept.
#[derive(clap::Args)]
pub struct Args {
    /// default, dev, prod; all of them when none is named.
    #[arg(value_name = "ENV", conflicts_with = "cluster")]
    environments: Vec<String>,

    /// Also delete Kafka and PostgreSQL with their data, and the cluster if `up` created it.
    #[arg(long)]
    cluster: bool,

    /// With --cluster: delete a cluster that `up` created even if it contains more than Herald, or is stopped.
    #[arg(long, requires = "cluster")]
    yes: bool,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let environments = environments::chosen(&args.environments)?;
    let _lock = crate::lock()?;
    let cluster = Cluster::minikube();
    let is_ours = args.cluster && minikube::is_ours(&cluster);
    if is_ours && !args.yes {
        confirm(&cluster)?;
    }
    forward::stop(&environments)?;
    if is_ours {
        run_command(&mut run_minikube(&[
            "delete",
            "--profile",
            &cluster.context,
        ]))?;
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
        for server in &servers::ALL {
            server.delete(&cluster)?;
        }
        for environment in &environments {
            database::forget(&cluster, environment)?;
        }
        println!("the cluster was there before Herald: it stays");
    }
    Ok(ExitCode::SUCCESS)
}

/// An error if the cluster contains, or may contain, what is not Herald's.
fn confirm(cluster: &Cluster) -> anyhow::Result<()> {
    let name = &cluster.context;
    match minikube::state(cluster) {
        Ok(State::Nothing) => Ok(()),
        Ok(State::Running) => {
            let foreign = wait_for(async { foreign(&cluster.client().await?).await })?;
            ensure!(
                foreign.is_empty(),
                "the cluster \"{name}\" holds more than Herald: {}; --yes deletes it all the same",
                foreign.join(", ")
            );
            Ok(())
        }
        Ok(State::Stopped) => bail!(
            "the cluster \"{name}\" is stopped, so what else it holds cannot be seen; --yes deletes it all the same"
        ),
        Err(no_cluster) => bail!("{no_cluster}"),
    }
}

/// Namespaces, workloads and volumes that neither Herald nor Kubernetes itself created.
async fn foreign(client: &Client) -> anyhow::Result<Vec<String>> {
    let not_ours = ListParams::default().labels(&format!("{MANAGED_BY}!={XTASK}"));
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let mut foreign = Vec::new();
    for namespace in namespaces.list(&not_ours).await? {
        let name = namespace.name_any();
        if name != "default" && !name.starts_with("kube-") {
            foreign.push(format!("namespace {name}"));
        }
    }
    // A foreign namespace is enough; its contents are not listed.
    let others = ListParams::default().labels(&format!(
        "{MANAGED_BY}!={XTASK},app.kubernetes.io/part-of!=herald"
    ));
    let servers = servers::ALL.iter().map(|server| server.namespace);
    let ours = ["default"].into_iter().chain(servers).map(str::to_owned);
    let environments = environments::chosen(&[])?;
    let mut ours: Vec<String> = ours
        .chain(environments.into_iter().map(|one| one.namespace))
        .collect();
    ours.sort();
    ours.dedup();
    for namespace in &ours {
        let within = |kind, name| format!("{kind} {name} in namespace {namespace}");
        let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
        for one in deployments.list(&others).await? {
            foreign.push(within("deployment", one.name_any()));
        }
        let sets: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
        for one in sets.list(&others).await? {
            foreign.push(within("statefulset", one.name_any()));
        }
        let volumes: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
        for one in volumes.list(&others).await? {
            foreign.push(within("volume", one.name_any()));
        }
    }
    Ok(foreign)
}
