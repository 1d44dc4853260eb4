//! Replicas are alike.

use serde_json::json;

use crate::client::TRANSPORTS;
use crate::crowd::Crowd;
use crate::forward::Forward;
use crate::kafka;
use crate::release::Release;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_of_each_of_three_replicas_sees_every_message() {
    let Some(mut release) = Release::install("50ms") else {
        return;
    };
    release.upgrade("/consumer/replicaCount", json!(3));
    let pods = release.pods("consumer");
    assert_eq!(pods.len(), 3);
    let mut crowd = Crowd::default();
    let mut forwards = Vec::new();
    for (pod, way) in pods.iter().zip(["to pod 1", "to pod 2", "to pod 3"]) {
        let forward = Forward::of_pod(&release, pod);
        for transport in TRANSPORTS {
            crowd.join(release.topic(), (way, forward.address), transport, 2);
        }
        forwards.push(forward);
    }
    crowd.have(100).await;
    release.upgrade("/producer/replicaCount", json!(0));
    let records = kafka::committed(&release.namespace, release.topic());
    crowd.finish(&records).await;
    release.namespace.has_seen_no_violation();
}
