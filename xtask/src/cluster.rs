//! The cluster: minikube's own, whatever kubectl's current context is.

use std::process::Command;

use anyhow::Context;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::command::{command, output};

/// The name of minikube's profile, which is also that of its context in the kubeconfig.
pub fn profile() -> String {
    let chosen = std::env::var("MINIKUBE_PROFILE").ok();
    // An error when the user never chose one with `minikube profile NAME`.
    let kept = || output(&mut minikube(&["config", "get", "profile"])).ok();
    let name = chosen.or_else(kept).unwrap_or_default().trim().to_owned();
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
        let mut kubectl = directly(command("kubectl", ["--context", &self.context]));
        kubectl.args(args);
        kubectl
    }

    pub fn helm(&self, args: &[&str]) -> Command {
        let mut helm = directly(command("helm", args));
        helm.args(["--kube-context", &self.context]);
        helm
    }

    /// How its API server is reached, read anew from the kubeconfig: `minikube start` may have given it another port.
    ///
    /// Errors say that the kubeconfig does not know the cluster, not that it does not answer.
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
        // From HTTPS_PROXY, which is not for a cluster on this machine.
        config.proxy_url = None;
        Ok(config)
    }

    pub async fn client(&self) -> anyhow::Result<Client> {
        Client::try_from(self.config().await?).context("cannot make a client of the cluster")
    }
}

/// The variables that name a proxy for the world outside.
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

/// A command that speaks to nothing but the cluster, and so without a proxy.
fn directly(mut command: Command) -> Command {
    for name in PROXIES {
        command.env_remove(name);
    }
    command
}

/// minikube with these arguments, which goes through a proxy for images only.
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

/// Runs what is asynchronous in a command that is not.
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
    fn kubectl_and_helm_go_to_the_cluster_directly_and_minikube_to_its_images_by_the_proxy() {
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
