//! What the live reader and the supervisors send each other.

use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::time::Duration;

use crate::cursor::TopicId;
use crate::record::Event;

/// What the reader has come upon.
#[derive(Clone, Copy, Debug)]
pub enum Problem {
    /// The topic has another id.
    Recreated,
    /// A partition's position is not in the log.
    OutOfRange(usize),
    /// The batch at a partition's position cannot be read.
    Unreadable(usize),
    /// A partition may not be read; its health says why.
    Denied,
}

/// What a supervisor has decided.
pub struct Command {
    /// The topic's number.
    pub topic: usize,
    /// Comes before everything that is read from here on.
    pub events: Vec<Event>,
    /// The events end the log of another topic of the same name; this is the new one's id.
    pub recreated: Option<TopicId>,
    /// The number of partitions, where it has changed.
    pub partitions: Option<usize>,
    /// These partitions are read from where the feed ends.
    pub read: Vec<usize>,
}

/// The way to the thread.
#[derive(Clone)]
pub struct Commands {
    sender: mpsc::Sender<Command>,
    ready: Arc<Ready>,
}

impl Commands {
    /// The way to a thread that waits on `ready`, and its other end.
    pub fn new(ready: Arc<Ready>) -> (Self, mpsc::Receiver<Command>) {
        let (sender, receiver) = mpsc::channel();
        (Self { sender, ready }, receiver)
    }

    pub fn send(&self, command: Command) {
        // When the thread has ended, so does the process.
        _ = self.sender.send(command);
        self.ready.wake();
    }
}

/// The partitions that have something to poll.
#[derive(Default)]
pub struct Ready {
    partitions: Mutex<Vec<(usize, usize)>>,
    changed: Condvar,
}

impl Ready {
    pub fn add(&self, topic: usize, partition: usize) {
        let mut partitions = self
            .partitions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        partitions.push((topic, partition));
        self.changed.notify_one();
    }

    pub fn wake(&self) {
        // The lock, so that it is not missed between a look and the wait.
        drop(
            self.partitions
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        self.changed.notify_one();
    }

    pub fn take(&self, wait: Duration) -> Vec<(usize, usize)> {
        let mut partitions = self
            .partitions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if partitions.is_empty() {
            let waited = self.changed.wait_timeout(partitions, wait);
            partitions = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        std::mem::take(&mut *partitions)
    }
}
