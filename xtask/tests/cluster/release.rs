//! A release of the chart, with the commands that change it.

use std::fs::File;
use std::io::Write;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../helm");
const CONSUMER: &str = "app.kubernetes.io/name=herald,app.kubernetes.io/component=consumer";

/// Its namespace and topic have the same name, and are deleted when it is dropped.
pub struct Release {
    /// The kubectl context of the cluster.
    pub context: String,
    pub namespace: String,
    _lock: File,
}

impl Release {
    /// Takes the lock, installs the release with one consumer, and waits until it is ready. Prints the reason and
    /// returns `None` if there is no cluster for tests.
    pub fn install(name: &str) -> Option<Self> {
        let context = std::env::var("HERALD_TEST_CLUSTER").unwrap_or_default();
        if context.is_empty() {
            leave_out(
                "HERALD_TEST_CLUSTER is not set (the kubectl context of a cluster); cargo xtask check delivery sets it",
            );
            return None;
        }
        // Concurrent tests would disturb each other; the consumer's tests on a cluster use the same lock.
        let path = std::env::temp_dir().join("herald-delivery-tests.lock");
        let lock = File::create(&path).unwrap();
        lock.lock().unwrap();
        let release = Self {
            context,
            namespace: format!("herald-test-forward-{name}"),
            _lock: lock,
        };
        // Left over from a killed test.
        let deleted = release.delete_namespace("--wait=true");
        deleted.unwrap_or_else(|error| panic!("{error}"));
        let mut helm = Command::new("helm");
        helm.args(["--kube-context", &release.context]);
        helm.args(["install", "hello-world", CHART, "--hide-notes"]);
        helm.args(["--namespace", &release.namespace, "--create-namespace"]);
        helm.arg(format!("--set=kafka.topicName={}", release.namespace));
        helm.args(["--set", "producer.replicaCount=0"]);
        // Long enough to notify every client, short enough not to dominate the tests.
        for option in ["DRAIN_DELAY=2s", "DRAIN_WINDOW=3s", "SHUTDOWN_GRACE=10s"] {
            helm.arg(format!("--set-string=configmap.data.{option}"));
        }
        for (service, variable) in [
            ("producer", "HERALD_PRODUCER_IMAGE"),
            ("consumer", "HERALD_CONSUMER_IMAGE"),
        ] {
            let image = std::env::var(variable).unwrap_or_default();
            let Some((repository, tag)) = image.rsplit_once(':') else {
                panic!("{variable} must name an image that the cluster has, as repository:tag");
            };
            helm.arg(format!("--set={service}.image.repository={repository}"));
            helm.arg(format!("--set-string={service}.image.tag={tag}"));
            helm.arg(format!("--set={service}.image.pullPolicy=Never"));
        }
        helm.args(["--wait", "--timeout", "2m"]);
        output(&mut helm).unwrap_or_else(|error| panic!("{error}"));
        Some(release)
    }

    /// The argument of `--service`.
    pub fn service(&self, port: u16) -> String {
        format!("{}/consumer-service:{port}", self.namespace)
    }

    /// Returns as soon as the Deployment is updated.
    pub fn scale(&self, replicas: usize) {
        let replicas = format!("--replicas={replicas}");
        self.in_namespace(&["scale", "deployment", "--selector", CONSUMER, &replicas]);
    }

    /// Deletes these pods without waiting for them to drain.
    pub fn delete_pods(&self, pods: &[String]) {
        let pods: Vec<&str> = pods.iter().map(String::as_str).collect();
        self.in_namespace(&[&["delete", "pod", "--wait=false"], &pods[..]].concat());
    }

    /// The names of the pods that are ready and not terminating.
    pub fn ready_pods(&self) -> Vec<String> {
        let template = "{{range .items}}{{if not .metadata.deletionTimestamp}}{{$name := .metadata.name}}\
            {{range .status.conditions}}{{if and (eq .type \"Ready\") (eq .status \"True\")}}{{$name}} {{end}}{{end}}\
            {{end}}{{end}}";
        let template = format!("go-template={template}");
        let list =
            self.in_namespace(&["get", "pods", "--selector", CONSUMER, "--output", &template]);
        list.split_whitespace().map(str::to_owned).collect()
    }

    /// Waits until this many pods are ready and not terminating, and returns their names.
    pub fn wait_for_pods(&self, count: usize) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            let ready = self.ready_pods();
            if ready.len() == count {
                return ready;
            }
            assert!(
                Instant::now() < deadline,
                "waited 90 s for {count} ready pods, there are {ready:?}"
            );
            sleep(Duration::from_millis(100));
        }
    }

    fn in_namespace(&self, args: &[&str]) -> String {
        self.kubectl(&[args, &["--namespace", &self.namespace]].concat())
    }

    fn kubectl(&self, args: &[&str]) -> String {
        output(&mut self.kubectl_command(args)).unwrap_or_else(|error| panic!("{error}"))
    }

    fn kubectl_command(&self, args: &[&str]) -> Command {
        let mut kubectl = Command::new("kubectl");
        kubectl.args(["--context", &self.context]).args(args);
        kubectl
    }

    fn delete_namespace(&self, wait: &str) -> Result<String, String> {
        let namespace = &self.namespace;
        let delete = ["delete", "namespace", namespace, "--ignore-not-found", wait];
        output(&mut self.kubectl_command(&delete))
    }

    /// With Kafka's own tool, in its pod. The heap is small, since it shares the broker's memory limit.
    fn delete_topic(&self) -> Result<String, String> {
        let tool = "exec --namespace kafka my-cluster-kafka-0 -- env KAFKA_HEAP_OPTS=-Xmx128m \
                    /opt/kafka/bin/kafka-topics.sh --bootstrap-server=localhost:9092 --delete --if-exists --topic";
        let mut delete: Vec<&str> = tool.split_whitespace().collect();
        delete.push(&self.namespace);
        output(&mut self.kubectl_command(&delete))
    }
}

impl Drop for Release {
    /// No panic: it may run during one, and the next run deletes what remains.
    fn drop(&mut self) {
        for deleted in [self.delete_namespace("--wait=false"), self.delete_topic()] {
            if let Err(why) = deleted {
                eprintln!("{why}");
            }
        }
    }
}

/// Prints the line that `cargo xtask check` counts, bypassing the test harness, which would capture it.
pub fn leave_out(why: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let _ = std::io::stderr().write_all(format!("left out: {test}: {why}\n").as_bytes());
}

fn output(command: &mut Command) -> Result<String, String> {
    let output = command
        .output()
        .map_err(|error| format!("cannot run {command:?}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "{command:?} ended with {}: {}",
        output.status,
        stderr.trim()
    ))
}
