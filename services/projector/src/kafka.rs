//! The consumer group that reads the topic, and the producer of dead letters.

mod context;
mod dead_letters;
mod group;
mod topics;

pub use context::Assignment;
pub use dead_letters::{Annotated, DeadLetter, DeadLetters, dead_letter_topic};
pub use group::{Group, Polled};
pub use topics::create_topic;
