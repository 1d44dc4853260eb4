//! Brings environments up on minikube, from nothing or from whatever state the cluster is in.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::command::{in_parallel, output, status};
use crate::environments::{self, Environment};
use crate::kubernetes::cluster::{Cluster, wait_for};
use crate::kubernetes::database;
use crate::kubernetes::images;
use crate::kubernetes::kafka_address::Address;
use crate::kubernetes::minikube;
use crate::kubernetes::release::{self, Release};
use crate::kubernetes::rollout::{self, Workloads};
use crate::kubernetes::security;
use crate::kubernetes::servers::{self, KAFKA, POSTGRES};

/// The exit code that makes ./setup.sh continue without a cluster.
const NO_CLUSTER: u8 = 3;

/// Start minikube, build and load the images, start Kafka and PostgreSQL, install the environments, and wait until they run.
///
/// Changes only what differs, and repairs a stopped cluster, a deleted pod or topic, and an interrupted upgrade.
/// Prints the reason and exits with code 3 when no cluster is available.
#[derive(clap::Args)]
pub struct Args {
    /// default, dev, prod; all of them when none is named.
    #[arg(value_name = "ENV")]
    environments: Vec<String>,

    /// Use a running Kafka instead of starting one in namespace kafka: its address as pods in the cluster reach it.
    #[arg(long, value_name = "HOST:PORT")]
    kafka: Option<Address>,

    /// Turn on TLS, and require a token from every client; keys and certificates are made the first time. Without it, the
    /// environments are open to everyone again.
    #[arg(long)]
    secure: bool,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let environments = environments::chosen(&args.environments)?;
    let _lock = crate::lock()?;
    let mut phases = Phases::default();

    let cluster = match phases.time("minikube", ensure_cluster) {
        Ok(cluster) => cluster,
        Err(no_cluster) => {
            eprintln!("no cluster is available: {no_cluster}");
            return Ok(ExitCode::from(NO_CLUSTER));
        }
    };
    let images = phases.time("images", images::build)?;
    phases.time("load", || images::load(&images, &cluster))?;
    let kafka = args.kafka.as_ref();
    phases.time("servers", || start_servers(&cluster, kafka, &environments))?;
    let secured = if args.secure {
        let secured = environments.iter();
        let secured = secured.map(|environment| security::prepare(&cluster, environment));
        secured.collect::<anyhow::Result<Vec<_>>>()?
    } else {
        Vec::new()
    };
    let releases = environments.iter().map(|environment| Release {
        cluster: &cluster,
        environment,
        images: &images,
        kafka,
        secure: args.secure,
    });
    let releases: Vec<Release> = releases.collect();
    phases.time("releases", || install(&releases, &cluster))?;
    phases.time("pods", || wait_for(roll_out(&environments, &cluster)))?;
    println!("\n{phases}");
    for secured in secured {
        println!("{secured}");
    }
    Ok(ExitCode::SUCCESS)
}

fn ensure_cluster() -> Result<Cluster, minikube::NoCluster> {
    minikube::preflight()?;
    let cluster = Cluster::minikube();
    let found = minikube::start(&cluster)?;
    println!("minikube: {found}");
    Ok(cluster)
}

/// Creates missing namespaces. An existing one may hold other users' pods, which a label could prevent from restarting.
fn create_namespaces(cluster: &Cluster) -> anyhow::Result<()> {
    const FILE: [&str; 4] = ["--filename", "k8s/namespaces.yaml", "--output", "name"];
    let wanted = output(cluster.kubectl(&["create", "--dry-run=client"]).args(FILE))?;
    let get = ["get", "--ignore-not-found"];
    if output(cluster.kubectl(&get).args(FILE))? != wanted {
        // Creates the missing ones, and fails because the others exist.
        status(cluster.kubectl(&["create"]).args(FILE))?;
        let created = output(cluster.kubectl(&get).args(FILE))?;
        anyhow::ensure!(created == wanted, "cannot create all of {}", FILE[1]);
    }
    if minikube::is_ours(cluster) {
        // There are no other users' pods.
        let enforce = "pod-security.kubernetes.io/enforce=restricted";
        output(&mut cluster.kubectl(&["label", "--overwrite", "namespace", "default", enforce]))?;
    }
    Ok(())
}

/// Starts the servers, and gives each environment its database.
fn start_servers(
    cluster: &Cluster,
    kafka: Option<&Address>,
    environments: &[Environment],
) -> anyhow::Result<()> {
    create_namespaces(cluster)?;
    let servers = match kafka {
        Some(address) => {
            println!("kafka: {address}");
            vec![&POSTGRES]
        }
        None => vec![&KAFKA, &POSTGRES],
    };
    in_parallel(&servers, |server| server.check_foreign(cluster))?;
    database::create_superuser(cluster)?;
    for server in &servers {
        server.apply(cluster)?;
    }
    servers::wait(cluster, &servers)?;
    in_parallel(environments, |environment| {
        database::prepare(cluster, environment)
    })?;
    Ok(())
}

/// Installs missing releases and upgrades those that differ.
fn install(releases: &[Release], cluster: &Cluster) -> anyhow::Result<()> {
    let installed = release::installed(cluster)?;
    let differences = in_parallel(releases, |release| release.difference(&installed))?;
    for (release, difference) in releases.iter().zip(differences) {
        let name = &release.environment.name;
        match difference {
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

/// The duration of each phase.
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
