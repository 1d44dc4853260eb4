//! Leaving in order: refuse what is new, then end the streams one by one, so that they do not all come back at once.

use std::time::Duration;

use tokio::sync::watch;

/// How far the leaving is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    /// New streams are told to go elsewhere.
    Refusing,
    /// Streams end, each at its own moment of the window.
    Ending,
}

/// Shared by the doors; the one who leaves moves it on.
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

    pub fn refuse(&self) {
        self.phase.send_replace(Phase::Refusing);
    }

    pub fn end(&self) {
        self.phase.send_replace(Phase::Ending);
    }

    /// Whether new streams are to go elsewhere.
    pub fn is_refusing(&self) -> bool {
        *self.phase.borrow() >= Phase::Refusing
    }

    /// Waits until it is this stream's turn to end.
    pub fn turn(&self) -> impl Future<Output = ()> + Send + Sync + 'static {
        let mut phase = self.phase.subscribe();
        let window = self.window;
        async move {
            // When the sender is gone, so is everyone who could leave.
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
