//! Whether a cluster can be had: found out by trying.

use std::fmt;

use anyhow::Context;
use serde::Deserialize;

use crate::cluster::Cluster;
use crate::command::{command, output, run, stream};
use crate::images;
use crate::tools::{self, Tool};

/// Kafka takes 1 GiB, Kubernetes 2, the rest is the user's own. A machine sold with 4 has a little less.
const MEMORY_NEEDED: u64 = 7 << 29;

/// Why there is no cluster, in one sentence.
#[derive(Debug)]
pub struct NoCluster(pub String);

impl fmt::Display for NoCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// How minikube's cluster was found.
#[derive(Debug, PartialEq)]
pub enum Found {
    Running,
    /// It was there and has been started.
    Started,
    /// There was none: it is ours.
    Made,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "it runs",
            Self::Started => "started",
            Self::Made => "a new cluster",
        })
    }
}

/// What is wrong with this machine for a cluster, tools first.
pub fn preflight() -> Result<(), NoCluster> {
    let needed = [&tools::MINIKUBE, &tools::KUBECTL, &tools::HELM];
    let missing: Vec<String> = needed
        .into_iter()
        .filter(|tool| tool.find().is_none())
        .map(Tool::missing)
        .collect();
    if !missing.is_empty() {
        return Err(NoCluster(missing.join(", ")));
    }
    helm_is_new_enough()?;
    if !cfg!(target_os = "linux") && !images::docker::answers() {
        let why = "images are built with docker on this system, and none answers (start Docker Desktop, or colima)";
        return Err(NoCluster(why.to_owned()));
    }
    match memory() {
        Some(memory) => enough(memory),
        None => Ok(()),
    }
}

/// `helm upgrade` of version 4 mends what was changed by hand; that of version 3 does not see it.
fn helm_is_new_enough() -> Result<(), NoCluster> {
    let version = output(&mut command(
        "helm",
        ["version", "--template", "{{.Version}}"],
    ))
    .map_err(|error| NoCluster(format!("{error:#}")))?;
    match major(&version) {
        Some(4..) => Ok(()),
        _ => Err(NoCluster(format!(
            "helm {} is too old ({})",
            version.trim(),
            tools::HELM.get
        ))),
    }
}

fn major(version: &str) -> Option<u32> {
    let digits = version.trim().strip_prefix('v')?;
    digits.split('.').next()?.parse().ok()
}

/// Bytes of memory of this machine.
fn memory() -> Option<u64> {
    let linux = || {
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        let kibibytes = text
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kibibytes: u64 = kibibytes.trim().trim_end_matches(" kB").parse().ok()?;
        Some(kibibytes << 10)
    };
    let macos = || {
        let text = output(&mut command("sysctl", ["-n", "hw.memsize"])).ok()?;
        text.trim().parse().ok()
    };
    linux().or_else(macos)
}

fn enough(memory: u64) -> Result<(), NoCluster> {
    if memory >= MEMORY_NEEDED {
        return Ok(());
    }
    Err(NoCluster(format!(
        "this machine has {:.1} GiB of memory, and a cluster with Kafka needs {:.1}",
        memory as f64 / f64::from(1 << 30),
        MEMORY_NEEDED as f64 / f64::from(1 << 30)
    )))
}

/// What minikube has under this profile.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum State {
    Nothing,
    /// It is stopped, or a part of it is.
    Stopped,
    Running,
}

