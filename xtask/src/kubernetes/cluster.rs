//! minikube's cluster, whatever kubectl's current context is.

use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder};

use crate::command::{command, output};

/// The name of minikube's profile, which is also the name of its context in the kubeconfig.
pub fn profile() -> String {
    let from_env = std::env::var("MINIKUBE_PROFILE").ok();
    // Fails if the user has never set one with `minikube profile NAME`.
    let configured = || output(&mut minikube(&["config", "get", "profile"])).ok();
    let name = from_env.or_else(configured).unwrap_or_default();
    let name = name.trim().to_owned();
    if name.is_empty() {
        "minikube".to_owned()
    } else {
        name
    }
}

/// kubectl and helm for this one cluster.
#[derive(Clone)]
pub struct Cluster {
    /// The context in the kubeconfig.
    pub context: String,
}

impl Cluster {
    pub fn minikube() -> Self {
        Self { context: profile() }
    }

    pub fn kubectl(&self, args: &[&str]) -> Command {
        let mut kubectl = without_proxy(command("kubectl", ["--context", &self.context]));
        kubectl.args(args);
        kubectl
    }

    pub fn helm(&self, args: &[&str]) -> Command {
        let mut helm = without_proxy(command("helm", args));
        helm.args(["--kube-context", &self.context]);
        helm
    }

    /// How to reach its API server. Read from the kubeconfig each time: `minikube start` may have changed the port.
    ///
    /// An error means that the cluster is not in the kubeconfig, not that it does not answer.
    pub async fn config(&self) -> anyhow::Result<Config> {
        let missing = || format!("kubectl does not know the cluster \"{}\"", self.context);
        let kubeconfig = Kubeconfig::read().with_context(missing)?;
        let options = KubeConfigOptions {
            context: Some(self.context.clone()),
            ..KubeConfigOptions::default()
        };
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .with_context(missing)?;
        // Comes from HTTPS_PROXY, which must not be used for a cluster on this machine.
        config.proxy_url = None;
        Ok(config)
    }

    pub async fn client(&self) -> anyhow::Result<Client> {
        Client::try_from(self.config().await?).context("cannot create a client of the cluster")
    }

    /// A client for connections that stay open and carry small writes.
    ///
    /// Not kube's own, which leaves Nagle's algorithm on (40 ms for a small write behind another) and sends no keepalives:
    /// it would never detect that the cluster has vanished.
    pub async fn long_lived_client(&self) -> anyhow::Result<Client> {
        let config = self.config().await?;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(Duration::from_secs(5)));
        // Dead after 25 s: less than a user waits for a page, more than roaming between Wi-Fi access points takes.
        tcp.set_keepalive(Some(Duration::from_secs(10)));
        tcp.set_keepalive_interval(Some(Duration::from_secs(5)));
        tcp.set_keepalive_retries(Some(3));
        // The same for unacknowledged data, which suspends keepalives.
        #[cfg(target_os = "linux")]
        tcp.set_tcp_user_timeout(Some(Duration::from_secs(25)));
        let tls = config.rustls_https_connector_with_connector(tcp)?;
        let service = ServiceBuilder::new()
            .layer(config.base_uri_layer())
            .option_layer(config.auth_layer()?)
            .map_err(BoxError::from)
            .service(legacy::Client::builder(TokioExecutor::new()).build(tls));
        Ok(Client::new(service, config.default_namespace))
    }
}

/// The variables that name a proxy for the internet.
pub const PROXIES: [&str; 6] = [
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// The addresses of minikube's clusters, for minikube itself, which needs the proxy for images.
const LOCAL: &str = "localhost,127.0.0.1,10.96.0.0/12,192.168.0.0/16";

/// Removes the proxy from a command that connects only to the cluster.
fn without_proxy(mut command: Command) -> Command {
    for name in PROXIES {
        command.env_remove(name);
    }
    command
}

/// minikube with these arguments; it uses a proxy for images only.
pub fn minikube(args: &[&str]) -> Command {
    let mut minikube = command("minikube", args);
    let given = std::env::var("NO_PROXY").or_else(|_| std::env::var("no_proxy"));
    let direct = match given {
        Ok(given) if !given.is_empty() => format!("{given},{LOCAL}"),
        _ => LOCAL.to_owned(),
    };
    minikube.env("NO_PROXY", &direct).env("no_proxy", &direct);
    minikube
}

/// Runs a future to completion in a synchronous command.
pub fn wait_for<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?
        .block_on(future)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubectl_and_helm_bypass_the_proxy_and_minikube_uses_it_for_images() {
        let cluster = Cluster {
            context: "mine".to_owned(),
        };
        for command in [cluster.kubectl(&["version"]), cluster.helm(&["list"])] {
            for name in PROXIES {
                let removed = command
                    .get_envs()
                    .any(|(key, value)| key == name && value.is_none());
                assert!(removed, "{name}");
            }
        }
        let minikube = minikube(&["start"]);
        let direct = minikube.get_envs().find(|(key, _)| *key == "NO_PROXY");
        let direct = direct
            .and_then(|(_, value)| value)
            .unwrap()
            .to_string_lossy();
        assert!(direct.ends_with(LOCAL), "{direct}");
        assert!(minikube.get_envs().all(|(key, _)| key != "HTTPS_PROXY"));
    }
}
