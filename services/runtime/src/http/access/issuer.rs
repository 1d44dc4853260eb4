//! Keys from the address of an issuer: fetched at start, again before they are out of date, and at once when a token names another.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use bytes::Bytes;
use headers::{CacheControl, HeaderMapExt as _};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::header::{ACCEPT, HeaderMap};
use hyper::{Request, StatusCode, Uri};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustls::ClientConfig;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::keys::{Key, of_issuer};
use crate::Readiness;
use crate::http::origin::ip_address;
use crate::http::tls::trusted;

/// The largest response that is read.
const MAX_BYTES: usize = 256 << 10;

/// The bounds of what an issuer may say about the age of its keys.
const SHORTEST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3600);

/// What `/readyz` calls the keys.
const PART: &str = "keys of tokens";

/// Where the keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeysFrom {
    File(PathBuf),
    Address(Uri),
}

impl FromStr for KeysFrom {
    type Err = String;

    fn from_str(value: &str) -> Result<Self, String> {
        if value.is_empty() {
            return Err("it is empty; name a file or an address, or leave the option out".into());
        }
        let scheme = value.split_once("://").map(|(scheme, _)| scheme);
        if !scheme.is_some_and(|scheme| ["https", "http"].contains(&&*scheme.to_ascii_lowercase()))
        {
            return Ok(Self::File(value.into()));
        }
        let address: Uri = value
            .parse()
            .map_err(|error| format!("it is not an address: {error}"))?;
        let authority = address
            .authority()
            .map_or("", |authority| authority.as_str());
        let host = address.host().unwrap_or_default();
        if host.is_empty() {
            return Err("it names no host, as in https://issuer.example/keys.json".into());
        }
        if authority.contains('@') {
            return Err("it contains a password, which would be logged; leave it out".into());
        }
        if address.scheme_str() == Some("http") && !is_loopback(host) {
            return Err(
                "http:// is for this machine (localhost) alone, since anybody in between could add a key; use https://"
                    .into(),
            );
        }
        Ok(Self::Address(address))
    }
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || ip_address(host).is_some_and(|ip| ip.is_loopback())
}

/// How often it is asked, and for how long.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// Between two fetches, if the issuer does not say otherwise.
    every: Duration,
    /// Between two fetches because of tokens; and after one that failed.
    pause: Duration,
    /// After one that failed while there are no keys at all.
    first: Duration,
    /// Of one fetch, from the name of the host to the last byte.
    timeout: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            every: Duration::from_secs(300),
            pause: Duration::from_secs(10),
            first: Duration::from_secs(2),
            timeout: Duration::from_secs(5),
        }
    }
}

/// Wakes the task that fetches.
#[derive(Clone, Debug)]
pub struct Refresh(mpsc::Sender<()>);

impl Refresh {
    /// Fetches the keys again, once, however often it is called meanwhile.
    pub fn request(&self) {
        // Full means that somebody else has.
        _ = self.0.try_send(());
    }
}

/// Fetches the keys until `shutdown`. There are none until the first fetch has succeeded, and the service is not ready until then;
/// afterwards, those that were fetched last stay while fetches fail.
///
/// # Errors
///
/// If the file of the CA cannot be used.
pub fn watch_address(
    address: &Uri,
    ca: Option<&Path>,
    readiness: &Readiness,
    shutdown: &CancellationToken,
) -> anyhow::Result<(watch::Receiver<Arc<[Key]>>, Refresh)> {
    watch_at(Pace::default(), address, ca, readiness, shutdown)
}

fn watch_at(
    pace: Pace,
    address: &Uri,
    ca: Option<&Path>,
    readiness: &Readiness,
    shutdown: &CancellationToken,
) -> anyhow::Result<(watch::Receiver<Arc<[Key]>>, Refresh)> {
    tls(ca)?;
    readiness.wait_for(PART, Some("they are being fetched"));
    let (keys, watched) = watch::channel(Arc::from([]));
    let (wake, wanted) = mpsc::channel(1);
    let issuer = Issuer {
        address: address.clone(),
        ca: ca.map(Path::to_owned),
        pace,
        readiness: readiness.clone(),
        keys,
        reported: None,
    };
    let shutdown = shutdown.clone();
    tokio::spawn(async move { shutdown.run_until_cancelled(issuer.run(wanted)).await });
    Ok((watched, Refresh(wake)))
}

