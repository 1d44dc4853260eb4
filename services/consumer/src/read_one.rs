//! A client that reads one message. The chart's test runs it, because the image contains no other client.

mod tls;

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};
use herald_runtime::http::PathPrefix;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// The producer's longest pause is 10 seconds; replacing a pod also takes time.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What to read, instead of serving.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct ReadOne {
    /// Instead of serving, print the next live message of the consumer at this address, such as `http://consumer-service`, and
    /// exit; with exit code 1 if none arrives within a minute.
    #[arg(long, value_name = "URL")]
    pub read_one: Option<ServerUrl>,

    /// File with the certificates that `--read-one` trusts at an `https://` address, in PEM: those of CAs, or the consumer's own.
    #[arg(long, value_name = "FILE", requires = "read_one")]
    pub read_one_ca: Option<PathBuf>,

    /// File with the token that `--read-one` sends.
    #[arg(long, value_name = "FILE", requires = "read_one")]
    pub read_one_token: Option<PathBuf>,
}

/// The address of a consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerUrl {
    /// `host:port`.
    address: String,
    /// That of its `--path-prefix`.
    path: PathPrefix,
    tls: bool,
}

impl FromStr for ServerUrl {
    type Err = String;

    /// Parses `http://host:port/path`, the same with `https`, or a host alone.
    fn from_str(url: &str) -> Result<Self, String> {
        let (tls, host) = match url.strip_prefix("https://") {
            Some(host) => (true, host),
            None => (false, url.strip_prefix("http://").unwrap_or(url)),
        };
        let (host, path) = host.split_at(host.find('/').unwrap_or(host.len()));
        let path = path.parse()?;
        if host.is_empty() || host.contains(['?', '#', '@']) || host.contains(char::is_whitespace) {
            return Err("give http://host or http://host:port, or the same with https".to_owned());
        }
        // The last colon of [::1] belongs to the address.
        let with_port = !host.ends_with(']') && host.contains(':');
        let address = match (with_port, tls) {
            (true, _) => host.to_owned(),
            (false, true) => format!("{host}:443"),
            (false, false) => format!("{host}:80"),
        };
        Ok(Self { address, path, tls })
    }
}

/// The next live message of a consumer.
///
/// # Errors
///
/// If it does not serve this client, or no message arrives within a minute.
pub async fn read_one(server: &ServerUrl, options: &ReadOne) -> anyhow::Result<String> {
    let message = tokio::time::timeout(TIMEOUT, connect(server, options)).await;
    match message {
        Ok(message) => message,
        Err(_) => bail!("{} sent no message within {TIMEOUT:?}", server.address),
    }
}

async fn connect(
    ServerUrl { address, path, tls }: &ServerUrl,
    options: &ReadOne,
) -> anyhow::Result<String> {
    if *tls && options.read_one_ca.is_none() {
        bail!(
            "--read-one with https:// needs --read-one-ca, a file with the certificates to trust"
        );
    }
    let token = options.read_one_token.as_deref().map(token).transpose()?;
    let socket = TcpStream::connect(address)
        .await
        .with_context(|| format!("cannot connect to {address}"))?;
    // An address instead of the name, which --allowed-hosts may not list. HTTP/1.0: a response without chunks.
    let mut request = format!(
        "GET {path}/events HTTP/1.0\r\nHost: {}\r\n",
        socket.peer_addr()?
    );
    if let Some(token) = token {
        request += &format!("Authorization: Bearer {token}\r\n");
    }
    request += "\r\n";
    match options.read_one_ca.as_deref().filter(|_| *tls) {
        Some(ca) => {
            let stream = tls::connect(address, ca, socket).await?;
            read(address, stream, &request).await
        }
        None => read(address, socket, &request).await,
    }
}

fn token(file: &Path) -> anyhow::Result<String> {
    let name = file.display();
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        bail!("{name} must contain a token, and nothing else");
    }
    Ok(token.to_owned())
}

async fn read(
    address: &str,
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &str,
) -> anyhow::Result<String> {
    stream.write_all(request.as_bytes()).await?;
    let mut lines = BufReader::new(stream).lines();
    let status = lines.next_line().await?.unwrap_or_default();
    if !status.contains(" 200 ") {
        bail!("{address} answered {status:?} to GET /events");
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
    bail!("{address} ended the stream before it sent a message")
}

#[cfg(test)]
mod tests;
