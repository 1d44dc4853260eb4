//! Nothing is lost, and nothing comes twice, while the cluster changes under its clients.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::json;

use crate::client::TRANSPORTS;
use crate::cluster::{leave_out, say};
use crate::crowd::Crowd;
use crate::forward::Forward;
use crate::kafka;
use crate::release::{Deletion, Release};

/// A message every 50 ms: the producer's smallest sensible pause, and many times the rate of real broadcasts.
const INTERVAL: &str = "50ms";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_clients_lose_nothing_while_the_cluster_changes_under_them() {
    let Some(mut release) = Release::install(INTERVAL) else {
        return;
    };
    let (mut crowd, _forward) = a_hundred_clients(&release).await;

    let before = release.pod();
    let header = json!("Another header");
    release.upgrade("/configmap/data/CUSTOM_HEADER", header);
    let upgraded = release.pod();
    assert_ne!(before.name, upgraded.name, "another header is another pod");
    crowd.go_on("while the consumer was upgraded").await;

    release.upgrade("/consumer/replicaCount", json!(3));
    crowd.go_on("while the consumer was scaled to 3").await;
    // The one that everyone is with is to leave, not one of the two that have nobody yet.
    let first = "controller.kubernetes.io/pod-deletion-cost=-1";
    release
        .namespace
        .kubectl(&["annotate", "pod", &upgraded.name, first]);
    release.upgrade("/consumer/replicaCount", json!(1));
    assert_ne!(release.pod().name, upgraded.name);
    crowd.go_on("while the consumer was scaled to 1").await;

    for way in [Deletion::InOrder, Deletion::AtOnce] {
        delete_pod(&release, &mut crowd, way).await;
    }

    kafka::restart(&release.namespace);
    crowd.go_on("while the Kafka pod was deleted").await;

    finish(release, crowd).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes several minutes"]
async fn a_hundred_clients_lose_nothing_when_the_pod_is_deleted_twenty_times() {
    let Some(release) = Release::install(INTERVAL) else {
        return;
    };
    let (mut crowd, _forward) = a_hundred_clients(&release).await;
    for _ in 0..10 {
        for way in [Deletion::InOrder, Deletion::AtOnce] {
            delete_pod(&release, &mut crowd, way).await;
        }
    }
    finish(release, crowd).await;
}

/// 25 of each transport, half of them through the product's own port-forward and half through the Service.
async fn a_hundred_clients(release: &Release) -> (Crowd, Forward) {
    let forward = Forward::of_service(release).await;
    let mut ways = vec![("through the forward", forward.address)];
    let service = release.service();
    if reaches(service) {
        ways.push(("through the Service", service));
    } else {
        leave_out("this machine is not the node, so that all clients come through the forward");
    }
    let mut crowd = Crowd::default();
    for number in 0..100 {
        let transport = TRANSPORTS[number % TRANSPORTS.len()];
        let way = ways[number / TRANSPORTS.len() % ways.len()];
        crowd.join(release.topic(), way, transport, 1);
    }
    crowd.have(20).await;
    crowd.go_on("until all were connected").await;
    crowd.forget_silences();
    (crowd, forward)
}

fn reaches(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_secs(3)).is_ok()
}

async fn delete_pod(release: &Release, crowd: &mut Crowd, way: Deletion) {
    let pod = release.pod();
    release.delete_pod(&pod, way);
    assert_ne!(release.pod().name, pod.name);
    let during = match way {
        Deletion::InOrder => "while the only pod was deleted",
        Deletion::AtOnce => "while the only pod was killed",
    };
    crowd.go_on(during).await;
}

/// Ends the producer, so that the log stands still, and compares what everyone got with it.
async fn finish(mut release: Release, crowd: Crowd) {
    release.upgrade("/producer/replicaCount", json!(0));
    let records = kafka::committed(&release.namespace, release.topic());
    crowd.finish(&records).await;
    release.namespace.has_seen_no_violation();
    say("every pod ran in a namespace that enforces restricted");
}
