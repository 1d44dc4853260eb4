//! Watches a Service and its pods for as long as the forward runs.

use std::convert::Infallible;
use std::io::Write;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Api;
use kube::runtime::watcher::{self, Event, watch_object, watcher};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Forward;
use super::pods::{Pods, Ready};
use crate::kubernetes::cluster::Cluster;

/// A working API server lists a few pods in less.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);

/// The delay between two attempts to reach the API server: minimum and maximum.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Between two looks at the clock, to notice that this machine slept.
const TICK: Duration = Duration::from_secs(1);

/// A delay that a busy machine does not explain.
const LATE: Duration = Duration::from_secs(10);

/// Where new connections go.
#[derive(Clone)]
pub struct Target {
    pub pod: Ready,
    pub pods: Api<Pod>,
    /// Cancelled when open connections may be dead.
    pub cut: CancellationToken,
    avoided: mpsc::UnboundedSender<String>,
}

impl Target {
    /// Switches to another pod, if there is one: this one is ready, but did not answer.
    pub fn avoid(&self) {
        // Fails only between two sessions, when the pods are about to be listed again.
        let _ = self.avoided.send(self.pod.uid.clone());
    }

    /// Whether new connections still go there.
    pub fn is_in(&self, target: &watch::Receiver<Option<Self>>) -> bool {
        let now = target.borrow();
        now.as_ref().is_some_and(|now| now.pod.uid == self.pod.uid)
    }
}

/// The relevant part of a Service's specification.
#[derive(PartialEq)]
struct Definition {
    selector: String,
    port: IntOrString,
}

/// Keeps `targets` set to a ready pod of the Service, or to `None`; does not return.
pub async fn follow(
    cluster: &Cluster,
    forward: &Forward,
    targets: &watch::Sender<Option<Target>>,
    log: &Log,
) {
    let mut pods = Pods::default();
    let mut cut = CancellationToken::new();
    let mut delay = RETRY.0;
    // Not restarted with each session: after a sleep, the watch may fail first.
    let mut pause = pin!(slept());
    loop {
        let started = Instant::now();
        tokio::select! {
            length = &mut pause => {
                log.print(&format!("nothing ran for {} s (did this machine sleep?): reconnecting", length.as_secs()));
                // First, so that clients that reconnect wait for a new target.
                targets.send_replace(None);
                cut.cancel();
                cut = CancellationToken::new();
                pause.set(slept());
            }
            error = session(cluster, forward, &mut pods, &cut, targets, log) => {
                let error = error.expect_err("a session ends with an error");
                let Forward { namespace, service, .. } = forward;
                let why = error.root_cause().to_string();
                log.print(&format!("cannot watch Service {service} in namespace {namespace}: {why}; retrying"));
                if started.elapsed() > LIST_TIMEOUT {
                    delay = RETRY.0;
                }
                sleep(delay).await;
                delay = RETRY.1.min(delay * 2);
            }
        }
    }
}

