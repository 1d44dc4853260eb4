//! A loop of requests while something happens to the pods.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use crate::http;

/// After a pod has become ready, requests may still fail for this long.
const GRACE: Duration = Duration::from_secs(2);

pub struct Requests {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<Request>>>,
}

pub struct Request {
    started: Instant,
    took: Duration,
    error: Option<String>,
}

impl Requests {
    /// Four at a time, each on its own connection.
    pub fn start(port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..4).map(|_| {
            let stop = stop.clone();
            spawn(move || {
                let mut done = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    done.push(Request::make(port));
                    sleep(Duration::from_millis(20));
                }
                done
            })
        });
        let threads = threads.collect();
        Self { stop, threads }
    }

    pub fn stop(self) -> Vec<Request> {
        self.stop.store(true, Ordering::Relaxed);
        let threads = self.threads.into_iter();
        threads.flat_map(|thread| thread.join().unwrap()).collect()
    }
}

impl Request {
    fn make(port: u16) -> Self {
        let started = Instant::now();
        let error = match http::get(port, "/") {
            Ok(response) if response.status == 200 => None,
            Ok(response) => Some(format!("status {}", response.status)),
            Err(error) => Some(error.to_string()),
        };
        Self {
            started,
            took: started.elapsed(),
            error,
        }
    }
}

/// Panics if a request failed that started in a `stable` period, from a pod's readiness to the next disturbance.
/// Prints the number of failures and the longest duration.
pub fn assert_succeeded(requests: &[Request], stable: &[(Instant, Instant)]) {
    let failed = requests.iter().filter(|request| request.error.is_some());
    let failed: Vec<&Request> = failed.collect();
    let longest = requests.iter().map(|request| request.took).max();
    println!(
        "{} requests, {} failed, the longest took {longest:?}",
        requests.len(),
        failed.len()
    );
    let mut expected = 0;
    for (ready, disturbed) in stable {
        let is_expected =
            |request: &&Request| request.started >= *ready + GRACE && request.started < *disturbed;
        let required = requests.iter().filter(is_expected);
        for request in required {
            expected += 1;
            let after = request.started - *ready;
            assert_eq!(
                request.error, None,
                "a request {after:?} after a pod was ready"
            );
        }
    }
    assert!(
        expected > 10 * stable.len(),
        "only {expected} requests in {} stable periods",
        stable.len()
    );
}
