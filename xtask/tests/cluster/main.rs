//! `cargo xtask forward` on a real cluster, with real sockets, and a release of the chart in a namespace per test.
//!
//! `cargo xtask check delivery` runs them on minikube. By hand: `HERALD_TEST_CLUSTER` names the context of kubectl,
//! `HERALD_PRODUCER_IMAGE` and `HERALD_CONSUMER_IMAGE` are images that the cluster has (`repository:tag`). Kafka is the one of
//! `k8s/kafka`.

mod api_server;
mod forward;
mod http;
mod polling;
mod process;
mod release;
mod requests;
