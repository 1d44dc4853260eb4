//! Chooses the pod of a forward: a ready one, kept for as long as it is ready.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use kube::runtime::watcher::Event;

/// A pod that accepts connections.
#[derive(Clone, Debug, PartialEq)]
pub struct Ready {
    /// A recreated pod of a StatefulSet has the same name, but another id.
    pub uid: String,
    pub name: String,
    pub port: u16,
    /// Seconds since the epoch.
    created: i64,
}

/// The ready pods of a Service, and the chosen one.
#[derive(Default)]
pub struct Pods {
    ready: HashMap<String, Ready>,
    /// The pods of a listing that is not yet complete.
    listed: HashMap<String, Ready>,
    chosen: Option<String>,
}

impl Pods {
    /// Applies an event of the watch. `port` is the Service's `targetPort`: a number, or the name of a container port.
    pub fn apply(&mut self, event: Event<Pod>, port: &IntOrString) {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(pod) => {
                if let Some(ready) = Ready::read(&pod, port) {
                    self.listed.insert(ready.uid.clone(), ready);
                }
            }
            Event::InitDone => self.ready = std::mem::take(&mut self.listed),
            Event::Apply(pod) => match Ready::read(&pod, port) {
                Some(ready) => {
                    self.ready.insert(ready.uid.clone(), ready);
                }
                None => {
                    self.ready.remove(&pod.uid().unwrap_or_default());
                }
            },
            Event::Delete(pod) => {
                self.ready.remove(&pod.uid().unwrap_or_default());
            }
        }
    }

    /// The pod to use: the previous one if it is still ready.
    pub fn choose(&mut self) -> Option<&Ready> {
        let chosen = self
            .chosen
            .take()
            .filter(|uid| self.ready.contains_key(uid));
        self.chosen = chosen.or_else(|| self.newest(|_| true));
        self.ready.get(self.chosen.as_ref()?)
    }

    /// Chooses another pod if there is one: the chosen one did not accept a connection although it is ready.
    pub fn avoid(&mut self, uid: &str) {
        if self.chosen.as_deref() == Some(uid) {
            self.chosen = self.newest(|other| other.uid != uid);
        }
    }

    pub fn clear(&mut self) {
        self.ready.clear();
    }

    /// A rollout terminates the oldest pods first, so the newest one lasts longest.
    fn newest(&self, among: impl Fn(&Ready) -> bool) -> Option<String> {
        let among = self.ready.values().filter(|pod| among(pod));
        let newest = among.max_by_key(|pod| (pod.created, &pod.name))?;
        Some(newest.uid.clone())
    }
}

impl Ready {
    /// The log line while connections go to it.
    pub fn line(&self, local_port: u16) -> String {
        format!("localhost:{local_port} -> pod {}", self.name)
    }

    /// `None` when the pod is not ready, is terminating, or has no such port.
    fn read(pod: &Pod, port: &IntOrString) -> Option<Self> {
        // Its readiness changes seconds later, when it has already stopped accepting connections.
        if pod.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let conditions = pod.status.as_ref()?.conditions.as_ref()?;
        conditions
            .iter()
            .find(|condition| condition.type_ == "Ready" && condition.status == "True")?;
        let created = pod.creation_timestamp();
        Some(Self {
            uid: pod.uid()?,
            name: pod.name_any(),
            port: container_port(pod, port)?,
            created: created.map_or(0, |time| time.0.as_second()),
        })
    }
}

fn container_port(pod: &Pod, port: &IntOrString) -> Option<u16> {
    let name = match port {
        IntOrString::Int(number) => return u16::try_from(*number).ok(),
        IntOrString::String(name) => name,
    };
    let containers = &pod.spec.as_ref()?.containers;
    let mut ports = containers.iter().flat_map(|one| one.ports.iter().flatten());
    let port = ports.find(|port| port.name.as_ref() == Some(name))?;
    u16::try_from(port.container_port).ok()
}

#[cfg(test)]
mod tests {
    use kube::core::Resource;

    use super::*;

