//! What is checked on the machine, in the cluster and in each environment: `status` shows it, `doctor` adds remedies.

use std::fmt;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, Client, ResourceExt};

use crate::environments::{Endpoint, Environment};
use crate::kubernetes::cluster::{Cluster, PROXIES, wait_for};
use crate::kubernetes::minikube::{self, State};
use crate::kubernetes::pods;
use crate::kubernetes::release::{self, Installed, Running};
use crate::kubernetes::rollout::{self, Workloads};
use crate::kubernetes::servers::{KAFKA, POSTGRES};
use crate::port;

const UP: &str = "cargo xtask up";

/// The result of one check.
struct Finding {
    what: String,
    /// What it is like, or what is wrong with it; empty when there is nothing to add.
    state: Result<String, String>,
    remedy: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, state) = match &self.state {
            Ok(state) => ("ok", state),
            Err(why) => ("WRONG", why),
        };
        write!(f, "{word:<7}{}", self.what)?;
        if !state.is_empty() {
            write!(f, ": {state}")?;
        }
        Ok(())
    }
}

/// Prints each finding as soon as it is known, and counts the problems.
pub struct Report {
    remedies: bool,
    problems: usize,
}

impl Report {
    /// Checks everything; `remedies` is whether to print how to solve each problem.
    pub fn new(environments: &[Environment], remedies: bool) -> anyhow::Result<Self> {
        let mut report = Self {
            remedies,
            problems: 0,
        };
        let cluster = Cluster::minikube();
        if report.machine() && report.cluster(&cluster) {
            let installed = release::installed(&cluster)?;
            wait_for(report.workloads(&cluster, environments, &installed))?;
        }
        for environment in environments {
            // Without a release, optional services do not run either.
            let running = release::running(&cluster, environment);
            let Running { services, tls } = running.unwrap_or_else(|_| Running::at_least());
            for endpoint in environment.endpoints(services, tls) {
                report.endpoint(&endpoint);
            }
        }
        Ok(report)
    }

    pub fn problems(&self) -> usize {
        self.problems
    }

    /// Returns whether it is ok.
    fn add(&mut self, what: &str, state: Result<String, String>, remedy: &str) -> bool {
        let finding = Finding {
            what: what.to_owned(),
            state,
            remedy: remedy.to_owned(),
        };
        println!("{finding}");
        let ok = finding.state.is_ok();
        if !ok {
            self.problems += 1;
            if self.remedies {
                println!("       -> {}", finding.remedy);
            }
        }
        ok
    }

    fn machine(&mut self) -> bool {
        let remedy = "install or add it; ./setup.sh --local runs without a cluster";
        let preflight = match minikube::preflight() {
            Ok(()) => Ok(String::new()),
            Err(no_cluster) => Err(no_cluster.to_string()),
        };
        self.add("minikube, kubectl, helm and memory", preflight, remedy)
    }

    fn cluster(&mut self, cluster: &Cluster) -> bool {
        let state = match minikube::state(cluster) {
            Err(no_cluster) => Err(no_cluster.to_string()),
            Ok(State::Nothing) => Err("minikube has no cluster".to_owned()),
            Ok(State::Stopped) => Err("it is stopped, or a part of it is".to_owned()),
            Ok(State::Running) if !minikube::is_known(cluster) => {
                Err("minikube runs, but kubectl does not reach it".to_owned())
            }
            Ok(State::Running) => Ok(String::new()),
        };
        let runs = self.add(&format!("the cluster \"{}\"", cluster.context), state, UP);
        if let Some(name) = PROXIES.iter().find(|name| std::env::var_os(name).is_some()) {
            println!(
                "note   {name} is set: minikube gets images through it; xtask goes to the cluster directly"
            );
        }
        if let Some(current) = minikube::current_context()
            && current != cluster.context
        {
            let name = &cluster.context;
            println!(
                "note   your own kubectl and helm go to \"{current}\", not to \"{name}\" (kubectl config use-context {name})"
            );
        }
        runs
    }

    async fn workloads(
        &mut self,
        cluster: &Cluster,
        environments: &[Environment],
        installed: &[Installed],
    ) -> anyhow::Result<()> {
        let client = cluster.client().await?;
        self.nodes(&client).await?;
        let others = release::other_kafkas(cluster, environments, installed)?;
        if others.len() < environments.len() {
            self.pods(&client, &KAFKA.workloads()).await?;
        }
        self.pods(&client, &POSTGRES.workloads()).await?;
        for (name, kafka) in others {
            let what = format!("{name} uses the Kafka at {kafka}");
            self.add(&what, Ok(String::new()), "");
        }
        for environment in environments {
            let found = release::find(installed, environment);
            let state = match release::drift(cluster, environment, installed)? {
                None => Ok(found.map_or(String::new(), |found| {
                    format!("revision {}", found.revision)
                })),
                Some(drift) => Err(drift.to_string()),
            };
            let what = format!("release {}", environment.release);
            self.add(&what, state, &format!("{UP} {}", environment.name));
            if found.is_some() {
                self.pods(&client, &Workloads::of(environment)).await?;
                self.topic(&client, environment).await?;
            }
        }
        Ok(())
    }

