//! Which pod a forward goes to: one that is ready, the same one as long as it is.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use kube::runtime::watcher::Event;

/// A pod that takes connections.
#[derive(Clone, Debug, PartialEq)]
pub struct Ready {
    /// A StatefulSet's pod that was made anew has the same name, but another id.
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
    /// What a listing has brought until it is complete.
    listed: HashMap<String, Ready>,
    chosen: Option<String>,
}

impl Pods {
    /// Takes in what the API server says. `port` is the Service's `targetPort`: a number, or a name that each pod explains.
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

    /// The pod to go to: the one chosen before if it is still ready.
    pub fn choose(&mut self) -> Option<&Ready> {
        let chosen = self
            .chosen
            .take()
            .filter(|uid| self.ready.contains_key(uid));
        self.chosen = chosen.or_else(|| self.newest(|_| true));
        self.ready.get(self.chosen.as_ref()?)
    }

    /// Chooses another pod if there is one: the chosen one did not take a connection, whatever its state says.
    pub fn avoid(&mut self, uid: &str) {
        if self.chosen.as_deref() == Some(uid) {
            self.chosen = self.newest(|other| other.uid != uid);
        }
    }

    pub fn clear(&mut self) {
        self.ready.clear();
    }

    /// A rollout ends the oldest pods first: the newest one is chosen for longest.
    fn newest(&self, among: impl Fn(&Ready) -> bool) -> Option<String> {
        let among = self.ready.values().filter(|pod| among(pod));
        let newest = among.max_by_key(|pod| (pod.created, &pod.name))?;
        Some(newest.uid.clone())
    }
}

impl Ready {
    /// What the log says while connections go to it.
    pub fn line(&self, local_port: u16) -> String {
        format!("http://localhost:{local_port} -> pod {}", self.name)
    }

    /// `None` when the pod is not ready, is about to end, or has no such port.
    fn read(pod: &Pod, port: &IntOrString) -> Option<Self> {
        // Its readiness follows seconds later, when it has stopped taking connections.
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
        let yes = if ready { "True" } else { "False" };
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name, "uid": format!("uid-{name}"), "creationTimestamp": created},
            "spec": {"containers": [{"name": "consumer", "ports": [
                {"name": "admin", "containerPort": 9090},
                {"name": "http", "containerPort": 5000},
            ]}]},
            "status": {"conditions": [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": yes}]},
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
    fn it_stays_with_its_pod_when_another_one_becomes_ready() {
        let mut pods = pods(&[pod("a", OLD, true)]);
        assert_eq!(chosen(&mut pods).unwrap(), "a");
        pods.apply(Event::Apply(pod("b", NEW, true)), &port());
        assert_eq!(chosen(&mut pods).unwrap(), "a");
    }

    #[test]
    fn a_pod_that_is_about_to_end_is_left_though_it_is_still_ready() {
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
    fn a_pod_that_is_no_longer_ready_or_gone_is_left() {
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
    fn a_new_listing_forgets_what_it_does_not_name_and_keeps_the_choice() {
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
    fn a_pod_that_takes_no_connection_is_left_only_for_another_one() {
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
