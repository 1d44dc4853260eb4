//! A namespace for one test.

use std::ops::Deref;

use crate::cluster::Cluster;
use crate::kafka;

/// By this label the next run finds what one that was killed has left.
const LABEL: &str = "app.kubernetes.io/created-by=herald-delivery-tests";

/// A namespace that enforces *restricted*. It is deleted with what is in it, and with the topic of its name, when it is
/// dropped.
pub struct Namespace {
    cluster: Cluster,
    pub name: String,
}

impl Namespace {
    pub fn new(cluster: Cluster) -> Self {
        delete_leftovers(&cluster);
        let name = herald_testing::random_topic("herald-test");
        cluster.kubectl(&["create", "namespace", &name]);
        let namespace = Self { cluster, name };
        namespace.cluster.kubectl(&[
            "label",
            "namespace",
            &namespace.name,
            LABEL,
            "pod-security.kubernetes.io/enforce=restricted",
        ]);
        namespace.refuses_what_is_not_restricted();
        namespace
    }

    /// kubectl in this namespace.
    pub fn kubectl(&self, args: &[&str]) -> String {
        self.cluster
            .kubectl(&[&["--namespace", &self.name], args].concat())
    }

    /// That every pod starts means something only where another one would not.
    fn refuses_what_is_not_restricted(&self) {
        let pod = ["run", "plain", "--image=plain:1", "--dry-run=server"];
        let refused = self.try_kubectl(&[&["--namespace", &self.name], &pod[..]].concat());
        assert!(
            refused.is_err_and(|why| why.contains("violates PodSecurity \"restricted")),
            "a namespace that enforces restricted takes a plain pod"
        );
    }

    /// What happened here, and in Kafka's namespace, names no violation of Pod Security.
    pub fn has_seen_no_violation(&self) {
        for namespace in [self.name.as_str(), kafka::NAMESPACE] {
            let events = self.cluster.kubectl(&[
                "--namespace",
                namespace,
                "get",
                "events",
                "--output=jsonpath={range .items[*]}{.message}{\"\\n\"}{end}",
            ]);
            let violations: Vec<&str> = events
                .lines()
                .filter(|message| message.contains("violates PodSecurity"))
                .collect();
            assert!(violations.is_empty(), "{namespace}: {violations:?}");
        }
    }

    /// For finding the reason of a failure.
    fn show(&self) {
        let logs = "logs --selector=app.kubernetes.io/name=herald --prefix --tail=-1";
        for line in ["get pods --output=wide", "get events", logs] {
            let words: Vec<&str> = line.split(' ').collect();
            let shown = self.try_kubectl(&[&["--namespace", &self.name], &words[..]].concat());
            let shown = shown.unwrap_or_else(|error| error);
            let of_messages = |line: &&str| line.contains("Received: ") || line.contains("Sent: ");
            for line in shown.lines().filter(|line| !of_messages(line)) {
                eprintln!("{line}");
            }
        }
    }
}

impl Deref for Namespace {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show();
        }
        delete(&self.cluster, &self.name);
    }
}

fn delete_leftovers(cluster: &Cluster) {
    let left = cluster.kubectl(&[
        "get",
        "namespaces",
        "--selector",
        LABEL,
        "--output=jsonpath={.items[*].metadata.name}",
    ]);
    for name in left.split_whitespace() {
        delete(cluster, name);
    }
}

/// No panic: it may run in the middle of one.
fn delete(cluster: &Cluster, name: &str) {
    let namespace = ["delete", "namespace", name, "--timeout=120s"];
    for deleted in [
        cluster.try_kubectl(&namespace),
        kafka::delete_topic(cluster, name),
    ] {
        if let Err(why) = deleted {
            eprintln!("{why}");
        }
    }
}
