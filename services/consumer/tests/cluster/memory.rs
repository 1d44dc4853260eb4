//! The memory limit of the chart.

use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use consumer::cursor::Vector;
use herald_testing::eventually;
use jiff::Timestamp;

use crate::client::TRANSPORTS;
use crate::cluster::{leave_out, say};
use crate::crowd::Crowd;
use crate::kafka;
use crate::reader::Reader;
use crate::release::{Pod, Release};

const RING_BYTES: u32 = 48 << 20;
/// 72 MB, more than the ring holds: the rest has to come from Kafka.
const OLD_MESSAGES: usize = 7_200;
const OLD_MESSAGE_BYTES: usize = 10_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_clients_of_one_pod_fit_into_its_memory_limit() {
    let Some(mut release) = Release::install("1s") else {
        return;
    };
    // A polling client has two connections, and each client that reads old messages one or two more. In the limit that the
    // chart has for 2,000 connections there is room for as many if the ring is smaller.
    allow_open_files(4_000);
    release.upgrade("/configmap/data/RING_BYTES", RING_BYTES.to_string().into());
    release.upgrade("/configmap/data/MAX_CONNECTIONS", "2520".into());
    let pod = release.pod();
    let address = SocketAddr::new(pod.ip.parse().expect("an address"), 5000);
    if TcpStream::connect_timeout(&address, Duration::from_secs(3)).is_err() {
        leave_out("this machine is not the node, and a forward takes no 2,000 connections");
        return;
    }
    let line = "x".repeat(OLD_MESSAGE_BYTES) + "\n";
    let lines = line.repeat(OLD_MESSAGES);
    kafka::write(&release.namespace, release.topic(), &lines);

    let mut crowd = Crowd::default();
    for transport in TRANSPORTS {
        crowd.join(release.topic(), ("to the pod", address), transport, 500);
    }
    crowd.have(1).await;
    crowd.go_on("until all were connected").await;
    read_the_oldest(release.topic(), address).await;
    crowd.go_on("while old messages were read").await;
    crowd.go_on("undisturbed").await;

    let ring = format!("herald_ring_bytes{{topic=\"{}\"}}", release.topic());
    let ring = metric(&release, &pod, &ring);
    let full = 0.8 * f64::from(RING_BYTES);
    assert!(ring > full, "the ring is to be full, and has {ring} bytes");
    let connections = metric(&release, &pod, "herald_connections");
    assert!(connections >= 2000.0, "{connections} connections");
    let memory = Memory::now(&release, &pod).await;
    say(&format!(
        "2,000 clients on {connections} connections, ring full: working set {} MiB, peak {} MiB, limit {}",
        memory.working_set >> 20,
        memory.peak >> 20,
        pod.memory_limit,
    ));
    let after = release.pod();
    let same = (after.name, after.restarts) == (pod.name, 0);
    assert!(same, "the pod was killed");
    assert_eq!(crowd.reconnects(), 0, "a client was sent away");
    release.namespace.has_seen_no_violation();
}

/// One client of each transport reads from the start, at the same time: as many as there are readers of old messages. One
/// that is sent away, because what it is at has left the ring, comes back with its cursor.
async fn read_the_oldest(topic: &str, address: SocketAddr) {
    let readings = TRANSPORTS.map(|transport| async move {
        let mut reader = Reader::new(topic);
        // A cursor that names no partition is read from the start of each.
        reader.cursor = Some(Vector::default().encode(topic));
        while reader.count() < OLD_MESSAGES / 4 {
            let mut client = reader.connect(address, transport);
            while let Some(event) = client.next().await {
                reader.take(&event);
                if reader.count() >= OLD_MESSAGES / 4 {
                    break;
                }
            }
        }
    });
    let all = futures_util::future::join_all(readings);
    let read = tokio::time::timeout(Duration::from_secs(120), all).await;
    assert!(read.is_ok(), "the oldest messages did not come in time");
}

/// The value of a metric of a pod.
fn metric(release: &Release, pod: &Pod, name: &str) -> f64 {
    let metrics = release.admin(pod, "/metrics");
    let value = metrics
        .lines()
        .find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or_else(|| panic!("there is no metric {name}"))
}

/// The bytes that the container of a pod has, as its node counts them.
struct Memory {
    working_set: u64,
    peak: u64,
}

impl Memory {
    /// Counted after this call: the node counts about every ten seconds.
    async fn now(release: &Release, pod: &Pod) -> Self {
        let now = Timestamp::now().as_millisecond();
        let mut text = String::new();
        let path = format!("/api/v1/nodes/{}/proxy/metrics/cadvisor", pod.node);
        eventually(Duration::from_secs(90), "the node to count", async || {
            text = release.namespace.kubectl(&["get", "--raw", &path]);
            let counted = ["working_set_bytes", "max_usage_bytes"]
                .map(|what| sample(&text, &format!("container_memory_{what}"), pod));
            counted
                .iter()
                .all(|sample| sample.is_some_and(|(_, time)| time > now))
        })
        .await;
        let bytes = |name: &str| sample(&text, name, pod).map_or(0, |(bytes, _)| bytes);
        let working_set = bytes("container_memory_working_set_bytes");
        Self {
            working_set,
            // An old kernel does not know it.
            peak: bytes("container_memory_max_usage_bytes").max(working_set),
        }
    }
}

/// Value and time (milliseconds since 1970) of a metric of the node, for the consumer's container in a pod.
fn sample(text: &str, name: &str, pod: &Pod) -> Option<(u64, i64)> {
    let of_pod = format!("pod=\"{}\"", pod.name);
    let line = text.lines().find(|line| {
        line.strip_prefix(name)
            .is_some_and(|labels| labels.starts_with('{'))
            && line.contains("container=\"consumer\"")
            && line.contains(&of_pod)
    })?;
    let (value, time) = line.rsplit_once("} ")?.1.split_once(' ')?;
    Some((value.parse::<f64>().ok()? as u64, time.parse().ok()?))
}

/// Raises the limit of this process where it is lower.
fn allow_open_files(wanted: u32) {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let soft = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .and_then(|values| values.split_whitespace().next()?.parse().ok());
    if soft.is_none_or(|soft: u32| soft >= wanted) {
        return;
    }
    let (process, limit) = (std::process::id().to_string(), format!("{wanted}:"));
    let raised = Command::new("prlimit")
        .args(["--pid", &process, "--nofile", &limit])
        .status();
    assert!(
        raised.is_ok_and(|status| status.success()),
        "this test needs {wanted} open files: ulimit -n {wanted}"
    );
}
