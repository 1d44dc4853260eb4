//! The state of the environments, in one table.

use std::process::ExitCode;

use k8s_openapi::api::core::v1::Pod;
use kube::{Client, ResourceExt};

use crate::cluster::{Cluster, wait_for};
use crate::environments::{self, Environment};
use crate::pods::{self, Metrics};
use crate::port;
use crate::release::{self, Installed};
use crate::rollout::{self, Workloads};

/// Show each environment's release and revision, ready pods, image, topic and end offset, connections, and page.
#[derive(clap::Args)]
pub struct Args {
    /// default, dev, prod; all of them when none is named.
    #[arg(value_name = "ENV")]
    environments: Vec<String>,
}

const HEAD: [&str; 7] = [
    "environment",
    "release",
    "pods ready",
    "image of the consumer",
    "topic, end offset",
    "connections",
    "page",
];

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let environments = environments::chosen(&args.environments)?;
    let cluster = Cluster::minikube();
    let installed = release::installed(&cluster)?;
    let rows = wait_for(async {
        let client = cluster.client().await?;
        let mut rows = vec![HEAD.map(str::to_owned)];
        for environment in &environments {
            rows.push(row(environment, &installed, &client).await?);
        }
        Ok(rows)
    })?;
    print(&rows);
    Ok(ExitCode::SUCCESS)
}

async fn row(
    environment: &Environment,
    installed: &[Installed],
    client: &Client,
) -> anyhow::Result<[String; 7]> {
    let release = match release::find(installed, environment) {
        Some(found) if found.status == "deployed" => format!("{} {}", found.name, found.revision),
        Some(found) => format!("{} {} ({})", found.name, found.revision, found.status),
        None => "not installed".to_owned(),
    };
    // Without the pods of the topic's Job, which have completed.
    let service = "app.kubernetes.io/component in (producer, consumer)";
    let workloads = Workloads {
        name: environment.name.clone(),
        namespace: environment.namespace.clone(),
        selector: format!("{},{service}", release::selector(&environment.release)),
    };
    let pods = workloads.pods(client).await?;
    let ready = pods.iter().filter(|pod| rollout::is_ready(pod)).count();
    let consumers: Vec<&Pod> = pods.iter().filter(|pod| is_consumer(pod)).collect();
    let mut images: Vec<&str> = consumers.iter().filter_map(|pod| image(pod)).collect();
    images.dedup();

    let mut metrics = Vec::new();
    for pod in &consumers {
        // A pod that starts or terminates may not answer.
        metrics.push(pods::metrics(client, pod).await.unwrap_or_default());
    }
    let end = metrics
        .iter()
        .filter_map(|one| one.sum("herald_end_offset"));
    let end = end.fold(None, |most: Option<f64>, one| {
        Some(most.unwrap_or(0.0).max(one))
    });
    let all = |name| -> f64 {
        metrics
            .iter()
            .filter_map(|one: &Metrics| one.sum(name))
            .sum()
    };
    Ok([
        environment.name.clone(),
        release,
        format!("{ready}/{}", pods.len()),
        images.join(" "),
        match end {
            Some(end) => format!("{} {end}", environment.topic),
            None => format!("{} unknown", environment.topic),
        },
        all("herald_connections").to_string(),
        page(environment),
    ])
}

fn page(environment: &Environment) -> String {
    let answers = if port::answers(environment.local_port) {
        "answers"
    } else {
        "does not answer (cargo xtask forward)"
    };
    format!("{} {answers}", environment.url())
}

fn is_consumer(pod: &Pod) -> bool {
    let component = pod.labels().get("app.kubernetes.io/component");
    component.is_some_and(|component| component == "consumer")
}

fn image(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.containers.first()?.image.as_deref()
}

/// Each column is as wide as its longest cell.
fn print(rows: &[[String; 7]]) {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    for row in rows {
        let cells = row.iter().zip(&widths);
        let line: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        println!("{}", line.join("  ").trim_end());
    }
}
