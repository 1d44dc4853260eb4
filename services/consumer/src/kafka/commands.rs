//! The messages between the live reader and the supervisors.

use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::time::Duration;

use crate::cursor::TopicId;
use crate::record::Event;

/// A problem that the reader has encountered.
#[derive(Clone, Copy, Debug)]
pub enum Problem {
    /// The topic has a new id.
    Recreated,
    /// A partition's position is not in the log.
    OutOfRange(usize),
    /// The batch at a partition's position cannot be read.
    Unreadable(usize),
    /// Kafka denies access to a partition; its health has the reason.
    Denied,
}

/// A decision of a supervisor.
pub struct Command {
    /// The topic's number.
    pub topic: usize,
    /// Appended to the feed before anything that is read from now on.
    pub events: Vec<Event>,
    /// Set if the events end the old log of a recreated topic: the id of the new topic.
    pub recreated: Option<TopicId>,
    /// The number of partitions, if it has changed.
    pub partitions: Option<usize>,
    /// The partitions to read from the end of the feed.
    pub read: Vec<usize>,
}

/// A channel to the reader's thread.
#[derive(Clone)]
pub struct Commands {
    sender: mpsc::Sender<Command>,
    ready: Arc<Ready>,
}

impl Commands {
    /// A channel to a thread that waits on `ready`, and its receiver.
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
        // Lock, so that the thread does not miss the notification between its check and its wait.
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
