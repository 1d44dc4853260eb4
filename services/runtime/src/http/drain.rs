//! The end of a replica in order: reject what is new, then end the streams one by one, so that they do not all come back at
//! once.

use std::time::Duration;

use tokio::sync::watch;

/// How far the drain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    /// New streams are rejected.
    Refusing,
    /// Streams end, each at its own moment of the window.
    Ending,
}

/// The state of the drain, shared by all transports.
#[derive(Clone, Debug)]
pub struct Drain {
    phase: watch::Sender<Phase>,
    window: Duration,
}

impl Drain {
    /// `window` is the time over which the ends are spread.
    pub fn new(window: Duration) -> Self {
        Self {
            phase: watch::Sender::new(Phase::Serving),
            window,
        }
    }

    /// New streams are rejected from now on.
    pub fn refuse(&self) {
        self.phase.send_replace(Phase::Refusing);
    }

    /// Streams end from now on, within the window.
    pub fn end(&self) {
        self.phase.send_replace(Phase::Ending);
    }

    /// Whether new streams are rejected.
    pub fn is_refusing(&self) -> bool {
        *self.phase.borrow() >= Phase::Refusing
    }

    /// Waits until this stream is to end.
    pub fn deadline(&self) -> impl Future<Output = ()> + Send + Sync + 'static {
        let mut phase = self.phase.subscribe();
        let window = self.window;
        async move {
            // An error means that the sender is gone, and with it the service.
            _ = phase.wait_for(|phase| *phase == Phase::Ending).await;
            let moment = rand::random_range(0.0..=1.0);
            tokio::time::sleep(window.mul_f64(moment)).await;
        }
    }
}

/// When a client should come back, in ms: its own moment between one and four seconds.
pub fn retry() -> u64 {
    rand::random_range(1000..4000)
}
