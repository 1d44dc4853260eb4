//! The servers that `up` installs once per cluster, for all environments: Kafka and PostgreSQL.

use anyhow::{Context, ensure};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use crate::command::{output, run};
use crate::kubernetes::cluster::{Cluster, wait_for};
use crate::kubernetes::labels::{MANAGED_BY, XTASK, is_ours};
use crate::kubernetes::rollout::{self, Workloads};

/// The kinds of resources that a server consists of, with its volume and its password.
const KINDS: &str =
    "statefulset,service,configmap,serviceaccount,networkpolicy,persistentvolumeclaim,secret";

/// A server of one replica.
pub struct Server {
    /// For users.
    pub title: &'static str,
    /// The namespace, and the folder in `k8s`.
    pub namespace: &'static str,
    /// The labels of its workloads.
    selector: &'static str,
    volume: &'static str,
    /// What to do about another server with the names of this one.
    remedy: &'static str,
}

pub const KAFKA: Server = Server {
    title: "Kafka",
    namespace: "kafka",
    selector: "app.kubernetes.io/instance=my-cluster,app.kubernetes.io/component=broker",
    volume: "data-my-cluster-kafka-0",
    remedy: "use it with --kafka HOST:PORT, or remove it",
};

pub const POSTGRES: Server = Server {
    title: "PostgreSQL",
    namespace: "postgres",
    selector: "app.kubernetes.io/instance=herald-postgres,app.kubernetes.io/component=database",
    volume: "data-herald-postgres-0",
    remedy: "remove it, or rename it",
};

pub const ALL: [Server; 2] = [KAFKA, POSTGRES];

impl Server {
    pub fn workloads(&self) -> Workloads {
        Workloads {
            name: self.namespace.to_owned(),
            namespace: self.namespace.to_owned(),
            selector: self.selector.to_owned(),
        }
    }

    /// Fails if there are resources with its names that are not ours, such as those of Strimzi's quickstart.
    pub fn check_foreign(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let foreign = self.foreign(cluster)?;
        let Self {
            title,
            namespace,
            remedy,
            ..
        } = self;
        ensure!(
            foreign.is_empty(),
            "namespace {namespace} has a {title} that is not Herald's ({}): {remedy}",
            foreign.join(", ")
        );
        Ok(())
    }

    /// Creates or updates it, without waiting.
    pub fn apply(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let apply = ["apply", "--server-side", "--force-conflicts"];
        run(cluster
            .kubectl(&apply)
            .args(["--kustomize", &self.folder()]))
    }

    /// Deletes it and its data if `up` created it.
    pub fn delete(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let selector = format!("{MANAGED_BY}={XTASK}");
        let ours = ["--namespace", self.namespace, "--selector", &selector];
        let mut get = cluster.kubectl(&["get", KINDS, "--output", "name"]);
        if output(get.args(ours))?.trim().is_empty() {
            let Self {
                title, namespace, ..
            } = self;
            println!("there is no {title} of Herald's in namespace {namespace}");
            return Ok(());
        }
        run(cluster.kubectl(&["delete", KINDS]).args(ours))
    }

    fn folder(&self) -> String {
        format!("k8s/{}", self.namespace)
    }

    fn foreign(&self, cluster: &Cluster) -> anyhow::Result<Vec<String>> {
        let get = || cluster.kubectl(&["get", "--ignore-not-found", "--output", "json"]);
        let ours = output(get().args(["--kustomize", &self.folder()]))?;
        let volume = ["persistentvolumeclaim", self.volume, "--namespace"];
        let volume = output(get().args(volume).arg(self.namespace))?;
        let mut foreign = Vec::new();
        for text in [ours, volume] {
            if text.trim().is_empty() {
                continue;
            }
            let objects: Objects =
                serde_json::from_str(&text).context("cannot read the output of kubectl get")?;
            let objects = objects.items.unwrap_or_else(|| vec![objects.only]);
            let not_ours = objects.iter().filter(|one| !is_ours(&one.metadata));
            foreign.extend(not_ours.map(Object::name));
        }
        Ok(foreign)
    }
}

/// Waits until these servers run.
pub fn wait(cluster: &Cluster, servers: &[&Server]) -> anyhow::Result<()> {
    let all: Vec<Workloads> = servers.iter().map(|server| server.workloads()).collect();
    wait_for(async { rollout::wait(&cluster.client().await?, &all).await })
}

/// The output of `kubectl get`: a list, or a single object.
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
}
