//! Minikube's cluster: whether this machine can run it, its state, and starting it.

use std::fmt;

use serde::Deserialize;

use crate::command::{command, output, stream};
use crate::kubernetes::cluster::{Cluster, minikube};
use crate::kubernetes::images;
use crate::tools::{self, Tool};

/// Kafka takes 1 GiB, Kubernetes 2, the rest is for the user. A machine sold with 4 has a little less.
const MEMORY_NEEDED: u64 = 7 << 29;

/// Why no cluster is available, in one sentence.
#[derive(Debug)]
pub struct NoCluster(pub String);

impl fmt::Display for NoCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The state in which `start` found minikube's cluster.
#[derive(Debug, PartialEq)]
pub enum Found {
    Running,
    /// It was stopped and has been started.
    Started,
    /// There was none: it has been created and is ours.
    Created,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "it runs",
            Self::Started => "started",
            Self::Created => "a new cluster",
        })
    }
}

/// Checks whether this machine can run a cluster, tools first.
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
        let why = "images are built with docker on this system, and its engine does not answer (start Docker Desktop, or colima)";
        return Err(NoCluster(why.to_owned()));
    }
    match memory() {
        Some(memory) => enough(memory),
        None => Ok(()),
    }
}

/// `helm upgrade` of version 4 reverts manual changes; that of version 3 does not detect them.
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

/// This machine's memory in bytes.
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

/// The state of the cluster with this profile.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum State {
    Nothing,
    /// At least a part of it is stopped.
    Stopped,
    Running,
}

