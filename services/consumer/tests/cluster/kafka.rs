//! The cluster's Kafka, queried with Kafka's own tools in its pod: nothing of Herald stands between.

use std::collections::BTreeSet;

use crate::cluster::Cluster;

pub const NAMESPACE: &str = "kafka";
const POD: &str = "my-cluster-kafka-0";
const STATEFUL_SET: &str = "statefulset/my-cluster-kafka";

/// Every committed record of a topic that nobody writes to any more: (partition, offset).
pub fn committed(cluster: &Cluster, topic: &str) -> BTreeSet<(usize, i64)> {
    // It ends when nothing has come for so long; to join its group takes a part of that.
    let lines = cluster.kubectl(&tool(
        "/opt/kafka/bin/kafka-console-consumer.sh",
        &[
            "--topic",
            topic,
            "--from-beginning",
            "--isolation-level=read_committed",
            "--timeout-ms=10000",
            "--formatter-property=print.partition=true",
            "--formatter-property=print.offset=true",
            "--formatter-property=print.value=false",
        ],
    ));
    // Between them are lines of its log, one of which is that the time is over.
    let records: BTreeSet<(usize, i64)> = lines.lines().filter_map(position).collect();
    assert!(!records.is_empty(), "nothing in {topic:?}: {lines}");
    // Without transactions and compaction a log has no holes; one here would mean that it was not read to its end.
    for &(partition, offset) in &records {
        assert!(
            offset == 0 || records.contains(&(partition, offset - 1)),
            "partition {partition} was read without offset {}",
            offset - 1
        );
    }
    records
}

/// Reads `Partition:1<TAB>Offset:42`.
fn position(line: &str) -> Option<(usize, i64)> {
    let (partition, offset) = line.split_once('\t')?;
    Some((
        partition.strip_prefix("Partition:")?.parse().ok()?,
        offset.trim().strip_prefix("Offset:")?.parse().ok()?,
    ))
}

/// Writes lines to a topic, one record each.
pub fn write(cluster: &Cluster, topic: &str, lines: &str) {
    let args = tool(
        "/opt/kafka/bin/kafka-console-producer.sh",
        &["--topic", topic],
    );
    cluster.kubectl_with(lines, &args);
}

/// Deletes the pod and waits until there is another one, with the same data, that takes connections.
pub fn restart(cluster: &Cluster) {
    let namespace = ["--namespace", NAMESPACE];
    let delete = ["delete", "pod", POD, "--timeout=120s"];
    cluster.kubectl(&[&namespace, &delete[..]].concat());
    let wait = ["rollout", "status", STATEFUL_SET, "--timeout=240s"];
    cluster.kubectl(&[&namespace, &wait[..]].concat());
}

pub fn delete_topic(cluster: &Cluster, topic: &str) -> Result<String, String> {
    let args = ["--topic", topic, "--delete", "--if-exists"];
    cluster.try_kubectl(&tool("/opt/kafka/bin/kafka-topics.sh", &args))
}

/// A tool in Kafka's pod. Its heap is small, since it shares the memory limit of the broker.
fn tool<'a>(script: &'a str, args: &[&'a str]) -> Vec<&'a str> {
    let mut command = vec!["exec", "--namespace", NAMESPACE, "--stdin", POD, "--"];
    command.extend(["env", "KAFKA_HEAP_OPTS=-Xmx128m", script]);
    command.push("--bootstrap-server=localhost:9092");
    command.extend(args);
    command
}
