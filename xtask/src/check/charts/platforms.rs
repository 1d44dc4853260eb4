//! The rules of platforms that are not here: OpenShift, clusters with IPv6 alone, nodes with ARM processors, service meshes.

use std::fs;

use anyhow::ensure;
use serde_json::Value as Json;

use super::{PASSED, Rendered};
use crate::chart;
use crate::check::tally::Tally;

/// The volumes that OpenShift's `restricted-v2` allows.
const VOLUMES: [&str; 8] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

pub fn platforms(rendered: &Rendered) -> anyhow::Result<Tally> {
    let mut pods = 0;
    for file in &rendered.releases {
        for resource in chart::documents(&fs::read_to_string(file)?)? {
            let name = format!("{}: {}", file.display(), resource["metadata"]["name"]);
            if let Some(pod) = pod_specs(&resource) {
                pods += 1;
                let broken = restricted_v2(pod).or_else(|| other_processors(pod));
                ensure!(broken.is_none(), "{name}: {}", broken.unwrap_or_default());
            }
            let broken = ipv6(&resource).or_else(|| unnamed_protocol(&resource));
            ensure!(broken.is_none(), "{name}: {}", broken.unwrap_or_default());
        }
    }
    println!("{pods} pods meet OpenShift's restricted-v2, on IPv6 and on any processor");
    ensure!(pods > 0, "no pod was rendered");
    Ok(PASSED)
}

fn pod_specs(resource: &Json) -> Option<&Json> {
    match resource["kind"].as_str()? {
        "Pod" => Some(&resource["spec"]),
        "Deployment" | "Job" | "StatefulSet" | "DaemonSet" => {
            Some(&resource["spec"]["template"]["spec"])
        }
        _ => None,
    }
}

/// What `restricted-v2` would reject. It gives each namespace a range of users and groups: a pod must not choose its own.
fn restricted_v2(pod: &Json) -> Option<String> {
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        if pod[field] == true {
            return Some(format!("{field} is not allowed on OpenShift"));
        }
    }
    for volume in list(&pod["volumes"]) {
        let kinds = volume.as_object().into_iter().flatten();
        let mut kinds = kinds
            .map(|(key, _)| key.as_str())
            .filter(|key| *key != "name");
        if let Some(kind) = kinds.find(|kind| !VOLUMES.contains(kind)) {
            return Some(format!(
                "a volume of kind {kind} is not allowed on OpenShift"
            ));
        }
    }
    let containers = ["containers", "initContainers"];
    let containers = || containers.iter().flat_map(|key| list(&pod[*key]));
    for context in containers()
        .map(|container| &container["securityContext"])
        .chain([&pod["securityContext"]])
    {
        for field in [
            "runAsUser",
            "runAsGroup",
            "fsGroup",
            "supplementalGroups",
            "seLinuxOptions",
        ] {
            if !context[field].is_null() {
                return Some(format!(
                    "{field} must not be fixed: OpenShift gives each namespace its own"
                ));
            }
        }
        let profile = &context["seccompProfile"]["type"];
        if !profile.is_null() && profile != "RuntimeDefault" {
            return Some(format!(
                "the seccomp profile {profile} is not allowed on OpenShift"
            ));
        }
    }
    for container in containers() {
        let context = &container["securityContext"];
        if context["allowPrivilegeEscalation"] != false || context["privileged"] == true {
            return Some("a container must not escalate privileges on OpenShift".to_owned());
        }
        let capabilities = &context["capabilities"];
        if !list(&capabilities["drop"]).any(|name| name == "ALL") {
            return Some("a container must drop ALL capabilities on OpenShift".to_owned());
        }
        if list(&capabilities["add"]).any(|name| name != "NET_BIND_SERVICE") {
            return Some("a container must not add capabilities on OpenShift".to_owned());
        }
        if list(&container["ports"]).any(|port| !port["hostPort"].is_null()) {
            return Some("hostPort is not allowed on OpenShift".to_owned());
        }
    }
    None
}

/// The images have both architectures, so nothing may choose one.
fn other_processors(pod: &Json) -> Option<String> {
    let text = pod.to_string();
    let words = ["amd64", "x86_64"];
    let word = words.iter().find(|word| text.contains(*word))?;
    Some(format!(
        "{word} would keep the pod from nodes with ARM processors"
    ))
}

