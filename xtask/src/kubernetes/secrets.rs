//! The Secrets that `up` applies itself. One of the same name that it did not create is left alone.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Secret;
use serde_json::json;

use crate::command::{output, with_input};
use crate::kubernetes::cluster::Cluster;
use crate::kubernetes::labels::{MANAGED_BY, XTASK};

/// The type of a Secret without rules for its keys.
pub const OPAQUE: &str = "Opaque";
/// The type of a certificate with its key.
pub const TLS: &str = "kubernetes.io/tls";

pub fn find(cluster: &Cluster, namespace: &str, name: &str) -> anyhow::Result<Option<Secret>> {
    let get = ["get", "secret", name, "--ignore-not-found"];
    let mut get = cluster.kubectl(&get);
    let text = output(get.args(["--namespace", namespace, "--output", "json"]))?;
    if text.trim().is_empty() {
        return Ok(None);
    }
    let secret = serde_json::from_str(&text).context("cannot read the output of kubectl get")?;
    Ok(Some(secret))
}

/// The text under a key.
pub fn text<'a>(secret: &'a Secret, key: &str) -> Option<&'a str> {
    let data = secret.data.as_ref()?.get(key)?;
    str::from_utf8(&data.0).ok()
}

/// Creates it, or replaces what it contains. Not by arguments, which any user of the machine can read.
pub fn apply(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    kind: &str,
    data: &[(&str, String)],
) -> anyhow::Result<()> {
    let data: BTreeMap<_, _> = data.iter().cloned().collect();
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": kind, "stringData": data,
        "metadata": {"name": name, "namespace": namespace, "labels": {MANAGED_BY: XTASK}},
    });
    let args = [
        "apply",
        "--server-side",
        "--force-conflicts",
        "--filename",
        "-",
    ];
    let mut apply = cluster.kubectl(&args);
    let applied = with_input(&mut apply, &secret.to_string())?;
    let error = String::from_utf8_lossy(&applied.stderr);
    ensure!(
        applied.status.success(),
        "cannot apply Secret {name} in namespace {namespace}: {}",
        error.trim()
    );
    println!("secret/{name} of namespace {namespace} applied");
    Ok(())
}
