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

    /// The sum over all labels; `None` when there is no such metric.
    pub fn sum(&self, name: &str) -> Option<f64> {
        let of = |sample: &str| {
            let labels = sample.strip_prefix(name);
            labels.is_some_and(|labels| labels.is_empty() || labels.starts_with('{'))
        };
        let mut values = self.0.iter().filter(|(sample, _)| of(sample)).peekable();
        values.peek()?;
        Some(values.map(|(_, value)| value).sum())
    }
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

/// The names of those that cannot read their topic.
pub fn without_source(consumers: &[(String, Metrics)]) -> Vec<&str> {
    consumers
        .iter()
        .filter(|(_, metrics)| metrics.sum("herald_source_up") == Some(0.0))
        .map(|(name, _)| name.as_str())
        .collect()
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
}
