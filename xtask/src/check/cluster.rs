//! The checks on minikube.

mod ingress;

use std::process::Command;

use anyhow::Context;

use super::tally::Tally;
use super::{TestEnv, charts};
use crate::command::{command, run, show, stream};
use crate::kubernetes::cluster::Cluster;
use crate::kubernetes::{images, minikube};
pub use ingress::ingress;

/// Tests of delivery and of port-forwards, each in its own namespace.
pub fn delivery(env: &TestEnv) -> anyhow::Result<Tally> {
    let cluster = Cluster::minikube();
    let images = images::build()?;
    images::load(&images, &cluster)?;
    let mut variables = vec![("HERALD_TEST_CLUSTER".to_owned(), cluster.context.clone())];
    for image in &images {
        let name = format!("HERALD_{}_IMAGE", image.service.to_uppercase());
        variables.push((name, image.reference()));
    }
    // xtask's tests cover the forwards, the consumer's everything else.
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
    if env.long {
        tests.arg("--include-ignored");
    }
    tests.envs(variables.iter().map(|(name, value)| (name, value)));
    let mut tally = Tally::default();
    let status = stream(&mut tests, |line| tally.read_cargo(line))?;
    Ok(tally.ended(status))
}

/// The API server validates every manifest, custom resources included.
pub fn server(_: &TestEnv) -> anyhow::Result<Tally> {
    let cluster = Cluster::minikube();
    let folder = std::env::var(CUSTOM_RESOURCES)?;
    let apply = ["apply", "--server-side", "--force-conflicts", "--filename"];
    run(cluster.kubectl(&apply).arg(folder))?;
    run(cluster.kubectl(&apply).arg("k8s/namespaces.yaml"))?;
    let mut tally = Tally::default();
    for file in charts::Rendered::new()?.files() {
        let dry_run = [
            "apply",
            "--dry-run=server",
            "--validate=strict",
            "--filename",
        ];
        let mut apply = cluster.kubectl(&dry_run);
        apply.arg(file);
        tally += validate(&mut apply)?;
    }
    Ok(tally)
}

/// Prints only errors.
fn validate(apply: &mut Command) -> anyhow::Result<Tally> {
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

/// A user's own cluster is never deleted.
pub fn disposable() -> Option<String> {
    let allowed = std::env::var("HERALD_DISPOSABLE_CLUSTER").as_deref() == Ok("1");
    (!allowed)
        .then(|| "it deletes minikube's cluster (HERALD_DISPOSABLE_CLUSTER=1 allows it)".to_owned())
}
