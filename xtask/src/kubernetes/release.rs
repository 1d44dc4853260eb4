//! A release of the chart: what is installed, and how it differs from what is wanted.

use std::fmt;

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::command::{output, run, show, with_input};
use crate::environments::Environment;
use crate::kubernetes::cluster::{Cluster, wait_for};
use crate::kubernetes::images::Image;
use crate::kubernetes::kafka_address::Address;
use crate::kubernetes::labels::selector_of;
use crate::kubernetes::{pods, security};
use crate::services::{self, Service};

/// A release as `helm list` shows it.
#[derive(Deserialize)]
pub struct Installed {
    pub name: String,
    pub namespace: String,
    /// A number, as text.
    pub revision: String,
    /// `deployed`, `failed`, `pending-upgrade`, …
    pub status: String,
}

/// All releases in the cluster.
pub fn installed(cluster: &Cluster) -> anyhow::Result<Vec<Installed>> {
    let list = output(&mut cluster.helm(&["list", "--all-namespaces", "--output", "json"]))
        .context(
            "the cluster does not answer: cargo xtask up starts it, cargo xtask doctor diagnoses it",
        )?;
    serde_json::from_str(&list).context("cannot read the output of helm list")
}

/// The release of an environment.
pub fn find<'a>(installed: &'a [Installed], environment: &Environment) -> Option<&'a Installed> {
    installed
        .iter()
        .find(|one| one.name == environment.release && one.namespace == environment.namespace)
}

/// The wanted release of an environment.
pub struct Release<'a> {
    pub cluster: &'a Cluster,
    pub environment: &'a Environment,
    pub images: &'a [Image],
    /// The Kafka of `up --kafka`, instead of the one of k8s/kafka.
    pub kafka: Option<&'a Address>,
    /// Whether it requires tokens and serves TLS.
    pub secure: bool,
}

/// Why a release has to be installed or upgraded.
#[derive(Debug, PartialEq)]
pub enum Difference {
    NotInstalled,
    /// The status of the last revision is not `deployed`: helm failed or was interrupted.
    NotDeployed(String),
    /// Installed resources were deleted or changed.
    Drifted,
    /// The chart, its values or the images are newer.
    Outdated,
    /// A consumer cannot read one of its topics. An upgrade creates a topic that was deleted.
    SourceDown,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInstalled => write!(f, "it is not installed"),
            Self::NotDeployed(status) => write!(f, "its last revision is {status}"),
            Self::Drifted => write!(f, "the cluster has something else than was installed"),
            Self::Outdated => write!(f, "the chart, its values or the images changed"),
            Self::SourceDown => write!(f, "its consumer cannot read the topic"),
        }
    }
}

/// How an environment's release differs from what helm installed, if it does.
pub fn drift(
    cluster: &Cluster,
    environment: &Environment,
    installed: &[Installed],
) -> anyhow::Result<Option<Difference>> {
    Ok(unchanged(cluster, environment, installed)?.err())
}

/// The manifest of a release that has not drifted.
fn unchanged(
    cluster: &Cluster,
    environment: &Environment,
    installed: &[Installed],
) -> anyhow::Result<Result<String, Difference>> {
    let Some(found) = find(installed, environment) else {
        return Ok(Err(Difference::NotInstalled));
    };
    if found.status != "deployed" {
        return Ok(Err(Difference::NotDeployed(found.status.clone())));
    }
    let manifest = manifest(cluster, environment)?;
    if has_drifted(cluster, environment, &manifest)? {
        return Ok(Err(Difference::Drifted));
    }
    Ok(Ok(manifest))
}

/// The environments that use the Kafka of `up --kafka`, with its address.
pub fn other_kafkas(
    cluster: &Cluster,
    environments: &[Environment],
    installed: &[Installed],
) -> anyhow::Result<Vec<(String, String)>> {
    let mut others = Vec::new();
    for environment in environments {
        if find(installed, environment).is_none() {
            continue;
        }
        let values = values(cluster, environment, &[])?;
        if let Some(kafka) = values["kafka"]["bootstrapServers"].as_str() {
            others.push((environment.name.clone(), kafka.to_owned()));
        }
    }
    Ok(others)
}

/// What an environment's release runs.
pub struct Running {
    pub services: Vec<&'static Service>,
    /// Whether they serve TLS themselves.
    pub tls: bool,
}

impl Running {
    /// What every release runs.
    pub fn at_least() -> Self {
        Self {
            services: services::required(),
            tls: false,
        }
    }
}

pub fn running(cluster: &Cluster, environment: &Environment) -> anyhow::Result<Running> {
    let values = values(cluster, environment, &["--all"])?;
    Ok(Running {
        services: enabled(services::all(), &values),
        tls: values["tls"]["secret"]
            .as_str()
            .is_some_and(|secret| !secret.is_empty()),
    })
}

fn enabled<'a>(services: &'a [Service], values: &Value) -> Vec<&'a Service> {
    let runs = |one: &&Service| !one.optional || values[&one.name]["enabled"] == true;
    services.iter().filter(runs).collect()
}

