//! Loads images into minikube's cluster, and removes those of earlier builds.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use anyhow::{Context, bail};

use super::Image;
use crate::command::{output, run};
use crate::kubernetes::cluster::{self, Cluster};

/// Image references as in pod manifests.
type References = BTreeSet<String>;

/// Loads missing images, verifies that the cluster lists them, and removes unused ones that earlier calls loaded.
/// The cluster must be running.
pub fn load(images: &[Image], cluster: &Cluster) -> anyhow::Result<()> {
    let had = present(cluster)?;
    let missing: Vec<&Image> = images
        .iter()
        .filter(|image| !had.contains(&image.reference()))
        .collect();
    if !missing.is_empty() {
        let mut load = minikube(cluster, "load");
        run(load.args(missing.iter().map(|image| &image.archive)))?;
        // It succeeds even if the container engine has rejected the archive.
        let has = present(cluster)?;
        for image in missing {
            let reference = image.reference();
            if !has.contains(&reference) {
                let archive = image.archive.display();
                bail!("minikube loaded {archive} but does not list {reference}: see minikube logs");
            }
        }
    }
    let current = images.iter().map(Image::reference).collect();
    remove_old(&current, &had, cluster)
}

/// Removes only images that were loaded from this folder: other users may be about to use theirs.
fn remove_old(current: &References, had: &References, cluster: &Cluster) -> anyhow::Result<()> {
    let record = crate::target().join(format!("images/loaded-into-{}", cluster.context));
    let before = references(&fs::read_to_string(&record).unwrap_or_default());
    let old: References = before.difference(current).cloned().collect();
    let mut old: References = old.intersection(had).cloned().collect();
    if !old.is_empty() {
        let used = used(cluster)?;
        let unused: Vec<_> = old.difference(&used).collect();
        if !unused.is_empty() {
            run(minikube(cluster, "rm").args(unused))?;
        }
        old = old.intersection(&used).cloned().collect();
    }
    let loaded = current
        .union(&old)
        .map(|reference| format!("{reference}\n"));
    fs::write(&record, loaded.collect::<String>())
        .with_context(|| format!("cannot write {}", record.display()))
}

/// The images in the cluster.
fn present(cluster: &Cluster) -> anyhow::Result<References> {
    Ok(references(&output(&mut minikube(cluster, "ls"))?))
}

/// The images that run, and those that a rollback would start again.
fn used(cluster: &Cluster) -> anyhow::Result<References> {
    let kinds = "pods,replicasets.apps,jobs.batch";
    let mut get = cluster.kubectl(&["get", kinds, "--all-namespaces"]);
    get.args(["--output", "jsonpath={..image}"]);
    Ok(references(&output(&mut get)?))
}

fn minikube(cluster: &Cluster, verb: &str) -> Command {
    cluster::minikube(&["image", verb, "--profile", &cluster.context])
}

/// Engines list the default registry, which a pod manifest leaves out.
fn references(text: &str) -> References {
    text.split_whitespace()
        .map(|name| name.strip_prefix("docker.io/").unwrap_or(name).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_that_an_engine_adds_is_removed() {
        let listed =
            references("docker.io/herald/consumer:1\nherald/producer:2\nregistry.k8s.io/pause:3\n");
        let expected = [
            "herald/consumer:1",
            "herald/producer:2",
            "registry.k8s.io/pause:3",
        ];
        assert_eq!(listed, expected.map(str::to_owned).into());
    }
}