/// Fails when minikube does not report it.
pub fn state(cluster: &Cluster) -> Result<State, NoCluster> {
    let mut status = minikube(&["status", "--output=json", "--profile", &cluster.context]);
    let output = status.output();
    let output = output.map_err(|error| NoCluster(format!("cannot run minikube: {error}")))?;
    // Its exit code is not 0 when a part does not run, though the output is complete; 85 is an unknown profile.
    if output.status.code() == Some(85) {
        return Ok(State::Nothing);
    }
    read_state(&output.stdout).ok_or_else(|| {
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        NoCluster(format!(
            "cannot read the output of minikube status: {}",
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

/// One object, or an array of them if there are several nodes.
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
    // A worker node has no API server.
    let runs = |part: String| part == "Running" || part == "Irrelevant";
    let all = nodes.iter().flat_map(parts).all(runs);
    Some(if all { State::Running } else { State::Stopped })
}

/// Starts minikube with the user's own configuration, unless it is running.
pub fn start(cluster: &Cluster) -> Result<Found, NoCluster> {
    // A user who works with another cluster keeps it as the current context.
    let other = current_context().filter(|current| *current != cluster.context);
    if let Some(other) = &other {
        let ours = &cluster.context;
        println!("kubectl's current context stays \"{other}\"; Herald goes to \"{ours}\"");
    }
    if let Some(profile) = profile(cluster) {
        kubernetes_is_new_enough(&profile)?;
    }
    let found = match state(cluster)? {
        State::Running if is_known(cluster) => return Ok(Found::Running),
        // Another program has rewritten the kubeconfig, or the cluster hangs: a start repairs both.
        State::Running | State::Stopped => Found::Started,
        State::Nothing => Found::Created,
    };
    let mut args = vec!["start"];
    if other.is_some() {
        args.push("--keep-context");
    }
    if found == Found::Created {
        args.extend(["--apiserver-names", OURS]);
    }
    run_minikube(cluster, &args)?;
    // The user's minikube configuration chooses the version of a new cluster.
    match profile(cluster) {
        Some(profile) => kubernetes_is_new_enough(&profile)?,
        None => return Err(NoCluster("minikube does not list its cluster".to_owned())),
    }
    Ok(found)
}

/// An additional name in the API server's certificate that marks a cluster as created by us. minikube stores it in the
/// cluster's configuration from the start, so that it is known after Ctrl-C, and while the cluster is stopped.
const OURS: &str = "made-by-herald";

/// minikube's record of a cluster, running or not.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Profile {
    name: String,
    #[serde(default)]
    config: Configuration,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct Configuration {
    kubernetes_config: KubernetesConfiguration,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct KubernetesConfiguration {
    kubernetes_version: String,
    #[serde(rename = "APIServerNames")]
    api_server_names: Option<Vec<String>>,
}

fn profile(cluster: &Cluster) -> Option<Profile> {
    // Fails if there is no profile at all.
    let list = output(&mut minikube(&[
        "profile",
        "list",
        "--light",
        "--output=json",
    ]))
    .ok()?;
    find_profile(&list, &cluster.context)
}

fn find_profile(list: &str, name: &str) -> Option<Profile> {
    #[derive(Deserialize)]
    struct Profiles {
        #[serde(default)]
        valid: Vec<Profile>,
        /// Those whose creation was interrupted.
        #[serde(default)]
        invalid: Vec<Profile>,
    }
    let Profiles { valid, invalid } = serde_json::from_str(list).ok()?;
    let mut all = valid.into_iter().chain(invalid);
    all.find(|profile| profile.name == name)
}

impl Profile {
    fn is_ours(&self) -> bool {
        let names = &self.config.kubernetes_config.api_server_names;
        names.iter().flatten().any(|name| name == OURS)
    }
}

/// Whether `up` created this cluster.
pub fn is_ours(cluster: &Cluster) -> bool {
    profile(cluster).is_some_and(|profile| profile.is_ours())
}

/// The chart's own requirement, checked before anything is built.
fn kubernetes_is_new_enough(profile: &Profile) -> Result<(), NoCluster> {
    let has = &profile.config.kubernetes_config.kubernetes_version;
    let needed = oldest_kubernetes();
    match (minor(has), minor(needed)) {
        (Some(has), Some(needed)) if has >= needed => Ok(()),
        (None, _) => Ok(()),
        _ => Err(NoCluster(format!(
            "minikube's cluster \"{0}\" has Kubernetes {has}, and Herald needs {needed} or newer \
             (minikube start --profile {0} --kubernetes-version=stable upgrades it)",
            profile.name
        ))),
    }
}

/// `1.30.0`, from the chart.
fn oldest_kubernetes() -> &'static str {
    let chart = include_str!("../../../helm/Chart.yaml");
    let version = chart
        .lines()
        .find_map(|line| line.strip_prefix("kubeVersion: \">="))
        .expect("the chart names the oldest Kubernetes");
    version.trim_end_matches("-0\"")
}

/// `(1, 34)` of `v1.34.4`.
fn minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.trim_start_matches('v').split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Whether kubectl can reach the cluster.
pub fn is_known(cluster: &Cluster) -> bool {
    let args = ["get", "--raw", "/readyz", "--request-timeout", "5s"];
    output(&mut cluster.kubectl(&args)).is_ok()
}

pub fn current_context() -> Option<String> {
    let current = output(&mut command("kubectl", ["config", "current-context"])).ok()?;
    Some(current.trim().to_owned())
}

fn run_minikube(cluster: &Cluster, args: &[&str]) -> Result<(), NoCluster> {
    let mut lines = Vec::new();
    let mut minikube = minikube(args);
    minikube.args(["--profile", &cluster.context]);
    let status = stream(&mut minikube, |line| lines.push(line.to_owned()))
        .map_err(|error| NoCluster(format!("{error:#}")))?;
    if status.success() {
        return Ok(());
    }
    Err(NoCluster(format!(
        "minikube {} ended with {status}: {}",
        args[0],
        reason(&lines)
    )))
}

/// The reason is in `X Exiting due to CODE: sentence` if there is such a line, otherwise in the last line.
fn reason(lines: &[String]) -> String {
    let exiting = lines
        .iter()
        .find_map(|line| line.split_once("Exiting due to "));
    let reason = exiting.map(|(_, reason)| reason);
    let last = || lines.iter().rev().find(|line| !line.trim().is_empty());
    reason
        .or_else(|| last().map(String::as_str))
        .unwrap_or("no output")
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_memory_is_reported_in_one_sentence() {
        assert!(enough(MEMORY_NEEDED).is_ok());
        assert_eq!(
            enough(2 << 30).unwrap_err().to_string(),
            "this machine has 2.0 GiB of memory, and a cluster with Kafka needs 3.5"
        );
    }

    #[test]
    fn a_cluster_runs_when_all_its_nodes_do() {
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
    fn a_profile_is_read_whether_its_cluster_runs_or_not() {
        let profile = |names: &str| {
            format!(
                r#"{{"Name":"mine","Config":{{"KubernetesConfig":{{"KubernetesVersion":"v1.34.4","APIServerNames":{names}}}}}}}"#
            )
        };
        let created = profile(r#"["made-by-herald"]"#);
        for list in [
            format!(r#"{{"valid":[{created}],"invalid":[]}}"#),
            format!(r#"{{"invalid":[{created}]}}"#),
        ] {
            assert!(find_profile(&list, "mine").unwrap().is_ours(), "{list}");
            assert!(find_profile(&list, "other").is_none());
        }
        for names in ["null", "[]", r#"["cluster.example"]"#] {
            let list = format!(r#"{{"valid":[{}]}}"#, profile(names));
            assert!(!find_profile(&list, "mine").unwrap().is_ours(), "{list}");
        }
        // One that was interrupted immediately has no configuration yet.
        let bare = find_profile(r#"{"invalid":[{"Name":"mine"}]}"#, "mine").unwrap();
        assert!(!bare.is_ours() && kubernetes_is_new_enough(&bare).is_ok());
        assert!(find_profile("nonsense", "mine").is_none());
    }

    #[test]
    fn a_cluster_that_is_too_old_is_rejected_in_one_sentence() {
        let profile = |version: &str| Profile {
            name: "mine".to_owned(),
            config: Configuration {
                kubernetes_config: KubernetesConfiguration {
                    kubernetes_version: version.to_owned(),
                    api_server_names: None,
                },
            },
        };
        assert!(kubernetes_is_new_enough(&profile(oldest_kubernetes())).is_ok());
        assert!(kubernetes_is_new_enough(&profile("v2.0.0")).is_ok());
        let error = kubernetes_is_new_enough(&profile("v1.29.15")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "minikube's cluster \"mine\" has Kubernetes v1.29.15, and Herald needs 1.30.0 or newer \
             (minikube start --profile mine --kubernetes-version=stable upgrades it)"
        );
    }

    #[test]
    fn minikubes_reason_is_found_in_its_output() {
        let lines = [
            "* minikube v1.38.1 on Debian 12",
            "X Exiting due to DRV_NOT_DETECTED: No possible driver was detected.",
            "* Try installing one",
        ]
        .map(str::to_owned);
        assert_eq!(
            reason(&lines),
            "DRV_NOT_DETECTED: No possible driver was detected."
        );
        assert_eq!(reason(&["oh".to_owned(), String::new()]), "oh");
        assert_eq!(reason(&[]), "no output");
    }

    #[test]
    fn the_major_version_is_read() {
        assert_eq!(major("v4.3.1\n"), Some(4));
        assert_eq!(major("v3.19.0"), Some(3));
        assert_eq!(major("unknown"), None);
    }
}