/// The values of a release: those that differ from the chart's, or with `--all` the chart's as well.
fn values(cluster: &Cluster, environment: &Environment, args: &[&str]) -> anyhow::Result<Value> {
    let mut get = cluster.helm(&["get", "values", &environment.release, "--output", "json"]);
    get.args(["--namespace", &environment.namespace]).args(args);
    serde_json::from_str(&output(&mut get)?).context("cannot read the output of helm get values")
}

/// The manifest that helm installed.
fn manifest(cluster: &Cluster, environment: &Environment) -> anyhow::Result<String> {
    let mut get = cluster.helm(&["get", "manifest", &environment.release]);
    output(get.args(["--namespace", &environment.namespace]))
}

/// Whether resources that helm installed were deleted or changed.
fn has_drifted(
    cluster: &Cluster,
    environment: &Environment,
    manifest: &str,
) -> anyhow::Result<bool> {
    let mut diff = cluster.kubectl(&["diff", "--server-side", "--force-conflicts"]);
    // Not as field manager `helm`, or fields that helm writes beside the manifest would count as deleted by us.
    diff.args(["--namespace", &environment.namespace, "--filename", "-"])
        // The user's own diff program may be interactive.
        .env_remove("KUBECTL_EXTERNAL_DIFF");
    let output = with_input(&mut diff, manifest)?;
    match output.status.code() {
        Some(0) => Ok(false),
        Some(1) => Ok(true),
        _ => bail!(
            "kubectl diff ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        ),
    }
}

impl Release<'_> {
    /// How the cluster differs from the chart, the values and the images; `None` when nothing has to change.
    pub fn difference(&self, installed: &[Installed]) -> anyhow::Result<Option<Difference>> {
        let has = match unchanged(self.cluster, self.environment, installed)? {
            Ok(manifest) => manifest,
            Err(difference) => return Ok(Some(difference)),
        };
        let mut template = self.helm(&["template", &self.environment.release]);
        let wanted = output(template.args(["--is-upgrade", "--no-hooks"]))?;
        if has.trim() != wanted.trim() {
            return Ok(Some(Difference::Outdated));
        }
        let down = wait_for(async {
            let client = self.cluster.client().await?;
            let consumers = pods::consumers(&client, self.environment).await?;
            Ok(!pods::without_source(&consumers).is_empty())
        })?;
        Ok(down.then_some(Difference::SourceDown))
    }

    /// Installs or upgrades it; does not wait.
    pub fn apply(&self, installed: &[Installed]) -> anyhow::Result<()> {
        let Environment {
            release, namespace, ..
        } = self.environment;
        self.remove_interrupted(installed)?;
        // So that the Job runs again and recreates a deleted topic.
        let topic = selector_of(release, "topic");
        let delete = ["delete", "job", "--selector", &topic, "--namespace"];
        output(self.cluster.kubectl(&delete).arg(namespace))?;
        let mut upgrade = self.helm(&["upgrade", release]);
        upgrade.args(["--install", "--force-conflicts"]);
        upgrade.args(["--reset-values", "--hide-notes", "--output", "json"]);
        show(&upgrade);
        // Its output repeats the whole chart.
        output(&mut upgrade).map(drop)
    }

    /// An interrupted helm leaves a revision pending or uninstalling for ever, which locks the release.
    fn remove_interrupted(&self, installed: &[Installed]) -> anyhow::Result<()> {
        let Environment {
            release, namespace, ..
        } = self.environment;
        let Some(found) = find(installed, self.environment) else {
            return Ok(());
        };
        let secret = format!("sh.helm.release.v1.{release}.v{}", found.revision);
        let mut command = match found.status.as_str() {
            "uninstalling" => self.cluster.helm(&["uninstall", release, "--wait"]),
            status if status.starts_with("pending-") => {
                self.cluster.kubectl(&["delete", "secret", &secret])
            }
            _ => return Ok(()),
        };
        run(command.args(["--namespace", namespace]))
    }

    /// A helm command with the chart, its values and the images.
    fn helm(&self, args: &[&str]) -> std::process::Command {
        let environment = self.environment;
        let mut helm = self.cluster.helm(args);
        helm.args(["helm", "--namespace", &environment.namespace]);
        let values = format!("helm/values-{}.yaml", environment.name);
        if crate::root().join(&values).exists() {
            helm.args(["--values", &values]);
        }
        for image in self.images {
            helm.args(image.values());
        }
        helm.args(services::everything().map(|value| format!("--set={value}")));
        helm.args(self.kafka.iter().flat_map(|kafka| kafka.values()));
        if self.secure {
            helm.args(security::values());
        }
        helm
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_release_runs_an_optional_service_only_if_its_values_enable_it() {
        let fake = services::fake();
        let names = |values| -> Vec<&str> {
            let running = enabled(&fake, &values);
            running.iter().map(|one| one.name.as_str()).collect()
        };
        assert_eq!(names(json!({})), ["consumer", "counter"]);
        let off = json!({"gate": {"enabled": false}, "consumer": {"enabled": false}});
        assert_eq!(names(off), ["consumer", "counter"]);
        let on = json!({"gate": {"enabled": true}});
        assert_eq!(names(on), ["consumer", "counter", "gate"]);
    }
}
