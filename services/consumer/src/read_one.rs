//! A client that reads one message. The chart's test runs it, because the image contains no other client.

use std::time::Duration;

use anyhow::{Context, bail};
use herald_runtime::http::PathPrefix;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// The producer's longest pause is 10 seconds; replacing a pod also takes time.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Parses `http://host:port/path`, or a host alone, into `host:port/path`. The path is that of `--path-prefix`.
pub fn server(url: &str) -> Result<String, String> {
    let url = url.strip_prefix("http://").unwrap_or(url);
    let (host, path) = url.split_at(url.find('/').unwrap_or(url.len()));
    let path: PathPrefix = path.parse()?;
    if host.is_empty() || host.contains(['?', '#', '@']) || host.contains(char::is_whitespace) {
        return Err("give http://host or http://host:port".to_owned());
    }
    // The last colon of [::1] belongs to the address.
    let with_port = !host.ends_with(']') && host.contains(':');
    Ok(if with_port {
        format!("{host}{path}")
    } else {
        format!("{host}:80{path}")
    })
}

/// The next live message of the consumer at `server` (`host:port/path`). No message within a minute is an error.
pub async fn read_one(server: &str) -> anyhow::Result<String> {
    let message = tokio::time::timeout(TIMEOUT, read(server)).await;
    match message {
        Ok(message) => message,
        Err(_) => bail!("{server} sent no message within {TIMEOUT:?}"),
    }
}

async fn read(server: &str) -> anyhow::Result<String> {
    let (address, path) = server.split_at(server.find('/').unwrap_or(server.len()));
    let mut stream = TcpStream::connect(address)
        .await
        .with_context(|| format!("cannot connect to {address}"))?;
    // HTTP/1.0: a response without chunks.
    let request = format!("GET {path}/events HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut lines = BufReader::new(stream).lines();
    let status = lines.next_line().await?.unwrap_or_default();
    if !status.contains(" 200 ") {
        bail!("{server} answered {status:?} to GET /events");
    }
    let (mut event, mut data) = (String::new(), Vec::new());
    while let Some(line) = lines.next_line().await? {
        if let Some(name) = line.strip_prefix("event: ") {
            event = name.to_owned();
        } else if let Some(text) = line.strip_prefix("data: ") {
            data.push(text.to_owned());
        } else if line.is_empty() {
            // A message has no event name; `start`, `gap`, `status` and `bye` have one.
            if event.is_empty() && !data.is_empty() {
                return Ok(data.join("\n"));
            }
            event.clear();
            data.clear();
        }
    }
    bail!("{server} ended the stream before it sent a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_with_an_optional_port_and_path() {
        assert_eq!(
            server("http://consumer-service").unwrap(),
            "consumer-service:80"
        );
        assert_eq!(server("http://localhost:8001/").unwrap(), "localhost:8001");
        assert_eq!(server("[::1]").unwrap(), "[::1]:80");
        assert_eq!(
            server("http://a:1/tools/herald/").unwrap(),
            "a:1/tools/herald"
        );
        for bad in ["", "http://", "https://a", "http://a/events?b", "a b"] {
            assert!(server(bad).is_err(), "{bad}");
        }
    }
}