struct Issuer {
    address: Uri,
    ca: Option<PathBuf>,
    pace: Pace,
    readiness: Readiness,
    keys: watch::Sender<Arc<[Key]>>,
    /// The problem that was logged last.
    reported: Option<String>,
}

impl Issuer {
    async fn run(mut self, mut wanted: mpsc::Receiver<()>) {
        let mut last_wanted: Option<Instant> = None;
        loop {
            let fetched = timeout(self.pace.timeout, self.fetch());
            let fetched = fetched.await.unwrap_or_else(|_| {
                let seconds = self.pace.timeout.as_secs_f32();
                Err(anyhow!("it did not answer completely within {seconds} s"))
            });
            let wait = match fetched {
                Ok((keys, lifetime)) => {
                    self.take(keys);
                    lifetime
                }
                Err(error) => self.report(&format!("{error:#}")),
            };
            // Tokens that named an unknown key meanwhile have been answered by this fetch, or will be sent again.
            _ = wanted.try_recv();
            let is_wanted = async {
                if wanted.recv().await.is_none() {
                    std::future::pending::<()>().await;
                }
                if let Some(last) = last_wanted {
                    sleep_until(last + self.pace.pause).await;
                }
            };
            tokio::select! {
                () = sleep(wait) => {}
                () = is_wanted => last_wanted = Some(Instant::now()),
            }
        }
    }

    /// The keys, and how long to wait before fetching them again.
    async fn fetch(&self) -> anyhow::Result<(Vec<Key>, Duration)> {
        // Read each time: a CA is replaced too.
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls(self.ca.as_deref())?)
            .https_or_http()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new()).build(connector);
        let request = Request::get(&self.address)
            .header(ACCEPT, "application/jwk-set+json, application/json")
            .body(Empty::<Bytes>::new())?;
        let response = client.request(request).await?;
        let status = response.status();
        ensure!(
            status == StatusCode::OK,
            "it answered {status}; only 200 is accepted, and redirects are not followed"
        );
        let lifetime = lifetime(response.headers(), self.pace.every);
        let body = Limited::new(response.into_body(), MAX_BYTES).collect();
        let body = body
            .await
            .map_err(|error| anyhow!(error))
            .context("it did not send at most 256 KiB")?;
        Ok((of_issuer(&body.to_bytes())?, lifetime))
    }

    fn take(&mut self, keys: Vec<Key>) {
        let names =
            |keys: &[Key]| -> Vec<String> { keys.iter().map(|key| format!("{key:?}")).collect() };
        let (before, now) = (names(&self.keys.borrow()), names(&keys));
        if self.reported.take().is_some() || before != now {
            tracing::info!(address = %self.address, keys = ?now, "fetched the keys of tokens");
        }
        self.keys.send_replace(keys.into());
        self.readiness.wait_for(PART, None);
        self.readiness.note(PART, None);
    }

    /// Logs a problem once, and returns how long to wait.
    fn report(&mut self, error: &str) -> Duration {
        let (address, has_keys) = (&self.address, !self.keys.borrow().is_empty());
        let problem = format!("cannot fetch them from {address}: {error}");
        if self.reported.as_deref() != Some(error) {
            let effect = match has_keys {
                true => "those that were fetched before stay valid",
                false => "no token is accepted until they are fetched",
            };
            tracing::error!(%address, error, "cannot fetch the keys of tokens; {effect}");
            self.reported = Some(error.to_owned());
        }
        match has_keys {
            true => {
                self.readiness.note(PART, Some(&problem));
                self.pace.pause
            }
            false => {
                self.readiness.wait_for(PART, Some(&problem));
                self.pace.first
            }
        }
    }
}

/// How long the issuer says that its response is current.
fn lifetime(headers: &HeaderMap, default: Duration) -> Duration {
    let control = headers.typed_get::<CacheControl>();
    match control.and_then(|control| control.max_age()) {
        Some(age) => age.clamp(SHORTEST, LONGEST),
        None => default,
    }
}

/// Trusts the CAs of a file, or else the public ones: the images have no store of them.
fn tls(ca: Option<&Path>) -> anyhow::Result<ClientConfig> {
    let roots = match ca {
        None => webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect(),
        Some(file) => trusted(file)?.1,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("cannot set up TLS")?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests;
