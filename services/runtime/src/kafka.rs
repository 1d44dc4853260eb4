//! What every client of Kafka in Herald shares: its options, its log, and whether Kafka is there.

mod args;
mod context;
mod properties;
pub mod source;

pub use args::{KafkaArgs, addresses, create};
pub use context::Context;
pub use properties::{Property, parse as properties};
pub use source::Source;
