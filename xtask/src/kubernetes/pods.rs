//! Metrics and readiness of a pod, from its admin port.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::environments::Environment;
use crate::kubernetes::labels;
use crate::kubernetes::rollout::{self, Workloads};
use crate::services::ADMIN_PORT;

/// An answer takes milliseconds; a pod that takes longer hangs.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The samples of `/metrics` by name and labels: `herald_streams{transport="sse"}`.
#[derive(Default)]
pub struct Metrics(HashMap<String, f64>);

impl Metrics {
    fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let samples = lines.filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Self(samples.collect())
    }

    /// The samples of a metric, with their labels: `{topic="my-topic"}`.
    fn of(&self, name: &str) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().filter_map(move |(sample, &value)| {
            let labels = sample.strip_prefix(name)?;
            (labels.is_empty() || labels.starts_with('{')).then_some((labels, value))
        })
    }

    /// The sum over all labels; `None` when there is no such metric.
    pub fn sum(&self, name: &str) -> Option<f64> {
        self.of(name).map(|(_, value)| value).reduce(|a, b| a + b)
    }

    /// The sum over all partitions of a topic; `None` when there is no such metric.
    pub fn sum_of_topic(&self, name: &str, topic: &str) -> Option<f64> {
        let own = self
            .of(name)
            .filter(|(labels, _)| topic_in(labels) == topic);
        own.map(|(_, value)| value).reduce(|a, b| a + b)
    }
}

/// The topic among the labels of a sample; empty if there is none.
fn topic_in(labels: &str) -> &str {
    let topic = labels.split_once("topic=\"").map(|(_, topic)| topic);
    let topic = topic.and_then(|topic| topic.split_once('"'));
    topic.map_or("", |(topic, _)| topic)
}

/// The metrics of one of Herald's pods.
async fn metrics(client: &Client, pod: &Pod) -> anyhow::Result<Metrics> {
    let (_, body) = get(client, pod, "/metrics").await?;
    Ok(Metrics::parse(&body))
}

/// The ready consumers of an environment, with their metrics.
pub async fn consumers(
    client: &Client,
    environment: &Environment,
) -> anyhow::Result<Vec<(String, Metrics)>> {
    let consumers = Workloads {
        name: environment.name.clone(),
        namespace: environment.namespace.clone(),
        selector: labels::selector_of(&environment.release, "consumer"),
    };
    let mut ready = Vec::new();
    for pod in consumers.pods(client).await? {
        if rollout::is_ready(&pod) {
            // A pod that terminates may not answer.
            let metrics = metrics(client, &pod).await.unwrap_or_default();
            ready.push((pod.name_any(), metrics));
        }
    }
    Ok(ready)
}

/// Which of them cannot read which topics: `a cannot read my-topic`.
pub fn without_source(consumers: &[(String, Metrics)]) -> Vec<String> {
    let mut down = Vec::new();
    for (name, metrics) in consumers {
        for (labels, up) in metrics.of("herald_source_up") {
            if up == 0.0 {
                down.push(format!("{name} cannot read {}", topic_in(labels)));
            }
        }
    }
    down.sort();
    down
}

/// The reason that `/readyz` gives when a pod is not ready; `None` when it is ready.
pub async fn not_ready(client: &Client, pod: &Pod) -> anyhow::Result<Option<String>> {
    let (status, body) = get(client, pod, "/readyz").await?;
    Ok((status != 200).then(|| body.trim().to_owned()))
}

async fn get(client: &Client, pod: &Pod, path: &str) -> anyhow::Result<(u16, String)> {
    let answer = tokio::time::timeout(TIMEOUT, forwarded(client, pod, path)).await;
    answer.with_context(|| format!("pod {} does not answer", pod.name_any()))?
}

/// By port-forward through the API server, which no network policy blocks.
async fn forwarded(client: &Client, pod: &Pod, path: &str) -> anyhow::Result<(u16, String)> {
    let name = pod.name_any();
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let mut forward = pods.portforward(&name, &[ADMIN_PORT]).await?;
    let mut stream = forward.take_stream(ADMIN_PORT).context("no stream")?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    forward.abort();
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    let Some((status, (_, body))) = status.zip(answer.split_once("\r\n\r\n")) else {
        bail!("pod {name} does not answer on its admin port");
    };
    Ok((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_over_their_labels() {
        let metrics = Metrics::parse(
            "# HELP a_total as\na_total{x=\"1\"} 2\na_total{x=\"2\"} 3\na_total_more 7\nb 1.5\n",
        );
        assert_eq!(metrics.sum("a_total"), Some(5.0));
        assert_eq!(metrics.sum("b"), Some(1.5));
        assert_eq!(metrics.sum("c"), None);
    }

    #[test]
    fn a_consumer_that_cannot_read_one_of_its_topics_is_found() {
        let metrics = Metrics::parse(
            "herald_source_up{topic=\"my-topic\"} 1\nherald_source_up{topic=\"results\"} 0\n\
             herald_end_offset{partition=\"0\",topic=\"my-topic\"} 3\nherald_end_offset{partition=\"1\",topic=\"my-topic\"} 4\n\
             herald_end_offset{partition=\"0\",topic=\"results\"} 9\n",
        );
        let end = |topic| metrics.sum_of_topic("herald_end_offset", topic);
        assert_eq!(end("my-topic"), Some(7.0));
        assert_eq!(end("topic"), None);
        let down = without_source(&[("a".to_owned(), metrics)]);
        assert_eq!(down, ["a cannot read results"]);
    }
}
