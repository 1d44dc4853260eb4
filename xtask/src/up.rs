//! From nothing, or from whatever there is, to environments that run on minikube.

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use crate::cluster::{Cluster, wait_for};
use crate::command::{output, run as run_command, status};
use crate::environments::{self, Environment};
use crate::images::{self, Image};
use crate::kafka_address::Address;
use crate::minikube;
use crate::release::{self, Release};
use crate::rollout::{self, Workloads};

/// The label of what we apply ourselves; what helm installs has that of helm.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
pub const XTASK: &str = "herald-xtask";

/// The exit code that tells ./setup.sh to go on without a cluster.
const NO_CLUSTER: u8 = 3;

/// Start minikube, build and load the images, start Kafka, install the environments, and wait until they run.
///
/// What is right already is left alone. What is not is mended: a stopped cluster, a deleted pod or topic, an interrupted
/// upgrade. Leaves with exit code 3, after one sentence that says why, when no cluster can be had.
#[derive(clap::Args)]
pub struct Args {
    /// default, dev, prod; all of them when none is named.
    #[arg(value_name = "ENV")]
    environments: Vec<String>,

    /// Use a Kafka that runs already, instead of starting one in namespace kafka: its address for a pod in the cluster.
    #[arg(long, value_name = "HOST:PORT")]
    kafka: Option<Address>,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let environments = environments::chosen(&args.environments)?;
    let _lock = crate::lock()?;
    let mut phases = Phases::default();

    let cluster = match phases.time("minikube", have_cluster) {
        Ok(cluster) => cluster,
        Err(no_cluster) => {
            eprintln!("no cluster can be had: {no_cluster}");
            return Ok(ExitCode::from(NO_CLUSTER));
        }
    };
    let images = phases.time("images", images::build)?;
    phases.time("load", || images::load(&images, &cluster))?;
    phases.time("kafka", || {
        create_namespaces(&cluster)?;
        if let Some(address) = &args.kafka {
            println!("kafka: {address}");
            return Ok(());
        }
        start_kafka(&cluster)
    })?;
    let kafka = args.kafka.as_ref();
    phases.time("releases", || {
        install(&environments, &images, kafka, &cluster)
    })?;
    phases.time("pods", || wait_for(roll_out(&environments, &cluster)))?;
    println!("\n{phases}");
    Ok(ExitCode::SUCCESS)
}

fn have_cluster() -> Result<Cluster, minikube::NoCluster> {
    minikube::preflight()?;
    let cluster = Cluster::minikube();
    let found = minikube::start(&cluster)?;
    println!("minikube: {found}");
    Ok(cluster)
}

/// Creates those that are missing. One that exists may hold pods of others, which a label could keep from starting again.
fn create_namespaces(cluster: &Cluster) -> anyhow::Result<()> {
    const FILE: [&str; 4] = ["--filename", "k8s/namespaces.yaml", "--output", "name"];
    let wanted = output(cluster.kubectl(&["create", "--dry-run=client"]).args(FILE))?;
    let get = ["get", "--ignore-not-found"];
    if output(cluster.kubectl(&get).args(FILE))? != wanted {
        // It creates what it can and fails for those that exist.
        status(cluster.kubectl(&["create"]).args(FILE))?;
        let created = output(cluster.kubectl(&get).args(FILE))?;
        anyhow::ensure!(created == wanted, "cannot create all of {}", FILE[1]);
    }
    if minikube::is_ours(cluster) {
        // Nobody else's pods are there.
        let enforce = "pod-security.kubernetes.io/enforce=restricted";
        output(&mut cluster.kubectl(&["label", "--overwrite", "namespace", "default", enforce]))?;
    }
    Ok(())
}