    fn pod(name: &str, created: &str, ready: bool) -> Pod {
        let status = if ready { "True" } else { "False" };
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name, "uid": format!("uid-{name}"), "creationTimestamp": created},
            "spec": {"containers": [{"name": "consumer", "ports": [
                {"name": "admin", "containerPort": 9090},
                {"name": "http", "containerPort": 5000},
            ]}]},
            "status": {"conditions": [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": status}]},
        }))
        .unwrap()
    }

    const OLD: &str = "2026-01-01T00:00:00Z";
    const NEW: &str = "2026-01-01T00:01:00Z";

    fn port() -> IntOrString {
        IntOrString::String("http".to_owned())
    }

    fn pods(list: &[Pod]) -> Pods {
        let mut pods = Pods::default();
        relist(&mut pods, list);
        pods
    }

    fn relist(pods: &mut Pods, list: &[Pod]) {
        pods.apply(Event::Init, &port());
        for pod in list {
            pods.apply(Event::InitApply(pod.clone()), &port());
        }
        pods.apply(Event::InitDone, &port());
    }

    fn chosen(pods: &mut Pods) -> Option<String> {
        pods.choose().map(|pod| pod.name.clone())
    }

    #[test]
    fn the_chosen_pod_is_kept_when_another_becomes_ready() {
        let mut pods = pods(&[pod("a", OLD, true)]);
        assert_eq!(chosen(&mut pods).unwrap(), "a");
        pods.apply(Event::Apply(pod("b", NEW, true)), &port());
        assert_eq!(chosen(&mut pods).unwrap(), "a");
    }

    #[test]
    fn a_terminating_pod_is_replaced_though_it_is_still_ready() {
        let mut ending = pod("a", OLD, true);
        let mut pods = pods(&[ending.clone(), pod("b", OLD, true), pod("c", NEW, true)]);
        assert_eq!(chosen(&mut pods).unwrap(), "c");
        pods.avoid("uid-c");
        pods.avoid("uid-b");
        ending.meta_mut().deletion_timestamp = ending.creation_timestamp();
        pods.apply(Event::Apply(ending), &port());
        assert_eq!(chosen(&mut pods).unwrap(), "c", "the newest of the others");
    }

    #[test]
    fn a_pod_that_is_deleted_or_no_longer_ready_is_replaced() {
        let mut pods = pods(&[pod("a", OLD, true), pod("b", NEW, false)]);
        assert_eq!(chosen(&mut pods).unwrap(), "a");
        pods.apply(Event::Apply(pod("a", OLD, false)), &port());
        assert_eq!(chosen(&mut pods), None);
        pods.apply(Event::Apply(pod("b", NEW, true)), &port());
        assert_eq!(chosen(&mut pods).unwrap(), "b");
        pods.apply(Event::Delete(pod("b", NEW, true)), &port());
        assert_eq!(chosen(&mut pods), None);
    }

    #[test]
    fn a_new_listing_removes_missing_pods_and_keeps_the_choice() {
        let mut pods = pods(&[pod("a", OLD, true), pod("gone", OLD, true)]);
        pods.avoid("uid-gone");
        let kept = chosen(&mut pods).unwrap();
        relist(&mut pods, &[pod("a", OLD, true), pod("b", NEW, true)]);
        let expected = if kept == "a" { "a" } else { "b" };
        assert_eq!(chosen(&mut pods).unwrap(), expected);
        relist(&mut pods, &[]);
        assert_eq!(chosen(&mut pods), None);
    }

    #[test]
    fn a_pod_that_accepts_no_connection_is_replaced_only_if_there_is_another() {
        let mut pods = pods(&[pod("a", OLD, true)]);
        chosen(&mut pods);
        pods.avoid("uid-a");
        assert_eq!(chosen(&mut pods).unwrap(), "a");
        pods.apply(Event::Apply(pod("b", OLD, true)), &port());
        pods.avoid("uid-a");
        assert_eq!(chosen(&mut pods).unwrap(), "b");
    }

    #[test]
    fn the_services_port_is_found_in_the_pod_by_number_or_by_name() {
        let pod = pod("a", OLD, true);
        assert_eq!(container_port(&pod, &port()), Some(5000));
        assert_eq!(container_port(&pod, &IntOrString::Int(8080)), Some(8080));
        let unknown = IntOrString::String("https".to_owned());
        assert_eq!(container_port(&pod, &unknown), None);
    }
}
