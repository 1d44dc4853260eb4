//! A release of the chart.

use std::net::SocketAddr;

use serde_json::{Value as Json, json};

use crate::cluster::Cluster;
use crate::namespace::Namespace;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../helm");
const NAME: &str = "hello-world";

/// A release in a namespace of its own, with a topic of its own that has the name of the namespace.
pub struct Release {
    pub namespace: Namespace,
    values: Json,
}

/// A pod as the cluster knows it.
pub struct Pod {
    pub name: String,
    pub ip: String,
    pub node: String,
    pub restarts: i64,
    /// As the chart says it: `256Mi`.
    pub memory_limit: String,
    is_leaving: bool,
}

impl Release {
    /// Installs it, with one replica of each service and a message every `interval`, and waits until it is ready; `None`
    /// where the tests have no cluster.
    pub fn install(interval: &str) -> Option<Self> {
        let namespace = Namespace::new(Cluster::given()?);
        // Long enough for every client to receive a bye, short enough not to dominate the tests.
        let values = json!({
            "configmap": {"data": {
                "INTERVAL_MIN": interval,
                "INTERVAL_MAX": interval,
                "DRAIN_DELAY": "2s",
                "DRAIN_WINDOW": "3s",
                "SHUTDOWN_GRACE": "10s",
            }},
            "kafka": {"topicName": namespace.name, "partitions": 3},
            "producer": {"image": image("HERALD_PRODUCER_IMAGE"), "replicaCount": 1},
            "consumer": {"image": image("HERALD_CONSUMER_IMAGE"), "replicaCount": 1},
        });
        let release = Self { namespace, values };
        release.apply();
        Some(release)
    }

    /// Sets one value, by its JSON pointer into the values: `/consumer/replicaCount`; returns when the rollout is complete.
    pub fn upgrade(&mut self, pointer: &str, value: Json) {
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer begins with /");
        let parent = self
            .values
            .pointer_mut(parent)
            .expect("a pointer into the values");
        parent[key] = value;
        self.apply();
    }

    /// Deletes a pod in order, or as a crash would, and waits until its successor is ready.
    pub fn delete_pod(&self, pod: &Pod, way: Deletion) {
        let mut delete = vec!["delete", "pod", &pod.name, "--timeout=120s"];
        if way == Deletion::AtOnce {
            delete.extend(["--force", "--grace-period=0"]);
        }
        self.namespace.kubectl(&delete);
        self.wait();
    }

    /// The topic's name.
    pub fn topic(&self) -> &str {
        &self.namespace.name
    }

    /// Where the Service is for other pods.
    pub fn service(&self) -> SocketAddr {
        let pointer = "--output=jsonpath={.spec.clusterIP}:{.spec.ports[0].port}";
        let text = self
            .namespace
            .kubectl(&["get", "service", "consumer-service", pointer]);
        text.parse().expect("an address")
    }

    /// The pods of a component, including terminating ones.
    pub fn pods(&self, component: &str) -> Vec<Pod> {
        let selector = selector(component);
        let get = ["get", "pods", "--output=json", "--selector", &selector];
        let list: Json = serde_json::from_str(&self.namespace.kubectl(&get)).expect("JSON");
        let items = list["items"].as_array().expect("items");
        items.iter().map(Pod::read).collect()
    }

    /// The only pod of the consumer.
    pub fn pod(&self) -> Pod {
        let mut pods = self.pods("consumer");
        assert_eq!(pods.len(), 1, "the consumer has one pod");
        pods.remove(0)
    }

    /// The response of an endpoint of a pod's admin server, through the API server.
    pub fn admin(&self, pod: &Pod, page: &str) -> String {
        let (namespace, name) = (&self.namespace.name, &pod.name);
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}:9090/proxy{page}");
        self.namespace.kubectl(&["get", "--raw", &path])
    }

    fn apply(&self) {
        let namespace = ["--namespace", &self.namespace.name];
        let upgrade = ["upgrade", "--install", NAME, CHART, "--hide-notes"];
        self.namespace
            .helm(&self.values, &[&upgrade[..], &namespace].concat());
        self.wait();
    }

    /// Waits until the wanted pods are ready, and all others gone.
    fn wait(&self) {
        for component in ["producer", "consumer"] {
            let selector = selector(component);
            let deployment = ["deployment", "--selector", &selector, "--timeout=180s"];
            self.namespace
                .kubectl(&[&["rollout", "status"], &deployment[..]].concat());
            let pointer = format!("/{component}/replicaCount");
            let wanted = self.values.pointer(&pointer).expect("a number");
            if *wanted != 0 {
                // A rollout is over before surplus pods have been terminated.
                let replicas = format!("--for=jsonpath={{.status.replicas}}={wanted}");
                self.namespace
                    .kubectl(&[&["wait", &replicas], &deployment[..]].concat());
            }
            for pod in self.pods(component) {
                if pod.is_leaving || *wanted == 0 {
                    let gone = ["wait", "--for=delete", "pod", &pod.name, "--timeout=120s"];
                    self.namespace.kubectl(&gone);
                }
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
pub enum Deletion {
    /// As a rollout or an eviction does it.
    InOrder,
    /// Without a word to the process, as if its node had died.
    AtOnce,
}

impl Pod {
    fn read(pod: &Json) -> Self {
        let text = |pointer: &str| {
            let text = pod.pointer(pointer).and_then(Json::as_str);
            text.unwrap_or_default().to_owned()
        };
        let restarts = pod.pointer("/status/containerStatuses/0/restartCount");
        Self {
            name: text("/metadata/name"),
            ip: text("/status/podIP"),
            node: text("/spec/nodeName"),
            memory_limit: text("/spec/containers/0/resources/limits/memory"),
            restarts: restarts.and_then(Json::as_i64).unwrap_or(0),
            is_leaving: !pod["metadata"]["deletionTimestamp"].is_null(),
        }
    }
}

fn selector(component: &str) -> String {
    format!("app.kubernetes.io/instance={NAME},app.kubernetes.io/component={component}")
}

/// The values for an image that the environment names.
fn image(variable: &str) -> Json {
    let name = std::env::var(variable).unwrap_or_default();
    let Some((repository, tag)) = name.rsplit_once(':') else {
        panic!("{variable} must name an image that the cluster has, as repository:tag");
    };
    json!({"repository": repository, "tag": tag})
}
