//! The consumer group that reads the topic, and the producer of dead letters.

mod context;
mod dead_letters;
mod group;

pub use context::Assignment;
pub use dead_letters::{DeadLetter, DeadLetters};
pub use group::{Group, Polled};
