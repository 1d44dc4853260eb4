//! The frames of one connection that are not answered yet, in the order in which they came.

use std::collections::VecDeque;
use std::pin::Pin;

use prometheus::IntGauge;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::DeliveryFuture;
use rdkafka::producer::future_producer::Delivery;
use tokio::time::Instant;

/// About the memory that a frame takes besides its bytes.
const OVERHEAD: usize = 512;

/// Frames between their arrival and their answer. Each is answered once, after those before it.
pub struct InFlight {
    frames: VecDeque<InFlightFrame>,
    bytes: usize,
    /// The bytes of all connections.
    total: IntGauge,
}

struct InFlightFrame {
    state: State,
    bytes: usize,
    since: Instant,
    is_end: bool,
}

enum State {
    /// Kafka has it, and has not acknowledged it.
    Sent(Pin<Box<DeliveryFuture>>),
    /// It was not sent, because it breaks a rule.
    Rejected(Rejection),
    /// It was not sent, for another reason.
    Failed(String),
}

/// Why a frame is not published: for metrics, and for the client.
pub struct Rejection {
    pub element: Option<usize>,
    pub label: &'static str,
    pub sentence: String,
}

/// What becomes of a frame.
pub enum Answer {
    Acknowledged(Delivery),
    /// This frame breaks a rule, and others may not; `is_end` if the session was to end with it.
    Rejected {
        rejection: Rejection,
        is_end: bool,
    },
    /// Kafka does not accept frames.
    Failed(String),
}

impl InFlight {
    pub fn new(total: IntGauge) -> Self {
        Self {
            frames: VecDeque::new(),
            bytes: 0,
            total,
        }
    }

    /// A frame that was given to Kafka at `since`; `is_end` if the session ends with it.
    pub fn sent(&mut self, delivery: DeliveryFuture, bytes: usize, since: Instant, is_end: bool) {
        self.push(State::Sent(Box::pin(delivery)), bytes, since, is_end);
    }

    pub fn rejected(&mut self, rejection: Rejection, is_end: bool) {
        let bytes = rejection.sentence.len();
        self.push(State::Rejected(rejection), bytes, Instant::now(), is_end);
    }

    pub fn failed(&mut self, error: String) {
        self.push(State::Failed(error), 0, Instant::now(), false);
    }

    fn push(&mut self, state: State, bytes: usize, since: Instant, is_end: bool) {
        let bytes = bytes + OVERHEAD;
        self.bytes += bytes;
        self.total.add(bytes as i64);
        self.frames.push_back(InFlightFrame {
            state,
            bytes,
            since,
            is_end,
        });
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The memory that they take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Since when the first one waits.
    pub fn since(&self) -> Option<Instant> {
        self.frames.front().map(|frame| frame.since)
    }

    /// The answer to the first one; pending if there is none. Nothing is lost if it is dropped before it is ready.
    pub async fn next(&mut self) -> Answer {
        let Some(first) = self.frames.front_mut() else {
            return std::future::pending().await;
        };
        let result = match &mut first.state {
            State::Sent(delivery) => Some(delivery.as_mut().await),
            State::Rejected(_) | State::Failed(_) => None,
        };
        let first = self.frames.pop_front().expect("there is a first one");
        self.bytes -= first.bytes;
        self.total.sub(first.bytes as i64);
        let is_end = first.is_end;
        match (result, first.state) {
            (_, State::Rejected(rejection)) => Answer::Rejected { rejection, is_end },
            (_, State::Failed(error)) => Answer::Failed(error),
            (Some(Ok(Ok(delivery))), _) => Answer::Acknowledged(delivery),
            (Some(Ok(Err((error, _)))), _) => match Rejection::of(&error) {
                Some(rejection) => Answer::Rejected { rejection, is_end },
                None => Answer::Failed(error.to_string()),
            },
            (Some(Err(_)) | None, _) => Answer::Failed("the producer has ended".to_owned()),
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.total.sub(self.bytes as i64);
    }
}

impl Rejection {
    /// If Kafka rejects this frame, and would reject it again.
    pub fn of(error: &KafkaError) -> Option<Self> {
        let (label, sentence) = match error.rdkafka_error_code()? {
            RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::MessageBatchTooLarge => (
                "too-large-for-topic",
                "a frame must not be larger than the kafka topic accepts (max.message.bytes)",
            ),
            RDKafkaErrorCode::InvalidRecord => (
                "rejected-by-topic",
                "a frame must be a record that the kafka topic accepts",
            ),
            _ => return None,
        };
        Some(Self {
            element: None,
            label,
            sentence: sentence.to_owned(),
        })
    }
}
