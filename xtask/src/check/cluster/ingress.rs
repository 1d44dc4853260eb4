//! All transports through nginx: to replicas that the suite starts and stops itself, then to pods.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Context;

use super::super::tally::Tally;
use super::super::{TestEnv, javascript};
use crate::command::run;
use crate::kubernetes::cluster::{Cluster, wait_for};
use crate::kubernetes::images::{self, Image};
use crate::kubernetes::labels;
use crate::kubernetes::rollout::{self, Workloads};
use crate::services;

/// The namespace of the release for this check, and its topic.
const NAME: &str = "herald-test-ingress";
const RELEASE: &str = "hello-world";

/// For a pod on this machine to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

pub fn ingress(env: &TestEnv) -> anyhow::Result<Tally> {
    let mut tally = javascript::ingress(env, None)?;
    let cluster = Cluster::minikube();
    let images = images::build()?;
    images::load(&images, &cluster)?;
    let installed = Installed::new(&cluster, &images)?;
    let addresses = installed.consumers()?;
    if let Some(pod) = addresses.iter().find(|pod| !accepts(pod)) {
        // Most of minikube's drivers have a separate network for pods.
        println!("left out: nginx before pods: {pod} cannot be reached from this machine");
        tally.left_out += 1;
        return Ok(tally);
    }
    let upstream: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
    tally += javascript::ingress(env, Some(&upstream.join(",")))?;
    Ok(tally)
}

fn accepts(pod: &SocketAddr) -> bool {
    TcpStream::connect_timeout(pod, CONNECT_TIMEOUT).is_ok()
}

/// A separate release with three consumers, in a namespace that allows only restricted pods; deleted when dropped.
struct Installed<'a> {
    cluster: &'a Cluster,
}

impl<'a> Installed<'a> {
    fn new(cluster: &'a Cluster, images: &[Image]) -> anyhow::Result<Self> {
        // Left over from an interrupted run.
        delete_namespace(cluster)?;
        run(&mut cluster.kubectl(&["create", "namespace", NAME]))?;
        let installed = Self { cluster };
        let restricted = "pod-security.kubernetes.io/enforce=restricted";
        run(&mut cluster.kubectl(&["label", "namespace", NAME, restricted]))?;
        let mut helm = cluster.helm(&["upgrade", "--install", RELEASE, "helm", "--hide-notes"]);
        helm.args(["--namespace", NAME, "--set", "consumer.replicaCount=3"]);
        helm.arg(format!("--set=kafka.topicName={NAME}"));
        // Frequent messages and a short drain, so that the suite does not wait for either.
        for option in [
            "INTERVAL_MIN=500ms",
            "INTERVAL_MAX=500ms",
            "DRAIN_DELAY=1s",
            "DRAIN_WINDOW=1s",
        ] {
            helm.arg(format!("--set-string=configmap.data.{option}"));
        }
        for image in images {
            helm.args(image.values());
        }
        run(&mut helm)?;
        Ok(installed)
    }

    /// Waits until everything runs; returns the addresses of the consumers' pods.
    fn consumers(&self) -> anyhow::Result<Vec<SocketAddr>> {
        let all = Workloads {
            name: NAME.to_owned(),
            namespace: NAME.to_owned(),
            selector: labels::selector(RELEASE),
        };
        let pods = wait_for(async {
            let client = self.cluster.client().await?;
            rollout::wait(&client, std::slice::from_ref(&all)).await?;
            let consumers = Workloads {
                selector: format!("{},app.kubernetes.io/component=consumer", all.selector),
                ..all
            };
            consumers.pods(&client).await
        })?;
        let public = services::named("consumer").public.as_ref();
        let port = public.context("the consumer has no public port")?.port;
        let ips = pods.iter().map(|pod| pod.status.as_ref()?.pod_ip.as_ref());
        ips.map(|ip| {
            let ip: IpAddr = ip.context("a pod that runs has no address")?.parse()?;
            Ok(SocketAddr::new(ip, port))
        })
        .collect()
    }
}

impl Drop for Installed<'_> {
    /// Prints what cannot be deleted; the next run deletes it.
    fn drop(&mut self) {
        // The topic last, since the producer keeps requesting it.
        for deleted in [delete_namespace(self.cluster), delete_topic(self.cluster)] {
            if let Err(error) = deleted {
                println!("cannot delete {NAME}: {error:#}");
            }
        }
    }
}

/// Returns when it is deleted.
fn delete_namespace(cluster: &Cluster) -> anyhow::Result<()> {
    let delete = ["delete", "namespace", NAME, "--ignore-not-found"];
    run(cluster.kubectl(&delete).arg("--timeout=120s"))
}

/// With Kafka's own tool, in its pod; in a small heap, since it shares the broker's memory limit.
fn delete_topic(cluster: &Cluster) -> anyhow::Result<()> {
    let mut delete = cluster.kubectl(&["exec", "--namespace", "kafka", "my-cluster-kafka-0", "--"]);
    delete.args(["env", "KAFKA_HEAP_OPTS=-Xmx128m"]);
    delete.arg("/opt/kafka/bin/kafka-topics.sh");
    delete.args(["--bootstrap-server", "localhost:9092"]);
    run(delete.args(["--delete", "--if-exists", "--topic", NAME]))
}
