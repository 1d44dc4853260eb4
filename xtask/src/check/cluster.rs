//! What is checked on minikube.

mod ingress;

use std::process::Command;

use anyhow::Context;

use super::tally::Tally;
use super::{Surroundings, charts};
use crate::cluster::Cluster;
use crate::command::{command, run, show, stream};
use crate::{images, minikube};
pub use ingress::ingress;

/// Tests of delivery and of port-forwards, in namespaces of their own.
pub fn delivery(surroundings: &Surroundings) -> anyhow::Result<Tally> {
    let cluster = Cluster::minikube();
    let images = images::build()?;
    images::load(&images, &cluster)?;
    let mut variables = vec![("HERALD_TEST_CLUSTER".to_owned(), cluster.context.clone())];
    for image in &images {
        let name = format!("HERALD_{}_IMAGE", image.service.to_uppercase());
        variables.push((name, image.reference()));
    }
    // xtask's for the forwards, the consumer's for everything else.
    let args = [
        "test",
        "--workspace",
        "--test",
        "cluster",
        "--locked",
        "--no-fail-fast",
    ];
    let mut tests = command("cargo", args);
    tests.args(["--", "--nocapture", "--test-threads", "1"]);
    if surroundings.long {
        tests.arg("--include-ignored");
    }
    tests.envs(variables.iter().map(|(name, value)| (name, value)));
    let mut tally = Tally::default();
    let status = stream(&mut tests, |line| tally.read_cargo(line))?;
    Ok(tally.ended(status))
}

/// Every manifest, as the API server itself judges it, custom resources included.
pub fn server(_: &Surroundings) -> anyhow::Result<Tally> {
    let cluster = Cluster::minikube();
    let folder = std::env::var(CUSTOM_RESOURCES)?;
    let teach = ["apply", "--server-side", "--force-conflicts", "--filename"];
    run(cluster.kubectl(&teach).arg(folder))?;
    run(cluster.kubectl(&teach).arg("k8s/namespaces.yaml"))?;
    let mut tally = Tally::default();
    for file in charts::Rendered::new()?.files() {
        let judge = [
            "apply",
            "--dry-run=server",
            "--validate=strict",
            "--filename",
        ];
        let mut apply = cluster.kubectl(&judge);
        apply.arg(file);
        tally += judged(&mut apply)?;
    }
    Ok(tally)
}

/// Quiet about what is accepted.
fn judged(apply: &mut Command) -> anyhow::Result<Tally> {
    show(apply);
    let output = apply.output().context("cannot run kubectl")?;
    if !output.status.success() {
        print!("{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(Tally::of(output.status))
}

/// The folder with the custom resource definitions of Strimzi, the Gateway API and the Prometheus Operator.
const CUSTOM_RESOURCES: &str = "HERALD_CUSTOM_RESOURCES";

pub fn running() -> Option<String> {
    let state = minikube::state(&Cluster::minikube());
    let runs = state.is_ok_and(|state| state == minikube::State::Running);
    (!runs).then(|| "no cluster runs (./setup.sh starts one)".to_owned())
}

pub fn custom_resources() -> Option<String> {
    if std::env::var_os(CUSTOM_RESOURCES).is_none() {
        return Some(format!(
            "{CUSTOM_RESOURCES} is not set (a folder with the definitions of Strimzi, the Gateway API and the Prometheus Operator)"
        ));
    }
    running()
}

/// Somebody's own cluster is never deleted.
pub fn disposable() -> Option<String> {
    let may = std::env::var("HERALD_DISPOSABLE_CLUSTER").as_deref() == Ok("1");
    (!may)
        .then(|| "it deletes minikube's cluster (HERALD_DISPOSABLE_CLUSTER=1 allows it)".to_owned())
}
