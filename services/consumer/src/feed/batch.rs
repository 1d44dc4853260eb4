//! The events of one write.

use bytes::{Bytes, BytesMut};

use crate::encode::{self, Frame};
use crate::record::{Event, GapReason, Payload};

/// Frames that are written together, and what is counted afterwards.
#[derive(Debug, Default)]
pub struct Batch {
    pub frames: Vec<Frame>,
    pub messages: usize,
    /// Kafka's timestamps, in ms, of the messages that were read live, not from a backlog.
    pub timestamps: Vec<i64>,
    pub gaps: Vec<GapReason>,
}

impl Batch {
    /// All frames, joined.
    pub fn block(&self) -> Bytes {
        match &*self.frames {
            [frame] => frame.bytes.clone(),
            frames => {
                let length = frames.iter().map(|frame| frame.bytes.len()).sum();
                let mut block = BytesMut::with_capacity(length);
                for frame in frames {
                    block.extend_from_slice(&frame.bytes);
                }
                block.freeze()
            }
        }
    }

    /// Clears the batch after a write. A connection keeps no more capacity than a quiet topic needs.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.timestamps.clear();
        self.gaps.clear();
        self.frames.shrink_to(4);
        self.timestamps.shrink_to(4);
        self.gaps.shrink_to(4);
        self.messages = 0;
    }

    /// Counts an event that is sent to a client.
    pub fn count(&mut self, event: &Event, live: bool, binary: bool) {
        match encode::payload_for(event, binary).as_ref() {
            Payload::Gap(gap) => self.gaps.push(gap.reason),
            Payload::Message(message) => {
                self.messages += 1;
                self.timestamps.extend(message.timestamp.filter(|_| live));
            }
        }
    }
}
