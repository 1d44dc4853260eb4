//! The labels by which objects in the cluster are known.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// The label of the resources that `up` applies itself (helm sets its own on those that it installs): nothing without it is
/// changed or deleted.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
pub const XTASK: &str = "herald-xtask";

/// Whether `up` has applied an object itself.
pub fn is_ours(metadata: &ObjectMeta) -> bool {
    let labels = metadata.labels.as_ref();
    labels.is_some_and(|labels| labels.get(MANAGED_BY).is_some_and(|by| by == XTASK))
}

/// The labels of everything that belongs to a release.
pub fn selector(release: &str) -> String {
    format!("app.kubernetes.io/instance={release}")
}

/// The labels of one component of a release.
pub fn selector_of(release: &str, component: &str) -> String {
    format!(
        "{},app.kubernetes.io/component={component}",
        selector(release)
    )
}