    async fn nodes(&mut self, client: &Client) -> anyhow::Result<()> {
        let nodes: Api<Node> = Api::all(client.clone());
        for node in nodes.list(&Default::default()).await? {
            let conditions = node
                .status
                .iter()
                .flat_map(|status| status.conditions.iter().flatten());
            // Ready should be true, all other conditions (pressure on memory, disk, processes) false.
            let bad: Vec<String> = conditions
                .filter(|one| (one.type_ == "Ready") != (one.status == "True"))
                .map(|one| format!("{} is {}", one.type_, one.status))
                .collect();
            let state = if bad.is_empty() {
                Ok(String::new())
            } else {
                Err(bad.join(", "))
            };
            let what = format!("node {}", node.name_any());
            let remedy = "kubectl describe nodes shows why; minikube stop and up again";
            self.add(&what, state, remedy);
        }
        Ok(())
    }

    /// All workloads have rolled out; if not, the pods' reasons are part of the problem.
    async fn pods(&mut self, client: &Client, workloads: &Workloads) -> anyhow::Result<()> {
        let unfinished = workloads.unfinished(client).await?;
        let all = workloads.pods(client).await?;
        let state = if unfinished.is_empty() && !all.is_empty() {
            Ok(running(&all))
        } else {
            let mut state = match unfinished.as_slice() {
                [] => "there are none".to_owned(),
                names => format!("{} not ready", names.join(", ")),
            };
            for pod in all.iter().filter(|pod| !rollout::is_ready(pod)) {
                let reason = match rollout::problem(pod) {
                    Some(reason) => Some(reason),
                    None => pods::not_ready(client, pod).await.ok().flatten(),
                };
                let reason = reason.unwrap_or_else(|| "not ready".to_owned());
                state += &format!("; {}: {reason}", pod.name_any());
            }
            Err(state)
        };
        let namespace = &workloads.namespace;
        let remedy = format!("{UP}; kubectl describe pods --namespace {namespace}");
        self.add(&format!("pods of {}", workloads.name), state, &remedy);
        Ok(())
    }

    /// The consumers can read their topics.
    async fn topic(&mut self, client: &Client, environment: &Environment) -> anyhow::Result<()> {
        let consumers = pods::consumers(client, environment).await?;
        let down = pods::without_source(&consumers);
        let state = if down.is_empty() {
            let offsets = consumers.iter().filter_map(|(_, metrics)| {
                metrics.sum_of_topic("herald_end_offset", &environment.topic)
            });
            let end = offsets.reduce(f64::max);
            let end = end.map_or("unknown".to_owned(), |end| end.to_string());
            let connections = consumers
                .iter()
                .filter_map(|(_, metrics)| metrics.sum("herald_connections"));
            let connections: f64 = connections.sum();
            Ok(format!("end offset {end}, connections {connections}"))
        } else {
            Err(down.join(", "))
        };
        let remedy = format!("{UP} {}", environment.name);
        self.add(&format!("topic {}", environment.topic), state, &remedy);
        Ok(())
    }

    fn endpoint(&mut self, endpoint: &Endpoint) {
        let port = endpoint.local_port;
        let (state, remedy) = if endpoint.answers() {
            (Ok("answers".to_owned()), String::new())
        } else if port::is_free(port) {
            let name = &endpoint.environment.name;
            let remedy = format!("cargo xtask forward --background {name}");
            (Err("nobody forwards it".to_owned()), remedy)
        } else {
            let remedy = "./kill_port_forward.sh, or end that process, then ./setup.sh";
            let why = format!("{}, and does not answer", port::in_use(port));
            (Err(why), remedy.to_owned())
        };
        let what = format!("{} {}", endpoint.public.what, endpoint.url());
        self.add(&what, state, &remedy);
    }
}

/// `2/2 ready, herald/consumer:0123456789abcdef, …`, without the pods of Jobs, which have completed.
fn running(pods: &[Pod]) -> String {
    let completed = |pod: &&Pod| {
        let status = pod.status.as_ref();
        status.is_some_and(|status| status.phase.as_deref() == Some("Succeeded"))
    };
    let pods: Vec<&Pod> = pods.iter().filter(|pod| !completed(pod)).collect();
    let ready = pods.iter().filter(|pod| rollout::is_ready(pod)).count();
    let mut images: Vec<&str> = pods.iter().filter_map(|pod| image(pod)).collect();
    images.sort_unstable();
    images.dedup();
    let ready = format!("{ready}/{} ready", pods.len());
    [&[ready.as_str()], images.as_slice()].concat().join(", ")
}

fn image(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.containers.first()?.image.as_deref()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_finding_is_one_line_with_its_state() {
        let line = |state| {
            let what = "topic dev-topic".to_owned();
            let remedy = String::new();
            Finding {
                what,
                state,
                remedy,
            }
            .to_string()
        };
        assert_eq!(line(Ok(String::new())), "ok     topic dev-topic");
        assert_eq!(line(Ok("end".into())), "ok     topic dev-topic: end");
        assert_eq!(line(Err("gone".into())), "WRONG  topic dev-topic: gone");
    }

    #[test]
    fn completed_pods_do_not_count_as_running() {
        let pod = |image: &str, phase: &str| -> Pod {
            let ready = json!([{"type": "Ready", "status": "True"}]);
            serde_json::from_value(json!({
                "metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": image}]},
                "status": {"phase": phase, "conditions": ready},
            }))
            .unwrap()
        };
        let pods = [
            pod("herald/producer:1", "Running"),
            pod("herald/consumer:2", "Running"),
            pod("herald/consumer:2", "Running"),
            pod("herald/topic:3", "Succeeded"),
        ];
        let expected = "3/3 ready, herald/consumer:2, herald/producer:1";
        assert_eq!(running(&pods), expected);
    }
}
