//! Images into minikube's cluster, and out of it those that an earlier build had put there.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use anyhow::{Context, bail};

use super::Image;
use crate::cluster::{self, Cluster};
use crate::command::{output, run};

/// References as pods name them.
type References = BTreeSet<String>;

/// Loads those that the cluster lacks, makes sure that it has them then, and removes what earlier calls have loaded and
/// nothing can use any more. The cluster runs.
pub fn load(images: &[Image], cluster: &Cluster) -> anyhow::Result<()> {
    let had = present(cluster)?;
    let missing: Vec<&Image> = images
        .iter()
        .filter(|image| !had.contains(&image.reference()))
        .collect();
    if !missing.is_empty() {
        let mut load = minikube(cluster, "load");
        run(load.args(missing.iter().map(|image| &image.archive)))?;
        // It ends well even when the container engine has refused the archive.
        let has = present(cluster)?;
        for image in missing {
            let reference = image.reference();
            if !has.contains(&reference) {
                let archive = image.archive.display();
                bail!("minikube took {archive} but does not list {reference}: see minikube logs");
            }
        }
    }
    let current = images.iter().map(Image::reference).collect();
    remove_old(&current, &had, cluster)
}

/// Removes only what this folder's own calls have loaded: what others have loaded may be about to be used.
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

/// What the cluster has.
fn present(cluster: &Cluster) -> anyhow::Result<References> {
    Ok(references(&output(&mut minikube(cluster, "ls"))?))
}

/// What runs, and what a rollback would start again.
fn used(cluster: &Cluster) -> anyhow::Result<References> {
    let kinds = "pods,replicasets.apps,jobs.batch";
    let mut get = cluster.kubectl(&["get", kinds, "--all-namespaces"]);
    get.args(["--output", "jsonpath={..image}"]);
    Ok(references(&output(&mut get)?))
}

fn minikube(cluster: &Cluster, verb: &str) -> Command {
    cluster::minikube(&["image", verb, "--profile", &cluster.context])
}

/// Engines write the registry that a pod leaves out.
fn references(text: &str) -> References {
    text.split_whitespace()
        .map(|name| name.strip_prefix("docker.io/").unwrap_or(name).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_that_an_engine_adds_is_left_out() {
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
