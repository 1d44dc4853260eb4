//! Waits for workloads to roll out, and reports why they do not.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::bail;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, LogParams};
use kube::{Client, ResourceExt};

use crate::environments::Environment;
use crate::kubernetes::labels;

/// Between two polls of the cluster.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// For all workloads together: an image may have to be pulled.
const TIMEOUT: Duration = Duration::from_secs(600);

/// The number of log lines to show of a pod that does not start.
const LOG_LINES: i64 = 10;

/// Deployments, StatefulSets and Jobs that belong together.
pub struct Workloads {
    /// As shown to the user.
    pub name: String,
    pub namespace: String,
    /// Labels, as `kubectl --selector` takes them.
    pub selector: String,
}

/// Returns when all of them have rolled out. The error describes the problems of their pods.
pub async fn wait(client: &Client, all: &[Workloads]) -> anyhow::Result<()> {
    let begin = Instant::now();
    let mut reported = HashMap::new();
    let mut problems = HashMap::new();
    loop {
        let mut waiting = false;
        for workloads in all {
            let late = begin.elapsed() > TIMEOUT;
            let unfinished = match workloads.unfinished(client).await {
                Ok(unfinished) => unfinished,
                // A cluster that has just started does not answer every request.
                Err(error) if late => return Err(error),
                Err(_) => vec!["the cluster to answer".to_owned()],
            };
            let state = match unfinished.as_slice() {
                [] => "ready".to_owned(),
                names => format!("waiting for {}", names.join(", ")),
            };
            waiting |= !unfinished.is_empty();
            if reported.insert(&workloads.name, state.clone()).as_ref() != Some(&state) {
                println!("{}: {state}", workloads.name);
            }
            let stuck = workloads.is_stuck(client, &mut problems).await;
            if !unfinished.is_empty() && (stuck || late) {
                bail!("{}", workloads.explain(client, &unfinished).await?);
            }
        }
        if !waiting {
            return Ok(());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// How long to wait before calling a pod stuck: a new volume, a new node or an image pull may take a minute.
fn grace_period(problem: &str) -> Duration {
    let transient = ["Unschedulable", "ErrImagePull", "ImagePullBackOff"];
    let transient = transient.iter().any(|reason| problem.starts_with(reason));
    Duration::from_secs(if transient { 120 } else { 20 })
}

impl Workloads {
    /// Those that the chart creates for an environment.
    pub fn of(environment: &Environment) -> Self {
        Self {
            name: environment.name.clone(),
            namespace: environment.namespace.clone(),
            // The pod of `helm test` is not a workload.
            selector: format!(
                "{},app.kubernetes.io/component!=test",
                labels::selector(&environment.release)
            ),
        }
    }

    /// The names of those that have not rolled out.
    pub async fn unfinished(&self, client: &Client) -> anyhow::Result<Vec<String>> {
        let ours = ListParams::default().labels(&self.selector);
        let (client, namespace) = (client.clone(), self.namespace.as_str());
        let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
        let sets: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
        let jobs: Api<Job> = Api::namespaced(client, namespace);
        let mut names = Vec::new();
        for set in sets.list(&ours).await?.iter().filter(|set| !set_runs(set)) {
            names.push(format!("statefulset {}", set.name_any()));
        }
        for job in jobs
            .list(&ours)
            .await?
            .iter()
            .filter(|job| !job_is_done(job))
        {
            names.push(format!("job {}", job.name_any()));
        }
        let deployments = deployments.list(&ours).await?;
        for one in deployments.iter().filter(|one| !deployment_runs(one)) {
            names.push(format!("deployment {}", one.name_any()));
        }
        Ok(names)
    }

    pub async fn pods(&self, client: &Client) -> anyhow::Result<Vec<Pod>> {
        let pods: Api<Pod> = Api::namespaced(client.clone(), &self.namespace);
        let ours = ListParams::default().labels(&self.selector);
        Ok(pods.list(&ours).await?.items)
    }

    /// Whether a pod has had a problem for too long; `problems` holds the time at which each was first seen.
    async fn is_stuck(&self, client: &Client, problems: &mut HashMap<String, Instant>) -> bool {
        let mut stuck = false;
        for pod in self.pods(client).await.unwrap_or_default() {
            let Some(problem) = problem(&pod) else {
                problems.remove(&pod.name_any());
                continue;
            };
            let since = problems.entry(pod.name_any()).or_insert_with(Instant::now);
            stuck |= since.elapsed() > grace_period(&problem);
        }
        stuck
    }

    /// What `kubectl describe` and `kubectl logs` would show.
    async fn explain(&self, client: &Client, unfinished: &[String]) -> anyhow::Result<String> {
        let namespace = &self.namespace;
        let mut text = format!(
            "{}: {} did not become ready",
            self.name,
            unfinished.join(", ")
        );
        let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
        let ours = ListParams::default().labels(&self.selector);
        for failure in deployments.list(&ours).await?.iter().filter_map(failure) {
            text += &format!("\n  {failure}");
        }
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        for pod in self.pods(client).await?.iter().filter(|pod| !is_ready(pod)) {
            let name = pod.name_any();
            let reason = problem(pod).unwrap_or_else(|| "is not ready".to_owned());
            text += &format!("\n  pod {name}: {reason}");
            // The pod of a Job has one for each topic.
            let spec = pod.spec.iter();
            for container in spec.flat_map(|spec| &spec.containers) {
                let log = LogParams {
                    container: Some(container.name.clone()),
                    tail_lines: Some(LOG_LINES),
                    ..LogParams::default()
                };
                let lines = pods.logs(&name, &log).await.unwrap_or_default();
                for line in lines.lines() {
                    text += &format!("\n    {line}");
                }
            }
        }
        let hint = format!("kubectl describe pods --namespace {namespace}");
        Ok(format!("{text}\n  more: {hint}"))
    }
}

fn deployment_runs(deployment: &Deployment) -> bool {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas);
    let wanted = wanted.unwrap_or(1);
    deployment.status.as_ref().is_some_and(|status| {
        status.observed_generation == deployment.metadata.generation
            && status.replicas.unwrap_or(0) == wanted
            && status.updated_replicas.unwrap_or(0) == wanted
            && status.available_replicas.unwrap_or(0) == wanted
    })
}

fn set_runs(set: &StatefulSet) -> bool {
    let wanted = set.spec.as_ref().and_then(|spec| spec.replicas);
    let wanted = wanted.unwrap_or(1);
    set.status.as_ref().is_some_and(|status| {
        status.observed_generation == set.metadata.generation
            && status.current_revision == status.update_revision
            && status.ready_replicas.unwrap_or(0) == wanted
    })
}

fn job_is_done(job: &Job) -> bool {
    let status = job.status.as_ref();
    status.is_some_and(|status| status.succeeded.unwrap_or(0) > 0)
}

pub fn is_ready(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let done = status.is_some_and(|status| status.phase.as_deref() == Some("Succeeded"));
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten();
    done || (pod.metadata.deletion_timestamp.is_none()
        && ready
            .into_iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True"))
}

/// Why a pod does not start, if its status tells: `ImagePullBackOff: no such image`.
pub fn problem(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let with = |reason: &str, message: Option<&String>| match message {
        Some(message) => format!("{reason}: {message}"),
        None => reason.to_owned(),
    };
    let conditions = status.conditions.iter().flatten();
    for condition in conditions {
        if condition.reason.as_deref() == Some("Unschedulable") {
            return Some(with("Unschedulable", condition.message.as_ref()));
        }
    }
    let init = status.init_container_statuses.iter().flatten();
    for container in init.chain(status.container_statuses.iter().flatten()) {
        let waiting = container.state.as_ref()?.waiting.as_ref();
        let Some(reason) = waiting.and_then(|waiting| waiting.reason.as_deref()) else {
            continue;
        };
        if !matches!(reason, "ContainerCreating" | "PodInitializing") {
            let message = waiting.and_then(|waiting| waiting.message.as_ref());
            return Some(with(reason, message));
        }
    }
    None
}

/// Why a Deployment cannot create its pods, such as a policy that forbids them.
fn failure(deployment: &Deployment) -> Option<String> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .find(|condition| condition.type_ == "ReplicaFailure" && condition.status == "True")
        .and_then(|condition| condition.message.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(status: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "a"}, "status": status})).unwrap()
    }

    #[test]
    fn the_reason_why_a_pod_does_not_start_is_reported() {
        let waiting = |reason, message| {
            json!({"containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": reason, "message": message}}}]})
        };
        let pulling = pod(waiting("ImagePullBackOff", "no such image"));
        assert_eq!(
            problem(&pulling).unwrap(),
            "ImagePullBackOff: no such image"
        );
        assert_eq!(problem(&pod(waiting("ContainerCreating", ""))), None);
        let unschedulable = json!({"conditions": [{"type": "PodScheduled", "status": "False",
            "reason": "Unschedulable", "message": "insufficient memory"}]});
        assert_eq!(
            problem(&pod(unschedulable)).unwrap(),
            "Unschedulable: insufficient memory"
        );
    }

    #[test]
    fn a_deployment_runs_when_all_its_pods_are_updated_and_available() {
        let deployment = |updated: i32, available: i32, generation: i64| -> Deployment {
            serde_json::from_value(json!({
                "metadata": {"generation": 2}, "spec": {"replicas": 2, "selector": {}, "template": {}},
                "status": {"observedGeneration": generation, "replicas": 2, "updatedReplicas": updated, "availableReplicas": available},
            }))
            .unwrap()
        };
        assert!(deployment_runs(&deployment(2, 2, 2)));
        assert!(!deployment_runs(&deployment(1, 2, 2)));
        assert!(!deployment_runs(&deployment(2, 1, 2)));
        assert!(!deployment_runs(&deployment(2, 2, 1)));
    }
}
