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
    let kept = || output(&mut command("minikube", ["config", "get", "profile"])).ok();
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
        let mut kubectl = command("kubectl", ["--context", &self.context]);
        kubectl.args(args);
        kubectl
    }

    pub fn helm(&self, args: &[&str]) -> Command {
        let mut helm = command("helm", args);
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
        Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .with_context(missing)
    }

    pub async fn client(&self) -> anyhow::Result<Client> {
        Client::try_from(self.config().await?).context("cannot make a client of the cluster")
    }
}

/// Runs what is asynchronous in a command that is not.
pub fn wait_for<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?
        .block_on(future)
}
