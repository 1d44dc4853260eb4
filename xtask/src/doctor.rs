//! Diagnoses problems and names a remedy for each.

use std::process::ExitCode;

use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client, ResourceExt};

use crate::cluster::{Cluster, PROXIES, wait_for};
use crate::environments::{self, Environment};
use crate::minikube::{self, State};
use crate::release::{self, Installed};
use crate::rollout::{self, Workloads};
use crate::{pods, port};

const UP: &str = "cargo xtask up";

/// Check the machine, the cluster, Kafka and the pages, and report each problem with a remedy.
///
/// Changes nothing. Exits with code 1 if it finds a problem.
#[derive(clap::Args)]
pub struct Args {}

/// Prints a line for each finding and counts the problems.
#[derive(Default)]
struct Findings {
    problems: usize,
}

impl Findings {
    fn ok(&self, what: &str) {
        println!("ok     {what}");
    }

    fn problem(&mut self, what: &str, remedy: &str) {
        self.problems += 1;
        println!("WRONG  {what}\n       -> {remedy}");
    }

    /// Returns whether the result is `Ok`.
    fn record(&mut self, what: &str, result: Result<(), String>, remedy: &str) -> bool {
        match &result {
            Ok(()) => self.ok(what),
            Err(why) => self.problem(&format!("{what}: {why}"), remedy),
        }
        result.is_ok()
    }
}

pub fn run(_: &Args) -> anyhow::Result<ExitCode> {
    let mut findings = Findings::default();
    let cluster = Cluster::minikube();
    if machine(&mut findings) && has_cluster(&cluster, &mut findings) {
        let installed = release::installed(&cluster)?;
        wait_for(diagnose(&cluster, &installed, &mut findings))?;
    }
    for environment in environments::chosen(&[])? {
        page(&environment, &mut findings);
    }
    if findings.problems == 0 {
        println!("\nnothing is wrong");
        return Ok(ExitCode::SUCCESS);
    }
    let things = if findings.problems == 1 {
        "thing is"
    } else {
        "things are"
    };
    println!("\n{} {things} wrong", findings.problems);
    Ok(ExitCode::FAILURE)
}

fn machine(findings: &mut Findings) -> bool {
    let remedy = "install or add it; ./setup.sh --local runs without a cluster";
    let preflight = minikube::preflight().map_err(|no_cluster| no_cluster.to_string());
    findings.record("minikube, kubectl, helm and memory", preflight, remedy)
}

fn has_cluster(cluster: &Cluster, findings: &mut Findings) -> bool {
    let state = match minikube::state(cluster) {
        Err(no_cluster) => Err(no_cluster.to_string()),
        Ok(State::Nothing) => Err("minikube has no cluster".to_owned()),
        Ok(State::Stopped) => Err("it is stopped, or a part of it is".to_owned()),
        Ok(State::Running) if !minikube::is_known(cluster) => {
            Err("minikube runs, but kubectl does not reach it".to_owned())
        }
        Ok(State::Running) => Ok(()),
    };
    let what = format!("the cluster \"{}\"", cluster.context);
    let runs = findings.record(&what, state, UP);
    if let Some(name) = PROXIES.iter().find(|name| std::env::var_os(name).is_some()) {
        println!(
            "note   {name} is set: minikube gets images through it; xtask goes to the cluster directly"
        );
    }
    if let Some(current) = minikube::current_context()
        && current != cluster.context
    {
        let name = &cluster.context;
        println!(
            "note   your own kubectl and helm go to \"{current}\", not to \"{name}\" (kubectl config use-context {name})"
        );
    }
    runs
}

async fn diagnose(
    cluster: &Cluster,
    installed: &[Installed],
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let client = cluster.client().await?;
    let nodes: Api<Node> = Api::all(client.clone());
    for node in nodes.list(&Default::default()).await? {
        let conditions = node
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten());
        // Ready should be true, all other conditions (pressure on memory, disk, processes) false.
        let bad: Vec<String> = conditions
            .filter(|one| (one.type_ == "Ready") != (one.status == "True"))
            .map(|one| format!("{} is {}", one.type_, one.status))
            .collect();
        let state = if bad.is_empty() {
            Ok(())
        } else {
            Err(bad.join(", "))
        };
        let what = format!("node {}", node.name_any());
        findings.record(
            &what,
            state,
            "kubectl describe nodes shows why; minikube stop and up again",
        );
    }
    let environments = environments::chosen(&[])?;
    let others = release::other_kafkas(cluster, &environments, installed)?;
    if others.len() < environments.len() {
        workloads(&client, &Workloads::kafka(), findings).await?;
    }
    for (name, kafka) in others {
        findings.ok(&format!("{name} uses the Kafka at {kafka}"));
    }
    for environment in environments {
        let remedy = format!("{UP} {}", environment.name);
        let drift = release::drift(cluster, &environment, installed)?;
        let what = format!("release {}", environment.release);
        findings.record(
            &what,
            drift.map_or(Ok(()), |drift| Err(drift.to_string())),
            &remedy,
        );
        if release::find(installed, &environment).is_some() {
            workloads(&client, &Workloads::of(&environment), findings).await?;
            source(&client, &environment, findings).await?;
        }
    }
    Ok(())
}

/// Checks that all workloads have rolled out; if not, the pods' reasons are part of the problem.
async fn workloads(
    client: &Client,
    workloads: &Workloads,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let unfinished = workloads.unfinished(client).await?;
    let all = workloads.pods(client).await?;
    let what = format!("pods of {}", workloads.name);
    if unfinished.is_empty() && !all.is_empty() {
        findings.ok(&what);
        return Ok(());
    }
    let mut state = match unfinished.as_slice() {
        [] => "there are none".to_owned(),
        names => format!("{} not ready", names.join(", ")),
    };
    for pod in all.iter().filter(|pod| !rollout::is_ready(pod)) {
        let reason = match rollout::problem(pod) {
            Some(reason) => Some(reason),
            None => pods::not_ready(client, pod).await.ok().flatten(),
        };
        let reason = reason.unwrap_or_else(|| "not ready".to_owned());
        state += &format!("; {}: {reason}", pod.name_any());
    }
    let remedy = format!(
        "{UP}; kubectl describe pods --namespace {}",
        workloads.namespace
    );
    findings.problem(&format!("{what}: {state}"), &remedy);
    Ok(())
}

/// Checks that the consumers can read their topic.
async fn source(
    client: &Client,
    environment: &Environment,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let down = pods::without_source(client, environment).await?;
    let state = match down.as_slice() {
        [] => Ok(()),
        names => Err(format!("{} cannot read it", names.join(", "))),
    };
    let remedy = format!("{UP} {}", environment.name);
    findings.record(&format!("topic {}", environment.topic), state, &remedy);
    Ok(())
}

fn page(environment: &Environment, findings: &mut Findings) {
    let port = environment.local_port;
    let what = format!("page {}", environment.url());
    if port::answers(port) {
        findings.ok(&what);
    } else if port::is_free(port) {
        let remedy = format!("cargo xtask forward --background {}", environment.name);
        findings.problem(&format!("{what}: nobody forwards it"), &remedy);
    } else {
        let state = format!("{what}: {}, and does not answer", port::in_use(port));
        findings.problem(
            &state,
            "./kill_port_forward.sh, or end that process, then ./setup.sh",
        );
    }
}
