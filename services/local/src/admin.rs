//! One admin server for all services of the process, which queries each service's own admin server.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The timeout of a query, which a service answers from memory.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A service of this process, and the address of its own admin server.
#[derive(Clone, Debug)]
pub struct Service {
    pub environment: String,
    /// As in services.toml.
    pub name: &'static str,
    pub admin: SocketAddr,
}

impl Service {
    /// Why it is not ready; `None` if it is.
    pub async fn unready(&self) -> Option<String> {
        let Service {
            environment, name, ..
        } = self;
        match self.get("/readyz").await {
            Ok((200, _)) => None,
            Ok((_, reason)) => Some(format!("{environment} {name}: {}", reason.trim_end())),
            Err(error) => Some(format!("{environment} {name}: {error:#}")),
        }
    }

    /// The status and the body at `path`.
    async fn get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        let answer = tokio::time::timeout(TIMEOUT, async {
            let mut stream = TcpStream::connect(self.admin).await?;
            stream
                .write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())
                .await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            std::io::Result::Ok(answer)
        });
        let answer = answer
            .await
            .context("no response in time")?
            .context("cannot be reached")?;
        let Some((head, body)) = answer.split_once("\r\n\r\n") else {
            bail!("the response's head is incomplete");
        };
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        Ok((
            status.context("the response has no status")?,
            body.to_owned(),
        ))
    }
}

/// The metrics of all services, distinguished by the labels `environment` and `service`.
pub async fn metrics(services: &[Service]) -> anyhow::Result<String> {
    let mut families = BTreeMap::new();
    for service in services {
        let Service {
            environment, name, ..
        } = service;
        let labels = format!("environment=\"{environment}\",service=\"{name}\"");
        // A service that has ended, or has not started, has no metrics.
        if let Ok((200, text)) = service.get("/metrics").await {
            add(&mut families, &labels, &text);
        }
    }
    let mut merged = String::new();
    for Family { about, samples } in families.values() {
        write!(merged, "{about}{samples}")?;
    }
    Ok(merged)
}

/// A metric: its help and type, once, and its samples from all services.
#[derive(Default)]
struct Family {
    about: String,
    samples: String,
}

/// Adds `labels` to every sample in `text`, the Prometheus text of one service, and the samples to their families.
fn add(families: &mut BTreeMap<String, Family>, labels: &str, text: &str) {
    let mut known = false;
    let mut name = String::new();
    for line in text.lines() {
        if let Some(about) = line
            .strip_prefix("# HELP ")
            .or_else(|| line.strip_prefix("# TYPE "))
        {
            let of = about.split(' ').next().unwrap_or_default();
            if of != name {
                of.clone_into(&mut name);
                known = families.contains_key(of);
            }
            let family = families.entry(name.clone()).or_default();
            if !known {
                family.about += line;
                family.about.push('\n');
            }
        } else if let Some(end) = line.find(['{', ' ']) {
            let (sample, rest) = line.split_at(end);
            let samples = &mut families.entry(name.clone()).or_default().samples;
            *samples += &match rest.strip_prefix('{') {
                Some(others) => format!("{sample}{{{labels},{others}\n"),
                None => format!("{sample}{{{labels}}}{rest}\n"),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_of_several_services_is_one_family_with_their_labels() {
        let text = "# HELP a_total A.\n# TYPE a_total counter\na_total 1\n# HELP b B.\n# TYPE b gauge\nb{le=\"1\"} 2\n";
        let mut families = BTreeMap::new();
        add(&mut families, "environment=\"dev\"", text);
        add(&mut families, "environment=\"prod\"", text);
        let a = &families["a_total"];
        assert_eq!(a.about, "# HELP a_total A.\n# TYPE a_total counter\n");
        assert_eq!(
            a.samples,
            "a_total{environment=\"dev\"} 1\na_total{environment=\"prod\"} 1\n"
        );
        assert_eq!(
            families["b"].samples.lines().next(),
            Some("b{environment=\"dev\",le=\"1\"} 2")
        );
    }
}
