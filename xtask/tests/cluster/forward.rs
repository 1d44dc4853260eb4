//! The guarantees of a forward.

use std::io::Read;
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use crate::api_server;
use crate::http;
use crate::polling::Polling;
use crate::process::{Forward, command};
use crate::release::{Release, leave_out};
use crate::requests::{Requests, assert_succeeded};

#[test]
fn a_second_forward_on_a_port_is_rejected_in_one_sentence() {
    // Needs no cluster: the port is bound before anything else.
    let mut first = Forward::start(|port| format!("herald-test/nothing:{port}"));
    first.wait_for("\n");
    let second = command(&format!("herald-test/nothing:{}", first.port));
    let second = { second }.output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let stderr = String::from_utf8(second.stderr).unwrap();
    let expected = format!("error: port {} is in use by xtask (process ", first.port);
    assert!(stderr.starts_with(&expected), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

#[test]
fn every_request_succeeds_while_pods_are_deleted() {
    let Some(release) = Release::install("deleted") else {
        return;
    };
    let long = std::env::var_os("HERALD_TEST_LONG").is_some();
    let mut forward = Forward::start(|port| release.service(port));
    forward.wait_for("-> pod ");
    let mut ready = release.wait_for_pods(1);
    let requests = Requests::start(forward.port);
    let mut stable = Vec::new();
    for _ in 0..if long { 20 } else { 2 } {
        let since = Instant::now();
        // Two seconds of grace, and one in which every request must succeed.
        sleep(Duration::from_secs(3));
        stable.push((since, Instant::now()));
        release.delete_pods(&ready);
        let deleted = ready[0].clone();
        ready = release.wait_for_pods(1);
        assert_ne!(ready[0], deleted);
        forward.wait_for(&format!("-> pod {}", ready[0]));
    }
    let requests = requests.stop();
    println!("{}", forward.log());
    assert_succeeded(&requests, &stable);
}

#[test]
fn polling_uses_one_pod_while_there_are_three() {
    let Some(release) = Release::install("polling") else {
        return;
    };
    let mut forward = Forward::start(|port| release.service(port));
    forward.wait_for("-> pod ");
    let requests = Requests::start(forward.port);
    let stable = Instant::now();
    let first = Polling::connect(forward.port);
    release.scale(3);
    release.wait_for_pods(3);
    let second = Polling::connect(forward.port);
    for _ in 0..30 {
        assert!(first.is_known() && second.is_known());
    }
    assert_eq!(forward.log().lines().count(), 1, "{}", forward.log());
    release.scale(1);
    let last = release.wait_for_pods(1);
    forward.wait_for(&format!("-> pod {}", last[0]));
    let third = Polling::connect(forward.port);
    for _ in 0..30 {
        assert!(third.is_known());
    }
    // There was a ready pod at any time.
    assert_succeeded(&requests.stop(), &[(stable, Instant::now())]);
    println!("{}", forward.log());
}

#[test]
fn a_connection_waits_until_a_pod_is_ready() {
    let Some(release) = Release::install("waiting") else {
        return;
    };
    let mut forward = Forward::start(|port| release.service(port));
    forward.wait_for("-> pod ");
    release.scale(0);
    forward.wait_for("waiting for a ready pod of Service consumer-service");
    let port = forward.port;
    let started = Instant::now();
    let request = spawn(move || http::get(port, "/"));
    sleep(Duration::from_secs(1));
    release.scale(1);
    let response = request.join().unwrap().unwrap();
    assert_eq!(response.status, 200);
    assert!(started.elapsed() > Duration::from_secs(1));
}

#[test]
fn after_a_pause_it_closes_connections_and_continues_until_sigterm() {
    let Some(release) = Release::install("paused") else {
        return;
    };
    let mut forward = Forward::start(|port| release.service(port));
    forward.wait_for("-> pod ");
    let mut stream = http::events(forward.port).unwrap();
    forward.signal("-STOP");
    sleep(Duration::from_secs(15));
    forward.signal("-CONT");
    let awake = Instant::now();
    let response = http::get(forward.port, "/").unwrap();
    assert_eq!(response.status, 200);
    // The open stream may be dead, and is closed before the next heartbeat would be due.
    while stream.read(&mut [0; 1024]).is_ok_and(|read| read > 0) {}
    assert!(
        awake.elapsed() < Duration::from_secs(10),
        "{:?}",
        awake.elapsed()
    );
    assert!(forward.log().contains("reconnecting"), "{}", forward.log());

    let mut stream = http::events(forward.port).unwrap();
    forward.signal("-TERM");
    assert_eq!(forward.wait_for_end().code(), Some(0));
    while stream.read(&mut [0; 1024]).is_ok_and(|read| read > 0) {}
}

#[test]
#[ignore = "restarts the API server"]
fn every_request_succeeds_after_the_api_server_was_restarted() {
    if std::env::var("HERALD_DISPOSABLE_CLUSTER").as_deref() != Ok("1") {
        return leave_out("HERALD_DISPOSABLE_CLUSTER=1 is not set (it restarts the API server)");
    }
    let Some(release) = Release::install("restarted") else {
        return;
    };
    let mut forward = Forward::start(|port| release.service(port));
    forward.wait_for("-> pod ");
    let requests = Requests::start(forward.port);
    let before = Instant::now();
    sleep(Duration::from_secs(3));
    let stopped = Instant::now();
    api_server::restart(&release.context);
    let ready = Instant::now();
    sleep(Duration::from_secs(10));
    let stable = [(before, stopped), (ready, Instant::now())];
    assert_succeeded(&requests.stop(), &stable);
    println!("{}", forward.log());
}
