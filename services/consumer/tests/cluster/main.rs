//! Delivery on a real cluster: a release of the chart in a namespace of its own, read by clients while things are taken away.
//!
//! `cargo xtask check delivery` runs them on minikube. By hand: `HERALD_TEST_CLUSTER` names the context of kubectl,
//! `HERALD_PRODUCER_IMAGE` and `HERALD_CONSUMER_IMAGE` are images that the cluster has (`repository:tag`). Kafka is the one of
//! `k8s/kafka`, and one of the tests restarts it.

mod cluster;
mod crowd;
mod forward;
mod kafka;
mod memory;
mod namespace;
mod nothing_lost;
mod release;
mod replicas;

// The protocol clients and the check of the guarantee are shared with the tests of a single process; these tests use a part.
#[allow(dead_code)]
#[path = "../it/client.rs"]
mod client;
#[allow(dead_code)]
#[path = "../it/reader.rs"]
mod reader;