/// A Service takes the family of the cluster, and no process listens on an IPv4 address.
fn ipv6(resource: &Json) -> Option<String> {
    let spec = &resource["spec"];
    if resource["kind"] == "Service" {
        for field in ["clusterIP", "clusterIPs", "ipFamilies"] {
            // A headless Service has no address.
            if !spec[field].is_null() && spec[field] != "None" {
                return Some(format!(
                    "{field} would tie the Service to one family of addresses"
                ));
            }
        }
    }
    let containers = pod_specs(resource).map(|pod| &pod["containers"]);
    let variables = containers
        .into_iter()
        .flat_map(list)
        .flat_map(|container| list(&container["env"]));
    for variable in variables {
        let name = variable["name"].as_str().unwrap_or_default();
        let value = variable["value"].as_str().unwrap_or_default();
        if name.ends_with("LISTEN") && !value.starts_with("[::]:") {
            return Some(format!(
                "{name} must begin with [::]:, which is any address of either family"
            ));
        }
    }
    None
}

/// Istio and Linkerd read the protocol of a port from its name or from `appProtocol`; otherwise they guess, with a delay.
fn unnamed_protocol(resource: &Json) -> Option<String> {
    const PROTOCOLS: [&str; 5] = ["http", "http2", "https", "tcp", "tls"];
    if resource["kind"] != "Service" {
        return None;
    }
    let named = |port: &Json| {
        let name = port["name"].as_str().unwrap_or_default();
        let protocol = port["appProtocol"].as_str();
        PROTOCOLS.contains(&protocol.unwrap_or(name.split('-').next().unwrap_or_default()))
    };
    let port = list(&resource["spec"]["ports"]).find(|port| !named(port))?;
    Some(format!(
        "port {} needs an appProtocol, for Istio and Linkerd",
        port["name"]
    ))
}

fn list(json: &Json) -> impl Iterator<Item = &Json> {
    json.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Json {
        json!({
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": [{"name": "keys", "secret": {"secretName": "keys"}}],
            "containers": [{
                "env": [{"name": "LISTEN", "value": "[::]:5000"}],
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        })
    }

    /// The pod after a change at a JSON pointer.
    fn changed(pointer: &str, value: Json) -> Json {
        let mut pod = pod();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = pod.pointer_mut(parent).unwrap();
        match parent.as_array_mut() {
            Some(list) => list[key.parse::<usize>().unwrap()] = value,
            None => parent[key] = value,
        }
        pod
    }

    #[test]
    fn restricted_v2_rejects_what_openshift_does() {
        assert_eq!(restricted_v2(&pod()), None);
        for (pointer, value, word) in [
            ("/hostNetwork", json!(true), "hostNetwork"),
            ("/securityContext/fsGroup", json!(1000), "fsGroup"),
            (
                "/containers/0/securityContext/runAsUser",
                json!(65532),
                "runAsUser",
            ),
            (
                "/containers/0/securityContext/allowPrivilegeEscalation",
                Json::Null,
                "escalate",
            ),
            (
                "/containers/0/securityContext/capabilities",
                json!({"drop": ["NET_RAW"]}),
                "drop ALL",
            ),
            (
                "/containers/0/securityContext/capabilities",
                json!({"drop": ["ALL"], "add": ["SYS_TIME"]}),
                "add",
            ),
            ("/containers/0/ports", json!([{"hostPort": 80}]), "hostPort"),
            (
                "/volumes/0",
                json!({"name": "x", "hostPath": {}}),
                "hostPath",
            ),
            (
                "/securityContext/seccompProfile",
                json!({"type": "Unconfined"}),
                "Unconfined",
            ),
        ] {
            let broken = restricted_v2(&changed(pointer, value)).unwrap_or_default();
            assert!(broken.contains(word), "{pointer}: {broken:?}");
        }
    }

    #[test]
    fn an_address_of_ipv4_and_a_processor_are_found() {
        let of = |spec: Json| json!({"kind": "Pod", "spec": spec});
        assert_eq!(ipv6(&of(pod())), None);
        let ipv4 = json!({"name": "LISTEN", "value": "0.0.0.0:80"});
        assert!(ipv6(&of(changed("/containers/0/env/0", ipv4))).is_some());
        let service = json!({"kind": "Service", "spec": {"ipFamilies": ["IPv4"]}});
        assert!(ipv6(&service).is_some());
        assert_eq!(other_processors(&pod()), None);
        let selector = json!({"kubernetes.io/arch": "amd64"});
        assert!(other_processors(&changed("/nodeSelector", selector)).is_some());
    }

    #[test]
    fn a_port_names_its_protocol() {
        let port = |port: Json| json!({"kind": "Service", "spec": {"ports": [port]}});
        assert_eq!(unnamed_protocol(&port(json!({"name": "http-page"}))), None);
        assert_eq!(
            unnamed_protocol(&port(json!({"name": "rooms", "appProtocol": "https"}))),
            None
        );
        assert!(unnamed_protocol(&port(json!({"name": "rooms"}))).is_some());
    }
}
