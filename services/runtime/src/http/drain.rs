//! A replica's clean shutdown: new streams are rejected, then the open ones end one by one, so that clients do not all reconnect
//! at once.

use std::time::Duration;

use tokio::sync::watch;

/// The phase of the drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    /// New streams are rejected.
    Rejecting,
    /// Streams end, each at a random time within the window.
    Ending,
}

/// The state of the drain, shared by all transports.
#[derive(Clone, Debug)]
pub struct Drain {
    phase: watch::Sender<Phase>,
    window: Duration,
}

impl Drain {
    /// `window` is the period over which the streams end.
    pub fn new(window: Duration) -> Self {
        Self {
            phase: watch::Sender::new(Phase::Serving),
            window,
        }
    }

    /// New streams are rejected from now on.
    pub fn reject(&self) {
        self.phase.send_replace(Phase::Rejecting);
    }

    /// Streams end from now on, within the window.
    pub fn end(&self) {
        self.phase.send_replace(Phase::Ending);
    }

    /// Whether new streams are rejected.
    pub fn is_rejecting(&self) -> bool {
        *self.phase.borrow() >= Phase::Rejecting
    }

    /// Waits until this stream must end.
    pub fn deadline(&self) -> impl Future<Output = ()> + Send + Sync + 'static {
        let mut phase = self.phase.subscribe();
        let window = self.window;
        async move {
            // An error means that the sender was dropped, and with it the service.
            _ = phase.wait_for(|phase| *phase == Phase::Ending).await;
            let fraction = rand::random_range(0.0..=1.0);
            tokio::time::sleep(window.mul_f64(fraction)).await;
        }
    }
}

/// When a client should reconnect, in ms: a random time between one and four seconds.
pub fn retry() -> u64 {
    rand::random_range(1000..4000)
}