/// Errors when minikube does not say.
pub fn state(cluster: &Cluster) -> Result<State, NoCluster> {
    let mut status = command("minikube", ["status", "--output=json", "--profile"]);
    let said = status.arg(&cluster.context).output();
    let said = said.map_err(|error| NoCluster(format!("cannot run minikube: {error}")))?;
    // It has exit codes for what does not run as well, and says what it knows all the same; 85 is an unknown profile.
    if said.status.code() == Some(85) {
        return Ok(State::Nothing);
    }
    read_state(&said.stdout).ok_or_else(|| {
        let text = [said.stdout, said.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        NoCluster(format!(
            "cannot read what minikube status says: {}",
            text.trim()
        ))
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    host: String,
    kubelet: String,
    #[serde(rename = "APIServer")]
    api_server: String,
}

/// One object, or an array of them where there are several nodes.
fn read_state(json: &[u8]) -> Option<State> {
    let nodes: Vec<Node> = serde_json::from_slice(json)
        .or_else(|_| serde_json::from_slice(json).map(|node| vec![node]))
        .ok()?;
    if nodes.iter().any(|node| node.host == "Nonexistent") {
        return Some(State::Nothing);
    }
    let parts = |node: &Node| {
        [
            node.host.clone(),
            node.kubelet.clone(),
            node.api_server.clone(),
        ]
    };
    // A node that only works has no API server.
    let runs = |part: String| part == "Running" || part == "Irrelevant";
    let all = nodes.iter().flat_map(parts).all(runs);
    Some(if all { State::Running } else { State::Stopped })
}

/// Starts minikube with the user's own configuration, unless it runs.
pub fn start(cluster: &Cluster) -> Result<Found, NoCluster> {
    // Whoever works with another cluster goes on with it.
    let other = current_context().filter(|current| *current != cluster.context);
    if let Some(other) = &other {
        let ours = &cluster.context;
        println!("kubectl's current context stays \"{other}\"; Herald goes to \"{ours}\"");
    }
    let found = match state(cluster)? {
        State::Running if is_known(cluster) => return Ok(Found::Running),
        // Another program has rewritten the kubeconfig, or the cluster hangs: a start mends both.
        State::Running | State::Stopped => Found::Started,
        State::Nothing => Found::Made,
    };
    let keep: &[&str] = if other.is_some() {
        &["--keep-context"]
    } else {
        &[]
    };
    run_minikube(cluster, &[&["start"], keep].concat())?;
    Ok(found)
}

/// In a cluster that is Herald's alone, the default namespace takes restricted pods only, as dev and prod do anywhere; and
/// `down --cluster` may delete it.
pub fn mark_as_ours(cluster: &Cluster) -> Result<(), NoCluster> {
    let marks = [
        ["kube-system", OURS],
        ["default", "pod-security.kubernetes.io/enforce=restricted"],
    ];
    for [namespace, label] in marks {
        run(&mut cluster.kubectl(&["label", "--overwrite", "namespace", namespace, label]))
            .map_err(|error| NoCluster(format!("{error:#}")))?;
    }
    Ok(())
}

const OURS: &str = "made-by=herald";

/// Whether this cluster was made by `up`.
pub fn is_ours(cluster: &Cluster) -> anyhow::Result<bool> {
    let find = ["get", "namespaces", "--selector", OURS, "--output", "name"];
    let found = output(&mut cluster.kubectl(&find))
        .context("the cluster does not answer: start it with cargo xtask up")?;
    Ok(found.contains("kube-system"))
}

/// Whether kubectl reaches the cluster.
pub fn is_known(cluster: &Cluster) -> bool {
    let args = ["get", "--raw", "/readyz", "--request-timeout", "5s"];
    output(&mut cluster.kubectl(&args)).is_ok()
}

pub fn current_context() -> Option<String> {
    let current = output(&mut command("kubectl", ["config", "current-context"])).ok()?;
    Some(current.trim().to_owned())
}

fn run_minikube(cluster: &Cluster, args: &[&str]) -> Result<(), NoCluster> {
    let mut said = Vec::new();
    let mut minikube = command("minikube", args);
    minikube.args(["--profile", &cluster.context]);
    let status = stream(&mut minikube, |line| said.push(line.to_owned()))
        .map_err(|error| NoCluster(format!("{error:#}")))?;
    if status.success() {
        return Ok(());
    }
    Err(NoCluster(format!(
        "minikube {} ended with {status}: {}",
        args[0],
        reason(&said)
    )))
}

/// minikube says much; `X Exiting due to CODE: sentence` is the reason when there is one, else the last thing it said.
fn reason(said: &[String]) -> String {
    let exiting = said
        .iter()
        .find_map(|line| line.split_once("Exiting due to "));
    let reason = exiting.map(|(_, reason)| reason);
    let last = || said.iter().rev().find(|line| !line.trim().is_empty());
    reason
        .or_else(|| last().map(String::as_str))
        .unwrap_or("it said nothing")
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_memory_is_told_in_one_sentence() {
        assert!(enough(MEMORY_NEEDED).is_ok());
        assert_eq!(
            enough(2 << 30).unwrap_err().to_string(),
            "this machine has 2.0 GiB of memory, and a cluster with Kafka needs 3.5"
        );
    }

    #[test]
    fn the_state_is_that_of_all_nodes() {
        let node = |host: &str, api_server: &str| {
            format!(
                r#"{{"Name":"a","Host":"{host}","Kubelet":"Running","APIServer":"{api_server}"}}"#
            )
        };
        let (first, worker) = (node("Running", "Running"), node("Running", "Irrelevant"));
        let state = |json: &str| read_state(json.as_bytes());
        assert_eq!(state(&first), Some(State::Running));
        assert_eq!(state(&format!("[{first},{worker}]")), Some(State::Running));
        let stopped = format!("[{first},{}]", node("Stopped", "Stopped"));
        assert_eq!(state(&stopped), Some(State::Stopped));
        assert_eq!(
            state(&node("Nonexistent", "Nonexistent")),
            Some(State::Nothing)
        );
        assert_eq!(state("nonsense"), None);
    }

    #[test]
    fn minikubes_reason_is_found_among_what_it_says() {
        let said = [
            "* minikube v1.38.1 on Debian 12",
            "X Exiting due to DRV_NOT_DETECTED: No possible driver was detected.",
            "* Try installing one",
        ]
        .map(str::to_owned);
        assert_eq!(
            reason(&said),
            "DRV_NOT_DETECTED: No possible driver was detected."
        );
        assert_eq!(reason(&["oh".to_owned(), String::new()]), "oh");
        assert_eq!(reason(&[]), "it said nothing");
    }

    #[test]
    fn the_major_version_is_read() {
        assert_eq!(major("v4.3.1\n"), Some(4));
        assert_eq!(major("v3.19.0"), Some(3));
        assert_eq!(major("unknown"), None);
    }
}