/// Watches with one client; ends when a watch fails, as it does when the API server stops.
async fn session(
    cluster: &Cluster,
    forward: &Forward,
    pods: &mut Pods,
    cut: &CancellationToken,
    targets: &watch::Sender<Option<Target>>,
    log: &Log,
) -> anyhow::Result<Infallible> {
    let client = cluster.long_lived_client().await?;
    let api = Api::<Pod>::namespaced(client.clone(), &forward.namespace);
    let services = Api::<Service>::namespaced(client, &forward.namespace);
    let (avoided, mut to_avoid) = mpsc::unbounded_channel::<String>();
    let mut services = pin!(watch_object(services, &forward.service));
    let mut definition: Option<Definition> = None;
    let mut changes: BoxStream<_> = stream::pending().boxed();
    let deadline = Instant::now() + LIST_TIMEOUT;
    let mut listed = false;
    loop {
        tokio::select! {
            service = services.next() => {
                let service = service.context("the watch has ended")??;
                let found = match &service {
                    Some(service) => Some(Definition::read(service)?),
                    None => None,
                };
                if found != definition || found.is_none() {
                    changes = match &found {
                        Some(found) => {
                            let config = watcher::Config::default().labels(&found.selector);
                            watcher(api.clone(), config).boxed()
                        }
                        None => {
                            pods.clear();
                            listed = true;
                            stream::pending().boxed()
                        }
                    };
                    definition = found;
                }
            }
            change = changes.next() => {
                let change = change.context("the watch has ended")??;
                let definition = definition.as_ref().context("pods of no Service")?;
                listed |= matches!(change, Event::InitDone);
                pods.apply(change, &definition.port);
            }
            Some(uid) = to_avoid.recv() => pods.avoid(&uid),
            () = sleep_until(deadline), if !listed => {
                bail!("no answer within {} s", LIST_TIMEOUT.as_secs());
            }
        }
        // Until the pods are listed, the previous target may still be valid.
        if !listed {
            continue;
        }
        let target = pods.choose().map(|pod| Target {
            pod: pod.clone(),
            pods: api.clone(),
            cut: cut.clone(),
            avoided: avoided.clone(),
        });
        log.print(&describe(forward, definition.as_ref(), target.as_ref()));
        targets.send_replace(target);
    }
}

/// The log line about where connections go.
fn describe(forward: &Forward, definition: Option<&Definition>, target: Option<&Target>) -> String {
    let Forward {
        namespace, service, ..
    } = forward;
    match (definition, target) {
        (_, Some(target)) => target.pod.line(forward.local_port),
        (Some(_), None) => {
            format!("waiting for a ready pod of Service {service} in namespace {namespace}")
        }
        (None, None) => format!("waiting for Service {service} in namespace {namespace}"),
    }
}

impl Definition {
    fn read(service: &Service) -> anyhow::Result<Self> {
        let spec = service.spec.as_ref();
        let selector = spec.and_then(|spec| spec.selector.as_ref());
        let selector = selector.filter(|selector| !selector.is_empty());
        let selector = selector.context("it selects no pods")?;
        let selector: Vec<String> = selector
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let port = spec
            .and_then(|spec| spec.ports.as_ref()?.first())
            .context("it has no port")?;
        Ok(Self {
            selector: selector.join(","),
            port: port
                .target_port
                .clone()
                .unwrap_or(IntOrString::Int(port.port)),
        })
    }
}

/// Returns the length of a pause as soon as a tick comes late: this machine slept, or this process was stopped for a while.
async fn slept() -> Duration {
    loop {
        let (ticked, clock) = (std::time::Instant::now(), SystemTime::now());
        sleep(TICK).await;
        // The monotonic clock may stop while the machine sleeps; the system clock does not.
        let elapsed = ticked.elapsed().max(clock.elapsed().unwrap_or_default());
        if let Some(pause) = pause(elapsed) {
            return pause;
        }
    }
}

fn pause(elapsed: Duration) -> Option<Duration> {
    elapsed.checked_sub(TICK).filter(|late| *late > LATE)
}

/// The log of a forward: a line when something changes, none per connection.
pub struct Log {
    name: String,
    last: Mutex<String>,
}

impl Log {
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            last: Mutex::default(),
        }
    }

    /// Prints the line, unless it repeats the last one.
    pub fn print(&self, line: &str) {
        self.print_after("", line);
    }

    /// Prints the line if the last one begins with `beginning`, which is then out of date.
    pub fn print_after(&self, beginning: &str, line: &str) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.starts_with(beginning) && *last != line {
            // Not println!, which panics when the reader has closed the pipe.
            let _ = writeln!(std::io::stdout(), "{}: {line}", self.name);
            line.clone_into(&mut last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_very_late_tick_is_a_pause() {
        assert_eq!(
            pause(Duration::from_secs(16)),
            Some(Duration::from_secs(15))
        );
        assert_eq!(pause(Duration::from_secs(6)), None);
        assert_eq!(pause(Duration::from_millis(900)), None);
    }
}