/// What is in the cluster under the names of k8s/kafka, and not ours: a Kafka of Strimzi's quickstart, say.
fn foreign_kafka(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let mut get = cluster.kubectl(&["get", "--ignore-not-found", "--output", "json"]);
    let ours = output(get.args(["--kustomize", "k8s/kafka"]))?;
    let mut get = cluster.kubectl(&["get", "--ignore-not-found", "--output", "json"]);
    let volume = ["persistentvolumeclaim", "data-my-cluster-kafka-0"];
    let volume = output(get.args(volume).args(["--namespace", "kafka"]))?;
    let mut foreign = Vec::new();
    for text in [ours, volume] {
        if text.trim().is_empty() {
            continue;
        }
        let objects: Objects = serde_json::from_str(&text).context("cannot read what is there")?;
        let objects = objects.items.unwrap_or_else(|| vec![objects.only]);
        foreign.extend(
            objects
                .iter()
                .filter(|one| !one.is_ours())
                .map(Object::name),
        );
    }
    Ok(foreign)
}

/// A list of them, or a single one.
#[derive(Deserialize)]
struct Objects {
    items: Option<Vec<Object>>,
    #[serde(flatten)]
    only: Object,
}

#[derive(Deserialize)]
struct Object {
    kind: String,
    metadata: ObjectMeta,
}

impl Object {
    fn name(&self) -> String {
        let name = self.metadata.name.as_deref().unwrap_or_default();
        format!("{} {name}", self.kind)
    }

    fn is_ours(&self) -> bool {
        let labels = self.metadata.labels.as_ref();
        labels.is_some_and(|labels| labels.get(MANAGED_BY).is_some_and(|by| by == XTASK))
    }
}

/// Starts the Kafka of k8s/kafka, once per cluster.
fn start_kafka(cluster: &Cluster) -> anyhow::Result<()> {
    let foreign = foreign_kafka(cluster)?;
    anyhow::ensure!(
        foreign.is_empty(),
        "namespace kafka has a Kafka that is not Herald's ({}): use it with --kafka HOST:PORT, or remove it",
        foreign.join(", ")
    );
    let apply = ["apply", "--server-side", "--force-conflicts"];
    run_command(cluster.kubectl(&apply).args(["--kustomize", "k8s/kafka"]))?;
    let all = [Workloads::kafka()];
    wait_for(async { rollout::wait(&cluster.client().await?, &all).await })
}

/// Installs or upgrades the releases that differ from what they should be.
fn install(
    environments: &[Environment],
    images: &[Image],
    kafka: Option<&Address>,
    cluster: &Cluster,
) -> anyhow::Result<()> {
    let installed = release::installed(cluster)?;
    let releases = environments.iter().map(|environment| Release {
        cluster,
        environment,
        images,
        kafka,
    });
    let releases: Vec<Release> = releases.collect();
    // Looking takes a second or two for each.
    let differences: Vec<_> = thread::scope(|scope| {
        let installed = &installed;
        let looks = releases
            .iter()
            .map(|release| scope.spawn(move || release.difference(installed)));
        let looks: Vec<_> = looks.collect();
        let seen = looks.into_iter().map(|look| look.join());
        seen.map(|seen| seen.expect("looking does not panic"))
            .collect()
    });
    for (release, difference) in releases.iter().zip(differences) {
        let name = &release.environment.name;
        match difference? {
            None => println!("{name}: nothing to change"),
            Some(difference) => {
                println!("{name}: {difference}");
                release.apply(&installed)?;
            }
        }
    }
    Ok(())
}

async fn roll_out(environments: &[Environment], cluster: &Cluster) -> anyhow::Result<()> {
    let all: Vec<Workloads> = environments.iter().map(Workloads::of).collect();
    rollout::wait(&cluster.client().await?, &all).await
}

/// How long everything took.
#[derive(Default)]
struct Phases(Vec<(&'static str, Duration)>);

impl Phases {
    fn time<T, E>(
        &mut self,
        name: &'static str,
        phase: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        println!("\n== {name}");
        let begin = Instant::now();
        let result = phase();
        self.0.push((name, begin.elapsed()));
        result
    }
}

impl std::fmt::Display for Phases {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (name, time) in &self.0 {
            writeln!(f, "{name:<10}{:>7.1} s", time.as_secs_f64())?;
        }
        let all: Duration = self.0.iter().map(|(_, time)| *time).sum();
        write!(f, "{:<10}{:>7.1} s", "in all", all.as_secs_f64())
    }
}
